"""`VcGptForConditionalGeneration.from_vision_text_pretrained`: start from a CLIP and a GPT-2.

Covered: ids, folders and objects of every kind of CLIP and GPT-2 model give the towers' own outputs; what is new and
how it starts; objects are copied; data types; freezing; choices of the configuration; other architectures are refused.
An id is a name relative to the working directory here, which the library treats as it treats a name on the Hub.
"""

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
)

from hf_vlp import VcGptForConditionalGeneration

VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 4}
END = 39
KINDS = ("clip", "clip_vision", "clip_projection")


@pytest.fixture(scope="module")
def vision_models():
    """The same tower in the three kinds of model that hold it."""
    torch.manual_seed(0)
    clip_text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(vision_config=VISION, text_config={**clip_text, "vocab_size": 40})).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
    projection = CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()
    tower.load_state_dict(clip.vision_model.state_dict())
    projection.vision_model.load_state_dict(clip.vision_model.state_dict())
    return {"clip": clip, "clip_vision": tower, "clip_projection": projection}


@pytest.fixture(scope="module")
def text_models():
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**TEXT, bos_token_id=END, eos_token_id=END)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return {"gpt2_head": model, "gpt2": model.transformer}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vision_models, text_models):
    folder = tmp_path_factory.mktemp("towers")
    for name, model in {**vision_models, **text_models}.items():
        model.save_pretrained(folder / "someone" / name)
    config = BertConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder / "someone" / "bert")
    return folder


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(2)
    return {
        "pixel_values": torch.randn(2, 3, 16, 16, generator=generator),
        "input_ids": torch.randint(0, END, (2, 6), generator=generator),
    }


def build(vision, text, **options):
    return VcGptForConditionalGeneration.from_vision_text_pretrained(vision, text, num_fusion_layers=1, **options)


@torch.no_grad()
def assert_towers_are(model, vision_models, text_models, inputs):
    """Both towers compute what their originals compute."""
    pixel_values, input_ids = inputs["pixel_values"], inputs["input_ids"]
    expected = vision_models["clip_vision"](pixel_values).last_hidden_state
    assert torch.equal(model.model.vision_model(pixel_values).last_hidden_state, expected)
    expected = text_models["gpt2_head"](input_ids).logits
    torch.testing.assert_close(model(**inputs).single_modal_logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ("id", "folder", "object"))
def test_vision_tower_of_any_clip_model_gives_its_own_outputs(
    kind, form, folder, vision_models, text_models, inputs, monkeypatch
):
    monkeypatch.chdir(folder)
    vision = {"id": f"someone/{kind}", "folder": folder / "someone" / kind, "object": vision_models[kind]}[form]
    assert_towers_are(build(vision, text_models["gpt2_head"]), vision_models, text_models, inputs)


@pytest.mark.parametrize("kind", ("gpt2_head", "gpt2"))
@pytest.mark.parametrize("form", ("id", "folder", "object"))
def test_language_model_of_any_gpt2_gives_its_own_outputs(
    kind, form, folder, vision_models, text_models, inputs, monkeypatch
):
    monkeypatch.chdir(folder)
    text = {"id": f"someone/{kind}", "folder": folder / "someone" / kind, "object": text_models[kind]}[form]
    assert_towers_are(build(vision_models["clip"], text), vision_models, text_models, inputs)


def test_last_norm_of_clip_is_taken_over_where_it_is_used(vision_models, text_models, inputs):
    model = build(vision_models["clip"], text_models["gpt2"], use_post_layernorm=True, drop_class_token=True)
    with torch.no_grad():
        tower = vision_models["clip"].vision_model
        states = tower.post_layernorm(tower(inputs["pixel_values"]).last_hidden_state)[:, 1:]
        expected = model.model.visual_proj(states)
        torch.testing.assert_close(model(**inputs).image_embeds, expected)


def test_configuration_follows_the_towers(vision_models, text_models):
    config = build(vision_models["clip"], text_models["gpt2"], visual_pairing="final").config
    assert (config.vision_config.hidden_size, config.text_config.n_embd) == (24, 16)
    assert (config.fusion_num_heads, config.num_fusion_layers, config.visual_pairing) == (4, 1, "final")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (END, END, END)


def test_generation_starts_and_ends_with_the_tokens_of_the_language_model(vision_models, text_models, inputs):
    model = build(vision_models["clip"], text_models["gpt2_head"])
    generation = model.generation_config
    assert (generation.bos_token_id, generation.eos_token_id) == (END, END)
    ids = model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=3)
    assert ids[:, 0].tolist() == [END, END]


def test_new_modules_start_as_in_a_new_model(vision_models, text_models):
    model = build(vision_models["clip"], text_models["gpt2"], initializer_range=0.05)
    for name, parameter in model.named_parameters():
        if model.get_parameter_group(name) == "fusion" and parameter.numel() > 200:
            assert 0.04 < parameter.std() < 0.06, name
    assert model.lm_head.weight is model.model.language_model.wte.weight
    assert torch.equal(model.lm_head.weight, text_models["gpt2"].wte.weight)


def test_untied_head_starts_from_the_word_embedding(vision_models, text_models):
    model = build(vision_models["clip"], text_models["gpt2"], tie_word_embeddings=False)
    assert torch.equal(model.lm_head.weight, text_models["gpt2"].wte.weight)
    assert model.lm_head.weight is not model.model.language_model.wte.weight


def test_vanilla_model_keeps_the_language_model_and_adds_cross_attention(vision_models, text_models, inputs):
    model = build(vision_models["clip"], text_models["gpt2_head"], variant="vanilla")
    with torch.no_grad():
        for block in model.model.language_model.h:  # without what they add, GPT-2 is left
            block.crossattention.c_proj.weight.zero_()
            block.crossattention.c_proj.bias.zero_()
        expected = text_models["gpt2_head"](inputs["input_ids"]).logits
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)


def test_convolutional_stem_is_new_and_the_rest_of_the_tower_is_kept(vision_models, text_models):
    model = build(vision_models["clip"], text_models["gpt2"], vision_stem="convolution")
    kept = model.model.vision_model.state_dict()
    original = vision_models["clip"].vision_model.state_dict()
    missing = {name for name in original if name not in kept}
    assert {name.split(".")[0] for name in missing} == {"embeddings", "post_layernorm"}
    assert all(torch.equal(kept[name], value) for name, value in original.items() if name in kept)
    assert any("patch_embedding.layers" in name for name in kept)


def test_objects_are_copied(vision_models, text_models, inputs):
    clip, gpt2 = vision_models["clip"], text_models["gpt2_head"]
    before = {name: value.clone() for model in (clip, gpt2) for name, value in model.state_dict().items()}
    config = gpt2.config.to_dict()
    model = build(clip, gpt2, variant="vanilla")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    after = {name: value for model in (clip, gpt2) for name, value in model.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert gpt2.config.to_dict() == config


@pytest.mark.parametrize("dtype", (torch.bfloat16, "bfloat16", "float32", None), ids=str)
def test_weights_have_the_type_that_is_asked_for(dtype, vision_models, text_models):
    model = build(vision_models["clip"], text_models["gpt2"], dtype=dtype)
    expected = getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert not model.training


@pytest.mark.parametrize("vision, language", ((True, False), (False, True), (True, True), (False, False)))
def test_towers_are_frozen_on_request(vision, language, vision_models, text_models):
    model = build(vision_models["clip"], text_models["gpt2"], freeze_vision=vision, freeze_language=language)
    frozen = {
        model.get_parameter_group(name) for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    trained = {
        model.get_parameter_group(name) for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert frozen == {name for name, wanted in (("vision", vision), ("language", language)) if wanted}
    assert not frozen & trained
    assert "fusion" in trained


def test_model_from_parts_is_saved_and_loaded_whole(vision_models, text_models, inputs, tmp_path):
    model = build(vision_models["clip"], text_models["gpt2"])
    model.save_pretrained(tmp_path)
    loaded = VcGptForConditionalGeneration.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize("which", ("folder", "id", "object"))
def test_vision_tower_of_another_architecture_is_refused(which, folder, text_models, monkeypatch):
    monkeypatch.chdir(folder)
    other = {"folder": folder / "someone" / "bert", "id": "someone/gpt2", "object": text_models["gpt2"]}[which]
    with pytest.raises(TypeError, match=r"(?i)bert|gpt2"):
        build(other, text_models["gpt2"])


@pytest.mark.parametrize("which", ("folder", "id", "object"))
def test_language_model_of_another_architecture_is_refused(which, folder, vision_models, monkeypatch):
    monkeypatch.chdir(folder)
    other = {"folder": folder / "someone" / "bert", "id": "someone/clip", "object": vision_models["clip"]}[which]
    with pytest.raises(TypeError, match=r"(?i)bert|clip"):
        build(vision_models["clip"], other)


def test_text_tower_of_clip_is_no_vision_tower(vision_models, text_models, tmp_path):
    text_tower = CLIPTextModel(vision_models["clip"].config.text_config)
    text_tower.save_pretrained(tmp_path)
    for source in (text_tower, tmp_path):
        with pytest.raises(TypeError, match=r"(?i)clip_?text"):
            build(source, text_models["gpt2"])


def test_choices_that_do_not_fit_the_towers_are_refused(vision_models, text_models):
    with pytest.raises(ValueError, match="fusion_num_heads=5"):
        build(vision_models["clip"], text_models["gpt2"], fusion_num_heads=5)
