"""Readers of the annotation files in which caption data sets are published.

Each yields records with `image` (bytes None, and the path), `captions`, `image_id` and `file_name` one by one, without
touching a picture: a picture that is missing is found, and counted, when a batch asks for it.

* Karpathy's splits (`dataset_coco.json`, `dataset_flickr30k.json`, `dataset_flickr8k.json`): `read_karpathy`.
* COCO's own caption files (`captions_val2014.json`) and others of that layout: `read_coco_captions`.
* Visual Genome's `region_descriptions.json`: `read_visual_genome`; the file is parsed piece by piece, since whole it
  would take several gigabytes of memory.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["annotation_layout", "karpathy_splits", "read_coco_captions", "read_karpathy", "read_visual_genome"]

# COCO's practice: "restval" (the part of val2014 that is neither validation nor test) is trained on.
_KARPATHY_SPLITS = {"train": ("train", "restval"), "validation": ("val",), "test": ("test",)}


def annotation_layout(path: str | os.PathLike) -> str:
    """`"karpathy"`, `"coco"`, `"visual_genome"`, or `"json"` for a list of records, told from the beginning."""
    with open(path, encoding="utf-8") as file:
        head = file.read(65536).lstrip()
    if head.startswith("["):
        return "visual_genome" if '"regions"' in head and '"phrase"' in head else "json"
    if head.startswith("{") and '"sentences"' in head:
        return "karpathy"
    # images come before annotations in some files and after them in others; there may be 100,000 images before
    if head.startswith("{") and ('"annotations"' in head or ('"images"' in head and '"file_name"' in head)):
        return "coco"
    return "json"


def karpathy_splits(path: str | os.PathLike) -> list[str]:
    """Names of the splits in a Karpathy file, sorted."""
    return sorted({image.get("split", "train") for image in _load(path)["images"]})


def read_karpathy(path: str | os.PathLike, split: str, image_root: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Records of one split; `train` includes `restval`, `validation` is the file's `val`.

    Pictures are looked for at `image_root/filepath/filename` (COCO: `filepath` is `train2014` or `val2014`), or at
    `image_root/filename` when the first one is not there.
    """
    wanted = _KARPATHY_SPLITS.get(split, (split,))
    root = Path(image_root)
    nested = None
    for image in _load(path)["images"]:
        if image.get("split", "train") not in wanted:
            continue
        direct, below = root / image["filename"], root / image.get("filepath", "") / image["filename"]
        if nested is None:
            nested = below.exists() or not direct.exists()
        identity = next((image[key] for key in ("cocoid", "imgid") if key in image), None)
        captions = [sentence["raw"] for sentence in image["sentences"]]
        yield _record(below if nested else direct, captions, identity)


def read_coco_captions(path: str | os.PathLike, image_root: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """Records of a COCO caption file, in the order of its images; images without captions get an empty list."""
    content = _load(path)
    captions: dict[Any, list[str]] = {}
    for annotation in content.get("annotations", []):
        captions.setdefault(annotation["image_id"], []).append(annotation["caption"])
    for image in content["images"]:
        yield _record(Path(image_root) / image["file_name"], captions.get(image["id"], []), image["id"])


def read_visual_genome(path: str | os.PathLike, image_root: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """One record for each picture, its region descriptions as captions (about fifty).

    Pictures are looked for in `VG_100K` and `VG_100K_2` below `image_root`, and in `image_root` itself.
    """
    root = Path(image_root)
    folders = {}
    for folder in (root, root / "VG_100K_2", root / "VG_100K"):
        if folder.is_dir():
            folders |= {entry.name: folder for entry in os.scandir(folder) if entry.name.endswith(".jpg")}
    for entry in _iterate_array(path):
        regions = entry.get("regions", [])
        identity = entry["id"] if "id" in entry else entry.get("image_id", regions[0]["image_id"] if regions else None)
        name = f"{identity}.jpg"
        yield _record(folders.get(name, root) / name, [region["phrase"] for region in regions], identity)


def _record(path: Path, captions: list[str], identity) -> dict[str, Any]:
    return {
        "image": {"bytes": None, "path": str(path)},
        "captions": captions,
        "image_id": None if identity is None else str(identity),
        "file_name": path.name,
    }


def _load(path: str | os.PathLike) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Check that the file is complete.") from error


def _iterate_array(path: str | os.PathLike, chunk_size: int = 1 << 20) -> Iterator[Any]:
    """The objects in one large JSON array, holding about one of them and one chunk in memory."""
    decoder = json.JSONDecoder()
    skip = re.compile(r"[\s,]*")
    with open(path, encoding="utf-8") as file:
        buffer = file.read(chunk_size).lstrip()
        if not buffer.startswith("["):
            raise ValueError(f"{path} must hold a JSON list, it begins with {buffer[:20]!r}.")
        position = 1
        while True:
            position = skip.match(buffer, position).end()
            if buffer.startswith("]", position):
                return
            try:
                element, position = decoder.raw_decode(buffer, position)
            except ValueError:
                # Not complete yet. Doubling keeps the repeated attempts on one long element from adding up.
                rest = buffer[position:]
                more = file.read(max(chunk_size, len(rest)))
                if not more:
                    raise ValueError(f"{path} is not valid JSON: it ends inside a list. Is it complete?") from None
                buffer, position = rest + more, 0
                continue
            yield element
