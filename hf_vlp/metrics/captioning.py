"""Caption metrics of the COCO evaluation in Python, with no Java: BLEU-1..4, ROUGE-L, CIDEr, CIDEr-D, exact match.

`caption_metrics` computes several at once on one tokenisation. METEOR and SPICE go through the optional package
pycocoevalcap, see `java_metrics`. Every number of `tests/fixtures/metrics` is reproduced to the last digit published.

Names: `cider_d` is what the COCO tool and the papers call "CIDEr"; `cider` is the plain form of the CVPR paper.
"""

from collections.abc import Sequence

import numpy as np

from hf_vlp.metrics.checks import check_pairs, check_strings
from hf_vlp.metrics.cider import (
    CiderDScorer,
    DocumentFrequencies,
    build_document_frequencies,
    cider,
    cider_d,
    cider_of_tokens,
)
from hf_vlp.metrics.java_metrics import meteor, meteor_of_tokens, spice, spice_of_tokens
from hf_vlp.metrics.ngrams import count_ngrams, find
from hf_vlp.metrics.ptb_tokenizer import ptb_tokenize

ROUGE_BETA = 1.2
# The constants of the COCO code, which stand for zeros: a corpus without any 4-gram in common has a BLEU-4 of about
# 1e-4, not 0.
_TINY, _SMALL = 1e-15, 1e-9


def _bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], max_n: int, per_sample: bool) -> dict:
    table = count_ngrams(predictions, references, max_n)
    num_images = table.num_images
    lengths = table.lengths[:num_images]
    # the closest reference, the shorter one of two that are equally close
    reference_lengths = table.lengths[num_images:]
    image = table.image[num_images:]
    order = np.lexsort((reference_lengths, np.abs(reference_lengths - lengths[image]), image))
    closest = reference_lengths[order][np.searchsorted(image, np.arange(num_images))]

    correct = np.zeros((max_n, num_images))
    guessed = np.maximum(0, lengths - np.arange(max_n)[:, None])
    for index, ngrams in enumerate(table.orders):
        keys = table.image[ngrams.caption] * max(1, ngrams.size) + ngrams.ngram
        first = np.searchsorted(ngrams.caption, num_images)
        # the most that any one reference has of an n-gram: the last of the rows sorted by n-gram and count
        order = np.lexsort((ngrams.count[first:], keys[first:]))
        sorted_keys, sorted_counts = keys[first:][order], ngrams.count[first:][order]
        last = np.append(sorted_keys[1:] != sorted_keys[:-1], True)[: len(sorted_keys)]
        places, present = find(sorted_keys[last], keys[:first])
        matches = np.minimum(ngrams.count[:first][present], sorted_counts[last][places[present]])
        correct[index] = np.bincount(ngrams.caption[:first][present], matches, minlength=num_images)
    if not per_sample:
        correct, guessed = correct.sum(1, keepdims=True), guessed.sum(1, keepdims=True)
        lengths, closest = lengths.sum(keepdims=True), closest.sum(keepdims=True)

    products = np.cumprod((correct + _TINY) / (guessed + _SMALL), axis=0)
    ratio = (lengths + _TINY) / (closest + _SMALL)
    penalty = np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))
    values = {f"bleu_{n}": products[n - 1] ** (1.0 / n) * penalty for n in range(1, max_n + 1)}
    return values if per_sample else {name: float(value[0]) for name, value in values.items()}


def _common_subsequence_length(first: Sequence[str], positions: dict[str, int], length: int) -> int:
    """Length of the longest common subsequence; bits of `positions[word]`: its places in the sequence of `length`.

    One machine operation per word in the place of a row of the table (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"): a zero bit marks a place where the length grows.
    """
    full = (1 << length) - 1
    row = full
    for word in first:
        matches = row & positions.get(word, 0)
        row = ((row + matches) | (row - matches)) & full
    return length - row.bit_count()


def _rouge_l(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    scores = np.zeros(len(predictions))
    for index, (prediction, texts) in enumerate(zip(predictions, references)):
        if not prediction:
            continue
        words = prediction.split(" ")
        positions: dict[str, int] = {}
        for place, word in enumerate(words):
            positions[word] = positions.get(word, 0) | 1 << place
        precision = recall = 0.0
        for text in texts:
            reference = text.split(" ")
            common = _common_subsequence_length(reference, positions, len(words))
            precision = max(precision, common / len(words))
            recall = max(recall, common / len(reference))
        if precision > 0.0:
            square = ROUGE_BETA**2
            scores[index] = (1 + square) * precision * recall / (recall + square * precision)
    return scores


def _exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    return np.array([float(bool(text) and text in texts) for text, texts in zip(predictions, references)])


def _tokenized(predictions, references, tokenize: bool) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    check_pairs(predictions, references)
    if not tokenize:
        return predictions, references
    return ptb_tokenize(predictions), [ptb_tokenize(texts) for texts in references]


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    max_n: int = 4,
    tokenize: bool = True,
    per_sample: bool = False,
) -> dict[str, float] | dict[str, np.ndarray]:
    """Corpus BLEU-1..max_n as `{"bleu_1": ..., ...}`, with the *closest* reference length, as in the COCO tool.

    references: one list of strings per prediction.
    tokenize: False for text that is tokenised already (words between blanks).
    per_sample: arrays (n,) of BLEU per sentence; their mean is not the corpus value.

    An empty prediction counts with length 0; alone it scores 0. Raises `TypeError` and `ValueError` for strings in the
    place of lists, empty reference lists, and lists of unequal length. Papineni et al., ACL 2002.
    """
    if not isinstance(max_n, int) or max_n < 1:
        raise ValueError(f"`max_n` must be a whole number from 1 on, got {max_n!r}")
    return _bleu(*_tokenized(predictions, references, tokenize), max_n, per_sample)


def rouge_l(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = True, per_sample: bool = False
) -> float | np.ndarray:
    """ROUGE-L as in the COCO tool: F-measure (beta 1.2) of the best precision and the best recall over the references.

    The two may come from different references, so it is not the best F-measure that other packages report. Arguments
    and errors: as for `bleu`. An empty prediction scores 0. Lin, "ROUGE", 2004.
    """
    scores = _rouge_l(*_tokenized(predictions, references, tokenize))
    return scores if per_sample else float(scores.mean())


def exact_match(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: bool = True, per_sample: bool = False
) -> float | np.ndarray:
    """Share of predictions equal to one of their references, both tokenised: case and punctuation do not count.

    An empty prediction matches nothing. Arguments and errors: as for `bleu`; per_sample gives an array (n,) of
    booleans.
    """
    matches = _exact_match(*_tokenized(predictions, references, tokenize))
    return matches.astype(bool) if per_sample else float(matches.mean())


CAPTION_METRICS = ("bleu", "rouge_l", "cider", "cider_d", "exact_match", "meteor", "spice")


def caption_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = ("bleu", "rouge_l", "cider", "cider_d"),
    *,
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: bool = True,
    per_sample: bool = False,
) -> dict[str, float] | dict[str, np.ndarray]:
    """Several caption metrics on one tokenisation, as a flat dict: bleu_1 .. bleu_4, rouge_l, cider, cider_d, ...

    references: one list of strings per prediction.
    metrics: any of `CAPTION_METRICS`: bleu, rouge_l, cider, cider_d, exact_match, and with the extra `metrics` and
        Java meteor, spice.
    document_frequencies: for cider and cider_d; by default those of `references` (the COCO protocol).
    tokenize: False for text that is tokenised already (words between blanks).
    per_sample: arrays (n,) in the place of the corpus values.

    Empty predictions score 0. Raises `TypeError` and `ValueError` for strings in the place of lists, empty reference
    lists, lists of unequal length and unknown metrics; `ImportError` or `RuntimeError` when METEOR or SPICE lack what
    they need.

    ```python
    >>> scores = caption_metrics(["a dog runs"], [["A dog runs.", "the dog is running"]], ("bleu", "exact_match"))
    >>> round(scores["bleu_1"], 6), scores["exact_match"]
    (1.0, 1.0)

    ```
    """
    check_strings(metrics, "metrics")
    unknown = [name for name in metrics if name not in CAPTION_METRICS]
    if unknown:
        raise ValueError(f"unknown metrics {unknown}: choose from {list(CAPTION_METRICS)}")
    predictions, references = _tokenized(predictions, references, tokenize)
    both_ciders: tuple[np.ndarray, ...] | None = None
    values: dict = {}
    for name in metrics:
        if name == "bleu":
            values |= _bleu(predictions, references, 4, per_sample)
        elif name in ("meteor", "spice"):
            # their corpus values are no means
            of_tokens = meteor_of_tokens if name == "meteor" else spice_of_tokens
            values[name] = of_tokens(predictions, references)[int(per_sample)]
        else:
            if name in ("cider", "cider_d"):
                # the vectors are the costly part, and the same for both
                both_ciders = both_ciders or cider_of_tokens(predictions, references, document_frequencies)
                scores = both_ciders[("cider", "cider_d").index(name)]
            else:
                scores = (_rouge_l if name == "rouge_l" else _exact_match)(predictions, references)
            values[name] = scores if per_sample else float(scores.mean())
    return values


__all__ = [
    "CAPTION_METRICS",
    "CiderDScorer",
    "DocumentFrequencies",
    "bleu",
    "build_document_frequencies",
    "caption_metrics",
    "cider",
    "cider_d",
    "exact_match",
    "meteor",
    "ptb_tokenize",
    "rouge_l",
    "spice",
]
