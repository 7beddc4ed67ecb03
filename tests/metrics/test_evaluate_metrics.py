"""The `evaluate.Metric` classes: made with no network, same numbers as the functions, batches, options, bad input."""

import subprocess
import sys

import numpy as np
import pytest

import hf_vlp.metrics
from hf_vlp.metrics import DocumentFrequencies, caption_metrics

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
