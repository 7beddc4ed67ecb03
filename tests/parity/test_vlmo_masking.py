"""Whole-word masking against statistics of the original VLMo's masking collator.

Covers, for every sequence of `whole_word_mask_statistics.json`, with `budget="padded_length"`: masked pieces in the
mean, texts that lose none, the shares of mask token, random ids and kept ids, and words never hidden in part. Sizes,
ids and numbers of draws come from the file alone; `$HF_VLP_GOLDENS` names another folder.

Both sides are draws (`draws` of the file, and as many of ours), so each statistic may differ by five standard
deviations of the difference of two such means: less than one false alarm in a million comparisons. The variance is
that of a share, p (1 - p), or the one measured in our draws.
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from hf_vlp.data.masking import WordPieces, mask_whole_words

FILE = (
    Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens"))
    / "vlmo"
    / "whole_word_mask_statistics.json"
)
pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}")
GOLDENS = json.loads(FILE.read_text()) if FILE.is_file() else {"sequences": []}
DEVIATIONS = 5.0


def pieces_of(note: str) -> WordPieces:
    """The vocabulary that the file's note describes."""
    size = int(re.search(r"vocabulary of (\d+)", note)[1])
    first, last = map(int, re.search(r"ids (\d+)\.\.(\d+) are ##", note).groups())
    ids = {name: int(index) for name, index in re.findall(r"\[([A-Z]+)\]=(\d+)", note)}
    continues, special, boundary = (torch.zeros(size, dtype=torch.bool) for _ in range(3))
    continues[first : last + 1] = True
    special[list(ids.values())] = True
    boundary[[ids["CLS"], ids["SEP"]]] = True
    return WordPieces(continues, special, boundary, ids["MASK"])


@pytest.fixture(scope="module", params=range(len(GOLDENS["sequences"])))
def case(request):
    """(expected numbers, text, labels and ids of as many draws, vocabulary)."""
    expected = GOLDENS["sequences"][request.param]
    text = torch.tensor(expected["input_ids"])
    pieces = pieces_of(GOLDENS["note"])
    rows = text.repeat(GOLDENS["draws"], 1)
    ids, labels = mask_whole_words(
        rows,
        (rows != 0).long(),
        pieces,
        probability=GOLDENS["mlm_probability"],
        budget="padded_length",
        generator=torch.Generator().manual_seed(request.param),
    )
    return expected, text, ids, labels, pieces


def assert_alike(name: str, actual: float, expected: float, variance: float, number: float):
    allowed = DEVIATIONS * (2 * variance / number) ** 0.5
    assert abs(actual - expected) <= allowed, f"{name}: {actual} for {expected}, {allowed:.4f} allowed"


def test_as_many_pieces_are_masked(case):
    expected, _, _, labels, _ = case
    masked = (labels != -100).sum(1).double()
    assert_alike("mean_masked", masked.mean(), expected["mean_masked"], masked.var(), GOLDENS["draws"])


def test_as_many_texts_lose_nothing(case):
    expected, _, _, labels, _ = case
    share = expected["probability_no_token_masked"]
    none = (labels == -100).all(1).double().mean()
    assert_alike("none masked", none, share, share * (1 - share), GOLDENS["draws"])


@pytest.mark.parametrize("fate", ["mask", "random", "kept"])
def test_shares_of_what_becomes_of_a_hidden_piece(case, fate):
    expected, text, ids, labels, pieces = case
    chosen = labels != -100
    kept = chosen & (ids == text)
    masked = chosen & (ids == pieces.mask_token_id)
    count = {"mask": masked, "kept": kept, "random": chosen & ~kept & ~masked}[fate].sum()
    share = expected[f"share_{fate}"]
    assert_alike(fate, count / chosen.sum(), share, share * (1 - share), float(chosen.sum()))


def test_no_word_is_hidden_in_part(case):
    expected, text, _, labels, pieces = case
    words = (~pieces.continues[text]).cumsum(0)
    chosen = labels != -100
    partial = 0
    for word in words.unique():
        inside = chosen[:, words == word]
        partial += int((inside.any(1) & ~inside.all(1)).sum())
    assert partial == expected["words_partially_masked"] == 0
