"""Accuracy of classes."""

from collections.abc import Sequence


def _classes(values: Sequence, name: str) -> list[int | str]:
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError(f"`{name}` must be a list with one class per row, got {type(values).__name__}")
    classes = [value.tolist() if hasattr(value, "tolist") else value for value in values]  # numbers of numpy, torch
    for row, value in enumerate(classes):
        # evaluate hands numbers over as floats
        if not (isinstance(value, int | str) or (isinstance(value, float) and value.is_integer())):
            raise TypeError(
                f"`{name}[{row}]` must be the number or name of a class, got {value!r:.80}: take the arg-maximum of "
                "scores first"
            )
    return classes


def classification_accuracy(predictions: Sequence, references: Sequence) -> dict[str, float]:
    """`accuracy`, the share of predictions equal to their reference (a fraction).

    predictions, references: one class per row, numbers or names; tensors and arrays of numbers, too.

    Raises TypeError for what is no list, and for numbers beside names, which are never equal; ValueError for lists of
    unequal length or none.

    ```python
    >>> classification_accuracy([3, 1, 0, 2], [3, 1, 2, 2])
    {'accuracy': 0.75}

    ```
    """
    guesses, labels = _classes(predictions, "predictions"), _classes(references, "references")
    if len(guesses) != len(labels):
        raise ValueError(f"got {len(guesses)} predictions and {len(labels)} references: pass one for each")
    if not guesses:
        raise ValueError("got no predictions: an accuracy needs at least one")
    kinds = {isinstance(value, str) for value in (*guesses, *labels)}
    if len(kinds) > 1:
        raise TypeError(
            "got names of classes (strings) beside numbers: pass `predictions` and `references` both as names, or "
            "both as numbers"
        )
    return {"accuracy": sum(guess == label for guess, label in zip(guesses, labels)) / len(labels)}


__all__ = ["classification_accuracy"]
