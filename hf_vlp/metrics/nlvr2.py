"""Accuracy and consistency of statements about pictures judged true or false: NLVR2 and its predecessor NLVR.

Suhr et al., "A Corpus for Reasoning about Natural Language Grounded in Photographs" (ACL 2019),
https://arxiv.org/abs/1811.00491; "A Corpus of Natural Language for Visual Reasoning" (ACL 2017). Every sentence is
paired with several pictures (or pairs of pictures), with some of which it is true. **Consistency** is the share of
sentences that are judged rightly with all of them; who guesses has almost none.

Which rows share a sentence is in their identifiers: `split-set-pair-sentence` in NLVR2 (`dev-850-2-0`: all pairs with
the same split, set and sentence), `split-sentence-picture` in NLVR (`test-1838-2`).
"""

from collections.abc import Sequence
from typing import Any

_WORDS = {"true": True, "false": False}


def _truth(value: Any, name: str) -> bool:
    """A judgement as a bool: a bool, 0 or 1 (also of numpy and torch), "True" or "False" as in the data files."""
    if isinstance(value, str):
        truth = _WORDS.get(value.strip().lower())
    else:
        number = value.tolist() if hasattr(value, "tolist") else value  # a number of numpy or torch
        truth = bool(number) if isinstance(number, int | float) and number in (0, 1) else None
    if truth is None:
        raise ValueError(f"`{name}` must be True or False, 1 or 0, 'True' or 'False'; got {value!r:.80}")
    return truth


def _judged(predictions: Sequence, labels: Sequence) -> list[bool]:
    for name, values in (("predictions", predictions), ("labels", labels)):
        if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
            raise TypeError(f"`{name}` must be a list with one judgement per row, got {type(values).__name__}")
    if len(predictions) != len(labels):
        raise ValueError(f"got {len(predictions)} predictions and {len(labels)} labels: pass one label per prediction")
    if len(predictions) == 0:
        raise ValueError("got no predictions: an accuracy needs at least one")
    return [
        _truth(prediction, f"predictions[{row}]") == _truth(label, f"labels[{row}]")
        for row, (prediction, label) in enumerate(zip(predictions, labels))
    ]


def _parts(identifiers: Sequence[str], number: int, form: str) -> list[list[str]]:
    parts = []
    for row, identifier in enumerate(identifiers):
        if not isinstance(identifier, str) or len(identifier.split("-")) != number:
            raise ValueError(f"identifier {row} must have the form `{form}`, got {identifier!r:.80}")
        parts.append(identifier.split("-"))
    return parts


def _statement_metrics(right: list[bool], identifiers: Sequence[str], sentences: list[tuple]) -> dict[str, float]:
    if len(set(identifiers)) != len(identifiers):
        raise ValueError(
            f"{len(identifiers) - len(set(identifiers))} identifiers occur twice: every row is one example"
        )
    consistent: dict[tuple, bool] = {}
    for sentence, is_right in zip(sentences, right):
        consistent[sentence] = consistent.get(sentence, True) and is_right
    return {"accuracy": sum(right) / len(right), "consistency": sum(consistent.values()) / len(consistent)}


def _check_length(right: list[bool], rows: Sequence, name: str) -> None:
    if len(rows) != len(right):
        raise ValueError(f"got {len(right)} predictions and {len(rows)} `{name}`: pass one for each")


def nlvr2_metrics(
    predictions: Sequence, labels: Sequence, identifiers: Sequence[str] | None = None
) -> dict[str, float]:
    """`accuracy` and, with identifiers, `consistency` (fractions) of NLVR2.

    predictions, labels: one judgement per row: bools, 0 and 1 (a tensor of arg-maxima), "True" and "False".
    identifiers: of each row, like "dev-850-2-0".

    Raises `ValueError` for other judgements, lists of unequal length or none, identifiers of another form or twice.

    ```python
    >>> nlvr2_metrics([1, 0, 1], [1, 0, 0], ["dev-7-0-0", "dev-7-1-0", "dev-7-0-1"])
    {'accuracy': 0.6666666666666666, 'consistency': 0.5}

    ```
    """
    right = _judged(predictions, labels)
    if identifiers is None:
        return {"accuracy": sum(right) / len(right)}
    _check_length(right, identifiers, "identifiers")
    parts = _parts(identifiers, 4, "split-set-pair-sentence")
    return _statement_metrics(right, identifiers, [(split, group, sentence) for split, group, _, sentence in parts])


def nlvr_metrics(
    predictions: Sequence,
    labels: Sequence,
    identifiers: Sequence[str] | None = None,
    permutations: Sequence[int] | None = None,
) -> dict[str, float]:
    """`accuracy` and, with identifiers, `consistency` (fractions) of NLVR, the corpus of drawn pictures.

    identifiers: of each row, like "test-1838-2".
    permutations: number of the permutation of the picture's three boxes, where rows have several of one example.

    Other arguments and errors: as for `nlvr2_metrics`.
    """
    right = _judged(predictions, labels)
    if identifiers is None:
        return {"accuracy": sum(right) / len(right)}
    _check_length(right, identifiers, "identifiers")
    sentences = [(split, sentence) for split, sentence, _ in _parts(identifiers, 3, "split-sentence-picture")]
    if permutations is not None:
        _check_length(right, permutations, "permutations")
        identifiers = [f"{identifier}-{permutation}" for identifier, permutation in zip(identifiers, permutations)]
    return _statement_metrics(right, identifiers, sentences)


__all__ = ["nlvr2_metrics", "nlvr_metrics"]
