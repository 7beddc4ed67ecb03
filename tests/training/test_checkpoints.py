"""Checkpoints appear whole or not at all: half-written ones, a full disk, an interrupt, the best one, rotation."""

import errno
import json
import shutil

import pytest
import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from hf_vlp.data.collators import CaptionCollator
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.trainer import STAGING_DIR, VlpTrainer, get_last_checkpoint, is_complete_checkpoint
from tests.training.tiny import different, make_model, make_processor, make_records, parameters_of


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_trainer(processor, output_dir, **options) -> VlpTrainer:
    defaults = {"per_device_train_batch_size": 4, "max_steps": 3, "save_steps": 1, "learning_rate": 1e-2}
    defaults |= {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    return VlpTrainer(
        model=make_model(processor),
        args=VlpTrainingArguments(str(output_dir), **{**defaults, **options}),
        train_dataset=make_records(12),
        eval_dataset=make_records(4),
        data_collator=CaptionCollator(processor, pad_to_multiple_of=4),
        processing_class=processor,
    )


@pytest.fixture
def finished(processor, tmp_path):
    """A folder with the whole checkpoints 1 and 2."""
    make_trainer(processor, tmp_path, max_steps=2).train()
    return tmp_path


def folders(path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


def test_checkpoints_are_whole_and_no_staging_is_left(finished):
    assert folders(finished) == ["checkpoint-1", "checkpoint-2"]
    assert all(is_complete_checkpoint(finished / name) for name in folders(finished))


@pytest.mark.parametrize("missing", ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt"])
def test_a_half_written_checkpoint_is_not_the_last_one(finished, missing):
    (finished / "checkpoint-2" / missing).unlink()
    assert get_last_checkpoint(finished) == finished / "checkpoint-1"


def test_a_truncated_state_is_not_a_checkpoint(finished):
    state = finished / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text()[:50])
    assert get_last_checkpoint(finished) == finished / "checkpoint-1"


def test_a_missing_shard_is_noticed(finished):
    folder = finished / "checkpoint-2"
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert not is_complete_checkpoint(folder)


def test_resume_passes_over_a_half_written_checkpoint(processor, finished):
    (finished / "checkpoint-2" / "optimizer.pt").unlink()
    trainer = make_trainer(processor, finished)
    trainer.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3]
    assert is_complete_checkpoint(finished / "checkpoint-2")


def test_a_named_half_written_checkpoint_is_refused(processor, finished):
    (finished / "checkpoint-2" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        make_trainer(processor, finished).train(resume_from_checkpoint=str(finished / "checkpoint-2"))


def test_resume_without_any_checkpoint_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="No complete checkpoint"):
        make_trainer(processor, tmp_path).train(resume_from_checkpoint=True)


DISK_FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", DISK_FULL, ids=["python", "torch", "safetensors"])
def test_a_full_disk_leaves_the_old_checkpoints(processor, finished, monkeypatch, error):
    trainer = make_trainer(processor, finished)

    def fail(*args, **kwargs):
        raise error

    # The weights are written by then: the point where a checkpoint looks most like a whole one.
    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", fail)
    with pytest.raises(OSError, match=r"step 3 .*checkpoint-2.*Free some space"):
        trainer.train(resume_from_checkpoint=True)
    assert folders(finished) == ["checkpoint-1", "checkpoint-2"]
    resumed = make_trainer(processor, finished)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 3


def test_an_interrupted_save_is_cleared_by_the_next(processor, finished, monkeypatch):
    trainer = make_trainer(processor, finished)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_save_rng_state", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=True)
    assert get_last_checkpoint(finished) == finished / "checkpoint-2"
    assert (finished / STAGING_DIR).is_dir()
    make_trainer(processor, finished).train(resume_from_checkpoint=True)
    assert folders(finished) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


def test_a_failed_save_over_the_same_step_keeps_the_old_one(processor, finished, monkeypatch):
    shutil.rmtree(finished / "checkpoint-1")
    before = (finished / "checkpoint-2" / "model.safetensors").read_bytes()
    trainer = make_trainer(processor, finished, max_steps=2)

    def fail(*args, **kwargs):
        raise DISK_FULL[0]

    save = trainer._save_optimizer_and_scheduler
    monkeypatch.setattr(
        trainer, "_save_optimizer_and_scheduler", lambda path: fail() if trainer.state.global_step == 2 else save(path)
    )
    with pytest.raises(OSError, match="Free some space"):
        trainer.train()
    assert (finished / "checkpoint-2" / "model.safetensors").read_bytes() == before
    assert is_complete_checkpoint(finished / "checkpoint-2")


def test_the_best_checkpoint_is_kept_and_loaded(processor, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
    trainer = make_trainer(processor, tmp_path, metric_for_best_model="eval_score", greater_is_better=True, **options)
    scores = iter([1.0, 3.0, 2.0])

    class Score(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            metrics["eval_score"] = next(scores)
            weights[state.global_step] = parameters_of(trainer.model)

    weights: dict[int, dict] = {}
    trainer.add_callback(Score())
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-2")
    assert different(parameters_of(trainer.model), weights[2]) == []
    assert different(weights[2], weights[3])
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "checkpoint-2")


def test_only_the_newest_checkpoints_are_kept(processor, tmp_path):
    make_trainer(processor, tmp_path, save_total_limit=2).train()
    assert folders(tmp_path) == ["checkpoint-2", "checkpoint-3"]


def test_checkpoints_load_through_auto_classes(finished):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(finished / "checkpoint-2")
    processor = AutoProcessor.from_pretrained(finished / "checkpoint-2")
    pixel_values = processor(images=make_records(1)[0]["image"])["pixel_values"]
    with torch.no_grad():
        assert model.generate(pixel_values=pixel_values, max_new_tokens=3).shape[0] == 1
