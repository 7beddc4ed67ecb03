"""Semantic segmentation on four maps of a plain Transformer: neck, UPerNet, auxiliary head, loss, sliding window.

Sources: the neck of BEiT (Bao et al., 2022, arXiv 2106.08254, released code) makes of maps of one size the four sizes
that UPerNet (Xiao et al., 2018, arXiv 1807.10221) reads; decoder and auxiliary head are those of transformers, with
the dropout before the classifier that BEiT's recipe has.

Differences from BEiT's recipe:

* the loss is the mean over labelled pixels; mmsegmentation divides by the ignored ones too;
* a batch of one picture trains: it is decoded twice, with the same loss and gradient, since batch normalisation of
  UPerNet's 1 x 1 map needs two;
* batch normalisation is that of one process; `nn.SyncBatchNorm.convert_sync_batchnorm` makes it that of all.
"""

from types import SimpleNamespace

import torch
from torch import nn
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

NUM_MAPS = 4


class MomeSegmentationNeck(nn.Module):
    """Four maps of one size, (batch, dim, height, width) each, to 4, 2, 1 and 1/2 times their size."""

    def __init__(self, dim: int):
        super().__init__()
        self.times_4 = nn.Sequential(
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
            nn.BatchNorm2d(dim),
            nn.GELU(),
            nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2),
        )
        self.times_2 = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        self.times_half = nn.MaxPool2d(kernel_size=2, stride=2)

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        first, second, third, fourth = maps
        return [self.times_4(first), self.times_2(second), third, self.times_half(fourth)]


class MomePixelClassifier(nn.Conv2d):
    """One linear layer for every pixel, after dropout of whole channels."""

    def __init__(self, dim: int, num_labels: int, dropout: float):
        super().__init__(dim, num_labels, kernel_size=1)
        self.dropout = dropout

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout2d(hidden_states, self.dropout, self.training))


class MomeSegmentationHead(nn.Module):
    """Everything between the blocks of the Transformer and the logits of pixels.

    Args:
        config: with `hidden_size`, `num_labels`, `decoder_hidden_size` (`None`: `hidden_size`), `pool_scales`,
            `decoder_dropout`, `auxiliary_loss_weight` (0: no auxiliary head), `auxiliary_channels`,
            `auxiliary_num_convs`, `auxiliary_index`, the map that the auxiliary head reads, and
            `semantic_loss_ignore_index`.

    Raises ValueError for a single label, for an auxiliary index that is none of the four maps, and where a class has
    the number of pixels that do not count.
    """

    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        if config.num_labels < 2:
            raise ValueError(f"num_labels={config.num_labels}: segmentation tells at least two classes apart.")
        if 0 <= config.semantic_loss_ignore_index < config.num_labels:
            raise ValueError(
                f"semantic_loss_ignore_index={config.semantic_loss_ignore_index} is one of the {config.num_labels} "
                "classes, whose pixels would not count: set it to a number above them, or below 0, such as -100."
            )
        if not 0 <= config.auxiliary_index < NUM_MAPS:
            raise ValueError(f"auxiliary_index={config.auxiliary_index} is none of the {NUM_MAPS} maps, 0 to 3.")
        settings = SimpleNamespace(  # by the names that the decoders of transformers read
            hidden_size=config.decoder_hidden_size or dim,
            num_labels=config.num_labels,
            pool_scales=tuple(config.pool_scales),
            auxiliary_in_channels=None,
            auxiliary_channels=config.auxiliary_channels,
            auxiliary_num_convs=config.auxiliary_num_convs,
            auxiliary_concat_input=False,
        )
        in_channels = [dim] * NUM_MAPS
        self.neck = MomeSegmentationNeck(dim)
        self.decoder = UperNetHead(settings, in_channels)
        self.auxiliary_head = None
        if config.auxiliary_loss_weight > 0:
            self.auxiliary_head = UperNetFCNHead(settings, in_channels, in_index=config.auxiliary_index)
        for head in (self.decoder, self.auxiliary_head):
            if head is not None:
                head.classifier = MomePixelClassifier(head.channels, config.num_labels, config.decoder_dropout)

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits and, in training, auxiliary logits.

        maps: outputs of four blocks, lowest first, without I_CLS, each (batch, hidden_size, height, width).

        Returns (batch, labels, 4 height, 4 width) and (batch, labels, height', width') or `None`; the latter's size is
        that of the neck's map `auxiliary_index`. Raises ValueError for another number of maps, and for maps of less
        than 2 x 2.
        """
        if len(maps) != NUM_MAPS or min(maps[0].shape[-2:]) < 2:
            shapes = ", ".join(str(tuple(one.shape)) for one in maps)
            raise ValueError(
                f"The decoder reads the outputs of {NUM_MAPS} blocks over 2 x 2 patches at least, not {shapes}: set "
                "out_indices, or take larger pictures."
            )
        rows = len(maps[0])
        if self.training and rows == 1 and isinstance(self.neck.times_4[1], nn.BatchNorm2d):
            maps = [one.expand(2, -1, -1, -1) for one in maps]
        maps = self.neck(maps)
        auxiliary = None
        if self.training and self.auxiliary_head is not None:
            auxiliary = self.auxiliary_head(maps)[:rows]
        return self.decoder(maps)[:rows], auxiliary


def spread_out_indices(num_layers: int) -> tuple[int, ...]:
    """Four blocks spread over a Transformer, from 0: 3, 5, 7, 11 of 12 as in BEiT, 7, 11, 15, 23 of 24.

    The last one is the last block, the others end a third, a half and two thirds of the blocks; with less than four
    blocks the upper ones occur several times.
    """
    first = max(1, num_layers // 3)
    second = max(first + 1, num_layers // 2)
    third = max(second + 1, num_layers * 2 // 3)
    return tuple(min(number, num_layers) - 1 for number in (first, second, third, num_layers))


def check_segmentation_labels(labels: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """Raise ValueError for maps that are no whole numbers of shape (batch, height, width) or hold no such class."""
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(
            f"labels must hold a class number for each pixel, integers of shape (batch, height, width), not "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)].unique()
    if len(wrong):
        shown = ", ".join(map(str, wrong[:10].tolist())) + (", ..." if len(wrong) > 10 else "")
        raise ValueError(
            f"The segmentation maps hold {shown}; the model has the classes 0 to {num_labels - 1}, and {ignore_index} "
            "for pixels that do not count. Set num_labels, or do_reduce_labels of the image processor for maps whose "
            "0 means no class."
        )


def segmentation_loss(logits: torch.Tensor, labels: torch.LongTensor, ignore_index: int) -> torch.Tensor:
    """Cross-entropy of pixels.

    Formula: mean of CE over the pixels whose label is not `ignore_index`; 0 when there are none.
    Inputs: logits (batch, labels, any height, any width), resized bilinearly to the labels, (batch, height, width).
    """
    logits = nn.functional.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = nn.functional.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)


def semantic_segmentation_loss(
    logits: torch.Tensor, auxiliary_logits: torch.Tensor | None, labels: torch.LongTensor, config
) -> torch.Tensor:
    """`segmentation_loss` of the decoder plus `auxiliary_loss_weight` times that of the auxiliary head.

    config: with `num_labels`, `semantic_loss_ignore_index` and `auxiliary_loss_weight`. Raises ValueError for labels
    that are no class.
    """
    ignore_index = config.semantic_loss_ignore_index
    if not torch.compiler.is_compiling():  # what is wrong would end the process on a GPU, without saying why
        check_segmentation_labels(labels, config.num_labels, ignore_index)
    loss = segmentation_loss(logits, labels, ignore_index)
    if auxiliary_logits is not None:
        loss = loss + config.auxiliary_loss_weight * segmentation_loss(auxiliary_logits, labels, ignore_index)
    return loss


def _starts(length: int, crop_size: int, stride: int) -> list[int]:
    """Where windows begin along one side: every `stride`, the last one moved back to end at the border."""
    return [*range(0, length - crop_size, stride), length - crop_size]


@torch.no_grad()
def predict_sliding(
    model,
    pixel_values: torch.FloatTensor,
    crop_size: int | None = None,
    stride: int | None = None,
    *,
    batch_size: int = 8,
) -> torch.FloatTensor:
    """Logits of pictures of any size, from overlapping windows of the size that the model takes.

    Args:
        model: of semantic segmentation: `model(pixel_values=...)` has `logits`. Put it into evaluation mode.
        pixel_values: (batch, channels, height, width). Sides below `crop_size` are filled up with 0, the mean colour,
            on the right and at the bottom.
        crop_size: side of the windows; `None` for the model's `image_size`.
        stride: steps between windows; `None` for two thirds of `crop_size`, 341 of 512 as in BEiT's recipe.
        batch_size: windows that run together.

    Returns the mean of the windows' logits, (batch, labels, height, width), in float32. Raises ValueError for a stride
    that leaves gaps, and for pixels of another shape or of no picture.
    """
    crop_size = model.config.image_size if crop_size is None else crop_size
    stride = max(1, crop_size * 2 // 3) if stride is None else stride
    if not 1 <= stride <= crop_size:
        raise ValueError(f"stride={stride} must lie between 1 and crop_size={crop_size}, lest pixels be left out.")
    if pixel_values.ndim != 4:
        raise ValueError(
            f"pixel_values must be of shape (batch, channels, height, width), not {tuple(pixel_values.shape)}."
        )
    rows, _, height, width = pixel_values.shape
    if rows == 0:
        raise ValueError("There is no picture to segment: pixel_values hold 0 rows.")
    missing = (max(0, crop_size - width), max(0, crop_size - height))
    padded = nn.functional.pad(pixel_values, (0, missing[0], 0, missing[1]))
    windows = [
        (row, top, left)
        for row in range(rows)
        for top in _starts(padded.shape[2], crop_size, stride)
        for left in _starts(padded.shape[3], crop_size, stride)
    ]
    total, counts = None, padded.new_zeros((rows, 1, *padded.shape[2:]), dtype=torch.float32)
    for start in range(0, len(windows), batch_size):
        chunk = windows[start : start + batch_size]
        crops = torch.stack([padded[r, :, t : t + crop_size, s : s + crop_size] for r, t, s in chunk])
        logits = nn.functional.interpolate(
            model(pixel_values=crops).logits.float(), size=(crop_size, crop_size), mode="bilinear", align_corners=False
        )
        if total is None:
            total = logits.new_zeros((rows, logits.shape[1], *padded.shape[2:]))
        for (row, top, left), window in zip(chunk, logits):
            area = (row, slice(None), slice(top, top + crop_size), slice(left, left + crop_size))
            total[area] += window
            counts[area] += 1
    return (total / counts)[..., :height, :width]


__all__ = [
    "MomePixelClassifier",
    "MomeSegmentationHead",
    "MomeSegmentationNeck",
    "check_segmentation_labels",
    "predict_sliding",
    "segmentation_loss",
    "semantic_segmentation_loss",
    "spread_out_indices",
]
