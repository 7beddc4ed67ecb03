"""CIDEr and CIDEr-D, document frequencies that can be kept in a file, and the scorer of self-critical training.

Vedantam, Zitnick, Parikh, "CIDEr: Consensus-based Image Description Evaluation" (CVPR 2015),
https://arxiv.org/abs/1411.5726.

A caption is a vector of TF-IDF weights for each n = 1..4: the count of the n-gram in the caption times log(N / df),
where df is the number of images (of N) with the n-gram in any reference. The score of a caption is the mean over
references and n of the similarity of the two vectors, times 10.

* **CIDEr**: the similarity is the cosine.
* **CIDEr-D**: the weight of the prediction is clipped to that of the reference, and the result is multiplied by
  exp(-d^2 / (2 * 6^2)), d being the difference in length. **This is what the COCO tool prints as "CIDEr"** and what
  papers report.

Differences from the paper: no stemming and a factor 10 in both (as in the published code); weights use raw counts, not
frequencies (the cosine is the same).
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_vlp.metrics.checks import check_pairs, check_references
from hf_vlp.metrics.ngrams import count_ngrams, find
from hf_vlp.metrics.ptb_tokenizer import ptb_tokenize

MAX_N = 4
SIGMA = 6.0
# How the end of a sentence is written among the n-grams. Tokens are lower case, so no word can be taken for it.
_END = "<EOS>"
_FORMAT = "hf_vlp.document_frequencies"


class _Vector(NamedTuple):
    weights: tuple[dict[str, float], ...]  # one dict of n-gram -> TF-IDF per n
    norms: tuple[float, ...]
    length: int


def _ngrams(words: Sequence[str]) -> tuple[Sequence[str], list[str], list[str], list[str]]:
    """The n-grams of a caption for n = 1..4, as strings of words joined by blanks."""
    second, third, fourth = words[1:], words[2:], words[3:]
    return (
        words,
        [f"{a} {b}" for a, b in zip(words, second)],
        [f"{a} {b} {c}" for a, b, c in zip(words, second, third)],
        [f"{a} {b} {c} {d}" for a, b, c, d in zip(words, second, third, fourth)],
    )


def _count(ngrams: Sequence[str]) -> dict[str, int]:
    # most captions repeat no n-gram: that case is told apart at the price of one dict
    counts = dict.fromkeys(ngrams, 1)
    return counts if len(counts) == len(ngrams) else Counter(ngrams)


class _Weights(dict):
    """n-gram -> log(N) - log(df), filled on demand: looking a weight up costs one dict access."""

    def __init__(self, counts: Mapping[str, int], num_images: int):
        super().__init__()
        self.counts, self.log_num_images = counts, math.log(num_images)

    def __missing__(self, ngram: str) -> float:
        # An n-gram that no reference has counts as if one image had it.
        weight = self.log_num_images - math.log(max(1, self.counts.get(ngram, 0)))
        if len(self) < 1 << 20:  # sampled captions bring new n-grams for ever
            self[ngram] = weight
        return weight


def _vector(ngrams: Sequence[Sequence[str]], weight_of: _Weights) -> _Vector:
    weights, norms = [], []
    for of_one_length in ngrams:
        vector = {ngram: count * weight_of[ngram] for ngram, count in _count(of_one_length).items()}
        weights.append(vector)
        norms.append(math.sqrt(sum([value * value for value in vector.values()])))
    # The published code takes the number of bigrams for the length; the difference of two lengths is the same.
    return _Vector(tuple(weights), tuple(norms), len(ngrams[1]))


def _similarity(prediction: _Vector, references: Sequence[_Vector]) -> float:
    """CIDEr-D of one prediction: ten times the mean similarity over the references and n."""
    total = 0.0
    for reference in references:
        value = 0.0
        for own, other, own_norm, other_norm in zip(
            prediction.weights, reference.weights, prediction.norms, reference.norms
        ):
            if own_norm == 0.0 or other_norm == 0.0:
                continue
            product = 0.0
            for ngram, own_weight in own.items():
                weight = other.get(ngram)
                if weight is not None:
                    product += min(own_weight, weight) * weight
            value += product / (own_norm * other_norm)
        delta = prediction.length - reference.length
        total += value * math.exp(-(delta**2) / (2 * SIGMA**2))
    return 10.0 * total / MAX_N / len(references)


@dataclass(frozen=True)
class DocumentFrequencies:
    """In how many images of a caption set each n-gram (n = 1..4) occurs: what CIDEr needs beside the two captions.

    `counts` holds n-grams as words joined by blanks. N-grams of one single image are left out: they weigh as much as
    unknown ones, so the scores are the same and the table is several times smaller. The end of a sentence is counted
    too, as the word "<EOS>", and only looked at by a scorer with an end token: one table serves both.

    ```python
    >>> frequencies = DocumentFrequencies.build([["a dog", "the dog"], ["a cat"], ["a bird", "birds"]])
    >>> frequencies.num_images, frequencies.counts["a"], "dog" in frequencies.counts
    (3, 3, False)

    ```
    """

    counts: Mapping[str, int] = field(repr=False)
    num_images: int

    @classmethod
    def build(cls, references: Iterable[Sequence[str]], *, tokenize: bool = True) -> "DocumentFrequencies":
        """Count over one list of captions per image; any iterable will do, it is read once.

        Raises `ValueError` when there is no image or an image without captions, `TypeError` for one caption where a
        list is expected.
        """
        counts: Counter[str] = Counter()
        num_images = 0
        for captions in references:
            check_references([captions], name=f"references of image {num_images}")
            tokens = ptb_tokenize(captions) if tokenize else captions
            distinct: set[str] = set()
            for caption in tokens:
                distinct.update(*_ngrams([*caption.split(), _END]))
            counts.update(distinct)
            num_images += 1
        if num_images == 0:
            raise ValueError("document frequencies need at least one image with captions, got none")
        return cls({ngram: count for ngram, count in counts.items() if count > 1}, num_images)

    def save(self, path: str | os.PathLike) -> Path:
        """Write compact JSON, most frequent n-grams first; an existing file is replaced only by a complete one."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        counts = dict(sorted(self.counts.items(), key=lambda item: (-item[1], item[0])))
        content = {"format": _FORMAT, "version": 1, "num_images": self.num_images, "max_n": MAX_N, "counts": counts}
        # In the same folder, because a replacement is only atomic within one file system.
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(content, file, ensure_ascii=False, separators=(",", ":"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DocumentFrequencies":
        """Read what `save` wrote. Raises `FileNotFoundError`, or `ValueError` for another or a damaged file."""
        path = Path(path)
        advice = "write one with `build_document_frequencies(captions, path)`"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no document frequencies at {path}: {advice}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not JSON or is cut short ({error}): {advice}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise ValueError(f"{path} is no file of document frequencies (no format {_FORMAT!r}): {advice}")
        if content.get("version") != 1 or content.get("max_n") != MAX_N:
            raise ValueError(
                f"{path} has version {content.get('version')} with n-grams up to {content.get('max_n')}; "
                f"this release reads version 1 up to {MAX_N}: {advice}"
            )
        counts, num_images = content.get("counts"), content.get("num_images")
        if not isinstance(counts, dict) or type(num_images) is not int or num_images < 1:
            raise ValueError(f"{path} lacks `counts` or a positive `num_images`: {advice}")
        if not all(type(count) is int and 0 < count <= num_images for count in counts.values()):
            raise ValueError(
                f"{path} has counts that are no whole numbers from 1 to num_images = {num_images}: {advice}"
            )
        return cls(counts, num_images)


def build_document_frequencies(
    records_or_captions: Iterable[Mapping[str, Any] | Sequence[str]],
    output_path: str | os.PathLike,
    *,
    column: str | None = None,
    tokenize: bool = True,
) -> DocumentFrequencies:
    """Count the document frequencies of a caption set and save them as JSON.

    records_or_captions: lists of captions, or records with the captions in `column` (by default `captions`, else
        `text`); a column may hold one string. A dataset, also a streaming one, is read once; select the caption
        column first, so that no image is decoded.

    A file that exists is only replaced once the new one is complete.
    """

    def captions_of(index: int, record: Mapping[str, Any] | Sequence[str]) -> Sequence[str]:
        if not isinstance(record, Mapping):
            return record
        name = column or ("captions" if "captions" in record else "text")
        if name not in record:
            raise ValueError(f"record {index} has no column {name!r}, it has {sorted(record)}: pass column=")
        captions = record[name]
        return [captions] if isinstance(captions, str) else captions

    frequencies = DocumentFrequencies.build(
        (captions_of(index, record) for index, record in enumerate(records_or_captions)), tokenize=tokenize
    )
    frequencies.save(output_path)
    return frequencies


class CiderDScorer:
    """CIDEr-D against fixed document frequencies: the reward of self-critical sequence training.

    document_frequencies: usually those of the training captions.
    end_token: count the end of the sentence as a word. Without it a captioner learns to stop in the middle ("a man
        riding a"): the fragment loses nothing. Every reference then ends with the end word; a prediction does when it
        was finished, see `score`.
    cache_size: how many references keep their vector (about 6 KB each). When the references of one step fit, the
        several samples of an image and its greedy caption share the work.

    ```python
    >>> captions = [["a red ball", "the red ball"], ["a blue box"], ["a green cone"]]
    >>> scorer = CiderDScorer(DocumentFrequencies.build(captions), end_token="<|endoftext|>")
    >>> scores = scorer.score(["a red ball<|endoftext|>", "a red ball"], [captions[0], captions[0]])
    >>> bool(scores[0] > scores[1])
    True

    ```
    """

    def __init__(
        self,
        document_frequencies: DocumentFrequencies,
        *,
        end_token: str | None = None,
        tokenize: bool = True,
        cache_size: int = 16_384,
    ):
        if not isinstance(document_frequencies, DocumentFrequencies):
            raise TypeError(
                f"`document_frequencies` must be DocumentFrequencies, got {type(document_frequencies).__name__}: "
                f"use DocumentFrequencies.load(path) or DocumentFrequencies.build(captions)"
            )
        if end_token is not None and (not isinstance(end_token, str) or not end_token.strip()):
            raise ValueError(f"`end_token` must be a string that is not blank, or None, got {end_token!r}")
        self.document_frequencies = document_frequencies
        self.end_token = end_token
        self.tokenize = tokenize
        self._weight_of = _Weights(document_frequencies.counts, document_frequencies.num_images)
        self._reference_vector = lru_cache(maxsize=cache_size)(self._build_reference_vector)

    def __reduce__(self):
        # the cache holds a bound method and is cheap to fill again
        rebuild = (
            self.document_frequencies,
            self.end_token,
            self.tokenize,
            self._reference_vector.cache_info().maxsize,
        )
        return _rebuild_scorer, rebuild

    def _vector_of(self, caption: str, ends: bool) -> _Vector:
        words = (ptb_tokenize([caption])[0] if self.tokenize else caption).split()
        return _vector(_ngrams([*words, _END] if ends else words), self._weight_of)

    def _build_reference_vector(self, caption: str) -> _Vector:
        return self._vector_of(self._cut_end_token(caption)[0], self.end_token is not None)

    def _cut_end_token(self, caption: str) -> tuple[str, bool]:
        if self.end_token is None:
            return caption, False
        stripped = caption.rstrip()
        if stripped.endswith(self.end_token):
            return stripped[: -len(self.end_token)], True
        return caption, False

    def score(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        *,
        finished: Sequence[bool] | None = None,
    ) -> np.ndarray:
        """CIDEr-D of each prediction, float64 of shape (n,); 10 for a caption equal to all its references.

        references: one list per prediction; predictions of the same picture may repeat it.
        finished: which predictions ended by themselves. By default those whose text ends with the end token; a caption
            cut off at the maximum length is unfinished and earns nothing for its end. Ignored without an end token.

        An empty prediction scores 0. Raises `TypeError` and `ValueError` for strings in the place of lists, empty
        reference lists, and lists of unequal length.
        """
        check_pairs(predictions, references)
        if finished is not None and len(finished) != len(predictions):
            raise ValueError(f"`finished` has {len(finished)} entries for {len(predictions)} predictions")
        scores = np.zeros(len(predictions))
        for index, (prediction, texts) in enumerate(zip(predictions, references)):
            text, ends = self._cut_end_token(prediction)
            if not text.strip():  # an end alone is no caption
                continue
            if finished is not None:
                ends = self.end_token is not None and bool(finished[index])
            vector = self._vector_of(text, ends)
            if vector.length > 0 or vector.weights[0]:
                scores[index] = _similarity(vector, [self._reference_vector(text) for text in texts])
        return scores


def _rebuild_scorer(document_frequencies, end_token, tokenize, cache_size) -> CiderDScorer:
    return CiderDScorer(document_frequencies, end_token=end_token, tokenize=tokenize, cache_size=cache_size)


def cider_of_tokens(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    document_frequencies: DocumentFrequencies | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """CIDEr (n,) and CIDEr-D (n,) of tokenised captions, by default with the document frequencies of the references.

    The same numbers as `_similarity`, for all images at once.
    """
    table = count_ngrams(predictions, references, MAX_N, with_texts=document_frequencies is not None)
    num_captions, num_images = len(table.image), table.num_images
    similarity = np.zeros((2, num_captions))
    for order in table.orders:
        image = table.image[order.caption]
        keys = image * max(1, order.size) + order.ngram
        first_reference = np.searchsorted(order.caption, num_images)
        if document_frequencies is None:
            frequency = np.bincount(np.unique(keys[first_reference:]) % max(1, order.size), minlength=order.size)
            log_images = math.log(num_images)
        else:
            frequency = np.array([document_frequencies.counts.get(text, 0) for text in order.texts])
            log_images = math.log(document_frequencies.num_images)
        values = order.count * (log_images - np.log(np.maximum(1, frequency)))[order.ngram]
        norms = np.sqrt(np.bincount(order.caption, values * values, minlength=num_captions))
        norms *= norms[table.image]  # of the reference times that of its prediction
        places, present = find(keys[:first_reference], keys[first_reference:])
        own, other = values[places[present]], values[first_reference:][present]
        reference = order.caption[first_reference:][present]
        for kind, product in enumerate((own * other, np.minimum(own, other) * other)):
            sums = np.bincount(reference, product, minlength=num_captions)
            similarity[kind] += np.divide(sums, norms, out=np.zeros(num_captions), where=norms > 0)
    num_bigrams = np.maximum(table.lengths - 1, 0)
    difference = (num_bigrams - num_bigrams[table.image]).astype(float)
    similarity[1] *= np.exp(-(difference**2) / (2 * SIGMA**2))
    image = table.image[num_images:]
    scale = 10.0 / MAX_N / np.bincount(image, minlength=num_images)
    cider_scores, cider_d_scores = (
        np.bincount(image, of_kind[num_images:], minlength=num_images) * scale for of_kind in similarity
    )
    return cider_scores, cider_d_scores


def _cider(predictions, references, document_frequencies, tokenize: bool, per_sample: bool, which: int):
    check_pairs(predictions, references)
    if tokenize:
        predictions, references = ptb_tokenize(predictions), [ptb_tokenize(texts) for texts in references]
    scores = cider_of_tokens(predictions, references, document_frequencies)[which]
    return scores if per_sample else float(scores.mean())


def cider(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: bool = True,
    per_sample: bool = False,
) -> float | np.ndarray:
    """Plain CIDEr: no clipping, no length penalty, times 10. The "CIDEr" of the COCO tool is `cider_d`.

    references: one list of strings per prediction.
    document_frequencies: by default those of `references`, as in the COCO protocol: a score then depends on all images
        scored together, and one single image scores 0 (every n-gram is in every image).
    tokenize: False for text that is tokenised already (words between blanks).
    per_sample: return the array (n,) in the place of its mean.

    Raises `TypeError` and `ValueError` for strings in the place of lists, empty reference lists, and lists of unequal
    length.
    """
    return _cider(predictions, references, document_frequencies, tokenize, per_sample, which=0)


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: bool = True,
    per_sample: bool = False,
) -> float | np.ndarray:
    """CIDEr-D, which the COCO tool prints as "CIDEr": clipped weights and a Gaussian length penalty, times 10.

    Arguments, errors and the case of one single image: as for `cider`. Papers quote 100 times this value (1.277 is
    "127.7").
    """
    return _cider(predictions, references, document_frequencies, tokenize, per_sample, which=1)
