"""Accuracy and consistency of NLVR2 and NLVR: values, rows with one sentence, forms of judgements, bad input."""

import numpy as np
import pytest
import torch

from hf_vlp.metrics.nlvr2 import nlvr2_metrics, nlvr_metrics

IDENTIFIERS = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-1-1-1", "dev-2-0-0"]


def test_accuracy_counts_rows():
    assert nlvr2_metrics([1, 0, 1, 1], [1, 0, 0, 1]) == {"accuracy": 0.75}


def test_a_sentence_is_consistent_when_all_its_pairs_are_right():
    # sentence dev-1-_-0 has one mistake, dev-1-_-1 and dev-2-_-0 none
    metrics = nlvr2_metrics([1, 0, 1, 1, 0], [1, 1, 1, 1, 0], IDENTIFIERS)
    assert metrics == {"accuracy": 0.8, "consistency": 2 / 3}


def test_the_pair_is_the_third_part_of_an_identifier():
    # four pairs of one sentence, one mistake: were the sentence taken for the pair, three groups would be consistent
    identifiers = [f"test1-30-{pair}-2" for pair in range(4)]
    assert nlvr2_metrics([0, 0, 0, 1], [0] * 4, identifiers) == {"accuracy": 0.75, "consistency": 0.0}


def test_sentences_of_different_splits_are_different():
    metrics = nlvr2_metrics([0, 1], [0, 0], ["dev-1-0-0", "test1-1-0-0"])
    assert metrics == {"accuracy": 0.5, "consistency": 0.5}


def test_the_order_of_rows_does_not_matter():
    predictions, labels = [1, 0, 1, 1, 0], [1, 1, 1, 1, 0]
    order = [4, 1, 3, 0, 2]
    shuffled = ([values[row] for row in order] for values in (predictions, labels, IDENTIFIERS))
    assert nlvr2_metrics(*shuffled) == nlvr2_metrics(predictions, labels, IDENTIFIERS)


@pytest.mark.parametrize(
    "predictions",
    [
        [True, False, True],
        [1, 0, 1],
        ["True", "False", "true"],
        np.array([1, 0, 1]),
        list(np.array([True, False, True])),
        torch.tensor([1, 0, 1]),
        [torch.tensor(True), torch.tensor(False), torch.tensor(True)],
    ],
    ids=["bools", "numbers", "words", "array", "numpy_bools", "tensor", "tensors"],
)
def test_judgements_may_have_any_of_the_usual_forms(predictions):
    assert nlvr2_metrics(predictions, ["True", "False", "False"]) == {"accuracy": 2 / 3}


def test_nlvr_groups_pictures_by_sentence():
    identifiers = ["dev-1-0", "dev-1-1", "dev-2-0"]
    assert nlvr_metrics([1, 1, 1], [1, 0, 1], identifiers) == {"accuracy": 2 / 3, "consistency": 0.5}


def test_permutations_of_a_picture_are_rows_of_their_own():
    identifiers, permutations = ["dev-1-0"] * 3 + ["dev-2-0"], [0, 1, 2, 0]
    metrics = nlvr_metrics([1, 1, 0, 1], [1, 1, 1, 1], identifiers, permutations)
    assert metrics == {"accuracy": 0.75, "consistency": 0.5}


@pytest.mark.parametrize("metrics", [nlvr2_metrics, nlvr_metrics])
@pytest.mark.parametrize(
    "predictions, labels, error, message",
    [
        ([], [], ValueError, "no predictions"),
        ([1, 0], [1], ValueError, "2 predictions and 1 labels"),
        ([1, 2], [1, 0], ValueError, r"predictions\[1\].*got 2"),
        ([1, 0], [1, "maybe"], ValueError, r"labels\[1\].*'maybe'"),
        ([[1, 0], [0, 1]], [1, 0], ValueError, r"predictions\[0\]"),
        ([0.7], [1], ValueError, r"got 0\.7"),
        ([None], [1], ValueError, "got None"),
        ("10", [1, 0], TypeError, "`predictions` must be a list"),
        ([1], True, TypeError, "`labels` must be a list"),
    ],
)
def test_bad_judgements_are_refused(metrics, predictions, labels, error, message):
    with pytest.raises(error, match=message):
        metrics(predictions, labels)


@pytest.mark.parametrize(
    "identifiers, message",
    [
        (["dev-1-0-0"], "2 predictions and 1 `identifiers`"),
        (["dev-1-0-0", "dev-1-0"], "identifier 1 must have the form `split-set-pair-sentence`"),
        (["dev-1-0-0", 7], "identifier 1"),
        (["dev-1-0-0", "dev-1-0-0"], "1 identifiers occur twice"),
    ],
)
def test_bad_identifiers_are_refused(identifiers, message):
    with pytest.raises(ValueError, match=message):
        nlvr2_metrics([1, 0], [1, 0], identifiers)


def test_bad_permutations_are_refused():
    with pytest.raises(ValueError, match="2 predictions and 1 `permutations`"):
        nlvr_metrics([1, 0], [1, 0], ["dev-1-0", "dev-1-0"], [0])
    with pytest.raises(ValueError, match="occur twice"):
        nlvr_metrics([1, 0], [1, 0], ["dev-1-0", "dev-1-0"])
