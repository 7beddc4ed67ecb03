"""Mean intersection over union, pixel accuracy and mean accuracy of semantic segmentation, from a confusion matrix.

Conventions, those of mmsegmentation, which the ADE20K figures of BEiT are computed with:

* pixels whose reference is `ignore_index` do not count, whatever is predicted there;
* all pictures go into one matrix: scores are of the data set, not means over pictures;
* a class that neither a reference nor a prediction has does not count in `mean_iou` (one that is only predicted counts
  as 0); a class that no reference has does not count in `mean_accuracy`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# The default of `ignore_index`: what maps of eight bits have where pixels do not count.
_IGNORED = 255
# Pixels that are counted together: keeps what is computed in between below a few dozen megabytes.
_CHUNK = 1 << 21


def _class_map(values: Any, name: str) -> np.ndarray:
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if array.dtype.kind not in "iub":
        raise TypeError(f"`{name}` must hold class numbers, whole numbers, got {array.dtype}")
    return array


def count_confusions(prediction: Any, reference: Any, num_labels: int, ignore_index: int = _IGNORED) -> np.ndarray:
    """How often each class was predicted for each: (num_labels, num_labels), row: reference, column: prediction.

    prediction, reference: class numbers of pixels, arrays or tensors of one shape.
    ignore_index: what references have where pixels do not count; a class given here is left out of the scores.

    Raises `ValueError` for unequal shapes, for numbers that are no class (a reference may be `ignore_index`) and for
    more than 255 classes with an `ignore_index` of 255, `TypeError` for numbers that are not whole.
    """
    if num_labels < 1:
        raise ValueError(f"`num_labels` must be at least 1, got {num_labels}")
    if ignore_index == _IGNORED < num_labels:  # the default would leave out a class that nobody named
        raise ValueError(f"{_IGNORED} is one of {num_labels} classes: pass another `ignore_index`, such as -100")
    predicted, wanted = _class_map(prediction, "prediction"), _class_map(reference, "reference")
    if predicted.shape != wanted.shape:
        raise ValueError(
            f"prediction and reference must have one shape, got {predicted.shape} and {wanted.shape}: resize the "
            "logits to the reference before taking the largest"
        )
    predicted, wanted = predicted.reshape(-1), wanted.reshape(-1)
    matrix = np.zeros(num_labels * num_labels, dtype=np.int64)
    for start in range(0, len(wanted), _CHUNK):
        own, target = predicted[start : start + _CHUNK], wanted[start : start + _CHUNK]
        counts = target != ignore_index
        own, target = own[counts].astype(np.int64), target[counts].astype(np.int64)
        for name, values in (("prediction", own), ("reference", target)):
            wrong = np.unique(values[(values < 0) | (values >= num_labels)])
            if len(wrong):
                raise ValueError(
                    f"{name} holds {', '.join(map(str, wrong[:10]))}, which is none of the classes 0 to "
                    f"{num_labels - 1}; references may also hold ignore_index={ignore_index}"
                )
        matrix += np.bincount(target * num_labels + own, minlength=len(matrix))
    return matrix.reshape(num_labels, num_labels)


def confusion_metrics(confusions: np.ndarray, per_class: bool = False) -> dict[str, Any]:
    """`mean_iou`, `pixel_accuracy` and `mean_accuracy` (fractions) of a sum of `count_confusions`.

    per_class: add `iou_per_class` and `accuracy_per_class`, lists with NaN for classes that do not count.

    Raises `ValueError` when there is no pixel that counts.
    """
    confusions = np.asarray(confusions)
    if confusions.ndim != 2 or confusions.shape[0] != confusions.shape[1]:
        raise ValueError(f"a confusion matrix is square, got the shape {confusions.shape}")
    if not confusions.sum():
        raise ValueError("there is no pixel with a class: all are ignored, or there are none")
    hits, wanted, predicted = confusions.diagonal(), confusions.sum(axis=1), confusions.sum(axis=0)
    union = wanted + predicted - hits
    iou = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    accuracy = np.divide(hits, wanted, out=np.full(len(hits), np.nan), where=wanted > 0)
    metrics: dict[str, Any] = {
        "mean_iou": float(np.nanmean(iou)),
        "pixel_accuracy": float(hits.sum() / confusions.sum()),
        "mean_accuracy": float(np.nanmean(accuracy)),
    }
    if per_class:
        metrics |= {"iou_per_class": iou.tolist(), "accuracy_per_class": accuracy.tolist()}
    return metrics


def segmentation_metrics(
    predictions: Sequence | Iterable,
    references: Sequence | Iterable,
    num_labels: int,
    *,
    ignore_index: int = _IGNORED,
    per_class: bool = False,
) -> dict[str, Any]:
    """`mean_iou`, `pixel_accuracy` and `mean_accuracy` of maps; see the head of this module.

    predictions, references: one map of class numbers for each picture, (height, width), of any size.
    per_class: add lists with the values of each class.

    Raises `ValueError` for different numbers of maps, none at all, and as `count_confusions` does.

    ```python
    >>> segmentation_metrics([[[0, 1], [1, 1]]], [[[0, 0], [1, 255]]], num_labels=2)
    {'mean_iou': 0.5, 'pixel_accuracy': 0.6666666666666666, 'mean_accuracy': 0.75}

    ```
    """
    total, number = 0, 0
    try:
        for prediction, reference in zip(predictions, references, strict=True):
            total = total + count_confusions(prediction, reference, num_labels, ignore_index)
            number += 1
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        raise ValueError("got different numbers of predictions and references: pass one map for each") from None
    if not number:
        raise ValueError("got no predictions: a score needs at least one map")
    return confusion_metrics(total, per_class)


__all__ = ["confusion_metrics", "count_confusions", "segmentation_metrics"]
