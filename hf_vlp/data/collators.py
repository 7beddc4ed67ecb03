"""From records to batches: decode, drop what is bad and say so, choose captions, pad.

Here are the parts that all collators share and the collator of captioning; `task_collators` has those of other tasks.

A record is a dict with `image` (anything `load_image` reads) and `captions` (a list of strings; `text`, a string or a
list, is accepted as well). Collators are called with a list of records, as `DataLoader` and `Trainer` do. The trainer
needs `remove_unused_columns=False`, otherwise it removes the very columns the collator reads.

Bad samples
    A picture that cannot be read, or a record without a single caption that holds a word, is dropped from its batch,
    which gets smaller: never a neighbour in its place, never a second draw. `BadSamplePolicy` counts and limits the
    drops. When a whole batch is bad, training still needs something to run on - one process that skips a step would
    leave all the others waiting - so the batch is one white picture whose labels are all -100: no token counts
    towards the loss and no gradient comes from it. The mean over no token at all is not a number, so the trainer must
    divide by one at least: `VlpTrainer` does, the stock `Trainer` does not.

Randomness
    After `set_epoch(epoch)` every draw is a function of (seed, epoch, content of the record): the same on any number
    of workers, in any order of batches, and after a resume in the middle of an epoch. Without `set_epoch` the draws
    come from torch's global generator, which `Trainer` stores in its checkpoints and `DataLoader` seeds per worker
    and epoch; a resume is then exact with `num_workers=0` only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from PIL import Image

from hf_vlp.data.image_io import DEFAULT_MAX_PIXELS, ImageError, load_image

__all__ = [
    "TEXT_COLUMNS",
    "BadSampleError",
    "BadSamplePolicy",
    "CaptionCollator",
    "TrainingCollator",
    "record_captions",
    "record_id",
    "record_name",
    "record_texts",
]

logger = logging.getLogger(__name__)

# Where a record has its text, unless its task says otherwise; the first that is there counts.
TEXT_COLUMNS = ("captions", "text")
_REASONS = ("image", "captions", "other")
_ID_COLUMNS = ("image_id", "file_name", "id", "__key__")


class BadSampleError(ValueError):
    """A bad sample under the policy `raise`, or a budget of bad samples that is used up."""


class BadSamplePolicy:
    """What happens to samples that cannot be used, and how many of them are tolerated.

    Args:
        policy: `"skip"` drops and counts them; the first and every thousandth is logged with its reason. `"raise"`
            stops at the first.
        max_in_a_row: so many bad samples without a good one between them stop the run: the sign of a wrong path or
            column. Counted in each process by itself.
        max_total: so many bad samples in all stop the run; `None` for no limit. A sample that is met again in the
            next epoch counts again.
        max_fraction: a larger share of bad samples stops the run, judged once a thousand samples were seen.

    The counts live in shared memory, one row for each worker of a `DataLoader` (and one for the main process), so
    that the policy object in the main process reports the sum over all of them, finished workers included. Give
    every loader its own policy. A copy made with `copy` or `pickle` counts on its own.
    """

    # Worker ids beyond this share rows; their counts could then lose an increment.
    _ROWS = 257

    def __init__(
        self,
        policy: Literal["skip", "raise"] = "skip",
        *,
        max_in_a_row: int = 50,
        max_total: int | None = 10_000,
        max_fraction: float = 0.1,
    ):
        if policy not in ("skip", "raise"):
            raise ValueError(f"policy must be 'skip' or 'raise', not {policy!r}.")
        if max_in_a_row < 1 or (max_total is not None and max_total < 0):
            raise ValueError(
                f"The budget of bad samples must be positive, got max_in_a_row={max_in_a_row}, max_total={max_total}. "
                "Use policy='raise' to tolerate none."
            )
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_fraction must lie between 0 and 1, not {max_fraction}.")
        self.policy = policy
        self.max_in_a_row = max_in_a_row
        self.max_total = max_total
        self.max_fraction = max_fraction
        self.in_a_row = 0
        # columns: good samples, then one for each reason
        self._table = torch.zeros(self._ROWS, 1 + len(_REASONS), dtype=torch.int64).share_memory_()

    @staticmethod
    def _row() -> int:
        worker = torch.utils.data.get_worker_info()
        return 0 if worker is None else 1 + worker.id % (BadSamplePolicy._ROWS - 1)

    @property
    def counts(self) -> dict[str, int]:
        """Samples seen and dropped so far, in all, and dropped for each reason."""
        good, *bad = self._table.sum(0).tolist()
        return {"seen": good + sum(bad), "bad": sum(bad), **dict(zip(_REASONS, bad))}

    def report(self) -> str:
        """One sentence for the end of a run."""
        counts = self.counts
        if not counts["bad"]:
            return f"No bad samples among {counts['seen']:,}."
        parts = ", ".join(f"{counts[reason]:,} {reason}" for reason in _REASONS if counts[reason])
        share = 100 * counts["bad"] / counts["seen"]
        return f"{counts['bad']:,} of {counts['seen']:,} samples were bad and skipped ({share:.2f} %): {parts}."

    def good(self) -> None:
        """Count a sample that could be used."""
        self.in_a_row = 0
        self._table[self._row(), 0] += 1

    def bad(self, reason: Literal["image", "captions", "other"], message: str) -> None:
        """Count a bad sample; raise `BadSampleError` when the policy or the budget says so."""
        row = self._row()
        self._table[row, 1 + _REASONS.index(reason)] += 1
        self.in_a_row += 1
        if self.policy == "raise":
            raise BadSampleError(f"Bad sample: {message} Use the policy 'skip' to drop such samples and go on.")
        in_this_process = int(self._table[row, 1:].sum())
        if in_this_process == 1 or in_this_process % 1000 == 0:
            where = "" if row == 0 else f" of worker {row - 1}"
            logger.warning("Bad sample number %d%s is skipped: %s", in_this_process, where, message)
        counts = self.counts
        if self.in_a_row >= self.max_in_a_row:
            exceeded = f"{self.in_a_row} samples in a row were bad (max_in_a_row={self.max_in_a_row})"
        elif self.max_total is not None and counts["bad"] > self.max_total:
            exceeded = f"{counts['bad']:,} samples in all were bad (max_total={self.max_total:,})"
        elif counts["seen"] >= 1000 and counts["bad"] > self.max_fraction * counts["seen"]:
            exceeded = f"{counts['bad']:,} of {counts['seen']:,} samples were bad (max_fraction={self.max_fraction:g})"
        else:
            return
        raise BadSampleError(
            f"Too many bad samples: {exceeded}. The last one: {message} Check paths and columns of the data set, or "
            "raise the budget if this much loss is expected."
        )


def record_captions(record: dict[str, Any]) -> list[str]:
    """The captions of a record that hold at least one word, white space tidied.

    Reads `captions`, otherwise `text`; each may be a string, a list of strings (empty ones and `None` are left out),
    or `None`. Raises ValueError when neither column exists, TypeError when a value is not text.
    """
    return record_texts(record, TEXT_COLUMNS)


def record_texts(record: dict[str, Any], columns: Sequence[str]) -> list[str]:
    """As `record_captions`, from the first of these columns that the record has."""
    column = next((name for name in columns if name in record), None)
    if column is None:
        raise ValueError(
            f"The record has neither {' nor '.join(map(repr, columns))}, only {sorted(record)}. "
            f"Map the {'caption' if 'captions' in columns else 'text'} column of the data set (see "
            f"DataArguments.{'caption_columns' if 'captions' in columns else 'text_column'})."
        )
    value = record[column]
    texts = value if isinstance(value, list | tuple) else [value]
    captions = []
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise TypeError(
                f"A {column.removesuffix('s')} must be a string, not {text!r} of type {type(text).__name__}."
            )
        if text is not None and (tidy := " ".join(text.split())):
            captions.append(tidy)
    return captions


def record_id(record: dict[str, Any]) -> Any:
    """What identifies a record: `image_id`, `file_name`, `id`, `__key__`, else the path of its picture, else None."""
    for column in _ID_COLUMNS:
        if record.get(column) is not None:
            return record[column]
    image = record.get("image")
    path = image.get("path") if isinstance(image, dict) else image
    return os.fspath(path) if isinstance(path, str | os.PathLike) else None


def record_name(record: dict[str, Any]) -> str:
    """How messages call a record."""
    identity = record_id(record)
    if identity is None:
        names = ("question_id", "statement_id", "identifier", "example_id")
        identity = next((record[name] for name in names if record.get(name) is not None), None)
    return "a record" if identity is None else f"the record {identity!r}"


def _fingerprint(source: Any) -> str:
    """What tells a picture from others: a digest of its content, or the name of its file without the folder."""
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, str | os.PathLike):
        return os.path.basename(os.fspath(source))
    content = source if isinstance(source, bytes) else getattr(source, "tobytes", bytes)()
    return hashlib.blake2b(content, digest_size=8).hexdigest()


class _Collator:
    """Decoding, the policy and the image processor: what all collators share."""

    def __init__(self, processor, *, bad_samples, max_pixels, size_hint):
        self.processor = processor
        self.bad_samples = BadSamplePolicy() if bad_samples is None else bad_samples
        self.max_pixels = max_pixels
        self.size_hint = size_hint

    def _image(self, record: dict[str, Any]) -> Image.Image | None:
        """The picture, or None when it is bad and was counted."""
        if "image" not in record:
            # a wrong column name is a mistake of the configuration, not of a sample
            raise ValueError(
                f"The record has no 'image', only {sorted(record)}. Map the image column of the data set (see "
                "DataArguments.image_column), and pass remove_unused_columns=False to the trainer."
            )
        return self._decode(record, record["image"])

    def _decode(self, record: dict[str, Any], source) -> Image.Image | None:
        try:
            return load_image(source, max_pixels=self.max_pixels, size_hint=self.size_hint)
        except ImageError as error:
            self.bad_samples.bad("image", f"{record_name(record)}: {error}")
            return None

    def _pixel_values(self, images: list[Image.Image]) -> torch.Tensor:
        return self.processor(images=images, return_tensors="pt")["pixel_values"]


class TrainingCollator(_Collator):
    """Lengths of texts, augmentation and reproducible draws: what collators of texts share."""

    def __init__(
        self,
        processor,
        *,
        max_length: int = 40,
        pad_to_multiple_of: int | None = 8,
        bad_samples: BadSamplePolicy | None = None,
        seed: int = 0,
        augment: Callable[[Image.Image, random.Random], Image.Image] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        size_hint: int | None = None,
    ):
        super().__init__(processor, bad_samples=bad_samples, max_pixels=max_pixels, size_hint=size_hint)
        if max_length < 3:
            raise ValueError(f"max_length must leave room for a word between two special tokens, not {max_length}.")
        self.max_length = max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.seed = seed
        self.augment = augment
        # Shared, so that a worker that lives on over several epochs sees the new number. -1: never set.
        self._epoch = torch.tensor(-1).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Make all draws a function of (seed, epoch, record). Call it before each epoch's iteration starts."""
        self._epoch.fill_(int(epoch))

    def _texts(self, record: dict[str, Any], columns: Sequence[str] = TEXT_COLUMNS) -> list[str]:
        """The usable texts; an empty list when there is none and it was counted."""
        try:
            texts = record_texts(record, columns)
        except TypeError as error:
            self.bad_samples.bad("captions", f"{record_name(record)}: {error}")
            return []
        if not texts:
            self.bad_samples.bad(
                "captions", f"{record_name(record)} has no {columns[0].removesuffix('s')} with a word in it."
            )
        return texts

    def _generator(self, record: dict[str, Any], texts: list[str]) -> random.Random:
        if self._epoch < 0:
            return random.Random(int(torch.randint(2**62, ())))
        # The content is the one name of a record that survives shuffling, sharding, workers and streaming. Two records
        # of equal content draw alike, which does no harm.
        digest = hashlib.blake2b(digest_size=8)
        names = [record.get(column) for column in _ID_COLUMNS]  # no path: it differs between machines
        if not any(texts) and all(name is None for name in names):
            names.append(_fingerprint(record.get("image")))  # nothing else tells pictures alone from one another
        for part in (self.seed, int(self._epoch), *names, *texts):
            digest.update(repr(part).encode("utf-8", "surrogatepass") + b"\0")
        return random.Random(int.from_bytes(digest.digest(), "big"))


class CaptionCollator(TrainingCollator):
    """Training batches of pictures with captions.

    Called with a list of records it returns `pixel_values` (images, 3, H, W) and `input_ids`, `attention_mask`,
    `labels` (rows, T); rows = images * captions per image, the captions of an image in consecutive rows.
    The picture is decoded, processed and encoded once however many captions it has.

    Args:
        processor: called once a batch with `images=` and once with `captions=, max_length=, pad_to_multiple_of=`.
        captions_per_image: 1 draws one caption; a larger number draws so many different ones, and starts over when a
            record has fewer (each then appears equally often, give or take one); `"all"` takes all in their order and
            demands the same number in each record of a batch, otherwise ValueError.
        bad_samples: see `BadSamplePolicy`; by default one that skips.
        seed: of the draws, see the head of this module.
        augment: called as `augment(image, generator)` with a `random.Random` that is reproducible like the draw
            of captions; returns the picture to train on.
        max_pixels, size_hint: passed to `load_image`.
    """

    def __init__(
        self,
        processor,
        *,
        max_length: int = 40,
        pad_to_multiple_of: int | None = 8,
        captions_per_image: int | Literal["all"] = 1,
        bad_samples: BadSamplePolicy | None = None,
        seed: int = 0,
        augment: Callable[[Image.Image, random.Random], Image.Image] | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        size_hint: int | None = None,
    ):
        super().__init__(
            processor,
            max_length=max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            bad_samples=bad_samples,
            seed=seed,
            augment=augment,
            max_pixels=max_pixels,
            size_hint=size_hint,
        )
        is_count = isinstance(captions_per_image, int) and not isinstance(captions_per_image, bool)
        if captions_per_image != "all" and not (is_count and captions_per_image >= 1):
            raise ValueError(f"captions_per_image must be 'all' or a number from 1 on, not {captions_per_image!r}.")
        self.captions_per_image = captions_per_image

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        images, captions = [], []
        for record in records:
            texts = self._texts(record)
            image = self._image(record) if texts else None
            if image is None:
                continue
            self.bad_samples.good()
            generator = self._generator(record, texts)
            captions.append(self._choose(texts, generator))
            images.append(self.augment(image, generator) if self.augment is not None else image)
        if not images:
            return self._empty_batch()
        rows = {len(chosen) for chosen in captions}
        if len(rows) > 1:
            raise ValueError(
                f"captions_per_image='all' needs the same number of captions for each picture of a batch, found "
                f"{sorted(rows)}. Pass a number, for instance captions_per_image={min(rows)}."
            )
        return {
            "pixel_values": self._pixel_values(images),
            **self._tokens([text for chosen in captions for text in chosen]),
        }

    def _tokens(self, captions: list[str]) -> dict[str, torch.Tensor]:
        return dict(
            self.processor(
                captions=captions,
                max_length=self.max_length,
                pad_to_multiple_of=self.pad_to_multiple_of,
                return_tensors="pt",
            )
        )

    def _choose(self, texts: list[str], generator: random.Random) -> list[str]:
        if self.captions_per_image == "all":
            return texts
        count = self.captions_per_image
        shuffled = generator.sample(texts, len(texts))
        return [shuffled[index % len(shuffled)] for index in range(count)]

    def _empty_batch(self) -> dict[str, torch.Tensor]:
        """A batch to run on that teaches nothing (see the head of this module)."""
        rows = self.captions_per_image if isinstance(self.captions_per_image, int) else 1
        tokens = self._tokens(["a"] * rows)
        tokens["labels"] = torch.full_like(tokens["labels"], -100)
        return {"pixel_values": self._pixel_values([Image.new("RGB", (64, 64), "white")]), **tokens}
