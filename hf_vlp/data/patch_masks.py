"""Which patches of a picture are hidden: block-wise masks, as in BEiT and BEiT v2.

(Bao et al., 2022, arXiv 2106.08254, algorithm 1; Peng et al., 2022, arXiv 2208.06366.)
"""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import torch

__all__ = ["draw_block_mask", "num_masked_patches"]

# BEiT's smallest block, of 14 x 14 patches.
MIN_AREA = 16
_TRIES = 10


def num_masked_patches(num_patches: int, ratio: float) -> int:
    """How many patches are hidden: floor(ratio * patches), at least 1.

    A decision of this package: the sources say 40 %, which BEiT takes for 75 of 196 patches; here it is 78, and 75 is
    a ratio of 0.383. Raises ValueError for a ratio out of (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"image_mask_ratio={ratio} must lie in (0, 1].")
    return max(1, math.floor(ratio * num_patches + 1e-9))  # 0.57 * 100 is 56.99...


def draw_block_mask(
    height: int,
    width: int,
    num_masked: int,
    generator: random.Random,
    *,
    min_area: int | None = None,
    max_area: int | None = None,
    min_aspect: float = 0.3,
    exact: bool = True,
) -> torch.Tensor:
    """Hide blocks of patches: bool (height * width,), row by row, True where a patch is hidden.

    Blocks of random area and shape are put at random places until `num_masked` patches are hidden, or until ten
    blocks in a row did not fit: did not lie within the grid, hid nothing new, or hid too much.

    Args:
        num_masked: patches that are hidden.
        generator: every draw comes from it.
        min_area: smallest area that is drawn for a block; by default 16 as in BEiT, and on small grids, where that
            would be most of the mask, a quarter of `num_masked`. Once fewer patches than this are left to be hidden,
            areas lie between the two.
        max_area: most patches that one block hides; by default `num_masked`.
        min_aspect: height / width of a block lies between this and its inverse, log-uniform.
        exact: BEiT v2: patches drawn one by one fill the mask up to exactly `num_masked`. False is BEiT: the mask has
            at most so many, on average half a patch less on 14 x 14.

    Raises ValueError for impossible sizes.
    """
    if min(height, width) < 2:
        raise ValueError(f"A grid of {height} x {width} patches has no room for blocks: at least 2 x 2 is needed.")
    if not 1 <= num_masked <= height * width:
        raise ValueError(f"num_masked={num_masked} must lie between 1 and the {height * width} patches.")
    if min_area is None:
        min_area = min(MIN_AREA, max(1, num_masked // 4))
    max_area = num_masked if max_area is None else max_area
    if min_area < 1 or max_area < 1 or not 0 < min_aspect <= 1:
        raise ValueError(
            f"min_area={min_area} and max_area={max_area} must be at least 1, min_aspect={min_aspect} in (0, 1]."
        )
    log_aspect = -math.log(min_aspect)
    # The mask is a number with one bit for each patch: counting and joining blocks are then single operations.
    mask = count = 0
    while count < num_masked:
        budget = min(num_masked - count, max_area)
        for _ in range(_TRIES):
            area = min_area + (budget - min_area) * generator.random()  # also where the budget is the smaller one
            aspect = math.exp(log_aspect * (2 * generator.random() - 1))
            block_height, block_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if block_height >= height or block_width >= width:
                continue
            top = int(generator.random() * (height - block_height + 1))
            left = int(generator.random() * (width - block_width + 1))
            joined = mask | _block(block_height, block_width, width) << (top * width + left)
            added = joined.bit_count() - count
            if 0 < added <= budget:
                mask, count = joined, count + added
                break
        else:
            break
    if exact and count < num_masked:
        free = [patch for patch in range(height * width) if not mask >> patch & 1]
        for patch in generator.sample(free, num_masked - count):
            mask |= 1 << patch
    return _to_tensor(mask, height * width)


@functools.cache
def _block(block_height: int, block_width: int, width: int) -> int:
    """A block in the corner of a grid of this width: as many ones as it is wide, in as many rows as it is high."""
    return sum(((1 << block_width) - 1) << (row * width) for row in range(block_height))


def _to_tensor(mask: int, num_patches: int) -> torch.Tensor:
    packed = np.frombuffer(mask.to_bytes((num_patches + 7) // 8, "little"), np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=num_patches, bitorder="little").astype(bool))
