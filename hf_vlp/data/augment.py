"""Augmentation of training pictures, for the `augment=` of the training collators.

Each is called with a picture and a `random.Random`; the collator derives that generator from seed, epoch and record,
so that a resumed run sees the same pictures.
"""

import math
import random
from collections.abc import Callable

from PIL import Image, ImageEnhance, ImageOps

from hf_vlp.data.segmentation import SegmentationAugmentation


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


class RandomAugment:
    """Operations of colour, sharpness and geometry, drawn at random: the RandAugment variant of ALBEF and VLMo.

    `num_operations` names are drawn with replacement from `OPERATIONS`, and each is carried out with `probability`.
    Pictures keep their size; what shears, translations and rotations leave uncovered gets the colour `fill`.

    Args:
        magnitude: strength from 0 to 10. At 7: brightness and sharpness x 1.36, shear 0.21, translation 7 pixels,
            rotation 21 degrees, these three in a random direction.

    The operations are Pillow's own, on 8-bit pixels; geometry is interpolated bilinearly. (Cubuk et al., 2020, arXiv
    1909.13719; Li et al., 2021, arXiv 2107.07651.)
    """

    OPERATIONS = (
        *("identity", "auto_contrast", "equalize", "brightness", "sharpness"),
        *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    )

    def __init__(
        self,
        num_operations: int = 2,
        magnitude: float = 7,
        probability: float = 0.5,
        fill: tuple[int, int, int] = (128, 128, 128),
    ):
        if num_operations < 1:
            raise ValueError(f"num_operations={num_operations} must be at least 1.")
        if not 0 <= magnitude <= 10:
            raise ValueError(f"magnitude={magnitude} must lie between 0 and 10.")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability} must lie between 0 and 1.")
        if len(fill) != 3 or not all(0 <= channel <= 255 for channel in fill):
            raise ValueError(f"fill={fill} must be a colour: three numbers from 0 to 255.")
        self.num_operations = num_operations
        self.level = magnitude / 10
        self.probability = probability
        self.fill = tuple(fill)

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        for name in generator.choices(self.OPERATIONS, k=self.num_operations):
            # both are drawn whether they are used or not, so that one operation's draws do not shift the next one's
            apply, sign = generator.random() < self.probability, generator.choice((-1, 1))
            if apply:
                image = self.apply(name, image, sign)
        return image

    def apply(self, name: str, image: Image.Image, sign: int = 1) -> Image.Image:
        """One operation of `OPERATIONS`; `sign` (1 or -1) is the direction of the geometric ones."""
        shift = sign * self.level
        if name == "identity":
            return image
        if name == "auto_contrast":
            return ImageOps.autocontrast(image)
        if name == "equalize":
            return ImageOps.equalize(image)
        if name == "brightness":
            return ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * self.level)
        if name == "sharpness":
            return ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * self.level)
        if name == "shear_x":
            return self._affine(image, (1, 0.3 * shift, 0, 0, 1, 0))
        if name == "shear_y":
            return self._affine(image, (1, 0, 0, 0.3 * shift, 1, 0))
        if name == "translate_x":
            return self._affine(image, (1, 0, 10 * shift, 0, 1, 0))
        if name == "translate_y":
            return self._affine(image, (1, 0, 0, 0, 1, 10 * shift))
        if name == "rotate":
            return image.rotate(30 * shift, Image.Resampling.BILINEAR, fillcolor=self.fill)
        raise ValueError(f"There is no operation {name!r}; there are {', '.join(self.OPERATIONS)}.")

    def _affine(self, image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
        """The picture whose pixel (x, y) is the old one's (a x + b y + c, d x + e y + f)."""
        return image.transform(
            image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=self.fill
        )


class VlmoTraining:
    """VLMo's training transform: a random part, resized to a square, mirrored half of the time, then `RandomAugment`.

    Args:
        size: side of the square in pixels. Give the model's image size: the strength of translations is in pixels,
            and the image processor then has nothing left to resize.
        min_scale: smallest share of the area that is kept; shares are uniform up to 1.
        max_ratio: the width of the part is at most so many times its height, and the other way round (log-uniform).
        flip: mirror left and right with probability one half. The original does so in every task; switch it off where
            texts name sides.
        num_operations, magnitude: of `RandomAugment`; num_operations 0 leaves it out.

    A part that does not fit is drawn again, at most ten times; then it is the middle, as wide or high as `max_ratio`
    allows, as in torchvision's `RandomResizedCrop`, which the original uses.
    """

    def __init__(
        self,
        size: int = 224,
        min_scale: float = 0.5,
        max_ratio: float = 4 / 3,
        flip: bool = True,
        num_operations: int = 2,
        magnitude: float = 7,
    ):
        if size < 1:
            raise ValueError(f"size={size} must be at least 1.")
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale={min_scale} must lie in (0, 1].")
        if max_ratio < 1:
            raise ValueError(f"max_ratio={max_ratio} must be at least 1.")
        self.size = size
        self.min_scale = min_scale
        self.max_ratio = max_ratio
        self.flip = flip
        self.operations = RandomAugment(num_operations, magnitude) if num_operations else None

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        # cropped first: resize(box=...) would let pixels outside the box bleed in
        image = image.crop(self._part(image.width, image.height, generator))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return self.operations(image, generator) if self.operations is not None else image

    def _part(self, width: int, height: int, generator: random.Random) -> tuple[int, int, int, int]:
        return _draw_part(width, height, generator, min_scale=self.min_scale, max_ratio=self.max_ratio)


class BeitPreTraining:
    """BEiT's pre-training transform: colours, mirror, a random part.

    Brightness, contrast and saturation change by factors from 1 - `color_jitter` to 1 + `color_jitter`, in random
    order; the picture is mirrored half of the time; a part is drawn as torchvision's `RandomResizedCrop` draws it
    (see `VlmoTraining`). The part keeps its own size: collators of masked pictures render it twice, for the model and
    for the visual tokenizer, so that both views show the same part, mirrored alike, in the same colours.

    Args:
        min_scale: smallest share of the area that is kept: 0.08 in BEiT, 0.2 in the recipe of BEiT v2.
        max_ratio: the width of the part is at most so many times its height, and the other way round.
        flip: mirror left and right with probability one half. Not where texts name sides.
        color_jitter: strength of the changes of colour, 0 to 1; 0 for none.

    (Bao et al., 2022, arXiv 2106.08254.)
    """

    _ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)

    def __init__(
        self, min_scale: float = 0.08, max_ratio: float = 4 / 3, flip: bool = True, color_jitter: float = 0.4
    ):
        if not 0 < min_scale <= 1:
            raise ValueError(f"min_scale={min_scale} must lie in (0, 1].")
        if max_ratio < 1:
            raise ValueError(f"max_ratio={max_ratio} must be at least 1.")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter={color_jitter} must lie between 0 and 1.")
        self.min_scale = min_scale
        self.max_ratio = max_ratio
        self.flip = flip
        self.color_jitter = color_jitter

    @property
    def is_geometric(self) -> bool:
        """Whether patches show another part than in the whole picture, to which cached visual tokens belong."""
        return self.flip or self.min_scale < 1

    def __call__(self, image: Image.Image, generator: random.Random) -> Image.Image:
        if self.color_jitter:
            for enhancer in generator.sample(self._ENHANCERS, len(self._ENHANCERS)):
                image = enhancer(image).enhance(1 + generator.uniform(-self.color_jitter, self.color_jitter))
        if self.flip and generator.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.min_scale == 1:
            return image  # a part of the whole area is the whole
        return image.crop(
            _draw_part(image.width, image.height, generator, min_scale=self.min_scale, max_ratio=self.max_ratio)
        )


class BeitPairPreTraining(BeitPreTraining):
    """`BeitPreTraining` for pictures with texts: neither mirrored nor with other colours, for texts name both.

    Decisions of this package: the sources of VL-BEiT do not tell how pairs are augmented. VLMo's smallest share is
    taken, of half the area.
    """

    def __init__(
        self, min_scale: float = 0.5, max_ratio: float = 4 / 3, flip: bool = False, color_jitter: float = 0.0
    ):
        super().__init__(min_scale=min_scale, max_ratio=max_ratio, flip=flip, color_jitter=color_jitter)


def _draw_part(
    width: int, height: int, generator: random.Random, *, min_scale: float, max_ratio: float
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a part as torchvision's `RandomResizedCrop` draws it; see `VlmoTraining`."""
    for _ in range(10):
        area = width * height * generator.uniform(min_scale, 1.0)
        ratio = math.exp(generator.uniform(-math.log(max_ratio), math.log(max_ratio)))
        part_width, part_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < part_width <= width and 0 < part_height <= height:
            left = generator.randint(0, width - part_width)
            top = generator.randint(0, height - part_height)
            return left, top, left + part_width, top + part_height
    part_width = min(width, max(1, round(height * max_ratio)))
    part_height = min(height, max(1, round(width * max_ratio)))
    left, top = (width - part_width) // 2, (height - part_height) // 2
    return left, top, left + part_width, top + part_height


AUGMENTATIONS: dict[str, Callable[..., Callable]] = {
    "random_resized_crop": RandomResizedCrop,
    "random_augment": RandomAugment,
    "vlmo_training": VlmoTraining,
    "segmentation": SegmentationAugmentation,
    "beit_pretraining": BeitPreTraining,
    "beit_pair_pretraining": BeitPairPreTraining,
}

__all__ = [
    "AUGMENTATIONS",
    "BeitPairPreTraining",
    "BeitPreTraining",
    "RandomAugment",
    "RandomResizedCrop",
    "VlmoTraining",
]
