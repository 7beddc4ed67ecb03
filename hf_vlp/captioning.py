"""Captions for pictures in files, folders and on the web, with any captioner; what is bad is reported, not fatal."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hf_vlp.data.image_io import ImageError, load_image

# Files in a folder that are taken for pictures. Files that are named one by one are opened whatever they are called.
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture's path or address, and either its caption or why it could not be read."""

    picture: str
    caption: str | None = None
    error: str | None = None


def find_pictures(inputs: Iterable[str | os.PathLike]) -> list[str]:
    """Paths and addresses of all pictures that the inputs stand for, in order, each once.

    Args:
        inputs: addresses (`http...`), files, folders (all pictures below, hidden ones left out) and patterns with
            `*`, `?` and `[...]` (`**` for any depth).

    Raises ValueError when an input stands for nothing; the message says what was looked for.
    """
    found: dict[str, None] = {}
    for item in map(str, inputs):
        if item.startswith(("http://", "https://", "data:")):
            found[item] = None
            continue
        path = Path(item).expanduser()
        if path.is_dir():
            files = sorted(
                str(file)
                for file in path.rglob("*")
                if file.suffix.lower() in PICTURE_SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
            if not files:
                raise ValueError(f"The folder {item} holds no pictures (looked for {', '.join(PICTURE_SUFFIXES)}).")
        elif path.exists():
            files = [str(path)]
        elif glob.has_magic(item):
            files = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not files:
                raise ValueError(f"No file matches {item} (looked in {Path.cwd()}).")
        else:
            raise ValueError(f"There is no file or folder {item} (looked in {Path.cwd()}).")
        found.update(dict.fromkeys(files))
    if not found:
        raise ValueError("No picture was given: name files, folders, patterns or addresses.")
    return list(found)


def caption_pictures(
    captioner, pictures: Iterable[str], *, batch_size: int = 8, prompt: str | None = None, **generation
) -> Iterator[CaptionedPicture]:
    """Caption pictures batch by batch, in their order.

    Args:
        captioner: an image-to-text pipeline, `hf_vlp.pipeline("image-to-text", model=...)`.
        pictures: paths and addresses; read one batch at a time, so that there may be any number of them.
        batch_size: pictures that are captioned together.
        prompt: what every caption begins with.
        generation: options of `generate`, such as `num_beams` and `max_new_tokens`.

    Yields one `CaptionedPicture` for each, with an error in the place of a caption when it cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    pictures = iter(pictures)
    while batch := list(islice(pictures, batch_size)):
        images, results = [], {}
        for place, picture in enumerate(batch):
            try:
                images.append((place, load_image(picture)))
            except ImageError as error:
                results[place] = CaptionedPicture(picture, error=str(error))
        if images:
            outputs = captioner([image for _, image in images], batch_size=len(images), prompt=prompt, **generation)
            for (place, _), output in zip(images, outputs):
                results[place] = CaptionedPicture(batch[place], caption=output[0]["generated_text"].strip())
        yield from (results[place] for place in range(len(batch)))


def load_captioner(model_id: str, *, device: str | None = None) -> tuple[Any, Any]:
    """The model and the processor of a folder or Hub id, on a device: an accelerator where there is one.

    Raises OSError or ValueError when there is no such model, or one that writes no captions.
    """
    from accelerate import PartialState
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import hf_vlp  # noqa: F401 - registers the architectures

    model = AutoModelForImageTextToText.from_pretrained(model_id)
    return model.to(device or PartialState().device).eval(), AutoProcessor.from_pretrained(model_id)


def to_coco_results(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Captions with `id` and `caption` in the format of COCO's evaluation server: `image_id` and `caption`.

    Numbers that are written as text, also at the end of COCO's file names, become numbers; other ids stay.
    """
    results = []
    for row in rows:
        match = re.fullmatch(r"(?:COCO_\w+_)?(\d+)(?:\.jpe?g)?", str(row["id"]))
        results.append({"image_id": int(match.group(1)) if match else row["id"], "caption": row["caption"]})
    return results


__all__ = [
    "PICTURE_SUFFIXES",
    "CaptionedPicture",
    "caption_pictures",
    "find_pictures",
    "load_captioner",
    "to_coco_results",
]
