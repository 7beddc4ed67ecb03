"""The main job from end to end on drawn pictures: train, measure, save, reload, caption, show.

It is a training run like any other (`hf_vlp.pretraining.run.train`) with a recipe that comes with the package; what is
added here only looks at the result the way a user would.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_vlp.describe import align

RECIPES = Path(__file__).parent / "recipes"
CONTACT_SHEET_NAME = "contact_sheet.png"
_SPLIT_TITLES = {"test": "held-out scenes", "compositional": "combinations never seen"}
_SHOWN = 6  # captions that are printed
_ON_SHEET = 12  # pictures of each split on the contact sheet


def find_recipe(architecture: str) -> Path:
    """The quick recipe of an architecture, as `examples/configs` shows it. ValueError when there is none."""
    path = RECIPES / f"{architecture}_quick.yaml"
    if not path.is_file():
        known = sorted(file.name.removesuffix("_quick.yaml") for file in RECIPES.glob("*_quick.yaml"))
        raise ValueError(f"There is no quick start for {architecture!r}, only for {', '.join(known)}.")
    return path


def run_quickstart(
    architecture: str = "vc_gpt",
    output: str | os.PathLike = "quickstart",
    *,
    seed: int | None = None,
    max_steps: int | None = None,
    settings: Mapping[str, Any] | None = None,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train a small model from nothing, and use it.

    Prints, for scenes that were held out and for combinations that never occur in training, how well they are
    captioned, each figure beside the one for the same captions on shuffled pictures: what a model scores that does not
    look. Then loads the saved repository as anybody would, through the Auto classes and the pipeline, captions a few
    pictures, and draws a contact sheet.

    Args:
        output: folder for the repository; files of an earlier quick start are replaced.
        seed: another seed than the recipe's.
        max_steps: fewer steps of training than the recipe's.
        settings: further settings that differ from the recipe, `{"data.num_scenes": 100}`.
        show: takes what is printed.

    Returns `metrics`, as they are in `metrics.json`; `captions` {split: captions of the reloaded pipeline};
    `num_reproduced`, how many of these equal the captions that were scored; `contact_sheet`, its path.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

    import hf_vlp  # noqa: F401 - registers the architectures and opens the pipeline
    from hf_vlp.data.sources import load_records
    from hf_vlp.pretraining.arguments import parse_arguments
    from hf_vlp.pretraining.build import first_records
    from hf_vlp.pretraining.run import train

    start = time.perf_counter()
    output = Path(output)
    flags = {"training.output_dir": str(output), **(settings or {})}
    if seed is not None:
        flags["training.seed"] = seed
    if max_steps is not None:
        flags["training.max_steps"] = max_steps
    run = parse_arguments(find_recipe(architecture), flags)
    metrics = train(run, show=show)
    last = run.stages()[-1]
    splits = last.evaluation.final_splits
    show("\n" + format_proof(metrics, splits))

    show(f"\nReloading {output} through AutoModelForImageTextToText, AutoProcessor and pipeline:")
    model = AutoModelForImageTextToText.from_pretrained(output)
    processor = AutoProcessor.from_pretrained(output)
    captioner = pipeline("image-to-text", model=model, processor=processor)
    captions, rows, num_reproduced = {}, [], 0
    for split in splits:
        records = first_records(load_records(last.data, split), _ON_SHEET)
        pictures = [open_picture(record["image"]) for record in records]
        outputs = captioner(pictures, batch_size=len(pictures), **last.evaluation.generation)
        captions[split] = [output[0]["generated_text"].strip() for output in outputs]
        scored = read_predictions(Path(last.training.output_dir), split)
        num_reproduced += sum(own == other for own, other in zip(captions[split], scored))
        rows += [
            (split, picture, caption, record["captions"])
            for picture, caption, record in zip(pictures, captions[split], records)
        ]
    for split, _, caption, references in rows[:_SHOWN]:
        show(f"  {split}: {caption!r}  (reference: {references[0]!r})")
    show(f"  {num_reproduced} of {len(rows)} captions equal those that were scored after training")
    sheet = draw_contact_sheet(rows, output / CONTACT_SHEET_NAME)
    show(f"\nRepository: {output}\nContact sheet: {sheet}\nTime: {(time.perf_counter() - start) / 60:.1f} minutes")
    return {"metrics": metrics, "captions": captions, "num_reproduced": num_reproduced, "contact_sheet": sheet}


def format_proof(metrics: Mapping[str, Any], splits: Sequence[str]) -> str:
    """The figures of each split beside those with shuffled pictures, as a table."""
    from hf_vlp.hub.cards import metric_name

    rows = [["", "model", "pictures shuffled"]]
    for split in splits:
        for key in ("cider_d", "exact_match"):
            if f"{split}_{key}" in metrics:
                shuffled = metrics.get(f"{split}_shuffled_{key}")
                rows.append(
                    [
                        f"{_SPLIT_TITLES.get(split, split)}: {metric_name(key)}",
                        f"{metrics[f'{split}_{key}']:.3f}",
                        "-" if shuffled is None else f"{shuffled:.3f}",
                    ]
                )
    return "\n".join(align(rows))


def open_picture(image: Any):
    """The picture of a record as a PIL image."""
    from hf_vlp.data.image_io import load_image

    return load_image(image)


def read_predictions(directory: Path, split: str) -> list[str]:
    """The captions that a run scored on a split, in the order of its records."""
    content = json.loads((directory / "predictions" / f"{split}.json").read_text(encoding="utf-8"))
    return [row["caption"] for row in content["predictions"]]


def draw_contact_sheet(
    rows: Sequence[tuple[str, Any, str, Sequence[str]]], path: str | os.PathLike, *, columns: int = 4, side: int = 160
) -> Path:
    """Draw pictures with what was said and what is true, right ones framed green and wrong ones red.

    Args:
        rows: (heading, PIL picture, caption, references) of each picture.
        path: PNG that is written.
        columns: pictures beside one another. side: of each, in pixels.
    """
    import textwrap

    from PIL import Image, ImageDraw, ImageFont

    from hf_vlp.metrics import exact_match

    font = ImageFont.load_default(size=13)
    width, height, line = side + 100, side + 130, 16
    characters = width // 7
    num_lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * width, num_lines * height), "white")
    draw = ImageDraw.Draw(sheet)
    matches = exact_match([row[2] for row in rows], [list(row[3]) for row in rows], per_sample=True)
    for place, ((heading, picture, caption, references), is_right) in enumerate(zip(rows, matches)):
        left, top = place % columns * width + 8, place // columns * height + 8
        colour = "#1a8a3a" if is_right else "#c02020"
        draw.rectangle((left - 4, top - 4, left + side + 3, top + side + 3), fill=colour)
        sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST), (left, top))
        texts = [
            *textwrap.wrap(f"{heading}: {'right' if is_right else 'wrong'}", characters)[:1],
            *textwrap.wrap(f"said: {caption}", characters)[:3],
            *textwrap.wrap(f"true: {references[0]}", characters)[:3],
        ]
        for number, text in enumerate(texts):
            draw.text((left, top + side + 6 + number * line), text, fill=colour if number == 0 else "black", font=font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


__all__ = ["CONTACT_SHEET_NAME", "draw_contact_sheet", "find_recipe", "format_proof", "run_quickstart"]
