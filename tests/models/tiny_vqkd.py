"""Visual tokenizers of a few thousand parameters."""

import torch

from hf_vlp.models.mome.configuration_vl_beit_vqkd import VlBeitVqkdConfig
from hf_vlp.models.mome.modeling_vl_beit_vqkd import VlBeitVqkdForTraining, VlBeitVqkdTokenizer

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 4,
    "codebook_size": 12,
    "code_dim": 4,
    "decoder_num_hidden_layers": 1,
    "target": "pixels",
    "target_dim": 6,
    "initializer_range": 0.25,
}


def make_tokenizer(*, seed: int = 0, model_class=VlBeitVqkdTokenizer, **options):
    torch.manual_seed(seed)
    return model_class(VlBeitVqkdConfig(**{**SIZES, **options})).eval()


def make_training_model(*, seed: int = 0, **options) -> VlBeitVqkdForTraining:
    return make_tokenizer(seed=seed, model_class=VlBeitVqkdForTraining, **options)


def make_pixels(number: int = 3, *, seed: int = 0, side: int = SIZES["image_size"]) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(seed))
