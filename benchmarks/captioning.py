"""Captioning speed of VC-GPT, side by side with the library's own ways.

    python benchmarks/captioning.py [--size base] [--rounds 3] [--batch_sizes 1 8] [--device cpu] [--dtype float32]

Four ways to caption the same pictures with as many tokens each, random weights, greedy and with five beams:

* ours: visual keys and values held once per image (`VcGptCache`);
* repeated: the same model, its visual keys and values repeated per beam and reordered at each step, as
  `EncoderDecoderCache` does; pictures still encoded once;
* expanded: the same model under the stock `generate`, which repeats the pictures themselves before they are encoded;
* VED: `VisionEncoderDecoderModel` with the same towers. It has no fusion module and one vocabulary head, so it does
  less work per token.

The four run in turn within each round; times are medians over the rounds, ratios are medians of the rounds' ratios.
The outputs of the first three are checked to be equal. Visual cache sizes are counted from the cached tensors.
"""

import argparse
import statistics
from functools import partial

import torch
from timing import timed
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DynamicCache,
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
)
from transformers.cache_utils import EncoderDecoderCache

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration
from hf_vlp.models.vc_gpt.modeling_vc_gpt import VcGptCache

SPECIAL = {"bos_token_id": 0, "eos_token_id": 0}

SIZES = {
    "base": {
        "vision_config": {"patch_size": 16},
        "text_config": {},
        "num_fusion_layers": 6,
        "fusion_num_heads": 12,
    },
    "small": {
        "vision_config": {
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "patch_size": 16,
        },
        "text_config": {"n_embd": 256, "n_layer": 4, "n_head": 4, "vocab_size": 8000, **SPECIAL},
        "num_fusion_layers": 4,
        "fusion_num_heads": 4,
    },
}


class RepeatingCache(DynamicCache):
    """Keys and values of an image, once per beam."""

    def __init__(self, repeats: int):
        super().__init__()
        self.repeats = repeats

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        key_states = key_states.repeat_interleave(self.repeats, dim=0)
        value_states = value_states.repeat_interleave(self.repeats, dim=0)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class RepeatedVisualCache(VcGptCache):
    """What the library's cache does: the visual part has one row per beam and is reordered like the text."""

    def __init__(self, repeats: int):
        super().__init__(DynamicCache())
        self.cross_attention_cache = RepeatingCache(repeats)

    reorder_cache = EncoderDecoderCache.reorder_cache


class StockExpansion(VcGptForConditionalGeneration):
    """The model under the stock `generate`: pictures are repeated per beam before they are encoded."""

    _expand_inputs_for_generation = GenerationMixin._expand_inputs_for_generation

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if isinstance(cache, VcGptCache):
            cache.__class__ = ReorderedVisualCache


class ReorderedVisualCache(VcGptCache):
    reorder_cache = EncoderDecoderCache.reorder_cache


def caption_with_repeated_cache(model, **options):
    return model.generate(past_key_values=RepeatedVisualCache(options["num_beams"]), **options)


def visual_bytes(cache: EncoderDecoderCache) -> int:
    layers = cache.cross_attention_cache.layers
    return sum(tensor.numel() * tensor.element_size() for layer in layers for tensor in (layer.keys, layer.values))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--num_beams", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    config = VcGptConfig(**SIZES[arguments.size])
    place = {"device": arguments.device, "dtype": dtype}
    ours = VcGptForConditionalGeneration(config).eval().to(**place)
    with torch.no_grad():  # so that the picture decides the words, as in a trained model
        ours.fusion_lm_head.weight.normal_(std=1.0)
    expanded = StockExpansion(config).eval().to(**place)
    expanded.load_state_dict(ours.state_dict())
    decoder = GPT2LMHeadModel(GPT2Config(**SIZES[arguments.size]["text_config"], add_cross_attention=True))
    encoder = CLIPVisionModel(CLIPVisionConfig(**SIZES[arguments.size]["vision_config"]))
    ved = VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).eval().to(**place)
    ved.config.decoder_start_token_id = decoder.config.bos_token_id
    ved.config.pad_token_id = decoder.config.eos_token_id
    ved.generation_config.decoder_start_token_id = decoder.config.bos_token_id

    print(
        f"VC-GPT {arguments.size}, {sum(p.numel() for p in ours.parameters()) / 1e6:.0f} M parameters; "
        f"VED {sum(p.numel() for p in ved.parameters()) / 1e6:.0f} M; {arguments.new_tokens} new tokens; "
        f"{arguments.device}, {arguments.dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"median of {arguments.rounds} rounds"
    )
    columns = ["batch", "beams", "ours, images/s", "repeated", "expanded", "VED"]
    columns += ["ours/repeated", "ours/expanded", "ours/VED", "visual cache, ours : repeated"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    size = config.vision_config.image_size
    for batch_size in arguments.batch_sizes:
        pictures = torch.randn(batch_size, 3, size, size, **place)
        for num_beams in (1, arguments.num_beams):
            options = {
                "max_new_tokens": arguments.new_tokens,
                "min_new_tokens": arguments.new_tokens,
                "num_beams": num_beams,
                "do_sample": False,
                "pad_token_id": config.pad_token_id,
                "return_dict_in_generate": True,
            }
            ways = {
                "ours": partial(ours.generate, pixel_values=pictures, **options),
                "repeated": partial(caption_with_repeated_cache, ours, pixel_values=pictures, **options),
                "expanded": partial(expanded.generate, pixel_values=pictures, **options),
                "VED": partial(ved.generate, pixel_values=pictures, **options),
            }
            times, results = {name: [] for name in ways}, {}
            for round_number in range(arguments.rounds + 1):
                for name, way in ways.items():
                    seconds, results[name] = timed(way, arguments.device)
                    if round_number:  # the first round warms up
                        times[name].append(seconds)
            if arguments.dtype == "float32":
                for name in ("repeated", "expanded"):
                    assert results[name].sequences.equal(results["ours"].sequences), f"{name} differs from ours"
            speed = {name: batch_size / statistics.median(seconds) for name, seconds in times.items()}
            ratio = {
                name: statistics.median(theirs / our for theirs, our in zip(times[name], times["ours"]))
                for name in ("repeated", "expanded", "VED")
            }
            bytes_ours = visual_bytes(results["ours"].past_key_values)
            bytes_repeated = visual_bytes(results["repeated"].past_key_values)
            print(
                f"| {batch_size} | {num_beams} | {speed['ours']:.2f} | {speed['repeated']:.2f} | "
                f"{speed['expanded']:.2f} | {speed['VED']:.2f} | {ratio['repeated']:.2f} | {ratio['expanded']:.2f} | "
                f"{ratio['VED']:.2f} | {bytes_ours / 2**20:.1f} MiB : {bytes_repeated / 2**20:.1f} MiB |",
                flush=True,
            )


if __name__ == "__main__":
    main()
