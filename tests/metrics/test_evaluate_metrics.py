"""The `evaluate.Metric` classes: made with no network, same numbers as the functions, batches, options, bad input.

And that the package finds all its names, and imports nothing heavy before it is asked for.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch

import hf_vlp.metrics
from hf_vlp.metrics import DocumentFrequencies, caption_metrics
from hf_vlp.metrics.classification import classification_accuracy
from hf_vlp.metrics.nlvr2 import nlvr2_metrics
from hf_vlp.metrics.retrieval import ranks_of_embeddings, recall_metrics
from hf_vlp.metrics.vqa import vqa_accuracy, vqa_exact_match

PREDICTIONS = ["a dog runs", "It's a red ball!", "two cats"]
REFERENCES = [["a dog is running", "the dog runs"], ["it's a red ball"], ["two cats sleep", "cats", "two small cats"]]
CLASSES = {
    "BleuMetric": ("bleu",),
    "RougeLMetric": ("rouge_l",),
    "CiderMetric": ("cider",),
    "CiderDMetric": ("cider_d",),
    "ExactMatchMetric": ("exact_match",),
    "CaptionMetrics": ("bleu", "rouge_l", "cider", "cider_d"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    # evaluate keeps the added batches in files; they do not belong in the home of whoever runs the tests
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)


def make(name, tmp_path):
    return getattr(hf_vlp.metrics, name)(cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", CLASSES)
def test_compute_gives_what_the_function_gives(name, tmp_path):
    computed = make(name, tmp_path).compute(predictions=PREDICTIONS, references=REFERENCES)
    assert computed == caption_metrics(PREDICTIONS, REFERENCES, CLASSES[name])


@pytest.mark.parametrize("name", CLASSES)
def test_batches_add_up(name, tmp_path):
    metric = make(name, tmp_path)
    metric.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    metric.add(prediction=PREDICTIONS[2], reference=REFERENCES[2])
    assert metric.compute() == caption_metrics(PREDICTIONS, REFERENCES, CLASSES[name])


def test_a_metric_can_be_used_again(tmp_path):
    metric = make("CiderDMetric", tmp_path)
    first = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == first


def test_options_reach_the_functions(tmp_path):
    frequencies = DocumentFrequencies.build([["a dog"], ["a ball"], ["two cats"]])
    computed = make("CaptionMetrics", tmp_path).compute(
        predictions=PREDICTIONS,
        references=REFERENCES,
        metrics=("cider_d", "exact_match"),
        tokenize=False,
        per_sample=True,
        document_frequencies=frequencies,
    )
    options = {"document_frequencies": frequencies, "tokenize": False}
    expected = caption_metrics(PREDICTIONS, REFERENCES, ("cider_d", "exact_match"), **options)
    single = caption_metrics(PREDICTIONS, REFERENCES, ("cider_d", "exact_match"), per_sample=True, **options)
    assert set(computed) == {"cider_d", "exact_match", "cider_d_per_sample", "exact_match_per_sample"}
    assert {name: computed[name] for name in expected} == expected
    for name, values in single.items():
        np.testing.assert_array_equal(computed[f"{name}_per_sample"], values)


ANSWERS = ["The dog", "two", "red"]
HUMAN_ANSWERS = [["dog"] * 9 + ["cat"], ["3"] * 8 + ["2"] * 2, ["red"] * 10]


@pytest.mark.parametrize(
    "name, key, function",
    [("VqaAccuracyMetric", "vqa_accuracy", vqa_accuracy), ("VqaExactMatchMetric", "exact_match", vqa_exact_match)],
)
def test_answers_are_scored_as_by_the_function(name, key, function, tmp_path):
    metric = make(name, tmp_path)
    metric.add_batch(predictions=ANSWERS[:1], references=HUMAN_ANSWERS[:1])
    metric.add_batch(predictions=ANSWERS[1:], references=HUMAN_ANSWERS[1:])
    single = function(ANSWERS, HUMAN_ANSWERS, per_sample=True).tolist()
    assert metric.compute(per_sample=True) == {
        key: function(ANSWERS, HUMAN_ANSWERS),
        f"{key}_per_sample": single,
    }


@pytest.mark.parametrize("kind", [int, bool, torch.tensor, np.int64])
def test_statements_are_scored_as_by_the_function(kind, tmp_path):
    identifiers = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1"]
    predictions, labels = [1, 0, 1], [1, 1, 1]
    computed = make("Nlvr2Metric", tmp_path).compute(
        predictions=[kind(value) for value in predictions],
        references=[kind(value) for value in labels],
        identifiers=identifiers,
    )
    assert computed == nlvr2_metrics(predictions, labels, identifiers)


def test_probabilities_are_no_judgements(tmp_path):
    with pytest.raises(ValueError, match=r"got 0\.75"):
        make("Nlvr2Metric", tmp_path).compute(predictions=[0.75], references=[1], identifiers=["dev-1-0-0"])


@pytest.mark.parametrize("kind", [int, torch.tensor, np.int64, str])
def test_classes_are_scored_as_by_the_function(kind, tmp_path):
    predictions, labels = [[kind(value) for value in values] for values in ([3, 1, 0, 12], [3, 1, 2, 1])]
    metric = make("ClassificationAccuracyMetric", tmp_path)
    metric.add_batch(predictions=predictions[:1], references=labels[:1])
    metric.add_batch(predictions=predictions[1:], references=labels[1:])
    assert metric.compute() == classification_accuracy(predictions, labels) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    "predictions, references, error, message",
    [
        ([0.75], [1], TypeError, r"predictions\[0\].*0\.75.*arg-maximum"),
        ([[0.1, 0.9]], [1], TypeError, r"predictions\[0\]"),
        ("red", ["red"], TypeError, "list with one class per row, got str"),
        ([1, 2], ["1", "2"], TypeError, "names of classes .* beside numbers"),
        ([1, "2"], [1, "2"], TypeError, "names of classes .* beside numbers"),
        ([1, 2], [1], ValueError, "2 predictions and 1 references"),
        ([], [], ValueError, "no predictions"),
    ],
)
def test_what_is_no_class_is_refused(predictions, references, error, message):
    with pytest.raises(error, match=message):
        classification_accuracy(predictions, references)


@pytest.mark.parametrize("ids", [[7, 5, 7, 6], ["b", "a", "b", "c"]])
def test_retrieval_takes_one_row_per_text(ids, tmp_path):
    texts = torch.randn(4, 3)
    of_id = {identity: torch.randn(3) for identity in ids}
    images = torch.stack([of_id[identity] for identity in ids])
    metric = make("RetrievalRecallMetric", tmp_path)
    metric.add_batch(image_embeds=images[:3].tolist(), text_embeds=texts[:3].numpy(), image_ids=ids[:3])
    metric.add_batch(image_embeds=images[3:].tolist(), text_embeds=texts[3:].numpy(), image_ids=ids[3:])
    expected = recall_metrics(ranks_of_embeddings(torch.stack(list(of_id.values())), texts, ids, list(of_id)), (1, 2))
    assert metric.compute(ks=(1, 2)) == expected


def test_names_are_found_in_the_package():
    for name in hf_vlp.metrics.__all__:
        found = getattr(hf_vlp.metrics, name)
        assert name == "CAPTION_METRICS" or found.__name__ == name


def test_the_package_imports_neither_torch_nor_evaluate():
    code = "import sys, hf_vlp.metrics; assert not {'torch', 'evaluate', 'datasets'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_references_that_are_no_lists_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a list"):
        make("BleuMetric", tmp_path).compute(predictions=PREDICTIONS, references=["a", "b", "c"])


def test_metrics_are_made_with_no_network():
    code = """
import socket

def refuse(*args, **kwargs):
    raise AssertionError("no network, please")

socket.socket.connect = refuse
socket.getaddrinfo = refuse
import tempfile
from hf_vlp.metrics import CiderDMetric
with tempfile.TemporaryDirectory() as folder:
    print(CiderDMetric(cache_dir=folder).compute(predictions=["a", "b"], references=[["a"], ["b"]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cider_d" in done.stdout


def test_an_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="CiderX"):
        hf_vlp.metrics.CiderX  # noqa: B018
