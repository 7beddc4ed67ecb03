"""Metrics of answers, retrieval and statements on the files of `$HF_VLP_DATA` or `../shared/data`.

Covered: every normalisation and accuracy of `vqa_eval.json`; every rank and recall of `retrieval_80x400.json`; that
the identifiers of NLVR2 and NLVR group the rows of one sentence, whatever their splits hold; that published lists of
answers load. Expected numbers come from the files, so that another folder of the same layout passes unchanged.
"""

import json
import os
from pathlib import Path

import pytest
import torch

from hf_vlp.data.answers import AnswerVocabulary
from hf_vlp.metrics.nlvr2 import nlvr2_metrics, nlvr_metrics
from hf_vlp.metrics.retrieval import ranks_of_scores, recall_metrics
from hf_vlp.metrics.vqa import evaluate_vqa, normalize_answer

ROOT = Path(os.environ.get("HF_VLP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def find(pattern):
    paths = sorted(ROOT.glob(pattern))
    if not paths:
        pytest.skip(f"no {ROOT / pattern}; set HF_VLP_DATA to the folder with the real data")
    return paths


def read(name):
    return json.loads(find(name)[0].read_text(encoding="utf-8"))


def columns(path, *names):
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path, columns=list(names)).to_pydict()


def test_every_normalisation_is_reproduced():
    pairs = read("metric_fixtures/vqa_eval.json")["normalisation"]
    assert [(raw, want, normalize_answer(raw)) for raw, want in pairs if normalize_answer(raw) != want] == []


def test_every_accuracy_is_reproduced():
    content = read("metric_fixtures/vqa_eval.json")["accuracy"]
    items = content["items"]
    scores = evaluate_vqa(
        items, [{"question_id": item["question_id"], "answer": item["prediction"]} for item in items]
    )
    assert scores.pop("perQuestion") == {item["question_id"]: item["expected_accuracy"] for item in items}
    assert scores == content["expected"]


@pytest.mark.parametrize("chunk_size", [33, 512])
def test_ranks_and_recalls_are_reproduced(chunk_size):
    content = read("metric_fixtures/retrieval_80x400.json")
    scores = torch.tensor(content["similarity"], dtype=torch.float64)
    owners = [text // content["captions_per_image"] for text in range(scores.shape[1])]
    ranks = ranks_of_scores(scores, owners, chunk_size=chunk_size)
    assert (ranks.image_to_text - 1).tolist() == content["ranks_image_to_text"]
    assert (ranks.text_to_image - 1).tolist() == content["ranks_text_to_image"]
    metrics, expected = recall_metrics(ranks), content["expected"]
    for direction in ("image_to_text", "text_to_image"):
        for name, value in expected[direction].items():
            if name.startswith("R@"):
                assert 100 * metrics[f"{direction}_recall_at_{name[2:]}"] == pytest.approx(value), (direction, name)
            else:
                assert metrics[f"{direction}_{name}"] == pytest.approx(value), (direction, name)
    assert metrics["rsum"] == pytest.approx(expected["rsum"])
    assert 100 * metrics["mean_recall"] == pytest.approx(expected["mean_recall"])


def always_true(metrics, labels, sentences, **rows):
    """Accuracy of "true" is the share of the label; its consistency is that of the sentences that are always true."""
    scores = metrics([True] * len(labels), labels, **rows)
    assert scores["accuracy"] == pytest.approx(sum(labels) / len(labels))
    groups = {}
    for sentence, label in zip(sentences, labels):
        groups.setdefault(sentence, []).append(label)
    assert scores["consistency"] == pytest.approx(sum(map(all, groups.values())) / len(groups))


def test_rows_of_a_sentence_are_grouped_in_nlvr2():
    for path in find("nlvr2_text/*.parquet"):
        rows = columns(path, "identifier", "sentence", "label")
        # a sentence written for two sets of pictures is two sentences
        sentences = [
            (identifier.split("-")[1], sentence) for identifier, sentence in zip(rows["identifier"], rows["sentence"])
        ]
        always_true(nlvr2_metrics, rows["label"], sentences, identifiers=rows["identifier"])


def test_rows_of_a_sentence_are_grouped_in_nlvr():
    for path in find("nlvr_v1/*.parquet"):
        rows = columns(path, "example_id", "permutation", "sentence", "label")
        sentences = [(name.split("-")[1], text) for name, text in zip(rows["example_id"], rows["sentence"])]
        options = {"identifiers": rows["example_id"], "permutations": rows["permutation"]}
        always_true(nlvr_metrics, rows["label"], sentences, **options)


def test_published_lists_of_answers_are_vocabularies():
    for path in find("answer_vocabularies/*.json"):
        vocabulary = AnswerVocabulary.load(path)
        assert vocabulary.decode(range(len(vocabulary))) == json.loads(path.read_text(encoding="utf-8"))
