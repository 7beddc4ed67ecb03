"""Models measured: one door for all tasks, and captioning with the two baselines that show that the model looks."""

import inspect
import json
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from hf_vlp.data.collators import BadSamplePolicy, record_captions
from hf_vlp.data.image_io import DEFAULT_MAX_PIXELS
from hf_vlp.evaluation_tasks import predict_records, rank_and_world_size
from hf_vlp.metrics.captioning import CiderDScorer, DocumentFrequencies, caption_metrics, ptb_tokenize
from hf_vlp.pretraining.build import iterate_captions
from hf_vlp.tasks import Task, get_task

logger = logging.get_logger(__name__)

# Prefix of the metrics of a baseline -> how tables call it.
BASELINES = {
    "shuffled_": "pictures shuffled",
    "constant_": "constant",
    "question_only_": "question only",
    "chance_": "chance",
}
# What an evaluation tells beside scores.
COUNTS = (
    *("pictures", "skipped_pictures", "captions_per_second", "constant_candidates", "constant_caption"),
    *("samples", "skipped_samples", "samples_per_second", "constant_answer", "texts", "not_measured"),
)
# Training captions among which the best constant one is searched: all of Flickr8k, the first fifth of COCO.
MAX_CONSTANT_POOL = 100_000

ID_COLUMNS = ("image_id", "file_name", "id", "__key__")


def write_json(path: str | os.PathLike, content) -> Path:
    """Write JSON so that an existing file is replaced by a complete one or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files for the owner only
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def generate_captions(
    model,
    processor,
    records: Iterable[dict],
    *,
    batch_size: int = 32,
    generation: dict | None = None,
    progress: bool = True,
    bad_samples: BadSamplePolicy | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> list[str | None]:
    """Caption the picture of every record, in batches.

    Args:
        model, processor: of an image captioner; the model may be wrapped in adapters. Its mode is kept.
        records: dicts with an `image`. Under torch.distributed each process takes a share, and all get all captions.
        generation: options of `generate`; greedy decoding of 20 new tokens by default.
        progress: show a bar (in the first process).
        bad_samples: what happens to pictures that cannot be read; by default they are skipped and counted.
        max_pixels: see `load_image`.

    Returns one caption per record, `None` where the picture could not be read.
    """
    options = {"max_new_tokens": 20, "do_sample": False, **(generation or {})}

    def caption(images, _):
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
        ids = model.generate(pixel_values=pixel_values, **options)
        ids = ids[:: len(ids) // len(images)]  # the best of num_return_sequences
        return [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]

    return predict_records(
        model,
        records,
        caption,
        batch_size=batch_size,
        description="Captioning",
        progress=progress,
        bad_samples=bad_samples,
        max_pixels=max_pixels,
    )


def shuffled_order(num_pictures: int, seed: int = 0) -> list[int]:
    """A permutation in which no picture stays where it was (one picture alone must)."""
    order = list(range(num_pictures))
    random.Random(seed).shuffle(order)
    # A shuffled list turned by one place sends nothing onto itself.
    turned = order[1:] + order[:1]
    target = [0] * num_pictures
    for place, picture in zip(order, turned):
        target[place] = picture
    return target


def best_constant_caption(
    training_captions: Iterable[str],
    references: Sequence[Sequence[str]],
    *,
    candidates: int = 200,
    progress: bool = False,
) -> tuple[str, float, int]:
    """The training caption that does best when it is given to every picture.

    All training captions are ranked by their similarity to the centroid of the references (TF-IDF of words and pairs
    of words); the first `candidates` different ones are then scored exactly: mean CIDEr-D over all pictures, with the
    document frequencies of the references.

    Returns (caption, its mean CIDEr-D, number of captions that were scored exactly). Raises ValueError when there is
    no training caption, no picture or no candidate.
    """
    captions = list(dict.fromkeys(training_captions))
    if not captions or not references or candidates < 1:
        raise ValueError("A constant caption needs training captions, references and at least one candidate.")
    tokenized = dict(zip(captions, ptb_tokenize(captions)))
    targets = [ptb_tokenize(list(texts)) for texts in references]
    frequencies = DocumentFrequencies.build(targets, tokenize=False)

    def vector(text: str) -> dict[str, float]:
        words = text.split()
        counts = Counter([*words, *(f"{first} {second}" for first, second in pairwise(words))])
        weights = {
            ngram: count * math.log(frequencies.num_images / max(1, frequencies.counts.get(ngram, 1)))
            for ngram, count in counts.items()
        }
        norm = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {ngram: weight / norm for ngram, weight in weights.items()}

    centroid: Counter[str] = Counter()
    for texts in targets:
        for text in texts:
            centroid.update(vector(text))

    def closeness(caption: str) -> float:
        return sum(weight * centroid.get(ngram, 0.0) for ngram, weight in vector(tokenized[caption]).items())

    ranked = sorted(captions, key=closeness, reverse=True)[:candidates]
    scorer = CiderDScorer(frequencies, tokenize=False)
    best = ("", -1.0)
    for caption in tqdm(ranked, desc="Constant captions", disable=not progress):
        score = float(scorer.score([tokenized[caption]] * len(targets), targets).mean())
        if score > best[1]:
            best = (caption, score)
    return *best, len(ranked)


def evaluate_captioning(
    model,
    processor,
    records: Sequence[dict],
    *,
    metrics: Sequence[str] = ("cider_d", "bleu", "exact_match"),
    generation: dict | None = None,
    batch_size: int = 32,
    shuffled_pictures: bool = False,
    training_captions: Iterable[str] | None = None,
    constant_candidates: int = 200,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, float | int | str]:
    """Caption records and score the captions against their references.

    Args:
        records: dicts with `image` and `captions`; those without a reference, or with a bad picture, are left out of
            the scores and counted.
        metrics: names for `hf_vlp.metrics.captioning.caption_metrics`.
        shuffled_pictures: score the same model with the pictures shuffled too, as `shuffled_...`, where there are two.
            A caption depends on its picture alone, so these are the captions already made, each against the
            references of another picture.
        training_captions: if given, the best constant caption among them is scored as `constant_...`.
        constant_candidates: see `best_constant_caption`.
        predictions_path: JSON file for the captions and metrics, written at once or not at all.
        generation, batch_size, progress, bad_samples: see `generate_captions`. seed: of the shuffling.

    Returns the scores, with the counts `pictures`, `skipped_pictures` and the rate `captions_per_second`.
    Raises ValueError when no record has both a readable picture and a reference.
    """
    start = time.perf_counter()
    captions = generate_captions(
        model,
        processor,
        records,
        batch_size=batch_size,
        generation=generation,
        progress=progress,
        bad_samples=bad_samples,
    )
    seconds = time.perf_counter() - start
    rows = []
    for index, caption in enumerate(captions):
        record = records[index]
        references = record_captions(record)
        if caption is not None and references:
            name = next((record[column] for column in ID_COLUMNS if record.get(column) is not None), index)
            rows.append({"id": name, "caption": caption, "references": references})
    if not rows:
        raise ValueError(
            f"None of the {len(captions)} records has a readable picture and a reference caption: nothing to evaluate."
        )
    predictions = [row["caption"] for row in rows]
    references = [row["references"] for row in rows]
    results: dict[str, float | int | str] = dict(caption_metrics(predictions, references, tuple(metrics)))
    if shuffled_pictures and len(rows) > 1:
        shuffled = [predictions[picture] for picture in shuffled_order(len(rows), seed)]
        scores = caption_metrics(shuffled, references, tuple(metrics))
        results |= {f"shuffled_{name}": value for name, value in scores.items()}
    if training_captions is not None and constant_candidates > 0:
        constant, _, num_candidates = best_constant_caption(
            training_captions, references, candidates=constant_candidates, progress=progress
        )
        scores = caption_metrics([constant] * len(rows), references, tuple(metrics))
        results |= {f"constant_{name}": value for name, value in scores.items()}
        results |= {"constant_caption": constant, "constant_candidates": num_candidates}
    results["pictures"] = len(rows)
    results["skipped_pictures"] = len(captions) - len(rows)
    results["captions_per_second"] = round(len(captions) / max(seconds, 1e-9), 2)
    if predictions_path is not None and rank_and_world_size()[0] == 0:
        write_json(predictions_path, {"metrics": results, "predictions": rows})
    return results


def is_score(name: str) -> bool:
    """Whether a key of an evaluation is a metric of the model itself: neither a baseline's nor a count."""
    return name not in COUNTS and not name.startswith(tuple(BASELINES))


def format_scores(split: str, scores: dict) -> str:
    """A table: one line per metric, the model beside its baselines."""
    columns = [("model", "")]
    columns += [
        (title, prefix)
        for prefix, title in BASELINES.items()
        if any(name.startswith(prefix) and name not in COUNTS for name in scores)
    ]
    names = [name for name in scores if is_score(name)]
    width = max(map(len, [split, *names]))
    lines = [f"{split.ljust(width)}  " + "  ".join(title.rjust(17) for title, _ in columns)]
    for name in names:
        cells = (
            f"{scores[prefix + name]:.4f}".rjust(17) if prefix + name in scores else " " * 17 for _, prefix in columns
        )
        lines.append(f"{name.ljust(width)}  {'  '.join(cells)}".rstrip())
    kind = "pictures" if "pictures" in scores else "samples"
    lines.append(f"{scores[kind]} {kind}, {scores[f'skipped_{kind}']} skipped")
    if "constant_caption" in scores:
        lines.append(f"constant: {scores['constant_caption']!r}, best of {scores['constant_candidates']} candidates")
    if "not_measured" in scores:
        lines.append(f"not measured: {scores['not_measured']}")
    if "constant_answer" in scores:
        lines.append(f"constant: {scores['constant_answer']!r}, the most frequent answer of the training data")
    return "\n".join(lines)


def evaluate_model(
    model, processor, records: Sequence[dict], task: str | Task = "captioning", *, training_records=None, **options
) -> dict[str, Any]:
    """Measure a model on records: the metrics of the task, beside the baselines that it must beat.

    Args:
        model, processor: of a model with the head of the task; the model may be wrapped in adapters.
        records: a sequence of records as `load_records` gives them.
        task: name in `hf_vlp.tasks.TASKS`.
        training_records: what the baselines are learnt from: the best constant caption, the most frequent answer, the
            most frequent answer to the same question. Without them these are left out.
        options: of the function that measures this task (`Task.evaluate`), such as `batch_size`,
            `shuffled_pictures`, `predictions_path`, `bad_samples`, `progress`, `seed`.

    Returns plain JSON data. Baselines have the names of the metrics behind the prefixes of `BASELINES`.
    Raises ValueError for an option that the task does not have, and when no record can be measured.
    """
    task = get_task(task)
    function = task.load("evaluate")
    known = inspect.signature(function).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise ValueError(
            f"The evaluation of {task.name} has no option {unknown}; it takes {', '.join(list(known)[3:])}."
        )
    if options.get("shuffled_pictures") and len(records) < 2:
        logger.warning("There is no other record whose picture could be shown instead: no shuffled pictures.")
        options["shuffled_pictures"] = False
    if training_records is not None:
        if "training_captions" in known:
            options["training_captions"] = islice(iterate_captions(training_records), MAX_CONSTANT_POOL)
        elif "training_records" in known:
            options["training_records"] = training_records
    return function(model, processor, records, **options)


__all__ = [
    "BASELINES",
    "best_constant_caption",
    "evaluate_captioning",
    "evaluate_model",
    "format_scores",
    "generate_captions",
    "shuffled_order",
    "write_json",
]
