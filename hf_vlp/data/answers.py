"""Answers as classes: the vocabulary of a question-answering head, and the soft labels it is trained on.

The protocol of VQA v2 as VLMo and its predecessors use it (arXiv 2111.02358):

* **Vocabulary.** The `multiple_choice_answer` of every question is normalised (`hf_vlp.metrics.vqa.normalize_answer`);
  those that occur nine times or more are kept and numbered by their first appearance: train first, then validation,
  each in the order of its file. VQA v2 gives 3129.
* **Soft labels.** An answer that n of ten annotators gave has the score 0, 0.3, 0.6, 0.9, 1 for n = 0, 1, 2, 3, 4 and
  more. A question with one answer in all (easy-VQA, DAQUAR, scenes) has nobody to disagree: its answer has score 1.
* Questions with no answer in the vocabulary are dropped, and counted.

**The original's quirk**: it looks the annotators' answers up as they were written. "a dog" earns nothing for "dog",
and more questions are dropped. `normalize_raw_answers=False` does the same; the default normalises them.

No vocabulary comes with the package. The order of the labels belongs to a checkpoint, and the published VQA files do
not contain it: make it from the annotation files of VQA v2 that they were trained on. Lists of 3129 answers published
with other models (LXMERT's, for one) have **another order**, with which a VLMo checkpoint would answer nonsense.

```python
vocabulary = build_answer_vocabulary([*train["annotations"], *val["annotations"]])
soft_labels = make_soft_labels(train, vocabulary)
config = VlmoConfig(id2label=vocabulary.id2label, label2id=vocabulary.label2id)
```
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers.utils import logging

from hf_vlp.metrics.vqa import human_answers, list_annotations, normalize_answer

logger = logging.get_logger(__name__)

_FORMAT = "hf_vlp.answer_vocabulary"
_SCORES = (0.0, 0.3, 0.6, 0.9, 1.0)


class AnswerVocabulary:
    """Answers in the order of their labels.

    answers: different strings, at least one.

    ```python
    >>> vocabulary = AnswerVocabulary(["yes", "no", "2"])
    >>> len(vocabulary), "maybe" in vocabulary, vocabulary.label2id["no"], vocabulary.decode([2, 0])
    (3, False, 1, ['2', 'yes'])

    ```
    """

    def __init__(self, answers: Iterable[str]):
        if isinstance(answers, str):
            raise TypeError(f"`answers` must be a list of strings, got one string: {answers!r:.80}")
        self.answers = tuple(answers)
        if not self.answers:
            raise ValueError("an answer vocabulary needs at least one answer, got none")
        wrong = next((answer for answer in self.answers if not isinstance(answer, str)), None)
        if wrong is not None:
            raise TypeError(f"answers must be strings, got {type(wrong).__name__}: {wrong!r:.80}")
        self.label2id = {answer: label for label, answer in enumerate(self.answers)}
        if len(self.label2id) < len(self.answers):
            double = next(answer for answer, count in Counter(self.answers).items() if count > 1)
            raise ValueError(f"the answer {double!r} has several labels: every answer may occur once")

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.answers))

    @classmethod
    def from_config(cls, config) -> "AnswerVocabulary":
        """The vocabulary in a model's config. Raises `ValueError` when its `id2label` only has made-up names."""
        labels = {int(label): answer for label, answer in (config.id2label or {}).items()}
        if sorted(labels) != list(range(len(labels))):
            raise ValueError(f"`config.id2label` must number its {len(labels)} answers from 0 without gaps")
        if all(answer == f"LABEL_{label}" for label, answer in labels.items()):
            raise ValueError(
                f"`config.id2label` has {len(labels)} labels without names (LABEL_0 ...): the checkpoint does not say "
                f"which answers they are. Set `id2label` and `label2id` from the vocabulary it was trained with"
            )
        return cls(labels[label] for label in range(len(labels)))

    def decode(self, labels: Iterable[int], *, unknown: str | None = None) -> list[str]:
        """The answers of labels (whole numbers, a tensor). `unknown` stands for labels the vocabulary does not have
        (the original answers "unknown"); without it they raise `ValueError`."""
        answers = []
        for label in map(int, labels):
            if 0 <= label < len(self.answers):
                answers.append(self.answers[label])
            elif unknown is not None:
                answers.append(unknown)
            else:
                raise ValueError(f"label {label} is none of the {len(self.answers)} of the vocabulary")
        return answers

    def save(self, path: str | os.PathLike) -> Path:
        """Write JSON; an existing file is replaced by a complete one or not at all."""
        from hf_vlp.evaluation import write_json  # brings torch and accelerate

        return write_json(path, {"format": _FORMAT, "version": 1, "answers": list(self.answers)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "AnswerVocabulary":
        """Read what `save` wrote, or a plain JSON list of answers in label order."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON or is cut short: {error}") from error
        if isinstance(content, Mapping) and content.get("format") == _FORMAT:
            if content.get("version") != 1:
                raise ValueError(f"{path} has version {content.get('version')!r}; this release reads version 1")
            content = content.get("answers")
        if not isinstance(content, list):
            raise ValueError(
                f"{path} is no answer vocabulary: expected what `AnswerVocabulary.save` writes, or a list of answers"
            )
        try:
            return cls(content)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error

    def __len__(self) -> int:
        return len(self.answers)

    def __contains__(self, answer: str) -> bool:
        return answer in self.label2id

    def __iter__(self):
        return iter(self.answers)

    def __eq__(self, other) -> bool:
        return isinstance(other, AnswerVocabulary) and self.answers == other.answers

    def __hash__(self) -> int:
        return hash(self.answers)

    def __repr__(self) -> str:
        return f"AnswerVocabulary({len(self)} answers: {', '.join(map(repr, self.answers[:4]))}, ...)"


class SoftLabel(NamedTuple):
    """Labels of one question, in the order its annotators first named them, and their scores."""

    labels: list[int]
    scores: list[float]


class SoftLabels(NamedTuple):
    """Labels of the questions that have any, and how many had none."""

    by_question: dict[Any, SoftLabel]
    num_dropped: int


def build_answer_vocabulary(
    annotations: Mapping[str, Any] | Iterable[Mapping[str, Any]], min_occurrences: int = 9
) -> AnswerVocabulary:
    """The answers given most often, numbered by first appearance.

    annotations: content of a VQA annotation file or a list of annotations (train, then validation, in file order). The
        `multiple_choice_answer` counts; where there is none, the only one of `answers`.
    min_occurrences: how often a normalised answer must occur; 1 keeps all.

    Raises `ValueError` for annotations without a single answer, and when no answer occurs often enough.
    """
    if not isinstance(min_occurrences, int) or min_occurrences < 1:
        raise ValueError(f"`min_occurrences` must be a whole number from 1 on, got {min_occurrences!r}")
    counts: Counter[str] = Counter()
    for annotation in list_annotations(annotations):
        answer = annotation.get("multiple_choice_answer")
        if answer is None:
            answers = human_answers(annotation)
            if len(answers) > 1:
                raise ValueError(
                    f"question {annotation['question_id']!r} has {len(answers)} answers and no "
                    f"`multiple_choice_answer` to say which of them counts"
                )
            answer = answers[0]
        counts[normalize_answer(answer)] += 1
    kept = [answer for answer, count in counts.items() if count >= min_occurrences]
    if not kept:
        raise ValueError(
            f"none of the {len(counts)} different answers to {counts.total()} questions occurs {min_occurrences} "
            f"times or more: lower `min_occurrences`"
        )
    return AnswerVocabulary(kept)


def soft_score(count: int) -> float:
    """The score of an answer that `count` of ten annotators gave: 0, 0.3, 0.6, 0.9, and 1 from four on."""
    if count < 0:
        raise ValueError(f"`count` must not be negative, got {count}")
    return _SCORES[min(count, len(_SCORES) - 1)]


def soft_scores(
    answers: Sequence[str], vocabulary: AnswerVocabulary, *, normalize_raw_answers: bool = True
) -> SoftLabel:
    """Labels and scores of one question; both lists are empty when the vocabulary has none of its answers.

    answers: the annotators' answers as they wrote them.
    normalize_raw_answers: answers that the vocabulary does not have are looked up in their normalised form; False
        does without, which is the original's quirk.
    """
    if normalize_raw_answers:
        # Vocabularies that were not made here may hold forms that normalisation changes, such as "t-shirt".
        answers = [answer if answer in vocabulary else normalize_answer(answer) for answer in answers]
    counts = Counter(answers)
    known = [answer for answer in counts if answer in vocabulary]
    scores = [1.0 if len(answers) == 1 else soft_score(counts[answer]) for answer in known]
    return SoftLabel([vocabulary.label2id[answer] for answer in known], scores)


def make_soft_labels(
    annotations: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    vocabulary: AnswerVocabulary,
    *,
    normalize_raw_answers: bool = True,
) -> SoftLabels:
    """Soft labels of every question that has one, by `question_id`; the others are counted, and the count is logged.

    annotations: content of a VQA annotation file, or a list of dicts with `question_id` and `answers` (strings, or
        dicts with the key "answer").
    normalize_raw_answers: see `soft_scores`.

    Raises `ValueError` for a question without answers, a `question_id` that occurs twice, and when none is left.
    """
    by_question: dict[Any, SoftLabel] = {}
    seen = set()
    for annotation in list_annotations(annotations):
        identity = annotation["question_id"]
        if identity in seen:
            raise ValueError(f"question_id {identity!r} occurs twice in the annotations")
        seen.add(identity)
        label = soft_scores(human_answers(annotation), vocabulary, normalize_raw_answers=normalize_raw_answers)
        if label.labels:
            by_question[identity] = label
    num_dropped = len(seen) - len(by_question)
    if not by_question:
        raise ValueError(f"none of {len(seen)} questions has an answer that is among the {len(vocabulary)} known ones")
    if num_dropped:
        logger.warning(
            f"{num_dropped} of {len(seen)} questions were dropped: none of their answers is in the vocabulary."
        )
    return SoftLabels(by_question, num_dropped)


__all__ = [
    "AnswerVocabulary",
    "SoftLabel",
    "SoftLabels",
    "build_answer_vocabulary",
    "make_soft_labels",
    "soft_score",
    "soft_scores",
]
