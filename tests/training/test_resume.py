"""Resume is bit-exact: mid-epoch, at the end of an epoch, with dropout, accumulation, the draw of captions, LoRA; and
streams, alone and joint, in one process and in worker processes, over the end of an epoch."""

import itertools
import json
import shutil

import pytest
import torch
from datasets import Dataset

from hf_vlp.adapters import apply_lora
from hf_vlp.data.collators import CaptionCollator
from hf_vlp.data.joint import JointStream
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.records import RecordStream, StreamLoader
from hf_vlp.pretraining.trainer import VlpTrainer
from tests.training.tiny import different, make_model, make_processor, make_records, parameters_of


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_trainer(processor, output_dir, records, *, model=None, eval_dataset=None, **options) -> VlpTrainer:
    defaults = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}
    defaults |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_steps": 1, "seed": 7}
    return VlpTrainer(
        model=make_model(processor, dropout=0.2) if model is None else model,
        args=VlpTrainingArguments(str(output_dir), **{**defaults, **options}),
        train_dataset=records,
        eval_dataset=eval_dataset,
        data_collator=CaptionCollator(processor, pad_to_multiple_of=4),
        processing_class=processor,
    )


def make_stream(num_records: int, num_shards: int):
    records = make_records(num_records)
    for record in records:  # datasets encodes pictures to bytes by itself
        record["captions"] = [f"{text} {record['image_id']}" for text in record["captions"]]
    return Dataset.from_list(records).to_iterable_dataset(num_shards=num_shards)


def assert_resume_is_exact(make, tmp_path, *, stop_at: int):
    """Train straight, and again from the checkpoint of a step in the middle; `make(folder)` gives a trainer."""
    straight = make(tmp_path / "straight")
    straight.train()
    resumed = make(tmp_path / "resumed")
    checkpoint = tmp_path / "resumed" / f"checkpoint-{stop_at}"
    shutil.copytree(tmp_path / "straight" / checkpoint.name, checkpoint)
    torch.manual_seed(99)  # whatever the state of this process, the checkpoint's counts
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == straight.state.global_step
    assert different(parameters_of(straight.model), parameters_of(resumed.model)) == []
    losses = [
        {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
        for trainer in (straight, resumed)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("stop_at", [2, 5, 7])  # 5 batches an epoch: in the first, at its end, in the second
def test_resume_is_bit_exact(processor, tmp_path, stop_at):
    assert_resume_is_exact(
        lambda folder: make_trainer(processor, folder, make_records(20), max_steps=9), tmp_path, stop_at=stop_at
    )


def test_resume_is_bit_exact_with_accumulation_and_evaluations(processor, tmp_path):
    def make(folder):
        options = {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
        return make_trainer(processor, folder, make_records(20), eval_dataset=make_records(6), max_steps=7, **options)

    assert_resume_is_exact(make, tmp_path, stop_at=4)


def test_resume_is_bit_exact_with_worker_processes(processor, tmp_path):
    def make(folder):
        return make_trainer(processor, folder, make_records(20), max_steps=6, dataloader_num_workers=2)

    assert_resume_is_exact(make, tmp_path, stop_at=3)


def test_resume_is_bit_exact_with_adapters(processor, tmp_path):
    def make(folder):
        torch.manual_seed(0)
        model = apply_lora(make_model(processor), preset="all-linear", r=2, dropout=0.1)
        return make_trainer(processor, folder, make_records(20), model=model, max_steps=5)

    assert_resume_is_exact(make, tmp_path, stop_at=3)


@pytest.mark.parametrize("shuffle_block", [0, 6])
@pytest.mark.parametrize("stop_at", [2, 4, 6])  # the 14 records end within the fourth batch
def test_resume_of_a_stream_is_bit_exact(processor, tmp_path, stop_at, shuffle_block):
    assert_resume_is_exact(
        lambda folder: make_trainer(
            processor, folder, make_stream(14, 2), max_steps=8, shuffle_block=shuffle_block, warmup_steps=2
        ),
        tmp_path,
        stop_at=stop_at,
    )


def test_resume_of_a_stream_is_bit_exact_with_worker_processes(processor, tmp_path):
    def make(folder):
        stream = make_stream(14, 3)
        return make_trainer(processor, folder, stream, max_steps=7, shuffle_block=3, dataloader_num_workers=2)

    assert_resume_is_exact(make, tmp_path, stop_at=3)


def make_loader(num_workers=0, shuffle_block=5, collator=None, num_records=21, **options) -> StreamLoader:
    stream = RecordStream(make_stream(num_records, 3), batch_size=4, shuffle_block=shuffle_block, **options)
    return StreamLoader(stream, collator or ids_of, num_workers=num_workers)


def joined(batches) -> list:
    return list(itertools.chain.from_iterable(batches))


def ids_of(records):
    return [record["image_id"] for record in records]


def take(loader, count: int) -> list:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_continues_behind_every_batch(num_workers):
    loader = make_loader(num_workers)
    batches, expected, states = iter(loader), [], []
    for _ in range(12):
        expected.append(next(batches))
        states.append(loader.state_dict())
    for position in (0, 4, 5):
        resumed = make_loader(num_workers)
        resumed.load_state_dict(states[position])
        assert take(resumed, 11 - position) == expected[position + 1 :]


def make_joint_loader(num_workers=0, collator=None, **options) -> StreamLoader:
    sources = {"pair": make_stream(21, 3), "text": make_stream(10, 2)}
    return StreamLoader(
        RecordStream(JointStream(sources), batch_size=4, shuffle_block=5, **options),
        collator or (lambda records: [[record[name]["image_id"] for name in sources] for record in records]),
        num_workers=num_workers,
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_joint_stream_continues_behind_every_batch(num_workers):
    loader = make_joint_loader(num_workers)
    batches, expected, states = iter(loader), [], []
    for _ in range(12):
        expected.append(next(batches))
        states.append(json.loads(json.dumps(loader.state_dict())))
    for position in (0, 5, 6):
        resumed = make_joint_loader(num_workers)
        resumed.load_state_dict(states[position])
        assert take(resumed, 11 - position) == expected[position + 1 :]


def test_each_source_of_a_joint_stream_runs_on_over_its_own_end():
    loader = make_joint_loader(collator=list)
    records = joined(take(loader, 10))
    for name, number in (("pair", 21), ("text", 10)):
        passes = [(record[name]["pass"], record[name]["image_id"]) for record in records]
        assert passes == sorted(passes, key=lambda entry: entry[0])
        for index in range(40 // number):
            assert sorted(key for count, key in passes if count == index) == list(range(number))
    first, second = [[record["text"]["image_id"] for record in records[i : i + 10]] for i in (0, 10)]
    assert first != second
    assert {record["image"] for record in records} == {None}


def test_processes_share_a_joint_stream():
    options = {"num_processes": 2, "collator": list}
    parts = [joined(take(make_joint_loader(process_index=index, **options), 5)) for index in range(2)]
    for name in ("pair", "text"):
        seen = [{record[name]["image_id"] for record in part if record[name]["pass"] == 0} for part in parts]
        assert not seen[0] & seen[1]
        assert sorted(seen[0] | seen[1]) == list(range({"pair": 21, "text": 10}[name]))


def test_a_stream_gives_every_record_once_in_an_epoch_and_shuffles_each_differently():
    batches = take(make_loader(num_records=24), 12)
    first, second = joined(batches[:6]), joined(batches[6:])
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first != sorted(first)


def test_processes_share_a_stream():
    parts = [joined(take(make_loader(num_records=24, process_index=index, num_processes=3), 2)) for index in range(3)]
    assert sorted(joined(parts)) == list(range(24))


def test_a_stream_resumes_with_its_number_of_workers_only():
    loader = make_loader(2)
    with pytest.raises(ValueError, match="dataloader_num_workers=0"):
        loader.load_state_dict(make_loader(0).state_dict())


def test_an_empty_stream_is_an_error():
    stream = make_stream(3, 1).filter(lambda record: False)
    with pytest.raises(ValueError, match="stream is empty"):
        take(StreamLoader(RecordStream(stream, batch_size=2), ids_of), 1)
    half = make_stream(4, 2).filter(lambda record: record["image_id"] < 2)
    with pytest.raises(ValueError, match=r"worker 1 of process 0, whose shards hold no records.*fewer workers"):
        take(StreamLoader(RecordStream(half, batch_size=1), ids_of, num_workers=2), 5)
    joint = JointStream({"pair": make_stream(3, 1), "image": stream})
    with pytest.raises(ValueError, match="stream 'image' is empty"):
        take(StreamLoader(RecordStream(joint, batch_size=2), list), 1)


def test_resume_without_the_position_of_the_stream_is_refused(processor, tmp_path):
    make_trainer(processor, tmp_path, make_records(8), max_steps=1).train()
    trainer = make_trainer(processor, tmp_path, make_stream(8, 1), max_steps=2)
    with pytest.raises(ValueError, match="no position of a stream"):
        trainer.train(resume_from_checkpoint=True)
