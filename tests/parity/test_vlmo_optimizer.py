"""VLMo's optimizer against the recorded one: groups by name, learning rate over a run, losses of six steps.

The trainer of this package runs as a user would set it up (`no_decay: original`, `head_learning_rate_multiplier`). The
original's AdamW decays weights after the Adam update and adds epsilon before its bias correction; torch's AdamW decays
before it: both differ by terms of the order of (learning rate)^2, far below the tolerance of the recording (1e-3).
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp import VlmoConfig
from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vlmo import convert_state_dict, infer_config, model_class, original_name
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.naming import plain_name
from hf_vlp.pretraining.trainer import VlpTrainer
from tests.parity.vlmo_goldens import FOLDER, known_sizes

pytestmark = pytest.mark.skipif(not (FOLDER / "vqa_optimizer.json").is_file(), reason=f"no goldens in {FOLDER}")

# The original rounds a share of warm-up steps down, Trainer up: the number is given.
SHARE_OF_WARM_UP = 0.1


@pytest.fixture(scope="module")
def golden():
    return json.loads((FOLDER / "vqa_optimizer.json").read_text())


def make_model():
    state_dict = load_checkpoint(FOLDER / "vqa.pt").state_dict
    inferred = infer_config(state_dict, **known_sizes("vqa"))
    config = VlmoConfig(**{**inferred.config, "drop_path_rate": 0.0, "text_dropout": 0.0})
    model = model_class("vqa")(config)
    model.load_state_dict(convert_state_dict(state_dict, config).state_dict, strict=True)
    return model


def make_trainer(golden, tmp_path, num_steps: int) -> VlpTrainer:
    body, head = golden["vqa_optimizer_groups"][0], golden["vqa_optimizer_groups"][2]
    batch = load_file(FOLDER / "vqa_inputs.safetensors")
    batch["labels"] = batch.pop("targets")
    rows = [dict(zip(batch, row)) for row in zip(*batch.values())]
    arguments = VlpTrainingArguments(
        str(tmp_path),
        max_steps=num_steps,
        warmup_steps=int(SHARE_OF_WARM_UP * num_steps),
        per_device_train_batch_size=len(rows),
        learning_rate=body["lr"],
        head_learning_rate_multiplier=head["lr"] / body["lr"],
        no_decay="original",
        weight_decay=body["weight_decay"],
        adam_beta1=body["betas"][0],
        adam_beta2=body["betas"][1],
        adam_epsilon=body["eps"],
        max_grad_norm=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return VlpTrainer(
        model=make_model(),
        args=arguments,
        train_dataset=rows,
        data_collator=lambda chosen: {name: torch.stack([row[name] for row in chosen]) for name in chosen[0]},
    )


def test_groups_hold_the_same_parameters(golden, tmp_path):
    trainer = make_trainer(golden, tmp_path, 12)
    names = {id(parameter): plain_name(name) for name, parameter in trainer.model.named_parameters()}
    ours = {}
    for group in trainer.create_optimizer().param_groups:
        key = (round(group["lr"], 12), group["weight_decay"], tuple(group["betas"]), group["eps"])
        held = {original_name(names[id(parameter)], "vqa") for parameter in group["params"]}
        ours[key] = ours.get(key, set()) | held
    expected = {
        (round(group["lr"], 12), group["weight_decay"], tuple(group["betas"]), group["eps"]): set(group["params"])
        for group in golden["vqa_optimizer_groups"]
    }
    assert ours == expected


def test_the_learning_rate_rises_and_falls_as_recorded(golden, tmp_path):
    recorded = golden["vqa_lr_first_group_100_steps_warmup_0.1"]
    trainer = make_trainer(golden, tmp_path, len(recorded))
    trainer.create_optimizer_and_scheduler(len(recorded))
    base = golden["vqa_optimizer_groups"][0]["lr"]
    for step, expected in enumerate(recorded):
        rates = {group["lr"] for group in trainer.optimizer.param_groups if group["initial_lr"] == base}
        assert list(rates) == pytest.approx([expected], rel=1e-6), f"step {step}"
        trainer.optimizer.step()
        trainer.lr_scheduler.step()


def test_six_steps_give_the_recorded_losses(golden, tmp_path):
    trainer = make_trainer(golden, tmp_path, 12)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    recorded = golden["vqa_six_training_step_losses"]
    assert losses[: len(recorded)] == pytest.approx(recorded, abs=1e-3)
