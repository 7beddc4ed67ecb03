"""What VL-BEiT promises; the tests that every model passes are in `test_vl_beit_common.py`.

Behaviour that needs no reference: which experts each source reads, where losses and gradients come from, hidden
patches, four terms against separate calls, single sources, padding, overfitting, other resolutions, initial values
(also of parts that a checkpoint lacks), half precision, starting from BEiT and VLMo, the heads of fine-tuning, states
that are asked for, wrong inputs.
"""

import pytest
import torch
from peft import LoraConfig
from transformers import BeitConfig, BeitForMaskedImageModeling, BeitModel

from hf_vlp import (
    VlBeitConfig,
    VlBeitForImageClassification,
    VlBeitForImagesAndTextClassification,
    VlBeitForImageTextRetrieval,
    VlBeitForMaskedImageModeling,
    VlBeitForMaskedLM,
    VlBeitForPreTraining,
    VlBeitForSemanticSegmentation,
    VlBeitForVisualQuestionAnswering,
    VlBeitModel,
    VlmoConfig,
    VlmoForMaskedImageModeling,
    VlmoForMaskedLM,
)
from hf_vlp.adapters import apply_lora
from hf_vlp.models.mome.mome_interpolation import interpolate_position_bias_table
from tests.common.modeling import CLOSE
from tests.common.setup import assert_same, run
from tests.models.vl_beit_setup import SIZES, VISUAL_VOCAB_SIZE, VOCAB_SIZE, joint_batch, make_model

TERMS = ("mlm", "mim", "mvlm_text", "mvlm_image")
SOURCES = {"text": ("mlm",), "image": ("mim",), "pair": ("mvlm_text", "mvlm_image")}


def only(inputs: dict, source: str) -> dict:
    """The inputs of one source in a joint batch."""
    if source == "pair":
        return {name: value for name, value in inputs.items() if not name.startswith(("text_", "image_"))}
    return {name: value for name, value in inputs.items() if name.startswith(f"{source}_")}


@pytest.fixture
def model() -> VlBeitForPreTraining:
    return make_model(VlBeitForPreTraining)


@pytest.fixture
def inputs(model) -> dict[str, torch.Tensor]:
    return joint_batch(model.config)


@pytest.mark.parametrize(
    "source, read",
    (
        ("image", {"0.image", "1.image", "2.image"}),
        ("text", {"0.text", "1.text", "2.text"}),
        ("pair", {"0.image", "0.text", "1.image", "1.text", "2.vl"}),
    ),
)
def test_each_source_reads_its_own_experts_and_no_other(model, inputs, source, read):
    inputs = only(inputs, source)
    before = run(model, inputs)
    found = set()
    for index, layer in enumerate(model.vl_beit.layers):
        for name, expert in layer.experts.items():
            for parameter in expert.parameters():
                kept = parameter.detach().clone()
                with torch.no_grad():
                    parameter.add_(torch.randn_like(parameter))
                after = run(model, inputs)
                if any(not torch.equal(after[output], before[output]) for output in before):
                    found.add(f"{index}.{name}")
                parameter.data = kept
    assert found == read


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_trains_its_own_experts_and_heads_only(model, inputs, source):
    model(**only(inputs, source)).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    experts = {"text": {"text"}, "image": {"image"}, "pair": {"text", "image", "vl"}}[source]
    assert {name.split(".")[4] for name in trained if ".experts." in name} == experts
    heads = {"text": {"mlm_head"}, "image": {"mim_head", "mask_token"}, "pair": {"mlm_head", "mim_head", "mask_token"}}
    assert {name.split(".")[0] for name in trained} - {"vl_beit"} == heads[source]


def test_positions_that_are_not_hidden_give_no_gradient(model, inputs):
    outputs = model(**inputs)
    hidden = {
        "mlm": inputs["text_labels"] != -100,
        "mim": inputs["image_bool_masked_pos"],
        "mvlm_text": inputs["labels"] != -100,
        "mvlm_image": inputs["bool_masked_pos"],
    }
    for name in TERMS:
        (gradient,) = torch.autograd.grad(outputs.loss, outputs[f"{name}_logits"], retain_graph=True)
        assert torch.equal(gradient.abs().sum(dim=-1) > 0, hidden[name]), name


def test_training_skips_logits_of_other_positions_at_the_same_losses_and_gradients(inputs):
    model = make_model(VlBeitForPreTraining, drop_path_rate=0.0, text_dropout=0.0)

    def gradients():
        model.zero_grad()
        outputs = model(**inputs)
        outputs.loss.backward()
        losses = {name: value.detach() for name, value in outputs.losses.items()}
        grads = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return outputs, {**losses, **grads}

    _, whole = gradients()
    model.train()
    outputs, part = gradients()
    assert outputs.mim_logits is None
    assert_same(whole, part, **CLOSE)


@pytest.mark.parametrize("stem", ("patch", "convolution"))
@pytest.mark.parametrize("source", ("image", "pair"))
def test_pixels_of_hidden_patches_change_nothing(source, stem):
    model = make_model(VlBeitForPreTraining, vision_stem=stem)
    inputs = only(joint_batch(model.config), source)
    prefix = "image_" if source == "image" else ""
    before = run(model, inputs)
    hidden = inputs[f"{prefix}bool_masked_pos"].view(-1, 1, 2, 2)
    for chosen, changes in ((hidden, False), (~hidden, True)):
        pixels = chosen.float().repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        noise = torch.randn_like(inputs[f"{prefix}pixel_values"])
        changed = {**inputs, f"{prefix}pixel_values": inputs[f"{prefix}pixel_values"] + pixels * noise}
        after = run(model, changed)
        assert any(not torch.equal(after[name], before[name]) for name in before) == changes


def test_visual_tokens_of_shown_patches_do_not_count(model, inputs):
    before = run(model, inputs)
    other = dict(inputs)
    for prefix in ("", "image_"):
        shown = ~inputs[f"{prefix}bool_masked_pos"]
        ids = inputs[f"{prefix}visual_token_ids"].clone()
        ids[shown] = (ids[shown] + 1) % VISUAL_VOCAB_SIZE
        other[f"{prefix}visual_token_ids"] = ids
    assert_same(before, run(model, other))


def test_the_class_position_is_never_predicted(model, inputs):
    logits = run(model, inputs)["mim_logits"]
    embeddings = model.vl_beit.image_embeddings(
        inputs["image_pixel_values"], inputs["image_bool_masked_pos"], model.mask_token
    )
    states = model.vl_beit(image_embeds=embeddings).image_hidden_state
    assert states.shape[1] == 1 + 4  # I_CLS first
    torch.testing.assert_close(logits, model.mim_head(states[:, 1:]).detach(), **CLOSE)


def test_terms_equal_their_separate_calls(model, inputs):
    together = run(model, inputs)
    for source, terms in SOURCES.items():
        alone = run(model, only(inputs, source))
        assert {name for name in alone if name.startswith("losses.")} == {f"losses.{term}" for term in terms}
        for term in terms:
            assert torch.equal(alone[f"losses.{term}"], together[f"losses.{term}"])
            assert torch.equal(alone[f"{term}_logits"], together[f"{term}_logits"])
        torch.testing.assert_close(alone["loss"], sum(alone[f"losses.{term}"] for term in terms), **CLOSE)
    torch.testing.assert_close(together["loss"], sum(together[f"losses.{term}"] for term in TERMS), **CLOSE)


def test_terms_are_those_of_the_models_with_one_head(model, inputs, tmp_path):
    model.save_pretrained(tmp_path)
    together = run(model, inputs)
    language, image = (name.from_pretrained(tmp_path) for name in (VlBeitForMaskedLM, VlBeitForMaskedImageModeling))
    texts = {name.removeprefix("text_"): value for name, value in only(inputs, "text").items()}
    pictures = {name.removeprefix("image_"): value for name, value in only(inputs, "image").items()}
    assert torch.equal(run(language, texts)["loss"], together["losses.mlm"])
    assert torch.equal(run(image, pictures)["loss"], together["losses.mim"])


def test_total_is_weighted(inputs):
    weights = dict(zip(TERMS, (0.5, 2.0, 3.0, 0.0), strict=True))
    model = make_model(VlBeitForPreTraining, **{f"{name}_loss_weight": value for name, value in weights.items()})
    outputs = run(model, inputs)
    expected = sum(weight * outputs[f"losses.{name}"] for name, weight in weights.items())
    torch.testing.assert_close(outputs["loss"], expected, **CLOSE)


@pytest.mark.parametrize("mode", ("train", "eval"))
@pytest.mark.parametrize("source", SOURCES)
def test_a_batch_of_one_source_trains(model, inputs, source, mode):
    getattr(model, mode)()
    outputs = model(**only(inputs, source))
    assert set(outputs.losses) == set(SOURCES[source])
    outputs.loss.backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("mode", ("train", "eval"))
def test_a_source_without_a_hidden_position_adds_nothing(model, inputs, mode):
    getattr(model, mode)()
    nothing = {
        **inputs,
        "labels": torch.full_like(inputs["labels"], -100),
        "text_labels": torch.full_like(inputs["text_labels"], -100),
        "bool_masked_pos": torch.zeros_like(inputs["bool_masked_pos"]),
        "image_bool_masked_pos": torch.zeros_like(inputs["image_bool_masked_pos"]),
    }
    outputs = model(**nothing)
    assert outputs.loss == 0
    outputs.loss.backward()
    assert not any(parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)


def test_without_targets_or_on_request_there_are_logits_and_no_loss(model, inputs):
    targets = ("labels", "text_labels", "visual_token_ids", "image_visual_token_ids")
    outputs = run(model, {name: value for name, value in inputs.items() if name not in targets})
    assert set(outputs) == {f"{name}_logits" for name in TERMS}
    assert_same(outputs, run(model, inputs, return_loss=False))


@pytest.mark.parametrize("source", ("text", "pair"))
def test_padding_that_is_trimmed_or_masked_gives_the_same(model, inputs, source):
    inputs = only(inputs, source)
    prefix = "text_" if source == "text" else ""
    ids, mask, labels = (f"{prefix}{name}" for name in ("input_ids", "attention_mask", "labels"))
    row = {name: value[-1:] for name, value in inputs.items()}  # the one with padding
    length = int(row[mask].sum())
    assert length < row[ids].shape[1]

    def real(outputs):
        texts = ("mlm_logits", "mvlm_text_logits")
        return {name: value[:, :length] if name in texts else value for name, value in outputs.items()}

    masked = run(model, row)
    anything = {**row, ids: row[ids].masked_fill(row[mask] == 0, 7)}  # whatever stands on the padding
    assert_same(real(masked), real(run(model, anything)))
    trimmed = {**row, **{name: row[name][:, :length] for name in (ids, mask, labels)}}
    assert_same(real(masked), run(model, trimmed), **CLOSE)


def test_a_handful_of_pairs_is_learnt_by_heart():
    torch.manual_seed(0)
    config = VlBeitConfig(**{**SIZES, "hidden_size": 32, "num_hidden_layers": 2, "vl_expert_start_layer": 1})
    config.drop_path_rate, config.layer_scale_init_value = 0.0, 1.0
    model = VlBeitForPreTraining(config).train()
    inputs = joint_batch(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = run(model, inputs)
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
    last = run(model, inputs)
    for name in TERMS:
        assert last[f"losses.{name}"] < 0.1 * first[f"losses.{name}"], name


@pytest.mark.parametrize("size", (24, 32, 48))
def test_a_checkpoint_loads_at_another_resolution(model, tmp_path, size):
    model.save_pretrained(tmp_path)
    larger = VlBeitForPreTraining.from_pretrained(tmp_path, image_size=size)
    length = model.config.max_text_length_of_table
    for before, after in zip(model.vl_beit.layers, larger.vl_beit.layers, strict=True):
        table = before.attention.position_bias_table.detach()
        expected = interpolate_position_bias_table(table, 2, size // 8, length)
        assert torch.equal(after.attention.position_bias_table.detach(), expected)
    inputs = joint_batch(larger.config)
    assert run(larger, inputs)["mim_logits"].shape == (3, (size // 8) ** 2, VISUAL_VOCAB_SIZE)
    # Texts do not know of it.
    texts = only(inputs, "text")
    assert_same(run(model, texts), run(larger, texts))


class TestInitialValues:
    """BEiT's, with its rescaling by depth for every expert."""

    SIZES = {**SIZES, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vl_expert_start_layer": 2}

    def ends_of_branches(self, model):
        for index, layer in enumerate(model.layers):
            yield index, "attention", layer.attention.output.weight
            for name, expert in layer.experts.items():
                yield index, name, expert.fc2.weight

    def assert_scaled(self, weight, bound):
        # Normal, cut at one standard deviation: its own deviation is 0.54 of it.
        assert 0.95 * bound < weight.abs().max() <= bound * (1 + 1e-6)
        assert weight.std().item() == pytest.approx(0.54 * bound, rel=0.05)

    @pytest.mark.parametrize("rescaled", (True, False))
    @pytest.mark.parametrize("scale", (0.1, None))
    def test_ends_of_residual_branches_shrink_with_depth(self, rescaled, scale):
        model = VlBeitModel(VlBeitConfig(**self.SIZES, rescale_by_depth=rescaled, layer_scale_init_value=scale))
        seen = set()
        for index, name, weight in self.ends_of_branches(model):
            seen.add((index, name))
            self.assert_scaled(weight, 0.02 / ((2 * (index + 1)) ** 0.5 if rescaled else 1.0))
        assert len(seen) == 4 + 2 * 4 + 2  # attention, two experts a block, one more in the top two

    def test_other_weights_do_not_shrink(self):
        model = VlBeitForPreTraining(VlBeitConfig(**self.SIZES))
        layer = model.vl_beit.layers[3]
        for weight in (
            *(layer.attention.qkv.weight, layer.experts["vl"].fc1.weight, model.mim_head.weight),
            *(model.mask_token, model.vl_beit.image_embeddings.patch_projection.weight),
        ):
            assert 0.9 * 0.02 < weight.abs().max() <= 0.02 * (1 + 1e-6)
        assert layer.attention_scale.eq(0.1).all()
        assert not layer.attention.position_bias_table.any()
        assert not layer.experts["vl"].fc2.bias.any()

    def test_experts_that_a_checkpoint_lacks_are_rescaled_and_the_rest_is_kept(self, tmp_path):
        config = VlBeitConfig(**{**self.SIZES, "vl_expert_start_layer": 4})
        first = VlBeitModel(config)
        first.save_pretrained(tmp_path)
        model, info = VlBeitModel.from_pretrained(tmp_path, vl_expert_start_layer=2, output_loading_info=True)
        assert all(".experts.vl." in name for name in info["missing_keys"])
        kept = first.state_dict()
        for index, name, weight in self.ends_of_branches(model):
            if name == "vl":
                self.assert_scaled(weight, 0.02 / (2 * (index + 1)) ** 0.5)
            elif name == "attention":
                assert torch.equal(weight, kept[f"layers.{index}.attention.output.weight"])
            else:
                assert torch.equal(weight, kept[f"layers.{index}.experts.{name}.fc2.weight"])


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_trains_and_is_saved(model, inputs, dtype, tmp_path):
    expected = run(model, inputs)
    half = make_model(VlBeitForPreTraining).to(dtype)
    outputs = half(**inputs)
    for name in TERMS:
        torch.testing.assert_close(outputs.losses[name].float(), expected[f"losses.{name}"], rtol=0.05, atol=0.05)
    outputs.loss.backward()
    gradients = [parameter.grad for parameter in half.parameters() if parameter.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {dtype}
    assert all(gradient.isfinite().all() for gradient in gradients)
    half.save_pretrained(tmp_path)
    again = VlBeitForPreTraining.from_pretrained(tmp_path)
    assert again.dtype == dtype
    assert_same(run(half, inputs), run(again, inputs))


def test_a_vlmo_gives_all_its_experts(inputs, tmp_path):
    shared = {name: value for name, value in SIZES.items() if name in VlmoConfig().to_dict()}
    torch.manual_seed(0)
    vlmo = VlmoForMaskedLM(VlmoConfig(**shared)).eval()
    vlmo.save_pretrained(tmp_path)
    pairs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    for source in (vlmo, tmp_path):
        model = VlBeitModel.from_vlmo_pretrained(source)
        assert_same(run(vlmo.vlmo, pairs), run(model, pairs))


def test_stage_1_of_vlmo_is_the_same_masked_image_modelling(inputs):
    model = make_model(VlBeitForMaskedImageModeling)
    shared = {name: value for name, value in SIZES.items() if name in VlmoConfig().to_dict()}
    vlmo = VlmoForMaskedImageModeling(VlmoConfig(**shared)).eval()
    weights = {name.replace("vl_beit.", "vlmo.", 1): value for name, value in model.state_dict().items()}
    vlmo.load_state_dict(weights)
    pictures = {name.removeprefix("image_"): value for name, value in only(inputs, "image").items()}
    assert_same(run(model, pictures), run(vlmo, pictures))
    assert "mask_token" in vlmo.no_weight_decay() & model.no_weight_decay()
    assert vlmo.get_parameter_layer("mask_token")[0] == model.get_parameter_layer("mask_token")[0] == 0


def test_the_rule_of_beit_decays_position_bias_and_mask_token(model):
    ours, beit = model.no_weight_decay(), model.no_weight_decay(original=True)
    tables = {f"vl_beit.layers.{index}.attention.position_bias_table" for index in range(3)}
    assert ours - beit == {"mask_token", *tables}
    assert not beit - ours
    vectors = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    assert beit == vectors | {"vl_beit.image_embeddings.cls_token"}


@pytest.mark.parametrize("shared", (True, False))
def test_a_picture_gives_what_it_gives_in_the_beit_that_a_model_starts_from(inputs, shared):
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name in BeitConfig().to_dict() and "vocab" not in name}
    bias = {"use_shared_relative_position_bias" if shared else "use_relative_position_bias": True}
    beit = BeitModel(BeitConfig(**sizes, **bias, use_mask_token=True, layer_norm_eps=1e-6)).eval()
    for parameter in beit.parameters():
        parameter.data.normal_(std=0.3)
    model, info = VlBeitModel.from_beit_pretrained(beit, output_loading_info=True, vocab_size=VOCAB_SIZE)
    assert not any("image" in name or "attention" in name for name in info["missing_keys"])
    pictures = inputs["image_pixel_values"]
    with torch.no_grad():
        theirs, ours = (one(pixel_values=pictures, output_hidden_states=True).hidden_states for one in (beit, model))
    torch.testing.assert_close(ours[-1], theirs[-1], **CLOSE)


@pytest.mark.parametrize("from_folder", (False, True))
def test_a_masked_beit_brings_its_final_norm(inputs, from_folder, tmp_path):
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name in BeitConfig().to_dict() and "vocab" not in name}
    config = BeitConfig(**sizes, vocab_size=9, use_shared_relative_position_bias=True, layer_norm_eps=1e-6)
    beit = BeitForMaskedImageModeling(config).eval()
    for parameter in beit.parameters():
        parameter.data.normal_(std=0.3)
    beit.save_pretrained(tmp_path)
    model, info = VlBeitModel.from_beit_pretrained(tmp_path if from_folder else beit, output_loading_info=True)
    pictures = inputs["image_pixel_values"]
    with torch.no_grad():
        expected = beit.layernorm(beit.beit(pictures).last_hidden_state)
        torch.testing.assert_close(model(pixel_values=pictures).last_hidden_state, expected, **CLOSE)
    assert not {"norm.weight", "norm.bias"} & set(info["missing_keys"])
    assert info["unexpected_keys"] == ["lm_head.bias", "lm_head.weight"]


def test_absolute_positions_of_a_beit_are_not_lost(inputs):
    torch.manual_seed(0)
    sizes = {name: value for name, value in SIZES.items() if name in BeitConfig().to_dict() and "vocab" not in name}
    positions = {"use_relative_position_bias": True, "use_absolute_position_embeddings": True}
    beit = BeitModel(BeitConfig(**sizes, **positions, layer_norm_eps=1e-6)).eval()
    beit.embeddings.position_embeddings.data.normal_()
    model = VlBeitModel.from_beit_pretrained(beit)
    pictures = inputs["image_pixel_values"]
    with torch.no_grad():
        theirs, ours = (one(pixel_values=pictures, output_hidden_states=True).hidden_states for one in (beit, model))
    torch.testing.assert_close(ours[-1], theirs[-1], **CLOSE)
    with pytest.raises(ValueError, match="has absolute positions"):
        VlBeitModel.from_beit_pretrained(beit, use_absolute_position_embeddings=False)


def test_options_of_the_hub_are_no_fields_of_the_configuration(tmp_path):
    torch.manual_seed(0)
    VlmoForMaskedLM(VlmoConfig(**SIZES)).save_pretrained(tmp_path / "vlmo")
    options = {"revision": "main", "token": "secret", "local_files_only": True, "output_loading_info": True}
    model, info = VlBeitModel.from_vlmo_pretrained(tmp_path / "vlmo", **options)
    model.save_pretrained(tmp_path / "ours")
    assert "secret" not in (tmp_path / "ours" / "config.json").read_text()
    assert info["missing_keys"] == []


def test_adapters_behind_frozen_pictures_train_with_reentrant_checkpointing(inputs):
    model = apply_lora(make_model(VlBeitForImageClassification, num_labels=3), preset="attention", r=2)
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    model(pixel_values=inputs["image_pixel_values"], labels=torch.tensor([0, 1, 2])).loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if "lora_B" in name}
    assert gradients
    assert all(gradient is not None and gradient.any() for gradient in gradients.values())
    model.disable_input_require_grads()


def test_adapters_saved_beside_the_model_leave_it_there(tmp_path):
    model = make_model(VlBeitModel)
    model.save_pretrained(tmp_path)
    model.add_adapter(LoraConfig(target_modules=["qkv"]))
    model.save_pretrained(tmp_path)
    assert {"model.safetensors", "adapter_model.safetensors"} <= {file.name for file in tmp_path.iterdir()}


def test_classification_reads_the_mean_of_the_patches(inputs):
    model = make_model(VlBeitForImageClassification, num_labels=3)
    pictures = inputs["image_pixel_values"]
    with torch.no_grad():
        states = model.vl_beit(pixel_values=pictures, output_hidden_states=True).hidden_states[-1]
        expected = model.classifier.output(model.classifier.norm(states[:, 1:].mean(dim=1)))
        torch.testing.assert_close(model(pictures).logits, expected, **CLOSE)
    fresh = VlBeitForImageClassification(model.config).classifier.output
    assert 0 < fresh.weight.abs().max() <= 0.02 * 0.001 * (1 + 1e-6)


@pytest.mark.parametrize("chosen", ([1], [0, -1], 2))
def test_segmentation_gives_the_states_that_are_asked_for(inputs, chosen):
    model = make_model(VlBeitForSemanticSegmentation, num_labels=3, decoder_hidden_size=8, auxiliary_channels=8)
    pictures = inputs["image_pixel_values"]
    with torch.no_grad():
        states = model.vl_beit(pixel_values=pictures, output_hidden_states=True).hidden_states
        whole, part = (model(pictures, output_hidden_states=asked) for asked in (True, chosen))
        assert model(pictures).hidden_states is None
    kept = {index % len(states) for index in ([chosen] if isinstance(chosen, int) else chosen)}
    assert [index for index, state in enumerate(part.hidden_states) if state is not None] == sorted(kept)
    for index, state in enumerate(states):
        assert torch.equal(whole.hidden_states[index], state)
        assert index not in kept or torch.equal(part.hidden_states[index], state)
    assert torch.equal(whole.logits, part.logits)


def test_retrieval_is_fine_tuned_with_contrast_and_matching(inputs):
    model = make_model(
        VlBeitForImageTextRetrieval, drop_path_rate=0.0, text_dropout=0.0, itc_loss_weight=0.5, itm_loss_weight=2.0
    )
    pairs = {name: inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    assert set(model(**pairs).losses) == {"itc"}
    model.train()
    outputs = model(**pairs)
    assert set(outputs.losses) == {"itc", "itm"}
    expected = 0.5 * outputs.losses["itc"] + 2.0 * outputs.losses["itm"]
    torch.testing.assert_close(outputs.loss, expected, **CLOSE)
    # Of two pairs each is the other's negative: the three rows of each are known.
    own = model.score_pairs(**pairs)
    swapped = {**pairs, "pixel_values": pairs["pixel_values"].flip(0)}
    with torch.no_grad():
        positive, negative = (
            model.itm_head(model.vl_beit(**pair).pooler_output).log_softmax(-1) for pair in (pairs, swapped)
        )
    matching = -(positive[:, 1].sum() + 2 * negative[:, 0].sum()) / 6
    torch.testing.assert_close(outputs.losses["itm"].detach(), matching, **CLOSE)
    assert own.shape == (2,)
    outputs.loss.backward()
    assert model.itm_head.weight.grad.any()


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"pixel_values": None}, "two sides of pairs"),
        ({"input_ids": None}, "two sides of pairs"),
        ({"image_bool_masked_pos": None}, "visual_token_ids are the targets of hidden patches: give bool_masked_pos"),
        ({"bool_masked_pos": torch.zeros(2, 5, dtype=torch.bool)}, r"\(images, patches\), \(2, 4\).*not \(2, 5\)"),
        ({"visual_token_ids": torch.zeros(2, 16, dtype=torch.long)}, r"\(2, 4\), not \(2, 16\)"),
        ({"visual_token_ids": torch.full((2, 4), VISUAL_VOCAB_SIZE)}, "visual_vocab_size must be the number of codes"),
        ({"image_visual_token_ids": torch.full((3, 4), -1)}, "lie between -1 and -1"),
        ({"image_visual_token_ids": torch.zeros(3, 4)}, "must be whole numbers, not torch.float32"),
        ({"text_labels": torch.zeros(7, 2, dtype=torch.long)}, r"the shape of the texts, \(2, 7\), not \(7, 2\)"),
        ({"text_attention_mask": torch.ones(2, 5)}, r"the shape of the texts, \(2, 7\), not \(2, 5\)"),
        ({"text_input_ids": None}, "text_labels are targets of inputs that are not given"),
        ({"image_pixel_values": None}, "image_visual_token_ids are targets of inputs that are not given"),
    ),
)
def test_wrong_inputs_say_what_was_expected(model, inputs, changes, message):
    with pytest.raises(ValueError, match=message):
        model(**{**inputs, **changes})


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int16, torch.int32, torch.uint16))
def test_visual_tokens_may_be_of_any_integer_type(model, inputs, dtype):
    expected = run(model, inputs)["loss"]
    ids = {name: inputs[name].to(dtype) for name in ("visual_token_ids", "image_visual_token_ids")}
    assert run(model, {**inputs, **ids})["loss"] == expected


@pytest.mark.parametrize(
    "labels, message",
    (
        (torch.tensor([1, -5]), "lie between -5 and 1, the head has answers 0 to 2"),
        (torch.tensor([0, 3]), "lie between 0 and 3"),
        (torch.zeros(2, 4), r"scores of shape \(2, 3\).*not torch.float32 of shape \(2, 4\)"),
        (torch.zeros(2), "whole numbers"),
    ),
)
def test_answers_that_the_head_does_not_have_are_refused(inputs, labels, message):
    model = make_model(VlBeitForVisualQuestionAnswering, num_labels=3)
    with pytest.raises(ValueError, match=message):
        model(inputs["input_ids"], pixel_values=inputs["pixel_values"], labels=labels)


@pytest.mark.parametrize("model_class", (VlBeitForImageClassification, VlBeitForImagesAndTextClassification))
@pytest.mark.parametrize("choice", ({"num_labels": 1}, {"problem_type": "multi_label_classification"}))
def test_other_problems_than_one_of_several_classes_are_refused(model_class, choice):
    with pytest.raises(ValueError, match="one of at least two classes"):
        make_model(model_class, **choice)


def test_the_two_pictures_of_a_statement_are_told_apart(inputs):
    model = make_model(VlBeitForImagesAndTextClassification, type_vocab_size=3)
    model.vl_beit.token_type_embeddings.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    pictures = inputs["pixel_values"][:, None].repeat(1, 2, 1, 1, 1)
    pictures[:, 1] = pictures[:, 1].flip(-1)
    logits = run(model, {"input_ids": inputs["input_ids"], "pixel_values": pictures})["logits"]
    weight = model.vl_beit.token_type_embeddings.weight.data
    weight[2] = weight[1]  # the same type for both
    alike = run(model, {"input_ids": inputs["input_ids"], "pixel_values": pictures})["logits"]
    assert (logits - alike).abs().max() > 1e-4


@pytest.mark.parametrize("model_class", (VlBeitForMaskedImageModeling, VlBeitForImageTextRetrieval))
def test_a_missing_picture_is_told(model_class, inputs):
    with pytest.raises(ValueError, match=r"pixel_values must be of shape \(images, 3, 16, 16\), not None"):
        make_model(model_class)(**({"input_ids": inputs["input_ids"]} if "Text" in model_class.__name__ else {}))


def test_nothing_to_learn_from_is_an_error(model):
    with pytest.raises(ValueError, match="needs pairs, texts or pictures"):
        model()
