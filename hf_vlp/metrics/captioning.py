"""Caption metrics of the COCO evaluation in Python, with no Java: BLEU-1..4, ROUGE-L, CIDEr, CIDEr-D, exact match.

`caption_metrics` computes several at once on one tokenisation. METEOR and SPICE go through the optional package
pycocoevalcap, see `java_metrics`. Every number of `tests/fixtures/metrics` is reproduced to the last digit published.

Names: `cider_d` is what the COCO tool and the papers call "CIDEr"; `cider` is the plain form of the CVPR paper.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

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
from hf_vlp.metrics.ptb_tokenizer import ptb_tokenize

ROUGE_BETA = 1.2
# The constants of the COCO code, which stand for zeros: a corpus without any 4-gram in common has a BLEU-4 of about
# 1e-4, not 0.
_TINY, _SMALL = 1e-15, 1e-9


def _bleu_of_counts(
    correct: Sequence[int], guessed: Sequence[int], length: int, reference_length: float
) -> list[float]:
    product, values = 1.0, []
    for order, (right, total) in enumerate(zip(correct, guessed), start=1):
        product *= (right + _TINY) / (total + _SMALL)
        values.append(product ** (1.0 / order))
    ratio = (length + _TINY) / (reference_length + _SMALL)
    if ratio < 1.0:
        values = [value * math.exp(1.0 - 1.0 / ratio) for value in values]
    return values


def _bleu(predictions: Sequence[str], references: Sequence[Sequence[str]], max_n: int, per_sample: bool):
    sums = np.zeros((2, max_n), dtype=np.int64)
    length = reference_length = 0
    rows = []
    for prediction, texts in zip(predictions, references):
        words = prediction.split()
        reference_words = [text.split() for text in texts]
        most: dict[tuple[str, ...], int] = {}
        for reference in reference_words:
            for ngram, count in _count_ngrams(reference, max_n).items():
                if count > most.get(ngram, 0):
                    most[ngram] = count
        correct = [0] * max_n
        for ngram, count in _count_ngrams(words, max_n).items():
            correct[len(ngram) - 1] += min(count, most.get(ngram, 0))
        guessed = [max(0, len(words) - order) for order in range(max_n)]
        # the closest reference, the shorter one of two that are equally close
        closest = min((abs(len(reference) - len(words)), len(reference)) for reference in reference_words)[1]
        if per_sample:
            rows.append(_bleu_of_counts(correct, guessed, len(words), closest))
        sums += (correct, guessed)
        length += len(words)
        reference_length += closest
    values = np.array(rows).T if per_sample else _bleu_of_counts(*sums.tolist(), length, reference_length)
    return {f"bleu_{order}": value for order, value in enumerate(values, start=1)}


def _count_ngrams(words: Sequence[str], max_n: int) -> Counter[tuple[str, ...]]:
    counts: Counter[tuple[str, ...]] = Counter()
    for order in range(1, max_n + 1):
        counts.update(zip(*(words[start:] for start in range(order))))
    return counts


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


def _named(name: str, scores: np.ndarray, per_sample: bool) -> dict:
    return {name: scores if per_sample else float(scores.mean())}


# Each takes tokenised predictions and references, document frequencies and `per_sample`.
_METRICS: dict[str, Callable[..., dict]] = {
    "bleu": lambda p, r, _, each: _bleu(p, r, 4, each),
    "rouge_l": lambda p, r, _, each: _named("rouge_l", _rouge_l(p, r), each),
    "cider": lambda p, r, df, each: _named(
        "cider", cider_of_tokens(p, r, document_frequencies=df, clipped=False), each
    ),
    "cider_d": lambda p, r, df, each: _named(
        "cider_d", cider_of_tokens(p, r, document_frequencies=df, clipped=True), each
    ),
    "exact_match": lambda p, r, _, each: _named("exact_match", _exact_match(p, r), each),
    "meteor": lambda p, r, _, each: {"meteor": meteor_of_tokens(p, r)[int(each)]},
    "spice": lambda p, r, _, each: {"spice": spice_of_tokens(p, r)[int(each)]},
}
CAPTION_METRICS = tuple(_METRICS)


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
    unknown = [name for name in metrics if name not in _METRICS]
    if unknown:
        raise ValueError(f"unknown metrics {unknown}: choose from {list(CAPTION_METRICS)}")
    predictions, references = _tokenized(predictions, references, tokenize)
    values: dict = {}
    for name in metrics:
        values |= _METRICS[name](predictions, references, document_frequencies, per_sample)
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
