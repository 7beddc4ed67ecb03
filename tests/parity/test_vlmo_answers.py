"""VLMo's answer vocabulary, soft labels and normalisation against the original's, from `vqa_labels.json` alone.

Covered: the vocabulary in label order; labels and scores of every question, with the raw answers looked up as the
original does; which questions are dropped; every `normalize` pair. `$HF_VLP_GOLDENS` names another folder.
"""

import json
import os
from pathlib import Path

import pytest

from hf_vlp.data.answers import build_answer_vocabulary, make_soft_labels
from hf_vlp.metrics.vqa import normalize_answer

FILE = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vlmo" / "vqa_labels.json"

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no goldens at {FILE}")


@pytest.fixture(scope="module")
def goldens():
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def annotations(goldens):
    return goldens["train_annotations"] + goldens["val_annotations"]


@pytest.fixture(scope="module")
def vocabulary(goldens, annotations):
    return build_answer_vocabulary(annotations, goldens["min_occurrences"])


def test_vocabulary_in_label_order(goldens, vocabulary):
    assert list(vocabulary) == goldens["vocabulary_in_label_order"]


def test_labels_and_scores_of_every_question(goldens, annotations, vocabulary):
    found = make_soft_labels(annotations, vocabulary, normalize_raw_answers=False)
    ours = {str(identity): label._asdict() for identity, label in found.by_question.items()}
    assert ours == goldens["expected"]


def test_dropped_questions_are_counted(goldens, annotations, vocabulary):
    found = make_soft_labels(annotations, vocabulary, normalize_raw_answers=False)
    assert found.num_dropped == len(annotations) - len(goldens["expected"])


def test_normalised_answers(goldens):
    wrong = [(raw, want, normalize_answer(raw)) for raw, want in goldens["normalize"] if normalize_answer(raw) != want]
    assert wrong == []


def test_every_entry_is_looked_at(goldens):
    inputs = {"train_annotations", "val_annotations", "min_occurrences"}
    assert set(goldens) == inputs | {"vocabulary_in_label_order", "expected", "normalize"}
