"""Augmentation of training pictures, for `CaptionCollator(augment=...)`.

Each is called with a picture and a `random.Random`; the collator derives that generator from seed, epoch and record,
so that a resumed run sees the same pictures.
"""

import math
import random
from collections.abc import Callable

from PIL import Image


class RandomResizedCrop:
    """Cut out a random part of a picture and, half of the time if asked, mirror it.

    Args:
        min_scale: smallest share of the area that is kept, in (0, 1]; 1 keeps the whole picture.
        max_ratio: largest factor by which the aspect ratio of the part may differ from the picture's.
        flip: mirror left and right with probability one half. Not for captions that name sides.

    The part keeps its own size: resizing is the image processor's work. (Szegedy et al., 2015, arXiv 1409.4842, whose
    crops are sampled as here: log-uniform ratio, uniform area, position uniform where it fits.)
    """

    def __init__(self, min_scale: float = 0.5, max_ratio: float = 4 / 3, flip: bool = False):
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale={min_scale} must lie in (0, 1].")
        if max_ratio < 1:
            raise ValueError(f"max_ratio={max_ratio} must be at least 1.")
        self.min_scale = min_scale
        self.max_ratio = max_ratio
        self.flip = flip

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        scale = generator.uniform(self.min_scale, 1.0)
        ratio = math.exp(generator.uniform(-math.log(self.max_ratio), math.log(self.max_ratio)))
        width = min(image.width, max(1, round(image.width * math.sqrt(scale * ratio))))
        height = min(image.height, max(1, round(image.height * math.sqrt(scale / ratio))))
        left = generator.randint(0, image.width - width)
        top = generator.randint(0, image.height - height)
        if (width, height) != image.size:
            image = image.crop((left, top, left + width, top + height))
        if self.flip and generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


AUGMENTATIONS: dict[str, Callable[..., Callable]] = {"random_resized_crop": RandomResizedCrop}

__all__ = ["AUGMENTATIONS", "RandomResizedCrop"]
