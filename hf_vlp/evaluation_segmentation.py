"""Semantic segmentation measured on held-out records, beside what it must beat.

Called through `hf_vlp.evaluation.evaluate_model`. Scores are fractions over all labelled pixels, see
`hf_vlp.metrics.segmentation`. The baselines: `shuffled_...`, the same model with the pictures of other records;
`constant_...`, the most frequent class of the training records (of drawn scenes: the background) on every pixel.
"""

import os
import time
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from hf_vlp.data.collators import BadSamplePolicy, record_id
from hf_vlp.data.columns import only_columns
from hf_vlp.data.image_io import ImageError
from hf_vlp.data.segmentation import (
    MAP_COLUMN,
    check_ignore_index,
    check_segmentation_map,
    load_segmentation_map,
)
from hf_vlp.evaluation_tasks import WithOtherPictures, finish, make_inputs, predict_records, require_rows
from hf_vlp.metrics.segmentation import confusion_metrics, count_confusions
from hf_vlp.models.mome.mome_segmentation import predict_sliding

# Training maps that the most frequent class is counted over, at most.
MAX_TRAINING_MAPS = 2000
_WINDOW_OPTIONS = ("shortest_edge", "longest_edge", "stride")


def evaluate_segmentation(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    sliding_window: dict[str, int] | None = None,
    shuffled_pictures: bool = False,
    training_records=None,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """Classes of pixels: `mean_iou`, `pixel_accuracy`, `mean_accuracy`, at the size that each map has.

    Args:
        sliding_window: `{"shortest_edge": 512, "longest_edge": 2048, "stride": 341}`: resize pictures in proportion,
            the shorter side to the first unless the longer would exceed the second, and average the logits of windows
            of the model's size, so many pixels apart (default two thirds). `None` resizes pictures to one window.

    Records have `image` and `segmentation_map`; those where one is bad are left out and counted, once. Where there is
    no other picture, there are no `shuffled_` scores. The file of predictions has the scores of each picture.
    """
    start = time.perf_counter()
    policy = bad_samples or BadSamplePolicy()
    image_processor = getattr(processor, "image_processor", processor)
    num_labels, ignored = model.config.num_labels, model.config.semantic_loss_ignore_index
    if sliding_window is not None and (unknown := sorted(sliding_window.keys() - set(_WINDOW_OPTIONS))):
        raise ValueError(f"sliding_window has no option {unknown}; it takes {', '.join(_WINDOW_OPTIONS)}.")
    reading = {"do_reduce_labels": getattr(image_processor, "do_reduce_labels", False), "ignore_index": ignored}
    check_ignore_index(ignored, num_labels, reading["do_reduce_labels"])

    def segment(images, sizes) -> list[np.ndarray]:
        if sliding_window is None:
            logits = [model(**make_inputs(model, image_processor, images=images)).logits]
        else:
            side = sliding_window.get("shortest_edge", model.config.image_size)
            size = {"shortest_edge": side, "longest_edge": sliding_window.get("longest_edge", 4 * side)}
            logits = []
            for image in images:
                pixels = image_processor(image, size=size, return_tensors="pt")["pixel_values"]
                pixels = pixels.to(model.device, model.dtype)
                logits.append(
                    predict_sliding(model, pixels, stride=sliding_window.get("stride"), batch_size=batch_size)
                )
        maps = []
        for part in logits:
            target_sizes = sizes[len(maps) : len(maps) + len(part)]
            maps += processor.post_process_semantic_segmentation(SimpleNamespace(logits=part), target_sizes)
        return [one.cpu().numpy() for one in maps]

    def make_predict(is_own_picture: bool):
        def predict(images, chunk):
            """For each record the pairs (reference, prediction) that occur, as places in a matrix, and how often."""
            references = []
            for image, record in zip(images, chunk):
                try:
                    reference = _read_map(record, reading)
                    check_segmentation_map(reference, image.size if is_own_picture else None, num_labels, ignored)
                    references.append(reference)
                    if is_own_picture:
                        policy.good()
                except ImageError as error:
                    if is_own_picture:
                        policy.bad("other", f"{record_id(record) or 'a record'}: {error}")
                    references.append(None)
            good = [place for place, reference in enumerate(references) if reference is not None]
            results = [None] * len(references)
            if good:
                maps = segment([images[place] for place in good], [references[place].shape for place in good])
                for place, one in zip(good, maps):
                    counts = count_confusions(one, references[place], num_labels, ignored).reshape(-1)
                    places = counts.nonzero()[0]
                    results[place] = (places, counts[places])
            return results

        return predict

    def add_up(results) -> np.ndarray:
        total = np.zeros(num_labels * num_labels, dtype=np.int64)
        for places, counts in results:
            total[places] += counts
        return total.reshape(num_labels, num_labels)

    def do_not_count(*_):
        pass

    options = {"batch_size": batch_size, "progress": progress}
    outcomes = predict_records(
        model,
        records,
        make_predict(True),
        description="Segmenting",
        bad_samples=SimpleNamespace(good=do_not_count, bad=policy.bad),  # good only once its map is
        **options,
    )
    kept = [index for index, outcome in enumerate(outcomes) if outcome is not None]
    require_rows(kept, len(outcomes), "a readable picture with a segmentation map that fits")
    confusions = add_up(outcomes[index] for index in kept)
    results: dict[str, Any] = confusion_metrics(confusions)
    if shuffled_pictures and len(records) > 1:
        others = predict_records(
            model,
            WithOtherPictures(records, seed),
            make_predict(False),
            description="With other pictures",
            bad_samples=SimpleNamespace(good=do_not_count, bad=do_not_count),  # each was counted before
            **options,
        )
        both = add_up(others[index] for index in kept if others[index] is not None)
        if both.any():  # unless none of the other pictures can be read
            results |= {f"shuffled_{name}": value for name, value in confusion_metrics(both).items()}
    if training_records is not None:
        frequent = _most_frequent_class(training_records, reading, num_labels)
        constant = np.zeros_like(confusions)
        constant[:, frequent] = confusions.sum(axis=1)
        results |= {f"constant_{name}": value for name, value in confusion_metrics(constant).items()}
        results["constant_answer"] = str(model.config.id2label.get(frequent, frequent))
    rows = []
    for index in kept:
        identity = record_id(records[index])
        row = {"id": index if identity is None else identity}
        own = add_up([outcomes[index]])
        rows.append({**row, **(confusion_metrics(own) if own.any() else {})})
    return finish(results, rows, len(outcomes), start, predictions_path)


def _read_map(record: dict, reading: dict[str, Any]) -> np.ndarray:
    if MAP_COLUMN not in record:
        raise ValueError(f"The record has no {MAP_COLUMN!r}, only {sorted(record)}. Map its column (label_column).")
    return load_segmentation_map(record[MAP_COLUMN], **reading)


def _most_frequent_class(records, reading: dict[str, Any], num_labels: int) -> int:
    """The class with the most pixels in the first maps of the training records."""
    counts = np.zeros(num_labels, dtype=np.int64)
    for record in islice(only_columns(records, (MAP_COLUMN,)), MAX_TRAINING_MAPS):
        try:
            one = _read_map(record, reading)
            check_segmentation_map(one, None, num_labels, reading["ignore_index"])
        except ImageError:
            continue  # counted when it was trained on
        counts += np.bincount(one[one != reading["ignore_index"]], minlength=num_labels)
    if not counts.any():
        raise ValueError("The training records hold no labelled pixel that a most frequent class could be counted of.")
    return int(counts.argmax())


__all__ = ["evaluate_segmentation"]
