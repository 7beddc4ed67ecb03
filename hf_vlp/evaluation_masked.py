"""Masked words and hidden patches of held-out records, guessed by models of joint pre-training and of pictures alone.

Called through `hf_vlp.evaluation.evaluate_model`, which says what the arguments that all evaluations share mean.
Accuracies are shares of the hidden words or patches; `constant_...` guesses the one that is hidden most often there.
What is hidden is a function of the seed and the record, the same at every evaluation.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from hf_vlp.data.collators import TEXT_COLUMNS, BadSamplePolicy, record_captions, record_id
from hf_vlp.data.columns import only_columns
from hf_vlp.data.joint import JointRecords
from hf_vlp.data.masked_collators import TOKEN_IDS, JointPreTrainingCollator, MaskedImageCollator
from hf_vlp.evaluation_tasks import (
    Subset,
    WithOtherPictures,
    compare_guesses,
    constant_share,
    finish,
    predict_records,
    require_rows,
    share_of_hits,
)
from hf_vlp.pretraining.visual_tokens import VIEW, VisualTokens, load_visual_tokenizer

__all__ = ["evaluate_joint_pretraining", "evaluate_masked_image"]

VisualTokenizer = VisualTokens | Callable[[torch.Tensor], torch.Tensor] | str | os.PathLike | None


def evaluate_joint_pretraining(
    model,
    processor,
    records: JointRecords | Sequence[dict],
    *,
    batch_size: int = 32,
    max_length: int = 40,
    mask_probability: float = 0.15,
    pair_mask_probability: float = 0.5,
    whole_word: bool = False,
    mask_pair_sides: Literal["both", "text", "image", "alternate"] = "both",
    image_mask_ratio: float = 0.4,
    exact_mask_count: bool = True,
    tokenizer_image_size: int | None = None,
    tokenizer_resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic",
    visual_tokenizer: VisualTokenizer = None,
    shuffled_pictures: bool = False,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """The four objectives of joint pre-training, those whose records are there.

    Scores: `mlm_accuracy`, words of texts alone; `mvlm_text_accuracy` and `mvlm_image_accuracy`, words and patches of
    pairs, the first also with the pictures of other pairs; `mim_accuracy`, patches of pictures alone; and
    `masked_accuracy`, the mean of those that were measured. `not_measured` names the others, each with the reason.

    Args:
        records: `JointRecords`, of which every source is measured once from end to end; or pairs.
        visual_tokenizer: what tells the visual tokens of patches: `VisualTokens`, any callable of pictures in [0, 1],
            or a folder or Hub name of a `VlBeitVqkdTokenizer`. Not needed where records have `visual_token_ids`.
        mask_pair_sides: `"text"` and `"image"` measure that side, with the other one whole; else both are hidden.

    The other settings are those of `JointPreTrainingCollator`. Raises ValueError when patches are to be guessed and
    nothing tells their visual tokens.
    """
    start = time.perf_counter()
    if not isinstance(records, JointRecords):
        records = JointRecords({"pair": records})
    tokens = _make_visual_tokens(visual_tokenizer)
    collator = _make_collator(
        JointPreTrainingCollator,
        processor,
        model,
        tokens,
        max_length=max_length,
        pad_to_multiple_of=None,
        mask_probability=mask_probability,
        pair_mask_probability=pair_mask_probability,
        whole_word=whole_word,
        mask_pair_sides="both" if mask_pair_sides == "alternate" else mask_pair_sides,
        image_mask_ratio=image_mask_ratio,
        exact_mask_count=exact_mask_count,
        tokenizer_image_size=tokenizer_image_size,
        tokenizer_resample=tokenizer_resample,
        seed=seed,
    )

    def guess(name: str, with_patches: bool = True):
        def predict(images, chunk):
            batch = collator([{name: row} for row in _with_pictures(images, chunk)])
            return list(zip(map(record_id, chunk), _guess_batch(model, batch, tokens, _JOINT, with_patches)))

        return predict

    options = {"batch_size": batch_size, "progress": progress, "bad_samples": bad_samples}
    guesses: dict[str, list] = {name: [] for name in _JOINT}  # one entry for each record in which anything is hidden
    shuffled: list = []
    rows: list[dict] = []
    for name, source in records.sources.items():
        usable = range(len(source))
        if name != "image":
            usable = [
                index for index, record in enumerate(only_columns(source, TEXT_COLUMNS)) if record_captions(record)
            ]
        subset = Subset(source, usable)
        found = predict_records(
            model,
            subset,
            guess(name),
            description={"pair": "Pairs", "text": "Texts", "image": "Pictures"}[name],
            has_pictures=name != "text",
            **options,
        )
        for index, outcome in zip(usable, found):
            identity, row = outcome or (None, {})
            for objective, pairs in row.items():
                guesses[objective] += [pairs] if pairs else []
            if any(row.values()):
                rows.append(_describe(processor, identity, index, name, row))
        if name == "pair" and shuffled_pictures and mask_pair_sides != "image" and len(usable) > 1:
            other = WithOtherPictures(subset, seed)
            description = "With other pictures"
            shuffled = predict_records(
                model, other, guess(name, with_patches=False), description=description, **options
            )
    num_records = sum(map(len, records.sources.values()))
    require_rows(rows, num_records, "a text with a word that can be hidden, or a readable picture")
    measured = {name: pairs for name, pairs in guesses.items() if pairs}
    results: dict[str, Any] = {f"{name}_accuracy": share_of_hits(pairs) for name, pairs in measured.items()}
    results["masked_accuracy"] = sum(results.values()) / len(results)
    constant = {f"constant_{name}_accuracy": constant_share(pairs) for name, pairs in measured.items()}
    results |= {**constant, "constant_masked_accuracy": sum(constant.values()) / len(constant)}
    if others := [outcome[1]["mvlm_text"] for outcome in shuffled if outcome is not None and outcome[1]["mvlm_text"]]:
        results["shuffled_mvlm_text_accuracy"] = share_of_hits(others)
    if reasons := [
        f"{name} ({_why_not_measured(name, records, mask_pair_sides)})" for name in _JOINT if name not in measured
    ]:
        results["not_measured"] = "; ".join(reasons)
    return finish(results, rows, num_records, start, predictions_path)


def evaluate_masked_image(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    image_mask_ratio: float = 0.4,
    exact_mask_count: bool = True,
    tokenizer_image_size: int | None = None,
    tokenizer_resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic",
    visual_tokenizer: VisualTokenizer = None,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """Hidden patches of pictures: `mim_accuracy` over their visual tokens, and the most frequent of these.

    Settings are those of `MaskedImageCollator`; `visual_tokenizer` is that of `evaluate_joint_pretraining`.
    """
    start = time.perf_counter()
    tokens = _make_visual_tokens(visual_tokenizer)
    collator = _make_collator(
        MaskedImageCollator,
        processor,
        model,
        tokens,
        image_mask_ratio=image_mask_ratio,
        exact_mask_count=exact_mask_count,
        tokenizer_image_size=tokenizer_image_size,
        tokenizer_resample=tokenizer_resample,
        seed=seed,
    )

    def predict(images, chunk):
        guesses = _guess_batch(model, collator(_with_pictures(images, chunk)), tokens, _PICTURES_ALONE)
        return list(zip(map(record_id, chunk), guesses))

    found = predict_records(
        model,
        records,
        predict,
        batch_size=batch_size,
        description="Pictures",
        progress=progress,
        bad_samples=bad_samples,
    )
    kept = [(index, *outcome) for index, outcome in enumerate(found) if outcome is not None]
    require_rows(kept, len(found), "a readable picture")
    guesses = [row["mim"] for *_, row in kept]
    results = {"mim_accuracy": share_of_hits(guesses), "constant_mim_accuracy": constant_share(guesses)}
    rows = [_describe(processor, identity, index, "image", row) for index, identity, row in kept]
    return finish(results, rows, len(found), start, predictions_path)


# Objective -> names of its targets in a batch and of its logits.
_JOINT = {
    "mlm": ("text_labels", "mlm_logits"),
    "mvlm_text": ("labels", "mvlm_text_logits"),
    "mim": (f"image_{TOKEN_IDS}", "mim_logits"),
    "mvlm_image": (TOKEN_IDS, "mvlm_image_logits"),
}
# Objective -> source of its records, how these are called, and the setting that gives them.
_SOURCES = {
    "mlm": ("text", "texts alone", "data.texts"),
    "mvlm_text": ("pair", "pairs", "data.source"),
    "mim": ("image", "pictures alone", "data.images"),
    "mvlm_image": ("pair", "pairs", "data.source"),
}
_PICTURES_ALONE = {"mim": (TOKEN_IDS, "logits")}


def _make_visual_tokens(visual_tokenizer: VisualTokenizer) -> VisualTokens | None:
    if isinstance(visual_tokenizer, str | os.PathLike):
        visual_tokenizer = load_visual_tokenizer(visual_tokenizer)
    if visual_tokenizer is None or isinstance(visual_tokenizer, VisualTokens):
        return visual_tokenizer
    return VisualTokens(visual_tokenizer)


def _make_collator(collator_class: type, processor, model, tokens, *, tokenizer_image_size: int | None, **options):
    """A collator for the patches of a model that hides the same at every evaluation."""
    size = tokenizer_image_size or _image_size_of(tokens)
    collator = collator_class(processor, window_size=model.config.window_size, tokenizer_image_size=size, **options)
    collator.set_epoch(0)
    return collator


def _why_not_measured(objective: str, records: JointRecords, mask_pair_sides: str) -> str:
    source, what, setting = _SOURCES[objective]
    if source not in records.sources:
        return f"there are no {what}: set {setting}"
    if source == "pair" and mask_pair_sides in ("text", "image"):
        return f"mask_pair_sides is {mask_pair_sides}"
    return "no record is usable, or no word of the texts can be hidden"


def _image_size_of(tokens: VisualTokens | None) -> int | None:
    """Side of the pictures that a visual tokenizer was made for, if it tells."""
    return getattr(getattr(tokens and tokens.tokenizer, "config", None), "image_size", None)


def _with_pictures(images: list, chunk: list[dict]) -> list[dict]:
    """The records with their decoded pictures, those that have one."""
    return [record if image is None else {**record, "image": image} for image, record in zip(images, chunk)]


def _guess_batch(
    model,
    batch: dict[str, torch.Tensor],
    tokens: VisualTokens | None,
    objectives: dict[str, tuple[str, str]],
    with_patches: bool = True,
) -> list[dict[str, list[tuple[int, int]]]]:
    """For each row what was hidden and what the model says, as pairs, under the name of each objective."""
    if not with_patches:
        batch = {name: value for name, value in batch.items() if not name.endswith((VIEW, TOKEN_IDS))}
    batch = {name: value.to(model.device) for name, value in batch.items()}
    if tokens is not None:
        batch = tokens(batch)
    elif any(name.endswith(VIEW) for name in batch):
        raise ValueError(
            "Hidden patches are measured by their visual tokens, and nothing tells them: give visual_tokenizer (a "
            "folder, a Hub name or a callable; --visual-tokenizer on the command line), or records with cached "
            "visual_token_ids."
        )
    targets = {}
    for objective, (name, _) in objectives.items():
        if (labels := batch.pop(name, None)) is not None:
            if name.endswith(TOKEN_IDS):
                hidden = batch[f"{name.removesuffix(TOKEN_IDS)}bool_masked_pos"]
                labels = labels.masked_fill(~hidden, -100)
            targets[objective] = labels
    inputs = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in batch.items()}
    outputs = model(**inputs)
    found = [compare_guesses(outputs[objectives[objective][1]], labels) for objective, labels in targets.items()]
    return [dict(zip(targets, row)) for row in zip(*found)]


def _describe(processor, identity, index: int, source: str, guesses: dict[str, list]) -> dict[str, Any]:
    """What the file of predictions tells of a record: words one by one, of patches how many were right."""
    row: dict[str, Any] = {"source": source, "id": index if identity is None else identity}
    for objective, pairs in guesses.items():
        if objective in ("mlm", "mvlm_text"):
            row["words"] = [processor.tokenizer.convert_ids_to_tokens(list(pair)) for pair in pairs]
        else:
            row["patches"], row["patches_right"] = len(pairs), sum(hidden == guess for hidden, guess in pairs)
    return row
