"""The n-grams of many captions as numbers in arrays: BLEU and CIDEr match and weigh them without a Python loop."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class NgramCounts(NamedTuple):
    """How often each caption has each n-gram of one length n; the rows are sorted by caption, then by n-gram."""

    caption: np.ndarray  # (rows,) number of the caption
    ngram: np.ndarray  # (rows,) number of the n-gram
    count: np.ndarray  # (rows,)
    texts: list[str]  # words of each n-gram joined by blanks; empty unless asked for
    size: int  # number of different n-grams


class CaptionTable(NamedTuple):
    """Predictions and references as one list of captions: caption i predicts image i, then come all references."""

    orders: list[NgramCounts]  # n = 1, 2, ...
    lengths: np.ndarray  # (captions,) words
    image: np.ndarray  # (captions,) number of the image
    num_images: int


def count_ngrams(
    predictions: Sequence[str], references: Sequence[Sequence[str]], max_n: int, *, with_texts: bool = False
) -> CaptionTable:
    """Count the n-grams of tokenised captions (words between blanks) for n = 1..max_n."""
    captions = [*predictions, *(text for texts in references for text in texts)]
    num_images = len(predictions)
    numbers = np.arange(num_images)
    image = np.concatenate([numbers, np.repeat(numbers, [len(texts) for texts in references])])
    vocabulary: dict[str, int] = {}
    split = [caption.split() for caption in captions]
    words = [word for caption in split for word in caption]
    first = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in words], dtype=np.int64)
    lengths = np.array([len(caption) for caption in split], dtype=np.int64)
    caption_of = np.repeat(np.arange(len(captions)), lengths)
    # words from this place to the end of the caption: n-grams start where n are left
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))

    orders = []
    starts, ngram, size = np.arange(len(words)), first, len(vocabulary)
    for n in range(1, max_n + 1):
        if n > 1:
            # An n-gram is its first n - 1 words and its last word; the pairs are numbered anew, so that they stay
            # small.
            longer = left[starts] >= n
            starts = starts[longer]
            values, ngram = np.unique(
                ngram[longer] * max(1, len(vocabulary)) + first[starts + n - 1], return_inverse=True
            )
            size = len(values)
        rows, count = np.unique(caption_of[starts] * max(1, size) + ngram, return_counts=True)
        texts: list[str] = []
        if with_texts:
            places = np.zeros(size, dtype=np.int64)
            places[ngram] = starts
            texts = [" ".join(words[place : place + n]) for place in places.tolist()]
        orders.append(NgramCounts(rows // max(1, size), rows % max(1, size), count, texts, size))
    return CaptionTable(orders, lengths, image, num_images)


def find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `wanted` its place in the sorted `keys`, and whether it is there (else the place means nothing)."""
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted
