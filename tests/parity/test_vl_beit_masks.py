"""Block-wise patch masks against statistics of the original BEiT and BEiT v2 generators.

Covers, for every entry of `blockwise_mask_statistics.json`: mean, spread and range of the number of hidden patches,
the share of masks that stay below the target, the histogram of counts, the mean map, and the ratio of fully hidden
2 x 2 windows to hidden patches. Grids, targets, smallest areas and numbers come from the file alone;
`$HF_VLP_GOLDENS` names another folder.

Both sides are draws (`draws` of the file and `DRAWS` of ours). A statistic may differ by four standard deviations of
the difference of two such means, which for 75 of 196 patches is 0.05 patches; a single cell or count, of which there
are hundreds, by five.
"""

import json
import os
import random
import re
from pathlib import Path

import pytest
import torch

from hf_vlp.data.patch_masks import draw_block_mask

FILE = (
    Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens"))
    / "vl_beit"
    / "blockwise_mask_statistics.json"
)
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}")
GOLDENS = json.loads(FILE.read_text()) if FILE.is_file() else {}
DRAWS = 8000


@pytest.fixture(scope="module", params=GOLDENS)
def case(request):
    """(expected numbers, target, our masks (draws, side, side) as doubles)."""
    side, target, min_area, version = map(
        int, re.fullmatch(r"window(\d+)_target(\d+)_min(\d+)_as_in_beit_v([12])", request.param).groups()
    )
    generator = random.Random(request.param)
    masks = [
        draw_block_mask(side, side, target, generator, min_area=min_area, exact=version == 2) for _ in range(DRAWS)
    ]
    return GOLDENS[request.param], target, torch.stack(masks).view(DRAWS, side, side).double()


def allowed(variance, expected: dict, deviations: float):
    return deviations * (variance * (1 / DRAWS + 1 / expected["draws"])) ** 0.5


def test_as_many_patches_are_hidden(case):
    expected, _, masks = case
    counts = masks.sum((1, 2))
    assert abs(counts.mean() - expected["mean_count"]) <= allowed(counts.var(), expected, 4)


def test_counts_spread_alike(case):
    expected, _, masks = case
    counts = masks.sum((1, 2))
    deviations = counts - counts.mean()
    spread = counts.std()
    # variance of the estimate of a standard deviation
    variance = ((deviations**4).mean() - spread**4) / (4 * spread**2).clamp(min=1e-12)
    assert abs(spread - expected["std_count"]) <= allowed(variance, expected, 4) + 1e-9


def test_counts_have_the_same_histogram_and_none_exceeds_the_target(case):
    expected, target, masks = case
    counts = masks.sum((1, 2)).long()
    assert counts.max() == expected["max_count"] == target
    ours = torch.bincount(counts, minlength=target + 1)
    theirs = torch.zeros(target + 1, dtype=torch.long)
    for count, number in expected["count_histogram"].items():
        theirs[int(count)] = number
    shares = (ours + theirs) / (DRAWS + expected["draws"])
    difference = (ours / DRAWS - theirs / expected["draws"]).abs()
    assert (difference <= allowed(shares * (1 - shares), expected, 5)).all()
    below = shares[:target].sum()
    assert abs((counts < target).double().mean() - expected["fraction_below_target"]) <= allowed(
        below * (1 - below), expected, 4
    )


def test_smallest_counts_are_alike(case):
    expected, _, masks = case
    # Of the smallest counts a few in ten thousand are seen on either side: both see the range but for its rarest end.
    counts = masks.sum((1, 2))
    rare = [int(count) for count, number in expected["count_histogram"].items() if number >= 0.002 * expected["draws"]]
    assert expected["min_count"] - 5 <= counts.min() <= min(rare)


def test_every_patch_is_hidden_as_often(case):
    expected, _, masks = case
    theirs = torch.tensor(expected["mean_mask_map_3_decimals"], dtype=torch.double)
    shares = masks.mean(0)
    assert ((shares - theirs).abs() <= allowed(shares * (1 - shares), expected, 5) + 5e-4).all()


def test_hidden_patches_lie_together_as_much(case):
    expected, _, masks = case
    full = masks[:, 1:, 1:] * masks[:, :-1, 1:] * masks[:, 1:, :-1] * masks[:, :-1, :-1]
    # full windows of all masks over patches of all masks
    windows, patches = full.sum((1, 2)), masks.sum((1, 2))
    ratio = windows.sum() / patches.sum()
    variance = ((windows - ratio * patches) / patches.mean()).var()
    assert abs(ratio - expected["mean_full_2x2_windows_per_masked_patch"]) <= allowed(variance, expected, 4)
