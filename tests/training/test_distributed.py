"""Two processes (gloo, CPU) against one: the captioning loss and its update, captions, counts, checkpoints, SCST.

And a model of which only a part trains, with recomputed activations.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp.pretraining.trainer import get_last_checkpoint

ROOT = Path(__file__).parents[2]


def launch(mode: str, output_dir: Path, num_processes: int) -> dict:
    output_dir.mkdir(parents=True, exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    command = [sys.executable, *(launcher if num_processes > 1 else []), "-m", "tests.training.two_processes"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    for _ in range(2):
        done = subprocess.run(
            [*command, mode, str(output_dir)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        # The threads of gloo abort an exiting interpreter now and then, which says nothing about the run: once more.
        if "terminate called without an active exception" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output_dir / "result.json").read_text())


def weights_of(output_dir: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(output_dir / f"weights-{rank}.safetensors")


def values(result: dict, key: str) -> list[float]:
    return [entry[key] for entry in result["history"] if key in entry]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("two")
    return output_dir, launch("captioning", output_dir, 2)


def test_two_processes_equal_one(two, tmp_path):
    output_dir, result = two
    alone = launch("captioning", tmp_path, 1)
    assert values(result, "loss") == pytest.approx(values(alone, "loss"), abs=2e-4)
    assert values(result, "grad_norm") == pytest.approx(values(alone, "grad_norm"), rel=1e-3)
    for name, expected in weights_of(tmp_path).items():
        assert torch.allclose(weights_of(output_dir)[name], expected, atol=1e-3), name
    assert result["captions"] == alone["captions"]
    assert len(result["captions"]) == 7
    assert result["bad_samples"] == alone["bad_samples"]
    assert result["bad_samples"]["bad"] == 2  # the bad picture, in each of two epochs


def test_both_processes_hold_the_same_weights(two):
    output_dir, _ = two
    first, second = weights_of(output_dir, 0), weights_of(output_dir, 1)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_write_one_whole_checkpoint(two):
    output_dir, _ = two
    assert get_last_checkpoint(output_dir) == output_dir / "checkpoint-4"
    assert (output_dir / "checkpoint-4" / "rng_state_1.pth").is_file()
    assert not [path for path in output_dir.iterdir() if path.name.startswith(".saving")]


def test_both_processes_load_the_best_checkpoint(tmp_path):
    launch("best", tmp_path, 2)
    best = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    for rank in range(2):
        own = weights_of(tmp_path, rank)
        assert all(torch.equal(own[name], value) for name, value in best.items()), f"process {rank}"


@pytest.mark.slow
def test_two_processes_resume_exactly(two):
    output_dir, _ = two
    expected = weights_of(output_dir)
    launch("resume", output_dir, 2)
    assert all(torch.equal(expected[name], value) for name, value in weights_of(output_dir).items())


@pytest.mark.slow
def test_two_processes_resume_a_stream_exactly(tmp_path):
    launch("stream", tmp_path, 2)
    expected = weights_of(tmp_path)
    launch("stream-resume", tmp_path, 2)
    assert all(torch.equal(expected[name], value) for name, value in weights_of(tmp_path, 1).items())


@pytest.mark.slow
def test_two_processes_train_self_critically(tmp_path):
    result = launch("self_critical", tmp_path, 2)
    assert len(values(result, "reward_sample")) == 4
    assert all(torch.equal(weights_of(tmp_path, 0)[name], value) for name, value in weights_of(tmp_path, 1).items())


def test_two_processes_train_a_part_of_a_model_with_recomputed_activations(tmp_path):
    result = launch("part", tmp_path, 2)
    assert result["train_steps"] == 2
    assert result["train_loss"] > 0
