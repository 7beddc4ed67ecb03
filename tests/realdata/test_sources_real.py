"""Sources and collators on real photographs, read from `$HF_VLP_DATA` or `../shared/data`.

Covers: the parquet folders `flickr8k_mini`, `flickr8k_160px` and `coco_cc_by`, whole and streaming: splits, counts,
captions, every picture decodable, batches; the questions of `easy_vqa` and `daquar` with their pictures, the
statements of `nlvr_v1`. Skipped when the folder is absent. Expected numbers come from the files.
"""

import os
from pathlib import Path

import datasets
import pyarrow.parquet
import pytest
from transformers import CLIPImageProcessorPil

from hf_vlp.data.collators import BadSamplePolicy, CaptionCollator, record_captions
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.data.tokenization import train_gpt2_tokenizer
from hf_vlp.models.vc_gpt.processing_vc_gpt import VcGptProcessor

ROOT = Path(os.environ.get("HF_VLP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
PARTS = [
    ("flickr8k_mini", "train", "train"),
    ("flickr8k_mini", "validation", "val"),
    ("flickr8k_mini", "test", "test"),
    ("coco_cc_by", "train", "train"),
]


def files(folder: str, prefix: str) -> list[Path]:
    found = sorted((ROOT / folder).glob(f"{prefix}-*.parquet"))
    if not found:
        pytest.skip(f"no {prefix}-*.parquet in {ROOT / folder}; set HF_VLP_DATA to the folder with the real data")
    return found


@pytest.fixture
def arguments(tmp_path):
    datasets.disable_progress_bars()
    return lambda folder, **options: DataArguments(source=str(ROOT / folder), dataset_cache=str(tmp_path), **options)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("folder, split, prefix", PARTS)
def test_records_are_those_of_the_files(folder, split, prefix, streaming, arguments):
    table = pyarrow.parquet.ParquetDataset([str(file) for file in files(folder, prefix)]).read(
        ["file_name", "captions"]
    )
    records = load_records(arguments(folder), split, streaming=streaming)
    rows = [(row["file_name"], row["captions"]) for row in records.remove_columns("image")]
    assert rows == list(zip(table["file_name"].to_pylist(), table["captions"].to_pylist()))


def test_several_shards_and_unusual_splits_are_found(arguments):
    for split, prefix in (("train", "train"), ("validation", "val"), ("extra", "extra")):
        number = sum(pyarrow.parquet.read_metadata(file).num_rows for file in files("flickr8k_160px", prefix))
        assert len(load_records(arguments("flickr8k_160px"), split)) == number


@pytest.mark.parametrize("folder, split, prefix", PARTS[1:])
def test_every_photograph_is_decoded_and_none_is_bad(folder, split, prefix, arguments):
    files(folder, prefix)
    records = load_records(arguments(folder), split)
    policy = BadSamplePolicy("raise")
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = VcGptProcessor(image_processor, train_gpt2_tokenizer(["a dog"], 257))
    collator = CaptionCollator(processor, bad_samples=policy)
    rows = [[records[i] for i in range(s, min(s + 32, len(records)))] for s in range(0, len(records), 32)]
    assert sum(len(collator(chunk)["pixel_values"]) for chunk in rows) == len(records) == policy.counts["seen"]
    assert [record_captions(record) for chunk in rows for record in chunk] == [
        [" ".join(text.split()) for text in captions] for captions in records["captions"]
    ]


def test_training_batch_holds_the_captions_of_its_photographs(arguments):
    files("coco_cc_by", "train")
    records = load_records(arguments("coco_cc_by"))
    texts = [text for captions in records["captions"] for text in captions]
    processor = VcGptProcessor(CLIPImageProcessorPil(), train_gpt2_tokenizer(texts, 1000))
    chunk = [records[index] for index in range(8)]
    batch = CaptionCollator(processor, captions_per_image=2, max_length=60)(chunk)
    assert batch["pixel_values"].shape == (8, 3, 224, 224)
    decoded = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    for row, text in enumerate(decoded):
        assert text in [" ".join(caption.split()) for caption in chunk[row // 2]["captions"]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("folder", ["easy_vqa", "daquar"])
def test_questions_are_those_of_the_files_with_their_pictures(folder, streaming, arguments):
    table = pyarrow.parquet.ParquetDataset([str(file) for file in files(folder, "test")]).read()
    number = 300  # questions, about thirty pictures
    records = load_records(arguments(folder, record_type="questions", max_eval_samples=number), "test", streaming)
    expected = [
        (row["image_id"], row["image"]["bytes"], question, [answer])
        for row in table.slice(0, number).to_pylist()
        for question, answer in zip(row["questions"], row["answers"])
    ]
    found = [(row["image_id"], row["image"]["bytes"], row["question"], row["answers"]) for row in records]
    assert found == expected[:number]
    if not streaming:
        everything = load_records(arguments(folder, record_type="questions"), "test")
        assert len(everything) == sum(map(len, table["questions"]))
        assert len(set(everything["question_id"])) == len(everything)


@pytest.mark.parametrize("streaming", [False, True])
def test_statements_are_those_of_the_files(streaming, arguments):
    table = pyarrow.parquet.ParquetDataset([str(file) for file in files("nlvr_v1", "val")]).read(["sentence", "label"])
    records = load_records(arguments("nlvr_v1", record_type="statements"), "validation", streaming)
    rows = [(row["statement"], row["label"]) for row in records]
    assert rows == list(zip(table["sentence"].to_pylist(), table["label"].to_pylist()))
