"""Pictures with a class for every pixel: reading maps, changing picture and map alike, batches.

A record has `image` and `segmentation_map`: a picture of one channel or with a palette (bytes, path or PIL), or an
array (height, width), of the picture's size. Its numbers are classes, or `semantic_loss_ignore_index` of the model's
configuration (255 unless set) for a pixel that does not count; with `do_reduce_labels` of the image processor 0 means
that too, and the classes begin at 1 (ADE20K). Picture and map are turned upright, each as its own EXIF tag says: a map
drawn over the upright picture has none, one drawn over the stored pixels needs the picture's.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from hf_vlp.data.collators import TrainingCollator, record_name
from hf_vlp.data.image_io import DEFAULT_MAX_PIXELS, ImageError, open_image, turn_upright
from hf_vlp.models.mome.processing_mome import IGNORED_CLASS, read_segmentation_map, resize_segmentation_map

if TYPE_CHECKING:
    from hf_vlp.data.sources import DataArguments

__all__ = [
    "MAP_COLUMN",
    "SegmentationAugmentation",
    "SegmentationCollator",
    "check_ignore_index",
    "check_segmentation_map",
    "distort_colours",
    "load_segmentation_map",
    "segmentation_classes",
]

MAP_COLUMN = "segmentation_map"
# The mean colour of ImageNet: nearly 0 once normalised, which is what mmsegmentation fills pictures up with.
_FILL = (124, 116, 104)


def load_segmentation_map(
    source,
    *,
    do_reduce_labels: bool = False,
    ignore_index: int = IGNORED_CLASS,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> np.ndarray:
    """Class numbers of pixels, int64 (height, width); never converted, unlike pictures.

    source: as for `load_image`, or an array, tensor or lists (height, width); also under `bytes` or `path` of a dict.
    do_reduce_labels: 0 becomes `ignore_index`, the others but this one move down by one.

    Raises `ImageError` for what cannot be read, has more than `max_pixels`, or several channels.
    """
    try:
        if isinstance(source, dict):
            if not source.keys() & {"bytes", "path"}:
                raise ValueError(f"a dict needs 'bytes' or 'path', this one has {sorted(map(str, source))}")
            source = source.get("path") if source.get("bytes") is None else source["bytes"]
        if isinstance(source, (bytes, bytearray, memoryview, str, os.PathLike)):
            with open_image(source) as image:
                _check_pixels(image, max_pixels)
                image.load()
                return read_segmentation_map(turn_upright(image), do_reduce_labels, ignore_index)
        if source is None:
            raise ValueError("there is none")
        if isinstance(source, Image.Image):
            _check_pixels(source, max_pixels)
            source = turn_upright(source)
        return read_segmentation_map(source, do_reduce_labels, ignore_index)
    except ImageError as error:
        raise ImageError(f"The segmentation map cannot be read: {error}") from error
    except (OSError, ValueError, SyntaxError, TypeError) as error:  # a damaged file has many ways to say so
        raise ImageError(f"The segmentation map cannot be read: {error}") from error


def check_ignore_index(ignore_index: int, num_labels: int, do_reduce_labels: bool = False) -> None:
    """Raise ValueError for a label of pixels that do not count which maps also have for a class.

    do_reduce_labels: the classes of the maps are 1 to `num_labels`, not 0 to `num_labels` - 1.
    """
    last = num_labels if do_reduce_labels else num_labels - 1
    if 0 <= ignore_index <= last:
        raise ValueError(
            f"semantic_loss_ignore_index={ignore_index} stands for pixels that do not count, and the maps of "
            f"{num_labels} classes hold it as a class. Set it, in the model's configuration, to a number above {last} "
            "that the maps have for such pixels, or below 0, such as -100."
        )


def check_segmentation_map(
    segmentation_map: np.ndarray,
    image_size: tuple[int, int] | None,
    num_labels: int,
    ignore_index: int = IGNORED_CLASS,
) -> None:
    """Raise `ImageError` for a map of another size than its picture (width, height), or with what is no class.

    The classes are 0 to `num_labels` - 1. `image_size=None` takes any size.
    """
    height, width = segmentation_map.shape
    if image_size is not None and (width, height) != image_size:
        raise ImageError(
            f"The picture has {image_size[0]} x {image_size[1]} pixels (width x height), its segmentation map "
            f"{width} x {height}. Pictures are turned upright as their EXIF tag says: a map of stored pixels needs "
            "that tag too."
        )
    is_class = (segmentation_map >= 0) & (segmentation_map < num_labels)
    wrong = np.unique(segmentation_map[~is_class & (segmentation_map != ignore_index)])
    if len(wrong):
        raise ImageError(
            f"The segmentation map holds {', '.join(map(str, wrong[:10]))}; the model has the classes 0 to "
            f"{num_labels - 1}, and {ignore_index} for pixels that do not count. Set num_labels or "
            "semantic_loss_ignore_index, or do_reduce_labels of the image processor for maps whose 0 means no class."
        )


def _check_pixels(image: Image.Image, max_pixels: int):
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} pixels are more than max_pixels={max_pixels:,}")


def segmentation_classes(data: DataArguments) -> list[str] | None:
    """Names of the classes in the order of their numbers, `data.label_names` or those of scenes; `None` if unknown.

    Raises ValueError for names that occur twice and when the one that is given is no file.
    """
    names = data.label_names
    if names is not None and len(names) == 1:
        if not os.path.isfile(names[0]):
            raise ValueError(
                f"data.label_names={names} is one name, and there is no such file (looked in {os.getcwd()}): give a "
                "file with one a line, or two names at least."
            )
        lines = Path(names[0]).read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if names is not None and len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"data.label_names holds {twice!r} twice: each class needs a name of its own.")
    if names is None and data.source == "scenes":
        from hf_vlp.data.scenes import SHAPES

        names = ["background", *SHAPES]
    return names


class SegmentationAugmentation:
    """The training transform of mmsegmentation's ADE20K recipes, for `batches.augment: {segmentation: {}}`.

    Resize (bilinearly; Pillow averages where pictures shrink, OpenCV does not), random part, mirror, colours; then the
    picture is filled up with a mean colour, and its map with the label of pixels that do not count, on the right and
    at the bottom. Called with a picture, its map (height, width), a `random.Random` and that label, returns picture
    and map.

    Args:
        crop_size: side of the square that comes out; give the model's image size.
        base_size, max_size: shorter side that the picture is resized to, and what its longer side may not exceed,
            before both are multiplied by a factor.
        min_ratio, max_ratio: the factor is uniform between these.
        max_class_share: a part with one class on this share of its labelled pixels or more is drawn again, ten times
            at most; 1 takes any part.
        flip: mirror left and right with probability one half.
        distort: change the colours, see `distort_colours`.
        fill: colour to fill up with.
    """

    def __init__(
        self,
        crop_size: int = 512,
        base_size: int = 512,
        max_size: int = 2048,
        min_ratio: float = 0.5,
        max_ratio: float = 2.0,
        max_class_share: float = 0.75,
        flip: bool = True,
        distort: bool = True,
        fill: Sequence[int] = _FILL,
    ):
        if crop_size < 1 or base_size < 1 or max_size < base_size:
            raise ValueError(
                f"crop_size={crop_size}, base_size={base_size} must be at least 1, max_size={max_size} at least "
                "base_size."
            )
        if not 0 < min_ratio <= max_ratio:
            raise ValueError(f"min_ratio={min_ratio} must be positive and at most max_ratio={max_ratio}.")
        if not 0 < max_class_share <= 1:
            raise ValueError(f"max_class_share={max_class_share} must lie in (0, 1].")
        if len(fill) != 3 or not all(0 <= channel <= 255 for channel in fill):
            raise ValueError(f"fill={fill} must be a colour: three numbers from 0 to 255.")
        self.crop_size = crop_size
        self.base_size = base_size
        self.max_size = max_size
        self.min_ratio = min_ratio
        self.max_ratio = max_ratio
        self.max_class_share = max_class_share
        self.flip = flip
        self.distort = distort
        self.fill = tuple(fill)

    def __call__(
        self,
        image: Image.Image,
        segmentation_map: np.ndarray,
        generator: random.Random,
        ignore_index: int = IGNORED_CLASS,
    ) -> tuple[Image.Image, np.ndarray]:
        image, segmentation_map = self._resize(image, segmentation_map, generator)
        left, top, right, bottom = self._part(segmentation_map, generator, ignore_index)
        image, segmentation_map = image.crop((left, top, right, bottom)), segmentation_map[top:bottom, left:right]
        if self.flip and generator.random() < 0.5:
            image, segmentation_map = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), segmentation_map[:, ::-1]
        if self.distort:
            image = distort_colours(image, generator)
        filled = Image.new("RGB", (self.crop_size, self.crop_size), self.fill)
        filled.paste(image, (0, 0))
        missing = [(0, self.crop_size - side) for side in segmentation_map.shape]
        return filled, np.pad(segmentation_map, missing, constant_values=ignore_index)

    def _resize(self, image, segmentation_map, generator):
        ratio = generator.uniform(self.min_ratio, self.max_ratio)
        factor = ratio * min(self.base_size / min(image.size), self.max_size / max(image.size))
        width, height = (max(1, round(side * factor)) for side in image.size)
        if (width, height) == image.size:
            return image, segmentation_map
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return resized, resize_segmentation_map(segmentation_map, height, width)

    def _part(
        self, segmentation_map: np.ndarray, generator: random.Random, ignore_index: int
    ) -> tuple[int, int, int, int]:
        height, width = (min(side, self.crop_size) for side in segmentation_map.shape)
        for _ in range(11):
            top = generator.randint(0, segmentation_map.shape[0] - height)
            left = generator.randint(0, segmentation_map.shape[1] - width)
            if self.max_class_share == 1:
                break
            part = segmentation_map[top : top + height, left : left + width]
            counts = np.bincount(part[part != ignore_index])
            if counts.max(initial=0) < self.max_class_share * counts.sum():
                break
        return left, top, left + width, top + height


def distort_colours(image: Image.Image, generator: random.Random) -> Image.Image:
    """Photometric distortion: each of four changes with probability one half.

    Brightness by up to 32 of 255, contrast and saturation by factors from 0.5 to 1.5, hue by up to 36 degrees;
    contrast comes before or after the other two. (Liu et al., 2016, arXiv 1512.02325, section 2.2, with the ranges of
    mmsegmentation.)
    """

    def draw(low: float, high: float, neutral: float) -> float:
        # both are drawn whether they are used or not, so that one change's draws do not shift the next one's
        apply, value = generator.random() < 0.5, generator.uniform(low, high)
        return value if apply else neutral

    shift, contrast = draw(-32, 32, 0.0), draw(0.5, 1.5, 1.0)
    contrast_first = generator.random() < 0.5
    saturation, hue = draw(0.5, 1.5, 1.0), draw(-36, 36, 0.0) / 360 * 256  # Pillow's hue has 256 steps

    def clip(value: float) -> int:
        return min(255, max(0, round(value)))

    early = contrast if contrast_first else 1.0
    if shift or early != 1.0:
        image = image.point([clip(clip(value + shift) * early) for value in range(256)] * 3)
    if saturation != 1.0 or hue:
        turned = [(value + round(hue)) % 256 for value in range(256)]
        stronger = [clip(value * saturation) for value in range(256)]
        image = image.convert("HSV").point([*turned, *stronger, *range(256)]).convert("RGB")
    if not contrast_first and contrast != 1.0:
        image = image.point([clip(value * contrast) for value in range(256)] * 3)
    return image


class SegmentationCollator(TrainingCollator):
    """Pictures with a class for each pixel: `pixel_values` (rows, 3, H, W), `labels` (rows, H, W).

    A record has `image` and `segmentation_map` (see the head of this module). What cannot be read, a map of another
    size than its picture and one with a number that is no class leave the batch and are counted, as in all collators;
    a batch without any good record is one white picture whose pixels do not count. Pictures are resized as the image
    processor does it, maps alike, each pixel to the nearest.

    Args:
        processor: with an image processor that takes `segmentation_maps`, whose `do_reduce_labels` is heeded; or that
            alone.
        label2id: of the model's configuration; its length is the number of classes.
        semantic_loss_ignore_index: of the model's configuration; maps and labels have it where pixels do not count.
        augment: called as `augment(image, segmentation_map, generator)`, with `ignore_index=` where it takes that;
            returns the first two; such as `SegmentationAugmentation`.
        options: `bad_samples`, `seed`, `max_pixels`; see `CaptionCollator`.
    """

    def __init__(
        self,
        processor,
        *,
        label2id: Mapping[str, int],
        semantic_loss_ignore_index: int = IGNORED_CLASS,
        augment: Callable[..., tuple[Image.Image, np.ndarray]] | None = None,
        **options,
    ):
        super().__init__(getattr(processor, "image_processor", processor), augment=augment, **options)
        parameters = set() if augment is None else set(signature(augment).parameters)
        if augment is not None and len(parameters - {"ignore_index"}) != 3:
            raise TypeError(
                f"{type(augment).__name__} changes pictures alone, and their segmentation maps would not fit any "
                "more: take batches.augment: {segmentation: {}}, or a callable of picture, map and generator."
            )
        if self.size_hint is not None:
            raise ValueError("size_hint shrinks pictures as they are read, and not their segmentation maps.")
        self.num_labels = len(label2id)
        self.ignore_index = semantic_loss_ignore_index
        self.do_reduce_labels = getattr(self.processor, "do_reduce_labels", False)
        check_ignore_index(self.ignore_index, self.num_labels, self.do_reduce_labels)
        self._augment_options = {"ignore_index": self.ignore_index} if "ignore_index" in parameters else {}

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, maps = [], []
        for record in records:
            read = self._read(record)
            if read is None:
                continue
            self.bad_samples.good()
            if self.augment is not None:
                generator = self._generator(record, [hashlib.blake2b(read[1]).hexdigest()])
                read = self.augment(*read, generator, **self._augment_options)
            images.append(read[0])
            maps.append(read[1])
        if not images:
            images, maps = [Image.new("RGB", (64, 64), "white")], [np.full((64, 64), self.ignore_index)]
        batch = self.processor(images, segmentation_maps=maps, do_reduce_labels=False, return_tensors="pt")
        return {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}

    def _read(self, record: dict[str, Any]) -> tuple[Image.Image, np.ndarray] | None:
        """Picture and map, or None when one is bad and was counted."""
        if MAP_COLUMN not in record:
            raise ValueError(
                f"The record has no {MAP_COLUMN!r}, only {sorted(record)}. Map the column with the maps (see "
                "DataArguments.label_column), and pass remove_unused_columns=False to the trainer."
            )
        image = self._image(record)
        if image is None:
            return None
        try:
            segmentation_map = load_segmentation_map(
                record[MAP_COLUMN],
                do_reduce_labels=self.do_reduce_labels,
                ignore_index=self.ignore_index,
                max_pixels=self.max_pixels,
            )
            check_segmentation_map(segmentation_map, image.size, self.num_labels, self.ignore_index)
        except ImageError as error:
            self.bad_samples.bad("other", f"{record_name(record)}: {error}")
            return None
        return image, segmentation_map
