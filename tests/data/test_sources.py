"""`hf_vlp.data.sources` and the readers in `hf_vlp.data.annotations`.

Covers: every kind of source, whole and streaming, giving the same records; which files belong to a split; patterns;
columns found and columns named, nested ones too; pictures that stay undecoded; limits and exclusions; exact resume of
streams; which data would be downloaded; reading with workers; a broken picture that comes as far as the collator and
is counted there; each refused input with its message; reading the arguments from YAML. Nothing is downloaded.
"""

import io
import itertools
import json
import re
import tarfile
import time
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PilImage
from torch.utils.data import DataLoader
from transformers import HfArgumentParser

from hf_vlp.data.annotations import annotation_layout, read_visual_genome
from hf_vlp.data.image_io import load_image
from hf_vlp.data.sources import DataArguments, _expand_braces, load_records

NUMBER = 6


@pytest.fixture(autouse=True)
def quiet_bars():
    datasets.disable_progress_bars()


def encode(index: int, format="PNG") -> bytes:
    buffer = io.BytesIO()
    PilImage.new("RGB", (12, 10), (index * 10, 20, 30)).save(buffer, format)
    return buffer.getvalue()


def captions(index: int) -> list[str]:
    return [f"dog {index}", f"a dog with number {index}"]


def write_pictures(folder: Path, number=NUMBER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        (folder / f"{index}.png").write_bytes(encode(index))


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_with_paths(number=NUMBER, folder="") -> list[dict]:
    return [{"file_name": f"{folder}{i}.png", "captions": captions(i), "image_id": i} for i in range(number)]


def make_parquet(folder: Path):
    rows = [{"image": {"bytes": encode(i), "path": None}, "captions": captions(i)} for i in range(NUMBER)]
    features = Features({"image": Image(), "captions": List(Value("string"))})
    folder.mkdir()
    for shard in range(2):
        part = Dataset.from_list(rows[shard * 3 : shard * 3 + 3], features=features)
        part.to_parquet(folder / f"train-0000{shard}-of-00002.parquet")
    Dataset.from_list(rows[:1], features=features).to_parquet(folder / "val-00000-of-00001.parquet")
    return folder


def make_plain_parquet(folder: Path):
    """Written by somebody who does not know the datasets library: no feature types in the file."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    table = pyarrow.table(
        {"picture": [encode(i) for i in range(NUMBER)], "caption": list(map(captions, range(NUMBER)))}
    )
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    return folder / "data.parquet"


def make_jsonl(folder: Path):
    write_pictures(folder / "pictures")
    return write_lines(folder / "all.jsonl", rows_with_paths(folder="pictures/"))


def make_json(folder: Path):
    write_pictures(folder)
    (folder / "all.json").write_text(json.dumps(rows_with_paths()))
    return folder / "all.json"


def make_imagefolder(folder: Path):
    for split, number in (("train", NUMBER), ("validation", 1)):
        write_pictures(folder / split, number)
        write_lines(folder / split / "metadata.jsonl", rows_with_paths(number))
    return folder


def make_webdataset(folder: Path):
    folder.mkdir()
    for shard in range(2):
        members = [
            (f"{index:03d}.{extension}", data)
            for index in range(shard * 3, shard * 3 + 3)
            for extension, data in {
                "png": encode(index),
                "json": json.dumps({"captions": captions(index)}).encode(),
            }.items()
        ]
        write_tar(folder / f"train-{shard:04d}.tar", members)
    return folder / "train-{0000..0001}.tar"


def make_disk(folder: Path):
    rows = [{"image": {"bytes": encode(i), "path": None}, "captions": captions(i)} for i in range(NUMBER)]
    dataset = Dataset.from_list(rows, features=Features({"image": Image(), "captions": List(Value("string"))}))
    DatasetDict({"train": dataset, "test": dataset.select([0])}).save_to_disk(folder)
    return folder


def make_karpathy(folder: Path):
    write_pictures(folder / "val2014")
    splits = ["train", "restval", "train", "restval", "train", "train"]
    images = [
        {
            "filepath": "val2014",
            "filename": f"{i}.png",
            "cocoid": 100 + i,
            "imgid": i,
            "split": splits[i],
            "sentences": [{"raw": text, "tokens": text.split()} for text in captions(i)],
        }
        for i in range(NUMBER)
    ]
    images += [{**images[0], "split": "val"}, {**images[1], "split": "test"}]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return folder / "dataset_coco.json"


def make_coco(folder: Path):
    write_pictures(folder)
    content = {
        "info": {"year": 2014},
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(NUMBER)],
        "annotations": [{"image_id": i, "id": 9, "caption": text} for i in range(NUMBER) for text in captions(i)],
    }
    (folder / "captions_train2014.json").write_text(json.dumps(content))
    return folder / "captions_train2014.json"


def make_visual_genome(folder: Path):
    for index in range(NUMBER):
        place = folder / ("VG_100K" if index % 2 else "VG_100K_2")
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index}.jpg").write_bytes(encode(index, "PNG"))
    content = [
        {"id": i, "regions": [{"region_id": 5, "image_id": i, "phrase": text, "x": 1} for text in captions(i)]}
        for i in range(NUMBER)
    ]
    (folder / "region_descriptions.json").write_text(json.dumps(content, indent=1))
    return folder / "region_descriptions.json"


MAKERS = {
    "parquet": make_parquet,
    "parquet without feature types": make_plain_parquet,
    "jsonl": make_jsonl,
    "json": make_json,
    "imagefolder": make_imagefolder,
    "webdataset": make_webdataset,
    "disk": make_disk,
    "karpathy": make_karpathy,
    "coco": make_coco,
    "visual_genome": make_visual_genome,
}


@pytest.fixture
def arguments(tmp_path):
    """Arguments with a cache of their own."""
    return lambda source="unused", **options: DataArguments(
        source=str(source), dataset_cache=str(tmp_path / "cache"), **options
    )


# All kinds


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_gives_the_same_records(kind, streaming, tmp_path, arguments):
    source = MAKERS[kind](tmp_path / "data")
    records = load_records(arguments(source), "train", streaming=streaming)
    assert isinstance(records, datasets.IterableDataset if streaming else Dataset)
    rows = list(records)
    assert sorted(row["captions"] for row in rows) == [captions(index) for index in range(NUMBER)]
    for row in rows:
        index = int(row["captions"][0].split()[1])
        assert isinstance(row["image"], dict), "pictures must not be decoded here"
        assert load_image(row["image"]).getpixel((5, 5)) == (index * 10, 20, 30)
    if kind == "json" and streaming:
        assert records.features is None  # datasets knows the columns of such streams from their records only
        return
    assert {"image", "captions"} <= set(records.column_names)
    assert records.features["image"] == Image(decode=False)
    assert records.features["captions"] == List(Value("string"))


@pytest.mark.parametrize("streaming", [False, True])
def test_scenes_are_drawn_for_each_split(streaming, arguments):
    settings = arguments("scenes", num_scenes=5, num_eval_scenes=3, scene_size=32, streaming=streaming)
    for split, number in (("train", 5), ("validation", 3), ("test", 3), ("compositional", 3)):
        rows = list(load_records(settings, split))
        assert len(rows) == number
        assert load_image(rows[0]["image"]).size == (32, 32)
        assert rows[0]["captions"]


@pytest.mark.parametrize("streaming", [False, True])
def test_scenes_with_classes_are_drawn(streaming, arguments):
    options = {"num_scenes": 4, "num_eval_scenes": 3, "scene_size": 32, "streaming": streaming}
    settings = arguments("scenes", record_type="labels", scene_types=["shape"], scene_objects=[1], **options)
    for split, number in (("train", 4), ("test", 3)):
        records = load_records(settings, split)
        assert records.features["label"].num_classes == 6
        rows = list(records)
        assert [(len(row["objects"]), load_image(row["image"]).size) for row in rows] == [(1, (32, 32))] * number


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_of_pictures_name_their_classes(streaming, tmp_path, arguments):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / "animals" / split / name
            folder.mkdir(parents=True)
            for number in range(2):
                (folder / f"{number}.png").write_bytes(encode(number))
    for split in ("train", "validation"):
        records = load_records(arguments(tmp_path / "animals", record_type="labels"), split, streaming)
        assert records.features["label"].names == ["cat", "dog"]
        assert sorted(row["label"] for row in records) == [0, 0, 1, 1]


@pytest.mark.parametrize("streaming", [False, True])
def test_csv_and_tsv_with_paths(streaming, tmp_path, arguments):
    write_pictures(tmp_path)
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_text(f"path{mark}caption\n0.png{mark}a dog\n1.png{mark}two dogs\n")
        rows = list(load_records(arguments(tmp_path / name), streaming=streaming))
        assert [row["captions"] for row in rows] == [["a dog"], ["two dogs"]]
        assert load_image(rows[1]["image"]).getpixel((0, 0)) == (10, 20, 30)


def test_other_columns_are_kept(tmp_path, arguments):
    source = make_jsonl(tmp_path / "data")
    for streaming in (False, True):
        row = next(iter(load_records(arguments(source), streaming=streaming)))
        assert row["image_id"] == 0


def test_bytes_of_pictures_are_not_copied_when_columns_are_mapped(tmp_path, arguments):
    rows = [{"img": {"bytes": encode(i), "path": None}, "caption": f"dog {i}", "n": i} for i in range(NUMBER)]
    features = Features({"img": Image(), "caption": Value("string"), "n": Value("int64")})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "train.parquet")
    records = load_records(arguments(tmp_path / "train.parquet"))
    assert set(records.column_names) == {"image", "captions", "n"}
    cached = list((tmp_path / "cache").rglob("*.arrow"))
    with_pictures = [path for path in cached if b"IHDR" in path.read_bytes()]
    assert len(with_pictures) == 1, "one copy is made by datasets itself, none by the mapping of columns"


# Splits and files


def test_splits_are_read_from_file_names(tmp_path, arguments):
    folder = tmp_path / "data"
    for name, word in (("train-00000-of-00002", "a"), ("train-00001-of-00002", "b"), ("val", "c"), ("extra_1", "d")):
        write_lines(folder / f"{name}.jsonl", [{"image": "https://x/1.png", "caption": word}])

    def words(split, **options):
        return [row["captions"][0] for row in load_records(arguments(folder, **options), split)]

    assert words("train") == ["a", "b"]
    assert words("validation") == ["c"]
    assert words("val") == ["c"]
    assert words("extra") == ["d"]
    assert words("test", test_split="extra") == ["d"]
    with pytest.raises(ValueError, match=r"no split 'test'.*it has extra, train, validation.*test_split.*test_files"):
        words("test")


def test_splits_may_be_folders(tmp_path, arguments):
    for split in ("train", "test"):
        write_lines(tmp_path / "data" / split / "0001.jsonl", [{"image": "https://x/1.png", "caption": split}])
    for split in ("train", "test"):
        assert load_records(arguments(tmp_path / "data"), split)[0]["captions"] == [split]


def test_files_of_a_split_can_be_named(tmp_path, arguments):
    for name in ("one", "two", "three"):
        write_lines(tmp_path / f"{name}.jsonl", [{"image": "https://x/1.png", "caption": name}])
    settings = arguments(
        train_files=[str(tmp_path / "{one,three}.jsonl")], validation_files=str(tmp_path / "tw?.jsonl")
    )
    assert [row["captions"] for row in load_records(settings, "train")] == [["one"], ["three"]]
    assert [row["captions"] for row in load_records(settings, "validation")] == [["two"]]


def test_braces_expand_as_in_a_shell():
    assert _expand_braces("a{08..10}b") == ["a08b", "a09b", "a10b"]
    assert _expand_braces("{2..0}") == ["2", "1", "0"]
    assert _expand_braces("{a,b}{1..2}") == ["a1", "a2", "b1", "b2"]
    assert _expand_braces("plain{x}") == ["plain{x}"]


def test_unknown_split_names_those_there_are(tmp_path, arguments):
    cases = {
        make_imagefolder(tmp_path / "a"): "train, validation",
        make_disk(tmp_path / "b"): "test, train",
        make_karpathy(tmp_path / "c"): "restval, test, train, val",
        make_parquet(tmp_path / "d"): "train, validation",
    }
    for source, names in cases.items():
        for streaming in (False, True):
            with pytest.raises(ValueError, match=f"it has {names}"):
                load_records(arguments(source), "nothing", streaming=streaming)


def test_karpathy_train_includes_restval_unless_asked_apart(tmp_path, arguments):
    source = make_karpathy(tmp_path / "data")
    assert len(load_records(arguments(source), "train")) == NUMBER
    assert len(load_records(arguments(source), "restval")) == 2
    assert load_records(arguments(source), "validation")["image_id"] == ["100"]
    assert load_records(arguments(source), "test")["captions"] == [captions(1)]


def test_karpathy_pictures_may_lie_directly_in_the_root(tmp_path, arguments):
    source = make_karpathy(tmp_path / "data")
    write_pictures(tmp_path / "flat")
    record = load_records(arguments(source, image_root=str(tmp_path / "flat")), "train")[0]
    assert record["image"]["path"] == str(tmp_path / "flat" / "0.png")


def test_changed_annotation_file_is_read_again(tmp_path, arguments):
    source = make_coco(tmp_path / "data")
    assert len(load_records(arguments(source))) == NUMBER
    time.sleep(0.01)
    content = json.loads(source.read_text())
    content["images"] = content["images"][:2]
    source.write_text(json.dumps(content))
    assert len(load_records(arguments(source))) == 2


def test_layouts_of_annotation_files_are_told_apart(tmp_path):
    expected = {make_karpathy: "karpathy", make_coco: "coco", make_visual_genome: "visual_genome", make_json: "json"}
    for number, (maker, layout) in enumerate(expected.items()):
        assert annotation_layout(maker(tmp_path / str(number))) == layout


def test_visual_genome_is_parsed_piece_by_piece(tmp_path, monkeypatch):
    from hf_vlp.data import annotations

    source = make_visual_genome(tmp_path)
    whole = list(read_visual_genome(source, tmp_path))
    elements = json.loads(source.read_text())
    for chunk_size in (1, 7, 100, 10_000):
        assert list(annotations._iterate_array(source, chunk_size)) == elements
    assert [record["captions"] for record in whole] == [captions(index) for index in range(NUMBER)]
    source.write_text(source.read_text()[:-30])
    with pytest.raises(ValueError, match=r"Is it complete"):
        list(read_visual_genome(source, tmp_path))


# Columns


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_can_be_named_and_combined(streaming, tmp_path, arguments):
    rows = [{"foto": "https://x/1.png", "short": "a dog", "long": ["a brown dog", "it runs"], "text": "no"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    settings = arguments(source, image_column="foto", caption_columns=["short", "long"], streaming=streaming)
    (row,) = load_records(settings)
    assert row["captions"] == ["a dog", "a brown dog", "it runs"]
    assert row["image"]["path"] == "https://x/1.png"
    assert row["text"] == "no"
    assert set(row) == {"image", "captions", "text"}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("columns", [None, ["sentences.raw"]])
def test_captions_inside_objects_are_reached(columns, streaming, tmp_path, arguments):
    rows = [{"image": "https://x/1.png", "sentences": [{"raw": "a dog", "id": 1}, {"raw": "two", "id": 2}]}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    (row,) = load_records(arguments(source, caption_columns=columns), streaming=streaming)
    assert row["captions"] == ["a dog", "two"]


@pytest.mark.parametrize("streaming", [False, True])
def test_unused_columns_named_like_ours_give_way(streaming, tmp_path, arguments):
    rows = [{"image": "x", "captions": [1, 2], "foto": "https://x/1.png", "caption": "a dog"}]
    source = write_lines(tmp_path / "a.jsonl", rows)
    settings = arguments(source, image_column="foto", caption_columns=["caption"], streaming=streaming)
    assert list(load_records(settings)) == [
        {"image": {"bytes": None, "path": "https://x/1.png"}, "captions": ["a dog"]}
    ]


def test_one_column_may_hold_paths_relative_to_a_root(tmp_path, arguments):
    write_pictures(tmp_path / "elsewhere")
    source = write_lines(tmp_path / "lists" / "a.jsonl", rows_with_paths())
    with pytest.raises(ValueError, match=r"None of the first 6 pictures exists.*0\.png.*image_root"):
        load_records(arguments(source))
    record = load_records(arguments(source, image_root=str(tmp_path / "elsewhere")))[3]
    assert load_image(record["image"]).getpixel((0, 0)) == (30, 20, 30)


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_webdataset_captions_may_be_text_members(tmp_path, arguments):
    members = [
        (f"{i}.{extension}", data) for i in range(3) for extension, data in (("jpg", encode(i)), ("txt", b"dog"))
    ]
    source = write_tar(tmp_path / "a.tar", members)
    for streaming in (False, True):
        rows = list(load_records(arguments(source), streaming=streaming))
        assert [(row["captions"], row["__key__"]) for row in rows] == [(["dog"], "0"), (["dog"], "1"), (["dog"], "2")]


def test_pictures_in_several_columns_need_a_choice_or_a_stream(tmp_path, arguments):
    """Such as shards with jpg and png members."""
    rows = [{"jpg": encode(0), "png": None, "txt": "a"}, {"jpg": None, "png": encode(1), "txt": "b"}]
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"several columns, jpg, png\. Set image_column .* or streaming"):
        load_records(arguments(tmp_path / "a.parquet"))
    records = list(load_records(arguments(tmp_path / "a.parquet"), streaming=True))
    assert [load_image(record["image"]).getpixel((0, 0))[0] for record in records] == [0, 10]


def missing_columns():
    yield (
        {},
        r"No caption column is recognised; the data have image, note\..*caption_columns",
        {"image": "x", "note": 1},
    )
    yield (
        {},
        r"No image column is recognised; the data have caption, note\..*image_column",
        {"caption": "x", "note": 1},
    )
    row = {"image": "x", "caption": "a dog", "more": {"a": "b"}}
    yield {"caption_columns": "title"}, r"no caption column 'title'; the data have image, caption, more", row
    yield {"caption_columns": "more.b"}, r"'more' has no field 'b', only a", row
    yield {"image_column": "foto"}, r"no image column 'foto'; the data have image, caption, more", row


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", range(5))
def test_missing_columns_are_refused_with_those_there_are(case, streaming, tmp_path, arguments):
    options, message, row = next(itertools.islice(missing_columns(), case, None))
    source = write_lines(tmp_path / "a.jsonl", [row])
    with pytest.raises(ValueError, match=message):
        load_records(arguments(source, **options), streaming=streaming)


def test_captions_that_are_empty_everywhere_are_refused(tmp_path, arguments):
    for empty in ("", "  \n", []):
        source = write_lines(tmp_path / "a.jsonl", [{"image": "https://x/1.png", "caption": empty}] * 3)
        with pytest.raises(ValueError, match=r"All captions of the 3 records are empty.*the data have"):
            load_records(arguments(source))


def test_one_caption_among_thousands_of_empty_ones_is_enough(tmp_path, arguments):
    rows = [{"image": "https://x/1.png", "caption": ""}] * 2500 + [{"image": "https://x/1.png", "caption": "a dog"}]
    assert len(load_records(arguments(write_lines(tmp_path / "a.jsonl", rows)))) == 2501


def test_captions_that_are_numbers_are_refused(tmp_path, arguments):
    source = write_lines(tmp_path / "a.jsonl", [{"image": "https://x/1.png", "caption": 7}])
    with pytest.raises(ValueError, match=r"must be text.*7 of type int"):
        load_records(arguments(source))


# What is not there


def test_missing_files_and_folders_are_refused(tmp_path, arguments, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.rtf").write_text("x")
    write_pictures(tmp_path / "pictures")
    cases = {
        "gone.parquet": "No such file: 'gone.parquet'",
        "shards/{00..02}.tar": "No such file: 'shards/00.tar'",
        "none-*.jsonl": "No such file",
        "./gone": "there is no such file or folder",
        "/gone/away/entirely": "there is no such file or folder",
        str(tmp_path / "notes.rtf"): "file of an unknown type",
        str(tmp_path / "empty"): "is empty",
        str(tmp_path / "pictures"): "holds 6 pictures but no captions.*metadata.jsonl",
    }
    for source, message in cases.items():
        with pytest.raises(ValueError, match=message):
            load_records(arguments(source))


@pytest.mark.parametrize("streaming", [False, True])
def test_sources_of_another_kind_or_layout_are_refused(streaming, tmp_path, arguments):
    lines = make_jsonl(tmp_path / "a")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "coco.json").write_text('{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1}]}')
    mixed = [str(lines), str(make_parquet(tmp_path / "p") / "val-00000-of-00001.parquet")]
    cases = [
        (arguments("/gone", kind="imagefolder"), "There is no folder '/gone'"),
        (arguments("/gone", kind="disk"), "There is no folder '/gone'"),
        (arguments(lines.parent, kind="disk"), "save_to_disk; otherwise set kind"),
        (arguments(tmp_path / "coco.json"), "coco.json is not laid out like a coco file: KeyError: 'caption'"),
        (arguments(tmp_path / "empty.jsonl"), "empty.jsonl.* holds no records"),
        (arguments(train_files=mixed), "must be of one known type"),
        (arguments(train_files=[str(lines)], kind="imagefolder"), "read one by one"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            list(load_records(settings, streaming=streaming))


def test_missing_picture_of_an_imagefolder_stays_a_record(tmp_path, arguments):
    """It is the collator's to count; nothing may vanish in silence."""
    source = make_imagefolder(tmp_path / "data")
    (source / "train" / "3.png").unlink()
    for streaming in (False, True):
        assert len(list(load_records(arguments(source), streaming=streaming))) == NUMBER


def test_missing_image_root_is_refused(tmp_path, arguments):
    for source in (make_jsonl(tmp_path / "a"), make_coco(tmp_path / "b")):
        with pytest.raises(ValueError, match="image_root '/gone' is not a folder"):
            load_records(arguments(source, image_root="/gone"))


@pytest.mark.parametrize("streaming", [False, True])
def test_damaged_files_are_refused_by_name(streaming, tmp_path, arguments):
    cases = {"a.parquet": b"PAR1 no parquet", "a.jsonl": b"{not json", "a.tar": b"x" * 9, "b.json": b'{"sentences": ['}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(name)):
            list(load_records(arguments(tmp_path / name), streaming=streaming))


def test_unreachable_hub_name_says_that_it_is_no_file_either(arguments, monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match=r"'some/name' is no file or folder here.*no network"):
        load_records(arguments("some/name"))


def test_hub_names_are_opened_with_all_options(arguments, monkeypatch):
    seen = {}

    def load_dataset(path, **options):
        seen.update(options, path=path)
        return Dataset.from_list([{"image": "https://x/1.png", "caption": "a dog"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    settings = arguments("some/name", dataset_config="en", dataset_revision="v2", validation_split="dev")
    assert load_records(settings, "validation")[0]["captions"] == ["a dog"]
    assert {key: seen[key] for key in ("path", "name", "revision", "split", "streaming")} == {
        "path": "some/name",
        "name": "en",
        "revision": "v2",
        "split": "dev",
        "streaming": False,
    }


# Limits and exclusions


@pytest.mark.parametrize("streaming", [False, True])
def test_number_of_records_is_limited(streaming, tmp_path, arguments):
    source = make_imagefolder(tmp_path / "data")
    settings = arguments(source, max_train_samples=4, max_eval_samples=100, streaming=streaming)
    assert len(list(load_records(settings, "train"))) == 4
    assert len(list(load_records(settings, "validation"))) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("content", ["1\n3\n\n", "[1, 3]", '["1", "3"]'])
def test_pictures_are_excluded_by_id_before_the_limit(content, streaming, tmp_path, arguments):
    (tmp_path / "ids").write_text(content)
    source = make_visual_genome(tmp_path / "data")
    settings = arguments(source, exclude_ids=str(tmp_path / "ids"), max_train_samples=3, streaming=streaming)
    assert [row["image_id"] for row in load_records(settings)] == ["0", "2", "4"]


def test_exclusions_that_cannot_work_are_refused(tmp_path, arguments):
    source = make_parquet(tmp_path / "data")
    with pytest.raises(ValueError, match="no such file"):
        load_records(arguments(source, exclude_ids=str(tmp_path / "gone")))
    (tmp_path / "ids").write_text("1")
    with pytest.raises(ValueError, match=r"needs a column image_id.*image.*captions"):
        load_records(arguments(source, exclude_ids=str(tmp_path / "ids")))
    (tmp_path / "all").write_text("\n".join(map(str, range(NUMBER))))
    with pytest.raises(ValueError, match="holds no records"):
        load_records(arguments(make_jsonl(tmp_path / "b"), exclude_ids=str(tmp_path / "all")))


# Streams


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "imagefolder", "webdataset", "disk", "coco", "scenes"])
def test_stream_continues_exactly_where_its_state_was_taken(kind, tmp_path, arguments):
    source = MAKERS[kind](tmp_path / "data") if kind in MAKERS else kind
    settings = arguments(source, streaming=True, num_scenes=NUMBER)
    whole = [row["captions"] for row in load_records(settings)]
    assert len(whole) == NUMBER
    for consumed in (1, 3, 4):
        records = load_records(settings)
        iterator = iter(records)
        for _ in range(consumed):
            next(iterator)
        state = json.loads(json.dumps(records.state_dict()))  # it must survive being stored
        resumed = load_records(settings)
        resumed.load_state_dict(state)
        assert [row["captions"] for row in resumed] == whole[consumed:]


def test_limited_and_filtered_stream_continues_exactly(tmp_path, arguments):
    (tmp_path / "ids").write_text("1")
    source = make_jsonl(tmp_path / "data")
    settings = arguments(source, streaming=True, exclude_ids=str(tmp_path / "ids"), max_train_samples=4)
    records = load_records(settings)
    iterator = iter(records)
    assert [next(iterator)["image_id"] for _ in range(2)] == [0, 2]
    resumed = load_records(settings)
    resumed.load_state_dict(records.state_dict())
    assert [row["image_id"] for row in resumed] == [3, 4]


def test_shards_are_shared_among_workers(tmp_path, arguments):
    records = load_records(arguments(make_parquet(tmp_path / "data"), streaming=True))
    assert records.num_shards == 2
    loader = DataLoader(records, batch_size=None, num_workers=2, collate_fn=lambda row: row["captions"])
    assert sorted(loader) == [captions(index) for index in range(NUMBER)]


@pytest.mark.parametrize("streaming", [False, True])
def test_broken_picture_passes_the_source_and_is_counted_by_the_collator(streaming, tmp_path, arguments):
    from hf_vlp.data.collators import BadSamplePolicy
    from hf_vlp.pretraining.visual_tokens import PictureCollator

    class Processor:
        def __call__(self, images, return_tensors):
            import torch

            return {"pixel_values": torch.zeros(len(images), 3, 4, 4)}

    source = make_imagefolder(tmp_path / "data")
    (source / "train" / "2.png").write_bytes(encode(2)[:40])
    (source / "train" / "4.png").write_bytes(b"")
    policy = BadSamplePolicy()
    records = list(load_records(arguments(source), streaming=streaming))
    batch = PictureCollator(Processor(), bad_samples=policy)(records)
    assert policy.counts["image"] == 2
    assert len(batch["pixel_values"]) == NUMBER - 2


# Arguments


def test_arguments_are_read_from_yaml_and_flags(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("source: a/b\ncaption_columns: [short, long]\nstreaming: true\nvalidation_files: v.jsonl\n")
    (settings,) = HfArgumentParser(DataArguments).parse_yaml_file(str(path))
    assert settings.caption_columns == ["short", "long"]
    assert settings.validation_files == ["v.jsonl"]
    (settings,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        ["--source", "x.jsonl", "--caption_columns", "a", "b", "--streaming", "--max_train_samples", "5"]
    )
    assert settings.caption_columns == ["a", "b"]
    assert settings.streaming is True
    assert settings.max_train_samples == 5
    assert settings.scene_objects is None


def test_every_argument_has_a_help_text():
    import dataclasses

    for entry in dataclasses.fields(DataArguments):
        assert len(entry.metadata.get("help", "")) > 10, entry.name


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "zip"}, "kind must be one of"),
        ({"source": ""}, "source must be"),
        ({"source": None}, "source must be"),
        ({"train_files": []}, "train_files must not be an empty list"),
        ({"max_train_samples": 0}, "max_train_samples must be at least 1"),
        ({"num_scenes": -1}, "num_scenes must be at least 1"),
        ({"scene_objects": [1, 2, 3]}, "scene_objects"),
    ],
)
def test_impossible_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DataArguments(**options)


def test_impossible_split_is_refused():
    with pytest.raises(ValueError, match="split must be a name"):
        load_records(DataArguments(), 3)


@pytest.mark.parametrize(
    "settings, is_remote",
    [
        ({"source": "scenes"}, False),
        ({"source": "."}, False),
        ({"source": "nlphuji/flickr30k"}, True),
        ({"source": "https://host.invalid/{0..9}.tar"}, True),
        ({"source": ".", "train_files": "hf://datasets/a/b.parquet"}, True),
        ({"source": "nlphuji/flickr30k", "train_files": "a.jsonl"}, False),
    ],
)
def test_data_that_would_be_downloaded_are_known(settings, is_remote, tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert DataArguments(**settings).is_remote() == is_remote
