"""The metrics as `evaluate.Metric` classes, for `compute`, `add_batch` and several processes.

The classes are made directly, `CiderDMetric()`: nothing is fetched from the Hub. Predictions of captions and answers
are strings, references lists of strings of any number per prediction; the other classes name their inputs. What a
class returns is what the plain function of the same name returns, in a dict.

```python
>>> metric = CiderDMetric()
>>> metric.add_batch(predictions=["a dog", "a cat"], references=[["a dog", "the dog"], ["one cat"]])
>>> sorted(metric.compute())
['cider_d']

```
"""

from collections.abc import Sequence

import datasets
import evaluate
import torch

from hf_vlp.metrics.captioning import caption_metrics
from hf_vlp.metrics.cider import DocumentFrequencies
from hf_vlp.metrics.classification import classification_accuracy
from hf_vlp.metrics.nlvr2 import nlvr2_metrics
from hf_vlp.metrics.retrieval import ranks_of_embeddings, recall_metrics
from hf_vlp.metrics.segmentation import segmentation_metrics
from hf_vlp.metrics.vqa import vqa_accuracy, vqa_exact_match

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


_ANSWERS = """
Args:
    predictions: list of strings.
    references: list with one list of human answers per prediction.
    per_sample: add a list with one value per prediction as "<name>_per_sample". Default False.
"""
_VQA = """@inproceedings{goyal2017making,
  title={Making the {V} in {VQA} Matter: Elevating the Role of Image Understanding in Visual Question Answering},
  author={Goyal, Yash and Khot, Tejas and Summers-Stay, Douglas and Batra, Dhruv and Parikh, Devi},
  booktitle={CVPR}, year={2017}
}"""
_NLVR2 = """@inproceedings{suhr2019corpus,
  title={A Corpus for Reasoning about Natural Language Grounded in Photographs},
  author={Suhr, Alane and Zhou, Stephanie and Zhang, Ally and Zhang, Iris and Bai, Huajun and Artzi, Yoav},
  booktitle={ACL}, year={2019}
}"""


class VqaAccuracyMetric(evaluate.Metric):
    """Official VQA accuracy, for questions with the answers of about ten annotators, see `vqa_accuracy`."""

    name_of_score, function = "vqa_accuracy", staticmethod(vqa_accuracy)
    description = (
        "VQA accuracy: an answer counts fully when three other annotators of ten gave it. Official evaluation."
    )

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.description,
            citation=_VQA,
            inputs_description=_ANSWERS,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]], per_sample: bool = False) -> dict:
        scores: dict = {self.name_of_score: self.function(predictions, references)}
        if per_sample:
            values = self.function(predictions, references, per_sample=True)
            scores[f"{self.name_of_score}_per_sample"] = values.tolist()
        return scores


class VqaExactMatchMetric(VqaAccuracyMetric):
    """Share of answers equal to one of their references after normalisation, see `vqa_exact_match`."""

    name_of_score, function = "exact_match", staticmethod(vqa_exact_match)
    description = "Share of answers equal to one of their references, normalised as the VQA evaluation does it."


class Nlvr2Metric(evaluate.Metric):
    """Accuracy and consistency, see `nlvr2_metrics`: predictions, references (0, 1 or bools) and `identifiers`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy and consistency of NLVR2: share of sentences right with all their pictures.",
            citation=_NLVR2,
            inputs_description="""
Args:
    predictions, references: lists of judgements, 0 and 1 or bools.
    identifiers: list of strings `split-set-pair-sentence`.
""",
            features=datasets.Features(
                {
                    # A whole number would take 0.7 for 0.
                    "predictions": datasets.Value("float32"),
                    "references": datasets.Value("float32"),
                    "identifiers": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, predictions: list[float], references: list[float], identifiers: list[str]) -> dict:
        return nlvr2_metrics(predictions, references, identifiers)


class ClassificationAccuracyMetric(evaluate.Metric):
    """Accuracy of classes, see `classification_accuracy`: predictions and references, numbers or names."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy: the share of pictures (or texts) whose class is predicted rightly.",
            citation="",
            inputs_description="""
Args:
    predictions, references: lists of classes, numbers or names.
""",
            features=[
                # A whole number would take 0.7 for 0.
                datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)})
                for kind in ("string", "float32")
            ],
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return classification_accuracy(predictions, references)


class RetrievalRecallMetric(evaluate.Metric):
    """Recall at k in both directions, see `recall_metrics`: one row per text, with its image.

    Inputs `image_embeds`, `text_embeds` and `image_ids` (numbers or strings). An image with several texts is in
    several rows; it is searched for once, with the embedding of its first row. `compute(ks=(1, 5, 10))` chooses.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Image-text retrieval: recall at k, median and mean rank in both directions, and their sum.",
            citation="",
            inputs_description="""
Args:
    image_embeds, text_embeds: list with one vector per text; that of its image and its own.
    image_ids: list with the id of the image of each text.
    ks: for which k. Default (1, 5, 10).
""",
            features=[
                datasets.Features(
                    {
                        "image_embeds": datasets.Sequence(datasets.Value("float32")),
                        "text_embeds": datasets.Sequence(datasets.Value("float32")),
                        "image_ids": datasets.Value(kind),
                    }
                )
                for kind in ("string", "int64")
            ],
        )

    def _compute(
        self,
        image_embeds: list[list[float]],
        text_embeds: list[list[float]],
        image_ids: list[str] | list[int],
        ks: Sequence[int] = (1, 5, 10),
    ) -> dict:
        first = {identity: row for row, identity in reversed(list(enumerate(image_ids)))}
        images = torch.tensor([image_embeds[row] for row in first.values()])
        ranks = ranks_of_embeddings(images, torch.tensor(text_embeds), image_ids, list(first))
        return recall_metrics(ranks, ks)


class SegmentationMetric(evaluate.Metric):
    """Mean IoU, pixel accuracy and mean accuracy, see `segmentation_metrics`: one map of class numbers per picture.

    Lists of lists or arrays (height, width); `compute(num_labels=150)` says how many classes there are.
    """

    def _info(self) -> evaluate.MetricInfo:
        class_map = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Semantic segmentation: mean intersection over union, pixel accuracy and mean accuracy.",
            citation="",
            inputs_description="""
Args:
    predictions, references: list with one map (height, width) of class numbers per picture.
    num_labels: number of classes.
    ignore_index: what references hold where pixels do not count. Default 255.
    per_class: add "iou_per_class" and "accuracy_per_class". Default False.
""",
            features=datasets.Features({"predictions": class_map, "references": class_map}),
        )

    def _compute(
        self,
        predictions: list[list[list[int]]],
        references: list[list[list[int]]],
        num_labels: int | None = None,
        ignore_index: int = 255,
        per_class: bool = False,
    ) -> dict:
        if num_labels is None:
            raise ValueError("say how many classes there are: compute(num_labels=...)")
        options = {"ignore_index": ignore_index, "per_class": per_class}
        return segmentation_metrics(predictions, references, num_labels, **options)


__all__ = [
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
]
