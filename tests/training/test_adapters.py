"""LoRA: presets, gradients, the table, save, load, merge, peft's own table of targets, lazy import."""

import subprocess
import sys

import pytest
import torch

from hf_vlp.adapters import (
    apply_lora,
    load_adapter,
    merge_lora,
    parameter_counts,
    parameter_table,
    register_lora_targets,
    save_adapter,
)
from tests.training.tiny import different, make_model, make_processor, make_records, parameters_of


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def batch(processor):
    records = make_records(4)
    captions = [record["captions"][0] for record in records]
    return dict(processor(images=[record["image"] for record in records], captions=captions))


def train_a_little(model, batch):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("variant", ["vc_gpt", "vanilla"])
def test_every_adapter_tensor_of_every_preset_gets_a_gradient(processor, batch, variant):
    presets = list(make_model(processor, variant=variant).lora_presets)
    for preset in presets:
        if variant == "vanilla" and preset == "fusion":
            continue  # that variant has no fusion module
        model = apply_lora(make_model(processor, variant=variant), preset=preset, r=2)
        train_a_little(model, batch)  # B starts at zero, and A has no gradient until it has moved
        model.zero_grad()
        model.train()
        model(**batch).loss.backward()
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable, preset
        assert all("lora_" in name for name in trainable)
        without = [name for name, parameter in trainable.items() if parameter.grad is None or not parameter.grad.any()]
        # The key part of GPT-2's bias-free products shifts no softmax; every product as a whole must learn.
        assert without == [], (preset, without)


def test_only_adapters_change(processor, batch):
    model = apply_lora(make_model(processor), preset="language", r=2)
    before = parameters_of(model)
    train_a_little(model, batch)
    changed = different(before, parameters_of(model))
    assert changed
    assert all("lora_" in name for name in changed)


def test_adapters_saved_loaded_and_merged_give_equal_logits(processor, batch, tmp_path):
    trained = train_a_little(apply_lora(make_model(processor, dropout=0.0), preset="all-linear", r=2), batch)
    plain = make_model(processor, dropout=0.0).eval()
    with torch.no_grad():
        expected = trained(**batch).logits
        assert (plain(**batch).logits - expected).abs().max() > 1e-2
        save_adapter(trained, tmp_path)
        loaded = load_adapter(plain, tmp_path).eval()
        assert torch.equal(loaded(**batch).logits, expected)
        merged = merge_lora(loaded)
        assert type(merged).__name__ == "VcGptForConditionalGeneration"
        assert torch.allclose(merged(**batch).logits, expected, atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_merged_model_saves_and_loads_as_a_plain_one(processor, batch, tmp_path):
    merged = merge_lora(train_a_little(apply_lora(make_model(processor, dropout=0.0), r=2), batch)).eval()
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    assert different(parameters_of(merged), parameters_of(again)) == []


def test_a_plain_model_merges_to_itself(processor):
    model = make_model(processor)
    assert merge_lora(model) is model


def test_unknown_presets_are_named(processor):
    with pytest.raises(ValueError, match=r"no LoRA preset 'atention'.*'attention'"):
        apply_lora(make_model(processor), preset="atention")


def test_targets_that_match_nothing_are_refused(processor):
    with pytest.raises(ValueError, match="match no module"):
        apply_lora(make_model(processor), target_modules=r".*no_such_layer$")


def test_a_model_without_adapters_has_none_to_save(processor, tmp_path):
    with pytest.raises(TypeError, match="apply_lora"):
        save_adapter(make_model(processor), tmp_path)


def test_counts_tell_adapters_from_towers(processor):
    model = apply_lora(make_model(processor), preset="language", r=2)
    counts = parameter_counts(model)
    total = sum(parameter.numel() for parameter in make_model(processor).parameters())
    assert sum(count for part, (count, _) in counts.items() if "(adapters)" not in part) == total
    assert counts["language (adapters)"][0] == counts["language (adapters)"][1] > 0
    assert {trainable for part, (_, trainable) in counts.items() if "(adapters)" not in part} == {0}
    assert "language (adapters)" in parameter_table(model)


def test_peft_finds_the_targets_by_itself(processor):
    from peft import LoraConfig, get_peft_model

    register_lora_targets()
    model = get_peft_model(make_model(processor), LoraConfig(r=2))
    assert any("lora_A" in name for name, _ in model.named_parameters())


def test_importing_the_package_imports_no_peft():
    code = "import sys, hf_vlp; sys.exit(any(name in sys.modules for name in ('peft', 'datasets', 'evaluate')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "preset, part",
    [
        ("attention", "attention"),
        ("text_expert", "experts.text"),
        ("image_expert", "experts.image"),
        ("vl_expert", "experts.vl"),
        ("experts", "experts"),
        ("all-linear", "layers"),
    ],
)
def test_presets_of_vlmo_reach_their_modules_alone(preset, part):
    from hf_vlp import VlmoForVisualQuestionAnswering
    from tests.training import tiny_vlmo

    processor = tiny_vlmo.make_processor()
    model = tiny_vlmo.make_model(VlmoForVisualQuestionAnswering, processor, num_labels=3)
    model = apply_lora(model, preset=preset, r=2, modules_to_save=["classifier"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    assert adapters
    assert all(part in name for name in adapters)
    assert all("classifier" in name for name in trained - adapters)
    rows = tiny_vlmo.make_questions(3)
    batch = processor(images=[row["image"] for row in rows], text=[row["question"] for row in rows])
    model(**batch, labels=torch.eye(3)).loss.backward()
    unused = {name for name, parameter in model.named_parameters() if name in adapters and parameter.grad is None}
    # The top block goes through the vision-language expert: the others of that block do not take part.
    others = (".layers.1.experts.text", ".layers.1.experts.image")
    assert unused == {name for name in adapters if any(other in name for other in others)}
