"""A model of a few thousand parameters, its processor, and pictures of one colour with captions."""

import torch
from PIL import Image
from transformers import CLIPImageProcessor

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration, VcGptProcessor
from hf_vlp.data.tokenization import train_gpt2_tokenizer

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 200, 30),
    "blue": (40, 40, 230),
    "white": (250, 250, 250),
    "black": (5, 5, 5),
    "yellow": (240, 230, 20),
}


def make_records(number: int) -> list[dict]:
    names = list(COLOURS)
    records = []
    for index in range(number):
        colour = names[index % len(names)]
        captions = [f"a {colour} square", f"one {colour} picture", f"{colour} everywhere", f"the {colour} thing"]
        records.append({"image": Image.new("RGB", (16, 16), COLOURS[colour]), "captions": captions, "image_id": index})
    return records


def make_processor() -> VcGptProcessor:
    captions = [caption for record in make_records(len(COLOURS)) for caption in record["captions"]]
    image_processor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    return VcGptProcessor(image_processor, train_gpt2_tokenizer(captions, 300))


def make_model(processor, *, seed: int = 0, dropout: float = 0.1, **options) -> VcGptForConditionalGeneration:
    end = processor.tokenizer.eos_token_id
    config = VcGptConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
        text_config={
            "n_embd": 16,
            "n_layer": 1,
            "n_head": 2,
            "n_positions": 32,
            "vocab_size": len(processor.tokenizer),
            "bos_token_id": end,
            "eos_token_id": end,
            "pad_token_id": end,
            "resid_pdrop": dropout,
            "embd_pdrop": dropout,
            "attn_pdrop": dropout,
        },
        num_fusion_layers=1,
        fusion_num_heads=2,
        fusion_dropout=dropout,
        fusion_attention_dropout=dropout,
        **options,
    )
    torch.manual_seed(seed)
    return VcGptForConditionalGeneration(config)


def parameters_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def different(first: dict, second: dict) -> list[str]:
    """Names of the parameters that are not bit-equal."""
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]
