"""`hf_vlp.data.columns` through `load_records`: records of questions, statements and texts.

Covers, whole and streaming: questions one by one and in lists that share a picture, answers in each layout, ids;
statements about one and two pictures, from lists, from two columns and from paths, labels of each kind; texts from
tables and text files; the scenes of each record type; limits, exclusions, resume and workers with shared pictures;
batches of the collators; each refused input with its message. Nothing is downloaded.
"""

import io
import json
import pickle
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PilImage
from torch.utils.data import DataLoader

from hf_vlp.data.image_io import load_image
from hf_vlp.data.sources import DataArguments, load_records

STREAMING = pytest.mark.parametrize("streaming", [False, True])


@pytest.fixture(autouse=True)
def quiet_bars():
    datasets.disable_progress_bars()


@pytest.fixture
def load(tmp_path):
    def load(source, record_type, split="train", streaming=None, **options):
        cache = str(tmp_path / "cache")
        arguments = DataArguments(source=str(source), record_type=record_type, dataset_cache=cache, **options)
        return load_records(arguments, split, streaming=streaming)

    return load


def encode(index: int) -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (12, 10), (index * 10, 20, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def cell(index: int) -> dict:
    return {"bytes": encode(index), "path": None}


def number_of(image) -> int:
    """Which picture it is; raises when it was decoded, or is not there."""
    assert isinstance(image, dict), "pictures must not be decoded here"
    return load_image(image).getpixel((5, 5))[0] // 10


def write_parquet(folder: Path, rows: list[dict], **features) -> Path:
    folder.mkdir(exist_ok=True)
    Dataset.from_list(rows, features=Features(features)).to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lists_of_questions(folder: Path, counts=(2, 1, 3)) -> Path:
    """Pictures with so many questions each."""
    rows = [
        {
            "image": cell(index),
            "image_id": f"picture{index}",
            "questions": [f"what is {number} ?" for number in range(count)],
            "answers": [f"answer {index} {number}" for number in range(count)],
        }
        for index, count in enumerate(counts)
    ]
    texts = List(Value("string"))
    return write_parquet(folder, rows, image=Image(), image_id=Value("string"), questions=texts, answers=texts)


# Questions


@STREAMING
def test_lists_of_questions_become_records_that_share_their_picture(load, tmp_path, streaming):
    records = load(lists_of_questions(tmp_path / "data"), "questions", streaming=streaming)
    assert {"image", "question", "answers", "image_id", "question_id"} == set(records.column_names)
    rows = list(records)
    found = [(number_of(row["image"]), row["question"], row["answers"], row["question_id"]) for row in rows]
    assert found == [
        (index, f"what is {number} ?", [f"answer {index} {number}"], f"picture{index}-{number}")
        for index, count in enumerate((2, 1, 3))
        for number in range(count)
    ]
    assert [row["image_id"] for row in rows] == [f"picture{row['question_id'][7]}" for row in rows]


def test_shared_pictures_are_not_copied(load, tmp_path):
    path = lists_of_questions(tmp_path / "data", counts=(50, 50))
    records = load(path, "questions")
    assert records.features["image"] == Value("int64")
    assert len(pickle.dumps(records)) < 50_000
    assert records.select_columns(["question"])[99] == {"question": "what is 49 ?"}
    assert [number_of(image) for image in records[48:52]["image"]] == [0, 0, 1, 1]
    assert [number_of(image) for image in records.select([99, 0])["image"]] == [1, 0]
    again = pickle.loads(pickle.dumps(records))  # as it comes to a worker of another process
    assert number_of(again[99]["image"]) == 1


def test_pictures_without_questions_are_left_out(load, tmp_path):
    for streaming in (False, True):
        rows = list(load(lists_of_questions(tmp_path / "data", (0, 2, 0)), "questions", streaming=streaming))
        assert [row["question_id"] for row in rows] == ["picture1-0", "picture1-1"]


@STREAMING
def test_ids_of_questions_and_answers_of_several_annotators_are_kept(load, tmp_path, streaming):
    rows = [
        {
            "image": cell(0),
            "questions": ["a?", "b?"],
            "question_ids": [7, 9],
            "answers": [["yes", "no"], ["two"]],
            "split": "x",
        }
    ]
    strings = List(Value("string"))
    features = {"questions": strings, "question_ids": List(Value("int64")), "answers": List(strings)}
    path = write_parquet(tmp_path / "data", rows, image=Image(), split=Value("string"), **features)
    rows = list(load(path, "questions", streaming=streaming))
    assert [row["question_id"] for row in rows] == [7, 9]
    assert [row["answers"] for row in rows] == [["yes", "no"], ["two"]]
    assert [row["split"] for row in rows] == ["x", "x"]
    assert "question_ids" not in rows[0]


@STREAMING
@pytest.mark.parametrize(
    "answer, expected",
    [
        ({"answer": "yes"}, ["yes"]),
        ({"answers": ["yes", "no"]}, ["yes", "no"]),
        (
            {"answers": [{"answer": "yes", "sure": "maybe"}, {"answer": "no", "sure": "yes"}]},
            ["yes", "no"],
        ),
        ({"answers": {"answer": ["yes", "no"], "id": [1, 2]}}, ["yes", "no"]),
        ({"answer": None}, []),
        ({}, None),
    ],
)
def test_answers_have_several_layouts(load, tmp_path, streaming, answer, expected):
    (tmp_path / "0.png").write_bytes(encode(0))
    rows = [{"image": "0.png", "question": "is it red ?", "question_id": 5, "type": "yes/no", **answer}]
    path = write_lines(tmp_path / "train.jsonl", rows)
    (row,) = load(path, "questions", streaming=streaming)
    assert row.pop("answers", None) == expected
    assert number_of(row.pop("image")) == 0
    assert row == {"question": "is it red ?", "question_id": 5, "type": "yes/no"}


def test_stream_of_a_json_list_is_split_though_it_knows_no_types(load, tmp_path):
    (tmp_path / "0.png").write_bytes(encode(0))
    rows = [
        {"image": "0.png", "image_id": 3, "questions": ["a?", "b?"], "answers": ["x", "y"]},
        {"image": "0.png", "image_id": 4, "questions": ["c?"], "answers": ["z"]},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    records = list(load(tmp_path / "train.json", "questions", streaming=True))
    assert [(row["question"], row["answers"], row["question_id"]) for row in records] == [
        ("a?", ["x"], "3-0"),
        ("b?", ["y"], "3-1"),
        ("c?", ["z"], "4-0"),
    ]


@STREAMING
def test_columns_of_questions_can_be_named(load, tmp_path, streaming):
    rows = [{"picture": cell(1), "q": "why ?", "a": "so", "answer": "no", "question": "no ?"}]
    strings = dict.fromkeys(("q", "a", "answer", "question"), Value("string"))
    path = write_parquet(tmp_path / "data", rows, picture=Image(), **strings)
    (row,) = load(path, "questions", streaming=streaming, text_column="q", answer_column="a")
    assert (row["question"], row["answers"], number_of(row["image"])) == ("why ?", ["so"], 1)


@STREAMING
def test_limits_count_questions_and_exclusions_pictures(load, tmp_path, streaming):
    path = lists_of_questions(tmp_path / "data")
    rows = list(load(path, "questions", streaming=streaming, max_train_samples=4))
    assert [row["question_id"] for row in rows] == ["picture0-0", "picture0-1", "picture1-0", "picture2-0"]
    (tmp_path / "bad.txt").write_text("picture0\n")
    rows = list(
        load(path, "questions", streaming=streaming, max_train_samples=2, exclude_ids=str(tmp_path / "bad.txt"))
    )
    assert [row["question_id"] for row in rows] == ["picture1-0", "picture2-0"]
    assert [number_of(row["image"]) for row in rows] == [1, 2]


def test_stream_of_split_questions_continues_exactly(load, tmp_path):
    stream = load(lists_of_questions(tmp_path / "data"), "questions", streaming=True)
    expected = [row["question_id"] for row in stream]
    for taken in range(1, 6):
        stream = load(tmp_path / "data" / "train.parquet", "questions", streaming=True)
        iterator = iter(stream)
        for _ in range(taken):
            next(iterator)
        state = stream.state_dict()
        fresh = load(tmp_path / "data" / "train.parquet", "questions", streaming=True)
        fresh.load_state_dict(state)
        assert [row["question_id"] for row in fresh] == expected[taken:]


def test_workers_read_shared_pictures(load, tmp_path):
    records = load(lists_of_questions(tmp_path / "data"), "questions")
    loader = DataLoader(records, batch_size=2, num_workers=2, collate_fn=lambda rows: rows)
    assert [number_of(row["image"]) for rows in loader for row in rows] == [0, 0, 1, 2, 2, 2]


@STREAMING
@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"image": "0.png", "questions": ["a?", "b?"], "answers": ["x"]}], "2 questions, 1 answers"),
        ([{"image": "0.png", "question": "a?", "answer": 3}], "Answers must be text, not 3 of type int"),
        ([{"image": "0.png", "query": "a?"}], "No question column.*image, query.*text_column"),
        ([{"image": "0.png", "question": " ", "answer": "x"}], "All questions of the 1 records are empty"),
        ([{"question": "a?", "answer": "x"}], "No image column"),
    ],
)
def test_impossible_questions_are_refused(load, tmp_path, streaming, rows, message):
    (tmp_path / "0.png").write_bytes(encode(0))
    path = write_lines(tmp_path / "train.jsonl", rows)
    if streaming and "empty" in message:
        assert next(iter(load(path, "questions", streaming=True)))["question"] == " "  # the collator counts it
        return
    with pytest.raises((ValueError, datasets.exceptions.DatasetGenerationError), match=message):
        list(load(path, "questions", streaming=streaming))


# Statements


def pairs_in_a_list(folder):
    rows = [{"images": [cell(i), cell(i + 1)], "statement": f"number {i}", "label": i % 2} for i in range(4)]
    features = {"statement": Value("string"), "label": ClassLabel(names=["false", "true"])}
    return write_parquet(folder, rows, images=List(Image()), **features)


def pairs_in_two_columns(folder):
    rows = [
        {"image_left": cell(i), "image_right": cell(i + 1), "sentence": f"number {i}", "label": bool(i % 2)}
        for i in range(4)
    ]
    features = {"sentence": Value("string"), "label": Value("bool")}
    return write_parquet(folder, rows, image_left=Image(), image_right=Image(), **features)


def pairs_of_paths(folder):
    folder.mkdir()
    for index in range(5):
        (folder / f"{index}.png").write_bytes(encode(index))
    rows = [
        {
            "image_0": f"{i}.png",
            "image_1": f"{i + 1}.png",
            "sentence": f"number {i}",
            "label": ["False", "True"][i % 2],
        }
        for i in range(4)
    ]
    return write_lines(folder / "train.jsonl", rows)


def lists_of_paths(folder):
    path = pairs_of_paths(folder)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{"images": [row.pop("image_0"), row.pop("image_1")], **row} for row in rows]
    return write_lines(path, rows)


@STREAMING
@pytest.mark.parametrize("make", [pairs_in_a_list, pairs_in_two_columns, pairs_of_paths, lists_of_paths])
def test_statements_have_a_left_and_a_right_picture(load, tmp_path, make, streaming):
    records = load(make(tmp_path / "data"), "statements", streaming=streaming)
    assert set(records.column_names) == {"images", "statement", "label"}
    assert records.features["images"] == List(Image(decode=False))
    rows = list(records)
    for index, row in enumerate(rows):
        assert [number_of(image) for image in row["images"]] == [index, index + 1]
        assert row["statement"] == f"number {index}"
        assert str(row["label"]).lower() in (str(index % 2), str(bool(index % 2)).lower())
    assert len(rows) == 4


@STREAMING
def test_statements_may_be_about_one_picture(load, tmp_path, streaming):
    rows = [{"image": cell(i), "sentence": f"number {i}", "label": i == 1, "example_id": i} for i in range(2)]
    features = {"sentence": Value("string"), "label": Value("bool"), "example_id": Value("int64")}
    path = write_parquet(tmp_path / "data", rows, image=Image(), **features)
    rows = list(load(path, "statements", streaming=streaming))
    assert [(number_of(row["image"]), row["statement"], row["label"]) for row in rows] == [
        (0, "number 0", False),
        (1, "number 1", True),
    ]
    assert [row["example_id"] for row in rows] == [0, 1]


@STREAMING
def test_columns_of_statements_can_be_named(load, tmp_path, streaming):
    rows = [{"a": cell(3), "b": cell(4), "said": "x", "truth": 1, "label": 0, "sentence": "no"}]
    features = {"said": Value("string"), "truth": Value("int64"), "label": Value("int64"), "sentence": Value("string")}
    path = write_parquet(tmp_path / "data", rows, a=Image(), b=Image(), **features)
    names = {"text_column": "said", "label_column": "truth", "image_columns": ["b", "a"]}
    (row,) = load(path, "statements", streaming=streaming, **names)
    assert [number_of(image) for image in row["images"]] == [4, 3]
    assert (row["statement"], row["label"]) == ("x", 1)


def test_statements_need_no_labels(load, tmp_path):
    path = write_parquet(tmp_path / "data", [{"image": cell(0), "text": "x"}], image=Image(), text=Value("string"))
    (row,) = load(path, "statements")
    assert set(row) == {"image", "statement"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"text_column": "said"}, "no statement column 'said'.*text_column"),
        ({"label_column": "truth"}, "no label column 'truth'.*label_column"),
        ({"image_columns": ["image_left", "gone"]}, "no image column 'gone'.*image_columns"),
        ({"image_columns": ["image_left"]}, "two columns"),
        ({"record_type": "pages"}, "record_type must be one of captions, texts, questions, statements"),
    ],
)
def test_impossible_columns_are_refused(load, tmp_path, options, message):
    path = pairs_in_two_columns(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        load(path, **{"record_type": "statements", **options})


def test_missing_pictures_of_all_pairs_are_refused(load, tmp_path):
    path = pairs_of_paths(tmp_path / "data")
    for picture in (tmp_path / "data").glob("*.png"):
        picture.unlink()
    with pytest.raises(ValueError, match=r"None of the first 8 pictures exists.*image_root"):
        load(path, "statements")


# Texts


@STREAMING
def test_texts_need_no_pictures_and_leave_them_out(load, tmp_path, streaming):
    rows = [{"image": cell(0), "captions": ["a dog", "a cat"], "image_id": 4}]
    features = {"captions": List(Value("string")), "image_id": Value("int64")}
    with_pictures = write_parquet(tmp_path / "data", rows, image=Image(), **features)
    assert list(load(with_pictures, "texts", streaming=streaming)) == [{"captions": ["a dog", "a cat"], "image_id": 4}]
    lines = write_lines(tmp_path / "train.jsonl", [{"text": "a dog"}, {"text": "a cat"}])
    assert [row["captions"] for row in load(lines, "texts", streaming=streaming)] == [["a dog"], ["a cat"]]


@STREAMING
def test_text_files_give_a_record_for_each_line(load, tmp_path, streaming):
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "train-1.txt").write_text("One line.\n\n  \nAnother line.\n")
    (folder / "train-2.txt").write_text("A third.\n")
    (folder / "val.txt").write_text("Held out.\n")
    records = load(folder, "texts", streaming=streaming)
    assert [row["captions"] for row in records] == [["One line."], ["Another line."], ["A third."]]
    assert len(list(load(folder / "val.txt", "texts", "validation", streaming=streaming))) == 1
    with pytest.raises(ValueError, match=r"No image column.*record_type to 'texts'"):
        load(folder, "captions", streaming=streaming)


# Scenes


@STREAMING
@pytest.mark.parametrize(
    "record_type, columns",
    [
        ("captions", {"image", "captions"}),
        ("texts", {"captions"}),
        ("questions", {"image", "question", "answers"}),
        ("statements", {"images", "statement", "label"}),
    ],
)
def test_scenes_are_drawn_for_each_record_type(load, record_type, columns, streaming):
    options = {"num_scenes": 6, "num_eval_scenes": 2, "scene_size": 32, "streaming": streaming}
    records = load("scenes", record_type, **options)
    rows = list(records)
    assert len(rows) == 6
    assert columns <= set(rows[0])
    assert {"image", "images"} & set(rows[0]) == {"image", "images"} & columns
    for row in rows:
        for image in [row["image"]] if "image" in row else row.get("images", []):
            assert load_image(image).size == (32, 32)
    assert len(list(load("scenes", record_type, "validation", **options))) == 2


def test_types_of_drawn_questions_and_statements_can_be_chosen(load):
    questions = load("scenes", "questions", num_scenes=4, scene_size=32, scene_types="colour", scene_objects=[1, 2])
    assert set(questions["question_type"]) == {"colour"}
    statements = load("scenes", "statements", num_scenes=4, scene_size=32, scene_types=["both", "neither"])
    assert set(statements["statement_type"]) == {"both", "neither"}
    with pytest.raises(ValueError, match="scene_types are types of questions, statements or labels"):
        load("scenes", "captions", scene_types=["colour"])
    with pytest.raises(ValueError, match="question_types"):
        load("scenes", "questions", scene_types=["smell"])


# Batches


def test_records_go_into_the_collators(load, tmp_path):
    from hf_vlp.data.task_collators import MaskedLanguageCollator, PairImagesCollator, QuestionCollator
    from hf_vlp.data.tokenization import train_bert_tokenizer
    from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil, MomeProcessor

    questions = load(lists_of_questions(tmp_path / "questions"), "questions")
    tokenizer = train_bert_tokenizer([*questions["question"], "number 0 1 2 3"], 60)
    processor = MomeProcessor(MomeImageProcessorPil(size={"height": 16, "width": 16}), tokenizer)
    vocabulary = sorted({answer for answers in questions["answers"] for answer in answers})
    collator = QuestionCollator(processor, vocabulary=vocabulary, keep=["question_id"])
    batch = collator([questions[index] for index in range(6)])
    assert batch["labels"].argmax(1).tolist() == list(range(6))
    assert batch["question_id"][-1] == "picture2-2"
    statements = list(load(pairs_of_paths(tmp_path / "pairs"), "statements"))
    assert PairImagesCollator(processor)(statements)["labels"].tolist() == [0, 1, 0, 1]
    texts = list(load("scenes", "texts", num_scenes=3, scene_size=32))
    assert (MaskedLanguageCollator(tokenizer)(texts)["labels"] != -100).any(1).tolist() == [True] * 3
