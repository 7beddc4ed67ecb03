"""`hf_vlp.metrics.segmentation` and its `evaluate` class.

Covers: scores against a plain count over sets of pixels and against values by hand; ignored pixels;
classes that are absent; maps of several sizes and forms; sums over chunks and pictures; values per class; bad input;
the class: same numbers, batches, arrays, no network.
"""

import math

import numpy as np
import pytest
import torch

import hf_vlp.metrics
from hf_vlp.metrics import segmentation
from hf_vlp.metrics.segmentation import confusion_metrics, count_confusions, segmentation_metrics

IGNORED = 255


def make_maps(seed, num_labels, *, size=(9, 7), number=4):
    generator = np.random.default_rng(seed)
    references = [generator.integers(0, num_labels, size) for _ in range(number)]
    predictions = [
        np.where(generator.random(size) < 0.6, one, generator.integers(0, num_labels, size)) for one in references
    ]
    for one in references:
        one[generator.random(size) < 0.2] = IGNORED
    return predictions, references


def by_sets(predictions, references, num_labels):
    """The scores from sets of pixels: (picture, row, column)."""

    def pixels(maps, label):
        return {
            (n, y, x)
            for n, (one, reference) in enumerate(zip(maps, references))
            for y in range(len(one))
            for x in range(len(one[0]))
            if reference[y][x] != IGNORED and one[y][x] == label
        }

    ious, accuracies, hits, total = [], [], 0, 0
    for label in range(num_labels):
        found, wanted = pixels(predictions, label), pixels(references, label)
        if found | wanted:
            ious.append(len(found & wanted) / len(found | wanted))
        if wanted:
            accuracies.append(len(found & wanted) / len(wanted))
        hits, total = hits + len(found & wanted), total + len(wanted)
    return {
        "mean_iou": sum(ious) / len(ious),
        "pixel_accuracy": hits / total,
        "mean_accuracy": sum(accuracies) / len(accuracies),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_labels", [1, 2, 6, 40])
def test_scores_equal_a_plain_count(seed, num_labels):
    predictions, references = make_maps(seed, num_labels)
    expected = by_sets(predictions, references, num_labels)
    assert segmentation_metrics(predictions, references, num_labels) == pytest.approx(expected)


def test_ignored_pixels_do_not_count_whatever_is_predicted():
    reference = np.array([[0, IGNORED], [1, IGNORED]])
    for prediction in ([[0, 0], [1, 1]], [[0, 1], [1, 0]], [[0, IGNORED], [1, 77]]):
        assert set(segmentation_metrics([prediction], [reference], 2).values()) == {1.0}


def test_another_index_can_be_ignored():
    metrics = segmentation_metrics([[[1, 1]]], [[[0, 1]]], 2, ignore_index=0)
    assert metrics["pixel_accuracy"] == 1.0


def test_more_than_255_classes_need_another_index_to_ignore():
    with pytest.raises(ValueError, match="255 is one of 300 classes"):
        segmentation_metrics([[[255]]], [[[255]]], 300)
    assert segmentation_metrics([[[255, 0]]], [[[255, -100]]], 300, ignore_index=-100)["mean_iou"] == 1.0


def test_a_class_that_is_nowhere_does_not_count():
    prediction = reference = [[0, 0], [1, 1]]
    assert segmentation_metrics([prediction], [reference], 50)["mean_iou"] == 1.0


def test_a_class_that_is_only_predicted_counts_as_zero_iou_and_not_in_the_mean_accuracy():
    metrics = segmentation_metrics([[[0, 0, 0, 2]]], [[[0, 0, 0, 0]]], 3)
    assert metrics == {"mean_iou": 0.375, "pixel_accuracy": 0.75, "mean_accuracy": 0.75}


def test_scores_are_of_the_data_set_not_means_over_pictures():
    # class 0: 1 of 4 right in all; as a mean over the pictures it would be (1 + 0) / 2
    metrics = segmentation_metrics([[[0]], [[1, 1, 1]]], [[[0]], [[0, 0, 0]]], 2, per_class=True)
    assert metrics["iou_per_class"][0] == 0.25


def test_values_per_class_are_nan_where_a_class_does_not_count():
    metrics = segmentation_metrics([[[0, 1]]], [[[0, 0]]], 3, per_class=True)
    assert metrics["iou_per_class"][:2] == [0.5, 0.0]
    assert math.isnan(metrics["iou_per_class"][2])
    assert metrics["accuracy_per_class"][0] == 0.5
    assert math.isnan(metrics["accuracy_per_class"][1])


def test_rows_of_the_matrix_are_references():
    expected = [[1, 2], [0, 1]]
    assert count_confusions([0, 1, 1, 1], [0, 0, 0, 1], 2).tolist() == expected


def test_chunks_add_up(monkeypatch):
    predictions, references = make_maps(0, 5, size=(31, 17), number=1)
    whole = count_confusions(predictions[0], references[0], 5)
    monkeypatch.setattr(segmentation, "_CHUNK", 10)
    assert np.array_equal(count_confusions(predictions[0], references[0], 5), whole)
    assert whole.sum() == (references[0] != IGNORED).sum()


@pytest.mark.parametrize(
    "form",
    [torch.tensor, np.asarray, lambda one: one.astype(np.uint8), lambda one: one.tolist()],
    ids=["tensor", "array", "uint8", "list"],
)
def test_maps_may_have_any_form(form):
    predictions, references = make_maps(1, 4)
    expected = segmentation_metrics(predictions, references, 4)
    assert segmentation_metrics([form(one) for one in predictions], [form(one) for one in references], 4) == expected


def test_pictures_may_have_different_sizes():
    first, second = make_maps(2, 4, size=(3, 5)), make_maps(3, 4, size=(8, 2))
    metrics = segmentation_metrics([*first[0], *second[0]], [*first[1], *second[1]], 4)
    assert metrics == pytest.approx(by_sets([*first[0], *second[0]], [*first[1], *second[1]], 4))


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([[[0, 2]]], [[[0, 0]]], ValueError, "prediction holds 2"),
        ([[[0, 0]]], [[[0, 7]]], ValueError, "reference holds 7"),
        ([[[0, 0]]], [[[0, -1]]], ValueError, "reference holds -1"),
        ([[[0, 0]]], [[[0], [0]]], ValueError, "one shape"),
        ([[[0.5, 0]]], [[[0, 0]]], TypeError, "whole numbers"),
        ([[[0]]], [], ValueError, "different numbers"),
        ([], [[[0]]], ValueError, "different numbers"),
        ([], [], ValueError, "no predictions"),
        ([[[0]]], [[[IGNORED]]], ValueError, "no pixel with a class"),
    ],
)
def test_bad_input_is_named(predictions, references, error, message):
    with pytest.raises(error, match=message):
        segmentation_metrics(predictions, references, 2)


@pytest.mark.parametrize("shape", [(2, 3), (4,)])
def test_a_confusion_matrix_is_square(shape):
    with pytest.raises(ValueError, match="square"):
        confusion_metrics(np.ones(shape))


def test_there_is_at_least_one_class():
    with pytest.raises(ValueError, match="num_labels"):
        count_confusions([0], [0], 0)


def make_metric(tmp_path):
    return hf_vlp.metrics.SegmentationMetric(cache_dir=str(tmp_path))


def test_the_evaluate_class_gives_the_same_numbers(tmp_path):
    predictions, references = make_maps(4, 5)
    computed = make_metric(tmp_path).compute(predictions=predictions, references=references, num_labels=5)
    assert computed == segmentation_metrics(predictions, references, 5)


def test_batches_of_the_evaluate_class_add_up(tmp_path):
    predictions, references = make_maps(5, 5)
    metric = make_metric(tmp_path)
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add(prediction=predictions[3], reference=references[3])
    computed = metric.compute(num_labels=5, per_class=True)
    expected = segmentation_metrics(predictions, references, 5, per_class=True)
    np.testing.assert_equal(computed, expected)


def test_the_evaluate_class_asks_for_the_number_of_classes(tmp_path):
    with pytest.raises(ValueError, match="num_labels"):
        make_metric(tmp_path).compute(predictions=[[[0]]], references=[[[0]]])
