"""Objectives over pairs of pictures and texts, masked words, hidden patches, classes and answers.

They live beside the models so that a checkpoint carries its whole pre-training model; `hf_vlp.objectives` offers the
same functions. Everything runs unchanged in one process and in many: with a process group, rows of all processes are
gathered, the own ones first.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class HardNegatives(NamedTuple):
    """Drawn negatives: positions among the gathered rows, own rows first; both (rows,)."""

    image_index: torch.Tensor  # for each text, a picture that is not its own
    text_index: torch.Tensor  # for each picture, a text that is not its own


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


@torch.no_grad()
def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, the own ones first, then the others in the order of their ranks; no gradient.

    Inputs: (rows, ...), the same shape in every process. Returns (processes x rows, ...).
    """
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    torch.distributed.all_gather(parts, rows.contiguous())
    own = torch.distributed.get_rank()
    return torch.cat([parts[own], *parts[:own], *parts[own + 1 :]])


@torch.no_grad()
def gather_texts(
    input_ids: torch.LongTensor, attention_mask: torch.Tensor, pad_token_id: int
) -> tuple[torch.LongTensor, torch.Tensor]:
    """The texts of all processes, padded to the longest of them; see `gather_rows`."""
    if world_size() > 1:
        length = torch.tensor(input_ids.shape[1], device=input_ids.device)
        torch.distributed.all_reduce(length, op=torch.distributed.ReduceOp.MAX)
        missing = int(length) - input_ids.shape[1]
        input_ids = nn.functional.pad(input_ids, (0, missing), value=pad_token_id)
        attention_mask = nn.functional.pad(attention_mask, (0, missing))
    return gather_rows(input_ids), gather_rows(attention_mask)


def gather_features(features: torch.Tensor) -> torch.Tensor:
    """As `gather_rows`, and the own rows carry a gradient; (rows, dim) -> (processes x rows, dim)."""
    if world_size() == 1:
        return features
    return torch.cat((features, gather_rows(features)[len(features) :]))


def encode_in_chunks(encode: Callable[..., torch.Tensor], *rows: torch.Tensor, chunk_size: int) -> torch.Tensor:
    """Features of a large batch with the activations of one chunk in memory; the gradient is that of the whole batch.

    Each chunk is run without keeping its activations, and once more in the backward pass, where its gradient is known.
    Inputs: tensors that `encode` takes, each (rows, ...), split along the rows. Returns (rows, dim).
    References: GradCache (Gao et al., 2021, arXiv 2101.06983).
    """
    chunks = zip(*(tensor.split(chunk_size) for tensor in rows))
    return torch.cat([checkpoint(encode, *chunk, use_reentrant=False) for chunk in chunks])


def contrastive_logits(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """exp(logit_scale) I T^t in float32 at least; (images, dim), (texts, dim) -> (images, texts)."""
    dtype = torch.promote_types(image_embeds.dtype, torch.float32)
    with torch.autocast(image_embeds.device.type, enabled=False):
        return logit_scale.to(dtype).exp() * image_embeds.to(dtype) @ text_embeds.to(dtype).t()


def contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """Symmetric cross-entropy with the diagonal as target (ITC).

    Formula: (CE(S, i) + CE(S^t, i)) / 2, mean over rows.
    Inputs: S (pairs, pairs), scaled similarities, pictures in rows. Captions of the same picture in one batch count
    as negatives of each other, as in the original.
    References: VLMo, section 3.2 (arXiv 2111.02358); CLIP (arXiv 2103.00020), figure 3.
    """
    targets = torch.arange(len(logits_per_image), device=logits_per_image.device)
    image_loss = nn.functional.cross_entropy(logits_per_image, targets)
    return (image_loss + nn.functional.cross_entropy(logits_per_image.t(), targets)) / 2


@torch.no_grad()
def hard_negative_weights(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities with which the candidates of each row are drawn: its softmax without the own pair.

    Inputs: (rows, candidates), scaled similarities, the own pair of row i being candidate i. Returns the same shape,
    each row summing to 1.
    """
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    return logits.float().masked_fill(own, -torch.inf).softmax(dim=-1)


@torch.no_grad()
def draw_hard_negatives(logits_per_image: torch.Tensor, num_rows: int) -> HardNegatives:
    """One negative picture for each text and one negative text for each picture, the more similar the likelier.

    Inputs: similarities of all gathered pairs, own rows first, (pairs, pairs); the number of own rows. All pictures
    are drawn before the texts.
    References: VLMo, section 3.2, "global hard negative mining"; ALBEF (arXiv 2107.07651), section 3.2.
    Raises ValueError when there is only one pair: it has no negative.
    """
    if len(logits_per_image) < 2:
        raise ValueError(
            "Image-text matching draws negatives from the other pairs of the batch, and this batch has one pair only: "
            "use larger batches, or give itm_negative_image_index and itm_negative_text_index."
        )
    image_index = torch.multinomial(hard_negative_weights(logits_per_image.t()[:num_rows]), 1).squeeze(1)
    text_index = torch.multinomial(hard_negative_weights(logits_per_image[:num_rows]), 1).squeeze(1)
    return HardNegatives(image_index, text_index)


def matching_loss(logits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of "match" (index 1) against "no match" (ITM).

    Inputs: (3 x pairs, 2), the pairs themselves, then texts with negative pictures, then pictures with negative texts.
    References: VLMo, section 3.2.
    """
    return nn.functional.cross_entropy(logits.float(), matching_labels(logits))


def matching_labels(logits: torch.Tensor) -> torch.Tensor:
    """1 for the first third of the rows, 0 for the others."""
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(logits) // 3] = 1
    return labels


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the rows with a label; 0 for a batch without any.

    Inputs: logits (rows, classes); labels (rows,), class numbers, or (rows, classes), probabilities as mixup, cutmix
    and label smoothing make them. -100 where there is no label (in the first place of a row of probabilities).
    Raises ValueError for probabilities of another number of rows or classes.
    """
    if labels.ndim == 1:
        total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=-100, reduction="sum")
        return total / (labels != -100).sum().clamp(min=1)
    if labels.shape != logits.shape:
        raise ValueError(
            f"labels of the shape {tuple(labels.shape)} do not fit logits of the shape {tuple(logits.shape)}: give "
            "class numbers (rows,), or a probability for each class of the model."
        )
    known = labels[:, 0] != -100
    losses = nn.functional.cross_entropy(logits.float(), labels.float(), reduction="none")
    return losses.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)


def masked_language_loss(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Mean cross-entropy over the masked positions (MLM); 0 for a batch without any.

    Inputs: logits (..., vocabulary); labels (...), -100 where nothing is predicted.
    """
    return classification_loss(logits.flatten(0, -2), labels.flatten())


def masked_image_loss(
    logits: torch.Tensor, visual_token_ids: torch.LongTensor, bool_masked_pos: torch.Tensor | None
) -> torch.Tensor:
    """Mean cross-entropy over the hidden patches of a batch (MIM); 0 for a batch without any.

    Inputs: logits (images, patches, visual vocabulary); visual_token_ids and bool_masked_pos (images, patches), the
    classes of all patches and which of them are hidden.
    References: BEiT (arXiv 2106.08254), section 2.3.
    Raises ValueError when the visual tokens do not fit the logits in shape or in number.
    """
    targets = masked_image_targets(visual_token_ids, bool_masked_pos, logits.shape)
    return classification_loss(logits.flatten(0, 1), targets.flatten())


def masked_image_targets(
    visual_token_ids: torch.LongTensor, bool_masked_pos: torch.Tensor | None, logits_shape: tuple[int, int, int]
) -> torch.LongTensor:
    """Visual tokens of the hidden patches, -100 elsewhere: (images, patches); see `masked_image_loss`.

    logits_shape: (images, patches, visual vocabulary), which the visual tokens must fit.
    """
    *expected, num_classes = logits_shape
    if list(visual_token_ids.shape) != expected:
        raise ValueError(
            f"visual_token_ids must be of shape (images, patches), {tuple(expected)}, not "
            f"{tuple(visual_token_ids.shape)}: does the visual tokenizer make one token for each patch of the model?"
        )
    if visual_token_ids.is_floating_point():
        raise ValueError(f"visual_token_ids must be whole numbers, not {visual_token_ids.dtype}.")
    visual_token_ids = visual_token_ids.long()
    # What is wrong would end the process on a GPU, without saying why.
    if len(visual_token_ids) and not torch.compiler.is_compiling():
        low, high = visual_token_ids.aminmax()
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"visual_token_ids lie between {int(low)} and {int(high)}, the model has classes 0 to "
                f"{num_classes - 1}: its visual_vocab_size must be the number of codes of the visual tokenizer."
            )
    if bool_masked_pos is None:
        raise ValueError(
            "visual_token_ids are the targets of hidden patches: give bool_masked_pos, which says which are hidden."
        )
    return visual_token_ids.masked_fill(~bool_masked_pos.to(torch.bool), -100)


def soft_label_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, averaged over all entries and multiplied by the number of answers.

    Inputs: logits (rows, answers); labels (rows, answers), scores in [0, 1], or (rows,), answers whose score is 1.
    Rows whose labels are -100 do not count. Raises ValueError for labels of another shape and answers that the head
    does not have.
    """
    rows, num_answers = logits.shape
    if labels.shape not in ((rows,), (rows, num_answers)) or (labels.ndim == 1 and labels.is_floating_point()):
        raise ValueError(
            f"labels must be scores of shape {rows, num_answers}, or whole numbers of shape {(rows,)}, not "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    known = (labels if labels.ndim == 1 else labels[:, 0]) != -100
    if labels.ndim == 1:
        labels = labels.masked_fill(~known, 0)
        # What is wrong would end the process on a GPU, without saying why.
        if rows and not torch.compiler.is_compiling() and not 0 <= labels.min() <= labels.max() < num_answers:
            raise ValueError(
                f"labels lie between {int(labels.min())} and {int(labels.max())}, the head has answers 0 to "
                f"{num_answers - 1}; -100 for questions without one."
            )
        labels = nn.functional.one_hot(labels.long(), num_answers)
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").sum(1)
    return losses.masked_fill(~known, 0.0).sum() / known.sum().clamp(min=1)


__all__ = [
    "HardNegatives",
    "classification_loss",
    "contrastive_logits",
    "contrastive_loss",
    "draw_hard_negatives",
    "encode_in_chunks",
    "gather_features",
    "gather_rows",
    "gather_texts",
    "hard_negative_weights",
    "masked_image_loss",
    "masked_image_targets",
    "masked_language_loss",
    "matching_labels",
    "matching_loss",
    "soft_label_loss",
    "world_size",
]
