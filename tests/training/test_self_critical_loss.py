"""The self-critical objective: golden value (driven by the file), gradient, masking, baselines, wrong shapes."""

import json
import os
from pathlib import Path

import pytest
import torch

from hf_vlp.objectives.self_critical import mean_of_others, self_critical_loss

GOLDENS = Path(os.environ.get("HF_VLP_GOLDENS") or Path(__file__).parents[1] / "goldens") / "vc_gpt" / "expected.json"


@pytest.mark.skipif(not GOLDENS.is_file(), reason=f"no golden file {GOLDENS}")
def test_loss_equals_golden_value():
    case = json.loads(GOLDENS.read_text())["scst"]
    loss = self_critical_loss(
        torch.tensor(case["token_logprobs"]),
        torch.tensor(case["mask"]),
        torch.tensor(case["reward_sample"]),
        torch.tensor(case["reward_greedy"]),
    )
    assert loss.item() == pytest.approx(case["loss"], abs=1e-4)


def test_gradient_raises_better_than_baseline_and_lowers_worse():
    log_probs = torch.full((2, 3), -1.0, requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    self_critical_loss(log_probs, mask, torch.tensor([2.0, 0.5]), torch.tensor([1.0, 1.0])).backward()
    assert torch.allclose(log_probs.grad, torch.tensor([[-1.0, -1.0, -1.0], [0.5, 0.5, 0.0]]) / 5)


def test_rewards_receive_no_gradient():
    rewards = torch.ones(1, requires_grad=True)
    log_probs = torch.zeros(1, 2, requires_grad=True)
    self_critical_loss(log_probs, torch.ones(1, 2), rewards, torch.zeros(1)).backward()
    assert rewards.grad is None


def test_masked_positions_do_not_matter_even_when_impossible():
    mask = torch.tensor([[1.0, 0.0]])
    rewards = torch.tensor([1.0]), torch.tensor([0.0])
    plain = self_critical_loss(torch.tensor([[-2.0, -3.0]]), mask, *rewards)
    impossible = self_critical_loss(torch.tensor([[-2.0, -torch.inf]]), mask, *rewards)
    assert plain.item() == impossible.item() == 2.0


def test_equal_rewards_give_no_gradient():
    log_probs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    self_critical_loss(log_probs, torch.ones(3, 4), torch.ones(3), torch.ones(3)).backward()
    assert not log_probs.grad.any()


def test_mean_of_others_leaves_the_own_sample_out():
    rewards = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    assert mean_of_others(rewards, 3).tolist() == [4.0, 3.5, 1.5, 1.5, 1.5, 0.0]


def test_mean_of_others_of_a_single_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2 samples"):
        mean_of_others(torch.ones(2), 1)


@pytest.mark.parametrize(
    "log_probs, mask, rewards, message",
    [
        (torch.zeros(2, 3), torch.ones(2, 2), torch.ones(2), "same shape"),
        (torch.zeros(2, 3), torch.ones(2, 3), torch.ones(3), "one per row"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), "no token"),
    ],
)
def test_wrong_shapes_are_named(log_probs, mask, rewards, message):
    with pytest.raises(ValueError, match=message):
        self_critical_loss(log_probs, mask, rewards, rewards)
