"""`hf_vlp.data.patch_masks`: numbers of hidden patches, shapes, blocks, small grids, seeds, impossible sizes.

Statistics of the original generators are in tests/parity/test_vl_beit_masks.py.
"""

import random

import pytest
import torch

from hf_vlp.data.patch_masks import draw_block_mask, num_masked_patches


def draw(side, number, count=200, seed=0, **options):
    generator = random.Random(seed)
    return torch.stack([draw_block_mask(side, side, number, generator, **options) for _ in range(count)])


@pytest.mark.parametrize("patches, ratio, number", [(196, 0.4, 78), (100, 0.57, 57), (4, 0.1, 1), (16, 1.0, 16)])
def test_the_number_is_the_floor_and_at_least_one(patches, ratio, number):
    assert num_masked_patches(patches, ratio) == number


@pytest.mark.parametrize("side", [2, 3, 4, 8, 14, 24])
def test_exact_masks_hide_exactly_so_many_on_every_grid(side):
    for number in {1, max(1, side * side // 3), side * side}:
        masks = draw(side, number, 30)
        assert masks.dtype is torch.bool
        assert masks.shape == (30, side * side)
        assert (masks.sum(1) == number).all()


@pytest.mark.parametrize("side", [2, 4, 8, 14])
def test_masks_of_blocks_alone_hide_nearly_as_many_and_never_more(side):
    number = num_masked_patches(side * side, 0.4)
    counts = draw(side, number, exact=False).sum(1)
    assert counts.max() == number
    assert counts.min() >= 1
    assert counts.double().mean() > number - 1


@pytest.mark.parametrize("side", [4, 8])
def test_hidden_patches_cluster_on_small_grids(side):
    number = num_masked_patches(side * side, 0.4)
    masks = draw(side, number, 500).view(-1, side, side)
    together = (masks[:, 1:] & masks[:, :-1]).double().sum() / masks.sum()
    # of the patches below one that is hidden so many would be hidden if each were drawn by itself
    by_chance = (side - 1) / side * (number - 1) / (side * side - 1)
    assert together > 1.5 * by_chance


def test_patches_are_counted_row_by_row():
    for seed in range(20):
        mask = draw_block_mask(3, 9, 4, random.Random(seed), min_area=4, min_aspect=1, exact=False)  # one square
        first, *others = mask.nonzero().flatten().tolist()
        assert others == [first + 1, first + 9, first + 10]
        assert first % 9 < 8


def test_the_seed_decides_and_seeds_differ():
    assert torch.equal(draw(14, 78, 20, seed=3), draw(14, 78, 20, seed=3))
    assert len({tuple(mask.tolist()) for mask in draw(14, 78, 20)}) == 20


def test_no_block_hides_more_than_the_largest_area():
    masks = draw(8, 12, max_area=1, min_area=1, exact=False).view(-1, 8, 8)
    windows = (masks[:, 1:, 1:] & masks[:, :-1, 1:] & masks[:, 1:, :-1] & masks[:, :-1, :-1]).double().sum()
    blocks = draw(8, 12, exact=False).view(-1, 8, 8)
    together = (blocks[:, 1:, 1:] & blocks[:, :-1, 1:] & blocks[:, 1:, :-1] & blocks[:, :-1, :-1]).double().sum()
    assert windows < 0.2 * together


@pytest.mark.parametrize(
    "sizes, options, message",
    [
        ((1, 8, 3), {}, "1 x 8"),
        ((4, 4, 0), {}, "num_masked=0"),
        ((4, 4, 17), {}, "16 patches"),
        ((4, 4, 6), {"min_area": 0}, "min_area=0"),
        ((4, 4, 6), {"max_area": 0}, "max_area=0"),
        ((4, 4, 6), {"min_aspect": 0}, "min_aspect=0"),
    ],
)
def test_impossible_sizes_are_refused(sizes, options, message):
    with pytest.raises(ValueError, match=message):
        draw_block_mask(*sizes, random.Random(0), **options)


@pytest.mark.parametrize("ratio", [0, -0.1, 1.2])
def test_impossible_ratios_are_refused(ratio):
    with pytest.raises(ValueError, match=f"image_mask_ratio={ratio}"):
        num_masked_patches(196, ratio)
