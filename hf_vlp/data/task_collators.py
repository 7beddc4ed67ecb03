"""Batches for masked language modelling, pre-training on pairs, retrieval, questions and statements.

All work like `CaptionCollator` (see the head of `hf_vlp.data.collators`): records in, tensors out; what is bad leaves
the batch and is counted; after `set_epoch` every draw is a function of (seed, epoch, content of the record), masking
and augmentation included, whatever batch a record comes in.

======================== ========================================== ==============================================
collator                 columns of a record                        batch, beside `input_ids`, `attention_mask`
======================== ========================================== ==============================================
`MaskedLanguageCollator` `captions` or `text`                       `labels`; the ids are masked
`PreTrainingCollator`    `image`, `captions` or `text`              `pixel_values`, `mlm_input_ids`, `labels`
`ImageTextCollator`      `image`, `captions` or `text`              `pixel_values`
`QuestionCollator`       `image`, `question`, answers               `pixel_values`, `labels` (rows, answers)
`PairImagesCollator`     `images` or `image_left` and `image_right` `pixel_values` (rows, 2, 3, H, W), `labels` (rows,)
                         or `image`; `statement`; `label`
======================== ========================================== ==============================================

The processor is called as `processor(images=, text=, padding=, truncation=True, max_length=, pad_to_multiple_of=,
return_tensors="pt")`, once a batch. A record with several texts gets one of them, drawn. Texts beyond `max_length` are
cut at their end; `MaskedLanguageCollator` can draw a part of them instead.

A batch without any good record is one row of white pictures with the text "a" and labels of -100 throughout. Models
must take -100 for "nothing to learn", in rows of soft labels as well, and give the loss 0 for such a batch. (The
contrastive loss of a single pair is 0 by itself; `PreTrainingCollator` makes two equal rows.)
"""

from __future__ import annotations

import numbers
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image

from hf_vlp.data.answers import AnswerVocabulary, soft_scores
from hf_vlp.data.collators import TEXT_COLUMNS, TrainingCollator, record_name
from hf_vlp.data.masking import BUDGETS, WordPieces, draw_noise, mask_tokens, mask_whole_words
from hf_vlp.data.tokenization import text_windows
from hf_vlp.metrics.vqa import human_answers, normalize_answer

__all__ = [
    "IGNORED",
    "ImageTextCollator",
    "MaskedLanguageCollator",
    "MaskingCollator",
    "PairImagesCollator",
    "PreTrainingCollator",
    "QuestionCollator",
    "Row",
    "TaskCollator",
    "find_label",
]

IGNORED = -100  # the label of what is not to be learnt


def find_label(label2id: Mapping[str, int], label: Any) -> int:
    """The class number of a label, which may be a number, a truth value or a name.

    A name counts as it stands; where no class is called so, without white space around it and whatever its case,
    unless several classes are meant then. Raises ValueError for what is none of the classes.
    """
    if isinstance(label, str):
        if label in label2id:
            return int(label2id[label])
        name = label.strip()
        alike = [name] if name in label2id else [one for one in label2id if str(one).lower() == name.lower()]
        if len({label2id[one] for one in alike}) == 1:
            return int(label2id[alike[0]])
        if alike:
            raise ValueError(f"The label {label!r} may mean {' or '.join(map(repr, alike))}: write it as one of them.")
    elif isinstance(label, numbers.Integral) and label in label2id.values():
        return int(label)
    names = ", ".join(map(repr, list(label2id)[:20])) + (", ..." if len(label2id) > 20 else "")
    raise ValueError(f"The label {label!r} is none of {names}, nor the number of one.")


class Row(NamedTuple):
    """One good record: its pictures, the text that was chosen, what the task makes of the rest."""

    images: list[Image.Image]
    text: str
    target: Any
    generator: random.Random | None  # None in the row that stands for a batch without good records


class TaskCollator(TrainingCollator):
    """One text a row, with `num_images` pictures; where `text_columns` is empty, pictures without a text.

    Args:
        pad_to_max_length: pad every batch to `max_length`, as the original VLMo does, not to its longest text.
        keep: columns that come along as lists under their own names, such as ids for an evaluation.
        **options: of all collators: `max_length`, `pad_to_multiple_of`, `bad_samples`, `seed`, `augment`,
            `max_pixels`, `size_hint`; see `CaptionCollator`.

    With `keep` a batch without any good record has no rows, so check the length of a list before running the model.
    """

    text_columns: Sequence[str] = TEXT_COLUMNS
    num_images = 1

    def __init__(self, processor, *, pad_to_max_length: bool = False, keep: Sequence[str] | None = None, **options):
        super().__init__(processor, **options)
        if isinstance(keep, str):
            raise TypeError(f"keep must be a list of columns, not one string; pass [{keep!r}].")
        self.pad_to_max_length = pad_to_max_length
        self.keep = None if keep is None else tuple(keep)

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        rows, kept = [], []
        for record in records:
            row = self._row(record)
            if row is None:
                continue
            self.bad_samples.good()
            rows.append(row)
            kept.append([self._kept(record, column) for column in self.keep or ()])
        if rows:
            batch = self._batch(rows)
        else:
            white = [Image.new("RGB", (64, 64), "white") for _ in range(self.num_images)]
            batch = self._batch([Row(white, "a", self._no_target(), None)])
            if self.keep is not None:
                batch = {name: tensor[:0] for name, tensor in batch.items()}
        return {**batch, **{column: [row[index] for row in kept] for index, column in enumerate(self.keep or ())}}

    def _row(self, record: dict[str, Any]) -> Row | None:
        """The record as a row, or None when it is bad and was counted."""
        texts = self._texts(record, self.text_columns) if self.text_columns else [""]
        target = self._target(record) if texts else None
        images = self._images(record) if target is not None else None
        if images is None:
            return None
        generator = self._generator(record, texts)
        text = generator.choice(texts)
        if self.augment is not None:
            images = [self.augment(image, generator) for image in images]
        return Row(images, text, target, generator)

    def _images(self, record: dict[str, Any]) -> list[Image.Image] | None:
        image = self._image(record)
        return None if image is None else [image]

    def _target(self, record: dict[str, Any]) -> Any:
        """What the record has as label, or None when that is bad and was counted."""
        return ()

    def _no_target(self) -> Any:
        return ()

    def _batch(self, rows: list[Row]) -> dict[str, torch.Tensor]:
        inputs: dict[str, Any] = {"text": [row.text for row in rows]}
        if self.num_images:
            inputs["images"] = [row.images if self.num_images > 1 else row.images[0] for row in rows]
        batch = self.processor(
            **inputs,
            padding="max_length" if self.pad_to_max_length else True,
            truncation=True,
            max_length=self.max_length,
            pad_to_multiple_of=None if self.pad_to_max_length else self.pad_to_multiple_of,
            return_tensors="pt",
        )
        names = ("pixel_values", "input_ids", "attention_mask")
        return {name: batch[name] for name in names[0 if self.num_images else 1 :]}

    def _kept(self, record: dict[str, Any], column: str):
        if column not in record:
            raise ValueError(f"The record has no column {column!r} to keep, only {sorted(record)}.")
        return record[column]


class ImageTextCollator(TaskCollator):
    """Pairs for contrastive learning and retrieval: `pixel_values`, `input_ids`, `attention_mask`.

    Options: see `CaptionCollator`, `pad_to_max_length` and `keep` (columns to come along as lists).
    """


class MaskingCollator(TaskCollator):
    """Draws what is masked row by row, hides it in the whole batch at once.

    Args:
        mask_probability: share of the pieces that are hidden.
        whole_word: hide words, not single pieces.
        mask_budget: how many: `"tokens"`, or `"padded_length"` as in the original, for which batches are padded to
            `max_length`; see `mask_whole_words`.
        exact_count: of single pieces, see `mask_tokens`.
    """

    def __init__(
        self,
        processor,
        *,
        mask_probability: float = 0.15,
        whole_word: bool = True,
        mask_budget: Literal["tokens", "padded_length"] = "tokens",
        exact_count: bool = False,
        **options,
    ):
        if mask_budget not in BUDGETS:
            raise ValueError(f"mask_budget must be one of {', '.join(BUDGETS)}, not {mask_budget!r}.")
        if not 0 < mask_probability <= 1:
            raise ValueError(f"mask_probability={mask_probability} must lie in (0, 1].")
        super().__init__(processor, **{"pad_to_max_length": mask_budget == "padded_length", **options})
        tokenizer = getattr(processor, "tokenizer", processor)
        self.pieces = WordPieces.from_tokenizer(tokenizer)
        if whole_word and not self.pieces.continues.any():
            raise ValueError(
                f"The vocabulary of {type(tokenizer).__name__} has no piece that begins with '##', so words cannot be "
                "told from their parts. Take a WordPiece tokenizer, or whole_word=False."
            )
        self.mask_probability = mask_probability
        self.whole_word = whole_word
        self.mask_budget = mask_budget
        self.exact_count = exact_count

    def _mask(self, rows: list[Row], batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(masked ids, labels) of a batch, both (rows, length)."""
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        if rows[0].generator is None:
            return input_ids.clone(), torch.full_like(input_ids, IGNORED)
        # Drawn for the greatest length there can be: a row's masking must not depend on the padding of its batch.
        multiple = self.pad_to_multiple_of or 1
        longest = -(-self.max_length // multiple) * multiple
        seeds = (row.generator.getrandbits(63) for row in rows)
        noise = torch.stack([draw_noise((longest,), torch.Generator().manual_seed(seed)) for seed in seeds])
        options = {"probability": self.mask_probability, "noise": noise[..., : input_ids.shape[1]]}
        if self.whole_word:
            return mask_whole_words(input_ids, attention_mask, self.pieces, budget=self.mask_budget, **options)
        options |= {"at_least_one": self.mask_budget == "tokens", "exact_count": self.exact_count}
        return mask_tokens(input_ids, attention_mask, self.pieces, **options)


class MaskedLanguageCollator(MaskingCollator):
    """Texts with hidden words (VLMo's stage 2): `input_ids` (masked), `attention_mask`, `labels` (-100: not hidden).

    Pictures that the records hold are not looked at.

    Args:
        processor: a processor, or a BERT tokenizer alone.
        draw_windows: of a text beyond `max_length`, take one of the parts that it is divided into between words (see
            `text_windows`), drawn as everything is: over the epochs all of it is seen, each part as often. False
            takes its beginning.
        mask_probability, whole_word, mask_budget: share and kind of what is hidden: whole words by default;
            `mask_budget="padded_length"` reproduces the original's count, see `mask_whole_words`.
    """

    num_images = 0

    def __init__(self, processor, *, draw_windows: bool = False, **options):
        super().__init__(processor, **options)
        self.draw_windows = draw_windows

    def _row(self, record):
        row = super()._row(record)
        if row is None or not self.draw_windows:
            return row
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        windows = text_windows(tokenizer, row.text, self.max_length - tokenizer.num_special_tokens_to_add())
        # No draw where there is no choice: what is hidden of a short text is the same with and without.
        return row._replace(text=row.generator.choice(windows)) if len(windows) > 1 else row

    def _images(self, record):
        return []

    def _batch(self, rows):
        batch = super()._batch(rows)
        batch["input_ids"], batch["labels"] = self._mask(rows, batch)
        return batch


class PreTrainingCollator(MaskingCollator):
    """Pairs for VLMo's stage 3: `pixel_values`, `input_ids`, `attention_mask`, `mlm_input_ids`, `labels`.

    `input_ids` are whole, `mlm_input_ids` the same with words hidden, `labels` those of the hidden pieces. Options as
    in `MaskedLanguageCollator`. Hard negatives need two pairs at least over all processes: train with
    `dataloader_drop_last`, lest the last batch of an epoch hold a single one.
    """

    def _batch(self, rows):
        if rows[0].generator is None:
            # The second row keeps the search for hard negatives going. As both are equal, masked language modelling
            # and the contrastive loss have no gradient; the matching head alone learns from the two.
            rows = rows * 2
        batch = super()._batch(rows)
        batch["mlm_input_ids"], batch["labels"] = self._mask(rows, batch)
        return batch


class QuestionCollator(TaskCollator):
    """Questions about pictures, answers as soft labels: `labels` (rows, answers), float scores in [0, 1].

    A record has `image`, `question` and one of

    * `labels` and `scores`: class numbers and their scores, lists of one length (no `scores`: 1 each);
    * `answers`, those of its annotators as strings or as VQA's dicts, or `answer`, a single one: scored by
      `soft_scores`, which gives a single answer the score 1.

    A question none of whose answers is in the vocabulary is dropped and counted as bad, as the original drops it. If
    that is more than the policy tolerates, filter the records or enlarge the vocabulary.

    Args:
        vocabulary: the answers in the order of their labels: an `AnswerVocabulary`, a list, or `label2id` of a
            configuration. May be left out when the records have `labels`, but then `num_labels` is needed.
        normalize_answers: look answers that the vocabulary does not have up in their normalised form; the original
            does not (`hf_vlp.data.answers` tells more).
        with_labels: False for questions without answers; give `keep=["question_id"]` to know them again.
    """

    text_columns = ("question", "text")

    def __init__(
        self,
        processor,
        *,
        vocabulary: AnswerVocabulary | Sequence[str] | Mapping[str, int] | None = None,
        num_labels: int | None = None,
        normalize_answers: bool = True,
        with_labels: bool = True,
        **options,
    ):
        super().__init__(processor, **options)
        if isinstance(vocabulary, Mapping):
            if sorted(vocabulary.values()) != list(range(len(vocabulary))):
                raise ValueError(f"label2id must number its {len(vocabulary)} answers from 0 without gaps.")
            vocabulary = sorted(vocabulary, key=vocabulary.__getitem__)
        if vocabulary is not None and not isinstance(vocabulary, AnswerVocabulary):
            vocabulary = AnswerVocabulary(vocabulary)
        if num_labels is None and vocabulary is not None:
            num_labels = len(vocabulary)
        if with_labels and num_labels is None:
            raise ValueError("Labels need the vocabulary of the answers, or num_labels when records have labels.")
        if vocabulary is not None and num_labels != len(vocabulary):
            raise ValueError(f"num_labels={num_labels} does not fit a vocabulary of {len(vocabulary)} answers.")
        self.vocabulary = vocabulary
        self.num_labels = num_labels
        self.normalize_answers = normalize_answers
        self.with_labels = with_labels

    def _target(self, record):
        if not self.with_labels:
            return ()
        labels, scores = self._labels_and_scores(record)
        if not labels:
            self.bad_samples.bad("other", f"{record_name(record)}: none of its answers is in the vocabulary.")
            return None
        if len(labels) != len(scores) or not all(0 <= label < self.num_labels for label in labels):
            self.bad_samples.bad(
                "other",
                f"{record_name(record)}: labels {labels} with scores {scores} are none of {self.num_labels} classes.",
            )
            return None
        return labels, scores

    def _labels_and_scores(self, record) -> tuple[list[int], list[float]]:
        if record.get("labels") is not None:
            labels = list(record["labels"])
            return labels, list(record["scores"]) if record.get("scores") is not None else [1.0] * len(labels)
        column = next((name for name in ("answers", "answer") if record.get(name) is not None), None)
        if column is None:
            if any(name in record for name in ("labels", "answers", "answer")):
                return [], []  # an empty cell
            raise ValueError(
                f"The record has neither 'labels' nor 'answers' nor 'answer', only {sorted(record)}. Map the answer "
                "column of the data set (see DataArguments.answer_column), or pass with_labels=False."
            )
        if self.vocabulary is None:
            raise ValueError(f"The records have {column!r}: give the vocabulary that turns answers into labels.")
        if not record[column]:
            return [], []
        answers = human_answers(record)
        if self.normalize_answers:
            answers = [answer if answer in self.vocabulary else normalize_answer(answer) for answer in answers]
        return soft_scores(answers, self.vocabulary, normalize_raw_answers=False)

    def _no_target(self):
        return range(self.num_labels), [IGNORED] * self.num_labels

    def _batch(self, rows):
        batch = super()._batch(rows)
        if self.with_labels:
            batch["labels"] = torch.zeros(len(rows), self.num_labels)
            for scores_of_row, row in zip(batch["labels"], rows):
                labels, scores = row.target
                scores_of_row[list(labels)] = torch.tensor(scores, dtype=torch.float)
        return batch


class PairImagesCollator(TaskCollator):
    """Statements about two pictures (NLVR2): `pixel_values` (rows, 2, 3, H, W), `labels` (rows,), 1 for a true one.

    A record has `images`, left and right, or `image_left` and `image_right`; `statement` (or `sentence`, `text`); and
    `label`: a class number, a truth value, or a name.

    Args:
        num_images: 1 for statements about the one picture `image` (NLVR): `pixel_values` are (rows, 3, H, W).
        label2id: names and numbers of the classes, see `find_label`; those of false and true unless given.
        with_labels: False for statements without labels.
    """

    text_columns = ("statement", "sentence", "text")

    def __init__(
        self,
        processor,
        *,
        num_images: int = 2,
        label2id: Mapping[str, int] | None = None,
        with_labels: bool = True,
        **options,
    ):
        super().__init__(processor, **options)
        if num_images not in (1, 2):
            raise ValueError(f"num_images must be 1 or 2, not {num_images}.")
        self.num_images = num_images
        self.label2id = dict(label2id or {"false": 0, "true": 1})
        self.with_labels = with_labels

    def _images(self, record):
        if self.num_images == 1:
            return super()._images(record)
        if "images" in record:
            sources = record["images"] or ()
        elif {"image_left", "image_right"} <= set(record):
            sources = (record["image_left"], record["image_right"])
        else:
            raise ValueError(
                f"The record has neither 'images' nor 'image_left' and 'image_right', only {sorted(record)}. Map the "
                "two columns (see DataArguments.image_columns), and pass remove_unused_columns=False to the trainer; "
                "statements about one picture need num_images=1."
            )
        if len(sources) != 2:
            self.bad_samples.bad("image", f"{record_name(record)} has {len(sources)} pictures, not two.")
            return None
        images = []
        for source in sources:  # a record with a bad picture is counted once
            image = self._decode(record, source)
            if image is None:
                return None
            images.append(image)
        return images

    def _target(self, record):
        if not self.with_labels:
            return ()
        if "label" not in record:
            raise ValueError(
                f"The record has no 'label', only {sorted(record)}. Map the label column of the data set (see "
                "DataArguments.label_column), or pass with_labels=False."
            )
        try:
            return find_label(self.label2id, record["label"])
        except ValueError as error:
            self.bad_samples.bad("other", f"{record_name(record)}: {error}")
            return None

    def _no_target(self):
        return IGNORED

    def _batch(self, rows):
        batch = super()._batch(rows)
        if self.with_labels:
            batch["labels"] = torch.tensor([row.target for row in rows])
        return batch
