"""Answers, statements, retrieval, labels and masked words measured on held-out records, each beside what it must beat.

Called through `hf_vlp.evaluation.evaluate_model`, which says what the arguments that all have in common mean. Scores
are fractions. The baselines: `shuffled_...`, the same model with the pictures of other records; `constant_...`, the
most frequent answer or label of the training records; `question_only_...`, the most frequent one there to the very
same text (for a text that is new, the constant); `chance_...`, the expectation of a random ranking.
"""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from hf_vlp.data.collators import TEXT_COLUMNS, BadSamplePolicy, record_captions, record_id
from hf_vlp.data.columns import only_columns
from hf_vlp.data.image_io import DEFAULT_MAX_PIXELS, ImageError, load_image
from hf_vlp.data.task_collators import find_label
from hf_vlp.metrics.classification import classification_accuracy

# Annotators per question from which on the accuracy of VQA v2 is defined.
_MIN_ANNOTATORS = 4
# Training records that constant and question-only answers are counted over, at most.
MAX_TRAINING_RECORDS = 1_000_000


def rank_and_world_size() -> tuple[int, int]:
    """Number of this process and of all, also without torch.distributed."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class UnusableRecord(ValueError):
    """A record that cannot be measured, for its label or its text."""


def predict_records(
    model,
    records: Iterable[dict],
    predict: Callable[[list, list[dict]], Sequence],
    *,
    batch_size: int = 32,
    description: str = "Evaluating",
    has_pictures: bool = True,
    progress: bool = True,
    bad_samples: BadSamplePolicy | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    check: Callable[[dict], Any] | None = None,
) -> list:
    """Run a model over records in batches, in evaluation mode and without gradients; its mode is kept.

    Args:
        predict: called with pictures and the records they are of, returns one result for each. A record with the
            column `images` has a list of pictures.
        has_pictures: False leaves the pictures alone; `predict` then gets `None` for each.
        records: under torch.distributed each process takes a share, and all get all results.
        check: called with each record; raises `UnusableRecord` for one that is bad and is to be counted as such.

    Returns one result per record, `None` where it is bad or a picture could not be read.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    bad_samples = bad_samples or BadSamplePolicy()
    rank, world_size = rank_and_world_size()
    mine = (item for item in enumerate(records) if item[0] % world_size == rank)
    total = math.ceil((len(records) - rank) / world_size) if hasattr(records, "__len__") else None
    was_training = model.training
    model.eval()
    results: dict[int, Any] = {}
    bar = tqdm(total=total, desc=description, unit="record", disable=not progress or rank > 0)
    try:
        while chunk := list(islice(mine, batch_size)):
            images, kept = [], []
            for index, record in chunk:
                results[index] = None
                try:
                    if check is not None:
                        check(record)
                    images.append(_load_images(record, max_pixels) if has_pictures else None)
                    kept.append((index, record))
                    bad_samples.good()
                except ImageError as error:
                    bad_samples.bad("image", f"record {index}: {error}")
                except UnusableRecord as error:
                    bad_samples.bad("other", f"record {index}: {error}")
            if kept:
                with torch.no_grad():
                    predictions = predict(images, [record for _, record in kept])
                results.update(zip((index for index, _ in kept), predictions, strict=True))
            bar.update(len(chunk))
    finally:
        bar.close()
        model.train(was_training)
    if world_size > 1:
        results = dict(item for part in gather_object([list(results.items())]) for item in part)
    return [results[index] for index in range(len(results))]


def _load_images(record: dict, max_pixels: int):
    if record.get("images") is not None:
        return [load_image(image, max_pixels=max_pixels) for image in record["images"]]
    if "image" not in record:
        raise ValueError(f"The record has no 'image', only {sorted(record)}. Map the image column of the data set.")
    return load_image(record["image"], max_pixels=max_pixels)


class WithOtherPictures:
    """The records, each with the picture of another one, by a fixed order; ValueError for fewer than two."""

    def __init__(self, records: Sequence[dict], seed: int):
        from hf_vlp.evaluation import shuffled_order

        if len(records) < 2:
            raise ValueError("Shuffling pictures needs at least two records.")
        self.records = records
        self.order = shuffled_order(len(records), seed)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict:
        other = self.records[self.order[index]]
        pictures = {name: other[name] for name in ("image", "images") if name in other}
        return {**self.records[index], **pictures}


def make_inputs(
    model, processor, *, images=None, texts=None, max_length: int | None = None
) -> dict[str, torch.Tensor]:
    """A batch on the model's device, pictures in its type."""
    options = {} if texts is None else {"text": texts, "padding": True, "truncation": True, "max_length": max_length}
    if images is not None:
        options["images"] = images
    batch = processor(**options, return_tensors="pt")
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in batch.items()
    }


def finish(results: dict, rows: list[dict], num_records: int, start: float, path) -> dict:
    """The results with the counts behind the scores; writes the file of predictions, if there is a path.

    rows: one for each record that was measured; start: `time.perf_counter()` at the beginning.
    """
    from hf_vlp.evaluation import write_json

    results["samples"] = len(rows)
    results["skipped_samples"] = num_records - len(rows)
    results["samples_per_second"] = round(num_records / max(time.perf_counter() - start, 1e-9), 2)
    if path is not None and rank_and_world_size()[0] == 0:
        write_json(path, {"metrics": results, "predictions": rows})
    return results


def require_rows(rows: list, num_records: int, what: str) -> None:
    """Raise ValueError when no record could be measured, for lack of `what`."""
    if not rows:
        raise ValueError(f"None of the {num_records} records has {what}: nothing to evaluate.")


def _text_of(record: dict, columns: Sequence[str]) -> str:
    for column in columns:
        if isinstance(record.get(column), str) and record[column].strip():
            return record[column]
    if any(column in record for column in columns):
        raise UnusableRecord("It has no text.")
    raise ValueError(f"The record has no text in {' or '.join(map(repr, columns))}, only {sorted(record)}.")


def _training_rows(records, columns: Sequence[str]) -> Iterable[dict]:
    return islice(only_columns(records, columns), MAX_TRAINING_RECORDS)


class _MostFrequent:
    """The most frequent target of training records, in all and for each text."""

    def __init__(self, pairs: Iterable[tuple[str, Any]]):
        self.counts: Counter = Counter()
        self.by_text: dict[str, Counter] = {}
        for text, target in pairs:
            self.counts[target] += 1
            self.by_text.setdefault(" ".join(text.lower().split()), Counter())[target] += 1
        if not self.counts:
            raise ValueError("The training records hold nothing that a constant answer could be learnt from.")
        self.constant = self.counts.most_common(1)[0][0]

    def for_text(self, text: str):
        counts = self.by_text.get(" ".join(text.lower().split()))
        return counts.most_common(1)[0][0] if counts else self.constant


# Questions

_QUESTION_COLUMNS = ("question", "answers", "answer", "multiple_choice_answer", "question_id")


def training_answers(records) -> Iterable[tuple[str, str]]:
    """(question, the one answer that counts, normalised) of each training record that has both."""
    from hf_vlp.metrics.vqa import normalize_answer

    for record in _training_rows(records, _QUESTION_COLUMNS):
        try:
            question, answer = _text_of(record, ("question",)), record.get("multiple_choice_answer")
            if answer is None:
                answer = Counter(map(normalize_answer, _answers_of(record))).most_common(1)[0][0]
        except UnusableRecord:
            continue  # counted when it is trained on
        yield question, normalize_answer(answer)


def _answers_of(record: dict) -> list[str]:
    from hf_vlp.metrics.vqa import human_answers

    try:
        return human_answers(record)
    except ValueError as error:
        raise UnusableRecord(str(error)) from error


def evaluate_question_answering(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    max_length: int = 40,
    shuffled_pictures: bool = False,
    training_records=None,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """Answers to questions about pictures: the arg-max of the head, under all answers that it has.

    Records have `question`, and `answers` (a list) or `answer`. Scores: `exact_match`; and `vqa_accuracy`, the soft
    score of VQA v2, where every question has the answers of several annotators. The file of predictions has
    `question_id` and `answer` in each row. Where no record has answers, as in the test part of a challenge, there are
    predictions and no scores.
    """
    from hf_vlp.data.answers import AnswerVocabulary
    from hf_vlp.metrics.vqa import vqa_accuracy, vqa_exact_match

    start = time.perf_counter()
    vocabulary = AnswerVocabulary.from_config(model.config)
    is_answered = any(
        record.get("answers") or record.get("answer") is not None
        for record in only_columns(records, _QUESTION_COLUMNS)
    )

    def check(record):
        _text_of(record, ("question",))
        if is_answered:
            _answers_of(record)

    options = {"batch_size": batch_size, "progress": progress, "bad_samples": bad_samples, "check": check}

    def answer(images, chunk):
        batch = make_inputs(
            model, processor, images=images, texts=[row["question"] for row in chunk], max_length=max_length
        )
        return vocabulary.decode(model(**batch).logits.argmax(-1))

    if training_records is not None and is_answered:
        frequent = _MostFrequent(training_answers(training_records))
    predictions = predict_records(model, records, answer, description="Answering", **options)
    rows = []
    for index, prediction in enumerate(predictions):
        if prediction is not None:
            record = records[index]
            identity = record.get("question_id")
            rows.append(
                {
                    "question_id": index if identity is None else identity,
                    "question": record["question"],
                    "answer": prediction,
                    "references": _answers_of(record) if is_answered else None,
                    "index": index,
                }
            )
    require_rows(rows, len(predictions), "a readable picture, a question and an answer")
    references = [row["references"] for row in rows]

    def score(answers: list[str]) -> dict[str, float]:
        if not is_answered:
            return {}
        scores = {"exact_match": vqa_exact_match(answers, references)}
        if min(map(len, references)) >= _MIN_ANNOTATORS:
            scores = {"vqa_accuracy": vqa_accuracy(answers, references), **scores}
        return scores

    results: dict[str, Any] = score([row["answer"] for row in rows])
    if shuffled_pictures and is_answered:
        other = WithOtherPictures(records, seed)
        shuffled = predict_records(model, other, answer, description="With other pictures", **options)
        # Where the other picture cannot be read, the question stays without an answer.
        answers = [shuffled[row["index"]] or "" for row in rows]
        results |= {f"shuffled_{name}": value for name, value in score(answers).items()}
    if training_records is not None and is_answered:
        results |= {f"constant_{name}": value for name, value in score([frequent.constant] * len(rows)).items()}
        by_question = [frequent.for_text(row["question"]) for row in rows]
        results |= {f"question_only_{name}": value for name, value in score(by_question).items()}
        results["constant_answer"] = frequent.constant
    for row in rows:
        del row["index"]
    return finish(results, rows, len(predictions), start, predictions_path)


# Labels: statements over pictures, and pictures alone

STATEMENT_COLUMNS = ("statement", "sentence", "text")


def _label_of(record: dict, model) -> int:
    """The label as the number that the model's head has for it."""
    if "label" not in record:
        raise ValueError(f"The record has no 'label', only {sorted(record)}. Map the label column of the data set.")
    try:
        return find_label(model.config.label2id, record["label"])
    except ValueError as error:
        raise UnusableRecord(str(error)) from error


def _usable_pairs(records, text_of, model) -> Iterable[tuple[str, int]]:
    """(text, label) of the records that have both."""
    for record in records:
        try:
            yield text_of(record), _label_of(record, model)
        except UnusableRecord:
            continue  # counted when it was trained on


def _evaluate_labels(
    model, records, predict, text_of, *, shuffle, training_records, predictions_path, seed, score, **options
) -> dict[str, Any]:
    start = time.perf_counter()

    def check(record):
        text_of(record)
        _label_of(record, model)

    if training_records is not None:
        columns = (*STATEMENT_COLUMNS, "label")
        frequent = _MostFrequent(_usable_pairs(_training_rows(training_records, columns), text_of, model))
    predictions = predict_records(model, records, predict, check=check, **options)
    rows, texts = [], []
    for index, prediction in enumerate(predictions):
        if prediction is not None:
            record = records[index]
            identity = next(
                (
                    record[name]
                    for name in ("identifier", "example_id", "statement_id")
                    if record.get(name) is not None
                ),
                None,
            )
            identity = record_id(record) if identity is None else identity
            row = {"id": index if identity is None else identity, "label": _label_of(record, model)}
            rows.append({**row, "prediction": prediction, "index": index})
            texts.append(text_of(record))
    require_rows(rows, len(predictions), "a readable picture and a label of the model")
    results: dict[str, Any] = score([row["prediction"] for row in rows], rows)
    if shuffle:
        other = WithOtherPictures(records, seed)
        options |= {"description": "With other pictures", "check": text_of}
        shuffled = predict_records(model, other, predict, **options)
        both = [(shuffled[row["index"]], row["label"]) for row in rows if shuffled[row["index"]] is not None]
        results["shuffled_accuracy"] = sum(guess == label for guess, label in both) / max(1, len(both))
    if training_records is not None:
        hits = sum(frequent.constant == row["label"] for row in rows)
        results["constant_accuracy"] = hits / len(rows)
        if any(texts):
            guesses = map(frequent.for_text, texts)
            hits = sum(guess == row["label"] for guess, row in zip(guesses, rows))
            results["question_only_accuracy"] = hits / len(rows)
        results["constant_answer"] = str(model.config.id2label.get(frequent.constant, frequent.constant))
    for row in rows:
        del row["index"]
    return finish(results, rows, len(predictions), start, predictions_path)


def evaluate_statements(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    max_length: int = 40,
    shuffled_pictures: bool = False,
    training_records=None,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """Statements over two pictures or one: `accuracy`, and `consistency` where the data can tell it.

    Records have `images`, a list of two, or `image`; `statement`, `sentence` or `text`; and `label`, a bool, number or
    name. Consistency needs an `identifier` in each (NLVR2), or an `example_id` (NLVR, with `permutation`).
    """
    from hf_vlp.metrics.nlvr2 import nlvr2_metrics, nlvr_metrics

    def judge(images, chunk):
        texts = [_text_of(record, STATEMENT_COLUMNS) for record in chunk]
        batch = make_inputs(model, processor, images=images, texts=texts, max_length=max_length)
        return model(**batch).logits.argmax(-1).tolist()

    def score(predictions, rows):
        labels = [row["label"] for row in rows]
        if model.config.num_labels != 2:
            return {"accuracy": sum(map(int.__eq__, predictions, labels)) / len(rows)}
        metas = [records[row["index"]] for row in rows]
        if all(record.get("identifier") is not None for record in metas):
            return nlvr2_metrics(predictions, labels, [record["identifier"] for record in metas])
        if all(record.get("example_id") is not None for record in metas):
            turns = [record.get("permutation") for record in metas]
            ids = [record["example_id"] for record in metas]
            return nlvr_metrics(predictions, labels, ids, None if None in turns else turns)
        return nlvr2_metrics(predictions, labels)

    return _evaluate_labels(
        model,
        records,
        judge,
        lambda record: _text_of(record, STATEMENT_COLUMNS),
        shuffle=shuffled_pictures,
        training_records=training_records,
        predictions_path=predictions_path,
        seed=seed,
        score=score,
        batch_size=batch_size,
        description="Judging",
        progress=progress,
        bad_samples=bad_samples,
    )


def evaluate_image_classification(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    training_records=None,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """Labels of pictures: `accuracy`. Records have `image` and `label`, a number or a name.

    Beside it `constant_accuracy` (the majority baseline), when there are training records.
    """

    def classify(images, chunk):
        return model(**make_inputs(model, processor, images=images)).logits.argmax(-1).tolist()

    return _evaluate_labels(
        model,
        records,
        classify,
        lambda record: "",
        shuffle=False,
        training_records=training_records,
        predictions_path=predictions_path,
        seed=0,
        score=lambda guesses, rows: classification_accuracy(guesses, [row["label"] for row in rows]),
        batch_size=batch_size,
        description="Classifying",
        progress=progress,
        bad_samples=bad_samples,
    )


# Retrieval


def chance_recalls(num_texts: Sequence[int], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """The recalls that a random ranking has in expectation; `num_texts` is the number of texts of each image."""
    images, texts = len(num_texts), sum(num_texts)
    recalls = {}
    for k in ks:
        all_wrong = [
            math.prod(max(0, texts - own - place) / (texts - place) for place in range(min(k, texts)))
            for own in num_texts
        ]
        recalls[f"image_to_text_recall_at_{k}"] = 1 - sum(all_wrong) / images
        recalls[f"text_to_image_recall_at_{k}"] = min(k, images) / images
    return recalls


def evaluate_retrieval(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    max_length: int = 40,
    rerank: int = 0,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """Search among the pictures and captions of the records, in both directions.

    Scores: `image_to_text_recall_at_1`, 5, 10, the same for `text_to_image`, ranks, `mean_recall`, `rsum`; with
    `chance_` the recalls of a random ranking.

    Args:
        rerank: score so many of the first candidates of each query again with the matching head, and add
            `reranked_...` recalls; 0 for none. Costs a fusion pass for each.

    Records have `image` and `captions`; those without a caption or with a bad picture are left out and counted.
    """
    from hf_vlp.metrics.retrieval import ranks_of_embeddings, recall_metrics, reranked

    start = time.perf_counter()
    options = {"batch_size": batch_size, "progress": progress}

    def encode_images(images, chunk):
        features = model.get_image_features(**make_inputs(model, processor, images=images)).pooler_output
        return features.float().cpu().unbind()

    def encode_texts(_, chunk):
        texts = [record["text"] for record in chunk]
        batch = make_inputs(model, processor, texts=texts, max_length=max_length)
        return model.get_text_features(**batch).pooler_output.float().cpu().unbind()

    image_embeds = predict_records(
        model, records, encode_images, description="Pictures", bad_samples=bad_samples, **options
    )
    captions = [record_captions(record) for record in only_columns(records, TEXT_COLUMNS)]
    kept = [index for index, embeds in enumerate(image_embeds) if embeds is not None and captions[index]]
    require_rows(kept, len(image_embeds), "a readable picture and a caption")
    texts = [{"text": text, "image": row} for row, index in enumerate(kept) for text in captions[index]]
    text_embeds = torch.stack(
        predict_records(model, texts, encode_texts, description="Captions", has_pictures=False, **options)
    )
    image_embeds = torch.stack([image_embeds[index] for index in kept])
    text_images = [row["image"] for row in texts]
    ranks = ranks_of_embeddings(image_embeds, text_embeds, text_images)
    results: dict[str, Any] = recall_metrics(ranks)
    if rerank:

        def score_pairs(image_rows: torch.Tensor, text_rows: torch.Tensor) -> torch.Tensor:
            rows, places = image_rows.unique(return_inverse=True)
            pictures = [_load_images(records[kept[row]], DEFAULT_MAX_PIXELS) for row in rows.tolist()]
            pixels = make_inputs(model, processor, images=pictures)["pixel_values"][places.to(model.device)]
            batch = make_inputs(
                model, processor, texts=[texts[row]["text"] for row in text_rows.tolist()], max_length=max_length
            )
            return model.score_pairs(pixel_values=pixels, **batch)

        was_training = model.training
        model.eval()
        try:
            again = reranked(
                image_embeds, text_embeds, text_images, score_pairs, top_k=rerank, pair_batch_size=batch_size
            )
        finally:
            model.train(was_training)
        results |= {f"reranked_{name}": value for name, value in recall_metrics(again).items() if "recall" in name}
    chance = chance_recalls([len(captions[index]) for index in kept])
    results |= {f"chance_{name}": value for name, value in chance.items()}
    results["texts"] = len(texts)
    rows = []
    by_image = ranks.image_to_text.tolist()
    for row, index in enumerate(kept):
        identity = record_id(records[index])
        rows.append({"id": index if identity is None else identity, "image_to_text_rank": by_image[row]})
    for text, rank in zip(texts, ranks.text_to_image.tolist()):
        rows[text["image"]].setdefault("texts", []).append({"text": text["text"], "text_to_image_rank": rank})
    return finish(results, rows, len(captions), start, predictions_path)


# Masked words


class _Masking:
    """Hides words of texts, the same ones at every evaluation."""

    def __init__(self, tokenizer, probability: float, seed: int):
        from hf_vlp.data.masking import WordPieces

        self.pieces = WordPieces.from_tokenizer(tokenizer)
        self.probability = probability
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        from hf_vlp.data.masking import mask_whole_words

        ids, mask = batch["input_ids"].cpu(), batch["attention_mask"].cpu()
        hidden, labels = mask_whole_words(
            ids, mask, self.pieces, probability=self.probability, generator=self.generator
        )
        return hidden.to(batch["input_ids"].device), labels.to(batch["input_ids"].device)


def compare_guesses(logits: torch.Tensor, labels: torch.Tensor) -> list[list[tuple[int, int]]]:
    """For each row the pairs (hidden, guessed): words of texts, or visual tokens of patches.

    logits (rows, positions, classes); labels (rows, positions), -100 where nothing is hidden.
    """
    best = logits.argmax(-1)
    return [list(zip(own[own != -100].tolist(), guess[own != -100].tolist())) for own, guess in zip(labels, best)]


def share_of_hits(guesses: Iterable[list[tuple[int, int]]]) -> float:
    """Share of the pairs of `compare_guesses` that are right; 0 without any."""
    pairs = [pair for row in guesses for pair in row]
    return sum(hidden == guess for hidden, guess in pairs) / max(1, len(pairs))


def evaluate_masked_language(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    max_length: int = 40,
    mask_probability: float = 0.15,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Hidden words of texts, without a picture: `mlm_accuracy` over word pieces, and the most frequent of them.

    The words are hidden in the first caption (or `text`) of each record, whole words, by a fixed seed.
    `constant_mlm_accuracy` guesses the piece that was hidden most often.
    """
    start = time.perf_counter()
    masking = _Masking(processor.tokenizer, mask_probability, seed)
    texts = [captions[0] for record in only_columns(records, TEXT_COLUMNS) if (captions := record_captions(record))]

    def guess(_, chunk):
        batch = make_inputs(model, processor, texts=[record["text"] for record in chunk], max_length=max_length)
        batch["input_ids"], labels = masking(batch)
        return compare_guesses(model(**batch).logits, labels)

    require_rows(texts, len(records), "a text")
    guesses = predict_records(
        model,
        [{"text": text} for text in texts],
        guess,
        batch_size=batch_size,
        description="Guessing",
        has_pictures=False,
        progress=progress,
    )
    decode = processor.tokenizer.convert_ids_to_tokens
    rows = [
        {"text": text, "guesses": [decode(list(pair)) for pair in row]} for text, row in zip(texts, guesses) if row
    ]
    require_rows(rows, len(records), "a text with a word that can be hidden")
    results = {"mlm_accuracy": share_of_hits(guesses), "constant_mlm_accuracy": constant_share(guesses)}
    return finish(results, rows, len(records), start, predictions_path)


def constant_share(guesses: Iterable[list[tuple[int, int]]]) -> float:
    """What always guessing the most frequent hidden one would reach; 0 without any."""
    counts = Counter(hidden for row in guesses for hidden, _ in row)
    return counts.most_common(1)[0][1] / counts.total() if counts else 0.0


def evaluate_pretraining(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    max_length: int = 40,
    mask_probability: float = 0.15,
    shuffled_pictures: bool = False,
    predictions_path: str | os.PathLike | None = None,
    progress: bool = True,
    seed: int = 0,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, Any]:
    """The objectives of pre-training on pairs, the first caption of each picture.

    Scores: `mlm_accuracy`, hidden words guessed with the picture (beside it with another picture of the batch, and
    the piece that was hidden most often); `itm_accuracy`, pairs and drawn negatives told apart (constant: all
    negative); the recalls of `evaluate_retrieval` with the features of the contrastive objective.
    A pair that is alone in its batch has no negative and is left out.
    """
    from hf_vlp.metrics.retrieval import ranks_of_embeddings, recall_metrics

    start = time.perf_counter()
    masking = _Masking(processor.tokenizer, mask_probability, seed)

    def run(images, chunk):
        if len(chunk) < 2:
            return [None] * len(chunk)
        texts = [record_captions(record)[0] for record in chunk]
        batch = make_inputs(model, processor, images=images, texts=texts, max_length=max_length)
        hidden, labels = masking(batch)
        outputs = model(**batch, mlm_input_ids=hidden, labels=labels)
        guesses = compare_guesses(outputs.mlm_logits, labels)
        others = guesses
        if shuffled_pictures:
            pixels = batch.pop("pixel_values").roll(1, 0)
            others = compare_guesses(
                model(**batch, pixel_values=pixels, mlm_input_ids=hidden, labels=labels).mlm_logits, labels
            )
        matches = outputs.itm_logits.argmax(-1).reshape(3, -1)  # pairs, other pictures, other texts
        right = torch.cat((matches[:1] == 1, matches[1:] == 0)).sum(0).tolist()
        embeds = (outputs.image_embeds.float().cpu(), outputs.text_embeds.float().cpu())
        return list(zip(guesses, others, right, *embeds))

    usable = [index for index, record in enumerate(only_columns(records, TEXT_COLUMNS)) if record_captions(record)]
    subset = Subset(records, usable)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)  # negatives are drawn
        outputs = predict_records(
            model, subset, run, batch_size=batch_size, progress=progress, bad_samples=bad_samples
        )
    kept = [(index, row) for index, row in zip(usable, outputs) if row is not None]
    require_rows(kept, len(records), "a readable picture and a caption, with another pair beside it")
    guesses, others, right, image_embeds, text_embeds = zip(*(row for _, row in kept))
    results: dict[str, Any] = {"itm_accuracy": sum(right) / (3 * len(right)), "constant_itm_accuracy": 2 / 3}
    if any(guesses):
        results |= {"mlm_accuracy": share_of_hits(guesses), "constant_mlm_accuracy": constant_share(guesses)}
        if shuffled_pictures:
            results["shuffled_mlm_accuracy"] = share_of_hits(others)
    else:
        results["not_measured"] = "mlm (no text has a word that can be hidden)"
    pairs = list(range(len(kept)))
    results |= recall_metrics(ranks_of_embeddings(torch.stack(image_embeds), torch.stack(text_embeds), pairs))
    results |= {f"chance_{name}": value for name, value in chance_recalls([1] * len(kept)).items()}
    decode = processor.tokenizer.convert_ids_to_tokens
    rows = []
    for index, (own, _, hits, *_) in kept:
        identity = record_id(records[index])
        row = {"id": index if identity is None else identity, "matches_right": hits}
        rows.append({**row, "guesses": [decode(list(pair)) for pair in own]})
    return finish(results, rows, len(records), start, predictions_path)


class Subset:
    """Some of the records, one by one and by their places, without copying them."""

    def __init__(self, records: Sequence[dict], indices: Sequence[int]):
        self.records, self.indices = records, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self):
        return (self.records[index] for index in self.indices)

    def __getitem__(self, place: int) -> dict:
        return self.records[self.indices[place]]


__all__ = [
    "Subset",
    "UnusableRecord",
    "WithOtherPictures",
    "chance_recalls",
    "compare_guesses",
    "constant_share",
    "evaluate_image_classification",
    "evaluate_masked_language",
    "evaluate_pretraining",
    "evaluate_question_answering",
    "evaluate_retrieval",
    "evaluate_statements",
    "finish",
    "make_inputs",
    "predict_records",
    "rank_and_world_size",
    "require_rows",
    "share_of_hits",
    "training_answers",
]
