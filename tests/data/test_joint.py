"""`hf_vlp.data.joint` and the record types `joint` and `images` of `hf_vlp.data.sources`.

Covers: length, order and repetition of the sources; purity of the items; sources left out; parts; streams; refused
input; sections of the settings, from YAML and flags; folders of pictures alone.
"""

from collections import Counter

import pytest
from PIL import Image

from hf_vlp.data.joint import JointRecords, JointStream
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.pretraining.arguments import parse_arguments

SCENES = {"scene_size": 32, "num_eval_scenes": 2}


def numbered(name: str, number: int) -> list[dict]:
    return [{"id": f"{name}{index}"} for index in range(number)]


@pytest.fixture
def records() -> JointRecords:
    return JointRecords({"pair": numbered("p", 3), "text": numbered("t", 10), "image": numbered("i", 1)})


def test_there_are_as_many_items_as_records_of_the_longest_source(records):
    assert len(records) == len(list(records)) == 10
    assert [item["text"]["id"] for item in records] == [f"t{index}" for index in range(10)]
    assert {item["image"]["id"] for item in records} == {"i0"}


def test_shorter_sources_repeat_in_full_and_in_other_orders():
    records = JointRecords({"pair": numbered("p", 7), "text": numbered("t", 70)})
    ids = [item["pair"]["id"] for item in records]
    repetitions = [tuple(ids[start : start + 7]) for start in range(0, 70, 7)]
    assert repetitions[0] == tuple(f"p{index}" for index in range(7))
    assert {frozenset(repetition) for repetition in repetitions} == {frozenset(repetitions[0])}
    assert len(set(repetitions)) == 10


def test_sources_of_one_length_repeat_in_orders_of_their_own():
    records = JointRecords({"pair": numbered("", 9), "image": numbered("", 9), "text": numbered("t", 18)})
    assert [item["pair"]["id"] for item in records][9:] != [item["image"]["id"] for item in records][9:]


def test_repetitions_are_numbered_for_new_draws(records):
    assert [item["pair"].get("pass") for item in records] == [None] * 3 + [1] * 3 + [2] * 3 + [3]
    assert all("pass" not in item["text"] for item in records)
    assert "pass" not in records.sources["pair"][0]


def test_a_shorter_source_goes_on_where_the_last_epoch_left_it():
    records = JointRecords({"pair": numbered("p", 4), "text": numbered("t", 6)})
    seen = Counter()
    for epoch in range(4):
        records.set_epoch(epoch)
        items = list(records)
        assert [item["text"]["id"] for item in items] == [f"t{index}" for index in range(6)]
        seen.update(item["pair"]["id"] for item in items)
    assert seen == {f"p{index}": 6 for index in range(4)}
    records.set_epoch(0)
    assert [item["pair"]["id"] for item in records][:4] == ["p0", "p1", "p2", "p3"]


def test_an_item_depends_on_index_epoch_and_seed_alone():
    sources = {"pair": numbered("p", 5), "text": numbered("t", 40)}
    forward, backward = JointRecords(sources, seed=3), JointRecords(sources, seed=3)
    items = [forward[index] for index in range(40)]
    assert [backward[index] for index in reversed(range(40))] == items[::-1]
    assert list(JointRecords(sources, seed=4)) != items


def test_sources_that_are_not_there_are_none():
    records = JointRecords({"image": numbered("i", 2), "pair": None})
    assert records[1] == {"pair": None, "text": None, "image": {"id": "i1"}}


def test_a_part_holds_the_beginning_of_each_source(records):
    part = records.select(range(2))
    assert {name: len(source) for name, source in part.sources.items()} == {"pair": 2, "text": 2, "image": 1}
    assert [item["pair"] for item in part] == [item["pair"] for item in records][:2]


@pytest.mark.parametrize(
    "sources, message",
    [
        ({}, "one source at least"),
        ({"pair": None}, "one source at least"),
        ({"pair": []}, "'pair' is empty"),
        ({"pair": iter(())}, "'pair' is a stream"),
        ({"pairs": [{}]}, "not 'pairs'"),
    ],
)
def test_impossible_sources_are_refused(sources, message):
    with pytest.raises(ValueError, match=message):
        JointRecords(sources)


def test_indices_out_of_range_end_the_iteration(records):
    for index in (10, -1):
        with pytest.raises(IndexError, match="10 joint records"):
            records[index]


# Settings


def settings(**data) -> DataArguments:
    data = {"num_scenes": 3, **SCENES, **data}
    return parse_arguments({"task": "joint_pretraining", "data": data, "training": {"max_steps": 1}}).data


def test_sections_become_sources_for_every_split():
    arguments = settings(images={"num_scenes": 5, **SCENES}, texts={"num_scenes": 2, **SCENES})
    records = load_records(arguments)
    assert {name: len(source) for name, source in records.sources.items()} == {"pair": 3, "text": 2, "image": 5}
    assert "image" not in records[0]["text"]
    assert records[0]["pair"]["captions"]
    held_out = load_records(arguments, "test")
    assert {len(source) for source in held_out.sources.values()} == {2}
    assert held_out[0] != records[0]


def test_sources_can_be_left_out():
    assert set(load_records(settings()).sources) == {"pair"}
    assert set(load_records(settings(source=None, texts={"num_scenes": 2, **SCENES})).sources) == {"text"}
    arguments = settings(source=None, images={"num_scenes": 2, **SCENES}, texts=None)
    assert set(load_records(arguments).sources) == {"image"}


def test_flags_reach_into_sections():
    content = {
        "task": "joint_pretraining",
        "data": {"images": {"num_scenes": 5}},
    }
    arguments = parse_arguments(content, ["--data.images.num_scenes", "7", "--data.texts.source", "lines.txt"]).data
    assert (arguments.images.num_scenes, arguments.texts.source, arguments.texts.record_type) == (
        7,
        "lines.txt",
        "texts",
    )


@pytest.mark.parametrize(
    "data, message",
    [
        ({"source": None}, "data.images or data.texts"),
        ({"images": {"sorce": "scenes"}}, r"data.images.sorce.*'source'"),
        ({"images": {"num_scenes": "many"}}, "data.images.num_scenes must be int"),
        ({"images": {"images": {"source": "scenes"}}}, "one source"),
        ({"images": {"record_type": "joint"}}, "one source"),
        ({"texts": "lines.txt"}, "data.texts must be dict"),
        ({"images": {"num_scenes": 0}}, "data.images: num_scenes must be at least 1"),
    ],
)
def test_impossible_sections_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        settings(**data)


@pytest.mark.parametrize("data", [{"streaming": True}, {"images": {"num_scenes": 5, **SCENES, "streaming": True}}])
def test_one_stream_makes_streams_of_all_sources(data):
    arguments = settings(**{"images": {"num_scenes": 5, **SCENES}, **data}, texts={"num_scenes": 2, **SCENES})
    stream = load_records(arguments)
    assert isinstance(stream, JointStream)
    assert not hasattr(stream, "__len__")
    part = stream.take(4)
    assert {name: len(source) for name, source in part.sources.items()} == {"pair": 3, "text": 2, "image": 4}
    assert part[0] == load_records(arguments, streaming=False)[0]


def test_joint_streams_need_a_number_of_steps():
    content = {"task": "joint_pretraining", "data": {"texts": {"streaming": True}}}
    with pytest.raises(ValueError, match="max_steps"):
        parse_arguments(content)
    assert parse_arguments(content | {"training": {"max_steps": 3}}).data.streams()


def test_what_is_wrong_with_a_source_names_its_section(tmp_path):
    empty = tmp_path / "lines.txt"
    empty.write_text("\n\n")
    arguments = DataArguments(record_type="joint", num_scenes=2, texts={"source": str(empty)})
    with pytest.raises(ValueError, match=r"data.texts: .*holds no records"):
        load_records(arguments)
    with pytest.raises(ValueError, match=r"data\.texts: There is no split 'test'"):
        load_records(arguments, "test")


def test_sections_of_another_task_are_refused():
    with pytest.raises(ValueError, match=r"data.images.*joint_pretraining"):
        parse_arguments({"task": "captioning", "data": {"images": {"num_scenes": 2}}})


def test_a_stage_may_go_on_from_joint_pretraining_with_one_source():
    run = parse_arguments(
        {
            "task": "joint_pretraining",
            "data": {"images": {"num_scenes": 5}},
            "stages": [{"name": "joint"}, {"name": "questions", "task": "visual_question_answering"}],
        }
    )
    assert [stage.data.record_type for stage in run.stages()] == ["joint", "questions"]


# Pictures alone


def test_a_folder_of_pictures_needs_no_texts(tmp_path):
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    records = load_records(DataArguments(source=str(tmp_path), record_type="images"))
    assert Counter(map(tuple, records)) == {("image",): 3}
    assert records[0]["image"]["bytes"] or records[0]["image"]["path"]
    with pytest.raises(ValueError, match="no captions"):
        load_records(DataArguments(source=str(tmp_path)))


@pytest.mark.parametrize("streaming", [False, True])
def test_pictures_alone_keep_other_columns(streaming):
    records = load_records(DataArguments(num_scenes=2, scene_size=32, record_type="images", streaming=streaming))
    assert {"image", "captions", "image_id"} <= set(next(iter(records)))
