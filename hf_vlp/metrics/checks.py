"""Checks of what a caller passes to the text metrics, with errors that say what to do."""

from collections.abc import Sequence


def check_strings(values: Sequence[str], name: str) -> None:
    """Raise `TypeError` unless `values` is a list or tuple (or another sequence) of strings."""
    if isinstance(values, str | bytes):
        raise TypeError(
            f"`{name}` must be a list of strings, got one {type(values).__name__}: put it in a list, [{name}]"
        )
    if not isinstance(values, Sequence) and not hasattr(values, "__len__"):
        raise TypeError(f"`{name}` must be a list of strings, got {type(values).__name__}")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"`{name}[{index}]` must be a string, got {type(value).__name__}: {value!r:.80}")


def check_references(references: Sequence[Sequence[str]], name: str = "references") -> None:
    """Raise unless `references` is a list with one non-empty list of strings per image."""
    if isinstance(references, str | bytes) or not hasattr(references, "__len__"):
        raise TypeError(f"`{name}` must be a list with one list of strings per image, got {type(references).__name__}")
    for index, texts in enumerate(references):
        if isinstance(texts, str | bytes):
            raise TypeError(
                f"`{name}[{index}]` must be a list of strings, got one string: {texts!r:.80}. "
                f"With one reference per image, pass [[text], [text], ...]"
            )
        if not hasattr(texts, "__len__"):
            raise TypeError(f"`{name}[{index}]` must be a list of strings, got {type(texts).__name__}")
        check_strings(texts, f"{name}[{index}]")
        if len(texts) == 0:
            raise ValueError(
                f"`{name}[{index}]` is empty: every image needs at least one reference; leave out images without"
            )


def check_pairs(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raise unless there is one prediction and one non-empty reference list per image, for at least one image."""
    check_strings(predictions, "predictions")
    check_references(references)
    if len(predictions) != len(references):
        raise ValueError(
            f"got {len(predictions)} predictions and {len(references)} reference lists: "
            f"pass one list of references per prediction"
        )
    if len(predictions) == 0:
        raise ValueError("got no predictions: a score needs at least one image")
