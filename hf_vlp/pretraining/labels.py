"""Batches of labelled pictures, with or without a statement about them."""

import torch
from PIL import Image

from hf_vlp.data.mixing import BatchMixing
from hf_vlp.data.task_collators import PairImagesCollator


class LabelCollator(PairImagesCollator):
    """Pictures with one label each: `pixel_values` (rows, 3, H, W), `labels` (rows,).

    A record has `image` and `label`, a class number or a name. A picture or a label that is bad leaves the batch and
    is counted, as in all collators; a batch without any good record is one white picture with the label -100.

    Args:
        label2id: of the model's configuration.
        mixup, cutmix, label_smoothing: see `BatchMixing`; with any of them `labels` are probabilities (rows, classes).
            What is drawn for a batch is a function of its first record's seed, thus of (seed, epoch, batch).
        options: `bad_samples`, `seed`, `augment`, `max_pixels`, `size_hint`; see `CaptionCollator`.
    """

    text_columns = ()

    def __init__(self, processor, *, mixup: float = 0.0, cutmix: float = 0.0, label_smoothing: float = 0.0, **options):
        super().__init__(processor, num_images=1, **options)
        self.mixing = None
        if mixup or cutmix or label_smoothing:
            num_classes = max(self.label2id.values()) + 1
            self.mixing = BatchMixing(num_classes, mixup=mixup, cutmix=cutmix, label_smoothing=label_smoothing)

    def _batch(self, rows) -> dict[str, torch.Tensor]:
        pictures: list[Image.Image] = [row.images[0] for row in rows]
        pixel_values, labels = self._pixel_values(pictures), torch.tensor([row.target for row in rows])
        if self.mixing is not None:
            pixel_values, labels = self.mixing(pixel_values, labels, rows[0].generator)
        return {"pixel_values": pixel_values, "labels": labels}


class StatementCollator(PairImagesCollator):
    """Statements about one picture with a label each: `pixel_values` (rows, 3, H, W), texts, `labels` (rows,).

    A record has `image`, `statement` and `label`; options as in `PairImagesCollator`.
    """

    def __init__(self, processor, **options):
        super().__init__(processor, num_images=1, **options)


__all__ = ["LabelCollator", "StatementCollator"]
