"""Batches for masked image modelling and for joint pre-training on pairs, texts and pictures.

All work like the collators of `hf_vlp.data.task_collators`: records in, tensors out; what is bad leaves the batch and
is counted; after `set_epoch` every draw is a function of (seed, epoch, content of the record).

=========================== ========================================== ===========================================
collator                    columns of a record                        batch
=========================== ========================================== ===========================================
`MaskedImageCollator`       `image`                                    `pixel_values`, `bool_masked_pos`, targets
`MaskedPairCollator`        `image`, `captions` or `text`              the same, `input_ids` (masked),
                                                                       `attention_mask`, `labels`
`JointPreTrainingCollator`  `pair`, `text`, `image`: records of these  those of pairs; of texts as `text_input_ids`,
                                                                       ...; of pictures as `image_pixel_values`, ...
=========================== ========================================== ===========================================

`bool_masked_pos` (rows, patches) is True where a patch is hidden, row by row of the picture. The targets are the
visual tokens of all patches: `visual_token_ids` (rows, patches) where the records have a column of this name, which
was cached from the whole pictures; otherwise `tokenizer_pixel_values` (rows, 3, side, side) in [0, 1], the same part
of the picture for a visual tokenizer to look at.

A batch without any good record is one white picture without a hidden patch and one text without a hidden word. Models
must give the loss 0 for it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend

from hf_vlp.data.collators import BadSamplePolicy, TrainingCollator, record_name
from hf_vlp.data.patch_masks import draw_block_mask, num_masked_patches
from hf_vlp.data.task_collators import IGNORED, MaskedLanguageCollator, MaskingCollator, Row, TaskCollator

__all__ = [
    "SIDES",
    "TOKEN_IDS",
    "VIEW",
    "JointPreTrainingCollator",
    "MaskedImageCollator",
    "MaskedPairCollator",
    "check_patches_stay",
    "make_tokenizer_view",
]

SIDES = ("both", "text", "image", "alternate")
# Ends of the names under which a batch holds what a visual tokenizer looks at, and its ids (a column of records too).
VIEW, TOKEN_IDS = "tokenizer_pixel_values", "visual_token_ids"


def check_patches_stay(augment: Callable | None) -> None:
    """Raise ValueError for an augmentation under which cached visual tokens would be those of other patches."""
    if augment is not None and getattr(augment, "is_geometric", True):
        raise ValueError(
            f"The records have cached {TOKEN_IDS} of whole pictures, and {type(augment).__name__} trains on parts or "
            "mirrored ones, whose patches are others. Leave out the augmentation (colours alone may change: "
            f"beit_pretraining with min_scale 1 and flip false), or the column {TOKEN_IDS} "
            "(model.cache_visual_tokens)."
        )


def make_tokenizer_view(image: Image.Image, side: int, resample: str) -> torch.Tensor:
    """What a visual tokenizer sees of a picture: all of it, (3, side, side) in [0, 1].

    Made by Pillow whatever the image processor of the model does: another back end rounds differently, which moves
    patches to other codes.
    """
    pixels = np.asarray(image.convert("RGB").resize((side, side), Image.Resampling[resample.upper()]))
    return torch.from_numpy(pixels.transpose(2, 0, 1) / np.float32(255))


def check_resample(resample: str) -> None:
    """Raise ValueError for a filter that Pillow does not have."""
    if resample.upper() not in Image.Resampling.__members__:
        raise ValueError(f"tokenizer_resample={resample!r} is not bicubic, lanczos or bilinear.")


def _square_side(image_processor) -> int:
    """Side of the squares that an image processor makes of whole pictures.

    Raises ValueError for one that crops, pads or keeps proportions: its patches would not be those that a visual
    tokenizer sees.
    """
    wrong = [name for name in ("do_center_crop", "do_pad") if getattr(image_processor, name, None)]
    size = {name: value for name, value in dict(getattr(image_processor, "size", None) or {}).items() if value}
    if not getattr(image_processor, "do_resize", True):
        wrong.append("do_resize=False")
    if "height" not in size or size["height"] != size.get("width"):
        wrong.append("size: " + (", ".join(f"{name}={value}" for name, value in size.items()) or "not set"))
    if wrong:
        raise ValueError(
            "Hidden patches and visual tokens must be of the same parts of a picture, and "
            f"{type(image_processor).__name__} does not squeeze whole pictures into a square ({'; '.join(wrong)}). "
            "Take a MomeImageProcessor, or switch cropping and padding off and set size to {'height': side, 'width': "
            "side} with the model's image_size."
        )
    return size["height"]


class _Repeating(TrainingCollator):
    """Draws anew for the records of a repetition (`JointRecords`) or of a later pass of a stream (`JointStream`)."""

    def _generator(self, record: dict[str, Any], texts: list[str]) -> random.Random:
        generator = super()._generator(record, texts)
        return random.Random(f"{generator.getrandbits(64)} {record['pass']}") if record.get("pass") else generator


class _PatchMasking(_Repeating, TaskCollator):
    """Hides patches of pictures and brings along what is to be predicted there.

    Raises ValueError for a processor that crops, pads or keeps the proportions of pictures.

    Args:
        window_size: patches along a side of the picture, `window_size` of the model's configuration.
        image_mask_ratio: share of the patches that is hidden, see `num_masked_patches`.
        exact_mask_count: hide exactly so many, as in BEiT v2, not at most (`draw_block_mask`).
        tokenizer_image_size: side of `tokenizer_pixel_values`; by default that of the processor's pictures.
        tokenizer_resample: how these are resized: `"bicubic"` for VQ-KD, `"lanczos"` (to 112) for DALL-E's tokenizer,
            a callable of which maps values x to 0.8 x + 0.1 itself.
    """

    def __init__(
        self,
        processor,
        *,
        window_size: int,
        image_mask_ratio: float = 0.4,
        exact_mask_count: bool = True,
        tokenizer_image_size: int | None = None,
        tokenizer_resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic",
        **options,
    ):
        super().__init__(processor, **options)
        image_processor = getattr(processor, "image_processor", processor)
        side = _square_side(image_processor)
        if tokenizer_image_size is None:
            tokenizer_image_size = side
        if window_size < 2 or tokenizer_image_size < 1:
            raise ValueError(
                f"window_size={window_size} must be at least 2, and tokenizer_image_size={tokenizer_image_size} at "
                "least 1."
            )
        check_resample(tokenizer_resample)
        self.window_size = window_size
        self.num_patches = window_size**2
        self.num_masked = num_masked_patches(self.num_patches, image_mask_ratio)
        self.exact_mask_count = exact_mask_count
        self.tokenizer_image_size = tokenizer_image_size
        self.tokenizer_resample = tokenizer_resample
        # Where Pillow would resize a picture twice alike it does so once, a third less work for one of 640 x 480. Both
        # views stay the same bit for bit, which with another back end they would not.
        self._has_one_size = (
            isinstance(image_processor, PilBackend)
            and side == tokenizer_image_size
            and image_processor.resample == Image.Resampling[tokenizer_resample.upper()]
        )
        self._has_token_ids = False

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        self._has_token_ids = bool(records) and TOKEN_IDS in records[0]
        if self._has_token_ids:
            check_patches_stay(self.augment)
        return super().__call__(records)

    def _row(self, record: dict[str, Any]) -> Row | None:
        row = super()._row(record)
        if row is None or self._has_token_ids or not self._has_one_size:
            return row
        size = (self.tokenizer_image_size, self.tokenizer_image_size)
        resample = Image.Resampling[self.tokenizer_resample.upper()]
        return row._replace(images=[image.convert("RGB").resize(size, resample) for image in row.images])

    def _target(self, record: dict[str, Any]) -> Any:
        if not self._has_token_ids:
            return ()
        ids = record.get(TOKEN_IDS)
        if ids is None:
            # None is what a picture has that could not be read when they were cached: read now, it gives the reason.
            if self._image(record) is not None:
                self.bad_samples.bad("image", f"{record_name(record)} has no {TOKEN_IDS}, others do.")
            return None
        ids = torch.as_tensor(ids)
        if ids.numel() != self.num_patches or ids.is_floating_point():
            raise ValueError(
                f"{TOKEN_IDS} must be {self.num_patches} whole numbers, one for each of {self.window_size} x "
                f"{self.window_size} patches, not {ids.numel()} of {ids.dtype}. Cache them with a tokenizer of that "
                "grid."
            )
        return ids.long().flatten()

    def _no_target(self) -> Any:
        return torch.zeros(self.num_patches, dtype=torch.long) if self._has_token_ids else ()

    def _hide_patches(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        """`bool_masked_pos` and the targets of a batch."""
        masks = [self._draw_mask(row.generator) for row in rows]
        batch = {"bool_masked_pos": torch.stack(masks)}
        if self._has_token_ids:
            return {**batch, TOKEN_IDS: torch.stack([row.target for row in rows])}
        view = (self.tokenizer_image_size, self.tokenizer_resample)
        return {**batch, VIEW: torch.stack([make_tokenizer_view(row.images[0], *view) for row in rows])}

    def _draw_mask(self, generator: random.Random | None) -> torch.Tensor:
        if generator is None:
            return torch.zeros(self.num_patches, dtype=torch.bool)
        return draw_block_mask(
            self.window_size, self.window_size, self.num_masked, generator, exact=self.exact_mask_count
        )


class MaskedImageCollator(_PatchMasking):
    """Pictures with hidden patches: `pixel_values` (rows, 3, H, W), `bool_masked_pos` and the targets.

    Texts that the records hold are not looked at.

    Args:
        window_size, image_mask_ratio, exact_mask_count, tokenizer_image_size, tokenizer_resample: number and kind of
            the hidden patches, and the view of the visual tokenizer:
            patches along a side; share (0.4) of them that is hidden; exactly or at most so many; side (by default
            that of the processor's pictures) and `"bicubic"`, `"lanczos"` or `"bilinear"`.
        options: `bad_samples`, `seed`, `augment`, `max_pixels`, `size_hint`; see `CaptionCollator`.

    Raises ValueError for an image processor that crops, pads or keeps the proportions of pictures, and where records
    have cached `visual_token_ids` and `augment` moves the patches.
    """

    text_columns = ()

    def _batch(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self._pixel_values([row.images[0] for row in rows]), **self._hide_patches(rows)}


class MaskedPairCollator(_PatchMasking, MaskingCollator):
    """Pairs with hidden words and hidden patches: `input_ids` (masked), `attention_mask`, `labels` (-100: not hidden)
    and what `MaskedImageCollator` gives.

    Args:
        mask_sides: `"both"` hides words and patches at the same time; `"text"` and `"image"` one of them, and the
            batch holds no targets of the other; `"alternate"` one of them in each pair, drawn. Both at a time is a
            decision of this package, the sources do not say it outright.
        mask_probability, whole_word, exact_count: as in `MaskedLanguageCollator`.
        options: those of `MaskedImageCollator` and of all collators.
    """

    def __init__(
        self,
        processor,
        *,
        mask_sides: Literal["both", "text", "image", "alternate"] = "both",
        mask_probability: float = 0.5,
        whole_word: bool = False,
        exact_count: bool = True,
        **options,
    ):
        text = {"mask_probability": mask_probability, "whole_word": whole_word, "exact_count": exact_count}
        super().__init__(processor, **text, **options)
        if mask_sides not in SIDES:
            raise ValueError(f"mask_pair_sides must be one of {', '.join(SIDES)}, not {mask_sides!r}.")
        self.mask_sides = mask_sides

    def _batch(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        batch = super()._batch(rows)
        sides = [self._side(row.generator) for row in rows]
        if self.mask_sides != "image":
            masked, labels = self._mask(rows, batch)
            skipped = torch.tensor([side == "image" for side in sides])[:, None]
            batch["labels"] = labels.masked_fill(skipped, IGNORED)
            batch["input_ids"] = torch.where(skipped, batch["input_ids"], masked)
        if self.mask_sides != "text":
            batch |= self._hide_patches(rows)
            batch["bool_masked_pos"] &= torch.tensor([side != "text" for side in sides])[:, None]
        return batch

    def _side(self, generator: random.Random | None) -> str:
        if self.mask_sides != "alternate" or generator is None:
            return self.mask_sides
        return generator.choice(("text", "image"))


class JointPreTrainingCollator:
    """One batch of pairs, texts and pictures: the inputs of `VlBeitForPreTraining`, flat.

    A record is what `JointRecords` gives: `{"pair": record, "text": record, "image": record}`, `None` for sources that
    there are not; their keys are left out. Bad samples are counted and limited for each source by itself.

    Args:
        processor: of the model.
        window_size: patches along a side of the picture, `window_size` of the model's configuration.
        max_length, pad_to_multiple_of: of all texts.
        draw_windows: of texts alone, see `MaskedLanguageCollator`; those of pairs are cut.
        mask_probability, pair_mask_probability: share of the word pieces that is hidden in texts and in pairs, an
            exact number of them: max(1, round(share * pieces)).
        whole_word: hide whole words, not single pieces.
        mask_pair_sides: what of a pair is masked, `mask_sides` of `MaskedPairCollator`.
        image_mask_ratio, exact_mask_count: of pictures and of pairs, see `MaskedImageCollator`.
        tokenizer_image_size, tokenizer_resample: likewise.
        augment, image_augment: of pairs and of pictures alone.
        bad_samples: its settings are taken for each source; by default those of `BadSamplePolicy`.
        seed: of all draws.
        options: `max_pixels`, `size_hint`; see `CaptionCollator`.

    (Bao et al., 2022, arXiv 2206.01127; shares from BEiT-3, arXiv 2208.10442.)
    """

    def __init__(
        self,
        processor,
        *,
        window_size: int,
        max_length: int = 40,
        pad_to_multiple_of: int | None = 8,
        draw_windows: bool = False,
        mask_probability: float = 0.15,
        pair_mask_probability: float = 0.5,
        whole_word: bool = False,
        mask_pair_sides: Literal["both", "text", "image", "alternate"] = "both",
        image_mask_ratio: float = 0.4,
        exact_mask_count: bool = True,
        tokenizer_image_size: int | None = None,
        tokenizer_resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic",
        augment: Callable[[Image.Image, random.Random], Image.Image] | None = None,
        image_augment: Callable[[Image.Image, random.Random], Image.Image] | None = None,
        bad_samples: BadSamplePolicy | None = None,
        seed: int = 0,
        **options,
    ):
        text = {"max_length": max_length, "pad_to_multiple_of": pad_to_multiple_of}
        text |= {"whole_word": whole_word, "exact_count": True, "seed": seed}
        picture = {
            "window_size": window_size,
            "image_mask_ratio": image_mask_ratio,
            "exact_mask_count": exact_mask_count,
            "tokenizer_image_size": tokenizer_image_size,
            "tokenizer_resample": tokenizer_resample,
            "seed": seed,
            **options,
        }
        self.bad_samples = _PolicyOfEach(bad_samples or BadSamplePolicy(), ("pair", "text", "image"))
        policies = self.bad_samples.policies
        self.collators: dict[str, TaskCollator] = {
            "pair": MaskedPairCollator(
                processor,
                mask_sides=mask_pair_sides,
                mask_probability=pair_mask_probability,
                augment=augment,
                bad_samples=policies["pair"],
                **{**text, **picture},
            ),
            "text": _MaskedTextCollator(
                processor,
                draw_windows=draw_windows,
                mask_probability=mask_probability,
                bad_samples=policies["text"],
                **text,
            ),
            "image": MaskedImageCollator(processor, augment=image_augment, bad_samples=policies["image"], **picture),
        }

    def set_epoch(self, epoch: int) -> None:
        """Make all draws a function of (seed, epoch, record). Call it before each epoch's iteration starts."""
        for collator in self.collators.values():
            collator.set_epoch(epoch)

    def __call__(self, records: list[Mapping[str, dict[str, Any] | None]]) -> dict[str, torch.Tensor]:
        names = sorted({name for record in records for name, value in record.items() if value is not None})
        if not names or set(names) - self.collators.keys():
            raise ValueError(
                f"A joint record holds records under 'pair', 'text' and 'image', not {names}. Give the data set as "
                "JointRecords."
            )
        batch = {}
        for name, collator in self.collators.items():
            own = [record[name] for record in records if record.get(name) is not None]
            if own:
                prefix = "" if name == "pair" else f"{name}_"
                batch |= {f"{prefix}{key}": value for key, value in collator(own).items()}
        return batch


class _MaskedTextCollator(_Repeating, MaskedLanguageCollator):
    """Texts of joint records."""


class _PolicyOfEach:
    """A policy for each source, and the sum of their counts."""

    def __init__(self, policy: BadSamplePolicy, names: tuple[str, ...]):
        limits = {name: getattr(policy, name) for name in ("max_in_a_row", "max_total", "max_fraction")}
        self.policies = {name: BadSamplePolicy(policy.policy, **limits) for name in names}

    @property
    def counts(self) -> dict[str, int]:
        """Samples seen and dropped in all and for each reason, and dropped of each source (`bad_pair`, ...)."""
        counts: dict[str, int] = {}
        for policy in self.policies.values():
            counts = {name: counts.get(name, 0) + count for name, count in policy.counts.items()}
        return counts | {f"bad_{name}": policy.counts["bad"] for name, policy in self.policies.items()}

    def report(self) -> str:
        """One sentence for each source."""
        return " ".join(f"{name}: {policy.report()}" for name, policy in self.policies.items())
