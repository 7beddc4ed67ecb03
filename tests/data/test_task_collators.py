"""`hf_vlp.data.task_collators`.

Covers: keys, shapes and contents of the batches of each collator; padding; which texts are drawn; masking with both
budgets and of single pieces; parts of long texts; soft labels from each form of answers; labels of statements in each
form, names that differ in case alone; columns kept aside; reproducibility of all draws over batches, order and epochs;
bad records, whole bad batches, mistakes of the configuration; working with several processes of a DataLoader.
"""

import io
import random
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_vlp.data.answers import AnswerVocabulary
from hf_vlp.data.augment import VlmoTraining
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.data.masked_collators import JointPreTrainingCollator
from hf_vlp.data.scenes import answer_vocabulary, make_questions, make_scenes, make_statement_pairs
from hf_vlp.data.task_collators import (
    ImageTextCollator,
    MaskedLanguageCollator,
    PairImagesCollator,
    PreTrainingCollator,
    QuestionCollator,
    find_label,
)
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil, MomeProcessor
from hf_vlp.pretraining.arguments import parse_arguments
from hf_vlp.pretraining.build import make_collator

COLOURS = ["red", "green", "blue", "black", "white", "pink", "grey", "brown"]
SIDE = 16
BAD_IMAGE = {"bytes": b"not a picture", "path": None}
PAIRED = [ImageTextCollator, PreTrainingCollator]
COLLATORS = [MaskedLanguageCollator, *PAIRED, QuestionCollator, PairImagesCollator]


def picture(index=0, size=(20, 16)) -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", size, (index * 20 % 256, 100, 50)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def make_record(index, num_captions=4) -> dict:
    """A record that every collator takes."""
    return {
        "image": picture(index),
        "images": [picture(index), picture(index + 1)],
        "captions": [f"a {COLOURS[n % 8]} dog numbered {index} running {n} times" for n in range(num_captions)],
        "question": f"what colour has dog number {index} ?",
        "answer": COLOURS[index % 8],
        "question_id": 100 + index,
        "statement": f"both dogs are numbered {index}",
        "label": index % 2,
        "image_id": index,
    }


RECORDS = [make_record(index) for index in range(8)]


@pytest.fixture(scope="module")
def processor():
    texts = [text for record in RECORDS for text in (*record["captions"], record["question"], record["statement"])]
    size = {"height": SIDE, "width": SIDE}
    return MomeProcessor(MomeImageProcessorPil(size=size), train_bert_tokenizer(texts, 80))


def make(collator_class, processor, **options):
    if collator_class is QuestionCollator:
        options = {"vocabulary": COLOURS, **options}
    return collator_class(processor, **options)


def texts_of(processor, batch, name="input_ids") -> list[str]:
    return processor.tokenizer.batch_decode(batch[name], skip_special_tokens=True)


# Batches


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_batch_has_the_keys_and_shapes_of_its_model(processor, collator_class):
    batch = make(collator_class, processor, max_length=40)(RECORDS[:3])
    assert type(batch) is dict
    rows, length = batch["input_ids"].shape
    assert rows == 3
    assert length % 8 == 0
    text, pixels = (3, length), (3, 3, SIDE, SIDE)
    expected = {"input_ids": text, "attention_mask": text}
    expected |= {
        MaskedLanguageCollator: {"labels": text},
        PreTrainingCollator: {"pixel_values": pixels, "mlm_input_ids": text, "labels": text},
        ImageTextCollator: {"pixel_values": pixels},
        QuestionCollator: {"pixel_values": pixels, "labels": (3, 8)},
        PairImagesCollator: {"pixel_values": (3, 2, 3, SIDE, SIDE), "labels": (3,)},
    }[collator_class]
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == expected


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_padding_is_to_the_longest_rounded_up_or_to_the_maximum(processor, collator_class):
    records = RECORDS[:3]
    longest = int(make(collator_class, processor)(records)["attention_mask"].sum(1).max())
    for multiple in (None, 5, 8):
        batch = make(collator_class, processor, pad_to_multiple_of=multiple)(records)
        assert batch["input_ids"].shape[1] == (longest if multiple is None else -(-longest // multiple) * multiple)
    assert make(collator_class, processor, pad_to_max_length=True, max_length=37)(records)["input_ids"].shape[1] == 37
    assert make(collator_class, processor, max_length=6, pad_to_multiple_of=None)(records)["input_ids"].shape[1] == 6


def test_pictures_go_with_their_texts(processor):
    batch = ImageTextCollator(processor)(RECORDS)
    expected = processor(images=[Image.open(io.BytesIO(record["image"]["bytes"])) for record in RECORDS])
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    for text, record in zip(texts_of(processor, batch), RECORDS):
        assert text in record["captions"]


def test_each_epoch_draws_another_caption(processor):
    collator = ImageTextCollator(processor)
    seen = set()
    for epoch in range(20):
        collator.set_epoch(epoch)
        seen.add(texts_of(processor, collator(RECORDS[:1]))[0])
    assert seen == set(RECORDS[0]["captions"])


# Masking


def test_masked_language_batch_hides_words_of_the_text(processor):
    collator = MaskedLanguageCollator(processor)
    batch = collator(RECORDS)
    hidden = batch["labels"] != -100
    assert hidden.any(1).all()
    whole = torch.where(hidden, batch["labels"], batch["input_ids"])
    for text, record in zip(texts_of(processor, {"input_ids": whole}), RECORDS):
        assert text in record["captions"]
    assert (batch["input_ids"][hidden] != batch["labels"][hidden]).any()
    # a piece and the ## pieces after it are hidden together
    continues = collator.pieces.continues[whole]
    assert continues.any()
    assert torch.equal(hidden[:, 1:][continues[:, 1:]], hidden[:, :-1][continues[:, 1:]])


def test_pre_training_batch_has_the_text_whole_and_masked(processor):
    batch = PreTrainingCollator(processor)(RECORDS)
    hidden = batch["labels"] != -100
    assert hidden.any(1).all()
    assert torch.equal(batch["labels"][hidden], batch["input_ids"][hidden])
    assert torch.equal(batch["mlm_input_ids"][~hidden], batch["input_ids"][~hidden])
    assert (batch["mlm_input_ids"] == processor.tokenizer.mask_token_id).any()
    assert not (batch["input_ids"] == processor.tokenizer.mask_token_id).any()


def test_masked_language_modelling_needs_neither_pictures_nor_a_processor(processor):
    records = [{"text": "a red dog numbered 3"}, {"captions": ["a blue dog"], "image": BAD_IMAGE}]
    for given in (processor, processor.tokenizer):
        batch = MaskedLanguageCollator(given)(records)
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert len(batch["labels"]) == 2


def test_budget_over_padding_pads_and_leaves_some_texts_whole(processor):
    records = [{"text": f"a dog {index}"} for index in range(100)]
    collator = MaskedLanguageCollator(processor, mask_budget="padded_length", seed=1)
    collator.set_epoch(0)
    batch = collator(records)
    assert batch["input_ids"].shape == (100, 40)
    whole = (batch["labels"] == -100).all(1).sum()
    assert 20 < whole < 80
    sane = MaskedLanguageCollator(processor, seed=1)(records)
    assert (sane["labels"] != -100).any(1).all()


def test_share_of_hidden_pieces_can_be_set_and_single_pieces_hidden(processor):
    records = [{**RECORDS[index % 8], "image_id": index} for index in range(80)]
    for probability in (0.15, 0.6):
        collator = MaskedLanguageCollator(processor, whole_word=False, mask_probability=probability, seed=1)
        collator.set_epoch(0)
        batch = collator(records)
        real = batch["attention_mask"].sum() - 2 * len(records)
        assert abs((batch["labels"] != -100).sum() / real - probability) < 0.05
    hidden = batch["labels"] != -100
    continues = collator.pieces.continues[torch.where(hidden, batch["labels"], batch["input_ids"])]
    assert (hidden[:, 1:] != hidden[:, :-1])[continues[:, 1:]].any()


LONG_TEXT = " ".join(f"{colour} {number}" for number in range(10) for colour in COLOURS[:3])


@pytest.fixture(scope="module")
def long_processor():
    return MomeProcessor(MomeImageProcessorPil(size=SIDE), train_bert_tokenizer([LONG_TEXT], 120))


def parts_of_long_text(collator, processor, epochs=60) -> list[str]:
    """What each epoch sees of it."""
    is_joint, seen = isinstance(collator, JointPreTrainingCollator), []
    for epoch in range(epochs):
        collator.set_epoch(epoch)
        batch = collator([{"text": {"text": LONG_TEXT}} if is_joint else {"text": LONG_TEXT}])
        ids, labels = (batch[f"text_{name}" if is_joint else name] for name in ("input_ids", "labels"))
        seen += texts_of(processor, {"input_ids": torch.where(labels != -100, labels, ids)})
    assert all(part in LONG_TEXT for part in seen)
    return seen


def test_every_part_of_a_long_text_is_seen_over_the_epochs(long_processor):
    collator = MaskedLanguageCollator(long_processor, max_length=12, draw_windows=True)
    seen = parts_of_long_text(collator, long_processor)
    assert " ".join(sorted(set(seen), key=LONG_TEXT.index)) == LONG_TEXT
    assert parts_of_long_text(collator, long_processor) == seen


def test_windows_change_nothing_for_texts_that_fit(processor):
    for given in (processor, processor.tokenizer):
        plain, windows = (MaskedLanguageCollator(given, draw_windows=draws) for draws in (False, True))
        for collator in (plain, windows):
            collator.set_epoch(0)
        expected, batch = plain(RECORDS), windows(RECORDS)
        assert all(torch.equal(batch[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("task", ["masked_language", "joint_pretraining"])
def test_training_draws_parts_of_long_texts_and_evaluation_takes_their_beginning(long_processor, task):
    run = parse_arguments({"task": task, "batches": {"max_length": 12}, "training": {"output_dir": "unused"}})
    model = SimpleNamespace(config=SimpleNamespace(window_size=2))
    training, evaluation = (
        set(parts_of_long_text(make_collator(run, long_processor, model, training=training), long_processor, 12))
        for training in (True, False)
    )
    assert len(training) > 3
    assert evaluation == {" ".join(LONG_TEXT.split()[:10])}


@pytest.mark.parametrize("options", [{"mask_budget": "words"}, {"mask_probability": 0}])
def test_impossible_masking_is_refused(processor, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskedLanguageCollator(processor, **options)


def test_whole_words_need_a_vocabulary_with_continuations():
    tokenizer = train_bert_tokenizer(["一只狗"], 20)
    with pytest.raises(ValueError, match="whole_word=False"):
        MaskedLanguageCollator(tokenizer)
    assert (MaskedLanguageCollator(tokenizer, whole_word=False)([{"text": "一只狗"}])["labels"] != -100).any()


# Questions


def test_answers_become_soft_labels(processor):
    record = RECORDS[0]
    del_answer = {name: value for name, value in record.items() if name != "answer"}
    cases = [
        ({"answer": "green"}, {1: 1.0}),
        ({"answers": ["green"]}, {1: 1.0}),
        ({"answers": [{"answer": "green", "answer_id": 1}]}, {1: 1.0}),
        ({"answers": ["red"] * 2 + ["blue"] * 3 + ["a white"] * 4 + ["mauve"]}, {0: 0.6, 2: 0.9, 4: 1.0}),
        ({"labels": [3, 5], "scores": [0.3, 1.0]}, {3: 0.3, 5: 1.0}),
        ({"labels": [3]}, {3: 1.0}),
        ({"labels": [3], "answer": "green"}, {3: 1.0}),
    ]
    batch = QuestionCollator(processor, vocabulary=COLOURS)([{**del_answer, **case} for case, _ in cases])
    assert batch["labels"].dtype == torch.float32
    for row, (_, expected) in zip(batch["labels"], cases):
        assert {index: round(float(score), 6) for index, score in enumerate(row) if score} == expected


def test_vocabulary_may_have_any_form_and_answers_their_literal_one(processor):
    record = {**RECORDS[0], "answer": "garbage_bin, sofa"}
    answers = ["yes", "garbage_bin, sofa"]
    for vocabulary in (answers, AnswerVocabulary(answers), {"garbage_bin, sofa": 1, "yes": 0}):
        batch = QuestionCollator(processor, vocabulary=vocabulary)([record])
        assert batch["labels"].tolist() == [[0.0, 1.0]]
    raw = {**record, "answer": "a dog"}
    policy = BadSamplePolicy()
    QuestionCollator(processor, vocabulary=["dog", "cat"], bad_samples=policy)([raw])
    assert policy.counts["bad"] == 0
    QuestionCollator(processor, vocabulary=["dog", "cat"], normalize_answers=False, bad_samples=policy)([raw])
    assert policy.counts["other"] == 1


def test_labels_alone_need_no_vocabulary(processor):
    batch = QuestionCollator(processor, num_labels=5)([{**RECORDS[0], "labels": [4], "scores": [0.5]}])
    assert batch["labels"].tolist() == [[0, 0, 0, 0, 0.5]]
    with pytest.raises(ValueError, match="give the vocabulary"):
        QuestionCollator(processor, num_labels=5)(RECORDS[:1])


def test_questions_without_answers_keep_their_ids(processor):
    records = [{name: value for name, value in record.items() if name != "answer"} for record in RECORDS]
    records[2]["image"] = BAD_IMAGE
    batch = QuestionCollator(processor, with_labels=False, keep=["question_id"])(records[:4])
    assert batch["question_id"] == [100, 101, 103]
    assert "labels" not in batch
    assert len(batch["input_ids"]) == 3
    with pytest.raises(ValueError, match=r"neither 'labels' nor 'answers' nor 'answer'.*with_labels=False"):
        QuestionCollator(processor, vocabulary=COLOURS)(records)


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "mauve"},
        {"answer": None},
        {"answers": []},
        {"labels": []},
        {"labels": [8]},
        {"labels": [1, 2], "scores": [1.0]},
    ],
)
def test_questions_without_a_usable_label_are_dropped_and_counted(processor, change):
    policy = BadSamplePolicy()
    collator = QuestionCollator(processor, vocabulary=COLOURS, bad_samples=policy)
    batch = collator([{**RECORDS[0], **change}, RECORDS[1]])
    assert len(batch["labels"]) == 1
    assert policy.counts == {"seen": 2, "bad": 1, "image": 0, "captions": 0, "other": 1}


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "num_labels"),
        ({"vocabulary": ["a", "b"], "num_labels": 3}, "num_labels=3 does not fit a vocabulary of 2"),
        ({"vocabulary": {"a": 1, "b": 2}}, "from 0 without gaps"),
    ],
)
def test_impossible_vocabularies_are_refused(processor, options, message):
    with pytest.raises(ValueError, match=message):
        QuestionCollator(processor, **options)


# Statements


def test_left_picture_comes_first(processor):
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    common = {"statement": "a red dog", "label": True}
    batch = PairImagesCollator(processor)(
        [{"images": [red, blue], **common}, {"image_left": blue, "image_right": red, **common}]
    )
    blueness = batch["pixel_values"][:, :, 2].mean((2, 3))
    assert blueness.tolist() == [[-1, 1], [1, -1]]


def test_statements_about_one_picture(processor):
    record = {"image": picture(3), "sentence": "a red dog", "label": False}
    batch = PairImagesCollator(processor, num_images=1)([record])
    assert batch["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert batch["labels"].tolist() == [0]
    with pytest.raises(ValueError, match="num_images"):
        PairImagesCollator(processor, num_images=3)


def test_labels_of_statements_have_several_forms(processor):
    labels = [0, 1, True, False, "True", "false", " TRUE "]
    batch = PairImagesCollator(processor)([{**RECORDS[0], "label": label} for label in labels])
    assert batch["labels"].tolist() == [0, 1, 1, 0, 1, 0, 1]
    three = {"entailment": 0, "neutral": 1, "contradiction": 2}
    batch = PairImagesCollator(processor, label2id=three)([{**RECORDS[0], "label": label} for label in three])
    assert batch["labels"].tolist() == [0, 1, 2]


def test_classes_that_differ_in_case_alone_stay_apart(processor):
    names = {"A": 0, "a": 1, "b": 2}
    labels = ["A", "a", " A ", "B", 0, 1, 2]
    batch = PairImagesCollator(processor, label2id=names)([{**RECORDS[0], "label": label} for label in labels])
    assert batch["labels"].tolist() == [0, 1, 0, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("label", "message"),
    [("AB", "'AB' may mean 'Ab' or 'aB'"), ("c", "'c' is none of 'Ab', 'aB'"), (2, "2 is none of"), (0.0, "0.0 is")],
)
def test_labels_that_are_no_class_are_refused_by_name(label, message):
    with pytest.raises(ValueError, match=message):
        find_label({"Ab": 0, "aB": 1}, label)


@pytest.mark.parametrize("change", [{"label": None}, {"label": -1}, {"label": 2}, {"label": "maybe"}, {"label": 0.5}])
def test_statements_with_a_wrong_label_are_dropped_and_counted(processor, change):
    policy = BadSamplePolicy()
    batch = PairImagesCollator(processor, bad_samples=policy)([{**RECORDS[0], **change}, RECORDS[1]])
    assert len(batch["labels"]) == 1
    assert policy.counts["other"] == 1


@pytest.mark.parametrize("images", [[picture()], None, [picture(), BAD_IMAGE], [BAD_IMAGE, BAD_IMAGE]])
def test_pairs_without_two_good_pictures_are_dropped_and_counted_once(processor, images):
    policy = BadSamplePolicy()
    batch = PairImagesCollator(processor, bad_samples=policy)([{**RECORDS[0], "images": images}, RECORDS[1]])
    assert len(batch["labels"]) == 1
    assert policy.counts == {"seen": 2, "bad": 1, "image": 1, "captions": 0, "other": 0}


def test_statements_without_labels_can_be_read(processor):
    record = {name: value for name, value in RECORDS[0].items() if name != "label"}
    assert "labels" not in PairImagesCollator(processor, with_labels=False)([record])
    with pytest.raises(ValueError, match=r"no 'label'.*with_labels=False"):
        PairImagesCollator(processor)([record])


# Randomness


def by_record(collator, records, batch_size) -> dict:
    """Everything drawn for each record: real pieces, masked pieces, labels, pixels."""
    result = {}
    for start in range(0, len(records), batch_size):
        chunk = records[start : start + batch_size]
        batch = collator(chunk)
        for row, record in enumerate(chunk):
            length = int(batch["attention_mask"][row].sum())
            result[record["image_id"]] = [
                tensor[row, :length].tolist() if tensor.ndim == 2 else tensor[row].tolist()
                for name, tensor in sorted(batch.items())
            ]
    return result


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_draws_depend_on_seed_epoch_and_record_only(processor, collator_class):
    options = {} if collator_class is MaskedLanguageCollator else {"augment": VlmoTraining(SIDE)}
    records = [make_record(index) for index in range(6)]
    for index, record in enumerate(records):  # texts of various lengths
        record["captions"] = [" ".join([text, *["again"] * index]) for text in record["captions"]]
    collator = make(collator_class, processor, seed=3, **options)
    collator.set_epoch(1)
    first = by_record(collator, records, 2)
    torch.rand(5)
    random.random()
    assert by_record(collator, records[::-1], 3) == first
    again = make(collator_class, processor, seed=3, **options)
    again.set_epoch(1)
    assert by_record(again, records[2:], 4) == {index: first[index] for index in range(2, 6)}
    again.set_epoch(2)
    assert by_record(again, records, 2) != first
    other = make(collator_class, processor, seed=4, **options)
    other.set_epoch(1)
    assert by_record(other, records, 2) != first


def test_both_pictures_of_a_pair_are_augmented_each_in_its_way(processor):
    record = {**RECORDS[0], "images": [Image.radial_gradient("L").convert("RGB")] * 2}
    collator = PairImagesCollator(processor, augment=VlmoTraining(SIDE, num_operations=0))
    collator.set_epoch(0)
    left, right = collator([record])["pixel_values"][0]
    assert not torch.equal(left, right)


def test_without_an_epoch_the_global_generator_draws(processor):
    collator = PreTrainingCollator(processor)
    batches = []
    for _ in range(2):
        torch.manual_seed(5)
        batches.append(collator(RECORDS))
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert not torch.equal(collator(RECORDS)["labels"], batches[0]["labels"])


def test_workers_make_the_batches_of_one_process(processor):
    collator = PreTrainingCollator(processor, seed=1)
    collator.set_epoch(3)
    expected = [collator(RECORDS[start : start + 2]) for start in range(0, 8, 2)]
    loader = DataLoader(RECORDS, batch_size=2, num_workers=2, collate_fn=collator)
    for batch, one in zip(loader, expected, strict=True):
        assert all(torch.equal(batch[name], one[name]) for name in one)


# Bad samples


def bad_records(collator_class) -> list[dict]:
    column = {QuestionCollator: "question", PairImagesCollator: "statement"}.get(collator_class, "captions")
    bad = [{**RECORDS[0], column: " "}, {**RECORDS[0], column: 7}, {**RECORDS[0], column: None}]
    if collator_class is not MaskedLanguageCollator:
        bad.append({**RECORDS[0], "image": BAD_IMAGE, "images": [picture(), BAD_IMAGE]})
    return bad


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_bad_records_leave_the_batch_and_are_counted(processor, collator_class):
    bad = bad_records(collator_class)
    policy = BadSamplePolicy()
    batch = make(collator_class, processor, bad_samples=policy)([RECORDS[0], *bad, RECORDS[1]])
    assert len(batch["input_ids"]) == 2
    image = len(bad) - 3
    assert policy.counts == {"seen": 2 + len(bad), "bad": len(bad), "image": image, "captions": 3, "other": 0}
    for record in bad:
        with pytest.raises(BadSampleError, match="the record 0"):
            make(collator_class, processor, bad_samples=BadSamplePolicy("raise"))([record])


@pytest.mark.parametrize("name", ["image_id", "question_id", "statement_id", "identifier"])
def test_messages_name_the_record(processor, name):
    record = {"images": [picture()], "statement": "a red dog", "label": 1, name: "number 7"}
    with pytest.raises(BadSampleError, match="the record 'number 7' has 1 pictures, not two"):
        PairImagesCollator(processor, bad_samples=BadSamplePolicy("raise"))([record])


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_batch_of_bad_records_only_can_be_run_and_has_nothing_to_learn(processor, collator_class):
    good = make(collator_class, processor)(RECORDS[:2])
    batch = make(collator_class, processor)(bad_records(collator_class))
    assert set(batch) == set(good)
    assert all(tensor.dtype == good[name].dtype for name, tensor in batch.items())
    rows = 2 if collator_class is PreTrainingCollator else 1  # a single pair has no hard negative
    assert {len(tensor) for tensor in batch.values()} == {rows}
    if "pixel_values" in batch:
        assert batch["pixel_values"].shape[1:] == good["pixel_values"].shape[1:]
        assert (batch["pixel_values"] == 1).all()
    assert batch["attention_mask"].any(1).all()
    assert (batch["labels"] == -100).all() if "labels" in good else collator_class is ImageTextCollator


@pytest.mark.parametrize("collator_class", COLLATORS)
def test_kept_columns_stay_with_their_rows_and_an_empty_batch_is_empty(processor, collator_class):
    collator = make(collator_class, processor, keep=["image_id", "question"])
    bad = bad_records(collator_class)
    batch = collator([RECORDS[3], bad[0], RECORDS[5]])
    assert batch["image_id"] == [3, 5]
    assert batch["question"] == [RECORDS[3]["question"], RECORDS[5]["question"]]
    empty = collator(bad)
    assert set(empty) == set(batch)
    assert all(len(value) == 0 for value in empty.values())
    assert all(empty[name].shape[2:] == batch[name].shape[2:] for name in batch if torch.is_tensor(batch[name]))


def test_columns_to_keep_must_exist(processor):
    with pytest.raises(ValueError, match="no column 'nothing' to keep"):
        ImageTextCollator(processor, keep=["nothing"])(RECORDS[:1])
    with pytest.raises(TypeError, match=r"\['image_id'\]"):
        ImageTextCollator(processor, keep="image_id")


@pytest.mark.parametrize(
    "collator_class, missing, message",
    [
        (MaskedLanguageCollator, ["captions"], "neither 'captions' nor 'text'.*caption_columns"),
        (ImageTextCollator, ["image"], "no 'image'.*image_column"),
        (QuestionCollator, ["question"], "neither 'question' nor 'text'.*text_column"),
        (PairImagesCollator, ["statement"], "neither 'statement' nor 'sentence' nor 'text'.*text_column"),
        (PairImagesCollator, ["images"], "neither 'images' nor 'image_left'.*image_columns.*num_images=1"),
    ],
)
def test_wrong_columns_are_a_mistake_not_a_bad_sample(processor, collator_class, missing, message):
    record = {name: value for name, value in RECORDS[0].items() if name not in missing}
    with pytest.raises(ValueError, match=message) as caught:
        make(collator_class, processor)([record])
    assert not isinstance(caught.value, BadSampleError)


def test_contrastive_and_masked_losses_have_no_gradient_from_bad_records_only(processor):
    from hf_vlp.models.mome.configuration_vlmo import VlmoConfig
    from hf_vlp.models.mome.modeling_vlmo import VlmoForPreTraining

    config = VlmoConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=SIDE,
        patch_size=8,
        vl_expert_start_layer=1,
    )
    model = VlmoForPreTraining(config).eval()
    losses = model(**PreTrainingCollator(processor)(bad_records(PreTrainingCollator))).losses
    assert losses["mlm"] == 0
    (losses["mlm"] + losses["itc"]).backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert max(gradient.abs().max() for gradient in gradients) < 1e-6
    assert losses["itm"].isfinite()


# Scenes


def test_records_of_drawn_scenes_fit(processor):
    scenes = list(make_scenes(3, image_size=32))
    assert len(PreTrainingCollator(processor)(scenes)["labels"]) == 3
    questions = list(make_questions(6, image_size=32))
    batch = QuestionCollator(processor, vocabulary=answer_vocabulary())(questions)
    expected = [answer_vocabulary().index(question["answer"]) for question in questions]
    assert batch["labels"].argmax(1).tolist() == expected
    assert (batch["labels"].sum(1) == 1).all()
    statements = list(make_statement_pairs(4, image_size=32))
    batch = PairImagesCollator(processor)(statements)
    assert batch["labels"].tolist() == [statement["label"] for statement in statements]
    assert batch["pixel_values"].shape == (4, 2, 3, SIDE, SIDE)
