"""VC-GPT: the common tests for every choice of its configuration, and what only VC-GPT promises.

Own tests: every choice counts, both vocabulary heads, captions that share an image (values, gradients, reordered
caches), text in several calls, other forms of the inputs, the loss, wrong inputs, parameter groups, freezing, adapters
in a frozen tower, weight decay, what saving leaves alone, CLIP's last norm.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration, VcGptModel
from hf_vlp.adapters import apply_lora
from tests.common.adapters import AdapterTests
from tests.common.generation import GenerationTests
from tests.common.modeling import ModelingTests
from tests.common.setup import assert_same, different, run, states_of
from tests.common.training import TrainingTests

VOCAB_SIZE = 40
END = 39


class VcGptSetup:
    """A VC-GPT of a few thousand parameters and its inputs."""

    variants = {
        "vc_gpt": {},
        "final_pairing": {"visual_pairing": "final"},
        "no_self_ensemble": {"self_ensemble": False},
        "vanilla": {"variant": "vanilla"},
        "convolution_stem": {"vision_stem": "convolution"},
        "other_widths": {"vision_dim": 24},
        "untied_head": {"tie_word_embeddings": False},
        "patches_after_norm": {"drop_class_token": True, "use_post_layernorm": True},
    }
    padding_values = {"input_ids": END, "attention_mask": 0, "labels": -100}
    text_outputs = ("logits",)
    plainly_initialised = r"\b(vision_model|language_model)\."

    def make_config(self, vision_dim: int = 16, **choices) -> VcGptConfig:
        return VcGptConfig(
            vision_config={
                "hidden_size": vision_dim,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            text_config={
                "vocab_size": VOCAB_SIZE,
                "n_positions": 32,
                "n_embd": 16,
                "n_layer": 2,
                "n_head": 2,
                "bos_token_id": END,
                "eos_token_id": END,
            },
            num_fusion_layers=2,
            fusion_num_heads=4,
            **choices,
        )

    def make_inputs(self, config, rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = config.vision_config.image_size
        input_ids = torch.randint(0, VOCAB_SIZE - 1, (rows, 7), generator=generator)
        input_ids[-1, 5:] = END
        attention_mask = torch.ones_like(input_ids)
        attention_mask[-1, 5:] = 0
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, 0] = -100
        return {
            "pixel_values": torch.randn(rows, 3, size, size, generator=generator),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
        }

    def expected_shapes(self, config, inputs):
        rows, length = inputs["input_ids"].shape
        tokens = 4 if config.drop_class_token else 5
        state, image_state = (rows, length, 16), (rows, tokens, 16)
        language = [(rows, 2, length, length)] * 2
        if config.variant == "vanilla":
            return {
                "hidden_states": [state] * 3,
                "attentions": language,
                "cross_attentions": [(rows, 2, length, tokens)] * 2,
            }
        return {
            "hidden_states": [state] * 5,  # embeddings, two blocks of GPT-2, two fusion layers
            "attentions": language + [(rows, 4, length, length)] * 2,
            "cross_attentions": [(rows, 4, length, tokens)] * 2,
            "image_hidden_states": [image_state] * 3,
            "image_attentions": [(rows, 4, tokens, tokens)] * 2,
        }


class TestVcGptForConditionalGeneration(VcGptSetup, ModelingTests, GenerationTests, AdapterTests, TrainingTests):
    model_class = VcGptForConditionalGeneration
    base_model_class = VcGptModel
    auto_class = "AutoModelForImageTextToText"
    vocabulary_outputs = ("logits", "single_modal_logits", "cross_modal_logits")
    selected = {
        "half_precision|device_map|save_that_fails|shards|inductor": ("vc_gpt",),
        "compiled": ("vc_gpt", "vanilla"),
        # Each kind of cache and head; the other variants differ before or beside the text path.
        "caption|picture|prompt": ("vc_gpt", "final_pairing", "no_self_ensemble", "vanilla", "untied_head"),
        "adapter|merged": ("vc_gpt",),
        "resumed": ("vc_gpt", "vanilla", "convolution_stem"),
        "accumulated": ("vc_gpt", "vanilla"),
    }

    def export_calls(self, model):
        calls = super().export_calls(model)
        pictures = {"pixel_values": calls["forward"]["inputs"]["pixel_values"]}
        options = {"max_new_tokens": 6, "num_beams": 2}
        calls["forward"]["inputs"].pop("labels")
        return {**calls, "captions": {"method": "generate", "inputs": pictures, "options": options}}


SETUP = TestVcGptForConditionalGeneration()
BOTH_KINDS = pytest.mark.parametrize("variant", ("vc_gpt", "vanilla"))


def test_every_choice_of_the_configuration_changes_the_model():
    """The same weights wherever names agree, and yet other logits: no choice is ignored."""
    base = SETUP.model_of("vc_gpt")
    inputs = SETUP.make_inputs(base.config)
    expected = run(base, inputs)["logits"]
    for variant in SETUP.variants:
        model = SETUP.model_of(variant)
        shared = {
            name: value
            for name, value in base.state_dict().items()
            if name in model.state_dict() and value.shape == model.state_dict()[name].shape
        }
        model.load_state_dict(shared, strict=False)
        same = torch.allclose(run(model, inputs)["logits"], expected, atol=1e-4)
        # An untied head that holds the same numbers gives the same logits.
        assert same == (variant in ("vc_gpt", "untied_head")), variant


def test_logits_are_the_sum_of_both_heads():
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.inputs_without_labels(model.config)
    outputs = run(model, inputs)
    torch.testing.assert_close(
        outputs["logits"], outputs["single_modal_logits"] + outputs["cross_modal_logits"], atol=1e-5, rtol=1e-5
    )
    fused = run(model, inputs, output_branch_logits=False)
    assert "single_modal_logits" not in fused
    assert "cross_modal_logits" not in fused
    torch.testing.assert_close(fused["logits"], outputs["logits"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "variant, head", (("no_self_ensemble", "cross_modal_logits"), ("vanilla", "single_modal_logits"))
)
def test_models_with_one_head_return_its_logits(variant, head):
    model = SETUP.model_of(variant)
    outputs = run(model, SETUP.inputs_without_labels(model.config))
    assert torch.equal(outputs["logits"], outputs[head])
    assert {"single_modal_logits", "cross_modal_logits"} & outputs.keys() == {head}


@BOTH_KINDS
def test_captions_of_an_image_share_it(variant):
    model = SETUP.model_of(variant)
    model.set_attn_implementation("eager")
    inputs = SETUP.make_inputs(model.config, rows=6)
    pictures = inputs.pop("pixel_values")[:2]
    options = {"output_attentions": True, "output_branch_logits": True}
    shared = run(model, {**inputs, "pixel_values": pictures}, **options)
    repeated = run(model, {**inputs, "pixel_values": pictures.repeat_interleave(3, dim=0)}, **options)
    names = {"loss", "logits", "single_modal_logits", "cross_modal_logits", "cross_attentions", "attentions"}
    assert_same(shared, repeated, atol=1e-5, rtol=1e-5, names=names)
    assert shared["image_embeds"].shape[0] == 2


@BOTH_KINDS
def test_gradient_of_a_shared_image_is_the_sum_over_its_captions(variant):
    model = SETUP.model_of(variant)
    inputs = SETUP.make_inputs(model.config, rows=6)
    picture = inputs.pop("pixel_values")[:2].requires_grad_()
    (shared,) = torch.autograd.grad(model(**inputs, pixel_values=picture).loss, picture)
    repeated = picture.detach().repeat_interleave(3, dim=0).requires_grad_()
    (separate,) = torch.autograd.grad(model(**inputs, pixel_values=repeated).loss, repeated)
    torch.testing.assert_close(shared, separate.view(2, 3, *picture.shape[1:]).sum(1), atol=1e-6, rtol=1e-4)


@BOTH_KINDS
@pytest.mark.parametrize("cut", (1, 4))
def test_text_in_two_calls_equals_one_call(variant, cut):
    model = SETUP.model_of(variant)
    inputs = SETUP.inputs_without_labels(model.config, rows=4)
    ids, mask, pictures = inputs["input_ids"].flip(1), inputs["attention_mask"].flip(1), inputs["pixel_values"][:2]
    whole = run(model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pictures})["logits"]
    with torch.no_grad():
        first = model(input_ids=ids[:, :cut], attention_mask=mask[:, :cut], pixel_values=pictures, use_cache=True)
        cache = first.past_key_values
        second = model(input_ids=ids[:, cut:], attention_mask=mask, past_key_values=cache, use_cache=True)
    found = torch.cat([first.logits, second.logits], dim=1)
    torch.testing.assert_close(found[mask.bool()], whole[mask.bool()], atol=1e-5, rtol=1e-5)
    assert second.image_embeds is None


@BOTH_KINDS
def test_encoded_pictures_and_embedded_words_are_the_same_inputs(variant):
    model = SETUP.model_of(variant)
    inputs = SETUP.make_inputs(model.config)
    expected = run(model, inputs)
    with torch.no_grad():
        embeds = model.get_image_features(inputs["pixel_values"]).pooler_output
        words = model.get_input_embeddings()(inputs["input_ids"])
    others = {name: inputs[name] for name in ("attention_mask", "labels")}
    assert_same(expected, run(model, {**others, "image_embeds": embeds, "inputs_embeds": words}))


def test_positions_do_not_count_padding():
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.inputs_without_labels(model.config)
    mask = inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 4]])
    given, counted = run(model, inputs, position_ids=positions)["logits"], run(model, inputs)["logits"]
    torch.testing.assert_close(given[mask.bool()], counted[mask.bool()])


@pytest.mark.parametrize("keep", (1, 3, torch.tensor([0, 2])), ids=str)
def test_logits_are_computed_only_where_asked(keep):
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.inputs_without_labels(model.config)
    whole = run(model, inputs)["logits"]
    expected = whole[:, -keep:] if isinstance(keep, int) else whole[:, keep]
    torch.testing.assert_close(run(model, inputs, logits_to_keep=keep)["logits"], expected, atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_over_targets_or_the_sum_over_a_given_number():
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.make_inputs(model.config)
    outputs = run(model, inputs)
    targets = inputs["labels"][:, 1:]
    log_probs = outputs["logits"][:, :-1].log_softmax(-1)
    chosen = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0][targets != -100]
    torch.testing.assert_close(outputs["loss"], -chosen.mean())
    given = run(model, inputs, num_items_in_batch=torch.tensor(100))
    torch.testing.assert_close(given["loss"], -chosen.sum() / 100)


def test_batch_without_targets_has_loss_zero():
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.make_inputs(model.config)
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert run(model, inputs)["loss"] == 0


def test_larger_pictures_need_interpolated_positions():
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.inputs_without_labels(model.config)
    inputs["pixel_values"] = torch.randn(2, 3, 24, 32)
    with pytest.raises(ValueError, match="size"):
        model(**inputs)
    assert run(model, inputs, interpolate_pos_encoding=True)["image_embeds"].shape == (2, 1 + 3 * 4, 16)


def test_mixed_precision_gives_both_heads_the_same_type():
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.make_inputs(model.config)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = run(model, inputs)
    assert mixed["logits"].dtype == torch.bfloat16
    torch.testing.assert_close(mixed["loss"].float(), run(model, inputs)["loss"], atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "changes, message",
    (
        ({"inputs_embeds": torch.zeros(2, 7, 16)}, "exactly one of the two"),
        ({"input_ids": None}, "exactly one of the two"),
        ({"pixel_values": None}, "pixel_values of shape"),
        ({"pixel_values": torch.zeros(3, 3, 16, 16)}, "2 rows of text do not divide evenly among 3 images"),
        ({"image_embeds": torch.zeros(0, 5, 16)}, "among 0 images"),
    ),
)
@BOTH_KINDS
def test_inputs_that_make_no_sense_are_refused(variant, changes, message):
    model = SETUP.model_of(variant)
    with pytest.raises(ValueError, match=message):
        model(**{**SETUP.make_inputs(model.config), **changes})


@pytest.mark.parametrize("begin", (0, 7))
def test_generate_begins_with_the_token_it_is_given(begin):
    model = SETUP.model_of("vc_gpt")
    ids = model.generate(**SETUP.pictures(model.config), bos_token_id=begin, max_new_tokens=2)
    assert ids[:, 0].tolist() == [begin] * 3


@pytest.mark.parametrize("variant", SETUP.variants)
def test_every_parameter_belongs_to_the_tower_it_came_from(variant):
    model = SETUP.model_of(variant)
    groups = {"vision": set(), "language": set(), "fusion": set()}
    for name, _ in model.named_parameters():
        groups[model.get_parameter_group(name)].add(name)
    assert all(name.startswith("model.vision_model.") for name in groups["vision"])
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in groups["language"])
    new = ("model.fusion.", "model.visual_proj.", "fusion_lm_head.")
    if variant == "vanilla":
        assert all("crossattention." in name or "ln_cross_attn." in name for name in groups["fusion"])
    else:
        assert all(name.startswith(new) for name in groups["fusion"])
    assert all(groups.values())


@BOTH_KINDS
@pytest.mark.parametrize("tower", ("vision", "language"))
def test_frozen_tower_gets_no_gradient_until_it_is_released(variant, tower):
    model = SETUP.model_of(variant)
    freeze = getattr(model, f"freeze_{tower}")
    freeze()
    model(**SETUP.make_inputs(model.config)).loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (model.get_parameter_group(name) == tower), name
    freeze(False)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_in_a_frozen_tower_train():
    model = SETUP.model_of("vc_gpt")
    model.freeze_vision()
    model = apply_lora(model, preset="vision", r=2)
    model(**SETUP.make_inputs(model.config)).loss.backward()
    adapters = [parameter for name, parameter in model.named_parameters() if ".lora_B." in name]
    assert adapters
    assert all(parameter.grad.any() for parameter in adapters)


def test_adapters_for_a_module_that_the_variant_lacks_are_refused():
    with pytest.raises(ValueError, match="match no module"):
        apply_lora(SETUP.model_of("vanilla"), preset="fusion")


def test_matrices_decay_and_vectors_do_not():
    model = SETUP.model_of("vc_gpt")
    names = model.no_weight_decay()
    assert {"model.fusion.ln_f.weight", "model.fusion.text_layers.0.mlp.fc1.bias"} <= names
    assert not names & {"lm_head.weight", "fusion_lm_head.weight", "model.language_model.wte.weight"}
    assert names == {name for name, parameter in model.named_parameters() if parameter.ndim == 1}


def test_resized_vocabulary_keeps_frozen_heads_frozen():
    model = SETUP.model_of("vc_gpt")
    model.freeze_language()
    model.fusion_lm_head.requires_grad_(False)
    model.resize_token_embeddings(VOCAB_SIZE + 8)
    assert not model.fusion_lm_head.weight.requires_grad
    assert model.fusion_lm_head.weight.shape == model.lm_head.weight.shape == (VOCAB_SIZE + 8, 16)


def test_reordered_text_keeps_its_picture():
    """What beam search does between two steps: the rows of an image change places among themselves."""
    model = SETUP.model_of("vc_gpt")
    inputs = SETUP.inputs_without_labels(model.config, rows=4)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    inputs["pixel_values"] = inputs["pixel_values"][:2]
    order = torch.tensor([1, 0, 3, 3])
    next_ids = torch.tensor([[1], [2], [3], [4]])
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
        cache.reorder_cache(order)
        found = model(input_ids=next_ids, past_key_values=cache, use_cache=True).logits[:, -1]
    whole = torch.cat([inputs["input_ids"][order], next_ids], dim=1)
    expected = run(model, {"input_ids": whole, "pixel_values": inputs["pixel_values"]})["logits"][:, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_saving_leaves_the_configuration_as_it_was(tmp_path):
    model = SETUP.model_of("vc_gpt")
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    after = model.config.to_dict()
    assert {name for name in after if after[name] != before.get(name)} <= {"architectures", "dtype"}
    assert before.keys() <= after.keys()


def test_other_processes_save_nothing(tmp_path):
    SETUP.model_of("vc_gpt").save_pretrained(tmp_path / "model", is_main_process=False)
    assert not list(tmp_path.rglob("*"))


def test_base_model_is_found_by_its_auto_class(tmp_path):
    model = SETUP.model_of("vc_gpt", model_class=VcGptModel)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert type(loaded) is VcGptModel
    inputs = SETUP.inputs_without_labels(model.config)
    assert_same(run(model, inputs), run(loaded, inputs))


def test_final_norm_of_clip_is_built_only_where_it_is_used(tmp_path):
    with_norm, without = SETUP.model_of("patches_after_norm"), SETUP.model_of("vc_gpt")
    assert any("post_layernorm" in name for name in with_norm.state_dict())
    assert not any("post_layernorm" in name for name in without.state_dict())
    with_norm.save_pretrained(tmp_path)
    _, report = VcGptForConditionalGeneration.from_pretrained(
        tmp_path, use_post_layernorm=False, output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_older_names_of_clip_are_read_and_not_written_again(tmp_path):
    """transformers renames them at loading and would rename them back at saving: Trainer could not resume."""
    model = SETUP.model_of("vc_gpt")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    older = {name.replace("vision_model.", "vision_model.vision_model."): value for name, value in weights.items()}
    assert older.keys() != weights.keys()
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = VcGptForConditionalGeneration.from_pretrained(tmp_path)
    assert different(states_of(model), states_of(loaded)) == []
    loaded.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == weights.keys()
