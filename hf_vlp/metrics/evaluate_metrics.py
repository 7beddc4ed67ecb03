"""The caption metrics as `evaluate.Metric` classes, for `compute`, `add_batch` and several processes.

The classes are made directly, `CiderDMetric()`: nothing is fetched from the Hub. Predictions are strings, references
lists of strings of any number per prediction. What a class returns is what the plain function of the same name
returns, in a dict.

```python
>>> metric = CiderDMetric()
>>> metric.add_batch(predictions=["a dog", "a cat"], references=[["a dog", "the dog"], ["one cat"]])
>>> sorted(metric.compute())
['cider_d']

```
"""

import datasets
import evaluate

from hf_vlp.metrics.captioning import caption_metrics
from hf_vlp.metrics.cider import DocumentFrequencies

_INPUTS = """
Args:
    predictions: list of strings.
    references: list with one list of strings per prediction.
    tokenize: False for text that is tokenised already. Default True.
    per_sample: add a list with one value per prediction as "<name>_per_sample". Default False.
"""
_COCO = """@article{chen2015microsoft,
  title={Microsoft COCO Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Doll{\\'a}r,
  Piotr and Zitnick, C. Lawrence}, journal={arXiv preprint arXiv:1504.00325}, year={2015}
}"""


class _CaptionMetric(evaluate.Metric):
    metrics: tuple[str, ...]
    description: str

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation=_COCO,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(
        self,
        predictions: list[str],
        references: list[list[str]],
        tokenize: bool = True,
        per_sample: bool = False,
        document_frequencies: DocumentFrequencies | None = None,
        metrics: tuple[str, ...] | None = None,
    ) -> dict:
        settings = {"tokenize": tokenize, "document_frequencies": document_frequencies}
        names = self.metrics if metrics is None else metrics
        scores: dict = caption_metrics(predictions, references, names, **settings)
        if per_sample:
            single = caption_metrics(predictions, references, names, per_sample=True, **settings)
            scores |= {f"{name}_per_sample": values.tolist() for name, values in single.items()}
        return scores


class CaptionMetrics(_CaptionMetric):
    """Several metrics at once; `compute(metrics=(...))` chooses, see `caption_metrics`."""

    metrics = ("bleu", "rouge_l", "cider", "cider_d")
    description = "Caption metrics of the COCO evaluation: BLEU-1..4, ROUGE-L, CIDEr, CIDEr-D and, on request, others."


class BleuMetric(_CaptionMetric):
    """Corpus BLEU-1..4 of the COCO tool."""

    metrics = ("bleu",)
    description = "Corpus BLEU-1..4 with the closest reference length, as the COCO caption evaluation computes it."


class RougeLMetric(_CaptionMetric):
    """ROUGE-L of the COCO tool."""

    metrics = ("rouge_l",)
    description = "ROUGE-L with beta 1.2 of the best precision and recall, as the COCO caption evaluation computes it."


class CiderMetric(_CaptionMetric):
    """Plain CIDEr; the "CIDEr" of the COCO tool is `CiderDMetric`."""

    metrics = ("cider",)
    description = (
        "Plain CIDEr: no clipping and no length penalty. The 'CIDEr' of the COCO caption evaluation is CIDEr-D."
    )


class CiderDMetric(_CaptionMetric):
    """CIDEr-D, the "CIDEr" of the COCO tool."""

    metrics = ("cider_d",)
    description = "CIDEr-D, which the COCO caption evaluation prints as 'CIDEr'."


class ExactMatchMetric(_CaptionMetric):
    """Share of predictions equal to a reference after tokenisation."""

    metrics = ("exact_match",)
    description = "Share of predictions equal to one of their references after PTB tokenisation."


class MeteorMetric(_CaptionMetric):
    """METEOR 1.5; needs the extra `metrics` and Java."""

    metrics = ("meteor",)
    description = "METEOR 1.5 through pycocoevalcap and Java."


class SpiceMetric(_CaptionMetric):
    """SPICE; needs the extra `metrics`, Java 8 and a download at its first use."""

    metrics = ("spice",)
    description = "SPICE through pycocoevalcap and Java; downloads a parser at its first use."


__all__ = [
    "BleuMetric",
    "CaptionMetrics",
    "CiderDMetric",
    "CiderMetric",
    "ExactMatchMetric",
    "MeteorMetric",
    "RougeLMetric",
    "SpiceMetric",
]
