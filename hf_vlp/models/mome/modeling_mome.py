"""What VLMo and VL-BEiT share above the blocks: the model without a head, loading, and the heads of their tasks.

Heads are mixins: a class of one system is made of a mixin and the base class of the system, which knows how to build
its model without a head and under what name it lies in the head.
"""

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoConfig,
    BeitForMaskedImageModeling,
    BeitModel,
    BeitPreTrainedModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mome import MomeConfig, first_vl_block
from .mome import (
    MomeAttention,
    MomeBlock,
    MomeClassifier,
    MomeImageEmbeddings,
    MomeMaskedLanguageHead,
    MomePooler,
    MomeTextEmbeddings,
    make_image_position_index,
    make_pair_position_index,
    make_text_position_index,
)
from .mome_interpolation import interpolate_position_bias_table, interpolate_position_embeddings
from .mome_losses import (
    HardNegatives,
    classification_loss,
    contrastive_logits,
    contrastive_loss,
    draw_hard_negatives,
    encode_in_chunks,
    gather_features,
    gather_rows,
    gather_texts,
    masked_image_loss,
    masked_language_loss,
    matching_loss,
    soft_label_loss,
    world_size,
)
from .saving import SelfContainedSaving

# Sizes that a checkpoint may have other than the configuration that it is loaded with.
RESIZABLE = ("image_size", "max_text_length", "type_vocab_size")
RECORDED = ("output_hidden_states", "output_attentions")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass
class MomeModelOutput(ModelOutput):
    """Output of a model without a head; dim is `hidden_size`.

    last_hidden_state: whole sequence after the final norm, (batch, length, dim): text first, then I_CLS and patches.
    pooler_output: tanh of a linear layer over the first position, (batch, dim); T_CLS when a text is given.
    text_hidden_state, image_hidden_state: the parts of `last_hidden_state` that belong to each modality, or `None`.
    vl_hidden_state: a single modality run through the vision-language experts in the top blocks, after the final norm,
        (batch, length, dim); with `output_vl_branch`.
    hidden_states: input of the first block and output of every block, before the final norm; with `output_vl_branch`
        those of the second pass through the top blocks follow.
    attentions: weights of every block, each (batch, heads, length, length).
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    text_hidden_state: torch.FloatTensor | None = None
    image_hidden_state: torch.FloatTensor | None = None
    vl_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MaskedImageOutput(ModelOutput):
    """Output of a model for masked image modelling.

    loss: mean cross-entropy over hidden patches. logits: (batch, patches, visual vocabulary).
    hidden_states, attentions: as in `MomeModelOutput`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class MomeImageTextOutput(ModelOutput):
    """Output of a retrieval model.

    loss: contrastive, a scalar, when there are as many texts as pictures; with matching, the weighted sum of both.
    losses: the terms before weighting, "itc" and (in training) "itm", in systems that fine-tune with matching.
    logits_per_image, logits_per_text: scaled similarities, (images, texts) and its transpose; over the pairs of all
        processes in training.
    image_embeds, text_embeds: unit-norm features, (images, dim) and (texts, dim).
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


class MomePreTrainedModel(SelfContainedSaving, PreTrainedModel):
    """What all classes share: capabilities, initialisation, loading at other sizes, answers about parameters."""

    config: MomeConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Flash attention takes no bias of the scores.
    _supports_flash_attn = False
    # Nor does the mask of flex attention have the leading rows alone, which the last block asks for.
    _supports_flex_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["MomeBlock"]
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = {"hidden_states": MomeBlock, "attentions": MomeAttention}
    # Objectives are means over pairs or labels of a batch: Trainer must divide by the accumulation steps itself.
    accepts_loss_kwargs = False

    # How the names of a task's new parameters begin, which get a learning rate of their own.
    _head_prefixes = ("classifier.",)

    # Modules for LoRA, as regular expressions over the full module name.
    lora_presets = {
        "attention": r".*layers\.\d+\.attention\.(qkv|output)$",
        "text_expert": r".*layers\.\d+\.experts\.text\.fc[12]$",
        "image_expert": r".*layers\.\d+\.experts\.image\.fc[12]$",
        "vl_expert": r".*layers\.\d+\.experts\.vl\.fc[12]$",
        "experts": r".*layers\.\d+\.experts\.\w+\.fc[12]$",
        "all-linear": r".*layers\.\d+\.(attention\.(qkv|output)|experts\.\w+\.fc[12])$",
    }

    @torch.no_grad()
    def _init_weights(self, module):
        """Initial values of VLMo's code.

        Linear layers, embeddings (the padding row too), class and mask token, picture positions: normal, 0.02 (the
        code cuts some of them at 100 standard deviations), biases 0. Patch embedding: torch's default, uniform in
        +-1/sqrt(fan in). Norms 1 and 0; position bias 0; scales of residual branches `layer_scale_init_value`; logit
        scales log(1 / 0.07).
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)
        if isinstance(module, MomeBlock) and module.attention_scale is not None:
            init.constant_(module.attention_scale, self.config.layer_scale_init_value)
            init.constant_(module.expert_scale, self.config.layer_scale_init_value)
        elif isinstance(module, MomeAttention):
            init.zeros_(module.q_bias)
            init.zeros_(module.v_bias)
            if module.position_bias_table is not None:
                init.zeros_(module.position_bias_table)
        elif isinstance(module, MomeImageEmbeddings):
            init.normal_(module.cls_token, std=std)
            if module.position_embeddings is not None:
                init.normal_(module.position_embeddings, std=std)
        if isinstance(getattr(module, "mask_token", None), nn.Parameter):
            init.normal_(module.mask_token, std=std)
        for name in ("logit_scale", "logit_vl_scale"):
            if isinstance(getattr(module, name, None), nn.Parameter):
                init.constant_(getattr(module, name), self.config.logit_scale_init_value)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """As in the base class, and at other sizes than the checkpoint's.

        `image_size` interpolates the positions of the picture, `max_text_length` cuts or extends the text position
        table, `type_vocab_size` adds a type for the second picture, a copy of the first's. Give them as keyword
        arguments or in `config`.
        """
        path, stored = pretrained_model_name_or_path, {}
        if path is not None:
            hub_options = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
            try:
                content, _ = PreTrainedConfig.get_config_dict(path, **hub_options)
            except OSError:  # a folder of adapters: the library finds the model that they belong to
                content = {}
            if content.get("model_type") == cls.config_class.model_type:
                defaults = cls.config_class()
                stored = {name: content.get(name, getattr(defaults, name)) for name in RESIZABLE}
        if isinstance(config, (str, os.PathLike)):
            config = cls.config_class.from_pretrained(config)
        if isinstance(config, PreTrainedConfig):
            wanted = {name: getattr(config, name, value) for name, value in stored.items()}
        else:
            wanted = {name: kwargs[name] for name in stored if name in kwargs}
        if issubclass(cls, MomeForImagesAndTextClassification):
            wanted["type_vocab_size"] = max(3, wanted.get("type_vocab_size", stored.get("type_vocab_size", 3)))
        changed = {name: value for name, value in wanted.items() if name in stored and value != stored[name]}
        if not changed:
            return super().from_pretrained(path, *model_args, config=config, **kwargs)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            for name in changed:
                setattr(config, name, stored[name])
        else:
            kwargs = {name: value for name, value in kwargs.items() if name not in changed}
        loaded = super().from_pretrained(path, *model_args, config=config, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.resize_inputs(**changed)
        return loaded

    @torch.no_grad()
    def resize_inputs(
        self, image_size: int | None = None, max_text_length: int | None = None, type_vocab_size: int | None = None
    ):
        """Change the sizes of pictures and texts, in place; `None` leaves a size as it is.

        Tables of relative positions are resampled as in the original (a cubic spline over geometrically growing
        distances), absolute picture positions bicubically; the text position table keeps its first rows and gets new
        ones at random; a new type copies the last one. Raises ValueError for sizes that do not fit.
        """
        config = copy.deepcopy(self.config)
        for name, value in (
            ("image_size", image_size),
            ("max_text_length", max_text_length),
            ("type_vocab_size", type_vocab_size),
        ):
            if value is not None:
                setattr(config, name, value)
        config.check_sizes()
        base, before, after = self.base_model, self.config.window_size, config.window_size
        if after != before:
            for layer in base.layers:
                table = layer.attention.position_bias_table
                if table is not None:
                    table.data = interpolate_position_bias_table(
                        table, before, after, self.config.max_text_length_of_table
                    ).to(table.dtype)
            positions = base.image_embeddings.position_embeddings
            if positions is not None:
                positions.data = interpolate_position_embeddings(positions, after).to(positions.dtype)
        base.image_embeddings.image_size = config.image_size
        for table, rows in (
            (base.text_embeddings.position_embeddings, config.max_text_length),
            (base.token_type_embeddings, config.type_vocab_size),
        ):
            old = table.weight
            if rows < len(old):
                table.weight.data = old[:rows].clone()
            elif rows > len(old):
                new = old[-1:].repeat(rows - len(old), 1)
                if table is base.text_embeddings.position_embeddings:
                    new.normal_(std=config.initializer_range)
                table.weight.data = torch.cat((old, new))
            table.num_embeddings = rows
        for name in RESIZABLE:
            setattr(self.config, name, getattr(config, name))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: vectors, class and mask token, positions and their bias."""
        exempt = ("position_bias_table", "cls_token", "mask_token", "position_embeddings")
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or name.rsplit(".", 1)[-1] in exempt
        }

    def get_parameter_group(self, name: str) -> str:
        """`"head"` for the parameters of a task's new head, `"body"` for all others."""
        return "head" if name.startswith(self._head_prefixes) else "body"

    def get_parameter_layer(self, name: str) -> tuple[int, int]:
        """(depth, depth of the top) of a parameter: 0 embeddings, i + 1 block i, the top everything above."""
        top = self.config.num_hidden_layers + 1
        name = name.removeprefix(f"{self.base_model_prefix}.")
        if name.startswith(("text_embeddings.", "image_embeddings.", "token_type_embeddings.", "mask_token")):
            return 0, top
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1, top
        return top, top

    def _encode(self, *, only_first: bool = True, **inputs) -> MomeModelOutput:
        """The base model's output for a head; with `only_first` no more than the first position of the last block is
        computed, unless all states are asked for."""
        asked = any(inputs.get(name, getattr(self.config, name, False)) for name in RECORDED)
        if only_first and not asked:
            inputs["num_outputs"] = 1
        return self.base_model(return_dict=True, **inputs)

    def _take_negatives(
        self,
        negatives: HardNegatives,
        pixel_values: torch.Tensor,
        patches: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Embedded pictures, ids and masks of the drawn negatives, from all processes in training."""
        if self.training and world_size() > 1:
            input_ids, attention_mask = gather_texts(input_ids, attention_mask, self.config.pad_token_id or 0)
            drawn = self.base_model.image_embeddings(gather_rows(pixel_values)[negatives.image_index])
        else:
            drawn = patches[negatives.image_index]
        return drawn, input_ids[negatives.text_index], attention_mask[negatives.text_index]

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.base_model.text_embeddings.word_embeddings = value

    def enable_input_require_grads(self):
        """As in the base class, for pictures too: frozen parts in front of adapters let gradients pass."""
        super().enable_input_require_grads()
        hook = self.base_model.image_embeddings.register_forward_hook(lambda *call: call[-1].requires_grad_(True))
        self._require_grads_hooks.append(hook)

    def get_output_embeddings(self) -> nn.Linear | None:
        """The layer that scores the vocabulary, in models that predict words."""
        return self.mlm_head.decoder if hasattr(self, "mlm_head") else None

    def set_output_embeddings(self, value: nn.Linear):
        self.mlm_head.decoder = value

    def _make_base_model(self) -> "MomeModel":
        """The model without a head that a head of this system is built on."""
        raise TypeError(f"{type(self).__name__} is a base class: use a class of VLMo or VL-BEiT.")

    def _add_base_model(self):
        setattr(self, self.base_model_prefix, self._make_base_model())


class MomeModel:
    """Mixin of the Transformer without a head: encodes a picture, a text, or a pair of both."""

    _auto_class = "AutoModel"

    def __init__(self, config: MomeConfig):
        super().__init__(config)
        self.text_embeddings = MomeTextEmbeddings(config)
        self.image_embeddings = MomeImageEmbeddings(config)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MomeBlock(config, index) for index in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.pooler = MomePooler(config)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def from_beit_pretrained(
        cls,
        beit: str | os.PathLike | PreTrainedModel,
        *,
        dtype: torch.dtype | None = None,
        output_loading_info: bool = False,
        **kwargs,
    ) -> "MomeModel":
        """Start from a BEiT: attention, picture embedding and picture experts are its own, the rest is new.

        Args:
            beit: Hub id, folder or object of a BEiT with relative position bias, shared by its blocks (as after
                pre-training: every block gets a copy) or one for each (as after fine-tuning). Objects are copied.
            dtype: data type of the weights; that of the BEiT when not given.
            output_loading_info: also return a dict as `from_pretrained` does: `missing_keys`, parameters that are new,
                and `unexpected_keys`, those of the BEiT that have no place here.
            kwargs: fields of the configuration, such as `max_text_length` or `vl_expert_start_layer`, and options of
                the Hub (`revision`, `token`, ...).

        Text experts are not copied from the picture's, and the final norm stays new unless BEiT has one. Raises
        TypeError for models of another architecture, ValueError for a BEiT without relative position bias when
        `use_relative_position_bias`, and for positions or norms that have no place here.
        """
        config_kwargs, hub_options = split_hub_options(kwargs)
        source = load_beit(beit, **hub_options)
        theirs = source.config
        fields = {
            "hidden_size": theirs.hidden_size,
            "num_hidden_layers": theirs.num_hidden_layers,
            "num_attention_heads": theirs.num_attention_heads,
            "intermediate_size": theirs.intermediate_size,
            "image_size": theirs.image_size,
            "patch_size": theirs.patch_size,
            "num_channels": theirs.num_channels,
            "hidden_act": theirs.hidden_act,
            "layer_scale_init_value": theirs.layer_scale_init_value or None,
            "use_absolute_position_embeddings": theirs.use_absolute_position_embeddings,
            "vl_expert_start_layer": first_vl_block(theirs.num_hidden_layers),
            **config_kwargs,
        }
        config = cls.config_class(**fields)
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "patch_size"):
            if getattr(config, name) != getattr(theirs, name):
                raise ValueError(f"{name}={getattr(config, name)} differs from the BEiT's {getattr(theirs, name)}.")
        if config.vision_stem != "patch":
            raise ValueError(f"vision_stem={config.vision_stem!r} has no place for a BEiT's patch embedding.")
        if config.use_relative_position_bias and not (
            theirs.use_relative_position_bias or theirs.use_shared_relative_position_bias
        ):
            raise ValueError(
                "This BEiT has no relative position bias: give use_relative_position_bias=False, and with it absolute "
                "positions."
            )
        if theirs.use_absolute_position_embeddings and not config.use_absolute_position_embeddings:
            raise ValueError("This BEiT has absolute positions: leave out use_absolute_position_embeddings=False.")
        wanted_size, config.image_size = config.image_size, theirs.image_size
        model = cls(config)
        copied, unused = copy_beit(source, model)
        model.resize_inputs(image_size=wanted_size)
        model = model.to(dtype or source.dtype).eval()
        missing = [name for name, _ in model.named_parameters() if name not in copied]
        info = {"missing_keys": missing, "unexpected_keys": sorted(unused)}
        return (model, info) if output_loading_info else model

    def embed_text(
        self, input_ids: torch.LongTensor | None = None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Texts as they enter the first block, type embedding included: (rows, length, dim)."""
        embeddings = self.text_embeddings(input_ids, inputs_embeds)
        return embeddings + self._embed_type(0, embeddings.device)

    def embed_image(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        image_type: int | torch.LongTensor = 1,
    ) -> torch.Tensor:
        """Pictures as they enter the first block, type embedding included: (images, 1 + patches, dim).

        `image_embeds` takes the place of `pixel_values`: what `image_embeddings` returned for them. `image_type` is 1,
        2 for the second picture of a pair, or one of them for each picture, (images,).
        """
        if image_embeds is None:
            image_embeds = self.image_embeddings(pixel_values)
        return image_embeds + self._embed_type(image_type, image_embeds.device)

    def _embed_type(self, token_type: int | torch.LongTensor, device: torch.device) -> torch.Tensor:
        """(1 or rows, 1, dim). Called, not read: offloaded weights are in place only then."""
        return self.token_type_embeddings(torch.as_tensor(token_type, device=device).view(-1, 1))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
        image_type: int | torch.LongTensor = 1,
        output_vl_branch: bool = False,
        num_outputs: int | None = None,
        final_norm: bool = True,
        **kwargs,
    ) -> MomeModelOutput:
        """Encode what is given: pictures, texts, or pairs (VLMo, figure 2).

        Args:
            input_ids: (batch, length), beginning with T_CLS; any length up to `max_text_length_of_table`.
            attention_mask: (batch, length), 1 on tokens and 0 on padding, which follows the text.
            pixel_values: (batch, channels, image_size, image_size).
            inputs_embeds: (batch, length, dim), word embeddings in place of `input_ids`.
            image_embeds: (batch, 1 + patches, dim), from `image_embeddings`, in place of `pixel_values`.
            image_type: 1, or 2 for the second picture of NLVR2, or one of them per row, (batch,).
            output_vl_branch: for a single modality, also run it through the vision-language experts: the top blocks
                run a second time, on the output of the block below them.
            num_outputs: compute only so many leading positions in the last block: 1 when only the first is read. The
                returned states are shorter then; their values are the same.
            final_norm: False leaves out the final norm, and with it the pooler.

        Raises ValueError when nothing is given, when a text is too long or its batch differs from the pictures', and
        for `output_vl_branch` with a pair or in a model without vision-language experts.
        """
        has_text = input_ids is not None or inputs_embeds is not None
        has_image = pixel_values is not None or image_embeds is not None
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Give either input_ids or inputs_embeds, not both.")
        if not has_text and not has_image:
            raise ValueError(
                f"{type(self).__name__} encodes pictures, texts or both: give pixel_values, input_ids or both."
            )
        start = self.config.vl_expert_start_layer
        if output_vl_branch and ((has_text and has_image) or start == len(self.layers)):
            raise ValueError(
                "The vision-language branch (output_vl_branch) takes a picture or a text alone, and a model with "
                f"vision-language experts; this one has {len(self.layers) - start} of them."
            )
        parts, text_length = [], 0
        if has_text:
            text_shape = (input_ids if inputs_embeds is None else inputs_embeds).shape
            if len(text_shape) < 2:
                raise ValueError(f"input_ids must be of shape (batch, length), not {tuple(text_shape)}.")
            text_length = text_shape[1]
            self._check_text(text_length)
            if attention_mask is not None and attention_mask.shape != text_shape[:2]:
                raise ValueError(
                    f"attention_mask must be of the shape of the texts, {tuple(text_shape[:2])}, not "
                    f"{tuple(attention_mask.shape)}: pictures are always seen and have no place in it."
                )
            parts.append(self.embed_text(input_ids, inputs_embeds))
        if has_image:
            parts.append(self.embed_image(pixel_values, image_embeds, image_type))
        if has_text and has_image and len(parts[0]) != len(parts[1]):
            raise ValueError(
                f"{len(parts[0])} texts and {len(parts[1])} pictures do not make pairs: give as many of one as of the "
                "other."
            )
        if not has_text:
            attention_mask = None
        if attention_mask is not None:
            attention_mask = attention_mask.to(torch.bool)
            if has_image:
                seen = attention_mask.new_ones(parts[1].shape[:2])
                attention_mask = torch.cat((attention_mask, seen), dim=1)
        hidden_states = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        position_index = self._make_position_index(text_length, has_image, hidden_states.device)
        mask = create_bidirectional_mask(self.config, hidden_states, attention_mask)

        single = None if has_text and has_image else "image" if has_image else "text"
        options = {"position_index": position_index, "attention_mask": mask, "text_length": text_length, **kwargs}
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            if index == start:
                below = hidden_states
            expert = single or ("vl" if index >= start else None)
            num_kept = num_outputs if index == last else None
            hidden_states = layer(hidden_states, expert, num_outputs=num_kept, **options)
        if final_norm:
            hidden_states = self.norm(hidden_states)
        vl_hidden_state = None
        if output_vl_branch:
            for index in range(start, len(self.layers)):
                num_kept = num_outputs if index == last else None
                below = self.layers[index](below, "vl", num_outputs=num_kept, **options)
            vl_hidden_state = self.norm(below)
        return MomeModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states) if final_norm else None,
            text_hidden_state=hidden_states[:, :text_length] if has_text else None,
            image_hidden_state=hidden_states[:, text_length:] if has_image else None,
            vl_hidden_state=vl_hidden_state,
        )

    def _check_text(self, length: int):
        if length < 1:
            raise ValueError("A text of no tokens: it holds at least the one that it begins with, T_CLS.")
        config = self.config
        longest = config.max_text_length_of_table
        if config.use_absolute_position_embeddings or not config.use_relative_position_bias:
            longest = min(longest, config.max_text_length)
        if length > longest:
            raise ValueError(
                f"A text of {length} tokens is longer than the {longest} that this model has positions for: truncate "
                f"it, processor(..., truncation=True, max_length={longest})."
            )

    def _make_position_index(self, text_length: int, has_image: bool, device) -> torch.Tensor | None:
        """Rows of the bias tables for the sequence at hand: (length, length)."""
        if not self.config.use_relative_position_bias:
            return None
        window, table_length = self.config.window_size, self.config.max_text_length_of_table
        text = image = None
        if text_length:
            text = make_text_position_index(text_length, window, table_length, device)
        if has_image:
            image = make_image_position_index(window, device)
        if text is None or image is None:
            return image if text is None else text
        return make_pair_position_index(text, image, window)


class MomeForMaskedLM:
    """Mixin of the head for masked words of a text alone, or of a text with its picture."""

    _auto_class = "AutoModelForMaskedLM"

    def __init__(self, config: MomeConfig):
        super().__init__(config)
        self._add_base_model()
        self.mlm_head = MomeMaskedLanguageHead(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedLMOutput:
        """Predict masked words.

        Args:
            input_ids, attention_mask: (batch, length), with [MASK] where words are hidden.
            pixel_values: (batch, channels, size, size) for the words of captions.
            labels: (batch, length), the hidden words, -100 everywhere else.

        Returns the mean cross-entropy over hidden words (0 without any) and logits (batch, length, vocabulary). Raises
        ValueError for labels of another shape.
        """
        outputs = self._encode(
            only_first=False,
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.mlm_head(outputs.text_hidden_state)
        loss = None if labels is None else masked_language_loss(logits, check_word_labels(labels, logits.shape))
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MomeForMaskedImageModeling:
    """Mixin of the head for hidden patches of a picture (MIM): one linear layer to the classes of visual tokens."""

    _auto_class = "AutoModelForMaskedImageModeling"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: MomeConfig):
        super().__init__(config)
        self._add_base_model()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mim_head = nn.Linear(config.hidden_size, config.visual_vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        bool_masked_pos: torch.BoolTensor | None = None,
        visual_token_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> MaskedImageOutput:
        """Predict the visual tokens of hidden patches.

        Args:
            pixel_values: (batch, channels, size, size).
            bool_masked_pos: (batch, patches), True where a patch is hidden, row by row; for targets, needed.
            visual_token_ids: (batch, patches), classes of all patches; those of hidden ones are the targets.

        Returns the mean cross-entropy over hidden patches (0 without any) and logits (batch, patches, visual
        vocabulary). Raises ValueError for a mask or visual tokens of another shape or beyond the vocabulary.
        """
        embeddings = self.base_model.image_embeddings(pixel_values, bool_masked_pos, self.mask_token)
        outputs = self._encode(only_first=False, image_embeds=embeddings, **kwargs)
        logits = self.mim_head(outputs.image_hidden_state[:, 1:])
        loss = None
        if visual_token_ids is not None:
            loss = masked_image_loss(logits, visual_token_ids, bool_masked_pos)
        return MaskedImageOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MomeForVisualQuestionAnswering:
    """Mixin of the head for questions about pictures, with a closed list of answers."""

    _auto_class = "AutoModelForVisualQuestionAnswering"

    def __init__(self, config: MomeConfig):
        super().__init__(config)
        self._add_base_model()
        self.classifier = MomeClassifier(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.FloatTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Answer questions.

        Args:
            input_ids, attention_mask: (batch, length). pixel_values: (batch, channels, size, size).
            labels: (batch, answers), soft scores in [0, 1], or (batch,), answers whose score is 1; rows of -100 do
                not count.

        Returns binary cross-entropy, averaged over all entries and multiplied by the number of answers, and logits
        (batch, answers), whose sigmoid estimates the score.
        """
        outputs = self._encode(input_ids=input_ids, attention_mask=attention_mask, pixel_values=pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else soft_label_loss(logits, labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MomeForImagesAndTextClassification:
    """Mixin of NLVR2's head: two fusion passes, the second with its own picture type."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: MomeConfig):
        super().__init__(config)
        check_classes(config)
        self._add_base_model()
        self.classifier = MomeClassifier(config, num_inputs=2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify statements over pairs of pictures.

        Args:
            input_ids, attention_mask: (batch, length).
            pixel_values: (batch, 2, channels, size, size), left and right picture.
            labels: (batch,), class numbers, 1 being "True" in the published models; -100 does not count.

        Returns the mean cross-entropy and logits (batch, labels); states and attentions have two rows to a statement.
        Raises ValueError when there are not two pictures to a statement.
        """
        if pixel_values is None or pixel_values.ndim != 5 or pixel_values.shape[1] != 2:
            found = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(
                f"pixel_values must hold two pictures each, (batch, 2, channels, size, size), not {found}."
            )
        if self.config.type_vocab_size < 3:
            raise ValueError(
                f"type_vocab_size={self.config.type_vocab_size} has no type for the second picture: make the model "
                f"with {type(self.config).__name__}(type_vocab_size=3), or call resize_inputs(type_vocab_size=3)."
            )
        batch = len(pixel_values)
        outputs = self._encode(
            input_ids=None if input_ids is None else input_ids.repeat_interleave(2, dim=0),
            attention_mask=None if attention_mask is None else attention_mask.repeat_interleave(2, dim=0),
            pixel_values=pixel_values.flatten(0, 1),
            image_type=torch.tensor((1, 2), device=pixel_values.device).repeat(batch),
            **kwargs,
        )
        logits = self.classifier(outputs.pooler_output.view(batch, -1))  # left and right picture side by side
        loss = None if labels is None else classification_loss(logits, labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class MomeForImageTextRetrieval:
    """Mixin of the dual encoder for retrieval and zero-shot classification, with a matching head for re-ranking if it
    has one."""

    _auto_class = "AutoModelForZeroShotImageClassification"

    # Whether training fine-tunes the matching head beside the contrastive projections.
    _trains_matching = False

    def __init__(self, config: MomeConfig):
        super().__init__(config)
        dim = config.hidden_size
        self._add_base_model()
        self.itc_text_projection = nn.Linear(dim, dim, bias=False)
        self.itc_image_projection = nn.Linear(dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.itm_head = nn.Linear(dim, 2) if config.use_matching_head else None
        self.post_init()

    @can_return_tuple
    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        """Unit-norm features of pictures (images, channels, size, size): `pooler_output`, (images, dim)."""
        outputs = self._encode(only_first=False, pixel_values=pixel_values, **kwargs)
        return project(outputs, self.itc_image_projection)

    @can_return_tuple
    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Unit-norm features of texts (texts, length): `pooler_output`, (texts, dim)."""
        outputs = self._encode(only_first=False, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        return project(outputs, self.itc_text_projection)

    def score_pairs(
        self,
        pixel_values: torch.FloatTensor,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        image_embeds: torch.FloatTensor | None = None,
    ) -> torch.Tensor:
        """The matching head's "match" logit of each pair, (pairs,): add it to the cosine to re-rank candidates.

        Raises ValueError for a model without matching head.
        """
        if self.itm_head is None:
            raise ValueError(
                "This model has no matching head to re-rank with (config.use_matching_head is False): rank by "
                "similarity, or use a model fine-tuned or pre-trained with image-text matching."
            )
        outputs = self._encode(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_embeds=image_embeds,
        )
        return self.itm_head(outputs.pooler_output)[:, 1]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        return_loss: bool = True,
        chunk_size: int | None = None,
        **kwargs,
    ) -> MomeImageTextOutput:
        """Compare all pictures (images, channels, size, size) with all texts (texts, length).

        The loss takes text i as the one of picture i, over the pairs of all processes in training; it is `None` when
        the numbers differ. Where the system fine-tunes its matching head, training adds matching with hard negatives.
        `chunk_size` trains on batches that do not fit into memory: so many rows are encoded at a time, and once more
        in the backward pass. A single pair, as the last batch of an epoch may be, has no negative and no matching.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in RECORDED}  # of which tower?
        if attention_mask is None and input_ids is not None:
            attention_mask = torch.ones_like(input_ids)

        def encode_images(patches):
            outputs = self._encode(image_embeds=patches, **kwargs)
            return project(outputs, self.itc_image_projection).pooler_output

        def encode_texts(input_ids, attention_mask):
            outputs = self._encode(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            return project(outputs, self.itc_text_projection).pooler_output

        def encode_pairs(patches, input_ids, attention_mask):
            texts = {"input_ids": input_ids, "attention_mask": attention_mask}
            return self._encode(image_embeds=patches, **texts, **kwargs).pooler_output

        def run(encode, *rows):
            if chunk_size is None or not torch.is_grad_enabled():
                return encode(*rows)
            return encode_in_chunks(encode, *rows, chunk_size=chunk_size)

        patches = self.base_model.image_embeddings(pixel_values)
        image_embeds, text_embeds = run(encode_images, patches), run(encode_texts, input_ids, attention_mask)
        all_images, all_texts = image_embeds, text_embeds
        is_paired = return_loss and len(image_embeds) == len(text_embeds)
        if is_paired and self.training:
            all_images, all_texts = gather_features(image_embeds), gather_features(text_embeds)
        logits_per_image = contrastive_logits(all_images, all_texts, self.logit_scale)
        loss = losses = None
        if is_paired:
            loss = contrastive_loss(logits_per_image)
            if self._trains_matching and self.itm_head is not None:
                losses, loss = {"itc": loss}, self.config.itc_loss_weight * loss
                if self.training and len(logits_per_image) > 1:
                    negatives = draw_hard_negatives(logits_per_image, len(patches))
                    negative_images, negative_ids, negative_masks = self._take_negatives(
                        negatives, pixel_values, patches, input_ids, attention_mask
                    )
                    pooled = run(
                        encode_pairs,
                        torch.cat((patches, negative_images, patches)),
                        cat_texts((input_ids, input_ids, negative_ids), self.config.pad_token_id or 0),
                        cat_texts((attention_mask, attention_mask, negative_masks), 0),
                    )
                    losses["itm"] = matching_loss(self.itm_head(pooled))
                    loss = loss + self.config.itm_loss_weight * losses["itm"]
        return MomeImageTextOutput(
            loss=loss,
            losses=losses,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )


def project(outputs: MomeModelOutput, projection: nn.Linear, vl_branch: bool = False) -> BaseModelOutputWithPooling:
    """Unit-norm features from the first position; `vl_branch` takes it from the second pass."""
    hidden_states = outputs.vl_hidden_state if vl_branch else outputs.last_hidden_state
    features = nn.functional.normalize(projection(hidden_states[:, 0]), dim=-1)
    return BaseModelOutputWithPooling(hidden_states, features, outputs.hidden_states, outputs.attentions)


def cat_texts(parts: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    """Texts or masks (rows, length) below each other, padded on the right to the longest with `value`."""
    longest = max(part.shape[1] for part in parts)
    return torch.cat([nn.functional.pad(part, (0, longest - part.shape[1]), value=value) for part in parts])


def split_hub_options(kwargs: dict) -> tuple[dict, dict]:
    """Fields of a configuration, and options that say where a source is looked for and read."""
    options = {name: kwargs[name] for name in kwargs if name in (*_HUB_OPTIONS, "trust_remote_code")}
    return {name: value for name, value in kwargs.items() if name not in options}, options


def load_beit(model: str | os.PathLike | PreTrainedModel, **hub_options) -> BeitPreTrainedModel:
    """A BEiT given by id, folder or object; TypeError for a model of another architecture.

    With its head where that holds the final norm: after masked image modelling.
    """
    if isinstance(model, BeitPreTrainedModel):
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"Give a BEiT or the id or folder of one, not from {type(model).__name__}.")
    config = AutoConfig.from_pretrained(model, **hub_options)
    if config.model_type != "beit":
        raise TypeError(f"{model} is a {config.model_type!r} model; the picture path starts from a BEiT.")
    has_norm = BeitForMaskedImageModeling.__name__ in (config.architectures or ())
    return (BeitForMaskedImageModeling if has_norm else BeitModel).from_pretrained(model, config=config, **hub_options)


def check_classes(config: MomeConfig) -> None:
    """Raise ValueError for anything but one of several classes: the heads have this loss alone."""
    if config.num_labels < 2 or config.problem_type not in (None, "single_label_classification"):
        raise ValueError(
            f"This head chooses one of at least two classes, and not with num_labels={config.num_labels} and "
            f"problem_type={config.problem_type!r}: set num_labels or id2label, and leave out problem_type."
        )


def check_word_labels(labels: torch.Tensor, logits_shape: Sequence[int]) -> torch.Tensor:
    """The labels of masked words (texts, length), which must fit logits (texts, length, vocabulary)."""
    if labels.shape != torch.Size(logits_shape[:2]):
        raise ValueError(
            f"labels of masked words must be of the shape of the texts, {tuple(logits_shape[:2])}, not "
            f"{tuple(labels.shape)}: -100 where nothing is predicted."
        )
    return labels


@torch.no_grad()
def copy_beit(source: BeitPreTrainedModel, target: MomeModel) -> tuple[set[str], set[str]]:
    """Copy embeddings, attention, picture experts and position bias of a BEiT of the same size.

    A bias table shared by all blocks of the BEiT is copied to each of ours. Returns the names of our parameters that
    were filled, in part at least, and those of the BEiT's that were not used. Raises ValueError for a BEiT that
    normalises twice.
    """
    theirs = {name.removeprefix("beit."): parameter for name, parameter in source.named_parameters()}
    ours = {
        "image_embeddings.cls_token": ["embeddings.cls_token"],
        "image_embeddings.patch_projection.weight": ["embeddings.patch_embeddings.projection.weight"],
        "image_embeddings.patch_projection.bias": ["embeddings.patch_embeddings.projection.bias"],
    }
    if "embeddings.position_embeddings" in theirs:
        ours["image_embeddings.position_embeddings"] = ["embeddings.position_embeddings"]
    if isinstance(source, BeitForMaskedImageModeling) and not source.config.use_mean_pooling:
        raise ValueError("This BEiT has a final norm and another one in its head, and here is one: give its `beit`.")
    if "layernorm.weight" in theirs:  # absent from mean-pooled models
        ours |= {"norm.weight": ["layernorm.weight"], "norm.bias": ["layernorm.bias"]}
    tables = {}
    for index, layer in enumerate(target.layers):
        block = f"layers.{index}."  # here and there
        attention = f"{block}attention."
        ours |= {
            f"{attention}qkv.weight": [f"{attention}{part}_proj.weight" for part in "qkv"],
            f"{attention}q_bias": [f"{attention}q_proj.bias"],
            f"{attention}v_bias": [f"{attention}v_proj.bias"],
            f"{attention}output.weight": [f"{attention}o_proj.weight"],
            f"{attention}output.bias": [f"{attention}o_proj.bias"],
        }
        for end in ("weight", "bias"):
            ours |= {
                f"{block}attention_norm.{end}": [f"{block}layernorm_before.{end}"],
                f"{block}experts.image.norm.{end}": [f"{block}layernorm_after.{end}"],
                f"{block}experts.image.fc1.{end}": [f"{block}mlp.fc1.{end}"],
                f"{block}experts.image.fc2.{end}": [f"{block}mlp.fc2.{end}"],
            }
        if layer.attention_scale is not None and f"{block}lambda_1" in theirs:
            ours |= {f"{block}attention_scale": [f"{block}lambda_1"], f"{block}expert_scale": [f"{block}lambda_2"]}
        if layer.attention.position_bias_table is not None:
            own = f"{block}relative_position_bias.relative_position_bias_table"
            used = own if own in theirs else "shared_position_bias.relative_position_bias_table"
            # Rows of texts and of pairs come after those of pictures and stay 0.
            layer.attention.position_bias_table[: len(theirs[used])] = theirs[used]
            tables[f"{block}attention.position_bias_table"] = [used]
    parameters = dict(target.named_parameters())
    for name, parts in ours.items():
        parameters[name].copy_(torch.cat([theirs[part] for part in parts]))
    ours |= tables
    return set(ours), theirs.keys() - {part for parts in ours.values() for part in parts}
