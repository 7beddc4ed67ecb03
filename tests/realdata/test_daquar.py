"""DAQUAR as `vl_beit_daquar.yaml` reads it, from `$HF_VLP_DATA` or `../shared/data`; skipped when it is absent.

Covers: the answers that a head is made for, answers of several parts, the baselines that the evaluation states.
"""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from torch import nn

from hf_vlp.data.answers import AnswerVocabulary
from hf_vlp.data.sources import load_records
from hf_vlp.evaluation import evaluate_model
from hf_vlp.metrics.vqa import normalize_answer
from hf_vlp.pretraining.arguments import parse_arguments
from hf_vlp.pretraining.build import find_labels

CONFIG = Path(__file__).parents[2] / "examples" / "configs" / "vl_beit_daquar.yaml"
ROOT = Path(os.environ.get("HF_VLP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data") / "daquar"

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no {ROOT}; set HF_VLP_DATA to the folder with real data")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    datasets.disable_progress_bars()
    folder = tmp_path_factory.mktemp("daquar")
    flags = {"data.source": str(ROOT), "data.dataset_cache": str(folder), "output_dir": str(folder), "use_cpu": True}
    return parse_arguments(CONFIG, flags)


@pytest.fixture(scope="module")
def train(run):
    return load_records(run.data, "train")


@pytest.fixture(scope="module")
def answers(run, train) -> list[str]:
    """Every answer of the training part; the recipe leaves out those that it has once."""
    model = dataclasses.replace(run.model, min_answer_count=1)
    return find_labels(dataclasses.replace(run, model=model), train)


def test_answers_of_train_cover_most_of_test(run, train, answers):
    assert len(answers) == len(set(answers)) == 967  # 968 as they are written, two of which are normalised alike
    frequent = find_labels(run, train)
    assert len(frequent) == 384
    test = [row["answers"] for row in load_records(run.data, "test").select_columns(["answers"])]
    for known, share in ((answers, 0.905), (frequent, 0.873)):
        found = sum(normalize_answer(answer) in known for (answer,) in test) / len(test)
        assert found == pytest.approx(share, abs=5e-4)


def test_an_answer_of_several_parts_is_one_label(train, answers):
    several = {answer for (answer,) in train.select_columns(["answers"])["answers"] if "," in answer}
    assert len(several) > 100
    vocabulary = AnswerVocabulary(answers)
    assert all(normalize_answer(answer) in vocabulary for answer in several)


class FirstAnswer(nn.Module):
    """Stands for a model that looks at nothing."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, answers):
        super().__init__()
        named = dict(enumerate(answers))
        self.config = SimpleNamespace(
            id2label=named, label2id={name: label for label, name in named.items()}, num_labels=len(named)
        )

    def forward(self, pixel_values):
        return SimpleNamespace(logits=torch.eye(1, self.config.num_labels).expand(len(pixel_values), -1))


def process(text, images, **options):
    return {"pixel_values": torch.zeros(len(images), 1)}


def test_evaluation_states_the_known_baselines(run, train, answers):
    test = load_records(run.data, "test")
    scores = evaluate_model(
        FirstAnswer(answers),
        process,
        test,
        "visual_question_answering",
        training_records=train,
        batch_size=100,
        progress=False,
    )
    assert scores["samples"] == len(test) == 4980
    assert scores["constant_exact_match"] == pytest.approx(0.0484, abs=5e-5)
    # A question that train does not have gets the constant; 19.2 % guess by its first two words instead.
    assert scores["question_only_exact_match"] == pytest.approx(0.1745, abs=5e-5)
