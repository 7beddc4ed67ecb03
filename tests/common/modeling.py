"""Tests that every model passes: forward, gradients, attention, masks, embeddings, saving, loading, export.

In the manner of the common tests of transformers; see `tests.common.setup` for what a test class declares. Sums are in
another order between two attention implementations, batch sizes or paddings, which gives about 1e-6 in float32 at
these sizes; comparisons that cross such a border allow 1e-5, all others are exact.
"""

import copy
import errno
import json
import os
import re
import subprocess
import sys

import pytest
import torch
import transformers
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertModel, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from tests.common.setup import ModelSetup, assert_same, different, run, snapshot, states_of

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


class ForwardTests(ModelSetup):
    """What a model computes."""

    def test_two_forward_passes_are_equal_in_evaluation_mode(self, variant):
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        assert_same(run(model, inputs), run(model, inputs))

    def test_dropout_is_on_in_training_mode(self, variant):
        model = self.model_of(variant).train()
        inputs = self.make_inputs(model.config)
        assert different(run(model, inputs), run(model, inputs))

    def test_every_parameter_gets_a_gradient(self, variant):
        model = self.model_of(variant)
        model(**self.make_inputs(model.config)).loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        missing = [name for name, gradient in gradients.items() if gradient is None]
        assert missing == [name for name in gradients if re.search(self.idle_parameters, name)]
        gradients = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        assert [name for name, gradient in gradients.items() if not gradient.isfinite().all()] == []
        zero = [name for name, gradient in gradients.items() if not gradient.any()]
        assert [name for name in zero if not re.search(self.zero_gradients, name)] == []

    def test_activation_checkpointing_changes_neither_loss_nor_gradients(self, variant):
        model = self.model_of(variant).train()
        inputs = self.make_inputs(model.config)
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        calls = []
        for layer in layers:  # the parts of a layer run again, its own hooks do not
            for part in layer.children():
                part.register_forward_pre_hook(lambda part, args, layer=layer: calls.append(layer))

        def train():
            calls.clear()
            torch.manual_seed(3)  # dropout is drawn again, the same, when a layer is run again
            model.zero_grad()
            loss = model(**inputs).loss
            loss.backward()
            gradients = {
                name: parameter.grad.clone()
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
            return {"loss": loss.detach(), **gradients}, [calls.count(layer) for layer in layers]

        plain, plain_calls = train()
        model.activation_checkpointing_enable()
        checkpointed, more_calls = train()
        assert more_calls
        assert all(more > once > 0 for more, once in zip(more_calls, plain_calls))
        assert_same(plain, checkpointed)
        model.activation_checkpointing_disable()
        assert train()[1] == plain_calls

    def test_eager_and_sdpa_attention_agree(self, variant):
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        model.set_attn_implementation("sdpa")
        sdpa = run(model, inputs)
        model.set_attn_implementation("eager")
        configs = [getattr(module, "config", None) for module in model.modules()]
        implementations = {config._attn_implementation for config in configs if isinstance(config, PreTrainedConfig)}
        assert implementations == {"eager"}
        assert_same(sdpa, run(model, inputs), **CLOSE)

    def test_a_row_does_not_depend_on_the_batch(self, variant):
        model = self.model_of(variant)
        inputs = self.inputs_without_labels(model.config, rows=3)
        batch = run(model, inputs, output_hidden_states=True)
        kept = {name.split(".")[0] for name in batch} - set(self.batch_outputs)
        for row in range(3):
            alone = run(
                model, {name: value[row : row + 1] for name, value in inputs.items()}, output_hidden_states=True
            )
            expected = {name: value[row : row + 1] for name, value in batch.items() if name.split(".")[0] in kept}
            assert_same(expected, alone, **CLOSE, names=kept)

    def test_padding_changes_nothing(self, variant, padding_side):
        if not self.padding_values:
            pytest.skip("no text inputs")
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        padded = dict(inputs)
        for name, padding in self.padding_values.items():
            block = inputs[name].new_full((len(inputs[name]), 3), padding)
            padded[name] = torch.cat([block, inputs[name]] if padding_side == "left" else [inputs[name], block], dim=1)
        real = inputs[self.mask_inputs[0]].bool()
        before, after = run(model, inputs), run(model, padded)
        torch.testing.assert_close(after["loss"], before["loss"], **CLOSE)
        for name in self.text_outputs:
            own = after[name][:, 3:] if padding_side == "left" else after[name][:, :-3]
            torch.testing.assert_close(own[real], before[name][real], **CLOSE)

    def test_masks_of_integers_and_booleans_are_the_same(self, variant):
        if not self.mask_inputs:
            pytest.skip("no masks")
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        with_mask = run(model, inputs)
        for dtype in (torch.bool, torch.float32):
            masks = {name: inputs[name].to(dtype) for name in self.mask_inputs}
            assert_same(with_mask, run(model, {**inputs, **masks}))
        plain = run(model, {**inputs, **{name: torch.ones_like(inputs[name]) for name in self.mask_inputs}})
        assert different(with_mask, plain)  # the mask is read at all

    def test_tuple_holds_the_same_as_the_named_output(self, variant):
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        with torch.no_grad():
            named, plain = model(**inputs), model(**inputs, return_dict=False)
        assert isinstance(plain, tuple)
        named = [value for value in named.to_tuple() if isinstance(value, torch.Tensor)]
        plain = [value for value in plain if isinstance(value, torch.Tensor)]
        assert len(named) == len(plain) > 0
        assert all(torch.equal(first, second) for first, second in zip(named, plain))

    def test_hidden_states_and_attentions_have_the_expected_shapes(self, variant):
        model = self.model_of(variant)
        model.set_attn_implementation("eager")  # the others return no weights
        inputs = self.inputs_without_labels(model.config)
        with torch.no_grad():
            plain = model(**inputs)
            outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        expected = self.expected_shapes(model.config, inputs)
        found = {name: [tuple(state.shape) for state in outputs[name]] for name in expected if name in outputs}
        assert found == expected
        assert [name for name in expected if plain.get(name) is not None] == []
        for name in expected:
            if "attention" in name:
                for weights in outputs[name]:
                    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), **CLOSE)

    def test_compiled_forward_is_one_graph_with_the_same_outputs(self, variant):
        self.check_compiled(variant, "aot_eager")

    @pytest.mark.slow
    def test_inductor_gives_the_same_outputs(self, variant):
        self.check_compiled(variant, "inductor")

    def check_compiled(self, variant, backend):
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        expected = run(model, inputs)
        torch.compiler.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        try:
            assert_same(expected, run(compiled, inputs), **CLOSE)
        finally:
            torch.compiler.reset()


class EmbeddingTests(ModelSetup):
    """Word embeddings and vocabulary heads."""

    def test_tied_weights_are_one_tensor_after_loading_too(self, variant, tmp_path):
        model = self.model_of(variant)
        tied = model.all_tied_weights_keys
        if not getattr(model.config, "tie_word_embeddings", False):
            assert tied == {}
        model.save_pretrained(tmp_path)
        loaded = self.model_class.from_pretrained(tmp_path)
        for target, source in tied.items():
            for one in (model, loaded):
                assert one.get_parameter(target) is one.get_parameter(source)
        saved = load_file(tmp_path / "model.safetensors")
        assert set(saved) == set(model.state_dict()) - set(tied)

    @pytest.mark.parametrize("change", (3, -3), ids=("more", "fewer"))
    def test_resized_vocabulary_works_and_reloads(self, variant, change, tmp_path):
        model = self.model_of(variant)
        vocab_size = model.get_input_embeddings().weight.shape[0]
        inputs = self.make_inputs(model.config)
        for name in self.padding_values:
            inputs[name] = inputs[name].clamp(max=vocab_size - 4)
        before = run(model, inputs)
        model.resize_token_embeddings(vocab_size + change, mean_resizing=False)
        assert model.config.get_text_config().vocab_size == vocab_size + change
        after = run(model, inputs)
        known = min(vocab_size, vocab_size + change)
        for name in self.vocabulary_outputs:
            if name in before:
                assert after[name].shape[-1] == vocab_size + change
                torch.testing.assert_close(after[name][..., :known], before[name][..., :known], **CLOSE)
        for target, source in model.all_tied_weights_keys.items():
            assert model.get_parameter(target) is model.get_parameter(source)
        model.save_pretrained(tmp_path)
        assert_same(after, run(self.model_class.from_pretrained(tmp_path), inputs))


class SavingTests(ModelSetup):
    """Checkpoints: complete, exact, whole or not at all."""

    dtypes = (torch.bfloat16, torch.float16)

    def further_parameters(self):
        return {**super().further_parameters(), "dtype": list(self.dtypes)}

    def load(self, directory, **options):
        return self.model_class.from_pretrained(directory, **options)

    def test_saved_and_loaded_model_is_equal(self, variant, tmp_path):
        model = self.model_of(variant)
        model.save_pretrained(tmp_path)
        loaded, report = self.load(tmp_path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        assert not loaded.training
        assert different(states_of(model), states_of(loaded)) == []
        inputs = self.make_inputs(model.config)
        options = {"output_hidden_states": True}
        assert_same(run(model, inputs, **options), run(loaded, inputs, **options))

    def test_auto_class_loads_the_same_model(self, variant, tmp_path):
        model = self.model_of(variant)
        model.save_pretrained(tmp_path)
        loaded = getattr(transformers, self.auto_class).from_pretrained(tmp_path)
        assert type(loaded) is self.model_class
        assert different(states_of(model), states_of(loaded)) == []

    def test_head_and_base_load_each_other(self, variant, tmp_path):
        if self.base_model_class is None:
            pytest.skip("no base model")
        model = self.model_of(variant)
        model.save_pretrained(tmp_path / "head")
        base, report = self.base_model_class.from_pretrained(tmp_path / "head", output_loading_info=True)
        assert not report["missing_keys"]
        assert different(states_of(model.base_model), states_of(base)) == []
        base.save_pretrained(tmp_path / "base")
        head, report = self.load(tmp_path / "base", output_loading_info=True)
        prefix = f"{model.base_model_prefix}."
        assert [name for name in report["missing_keys"] if name.startswith(prefix)] == []
        assert not report["unexpected_keys"]
        assert different(states_of(model.base_model), states_of(head.base_model)) == []

    def test_configuration_survives_saving(self, variant, tmp_path):
        config = self.config_of(variant)
        config.save_pretrained(tmp_path)
        fresh = type(config).from_dict(copy.deepcopy(config.to_dict()))
        for other in (type(config).from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path), fresh):
            assert type(other) is type(config)
            assert {**other.to_dict(), "_name_or_path": ""} == config.to_dict()
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == config.model_type

    def test_parameters_missing_from_a_checkpoint_are_initialised(self, variant, tmp_path):
        model = self.model_of(variant)
        fresh = states_of(self.model_class(self.config_of(variant)))
        model.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        tied = model.all_tied_weights_keys
        # Layers of a stack are alike: what is missing goes by kind, every second one at a time.
        kinds = sorted({re.sub(r"\d+", "#", name) for name in weights})
        for half in (0, 1):
            dropped = set(kinds[half::2])
            kept = {name: value for name, value in weights.items() if re.sub(r"\d+", "#", name) not in dropped}
            save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
            loaded = states_of(self.load(tmp_path))
            assert loaded.keys() == fresh.keys()
            for name, value in loaded.items():
                source = tied.get(name, name)
                if source in kept:
                    assert torch.equal(value, kept[source]), name
                elif value.is_floating_point():
                    plainly = re.search(self.plainly_initialised, source) is not None
                    assert_looks_initialised(name, value, fresh[source], factor=20 if plainly else 1.33)
                else:
                    assert torch.equal(value, fresh[name]), name

    def test_buffers_that_are_not_saved_are_computed_again(self, variant, tmp_path):
        model = self.model_of(variant)
        model.save_pretrained(tmp_path)
        loaded = self.load(tmp_path)
        first, second = dict(model.named_buffers()), dict(loaded.named_buffers())
        assert different(first, second) == []

    def test_model_loads_and_runs_in_half_precision(self, variant, dtype, tmp_path):
        model = self.model_of(variant)
        model.save_pretrained(tmp_path)
        inputs = self.make_inputs(model.config)
        expected = run(model, inputs)
        half = self.load(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in half.parameters()} == {dtype}
        loss = run(half, inputs)["loss"]
        # Eight bits of mantissa and a few layers: a percent or two.
        torch.testing.assert_close(loss.float(), expected["loss"], rtol=0.05, atol=0.05)
        half.save_pretrained(tmp_path)
        again = self.load(tmp_path)
        assert again.dtype == dtype
        assert different(states_of(half), states_of(again)) == []

    @pytest.mark.parametrize("device_map", ("auto", "cpu"))
    def test_device_map_loads_an_equal_model(self, variant, device_map, tmp_path):
        model = self.model_of(variant)
        model.save_pretrained(tmp_path)
        loaded = self.load(tmp_path, device_map=device_map)
        inputs = self.make_inputs(model.config)
        found = {name: value.cpu() for name, value in run(loaded, inputs).items()}
        assert_same(run(model, inputs), found, **CLOSE)

    def test_offloaded_weights_give_the_same_outputs(self, variant):
        model = self.model_of(variant)
        inputs = self.make_inputs(model.config)
        expected = run(model, inputs)
        offloaded = cpu_offload(copy.deepcopy(model), execution_device=torch.device("cpu"))
        assert_same(expected, run(offloaded, inputs), **CLOSE)

    def test_saving_leaves_what_is_not_its_own(self, variant, tmp_path):
        model = self.model_of(variant)
        (tmp_path / "model_ema.safetensors").write_text("of others")
        model.save_pretrained(tmp_path)
        model.save_pretrained(tmp_path, variant="half")
        names = {file.name for file in tmp_path.glob("*.safetensors")}
        assert names == {"model_ema.safetensors", "model.safetensors", "model.half.safetensors"}

    def test_shards_and_single_file_replace_each_other(self, variant, tmp_path):
        first, second, third = (self.model_of(variant, seed=seed) for seed in range(3))
        first.save_pretrained(tmp_path)
        second.save_pretrained(tmp_path, max_shard_size="20KB")
        shards = sorted(file.name for file in tmp_path.glob("*.safetensors"))
        assert len(shards) > 1
        assert "model.safetensors" not in shards
        assert different(states_of(second), states_of(self.load(tmp_path))) == []
        third.save_pretrained(tmp_path)
        assert [file.name for file in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]
        assert different(states_of(third), states_of(self.load(tmp_path))) == []

    @pytest.mark.parametrize(
        "error", (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()), ids=repr
    )
    @pytest.mark.parametrize("sharded", (False, True), ids=("single", "sharded"))
    def test_save_that_fails_keeps_the_old_files(self, variant, error, sharded, tmp_path, monkeypatch):
        self.model_of(variant).save_pretrained(tmp_path)
        before = snapshot(tmp_path)
        save = transformers.modeling_utils.safe_save_file
        written = []

        def fail(tensors, filename, **options):
            if written or not sharded:  # the second shard, or the single file half way
                with open(filename, "wb") as file:
                    file.write(b"half of a file")
                raise error
            written.append(filename)
            return save(tensors, filename, **options)

        monkeypatch.setattr(transformers.modeling_utils, "safe_save_file", fail)
        options = {"max_shard_size": "20KB"} if sharded else {}
        other = self.model_of(variant, seed=1)
        with pytest.raises(type(error)):
            other.save_pretrained(tmp_path, **options)
        assert snapshot(tmp_path) == before
        assert [entry.name for entry in tmp_path.iterdir() if entry.is_dir()] == []
        monkeypatch.undo()
        other.save_pretrained(tmp_path)  # nothing left in the way
        assert different(states_of(other), states_of(self.load(tmp_path))) == []

    def test_checkpoint_of_another_architecture_is_refused(self, tmp_path):
        config = BertConfig(
            vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
        BertModel(config).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="bert"):
            self.load(tmp_path)


def assert_looks_initialised(name: str, value: torch.Tensor, fresh: torch.Tensor, *, factor: float):
    """`value` could have been drawn as `fresh` was: the same constant, or a spread less than `factor` away."""
    assert value.isfinite().all(), name
    if fresh.numel() == 1 or fresh.std() == 0:
        torch.testing.assert_close(value, fresh, msg=lambda m: f"{name}: {m}")
        return
    assert value.abs().max() <= 2 * factor * fresh.abs().max(), name
    if fresh.numel() >= 256:
        assert 1 / factor < value.std() / fresh.std() < factor, name


class ExportTests(ModelSetup):
    """Checkpoints carry their code: they load where this package cannot be imported."""

    def export_calls(self, model) -> dict[str, dict]:
        """Name of an output -> {"method", "inputs", "options"} to call there and here."""
        inputs = self.make_inputs(model.config)
        return {"forward": {"method": "__call__", "inputs": inputs, "options": {}}}

    @pytest.fixture(scope="class")
    def exports(self, tmp_path_factory):
        """Every variant saved, loaded, run and saved again by one process that has no hf_vlp: variant -> results.

        Starting Python and transformers costs seconds, so all variants share the process.
        """
        folder = tmp_path_factory.mktemp("exports")
        for variant in self.variants:
            model = self.model_of(variant)
            model.save_pretrained(folder / variant)
            calls = self.export_calls(model)
            torch.save(calls, folder / f"{variant}.calls")
            results = {name: call(model, **call_) for name, call_ in calls.items()}
            torch.save(results, folder / f"{variant}.expected")
        code = EXPORT_PROCESS.format(auto_class=self.auto_class, variants=list(self.variants))
        environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return folder

    def test_export_gives_equal_results_without_the_package(self, variant, exports):
        assert_same(torch.load(exports / f"{variant}.expected"), torch.load(exports / f"{variant}.found"))

    def test_export_saved_again_without_the_package_is_complete(self, variant, exports):
        assert_same(torch.load(exports / f"{variant}.expected"), torch.load(exports / f"{variant}.again"))
        first, again = snapshot(exports / variant), snapshot(exports / f"{variant}-again")
        assert {name for name in first if name.endswith(".py")} == {name for name in again if name.endswith(".py")}
        weights = {name for name in first if name.endswith(".safetensors")}
        assert {name: first[name] for name in weights} == {name: again[name] for name in weights}
        configs = [json.loads(files["config.json"]) for files in (first, again)]
        assert configs[0].get("custom_pipelines") == configs[1].get("custom_pipelines")

    def test_export_loads_here_after_it_was_saved_there(self, variant, exports):
        model, there = self.model_of(variant), self.model_class.from_pretrained(exports / f"{variant}-again")
        assert different(states_of(model), states_of(there)) == []


@torch.no_grad()
def call(model, method, inputs, options) -> torch.Tensor:
    result = getattr(model, method)(**inputs, **options)
    return result if isinstance(result, torch.Tensor) else result[0]


EXPORT_PROCESS = """
import sys
sys.modules["hf_vlp"] = None  # any import of it fails
import torch, transformers

@torch.no_grad()
def call(model, method, inputs, options):
    result = getattr(model, method)(**inputs, **options)
    return result if isinstance(result, torch.Tensor) else result[0]

for variant in {variants!r}:
    calls = torch.load(variant + ".calls")
    source = variant
    for name in ("found", "again"):
        model = transformers.{auto_class}.from_pretrained("./" + source, trust_remote_code=True)
        torch.save({{key: call(model, **value) for key, value in calls.items()}}, variant + "." + name)
        source = variant + "-again"
        if name == "found":
            model.save_pretrained(source)
"""


class ModelingTests(ForwardTests, EmbeddingTests, SavingTests, ExportTests):
    """All of the above."""
