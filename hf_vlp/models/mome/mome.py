"""Mixture of modality experts: the Transformer that VLMo and VL-BEiT share.

One self-attention for all modalities; feed-forward experts for text, pictures and, in the top blocks, for both
together. Paper: Bao et al., "VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts",
https://arxiv.org/abs/2111.02358.

Differences from the original code:

* each block owns its table of relative positions and builds its bias when it runs, once for all samples; the original
  gathers the bias of all blocks at once (0.5 GB at 480 pixels in the base size);
* index tables are computed from the lengths at hand, so that texts of any length run without padding;
* attention goes through the library's attention interface, eager or fused;
* the last block can restrict itself to the leading positions that are read afterwards;
* a convolutional stem is offered for training from nothing.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def num_position_rows(window_size: int, max_text_length: int) -> int:
    """Rows of a table of relative positions: patches and I_CLS, two for pairs of modalities, texts and T_CLS."""
    return (2 * window_size - 1) ** 2 + 3 + 2 * max_text_length + 2


def make_image_position_index(window_size: int, device=None) -> torch.Tensor:
    """Rows of the table for each (query, key) of I_CLS and the patches: (1 + patches, 1 + patches).

    Patches: offset of the query minus that of the key, row-major. The last three rows of this part of the table are
    I_CLS -> patch, patch -> I_CLS and I_CLS -> I_CLS.
    """
    side = 2 * window_size - 1
    steps = torch.arange(window_size, device=device)
    offsets = steps[:, None] - steps[None, :] + window_size - 1  # (query, key) along one axis
    patches = offsets[:, None, :, None] * side + offsets[None, :, None, :]  # (y query, x query, y key, x key)
    patches = patches.reshape(window_size**2, window_size**2)
    return _add_class_token(patches, side**2)


def make_text_position_index(length: int, window_size: int, max_text_length: int, device=None) -> torch.Tensor:
    """Rows of the table for each (query, key) of a text that begins with T_CLS: (length, length).

    Here the offset is that of the key minus that of the query, the opposite of the pictures' sign.
    """
    first = (2 * window_size - 1) ** 2 + 3 + max_text_length
    steps = torch.arange(length - 1, device=device)
    words = steps[None, :] - steps[:, None] + first
    return _add_class_token(words, first + max_text_length - 1)


def make_pair_position_index(text_index: torch.Tensor, image_index: torch.Tensor, window_size: int) -> torch.Tensor:
    """Rows of the table for the sequence [text ; picture]: one row for text -> picture, one for picture -> text."""
    num_text, num_image = len(text_index), len(image_index)
    across = (2 * window_size - 1) ** 2 + 3
    text_rows = torch.cat((text_index, text_index.new_full((num_text, num_image), across)), dim=1)
    image_rows = torch.cat((image_index.new_full((num_image, num_text), across + 1), image_index), dim=1)
    return torch.cat((text_rows, image_rows))


def _add_class_token(index: torch.Tensor, first_row: int) -> torch.Tensor:
    """A class token in front: `first_row` for its queries, the next for its keys, the next for the corner."""
    length = len(index)
    top = torch.cat((index.new_full((1, 1), first_row + 2), index.new_full((1, length), first_row)), dim=1)
    rest = torch.cat((index.new_full((length, 1), first_row + 1), index), dim=1)
    return torch.cat((top, rest))


def eager_attention_forward(
    module, query, key, value, attention_mask, scaling, dropout=0.0, position_bias=None, **kwargs
):
    """Plain attention; query, key, value (batch, heads, length, head dim); mask and bias are added to the scores."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if position_bias is not None:
        weights = weights + position_bias
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class MomeConvolutionStem(nn.Module):
    """Patch embedding as stride-2 convolutions, each with norm and activation, and a 1x1 projection at the end.

    Takes the place of a single strided convolution (Xiao et al., 2021, arXiv 2106.14881): (images, channels, height,
    width) in, the same grid out.
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
        """Its type is the one that pixels are cast to."""
        return self.projection.weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(self.layers(pixel_values))


class MomeImageEmbeddings(nn.Module):
    """I_CLS and the patches of a picture: (images, channels, size, size) -> (images, 1 + patches, dim).

    No norm, and no type embedding, which depends on whether the picture is the first or the second. Hidden patches
    (`bool_masked_pos`, (images, patches)) are replaced by `mask_token`, (1, 1, dim), and keep their positions.
    """

    def __init__(self, config):
        super().__init__()
        self.image_size = config.image_size
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        dim, patch = config.hidden_size, config.patch_size
        if config.vision_stem == "convolution":
            self.patch_projection = MomeConvolutionStem(config.num_channels, dim, patch)
        else:
            self.patch_projection = nn.Conv2d(config.num_channels, dim, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embeddings = None
        if config.use_absolute_position_embeddings:
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.window_size**2, dim))

    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        mask_token: torch.Tensor | None = None,
    ) -> torch.Tensor:
        expected = (self.num_channels, self.image_size, self.image_size)
        if pixel_values is None or pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != expected:
            found = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values must be of shape (images, {', '.join(map(str, expected))}), not {found}. For another "
                "size load the model with from_pretrained(..., image_size=...), which interpolates its positions."
            )
        pixel_values = pixel_values.to(self.patch_projection.weight.dtype)
        if bool_masked_pos is not None:
            self._check_mask(bool_masked_pos, len(pixel_values))
            if isinstance(self.patch_projection, MomeConvolutionStem):
                # Its convolutions look beyond the border of a patch: hidden pixels would show in their neighbours.
                shown = (~bool_masked_pos.to(torch.bool)).view(-1, 1, self.window_size, self.window_size)
                pixel_values = pixel_values * nn.functional.interpolate(
                    shown.to(pixel_values.dtype), scale_factor=self.patch_size
                )
        patches = self.patch_projection(pixel_values).flatten(2).transpose(1, 2)  # (images, patches, dim)
        if bool_masked_pos is not None:
            patches = torch.where(bool_masked_pos.to(torch.bool).unsqueeze(-1), mask_token.to(patches.dtype), patches)
        embeddings = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1)
        return embeddings if self.position_embeddings is None else embeddings + self.position_embeddings

    def _check_mask(self, bool_masked_pos: torch.Tensor, num_images: int):
        expected = (num_images, self.window_size**2)
        if tuple(bool_masked_pos.shape) != expected:
            raise ValueError(
                f"bool_masked_pos must be of shape (images, patches), {expected}, row by row, not "
                f"{tuple(bool_masked_pos.shape)}."
            )

    @property
    def window_size(self) -> int:
        """Patches along one side of a picture."""
        return self.image_size // self.patch_size


class MomeTextEmbeddings(nn.Module):
    """Word, inner type and (with absolute positions) position embeddings, norm, dropout: (rows, length, dim).

    The position table exists in every size, because the original's files hold it; without absolute positions nothing
    reads it.
    """

    def __init__(self, config):
        super().__init__()
        dim = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_text_length, dim)
        self.token_type_embeddings = nn.Embedding(config.text_type_vocab_size, dim)
        self.layer_norm = nn.LayerNorm(dim, eps=config.text_layer_norm_eps)
        self.dropout = nn.Dropout(config.text_dropout)
        self.use_positions = config.use_absolute_position_embeddings

    def forward(
        self, input_ids: torch.LongTensor | None = None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        # Called, not read: offloaded weights are in place only then.
        positions = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
        embeddings = inputs_embeds + self.token_type_embeddings(torch.zeros_like(positions[:1]))
        if self.use_positions:
            embeddings = embeddings + self.position_embeddings(positions)
        return self.dropout(self.layer_norm(embeddings))


class MomeDropPath(nn.Module):
    """Drops the residual branch of whole samples in training; (batch, length, dim) in and out."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1 - self.drop_prob
        kept = hidden_states.new_empty(len(hidden_states), 1, 1).bernoulli_(keep_prob)
        return hidden_states * (kept / keep_prob)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


class MomeAttention(nn.Module):
    """Self-attention shared by all modalities, with the bias of its block's table of relative positions.

    Queries and values have a bias, keys have none (it would cancel in the softmax).
    """

    is_causal = False

    def __init__(self, config):
        super().__init__()
        dim, heads = config.hidden_size, config.num_attention_heads
        self.config = config
        self.num_heads = heads
        self.head_dim = dim // heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.output = nn.Linear(dim, dim)
        self.position_bias_table = None
        if config.use_relative_position_bias:
            rows = num_position_rows(config.window_size, config.max_text_length_of_table)
            self.position_bias_table = nn.Parameter(torch.zeros(rows, heads))

    def make_position_bias(self, position_index: torch.Tensor) -> torch.Tensor:
        """(queries, keys) rows of the table -> bias (1, heads, queries, keys), one for the whole batch."""
        return nn.functional.embedding(position_index, self.position_bias_table).permute(2, 0, 1).unsqueeze(0)

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, dim)
        position_index: torch.Tensor | None = None,  # (length, length)
        attention_mask: torch.Tensor | None = None,  # (batch, 1, length, length)
        num_queries: int | None = None,  # leading positions that attend; None for all
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, length, _ = hidden_states.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias, requires_grad=False), self.v_bias))
        if type(self.qkv) is nn.Linear and not hasattr(self.qkv, "_hf_hook"):
            qkv = nn.functional.linear(hidden_states, self.qkv.weight, bias)
        else:  # an adapter or a quantiser replaced it, or its weights are offloaded: call it
            qkv = self.qkv(hidden_states) + bias
        qkv = qkv.view(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (batch, heads, length, head dim)
        query = query[:, :, :num_queries]
        if attention_mask is not None:
            attention_mask = attention_mask[:, :, :num_queries]
        position_bias = None
        if self.position_bias_table is not None:
            position_bias = self.make_position_bias(position_index[:num_queries]).to(query.dtype)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            position_bias=position_bias,
            **kwargs,
        )
        return self.output(output.reshape(batch, -1, self.num_heads * self.head_dim)), weights


class MomeExpert(nn.Module):
    """A modality's norm and feed-forward layers."""

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(self.norm(hidden_states))))


class MomeBlock(GradientCheckpointingLayer):
    """Pre-norm block: shared attention, then the expert of each token's modality.

    index: from 0, counted from the input. Residual branches of samples are dropped with a probability that rises from
        0 to `drop_path_rate`, drawn for text and picture by themselves.
    """

    def __init__(self, config, index: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = MomeAttention(config)
        names = ("text", "image", "vl") if index >= config.vl_expert_start_layer else ("text", "image")
        self.experts = nn.ModuleDict({name: MomeExpert(config) for name in names})
        self.attention_scale = self.expert_scale = None
        if config.layer_scale_init_value is not None:
            self.attention_scale = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))
            self.expert_scale = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_init_value))
        self.drop_path = MomeDropPath(config.drop_path_rate * index / max(1, config.num_hidden_layers - 1))
        if getattr(config, "rescale_by_depth", False):
            # On the layers: the library asks no module for initial values that has no new parameter of its own.
            for layer in (self.attention.output, *(expert.fc2 for expert in self.experts.values())):
                layer.initial_scale = (2 * (index + 1)) ** -0.5

    def forward(
        self,
        hidden_states: torch.Tensor,  # (batch, length, dim)
        expert: str | None = None,  # "text", "image" or "vl" for all tokens; None splits at `text_length`
        text_length: int = 0,
        position_index: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        num_outputs: int | None = None,  # leading positions that are returned; None for all
        **kwargs,
    ) -> torch.Tensor:
        attention_output, _ = self.attention(
            self.attention_norm(hidden_states), position_index, attention_mask, num_outputs, **kwargs
        )
        hidden_states = self._add(hidden_states[:, :num_outputs], attention_output, self.attention_scale)
        if expert is not None:
            return self._add(hidden_states, self.experts[expert](hidden_states), self.expert_scale)
        text, image = hidden_states[:, :text_length], hidden_states[:, text_length:]
        text = self._add(text, self.experts["text"](text), self.expert_scale)
        if image.shape[1] == 0:
            return text
        return torch.cat((text, self._add(image, self.experts["image"](image), self.expert_scale)), dim=1)

    def _add(self, residual: torch.Tensor, update: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        update = self.drop_path(update)
        return residual + update if scale is None else torch.addcmul(residual, update, scale)


class MomePooler(nn.Module):
    """First position -> tanh of a linear layer: (batch, length, dim) -> (batch, dim)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.dense(hidden_states[:, 0]))


class MomeMaskedLanguageHead(nn.Module):
    """Transform and decoder to the vocabulary, BERT's: (..., dim) -> (..., vocabulary)."""

    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.text_layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.layer_norm(nn.functional.gelu(self.dense(hidden_states))))


class MomeClassifier(nn.Module):
    """Task head: linear layer to twice the width, norm, GELU, linear layer to the labels; (batch, in) in."""

    def __init__(self, config, num_inputs: int = 1):
        super().__init__()
        dim = config.hidden_size
        self.dense = nn.Linear(num_inputs * dim, 2 * dim)
        self.layer_norm = nn.LayerNorm(2 * dim, eps=1e-5)
        self.output = nn.Linear(2 * dim, config.num_labels)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.output(nn.functional.gelu(self.layer_norm(self.dense(pooled))))
