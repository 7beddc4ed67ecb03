"""Tests that every model passes with LoRA, for each of its presets: gradients, frozen base, saving, merging."""

import re

import torch

from hf_vlp.adapters import apply_lora, load_adapter, merge_lora, save_adapter
from tests.common.setup import ModelSetup, assert_same, different, run, states_of


class AdapterTests(ModelSetup):
    """Every test runs for each of `presets`, by default all that the model class has."""

    # Those that reach modules which the head uses.
    presets: tuple[str, ...] = ()

    def further_parameters(self):
        return {**super().further_parameters(), "preset": list(self.presets) or sorted(self.model_class.lora_presets)}

    def adapted(self, variant: str, preset: str):
        """A model with adapters that change its outputs: their second matrices start from zero otherwise."""
        model = apply_lora(self.model_of(variant), preset=preset, r=2)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(2)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    def test_new_adapters_change_nothing_yet(self, variant, preset):
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        before = run(model, inputs)
        assert_same(before, run(apply_lora(model, preset=preset, r=2).eval(), inputs))

    def test_every_adapter_and_nothing_else_trains(self, variant, preset):
        model = self.adapted(variant, preset).train()
        before = states_of(model)
        torch.manual_seed(0)  # a dropped path has no gradient
        model(**self.make_inputs(model.config)).loss.backward()
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable == {name for name, _ in model.named_parameters() if ".lora_" in name}
        reached = {name for name in trainable if not re.search(self.idle_parameters, name)}
        gradients = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert gradients == reached != set()
        assert [name for name in reached if not model.get_parameter(name).grad.any()] == []
        torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1).step()
        parameters = {name for name, _ in model.named_parameters()}  # statistics of batch norms move as well
        assert set(different(before, states_of(model))) & parameters == reached

    def test_saved_adapters_load_onto_the_base(self, variant, preset, tmp_path):
        model = self.adapted(variant, preset)
        save_adapter(model, tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
        loaded = load_adapter(self.model_of(variant), tmp_path).eval()
        inputs = self.make_inputs(model.config)
        assert_same(run(model, inputs), run(loaded, inputs))
        assert different(run(model, inputs), run(self.model_of(variant), inputs))

    def test_merged_model_gives_the_same_outputs(self, variant, preset, tmp_path):
        model = self.adapted(variant, preset)
        inputs = self.make_inputs(model.config)
        expected = run(model, inputs)
        merged = merge_lora(model)
        assert type(merged) is self.model_class
        # Sums of products in another order; weights of one to two make it a few 1e-6.
        assert_same(expected, run(merged, inputs), atol=5e-5, rtol=1e-4)
        merged.save_pretrained(tmp_path)
        assert_same(run(merged, inputs), run(self.model_class.from_pretrained(tmp_path), inputs))
