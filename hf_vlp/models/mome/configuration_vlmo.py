"""Configuration of VLMo."""

from huggingface_hub.dataclasses import strict

from .configuration_mome import MomeConfig

# Overrides of the defaults for the sizes of the published files.
PUBLISHED_SIZES = {
    "base": {},
    "base_plus": {
        "hidden_size": 544,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 2176,
        "vl_expert_start_layer": 21,
        "use_relative_position_bias": False,
        "use_absolute_position_embeddings": True,
        "layer_scale_init_value": None,
    },
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "vl_expert_start_layer": 21,
    },
}


@strict
class VlmoConfig(MomeConfig):
    """Sizes and choices of a VLMo model (Bao et al., 2022, arXiv 2111.02358); the defaults are the base model.

    mlm_loss_weight, itc_loss_weight, itm_loss_weight: of the three objectives of `VlmoForPreTraining`.

    All other fields are those of `MomeConfig`.
    """

    model_type = "vlmo"
    _other_starts = "To start from BEiT use VlmoModel.from_beit_pretrained."

    mlm_loss_weight: float | int = 0.25
    itc_loss_weight: float | int = 1.0
    itm_loss_weight: float | int = 1.0


__all__ = ["PUBLISHED_SIZES", "VlmoConfig"]
