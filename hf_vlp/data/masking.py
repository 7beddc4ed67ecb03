"""Masking for masked language modelling: whole words as VLMo and BERT do it, or single pieces; a batch at once.

Both functions take `input_ids` and `attention_mask` (batch, length) and return the ids with some of them hidden and
the labels: the id where something was hidden, -100 elsewhere. Of the hidden pieces 80 % become the mask token, 10 % a
random id of the whole vocabulary, 10 % stay as they are. (Devlin et al., 2019, arXiv 1810.04805.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["BUDGETS", "WordPieces", "draw_noise", "mask_tokens", "mask_whole_words"]

BUDGETS = ("tokens", "padded_length")

_SHARE_MASKED = 0.8
_SHARE_RANDOM = 0.1


@dataclass(frozen=True)
class WordPieces:
    """What masking must know of a vocabulary; make it with `from_tokenizer`.

    Attributes:
        continues: bool (vocabulary,), pieces that continue the word before them (`##ing`).
        special: bool (vocabulary,), tokens that are never to be guessed ([CLS], [SEP], [PAD], [MASK], [UNK]).
        boundary: bool (vocabulary,), those of them that enclose a text ([CLS], [SEP]).
        mask_token_id: the id that hides a piece.
    """

    continues: torch.Tensor
    special: torch.Tensor
    boundary: torch.Tensor
    mask_token_id: int

    def __post_init__(self):
        shapes = {tuple(getattr(self, name).shape) for name in ("continues", "special", "boundary")}
        if len(shapes) > 1 or len(*shapes) != 1:
            raise ValueError(f"continues, special and boundary must have one entry for each id, found {shapes}.")
        if not 0 <= self.mask_token_id < len(self):
            raise ValueError(f"mask_token_id={self.mask_token_id} is no id of a vocabulary of {len(self)}.")

    def __len__(self) -> int:
        return len(self.special)

    @classmethod
    def from_tokenizer(cls, tokenizer) -> WordPieces:
        """Read a WordPiece tokenizer (BertTokenizer); ValueError when it has no mask token."""
        if tokenizer.mask_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} has no mask token; take a BERT tokenizer.")
        vocabulary = tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        continues = [index for piece, index in vocabulary.items() if piece.startswith("##") and len(piece) > 2]
        boundary = [index for index in (tokenizer.cls_token_id, tokenizer.sep_token_id) if index is not None]

        def flags(indices) -> torch.Tensor:
            table = torch.zeros(size, dtype=torch.bool)
            table[list(indices)] = True
            return table

        return cls(flags(continues), flags(tokenizer.all_special_ids), flags(boundary), tokenizer.mask_token_id)


def draw_noise(shape: tuple[int, ...], generator: torch.Generator | None = None) -> torch.Tensor:
    """The random numbers that the masking of `shape` = (batch, length) or (length,) uses: (..., 3, length) in [0, 1).

    In this order: what is chosen, what becomes of it, which id replaces it.
    """
    *batch, length = shape
    return torch.rand(*batch, 3, length, generator=generator)


def mask_whole_words(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    pieces: WordPieces,
    *,
    probability: float = 0.15,
    budget: Literal["tokens", "padded_length"] = "tokens",
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide whole words of each text: (ids with words hidden, labels with -100 elsewhere), both (batch, length).

    The words of a text are gone through in random order, and each is taken that does not overshoot the budget.

    Args:
        budget: `"tokens"` is `probability` times the pieces that can be guessed, rounded, at least one; the first
            word in the order is taken even if it is longer than that, so that every text with a word has a target and
            every word can be one. `"padded_length"` counts as the original VLMo does: `probability` times the length
            with padding, and padding competes for the places, whence 60 % of the captions of six pieces padded to 40
            lose none.
        noise: (batch, 3, length) numbers of `draw_noise` in place of those that `generator` would give; a caller
            that draws them row by row makes a row's masking independent of its batch.
    """
    _check(input_ids, attention_mask, pieces, probability)
    if budget not in BUDGETS:
        raise ValueError(f"budget must be one of {', '.join(BUDGETS)}, not {budget!r}.")
    batch, length = input_ids.shape
    noise = draw_noise((batch, length), generator) if noise is None else noise
    choice, fate, replacement = noise.unbind(1)
    present = attention_mask.bool()
    target = present & ~pieces.special[input_ids]
    if budget == "tokens":
        candidate = target
        places = (probability * target.sum(1).double()).round().clamp(min=1)
    else:
        # the word of a padding position is that position
        candidate = ~(present & pieces.boundary[input_ids])
        places = torch.full((batch,), probability * length, dtype=torch.float64).round().clamp(min=1)
    # Words are numbered from the left; a continuation at the very beginning is a word all the same.
    begins = candidate & ~(present & pieces.continues[input_ids])
    begins |= candidate & (candidate.cumsum(1) == 1)
    word = (begins.cumsum(1) - 1).clamp(min=0)  # (batch, length): number of the word that the position belongs to
    sizes = torch.zeros(batch, length, dtype=torch.long).scatter_add_(1, word, candidate.long())
    order = choice.masked_fill(sizes == 0, 2.0).argsort(1)  # words that do not exist come last
    taken = _take_what_fits(sizes.gather(1, order), places, always_first=budget == "tokens")
    taken = torch.zeros_like(taken).scatter_(1, order, taken)
    return _hide(input_ids, taken.gather(1, word) & candidate & target, fate, replacement, pieces)


def mask_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    pieces: WordPieces,
    *,
    probability: float = 0.15,
    at_least_one: bool = True,
    exact_count: bool = False,
    generator: torch.Generator | None = None,
    noise: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hide each piece of a text with `probability`, whatever word it belongs to; else as `mask_whole_words`.

    `at_least_one` hides one piece where chance would have left a text without any. `exact_count` leaves the number to
    no chance: max(1, round(probability * n)) of the n pieces that can be guessed (decided here, for VL-BEiT).
    """
    _check(input_ids, attention_mask, pieces, probability)
    noise = draw_noise(tuple(input_ids.shape), generator) if noise is None else noise
    choice, fate, replacement = noise.unbind(1)
    target = attention_mask.bool() & ~pieces.special[input_ids]
    ranked = choice.masked_fill(~target, 2.0)
    if exact_count:
        places = (probability * target.sum(1, keepdim=True).double()).round().clamp(min=1)
        chosen = target & (ranked.argsort(1).argsort(1) < places)
    else:
        chosen = target & (choice < probability)
        if at_least_one and choice.numel():
            chosen |= target & (ranked == ranked.amin(1, keepdim=True))
    return _hide(input_ids, chosen, fate, replacement, pieces)


def _take_what_fits(sizes: torch.Tensor, places: torch.Tensor, always_first: bool) -> torch.Tensor:
    """Which words are taken, (batch, words) in their order, when each is taken that does not overshoot `places`.

    What fits depends on all words before, so the ranks are a loop; the texts of the batch are not.
    """
    taken = torch.zeros_like(sizes, dtype=torch.bool)
    used = torch.zeros_like(places, dtype=torch.long)
    for rank in range(sizes.shape[1]):
        size = sizes[:, rank]
        fits = (size > 0) & (used + size <= places)
        if always_first and rank == 0:
            fits = size > 0
        taken[:, rank] = fits
        used += size * fits
        if ((used >= places) | (size == 0)).all():
            break
    return taken


def _hide(input_ids, chosen, fate, replacement, pieces: WordPieces) -> tuple[torch.Tensor, torch.Tensor]:
    masked = chosen & (fate < _SHARE_MASKED)
    replaced = chosen & (fate >= _SHARE_MASKED) & (fate < _SHARE_MASKED + _SHARE_RANDOM)
    random_ids = (replacement * len(pieces)).to(input_ids.dtype).clamp(max=len(pieces) - 1)
    hidden = torch.where(replaced, random_ids, input_ids).masked_fill(masked, pieces.mask_token_id)
    return hidden, input_ids.masked_fill(~chosen, -100)


def _check(input_ids, attention_mask, pieces: WordPieces, probability: float) -> None:
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape:
        raise ValueError(
            f"input_ids and attention_mask must both be (batch, length), got {tuple(input_ids.shape)} and "
            f"{tuple(attention_mask.shape)}."
        )
    if not 0 < probability <= 1:
        raise ValueError(f"probability={probability} must lie in (0, 1].")
    if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < len(pieces):
        raise ValueError(
            f"input_ids reach from {int(input_ids.min())} to {int(input_ids.max())}, but the vocabulary has "
            f"{len(pieces)} ids. Use the pieces of the tokenizer that made them."
        )
