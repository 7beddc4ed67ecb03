"""Mixup and cutmix: a batch of labelled pictures mixed with itself, as BEiT and VL-BEiT fine-tune on ImageNet.

The few lines are our own because timm's `Mixup`, whose definition they follow, imports torchvision with `timm.data`,
is not reproducible from a seed of its own, and refuses a batch of an odd number of pictures, such as one that lost a
damaged file.
"""

from __future__ import annotations

import math
import random

import torch

__all__ = ["BatchMixing", "smooth_labels"]

IGNORED = -100


def smooth_labels(labels: torch.LongTensor, num_classes: int, smoothing: float = 0.0) -> torch.Tensor:
    """Class numbers (rows,) as probabilities (rows, classes), `smoothing` of the mass spread over all classes.

    Rows whose label is -100 are -100 throughout. Raises ValueError for other numbers that are no class.
    """
    known = labels != IGNORED
    wrong = labels[known & ((labels < 0) | (labels >= num_classes))]
    if len(wrong):
        raise ValueError(f"The labels {wrong.tolist()} are none of {num_classes} classes.")
    probabilities = torch.full((len(labels), num_classes), smoothing / num_classes)
    # added where the label is, not written: with one class the two shares are one
    probabilities.scatter_add_(1, labels.clamp(min=0)[:, None], torch.full((len(labels), 1), 1.0 - smoothing))
    return probabilities.masked_fill_(~known[:, None], float(IGNORED))


class BatchMixing:
    """Mixes each picture of a batch with the one at the same place counted from the end, and their labels alike.

    One of the two is drawn for a batch, and one share lambda ~ Beta(a, a) for all of its pictures:

    * mixup: lambda x + (1 - lambda) x', pixel by pixel;
    * cutmix: x with a box of x' in it, whose sides are sqrt(1 - lambda) of the picture's and whose middle lies
      anywhere; what reaches over the border is cut off, and lambda becomes the share of x that is left.

    Labels become lambda y + (1 - lambda) y' of the smoothed labels y, y'.

    Args:
        num_classes: of the model's head.
        mixup, cutmix: the parameter a of the distribution; 0 switches one off. BEiT's fine-tuning: 0.8 and 1.0.
        label_smoothing: mass that a label loses to all classes, 0.1 in BEiT's fine-tuning.
        switch_probability: of cutmix, where both are on.

    Raises ValueError for settings out of range.

    References: Zhang et al., "mixup" (arXiv 1710.09412); Yun et al., "CutMix" (arXiv 1905.04899); BEiT, appendix.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        label_smoothing: float = 0.1,
        switch_probability: float = 0.5,
    ):
        if num_classes < 1:
            raise ValueError(f"num_classes={num_classes} must be at least 1.")
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be a number from 0 (off) on, such as 0.8.")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1).")
        if not 0 <= switch_probability <= 1:
            raise ValueError(f"switch_probability={switch_probability} must lie in [0, 1].")
        self.num_classes = num_classes
        self.mixup = mixup
        self.cutmix = cutmix
        self.label_smoothing = label_smoothing
        self.switch_probability = switch_probability

    def __call__(
        self, pixel_values: torch.Tensor, labels: torch.LongTensor, generator: random.Random
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(pixel_values, probabilities) of the mixed batch; what is given stays as it is.

        Inputs: pixel_values (rows, channels, height, width), float; labels (rows,), class numbers, -100 for none.
        A batch with such a row is not mixed, and nothing is drawn. Returns probabilities (rows, classes).
        """
        targets = smooth_labels(labels, self.num_classes, self.label_smoothing)
        if not (self.mixup or self.cutmix) or bool((labels == IGNORED).any()):
            return pixel_values, targets
        switch = self.switch_probability if self.mixup and self.cutmix else float(self.cutmix > 0)
        use_cutmix = generator.random() < switch
        parameter = self.cutmix if use_cutmix else self.mixup
        share = generator.betavariate(parameter, parameter)
        if use_cutmix:
            pixel_values, share = self._cut(pixel_values, share, generator)
        else:
            pixel_values = torch.lerp(pixel_values.flip(0), pixel_values, share)
        return pixel_values, torch.lerp(targets.flip(0), targets, share)

    @staticmethod
    def _cut(pixel_values: torch.Tensor, share: float, generator: random.Random) -> tuple[torch.Tensor, float]:
        """The pictures with a box of the others, and the share of their own that is left."""
        height, width = pixel_values.shape[-2:]
        side = math.sqrt(1.0 - share)
        box_height, box_width = int(height * side), int(width * side)
        centre_y, centre_x = generator.randrange(height), generator.randrange(width)
        top, bottom = (min(height, max(0, centre_y + half)) for half in (-(box_height // 2), (box_height + 1) // 2))
        left, right = (min(width, max(0, centre_x + half)) for half in (-(box_width // 2), (box_width + 1) // 2))
        mixed = pixel_values.clone()
        mixed[..., top:bottom, left:right] = pixel_values.flip(0)[..., top:bottom, left:right]
        return mixed, 1.0 - (bottom - top) * (right - left) / (height * width)
