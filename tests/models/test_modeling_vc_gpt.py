"""VC-GPT: the common tests for every choice of its configuration, and what only VC-GPT promises.

Own tests: captions of one image share it, both vocabulary heads count, the loss follows `num_items_in_batch`,
freezing, parameter groups, weight decay, wrong inputs.
"""

import torch

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration, VcGptModel
from tests.common.adapters import AdapterTests
from tests.common.generation import GenerationTests
from tests.common.modeling import ModelingTests
from tests.common.training import TrainingTests

VOCAB_SIZE = 40
END = 39


class VcGptSetup:
    """A VC-GPT of a few thousand parameters and its inputs."""

    variants = {
        "vc_gpt": {},
        "final_pairing": {"visual_pairing": "final"},
        "no_self_ensemble": {"self_ensemble": False},
        "vanilla": {"variant": "vanilla"},
        "convolution_stem": {"vision_stem": "convolution"},
        "other_widths": {"vision_dim": 24},
        "untied_head": {"tie_word_embeddings": False},
        "patches_after_norm": {"drop_class_token": True, "use_post_layernorm": True},
    }
    padding_values = {"input_ids": END, "attention_mask": 0, "labels": -100}
    text_outputs = ("logits",)
    plainly_initialised = r"\b(vision_model|language_model)\."

    def make_config(self, vision_dim: int = 16, **choices) -> VcGptConfig:
        return VcGptConfig(
            vision_config={
                "hidden_size": vision_dim,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            text_config={
                "vocab_size": VOCAB_SIZE,
                "n_positions": 32,
                "n_embd": 16,
                "n_layer": 2,
                "n_head": 2,
                "bos_token_id": END,
                "eos_token_id": END,
            },
            num_fusion_layers=2,
            fusion_num_heads=4,
            **choices,
        )

    def make_inputs(self, config, rows: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        size = config.vision_config.image_size
        input_ids = torch.randint(0, VOCAB_SIZE - 1, (rows, 7), generator=generator)
        input_ids[-1, 5:] = END
        attention_mask = torch.ones_like(input_ids)
        attention_mask[-1, 5:] = 0
        labels = input_ids.masked_fill(attention_mask == 0, -100)
        labels[:, 0] = -100
        return {
            "pixel_values": torch.randn(rows, 3, size, size, generator=generator),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
        }

    def expected_shapes(self, config, inputs):
        rows, length = inputs["input_ids"].shape
        tokens = 4 if config.drop_class_token else 5
        state, image_state = (rows, length, 16), (rows, tokens, 16)
        language = [(rows, 2, length, length)] * 2
        if config.variant == "vanilla":
            return {
                "hidden_states": [state] * 3,
                "attentions": language,
                "cross_attentions": [(rows, 2, length, tokens)] * 2,
            }
        return {
            "hidden_states": [state] * 5,  # embeddings, two blocks of GPT-2, two fusion layers
            "attentions": language + [(rows, 4, length, length)] * 2,
            "cross_attentions": [(rows, 4, length, tokens)] * 2,
            "image_hidden_states": [image_state] * 3,
            "image_attentions": [(rows, 4, tokens, tokens)] * 2,
        }


class TestVcGptForConditionalGeneration(VcGptSetup, ModelingTests, GenerationTests, AdapterTests, TrainingTests):
    model_class = VcGptForConditionalGeneration
    base_model_class = VcGptModel
    auto_class = "AutoModelForImageTextToText"
    vocabulary_outputs = ("logits", "single_modal_logits", "cross_modal_logits")
    selected = {
        "half_precision|device_map|save_that_fails|shards|inductor": ("vc_gpt",),
        "compiled": ("vc_gpt", "vanilla"),
        # Each kind of cache and head; the other variants differ before or beside the text path.
        "caption|picture|prompt": ("vc_gpt", "final_pairing", "no_self_ensemble", "vanilla", "untied_head"),
        "adapter|merged": ("vc_gpt",),
        "resumed": ("vc_gpt", "vanilla", "convolution_stem"),
        "accumulated": ("vc_gpt", "vanilla"),
    }

    def export_calls(self, model):
        calls = super().export_calls(model)
        pictures = {"pixel_values": calls["forward"]["inputs"]["pixel_values"]}
        options = {"max_new_tokens": 6, "num_beams": 2}
        calls["forward"]["inputs"].pop("labels")
        return {**calls, "captions": {"method": "generate", "inputs": pictures, "options": options}}
