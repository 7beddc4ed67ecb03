"""Metrics of captions, answers, retrieval, statements and classes: plain functions, and `evaluate.Metric` classes.

What needs `torch` or `evaluate` is imported when it is first asked for.
"""

import importlib

from hf_vlp.metrics.captioning import (
    CAPTION_METRICS,
    CiderDScorer,
    DocumentFrequencies,
    bleu,
    build_document_frequencies,
    caption_metrics,
    cider,
    cider_d,
    exact_match,
    meteor,
    ptb_tokenize,
    rouge_l,
    spice,
)
from hf_vlp.metrics.classification import classification_accuracy
from hf_vlp.metrics.nlvr2 import nlvr2_metrics, nlvr_metrics
from hf_vlp.metrics.segmentation import confusion_metrics, count_confusions, segmentation_metrics
from hf_vlp.metrics.vqa import (
    check_vqa_submission,
    evaluate_vqa,
    normalize_answer,
    vqa_accuracy,
    vqa_exact_match,
    vqa_metrics,
    write_vqa_submission,
)

# These import `evaluate` and with it `datasets`, which takes a second.
_EVALUATE_CLASSES = (
    "BleuMetric",
    "CaptionMetrics",
    "CiderDMetric",
    "CiderMetric",
    "ClassificationAccuracyMetric",
    "ExactMatchMetric",
    "MeteorMetric",
    "Nlvr2Metric",
    "RetrievalRecallMetric",
    "RougeLMetric",
    "SegmentationMetric",
    "SpiceMetric",
    "VqaAccuracyMetric",
    "VqaExactMatchMetric",
)
# These import torch, which takes another.
_RETRIEVAL = ("RetrievalRanks", "ranks_of_embeddings", "ranks_of_scores", "recall_metrics", "reranked")

__all__ = [
    "CAPTION_METRICS",
    "CiderDScorer",
    "DocumentFrequencies",
    "bleu",
    "build_document_frequencies",
    "caption_metrics",
    "check_vqa_submission",
    "cider",
    "cider_d",
    "classification_accuracy",
    "confusion_metrics",
    "count_confusions",
    "evaluate_vqa",
    "exact_match",
    "meteor",
    "nlvr2_metrics",
    "nlvr_metrics",
    "normalize_answer",
    "ptb_tokenize",
    "rouge_l",
    "segmentation_metrics",
    "spice",
    "vqa_accuracy",
    "vqa_exact_match",
    "vqa_metrics",
    "write_vqa_submission",
    *_EVALUATE_CLASSES,
    *_RETRIEVAL,
]


def __getattr__(name: str):
    if name in _EVALUATE_CLASSES:
        return getattr(importlib.import_module("hf_vlp.metrics.evaluate_metrics"), name)
    if name in _RETRIEVAL:
        return getattr(importlib.import_module("hf_vlp.metrics.retrieval"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
