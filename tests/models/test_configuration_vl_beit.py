"""Configurations of VL-BEiT and of its visual tokenizer: the common tests, and the sizes of VL-BEiT.

Fields that VL-BEiT shares with VLMo take the values of its tests. Own tests: the sizes are BEiT's, with the experts of
VLMo; what this package decided is said in the documentation.
"""

import pytest

from hf_vlp import VlBeitConfig, VlBeitVqkdConfig, VlmoConfig
from hf_vlp.models.mome.configuration_vl_beit import VL_BEIT_SIZES
from hf_vlp.models.mome.configuration_vlmo import PUBLISHED_SIZES
from tests.common.configuration import ConfigurationTests
from tests.models import test_configuration_vlmo as vlmo


class TestVlBeitConfig(ConfigurationTests):
    config_class = VlBeitConfig
    published_sizes = VL_BEIT_SIZES
    other_values = {
        **vlmo.TestVlmoConfig.other_values,
        "rescale_by_depth": False,
        "mim_loss_weight": 0.5,
        "mvlm_text_loss_weight": 2,
        "mvlm_image_loss_weight": 0,
        "mlm_loss_weight": 0.25,
        "out_indices": [0, 1, 1, 2],
        "decoder_hidden_size": 8,
        "pool_scales": [1, 2],
        "decoder_dropout": 0,
        "auxiliary_loss_weight": 0,
        "auxiliary_channels": 4,
        "auxiliary_num_convs": 2,
        "auxiliary_index": 1,
        "semantic_loss_ignore_index": -100,
    }
    bad_values = [
        *vlmo.TestVlmoConfig.bad_values,
        ({"visual_vocab_size": 0}, "visual_vocab_size=0"),
        ({"mvlm_image_loss_weight": -1}, "mvlm_image_loss_weight=-1"),
        ({"out_indices": [3, 5, 7]}, r"out_indices=\[3, 5, 7\].*four blocks"),
        ({"out_indices": [3, 5, 7, 12]}, r"out_indices=\[3, 5, 7, 12\].*0 to 11"),
        ({"decoder_hidden_size": 0}, "decoder_hidden_size=0"),
        ({"pool_scales": []}, r"pool_scales=\[\]"),
        ({"pool_scales": [0, 2]}, r"pool_scales=\[0, 2\]"),
        ({"decoder_dropout": 1.0}, "decoder_dropout=1.0"),
        ({"auxiliary_num_convs": 0}, "auxiliary_num_convs=0"),
        ({"auxiliary_index": 4}, "auxiliary_index=4"),
    ]
    wrong_types = [
        *vlmo.TestVlmoConfig.wrong_types,
        {"rescale_by_depth": "yes"},
        {"out_indices": 3},
        {"decoder_hidden_size": "768"},
    ]


class TestVlBeitVqkdConfig(ConfigurationTests):
    config_class = VlBeitVqkdConfig
    other_values = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
        "num_channels": 1,
        "codebook_size": 12,
        "code_dim": 4,
        "hidden_act": "relu",
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.5,
        "drop_path_rate": 0.3,
        "decoder_num_hidden_layers": 1,
        "target": "pixels",
        "target_dim": 6,
        "codebook_decay": 0.5,
        "revive_below": 0,
        "commitment_loss_weight": 2,
    }
    bad_values = [
        ({"codebook_size": 0}, "codebook_size=0"),
        ({"hidden_size": 100}, r"hidden_size=100.*num_attention_heads=12"),
        ({"image_size": 225}, "image_size=225.*patch_size=16"),
        ({"target": "words"}, "target='words'.*'features', 'pixels'"),
        ({"hidden_act": "swoosh"}, "hidden_act='swoosh'"),
        ({"layer_norm_eps": 0}, "layer_norm_eps=0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0"),
        ({"codebook_decay": 1.0}, "codebook_decay=1.0"),
        ({"commitment_loss_weight": -1}, "commitment_loss_weight=-1"),
    ]
    published_sizes = {"vqkd_encoder_base_decoder_3x768x12_clip": {}}
    wrong_types = [{"code_dim": "32"}, {"target": None}, {"image_size": [224, 224]}]


@pytest.mark.parametrize(
    ("size", "sizes", "scale"), (("base", (768, 12, 12, 3072), 0.1), ("large", (1024, 24, 16, 4096), 1e-5))
)
def test_sizes_are_those_of_beit_with_the_experts_of_vlmo(size, sizes, scale):
    config = VlBeitConfig(**VL_BEIT_SIZES[size])
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert tuple(getattr(config, name) for name in names) == sizes
    assert config.layer_scale_init_value == scale
    assert config.vl_expert_start_layer == VlmoConfig(**PUBLISHED_SIZES[size]).vl_expert_start_layer


def test_decisions_are_told_where_they_are_changed():
    told = " ".join(VlBeitConfig.__doc__.split())
    assert "Decisions of this package, where its sources are silent: the sizes; LayerScale" in told
    assert all(word in told for word in ("relative bias", "BERT's", "weights of the losses", "share", "every expert"))
