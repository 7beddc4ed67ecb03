"""Metrics of captions: plain functions here, `evaluate.Metric` classes imported when first asked for."""

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

# These import `evaluate` and with it `datasets`, which takes a second.
_EVALUATE_CLASSES = (
    "BleuMetric",
    "CaptionMetrics",
    "CiderDMetric",
    "CiderMetric",
    "ExactMatchMetric",
    "MeteorMetric",
    "RougeLMetric",
    "SpiceMetric",
)

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
    *_EVALUATE_CLASSES,
]


def __getattr__(name: str):
    if name in _EVALUATE_CLASSES:
        return getattr(importlib.import_module("hf_vlp.metrics.evaluate_metrics"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
