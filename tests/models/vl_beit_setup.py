"""A VL-BEiT of three blocks, the last with a vision-language expert, and a batch of all three sources."""

import torch

from hf_vlp import VlBeitConfig

VOCAB_SIZE = 40
VISUAL_VOCAB_SIZE = 11
MASK_TOKEN_ID = 3
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "visual_vocab_size": VISUAL_VOCAB_SIZE,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vl_expert_start_layer": 2,
    "image_size": 16,
    "patch_size": 8,
    "max_text_length": 12,
    "max_text_length_of_table": 14,
    "drop_path_rate": 0.3,
}


def make_model(model_class, seed: int = 0, **choices):
    """In evaluation mode, every parameter moved away from its initial value."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = model_class(VlBeitConfig(**{**SIZES, **choices}))
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def masked_texts(rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Texts of seven tokens with two masked words; the last one has padding."""
    input_ids = torch.randint(4, VOCAB_SIZE, (rows, 7), generator=generator)
    input_ids[-1, 5:] = 0
    chosen = torch.zeros_like(input_ids, dtype=torch.bool)
    chosen[:, 2:4] = True
    return {
        "input_ids": input_ids.masked_fill(chosen, MASK_TOKEN_ID),
        "attention_mask": (input_ids != 0).long(),
        "labels": input_ids.masked_fill(~chosen, -100),
    }


def masked_pictures(config: VlBeitConfig, rows: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Pictures of which every second patch is hidden, from the first or the second on."""
    patches = config.window_size**2
    return {
        "pixel_values": torch.randn(rows, 3, config.image_size, config.image_size, generator=generator),
        "bool_masked_pos": (torch.arange(patches)[None] + torch.arange(rows)[:, None]) % 2 == 0,
        "visual_token_ids": torch.randint(config.visual_vocab_size, (rows, patches), generator=generator),
    }


def joint_batch(config: VlBeitConfig, pairs: int = 2, texts: int = 2, pictures: int = 3, seed: int = 0) -> dict:
    """A batch of `VlBeitForPreTraining`."""
    generator = torch.Generator().manual_seed(seed)
    alone = {"text": masked_texts(texts, generator), "image": masked_pictures(config, pictures, generator)}
    return {
        **masked_texts(pairs, generator),
        **masked_pictures(config, pairs, generator),
        **{f"{source}_{name}": value for source, part in alone.items() for name, value in part.items()},
    }
