"""A VC-GPT of a few thousand random weights with its processor, and pictures for it: nothing is downloaded.

Weights are drawn wide, so that different pictures get different captions.
"""

import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration, VcGptProcessor
from hf_vlp.data.tokenization import train_gpt2_tokenizer

CAPTIONS = [
    f"a {colour} {shape} left of a blue {shape}" for colour in ("red", "green") for shape in ("circle", "cross")
]


def make_tiny_processor() -> VcGptProcessor:
    size = {"height": 16, "width": 16}
    image_processor = CLIPImageProcessorPil(size=size, crop_size=size)
    return VcGptProcessor(image_processor, train_gpt2_tokenizer(CAPTIONS, 300))


def make_tiny_model(seed: int = 0, **config_kwargs) -> VcGptForConditionalGeneration:
    end = len(make_tiny_processor().tokenizer) - 1
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    text = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": end + 1}
    config = VcGptConfig(
        vision_config=vision,
        text_config={**text, "bos_token_id": end, "eos_token_id": end},
        num_fusion_layers=1,
        fusion_num_heads=2,
        **config_kwargs,
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = VcGptForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.5)
    return model.eval()


def make_picture(seed: int = 0, size: int = 20) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, size, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())
