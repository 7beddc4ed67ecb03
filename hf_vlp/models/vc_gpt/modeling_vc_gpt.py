"""VC-GPT: image captioning with CLIP's vision tower, GPT-2 and a cross-modal fusion module above both.

Paper: Luo et al., "A Frustratingly Simple Approach for End-to-End Image Captioning" (first versions: "VC-GPT: Visual
Conditioned GPT for End-to-End Generative Vision-and-Language Pre-training"), https://arxiv.org/abs/2201.12723.
Reference weights: none were published, nor any code. Start from CLIP and GPT-2 and train the fusion module.

Differences from the paper and decisions of this package:

* norm placement, activation, widths, dropout, positions and depth of the fusion module are not in the paper; they
  follow GPT-2 (pre-norm, gelu_new, 4x, 0.1, none, 6 layers) and are fields of the configuration;
* text layer i attends to the visual stream after visual layer i; the paper's figure also allows the last layer only
  (`visual_pairing="final"`);
* the class token is kept and CLIP's post layer norm is not applied; both can be switched;
* GPT-2's vocabulary head stays tied to its word embedding; the paper states its initial value only;
* a convolutional stem is offered for training from nothing; it is not in the paper;
* rows of text may outnumber images: consecutive rows share an image, whose tokens, keys and values exist once.
"""

import copy
import math
import os
import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPModel,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    GenerationMixin,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedModel,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_vc_gpt import VcGptConfig
from .saving import SelfContainedSaving

DEFAULT_NEW_TOKENS = 20  # of `generate`; a decision of this package, enough for a caption


@dataclass
class VcGptFusionOutput(ModelOutput):
    """Output of the fusion module.

    last_hidden_state: text stream after the final norm, (rows, length, dim).
    hidden_states, attentions, cross_attentions: of the text layers, on request.
    image_hidden_states, image_attentions: of the visual layers, on request.
    """

    last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    image_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VcGptModelOutput(ModelOutput):
    """Output of `VcGptModel`.

    last_hidden_state: text stream after the fusion module, h^fuse of the paper (rows, length, dim); GPT-2's own output
        in the vanilla variant.
    language_hidden_state: GPT-2's output h^G after its final norm, (rows, length, dim).
    image_embeds: visual tokens that enter the fusion module, (images, tokens, dim); `None` once they are cached.
    past_key_values: a `VcGptCache`.
    hidden_states: text path on request: GPT-2's embedding and blocks, then the fusion layers; (rows, length, dim).
    attentions: self-attention of the same layers, each (rows, heads, length, past + length).
    cross_attentions: attention from text to visual tokens, each (rows, heads, length, tokens).
    image_hidden_states: visual tokens as they enter and after each visual layer, each (images, tokens, dim).
    image_attentions: self-attention of the visual layers, each (images, heads, tokens, tokens).
    """

    last_hidden_state: torch.FloatTensor | None = None
    language_hidden_state: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    image_attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class VcGptConditionalGenerationOutput(ModelOutput):
    """Output of `VcGptForConditionalGeneration`.

    loss: mean cross-entropy of the next token over the labels that are not -100, a scalar.
    logits: ensembled vocabulary logits, (rows, length, vocabulary).
    single_modal_logits: W^G h^G, GPT-2's share of the logits, same shape; `None` without self-ensemble.
    cross_modal_logits: W^fuse h^fuse, the fusion module's share, same shape; `None` in the vanilla variant.
    The other fields are those of `VcGptModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    single_modal_logits: torch.FloatTensor | None = None
    cross_modal_logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    cross_attentions: tuple[torch.FloatTensor, ...] | None = None
    image_embeds: torch.FloatTensor | None = None
    image_hidden_states: tuple[torch.FloatTensor, ...] | None = None
    image_attentions: tuple[torch.FloatTensor, ...] | None = None


class VcGptCache(EncoderDecoderCache):
    """Keys and values of the text, one row per caption, and of the visual tokens, one row per *image*.

    The text part holds GPT-2's layers, then the fusion module's. Beam search repeats and reorders text rows only:
    the beams of an image stay neighbours, and what they attend to in the picture is the same for all of them.
    """

    def __init__(self, text_cache: Cache, num_fusion_layers: int = 0):
        # A cache made from GPT-2's configuration has room for GPT-2's layers; one made without grows by itself.
        if text_cache.layers:
            text_cache.layers.extend(copy.deepcopy(text_cache.layers[-1]) for _ in range(num_fusion_layers))
        super().__init__(text_cache, DynamicCache())

    def reorder_cache(self, beam_idx: torch.LongTensor):
        self.self_attention_cache.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int):
        self.self_attention_cache.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor):
        """Keep these text rows; they must leave the same number of rows to each image."""
        self.self_attention_cache.batch_select_indices(indices)


def fold_rows(hidden_states: torch.Tensor, num_images: int) -> torch.Tensor:
    """(rows, length, dim) -> (images, rows per image x length, dim).

    Cross-attention has no mask and no positions, so the queries of all captions of an image can stand in one sequence:
    the image's keys and values are read once, and no copy of them is made per caption or beam.
    """
    return hidden_states.reshape(num_images, -1, hidden_states.shape[-1])


def unfold_weights(weights: torch.Tensor | None, num_rows: int) -> torch.Tensor | None:
    """Attention weights (images, heads, rows per image x length, tokens) -> (rows, heads, length, tokens)."""
    if weights is None:
        return None
    images, heads, queries, tokens = weights.shape
    rows_per_image = num_rows // images
    weights = weights.view(images, heads, rows_per_image, queries // rows_per_image, tokens)
    return weights.transpose(1, 2).flatten(0, 1)


def select_states(states: tuple[torch.Tensor, ...], indices: list[int]) -> tuple[torch.Tensor | None, ...]:
    """The states at these indices, which may count from the end, and None in place of the others."""
    kept = {index % len(states) for index in indices if -len(states) <= index < len(states)}
    return tuple(state if number in kept else None for number, state in enumerate(states))


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain attention; query, key, value are (batch, heads, length, head dim), the mask is additive."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def attend(module, query, key, value, attention_mask, **kwargs):
    """Attention by the implementation that the configuration of `module` names."""
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
    dropout = module.attention_dropout if module.training else 0.0
    return attention(module, query, key, value, attention_mask, scaling=module.scaling, dropout=dropout, **kwargs)


class VcGptConvolutionStem(nn.Module):
    """Patch embedding as stride-2 convolutions, each with norm and activation, and a 1x1 projection at the end.

    Takes the place of CLIP's single strided convolution: (images, channels, height, width) in, the same grid out.
    """

    def __init__(self, num_channels: int, dim: int, patch_size: int):
        super().__init__()
        num_steps = int(math.log2(patch_size))
        widths = [max(dim // 2 ** (num_steps - 1 - step), 16) for step in range(num_steps)]
        layers = []
        for in_width, width in zip([num_channels, *widths], widths):
            layers += [
                nn.Conv2d(in_width, width, kernel_size=3, stride=2, padding=1, bias=False),
                nn.GroupNorm(1, width),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.projection = nn.Conv2d(widths[-1], dim, kernel_size=1, bias=False)

    @property
    def weight(self) -> torch.Tensor:
        """CLIP's embedding casts the pixels to the type of its patch embedding's weight."""
        return self.projection.weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(self.layers(pixel_values))


class VcGptSelfAttention(nn.Module):
    """Self-attention of the fusion module: causal and cached in the text stream, bidirectional in the visual one."""

    def __init__(self, config: VcGptConfig, *, is_causal: bool, layer_idx: int | None = None):
        super().__init__()
        dim = config.text_config.hidden_size
        self.config = config
        self.head_dim = dim // config.fusion_num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.fusion_attention_dropout
        self.is_causal = is_causal
        self.layer_idx = layer_idx
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, dim)
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, _ = hidden_states.shape
        qkv = self.qkv_proj(hidden_states).view(batch, length, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, length, head dim)
        if past_key_values is not None:
            key, value = past_key_values.self_attention_cache.update(key, value, self.layer_idx)
        output, weights = attend(self, query, key, value, attention_mask, **kwargs)
        return self.out_proj(output.reshape(batch, length, -1)), weights


class VcGptCrossAttention(nn.Module):
    """Attention from the text rows to the tokens of their image; keys and values are computed once per image."""

    is_causal = False

    def __init__(self, config: VcGptConfig, layer_idx: int):
        super().__init__()
        dim = config.text_config.hidden_size
        self.config = config
        self.head_dim = dim // config.fusion_num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.fusion_attention_dropout
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def project_image(self, image_hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Visual tokens (images, tokens, dim) -> keys and values, each (images, heads, tokens, head dim)."""
        images, tokens, _ = image_hidden_states.shape
        key_value = self.kv_proj(image_hidden_states).view(images, tokens, 2, -1, self.head_dim)
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        return key, value

    def forward(
        self,
        hidden_states: torch.Tensor,  # (rows, length, dim)
        image_hidden_states: torch.Tensor | None,  # (images, tokens, dim), not needed once cached
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if past_key_values is not None and past_key_values.is_updated.get(self.layer_idx):
            cached = past_key_values.cross_attention_cache.layers[self.layer_idx]
            key, value = cached.keys, cached.values
        else:
            key, value = self.project_image(image_hidden_states)
            if past_key_values is not None:
                key, value = past_key_values.cross_attention_cache.update(key, value, self.layer_idx)
                past_key_values.is_updated[self.layer_idx] = True

        rows, length, dim = hidden_states.shape
        query = self.q_proj(fold_rows(hidden_states, key.shape[0]))
        query = query.view(*query.shape[:2], -1, self.head_dim).transpose(1, 2)
        output, weights = attend(self, query, key, value, None, **kwargs)
        return self.out_proj(output.reshape(rows, length, dim)), unfold_weights(weights, rows)


class VcGptVanillaCrossAttention(GPT2Attention):
    """GPT-2's own cross-attention, with the captions of an image folded into one row of queries."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config, is_cross_attention=True, layer_idx=layer_idx)

    def forward(self, hidden_states, past_key_values=None, encoder_hidden_states=None, **kwargs):
        rows, length, dim = hidden_states.shape
        kwargs.update(attention_mask=None, encoder_attention_mask=None)
        output, weights = super().forward(
            fold_rows(hidden_states, encoder_hidden_states.shape[0]),
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            **kwargs,
        )
        return output.reshape(rows, length, dim), unfold_weights(weights, rows)


class VcGptMlp(nn.Module):
    """Feed-forward half of a fusion layer."""

    def __init__(self, config: VcGptConfig):
        super().__init__()
        dim = config.text_config.hidden_size
        self.fc1 = nn.Linear(dim, int(dim * config.fusion_mlp_ratio))
        self.activation = ACT2FN[config.fusion_activation]
        self.fc2 = nn.Linear(int(dim * config.fusion_mlp_ratio), dim)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation(self.fc1(hidden_states)))


class VcGptFusionVisualLayer(GradientCheckpointingLayer):
    """Visual half of a fusion layer: self-attention over all visual tokens, then the feed-forward layer."""

    def __init__(self, config: VcGptConfig):
        super().__init__()
        dim, eps = config.text_config.hidden_size, config.fusion_layer_norm_eps
        self.ln_1 = nn.LayerNorm(dim, eps=eps)
        self.self_attn = VcGptSelfAttention(config, is_causal=False)
        self.ln_2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = VcGptMlp(config)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:  # (images, tokens, dim)
        attention_output, _ = self.self_attn(self.ln_1(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.ln_2(hidden_states)))


class VcGptFusionTextLayer(GradientCheckpointingLayer):
    """Text half of a fusion layer: causal self-attention, cross-attention into the picture, feed-forward."""

    def __init__(self, config: VcGptConfig, layer_idx: int):
        super().__init__()
        dim, eps = config.text_config.hidden_size, config.fusion_layer_norm_eps
        self.ln_1 = nn.LayerNorm(dim, eps=eps)
        # Its keys and values stand behind those of GPT-2's layers in the text cache.
        cache_idx = config.text_config.num_hidden_layers + layer_idx
        self.self_attn = VcGptSelfAttention(config, is_causal=True, layer_idx=cache_idx)
        self.ln_cross = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = VcGptCrossAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = VcGptMlp(config)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (rows, length, dim)
        image_hidden_states: torch.Tensor | None,  # (images, tokens, dim)
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> torch.Tensor:
        attention_output, _ = self.self_attn(
            self.ln_1(hidden_states), attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        attention_output, _ = self.cross_attn(
            self.ln_cross(hidden_states), image_hidden_states, past_key_values=past_key_values, **kwargs
        )
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.ln_2(hidden_states)))


class VcGptPreTrainedModel(SelfContainedSaving, PreTrainedModel):
    """What all VC-GPT classes share: capabilities, saving, and answers about their parameters.

    The library's own initialisation is what the fusion module needs: normal(0, `initializer_range`) for linear layers
    and convolutions, zero biases, norms 1 and 0. CLIP's tower and GPT-2 keep theirs.
    """

    config: VcGptConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["VcGptFusionVisualLayer", "VcGptFusionTextLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    # CLIP's final norm is not built where the fusion module takes the tokens before it (the default).
    _keys_to_ignore_on_load_unexpected = [r"vision_model\.post_layernorm\."]

    _exported_classes = {
        "AutoModel": "VcGptModel",
        "AutoModelForImageTextToText": "VcGptForConditionalGeneration",
    }

    # Modules for LoRA, as regular expressions over the full module name.
    lora_presets = {
        "attention": r".*(language_model\.h\.\d+\.(attn|crossattention)\.(c_attn|q_attn|c_proj)"
        r"|(self|cross)_attn\.(qkv_proj|q_proj|kv_proj|out_proj))$",
        "language": r".*language_model\.h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)$",
        "vision": r".*vision_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$",
        "fusion": r".*fusion\.(visual|text)_layers\.\d+\.((self|cross)_attn\.(qkv_proj|q_proj|kv_proj|out_proj)"
        r"|mlp\.fc[12])$",
        "all-linear": r".*(language_model\.h\.\d+\.(attn|crossattention|mlp)\.(c_attn|q_attn|c_proj|c_fc)"
        r"|(self_attn|cross_attn)\.(qkv_proj|[qkv]_proj|kv_proj|out_proj)|mlp\.fc[12])$",
    }

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: biases, norms and other vectors."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}

    def get_parameter_group(self, name: str) -> str:
        """`"vision"` or `"language"` for the parameters of the pre-trained towers, `"fusion"` for the new ones."""
        if "crossattention." in name or "ln_cross_attn." in name:
            return "fusion"
        if re.search(r"(^|\.)vision_model\.", name):
            return "vision"
        if re.search(r"(^|\.)language_model\.|(^|\.)lm_head\.", name):
            return "language"
        return "fusion"

    def freeze_vision(self, freeze: bool = True):
        """Stop (or resume) the training of CLIP's tower. Adapters that are added later still train."""
        self.base_model.vision_model.requires_grad_(not freeze)

    def freeze_language(self, freeze: bool = True):
        """Stop (or resume) the training of GPT-2 and its vocabulary head; the vanilla cross-attention still trains."""
        for name, parameter in self.named_parameters():
            if self.get_parameter_group(name) == "language":
                parameter.requires_grad_(not freeze)


class VcGptFusion(VcGptPreTrainedModel):
    """Cross-modal fusion module: N visual and N text layers (paper, figure 1b)."""

    _can_record_outputs = {
        "hidden_states": OutputRecorder(VcGptFusionTextLayer, index=0, capture_initial_hidden_state=False),
        "attentions": OutputRecorder(VcGptSelfAttention, index=1, layer_name=".text_layers"),
        "cross_attentions": OutputRecorder(VcGptCrossAttention, index=1),
        "image_hidden_states": OutputRecorder(VcGptFusionVisualLayer, index=0),
        "image_attentions": OutputRecorder(VcGptSelfAttention, index=1, layer_name=".visual_layers"),
    }

    def __init__(self, config: VcGptConfig):
        super().__init__(config)
        layers = range(config.num_fusion_layers)
        self.visual_layers = nn.ModuleList(VcGptFusionVisualLayer(config) for _ in layers)
        self.text_layers = nn.ModuleList(VcGptFusionTextLayer(config, layer_idx) for layer_idx in layers)
        self.ln_f = nn.LayerNorm(config.text_config.hidden_size, eps=config.fusion_layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @capture_outputs
    def forward(
        self,
        hidden_states: torch.Tensor,
        image_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        **kwargs,
    ) -> VcGptFusionOutput:
        """Fuse GPT-2's output (rows, length, dim) with the visual tokens (images, tokens, dim).

        The visual stream does not see the text, so it runs first and, with a cache, only once: `image_embeds` is not
        needed when `past_key_values` holds the picture.
        """
        visual_states = [None] * len(self.text_layers)
        if image_embeds is not None:
            visual_states = []
            for layer in self.visual_layers:
                image_embeds = layer(image_embeds, **kwargs)
                visual_states.append(image_embeds)
            if self.config.visual_pairing == "final":
                visual_states = [image_embeds] * len(self.text_layers)
        for layer, visual_state in zip(self.text_layers, visual_states):
            hidden_states = layer(
                hidden_states, visual_state, attention_mask, past_key_values=past_key_values, **kwargs
            )
        return VcGptFusionOutput(last_hidden_state=self.ln_f(hidden_states))


class VcGptModel(VcGptPreTrainedModel):
    """CLIP's vision tower, GPT-2, and the fusion module above both; no vocabulary head."""

    _auto_class = "AutoModel"

    def __init__(self, config: VcGptConfig):
        super().__init__(config)
        self.vision_model = CLIPVisionModel(config.vision_config)
        self.language_model = GPT2Model(config.text_config)
        vision_dim, dim = config.vision_config.hidden_size, config.text_config.hidden_size
        self.visual_proj = nn.Linear(vision_dim, dim) if vision_dim != dim else nn.Identity()
        self.gradient_checkpointing = False  # read by `merge_with_config_defaults`, which then turns the cache off
        self.fusion = VcGptFusion(config) if config.variant == "vc_gpt" else None

        if not config.use_post_layernorm:
            # Its weights would never get a gradient.
            self.vision_model.post_layernorm = nn.Identity()
        if config.vision_stem == "convolution":
            self.vision_model.embeddings.patch_embedding = VcGptConvolutionStem(
                config.vision_config.num_channels, vision_dim, config.vision_config.patch_size
            )
        if config.variant == "vanilla":
            for layer_idx, block in enumerate(self.language_model.h):
                block.crossattention = VcGptVanillaCrossAttention(config.text_config, layer_idx)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.wte

    def set_input_embeddings(self, value: nn.Embedding):
        self.language_model.wte = value

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """Encode pictures (images, channels, height, width) once, for as many texts as wanted.

        `pooler_output` holds the visual tokens that enter the fusion module, (images, tokens, dim) in GPT-2's width,
        the class token first unless `drop_class_token`: give them to `forward` or `generate` as `image_embeds`. The
        other fields are those of CLIP's tower: `last_hidden_state` (images, tokens, CLIP's width), no last norm.
        """
        outputs = self.vision_model(pixel_values=pixel_values, return_dict=True, **kwargs)
        image_embeds = outputs.last_hidden_state
        if self.config.use_post_layernorm:
            image_embeds = self.vision_model.post_layernorm(image_embeds)
        if self.config.drop_class_token:
            image_embeds = image_embeds[:, 1:]
        outputs.pooler_output = self.visual_proj(image_embeds)
        return outputs

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs,
    ) -> VcGptModelOutput:
        """Encode pictures and texts.

        Args:
            input_ids: (rows, length). The number of rows is a multiple of the number of images; consecutive rows share
                an image.
            attention_mask: (rows, past + length), 1 on tokens and 0 on padding, which may stand on either side.
            pixel_values: (images, channels, height, width); not needed with `image_embeds` or once they are cached.
            position_ids: (rows, length); counted from the attention mask when not given.
            past_key_values: a `VcGptCache` from an earlier call, or any text cache of the library.
            inputs_embeds: (rows, length, dim) in place of `input_ids`.
            image_embeds: (images, tokens, dim), the `pooler_output` of `get_image_features`, in place of
                `pixel_values`.
            use_cache: return `past_key_values`.
            interpolate_pos_encoding: accept pictures of another size than the configuration's.

        Raises ValueError when both or neither of `input_ids` and `inputs_embeds` are given, when there is no picture,
        and when the rows do not divide evenly among the images.
        """
        output_attentions = kwargs.pop("output_attentions", None)
        output_hidden_states = kwargs.pop("output_hidden_states", None)
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        selected_states = None
        if not isinstance(output_hidden_states, bool):  # an index or several, of the whole text path
            selected_states = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
            output_hidden_states = True

        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds: exactly one of the two.")
        if inputs_embeds is None:
            inputs_embeds = self.language_model.wte(input_ids)
        rows, length = inputs_embeds.shape[:2]

        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        if past_key_values is not None and not isinstance(past_key_values, EncoderDecoderCache):
            past_key_values = VcGptCache(past_key_values, len(self.fusion.text_layers) if self.fusion else 0)

        if past_key_values is not None and past_key_values.is_updated.get(0):
            keys = past_key_values.cross_attention_cache.layers[0].keys
            num_images, image_embeds = keys.shape[0], None
        else:
            if image_embeds is None:
                if pixel_values is None:
                    raise ValueError(
                        "VC-GPT describes pictures: give pixel_values of shape (images, channels, height, width), "
                        "image_embeds, or past_key_values that hold the picture."
                    )
                image_embeds = self.get_image_features(
                    pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, return_dict=True
                ).pooler_output
            num_images = image_embeds.shape[0]
        if num_images == 0 or rows % num_images:
            raise ValueError(
                f"{rows} rows of text do not divide evenly among {num_images} images: consecutive rows share an image."
            )

        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 2:
                # Padding does not count, so that a text has the same positions wherever its padding stands.
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
            else:
                past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
                position_ids = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)

        # Built once for both modules, and before GPT-2 adds this call's tokens to the cache.
        causal_mask = create_causal_mask(
            config=self.config.text_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )

        encoder_hidden_states = None
        if self.fusion is None:
            # Once the keys are cached, GPT-2 only reads the shape of what it attends to.
            encoder_hidden_states = image_embeds if image_embeds is not None else keys.transpose(1, 2).flatten(2)
        language_outputs = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=causal_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            encoder_hidden_states=encoder_hidden_states,
            use_cache=bool(use_cache),
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        outputs = VcGptModelOutput(
            last_hidden_state=language_outputs.last_hidden_state,
            language_hidden_state=language_outputs.last_hidden_state,
            image_embeds=image_embeds,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=language_outputs.hidden_states,
            attentions=language_outputs.attentions,
            cross_attentions=language_outputs.cross_attentions if self.fusion is None else None,
        )
        if self.fusion is not None:
            fused = self.fusion(
                language_outputs.last_hidden_state,
                image_embeds=image_embeds,
                attention_mask=causal_mask,
                past_key_values=past_key_values,
                position_ids=position_ids,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                output_image_hidden_states=output_hidden_states,
                output_image_attentions=output_attentions,
                **kwargs,
            )
            outputs.last_hidden_state = fused.last_hidden_state
            if output_hidden_states:
                outputs.hidden_states = outputs.hidden_states + fused.hidden_states
                if image_embeds is not None:
                    outputs.image_hidden_states = (image_embeds, *fused.image_hidden_states)
            if output_attentions:
                outputs.attentions = outputs.attentions + fused.attentions
                outputs.cross_attentions = fused.cross_attentions
                if image_embeds is not None:
                    outputs.image_attentions = fused.image_attentions
        if selected_states is not None:
            outputs.hidden_states = select_states(outputs.hidden_states, selected_states)
        return outputs


class VcGptForConditionalGeneration(VcGptPreTrainedModel, GenerationMixin):
    """VC-GPT with its vocabulary heads: captions pictures.

    >>> model = VcGptForConditionalGeneration.from_pretrained("path/or/id")
    >>> ids = model.generate(**processor(images=picture), num_beams=5, max_new_tokens=20)
    >>> processor.batch_decode(ids, skip_special_tokens=True)
    """

    _auto_class = "AutoModelForImageTextToText"
    _tied_weights_keys = {"lm_head.weight": "model.language_model.wte.weight"}

    def __init__(self, config: VcGptConfig):
        super().__init__(config)
        dim, vocab_size = config.text_config.hidden_size, config.text_config.vocab_size
        self.model = VcGptModel(config)
        self.lm_head = self.fusion_lm_head = None
        if config.variant == "vanilla" or config.self_ensemble:
            self.lm_head = nn.Linear(dim, vocab_size, bias=False)  # W^G
        else:
            self._tied_weights_keys = {}
        if config.variant == "vc_gpt":
            self.fusion_lm_head = nn.Linear(dim, vocab_size, bias=False)  # W^fuse
        self.post_init()
        self.generation_config.max_new_tokens = DEFAULT_NEW_TOKENS

    @classmethod
    def from_vision_text_pretrained(
        cls,
        vision_model: str | os.PathLike | PreTrainedModel,
        text_model: str | os.PathLike | PreTrainedModel,
        *,
        freeze_vision: bool = False,
        freeze_language: bool = False,
        dtype: torch.dtype | str | None = None,
        **config_kwargs,
    ) -> "VcGptForConditionalGeneration":
        """Start from CLIP and GPT-2; the fusion module and its vocabulary head are new.

        Args:
            vision_model: Hub id, folder or object of a CLIP model (whole or its vision tower).
            text_model: Hub id, folder or object of a GPT-2 model (with or without its head). Objects are copied.
            freeze_vision, freeze_language: stop the training of that tower.
            dtype: data type of the weights; that of the language model when not given.
            config_kwargs: fields of `VcGptConfig`, such as `num_fusion_layers` or `variant`.

        Raises TypeError for models of another architecture.
        """
        vision_tower = load_vision_tower(vision_model)
        language_model = load_language_model(text_model)
        config_kwargs.setdefault("fusion_num_heads", language_model.config.num_attention_heads)
        config = VcGptConfig(
            vision_config=vision_tower.config.to_dict(),
            text_config=language_model.config.to_dict(),
            **config_kwargs,
        )
        model = cls(config)
        load_tower(model.model.vision_model, vision_tower, new=r"embeddings\.patch_embedding\.")
        load_tower(model.model.language_model, language_model, new=r"\.(crossattention|ln_cross_attn)\.")
        if model.lm_head is not None and not config.tie_word_embeddings:
            with torch.no_grad():  # the paper: W^G starts from the word embedding
                model.lm_head.weight.copy_(language_model.wte.weight)
        model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype or language_model.dtype)
        model.freeze_vision(freeze_vision)
        model.freeze_language(freeze_language)
        return model.eval()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding):
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head if self.lm_head is not None else self.fusion_lm_head

    def set_output_embeddings(self, value: nn.Linear):
        if self.lm_head is not None:
            self.lm_head = value
        else:
            self.fusion_lm_head = value

    def _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of=None, mean_resizing=True):
        embeddings = super()._resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        if self.lm_head is not None and self.fusion_lm_head is not None:  # the second head, unknown to the library
            trains = self.fusion_lm_head.weight.requires_grad
            self.fusion_lm_head = self._get_resized_lm_head(
                self.fusion_lm_head, embeddings.weight.shape[0], mean_resizing=mean_resizing
            )
            self.fusion_lm_head.requires_grad_(trains)
        return embeddings

    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """See `VcGptModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def compute_logits(
        self, language_hidden_state: torch.Tensor, hidden_state: torch.Tensor, separate: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Self-ensemble, logits = W^G h^G + W^fuse h^fuse; inputs (rows, length, dim).

        Returns the logits (rows, length, vocabulary) and, if `separate`, the two terms. When they are not asked for,
        the second product accumulates onto the first, and no further tensor of the size of the vocabulary exists.
        """
        if self.fusion_lm_head is None:
            logits = self.lm_head(language_hidden_state)
            return logits, logits if separate else None, None
        if self.lm_head is None:
            logits = self.fusion_lm_head(hidden_state)
            return logits, None, logits if separate else None
        single_modal_logits = self.lm_head(language_hidden_state)
        # Heads that an adapter or a quantiser replaced, or that are offloaded, are no plain matrices: call them.
        is_plain = type(self.fusion_lm_head) is nn.Linear and not hasattr(self.fusion_lm_head, "_hf_hook")
        if separate or not is_plain or torch.is_autocast_enabled(hidden_state.device.type):
            cross_modal_logits = self.fusion_lm_head(hidden_state)
            logits = single_modal_logits + cross_modal_logits
            return (logits, single_modal_logits, cross_modal_logits) if separate else (logits, None, None)
        logits = torch.addmm(
            single_modal_logits.flatten(0, 1), hidden_state.flatten(0, 1), self.fusion_lm_head.weight.t()
        )
        return logits.view_as(single_modal_logits), None, None

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_branch_logits: bool | None = None,
        **kwargs,
    ) -> VcGptConditionalGenerationOutput:
        """Predict the next token of every position.

        Args:
            labels: (rows, length), usually `input_ids` with -100 on padding; shifted by one inside. `shift_labels`,
                which context parallel training sends instead, are already shifted.
            logits_to_keep: compute the logits of the last so many positions only (0: all), or of these indices.
            output_branch_logits: return `single_modal_logits` and `cross_modal_logits`. By default they are returned
                unless `labels` are given or `generate` runs, where they would only cost memory.

        The other arguments are those of `VcGptModel.forward`.
        """
        num_targets, shift_labels = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
        has_labels = labels is not None or shift_labels is not None
        if has_labels and use_cache is None:
            use_cache = False  # a cache would only cost memory
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            image_embeds=image_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits, single_modal_logits, cross_modal_logits = self.compute_logits(
            outputs.language_hidden_state[:, keep],
            outputs.last_hidden_state[:, keep],
            separate=not has_labels if output_branch_logits is None else output_branch_logits,
        )
        loss = None
        if has_labels:
            if num_targets is None:  # a batch without any target has loss 0, not 0 / 0
                targets = labels[:, 1:] if shift_labels is None else shift_labels
                num_targets = (targets != -100).sum().clamp(min=1)
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_targets,
                shift_labels=shift_labels,
            )
        return VcGptConditionalGenerationOutput(
            loss=loss,
            logits=logits,
            single_modal_logits=single_modal_logits,
            cross_modal_logits=cross_modal_logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            image_embeds=outputs.image_embeds,
            image_hidden_states=outputs.image_hidden_states,
            image_attentions=outputs.image_attentions,
        )

    def generate(self, inputs: torch.Tensor | None = None, generation_config=None, **kwargs):
        """Caption pictures: `GenerationMixin.generate`, starting from the begin token when no prompt is given.

        Args:
            inputs: prompts, the same as `input_ids` (rows, length), padded on the left and with an `attention_mask`.
            kwargs: `pixel_values` (images, channels, height, width) or `image_embeds` (images, tokens, dim), and the
                options of `generate`.

        Returns token ids (rows x returned sequences, length) that begin with the prompt or the begin token.
        Raises ValueError when there is neither a picture nor a prompt.
        """
        pictures = next(
            (kwargs[name] for name in ("pixel_values", "image_embeds") if kwargs.get(name) is not None), None
        )
        if inputs is None and kwargs.get("input_ids") is None and kwargs.get("inputs_embeds") is None:
            if pictures is None:
                raise ValueError("generate describes pictures: give pixel_values or image_embeds.")
            begin = kwargs.get("bos_token_id")
            if begin is None:
                begin = (generation_config or self.generation_config).bos_token_id
            if begin is None:
                begin = self.config.bos_token_id
            kwargs["input_ids"] = torch.full((len(pictures), 1), begin, device=pictures.device)
            kwargs["attention_mask"] = torch.ones_like(kwargs["input_ids"])
        return super().generate(inputs, generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids, *, inputs_embeds=None, is_first_iteration=False, use_cache=True, **kwargs
    ):
        # `generate` accepts embedded prompts only where it finds `inputs_embeds` in this signature.
        model_inputs = super().prepare_inputs_for_generation(
            input_ids,
            inputs_embeds=inputs_embeds,
            is_first_iteration=is_first_iteration,
            use_cache=use_cache,
            **kwargs,
        )
        model_inputs.setdefault("output_branch_logits", False)
        if use_cache and not is_first_iteration:  # the picture is in the cache
            model_inputs.pop("pixel_values", None)
            model_inputs.pop("image_embeds", None)
        return model_inputs

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Repeat the text for beams and samples, but not the pictures: their rows share one."""
        pictures = {name: model_kwargs.pop(name) for name in ("pixel_values", "image_embeds") if name in model_kwargs}
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=is_encoder_decoder, input_ids=input_ids, **model_kwargs
        )
        return input_ids, {**model_kwargs, **pictures}

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        if cache is not None and not isinstance(cache, EncoderDecoderCache):
            fusion = self.model.fusion
            model_kwargs["past_key_values"] = VcGptCache(cache, len(fusion.text_layers) if fusion else 0)


def load_vision_tower(model: str | os.PathLike | PreTrainedModel) -> CLIPVisionModel:
    """The vision tower of a CLIP model given by id, folder or object."""
    if isinstance(model, (str, os.PathLike)):
        config = AutoConfig.from_pretrained(model)
        if config.model_type not in ("clip", "clip_vision_model"):
            raise TypeError(f"{model} is a {config.model_type!r} model; the vision tower of VC-GPT is CLIP's.")
        return CLIPVisionModel.from_pretrained(model)
    if isinstance(model, (CLIPModel, CLIPVisionModelWithProjection)):
        return model.vision_model
    if isinstance(model, CLIPVisionModel):
        return model
    raise TypeError(f"The vision tower must be a CLIP model or the id or folder of one, not {type(model).__name__}.")


def load_language_model(model: str | os.PathLike | PreTrainedModel) -> GPT2Model:
    """GPT-2 without its head, given by id, folder or object."""
    if isinstance(model, (str, os.PathLike)):
        config = AutoConfig.from_pretrained(model)
        if config.model_type != "gpt2":
            raise TypeError(f"{model} is a {config.model_type!r} model; the language model of VC-GPT is GPT-2.")
        return GPT2Model.from_pretrained(model)
    if isinstance(model, GPT2LMHeadModel):
        return model.transformer
    if isinstance(model, GPT2Model):
        return model
    raise TypeError(f"The language model must be a GPT-2 or the id or folder of one, not {type(model).__name__}.")


def load_tower(target: PreTrainedModel, source: PreTrainedModel, *, new: str):
    """Copy the weights of `source`; only parameters whose name matches `new` may be missing there.

    Raises ValueError that names the others; nothing is copied then.
    """
    ours, theirs = target.state_dict(), source.state_dict()
    missing = [name for name in ours if name not in theirs and not re.search(new, name)]
    unexpected = [name for name in theirs if name not in ours and not re.search(rf"^post_layernorm\.|{new}", name)]
    if missing or unexpected:
        raise ValueError(
            f"{type(source).__name__} does not fit {type(target).__name__}: missing {missing}, "
            f"unexpected {unexpected}."
        )
    target.load_state_dict({name: theirs.get(name, value) for name, value in ours.items()})


__all__ = [
    "VcGptCache",
    "VcGptForConditionalGeneration",
    "VcGptModel",
    "VcGptPreTrainedModel",
]
