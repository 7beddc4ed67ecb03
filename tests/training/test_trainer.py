"""VlpTrainer: loss under accumulation, named losses, parameter groups, schedules, bad batches, throughput.

Resuming and saving have their own files (test_resume.py, test_checkpoints.py).
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput

from hf_vlp.data.collators import CaptionCollator
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.callbacks import ParameterTableCallback
from hf_vlp.pretraining.trainer import VlpTrainer, make_parameter_groups
from tests.training.tiny import different, make_model, make_processor, make_records, parameters_of


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def make_arguments(output_dir, **options) -> VlpTrainingArguments:
    defaults = {
        "per_device_train_batch_size": 4,
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "learning_rate": 1e-2,
    }
    return VlpTrainingArguments(str(output_dir), **{**defaults, **options})


def make_trainer(processor, output_dir, *, model=None, records=24, trainer_options=None, **options) -> VlpTrainer:
    return VlpTrainer(
        model=make_model(processor) if model is None else model,
        args=make_arguments(output_dir, **options),
        train_dataset=make_records(records) if isinstance(records, int) else records,
        data_collator=CaptionCollator(processor, pad_to_multiple_of=4),
        processing_class=processor,
        **(trainer_options or {}),
    )


def logged(trainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def test_update_does_not_depend_on_accumulation(processor, tmp_path):
    results = []
    for batch_size, accumulation in ((16, 1), (4, 4)):
        trainer = make_trainer(
            processor,
            tmp_path,
            model=make_model(processor, dropout=0.0),
            records=16,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            train_sampling_strategy="sequential",
            max_steps=2,
        )
        trainer.train()
        results.append((logged(trainer, "loss"), logged(trainer, "grad_norm")))
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-4)
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-3)


class TwoLosses(nn.Module):
    """Two losses per batch; `accepts_loss_kwargs` decides which of Trainer's two conventions it follows."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x=None, labels=None):
        first = (self.weight * x).mean()
        second = (self.weight**2 * labels.float()).mean()
        return ModelOutput(loss=first + second, losses={"first": first, "second": second})


class TwoSummedLosses(TwoLosses):
    accepts_loss_kwargs = True

    def forward(self, x=None, labels=None, num_items_in_batch=None, **kwargs):
        count = labels.numel() if num_items_in_batch is None else num_items_in_batch
        first = (self.weight * x).sum() / count
        second = (self.weight**2 * labels.float()).sum() / count
        return ModelOutput(loss=first + second, losses={"first": first, "second": second})


@pytest.mark.parametrize("model_class", [TwoLosses, TwoSummedLosses])
def test_named_losses_are_logged_and_add_up_to_the_loss(model_class, tmp_path):
    data = [{"x": torch.tensor(float(index)), "labels": torch.tensor(index % 3)} for index in range(12)]
    trainer = VlpTrainer(
        model=model_class(),
        args=make_arguments(
            tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=4, logging_steps=2
        ),
        train_dataset=data,
        eval_dataset=data,
    )
    before = trainer.evaluate()
    assert before["eval_loss_first"] == pytest.approx(2 * 5.5)
    assert before["eval_loss_second"] == pytest.approx(4 * 1.0)
    trainer.train()
    totals, first, second = (logged(trainer, key) for key in ("loss", "loss_first", "loss_second"))
    assert len(totals) == len(first) == len(second) == 2
    assert totals == pytest.approx([a + b for a, b in zip(first, second)], rel=1e-4)


def test_a_model_without_named_losses_logs_the_loss_alone(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, max_steps=1)
    trainer.train()
    assert logged(trainer, "loss")
    assert not [key for key in trainer.state.log_history[0] if key.startswith("loss_")]


def test_rate_of_samples_and_memory_are_logged(processor, tmp_path):
    trainer = make_trainer(processor, tmp_path, max_steps=2)
    trainer.train()
    assert all(rate > 0 for rate in logged(trainer, "samples_per_second"))
    assert all(memory > 0 for memory in logged(trainer, "memory_gb"))


def test_groups_have_their_rates_and_vectors_no_decay(processor):
    model = make_model(processor)
    args = SimpleNamespace(
        learning_rate=1e-3, weight_decay=0.1, group_learning_rates={"vision": 1e-5, "language": 2e-5}
    )
    groups = make_parameter_groups(model, args)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {"vision": 1e-5, "language": 2e-5, "fusion": 1e-3}
    seen = []
    for group in groups:
        assert group["lr"] == rates[group["name"]]
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            assert model.get_parameter_group(name) == group["name"]
            assert group["weight_decay"] == (0.0 if parameter.ndim < 2 else 0.1), name
    assert sorted(seen) == sorted(names.values())


def test_frozen_parameters_are_in_no_group(processor):
    model = make_model(processor)
    model.freeze_vision()
    groups = make_parameter_groups(model, SimpleNamespace(learning_rate=1e-3, weight_decay=0.1))
    assert {group["name"] for group in groups} == {"language", "fusion"}


def test_rates_of_unknown_groups_are_refused(processor):
    args = SimpleNamespace(learning_rate=1e-3, weight_decay=0.0, group_learning_rates={"visual": 1e-5})
    with pytest.raises(ValueError, match=r"'visual'.*'vision'"):
        make_parameter_groups(make_model(processor), args)


def test_a_model_with_nothing_to_train_is_refused(processor):
    model = make_model(processor).requires_grad_(False)
    with pytest.raises(ValueError, match="Nothing trains"):
        make_parameter_groups(model, SimpleNamespace(learning_rate=1e-3, weight_decay=0.0))


def test_layer_decay_lowers_the_rates_of_deep_layers():
    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

        def get_parameter_layer(self, name):
            return int(name.split(".")[1]), 3

    args = SimpleNamespace(learning_rate=1.0, weight_decay=0.0, layer_decay=0.5)
    rates = sorted({group["lr"] for group in make_parameter_groups(Layered(), args)})
    assert rates == [0.125, 0.25, 0.5]


def test_layer_decay_without_layers_is_refused(processor):
    with pytest.raises(ValueError, match="get_parameter_layer"):
        make_parameter_groups(
            make_model(processor), SimpleNamespace(learning_rate=1.0, weight_decay=0.0, layer_decay=0.9)
        )


def test_warm_up_ratio_and_cosine_decay_scale_every_group(processor, tmp_path):
    trainer = make_trainer(
        processor,
        tmp_path,
        max_steps=10,
        warmup_steps=0.2,
        lr_scheduler_type="cosine",
        group_learning_rates={"vision": 1e-3},
    )
    trainer.train()
    vision, fusion = logged(trainer, "learning_rate_vision"), logged(trainer, "learning_rate_fusion")
    assert fusion[:3] == pytest.approx([0.0, 5e-3, 1e-2])
    assert fusion[2:] == sorted(fusion[2:], reverse=True)
    assert fusion[-1] < 1e-3
    assert vision == pytest.approx([rate / 10 for rate in fusion])


def test_frozen_towers_do_not_change_and_the_rest_does(processor, tmp_path):
    model = make_model(processor)
    model.freeze_language()
    before = parameters_of(model)
    make_trainer(processor, tmp_path, model=model).train()
    changed = different(before, parameters_of(model))
    assert {model.get_parameter_group(name) for name in changed} == {"vision", "fusion"}


def test_a_batch_of_bad_pictures_changes_nothing(processor, tmp_path):
    records = [{"image": b"no picture", "captions": ["a red square"]}] * 8
    model = make_model(processor)
    before = parameters_of(model)
    trainer = make_trainer(processor, tmp_path, model=model, records=records, weight_decay=0.0, max_steps=2)
    trainer.train()
    assert different(before, parameters_of(model)) == []
    assert trainer.bad_sample_counts["bad"] == 8


def test_evaluation_survives_a_batch_of_bad_pictures(processor, tmp_path):
    records = [{"image": b"no picture", "captions": ["a red square"]}] * 4 + make_records(4)
    trainer = make_trainer(
        processor, tmp_path, per_device_eval_batch_size=4, trainer_options={"eval_dataset": records}
    )
    assert 0 < trainer.evaluate()["eval_loss"] < 20


def test_bad_samples_are_counted_at_the_end(processor, tmp_path):
    records = [*make_records(7), {"image": b"no picture", "captions": ["a red square"]}]
    trainer = make_trainer(processor, tmp_path, records=records, max_steps=4)  # two epochs
    trainer.train()
    assert trainer.bad_sample_counts["bad"] == 2
    assert trainer.bad_sample_counts["image"] == 2
    assert trainer.bad_sample_counts["seen"] == 16


def test_table_of_parameters_is_shown_at_the_start(processor, tmp_path):
    shown = []
    model = make_model(processor)
    model.freeze_vision()
    options = {"callbacks": [ParameterTableCallback(shown.append)]}
    make_trainer(
        processor, tmp_path, model=model, max_steps=1, group_learning_rates={"fusion": 1e-3}, trainer_options=options
    ).train()
    rows = {line.split()[0]: line.split() for line in shown[0].splitlines() if not line.startswith("-")}
    assert rows["vision"][2:] == ["0", "0.0", "%"]
    assert rows["language"][-1] == "0.01"
    assert rows["fusion"][-1] == "0.001"
    assert rows["total"][1] == f"{sum(parameter.numel() for parameter in model.parameters()):,}"


def test_captions_change_from_epoch_to_epoch(processor, tmp_path):
    seen = []

    class Spy(CaptionCollator):
        def __call__(self, records):
            batch = super().__call__(records)
            seen.append(batch["input_ids"].tolist())
            return batch

    trainer = VlpTrainer(
        model=make_model(processor),
        args=make_arguments(tmp_path, max_steps=3, train_sampling_strategy="sequential"),
        train_dataset=make_records(4),
        data_collator=Spy(processor),
    )
    trainer.train()
    assert len({str(batch) for batch in seen}) == 3


def test_label_smoothing_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        make_trainer(processor, tmp_path, label_smoothing_factor=0.1)


def test_a_stream_without_max_steps_is_refused(processor, tmp_path):
    from datasets import Dataset

    stream = Dataset.from_list([{"captions": ["a"]}]).to_iterable_dataset()
    with pytest.raises(ValueError, match="max_steps"):
        make_trainer(processor, tmp_path, records=stream, max_steps=-1)
