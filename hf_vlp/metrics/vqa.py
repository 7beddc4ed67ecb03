"""Accuracy of answers to questions about pictures, as the VQA evaluation computes it, and its submission files.

Goyal et al., "Making the V in VQA Matter" (CVPR 2017), https://arxiv.org/abs/1612.00837; the protocol is that of the
evaluation tool at https://visualqa.org/evaluation.html. Every number of `tests/fixtures/metrics/vqa_eval.json` is
reproduced, the tool's oddities included:

* A question has ten human answers. Each is left out in turn, the prediction earns min(1, c / 3) for its c equals among
  the other nine, and the accuracy is the mean of the ten: 0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 equals in all.
* Answers are normalised (`normalize_answer`) only where the ten are not all the same; otherwise the prediction must
  match them as they are written.

The functions return fractions; only `evaluate_vqa` prints percentages, as the tool does. With one answer per question
(easy-VQA, DAQUAR) leaving it out leaves nothing: use `vqa_exact_match`.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_vlp.metrics.checks import check_pairs

_PUNCTUATION = ';/[]"{}()=+\\_->@<`,?!'
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
# The tool's pattern means to keep decimal points, and keeps every period before a digit.
_PERIOD = re.compile(r"\.(?!\d)")
# The tool passes a flag of `re` in the place of the count: no more than this many periods go.
_MAX_PERIODS = 32
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = {
    word: str(number) for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
# Pairs "written meant". The tool's table also has keys with capitals, which never match words in lower case.
_PAIRS = """
aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've couldnt've couldn't've
didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've hadn'tve hadn't've hasnt hasn't havent haven't
hed he'd hed've he'd've he'dve he'd've hes he's howd how'd howll how'll hows how's isnt isn't itd it'd itd've it'd've
it'dve it'd've itll it'll maam ma'am mightnt mightn't mightnt've mightn't've mightn'tve mightn't've mightve might've
mustnt mustn't mustve must've neednt needn't notve not've oclock o'clock oughtnt oughtn't ow's'at 'ow's'at
'ows'at 'ow's'at 'ow'sat 'ow's'at shant shan't shed've she'd've she'dve she'd've shouldve should've shouldnt shouldn't
shouldnt've shouldn't've shouldn'tve shouldn't've somebody'd somebodyd somebodyd've somebody'd've
somebody'dve somebody'd've somebodyll somebody'll somebodys somebody's someoned someone'd someoned've someone'd've
someone'dve someone'd've someonell someone'll someones someone's somethingd something'd somethingd've something'd've
something'dve something'd've somethingll something'll thats that's thered there'd thered've there'd've
there'dve there'd've therere there're theres there's theyd they'd theyd've they'd've they'dve they'd've theyll they'll
theyre they're theyve they've twas 'twas wasnt wasn't wed've we'd've we'dve we'd've weve we've werent weren't
whatll what'll whatre what're whats what's whatve what've whens when's whered where'd wheres where's whereve where've
whod who'd whod've who'd've who'dve who'd've wholl who'll whos who's whove who've whyll why'll whyre why're whys why's
wont won't wouldve would've wouldnt wouldn't wouldnt've wouldn't've wouldn'tve wouldn't've yall y'all yall'll y'all'll
y'allll y'all'll yall'd've y'all'd've y'alld've y'all'd've y'all'dve y'all'd've youd you'd youd've you'd've
you'dve you'd've youll you'll youre you're youve you've
""".split()
_CONTRACTIONS = dict(zip(_PAIRS[::2], _PAIRS[1::2]))
_MIN_ANSWERS = 4  # with fewer a prediction that all annotators gave would not reach 1


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)  # VQA v2 has some 200,000 different raw answers among its six million
def normalize_answer(text: str) -> str:
    """An answer as the VQA evaluation compares it: lower case, no articles, digits, apostrophes, little punctuation.

    A punctuation mark becomes a blank, but vanishes where one of its kind touches a blank or the answer has a number
    like 1,000; periods go unless a digit follows. May return "".

    ```python
    >>> normalize_answer("The two T-shirts."), normalize_answer("dont know"), normalize_answer("1,000")
    ('2 t shirts', "don't know", '1000')

    ```
    """
    text = _clean(text)
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        if mark in text:
            vanishes = has_number or f"{mark} " in text or f" {mark}" in text
            result = result.replace(mark, "" if vanishes else " ")
    words = (_NUMBERS.get(word, word) for word in _PERIOD.sub("", result, count=_MAX_PERIODS).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _total(values: Sequence[float]) -> float:
    # Plainly from left to right, as the tool adds (`sum` has compensated for rounding since Python 3.12): an accuracy
    # half-way between two decimals is then rounded to the same side.
    return float(np.cumsum(values)[-1])


@lru_cache(maxsize=1 << 14)
def _leave_one_out(matches: tuple[bool, ...]) -> float:
    count = sum(matches)
    return _total([min(1.0, (count - own) / 3) for own in matches]) / len(matches)


def _accuracies(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    accuracies = []
    for index, (prediction, answers) in enumerate(zip(predictions, references)):
        if len(answers) < _MIN_ANSWERS:
            raise ValueError(
                f"`references[{index}]` has {len(answers)} answers: the VQA accuracy compares a prediction with the "
                f"answers of ten annotators, {_MIN_ANSWERS} at least. Use `vqa_exact_match` for fewer"
            )
        prediction, answers = _clean(prediction), [_clean(answer) for answer in answers]
        if len(set(answers)) > 1:
            prediction, answers = normalize_answer(prediction), [normalize_answer(answer) for answer in answers]
        accuracies.append(_leave_one_out(tuple(answer == prediction for answer in answers)))
    return accuracies


def vqa_accuracy(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, per_sample: bool = False
) -> float | np.ndarray:
    """The VQA accuracy, from 0 to 1.

    references: the annotators' answers as they wrote them, one list per prediction, ten in VQA v1 and v2.
    per_sample: an array (n,) with the accuracy of each question.

    Raises `TypeError` and `ValueError` for strings in the place of lists, lists of unequal length, no prediction at
    all, and questions with fewer than four answers.

    ```python
    >>> vqa_accuracy(["Two."], [["two", "2", "3", "3", "3", "3", "3", "3", "3", "3"]])
    0.6

    ```
    """
    check_pairs(predictions, references)
    accuracies = _accuracies(predictions, references)
    return np.array(accuracies) if per_sample else _total(accuracies) / len(accuracies)


def vqa_exact_match(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, per_sample: bool = False
) -> float | np.ndarray:
    """Share of predictions equal to one of their answers, both normalised; for data with one answer per question.

    An answer of which nothing is left ("the") matches another such answer. Arguments and errors: as for
    `vqa_accuracy`, with any number of answers.
    """
    check_pairs(predictions, references)
    matches = [
        normalize_answer(prediction) in map(normalize_answer, answers)
        for prediction, answers in zip(predictions, references)
    ]
    return np.array(matches) if per_sample else sum(matches) / len(matches)


def _grouped(values: Sequence[float], groups: Sequence[str]) -> dict[str, list[float]]:
    members: dict[str, list[float]] = {}
    for value, group in zip(values, groups):
        members.setdefault(group, []).append(value)
    return members


def vqa_metrics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    question_types: Sequence[str] | None = None,
    answer_types: Sequence[str] | None = None,
) -> dict[str, Any]:
    """`vqa_accuracy`, with `per_question_type` and `per_answer_type` (dicts of fractions) where types are given.

    question_types, answer_types: one per prediction ("how many", "number"), as in the annotation files of VQA.
    Errors: as for `vqa_accuracy`, and `ValueError` for types of another number.
    """
    check_pairs(predictions, references)
    accuracies = _accuracies(predictions, references)
    metrics: dict[str, Any] = {"vqa_accuracy": _total(accuracies) / len(accuracies)}
    for name, types in (("question_type", question_types), ("answer_type", answer_types)):
        if types is not None:
            if len(types) != len(predictions):
                raise ValueError(f"got {len(predictions)} predictions and {len(types)} `{name}s`: pass one for each")
            groups = _grouped(accuracies, types)
            metrics[f"per_{name}"] = {group: _total(part) / len(part) for group, part in groups.items()}
    return metrics


def list_annotations(annotations: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The annotations of a VQA file: its content `{"annotations": [...]}`, or the list itself."""
    if isinstance(annotations, Mapping):
        if "annotations" not in annotations:
            raise ValueError(
                f"`annotations` must be a list, or the content of a VQA annotation file with the key 'annotations'; "
                f"got a dict with the keys {sorted(map(str, annotations))[:8]}"
            )
        annotations = annotations["annotations"]
    if isinstance(annotations, str | bytes):
        raise TypeError("`annotations` must be a list of dicts, got a string: read the JSON file first")
    annotations = list(annotations)
    for index, annotation in enumerate(annotations):
        if not isinstance(annotation, Mapping) or "question_id" not in annotation:
            raise ValueError(f"`annotations[{index}]` must be a dict with a `question_id`, got {annotation!r:.80}")
    return annotations


def human_answers(annotation: Mapping[str, Any]) -> list[str]:
    """The answers of a question's annotators, from `answers` (strings, or VQA's dicts) or else a single `answer`."""
    answers = annotation.get("answers")
    if answers is None:
        answers = [annotation["answer"]] if annotation.get("answer") is not None else []
    if isinstance(answers, str):
        raise TypeError(f"question {annotation.get('question_id')!r}: `answers` must be a list, got {answers!r:.80}")
    texts = [answer.get("answer") if isinstance(answer, Mapping) else answer for answer in answers]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"question {annotation.get('question_id')!r} needs `answers`: a list of strings, or of dicts with the key "
            f"'answer'; got {answers!r:.80}"
        )
    return texts


def _by_question(entries: Iterable[Mapping[str, Any]], what: str) -> dict[Any, Mapping[str, Any]]:
    found: dict[Any, Mapping[str, Any]] = {}
    for entry in entries:
        if entry["question_id"] in found:
            raise ValueError(f"question_id {entry['question_id']!r} occurs twice in the {what}")
        found[entry["question_id"]] = entry
    return found


def _compare_ids(given: Iterable, wanted: Iterable) -> None:
    given, wanted = dict.fromkeys(given), dict.fromkeys(wanted)
    unknown = [identity for identity in given if identity not in wanted]
    missing = [identity for identity in wanted if identity not in given]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(given)} answers belong to no question, the first has question_id {unknown[0]!r}; "
            f"the questions' are like {next(iter(wanted), None)!r}. Is it another split, or a text for a number?"
        )
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} questions have no answer, the first is question_id {missing[0]!r}: "
            f"every question of the split needs one"
        )


def evaluate_vqa(
    annotations: Mapping[str, Any] | Iterable[Mapping[str, Any]],
    results: str | os.PathLike | Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Score a submission against annotations, in the form of the VQA tool: **percentages**, rounded to two decimals.

    annotations: content of a VQA annotation file, or a list of dicts with `question_id`, `answers` and, for the
        breakdown, `question_type` and `answer_type`.
    results: what `write_vqa_submission` writes: its path or the list.

    Returns `{"overall": ..., "perQuestionType": {...}, "perAnswerType": {...}, "perQuestion": {question_id: ...}}`;
    the breakdowns are there when every annotation has the type. Raises `ValueError` for double, unknown and missing
    question ids.
    """
    questions = _by_question(list_annotations(annotations), "annotations")
    answers = {
        entry["question_id"]: entry["answer"] for entry in check_vqa_submission(results, question_ids=questions)
    }
    types = {
        name: [annotation[name] for annotation in questions.values()]
        for name in ("question_type", "answer_type")
        if all(annotation.get(name) is not None for annotation in questions.values())
    }
    predictions = [answers[identity] for identity in questions]
    references = [human_answers(annotation) for annotation in questions.values()]
    check_pairs(predictions, references)
    accuracies = _accuracies(predictions, references)

    def percent(values: Sequence[float]) -> float:
        return round(100 * _total(values) / len(values), 2)

    scores: dict[str, Any] = {"overall": percent(accuracies)}
    for name, key in (("question_type", "perQuestionType"), ("answer_type", "perAnswerType")):
        if name in types:
            scores[key] = {group: percent(part) for group, part in _grouped(accuracies, types[name]).items()}
    scores["perQuestion"] = {identity: percent([value]) for identity, value in zip(questions, accuracies)}
    return scores


def _question_id(identity: Any) -> int | str:
    # numpy's and torch's whole numbers have `__index__`, JSON has not heard of them
    if isinstance(identity, bool) or not (isinstance(identity, str) or hasattr(identity, "__index__")):
        raise TypeError(f"a question_id must be a whole number or a string, got {identity!r:.80}")
    return identity if isinstance(identity, str) else identity.__index__()


def write_vqa_submission(
    path: str | os.PathLike, question_ids: Sequence[int | str], answers: Sequence[str], *, expected_ids=None
) -> Path:
    """Write the file that the VQA challenge's server takes: a JSON list of `{"question_id": ..., "answer": ...}`.

    expected_ids: ids of the questions of the split; then the file must answer each of them, and no other.

    An existing file is replaced by a complete one or not at all. Raises `ValueError` and `TypeError` for lists of
    unequal length and for what `check_vqa_submission` refuses; nothing is written then.
    """
    from hf_vlp.evaluation import write_json  # imports this package

    if len(question_ids) != len(answers):
        raise ValueError(f"got {len(question_ids)} question ids and {len(answers)} answers: pass one answer for each")
    entries = [
        {"question_id": _question_id(identity), "answer": answer} for identity, answer in zip(question_ids, answers)
    ]
    return write_json(path, check_vqa_submission(entries, question_ids=expected_ids))


def check_vqa_submission(
    submission: str | os.PathLike | Sequence[Mapping[str, Any]], *, question_ids: Iterable[int | str] | None = None
) -> list[Mapping[str, Any]]:
    """Read a submission (or take the list) and return its entries; raise `ValueError` with the first thing wrong.

    question_ids: ids of the questions of the split; then each must have an answer, and no other question may.
    """
    source = "the submission"
    if isinstance(submission, str | os.PathLike):
        source = str(submission)
        try:
            submission = json.loads(Path(submission).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{source} is not JSON or is cut short: {error}") from error
    if isinstance(submission, Mapping) or not isinstance(submission, Sequence):
        raise ValueError(
            f"{source} must be a list of {{'question_id': ..., 'answer': ...}}, got {type(submission).__name__}"
        )
    for index, entry in enumerate(submission):
        if not isinstance(entry, Mapping) or not {"question_id", "answer"} <= set(entry):
            raise ValueError(
                f"entry {index} of {source} must be {{'question_id': ..., 'answer': ...}}, got {entry!r:.80}"
            )
        if not isinstance(entry["answer"], str):
            raise ValueError(f"entry {index} of {source}: the answer must be a string, got {entry['answer']!r:.80}")
        if isinstance(entry["question_id"], bool) or not isinstance(entry["question_id"], int | str):
            raise ValueError(
                f"entry {index} of {source}: the question_id must be a whole number or a string, "
                f"got {entry['question_id']!r:.80}"
            )
    if not submission:
        raise ValueError(f"{source} has no answers")
    found = _by_question(submission, f"answers of {source}")
    if question_ids is not None:
        _compare_ids(found, question_ids)
    return list(submission)


__all__ = [
    "check_vqa_submission",
    "evaluate_vqa",
    "human_answers",
    "list_annotations",
    "normalize_answer",
    "vqa_accuracy",
    "vqa_exact_match",
    "vqa_metrics",
    "write_vqa_submission",
]
