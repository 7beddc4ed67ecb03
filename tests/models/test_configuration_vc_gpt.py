"""Configuration of VC-GPT: the common tests, and the rules that hold between its fields.

Own tests: defaults are the base model, token ids, one switch for tied heads, cross-attention of the vanilla variant.
"""

import pytest

from hf_vlp import VcGptConfig
from hf_vlp.models.vc_gpt.configuration_vc_gpt import PUBLISHED_SIZES
from tests.common.configuration import ConfigurationTests

VISION = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1, "image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 40, "n_embd": 12, "n_layer": 1, "n_head": 2, "n_positions": 16}


class TestVcGptConfig(ConfigurationTests):
    config_class = VcGptConfig
    published_sizes = PUBLISHED_SIZES
    other_values = {
        "vision_config": {**VISION, "intermediate_size": 32},
        "text_config": {**TEXT, "bos_token_id": 39, "eos_token_id": 38},
        "variant": "vanilla",
        "self_ensemble": False,
        "num_fusion_layers": 2,
        "fusion_num_heads": 3,
        "fusion_mlp_ratio": 2.5,
        "fusion_activation": "relu",
        "fusion_layer_norm_eps": 1e-6,
        "fusion_dropout": 0.2,
        "fusion_attention_dropout": 0,
        "visual_pairing": "final",
        "use_post_layernorm": True,
        "drop_class_token": True,
        "vision_stem": "convolution",
        "tie_word_embeddings": False,
        "initializer_range": 0.5,
        "bos_token_id": 37,
        "eos_token_id": [38, 36],
        "pad_token_id": 35,
        "use_cache": False,
    }
    bad_values = [
        ({"variant": "vcgpt"}, r"variant='vcgpt'.*'vc_gpt', 'vanilla'"),
        ({"visual_pairing": "last"}, r"visual_pairing='last'.*'layerwise', 'final'"),
        ({"vision_stem": "conv"}, r"vision_stem='conv'.*'patch', 'convolution'"),
        ({"num_fusion_layers": 0}, "num_fusion_layers=0"),
        ({"fusion_num_heads": 0}, "fusion_num_heads=0"),
        ({"fusion_num_heads": 7}, "fusion_num_heads=7"),
        ({"fusion_mlp_ratio": 0}, "fusion_mlp_ratio=0"),
        ({"fusion_mlp_ratio": 0.0001}, "fusion_mlp_ratio=0.0001"),
        ({"fusion_activation": "swoosh"}, "fusion_activation='swoosh'"),
        ({"fusion_layer_norm_eps": 0}, "fusion_layer_norm_eps=0"),
        ({"fusion_dropout": 1.0}, r"fusion_dropout=1.0"),
        ({"fusion_attention_dropout": -0.1}, "fusion_attention_dropout=-0.1"),
        ({"initializer_range": -0.02}, "initializer_range=-0.02"),
        ({"vision_config": {**VISION, "image_size": 30}}, r"image_size=30.*patch_size=8"),
        ({"vision_config": {**VISION, "patch_size": 0}}, "patch_size=0"),
        ({"vision_config": {**VISION, "num_hidden_layers": 0}}, "num_hidden_layers=0"),
        ({"text_config": {**TEXT, "n_head": 5}, "fusion_num_heads": 2}, r"n_embd=12.*5"),
        ({"text_config": {**TEXT, "vocab_size": 0}}, "vocab_size=0"),
        ({"text_config": {**TEXT, "n_positions": -1}}, "n_positions=-1"),
        ({"text_config": {**TEXT, "n_layer": 0}}, "n_layer=0"),
        (
            {"vision_config": {**VISION, "patch_size": 16, "image_size": 32}, "fusion_num_heads": 5},
            "fusion_num_heads=5",
        ),
        (
            {"vision_config": {**VISION, "patch_size": 6, "image_size": 36}, "vision_stem": "convolution"},
            "power of two.*6",
        ),
        (
            {"vision_config": {**VISION, "patch_size": 1, "image_size": 8}, "vision_stem": "convolution"},
            "power of two.*1",
        ),
    ]
    wrong_types = [
        {"num_fusion_layers": "3"},
        {"num_fusion_layers": 2.5},
        {"self_ensemble": "yes"},
        {"fusion_dropout": "0.1"},
        {"variant": None},
        {"vision_config": 3},
        {"text_config": "gpt2"},
        {"bos_token_id": "<|endoftext|>"},
    ]


def test_defaults_are_vit_b_16_and_gpt2_base():
    config = VcGptConfig()
    vision, text = config.vision_config, config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.image_size, vision.patch_size) == (768, 12, 224, 16)
    assert (text.hidden_size, text.num_hidden_layers, text.vocab_size) == (768, 12, 50257)
    assert (config.num_fusion_layers, config.fusion_num_heads) == (6, 12)


def test_large_size_has_wider_vision_than_text():
    config = VcGptConfig(**PUBLISHED_SIZES["large-patch14"])
    assert config.vision_config.hidden_size == 1024
    assert config.vision_config.patch_size == 14
    assert config.text_config.hidden_size == 768


def test_token_ids_are_those_of_the_language_model():
    config = VcGptConfig(text_config={**TEXT, "bos_token_id": 1, "eos_token_id": 2}, fusion_num_heads=2)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 2)


def test_padding_is_the_first_of_several_end_tokens():
    config = VcGptConfig(text_config=TEXT, fusion_num_heads=2, bos_token_id=1, eos_token_id=[3, 4])
    assert config.pad_token_id == 3


@pytest.mark.parametrize("tie", [True, False])
def test_one_switch_ties_both_configurations(tie):
    config = VcGptConfig(
        text_config={**TEXT, "tie_word_embeddings": not tie}, fusion_num_heads=2, tie_word_embeddings=tie
    )
    assert config.text_config.tie_word_embeddings is tie


@pytest.mark.parametrize("variant, crossing", [("vc_gpt", False), ("vanilla", True)])
def test_only_the_vanilla_variant_has_cross_attention_in_gpt2(variant, crossing):
    config = VcGptConfig(
        text_config={**TEXT, "add_cross_attention": not crossing}, fusion_num_heads=2, variant=variant
    )
    assert config.text_config.add_cross_attention is crossing


def test_fusion_heads_do_not_bind_the_vanilla_variant():
    assert VcGptConfig(text_config=TEXT, fusion_num_heads=5, variant="vanilla").fusion_num_heads == 5


@pytest.mark.parametrize("patch_size", [16, 32])
def test_patch_size_survives_saving(patch_size, tmp_path):
    """16 is our default and 32 is CLIP's: neither may be left out of the file and be filled by the other."""
    VcGptConfig(vision_config={"patch_size": patch_size}).save_pretrained(tmp_path)
    assert VcGptConfig.from_pretrained(tmp_path).vision_config.patch_size == patch_size


def test_vision_fields_that_are_not_given_are_those_of_the_base_model():
    assert VcGptConfig(vision_config={"image_size": 384}).vision_config.patch_size == 16
