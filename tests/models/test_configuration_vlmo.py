"""Configuration of VLMo: the common tests, and the published sizes.

Own tests: parameters of the published sizes, a window counts patches, stage 2 has no vision-language expert.
"""

import pytest
import torch

from hf_vlp import VlmoConfig, VlmoForPreTraining, VlmoModel
from hf_vlp.models.mome.configuration_vlmo import PUBLISHED_SIZES
from tests.common.configuration import ConfigurationTests


class TestVlmoConfig(ConfigurationTests):
    config_class = VlmoConfig
    published_sizes = PUBLISHED_SIZES
    other_values = {
        "vocab_size": 40,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vl_expert_start_layer": 2,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 1,
        "max_text_length": 12,
        "max_text_length_of_table": 20,
        "use_relative_position_bias": False,
        "use_absolute_position_embeddings": True,
        "layer_scale_init_value": None,
        "type_vocab_size": 3,
        "text_type_vocab_size": 1,
        "drop_path_rate": 0.3,
        "text_dropout": 0,
        "vision_stem": "convolution",
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "text_layer_norm_eps": 1e-6,
        "initializer_range": 0.5,
        "logit_scale_init_value": 1,
        "mlm_loss_weight": 1,
        "itc_loss_weight": 0.5,
        "itm_loss_weight": 0,
        "use_matching_head": False,
        "visual_vocab_size": 7,
        "tie_word_embeddings": True,
        "pad_token_id": 3,
    }
    bad_values = [
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"hidden_size": 100}, r"hidden_size=100.*num_attention_heads=12"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
        ({"intermediate_size": -1}, "intermediate_size=-1"),
        ({"vl_expert_start_layer": 13}, "vl_expert_start_layer=13.*12"),
        ({"vl_expert_start_layer": -1}, "vl_expert_start_layer=-1"),
        ({"image_size": 225}, "image_size=225.*patch_size=16"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"num_channels": 0}, "num_channels=0"),
        ({"max_text_length": 197}, "max_text_length=197.*196"),
        ({"max_text_length_of_table": 0}, "max_text_length_of_table=0"),
        ({"type_vocab_size": 1}, "type_vocab_size=1"),
        ({"text_type_vocab_size": 0}, "text_type_vocab_size=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"text_dropout": -0.1}, "text_dropout=-0.1"),
        ({"vision_stem": "conv"}, r"vision_stem='conv'.*'patch', 'convolution'"),
        ({"hidden_act": "swoosh"}, "hidden_act='swoosh'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps=0"),
        ({"text_layer_norm_eps": 0}, "text_layer_norm_eps=0"),
        ({"initializer_range": -0.02}, "initializer_range=-0.02"),
        ({"itc_loss_weight": -1}, "itc_loss_weight=-1"),
        ({"patch_size": 12, "image_size": 24, "vision_stem": "convolution"}, "power of two.*12"),
    ]
    wrong_types = [
        {"num_hidden_layers": "3"},
        {"num_hidden_layers": 2.5},
        {"use_relative_position_bias": "yes"},
        {"drop_path_rate": "0.1"},
        {"vision_stem": None},
        {"image_size": [224, 224]},
        {"pad_token_id": "[PAD]"},
    ]


@pytest.mark.parametrize(
    ("size", "model_class", "millions"),
    (
        ("base", VlmoForPreTraining, 202.4),
        ("base_plus", VlmoForPreTraining, 185.0),
        ("large", VlmoForPreTraining, 599.1),
        ("base", VlmoModel, 176.0),
    ),
)
def test_published_sizes_have_the_published_number_of_parameters(size, model_class, millions):
    """Figures of the released code for the stage-3 model; the base model alone counts its pooler too."""
    with torch.device("meta"):
        model = model_class(VlmoConfig(**PUBLISHED_SIZES[size]))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_window_counts_patches_along_a_side():
    assert VlmoConfig(image_size=480).window_size == 30


def test_first_expert_behind_the_last_block_means_none():
    config = VlmoConfig(num_hidden_layers=2, vl_expert_start_layer=2)
    with torch.device("meta"):
        model = VlmoModel(config)
    assert not any("vl" in layer.experts for layer in model.layers)
