"""VLMo: one Transformer as picture encoder, text encoder, dual encoder and fusion encoder.

Paper: Bao et al., "VLMo: Unified Vision-Language Pre-Training with Mixture-of-Modality-Experts", NeurIPS 2022,
https://arxiv.org/abs/2111.02358. Reference weights: the files of the original release, turned into ours by
`hf-vlp convert vlmo`.

Differences from the paper and from the original code:

* runs on one process, on the CPU and in any batch; the original needs a process group on GPUs;
* a batch without a masked word has MLM loss 0 (NaN in the original); hard negatives are drawn from a softmax without
  the own pair, the same distribution as the original's, which divides by zero when the own pair takes it all;
* the four fusion passes of a pre-training step run as one batch, pictures are embedded once, and the last block
  computes only the positions that are read; all numbers stay the same;
* `VlmoForImageClassification` has no counterpart in the release; its head is a decision of this package;
* reproduced as they are: untied vocabulary head, logit scales without a limit, an unused text position table.
"""

import copy
import os
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, MaskedLMOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_vlmo import VlmoConfig
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
    masked_language_loss,
    matching_loss,
    soft_label_loss,
    world_size,
)
from .saving import SelfContainedSaving

logger = logging.get_logger(__name__)

# Sizes that a checkpoint may have other than the configuration that it is loaded with.
_RESIZABLE = ("image_size", "max_text_length", "type_vocab_size")
_RECORDED = ("output_hidden_states", "output_attentions")
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


@dataclass
class VlmoModelOutput(ModelOutput):
    """Output of `VlmoModel`; dim is `hidden_size`.

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
class VlmoForPreTrainingOutput(ModelOutput):
    """Output of `VlmoForPreTraining`; B pairs in this process, G in all that are gathered, own rows first.

    loss: weighted sum of the losses, a scalar. losses: the three terms before weighting: "mlm", "itc", "itm".
    mlm_logits: (B, length, vocabulary) for the masked texts, each fused with its picture.
    itm_logits: (3B, 2): pairs, texts with negative pictures, pictures with negative texts; index 1 is "match".
    logits_per_image, logits_per_text: scaled similarities, (G, G); vl_logits_per_image: those of the vision-language
        branch.
    image_embeds, text_embeds, image_vl_embeds, text_vl_embeds: unit-norm features, each (B, dim).
    itm_negative_image_index, itm_negative_text_index: the drawn negatives, each (B,), positions among G.
    """

    loss: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    mlm_logits: torch.FloatTensor | None = None
    itm_logits: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    vl_logits_per_image: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None
    image_vl_embeds: torch.FloatTensor | None = None
    text_vl_embeds: torch.FloatTensor | None = None
    itm_negative_image_index: torch.LongTensor | None = None
    itm_negative_text_index: torch.LongTensor | None = None


@dataclass
class VlmoImageTextOutput(ModelOutput):
    """Output of `VlmoForImageTextRetrieval`.

    loss: contrastive, a scalar, when there are as many texts as pictures.
    logits_per_image, logits_per_text: scaled similarities, (images, texts) and its transpose; over the pairs of all
        processes in training.
    image_embeds, text_embeds: unit-norm features, (images, dim) and (texts, dim).
    """

    loss: torch.FloatTensor | None = None
    logits_per_image: torch.FloatTensor | None = None
    logits_per_text: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    text_embeds: torch.FloatTensor | None = None


class VlmoPreTrainedModel(SelfContainedSaving, PreTrainedModel):
    """What all VLMo classes share: capabilities, initialisation, loading at other sizes, answers about parameters."""

    config: VlmoConfig
    base_model_prefix = "vlmo"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Flash attention takes no bias of the scores.
    _supports_flash_attn = False
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _no_split_modules = ["MomeBlock"]
    _input_embed_layer = "word_embeddings"
    _can_record_outputs = {"hidden_states": MomeBlock, "attentions": MomeAttention}
    # Objectives are means over pairs or labels of a batch: Trainer must divide by the accumulation steps itself.
    accepts_loss_kwargs = False

    _exported_classes = {
        "AutoModel": "VlmoModel",
        "AutoModelForPreTraining": "VlmoForPreTraining",
        "AutoModelForMaskedLM": "VlmoForMaskedLM",
        "AutoModelForVisualQuestionAnswering": "VlmoForVisualQuestionAnswering",
        "AutoModelForSequenceClassification": "VlmoForImagesAndTextClassification",
        "AutoModelForZeroShotImageClassification": "VlmoForImageTextRetrieval",
        "AutoModelForImageClassification": "VlmoForImageClassification",
    }

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
        """Initial values of the original.

        Linear layers, embeddings (the padding row too), class token, picture positions: normal, 0.02 (the original
        cuts some of them at 100 standard deviations), biases 0. Patch embedding: torch's default, uniform in
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
                stored = {name: content.get(name, getattr(defaults, name)) for name in _RESIZABLE}
        if isinstance(config, PreTrainedConfig):
            wanted = {name: getattr(config, name, value) for name, value in stored.items()}
        else:
            wanted = {name: kwargs[name] for name in stored if name in kwargs}
        if issubclass(cls, VlmoForImagesAndTextClassification):
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
        for name in _RESIZABLE:
            setattr(self.config, name, getattr(config, name))

    def no_weight_decay(self, original: bool = False) -> set[str]:
        """Names of the parameters without weight decay.

        Biases, norms, scales, class token, position bias and other vectors; with `original`, exactly those of the
        original's optimizer: biases and the position bias, whose names contain "bias", the norms of attention, text
        embeddings, vocabulary head and the final one - while norms of experts and task heads, scales, class token and
        position embeddings decay.
        """
        names = set()
        for name, parameter in self.named_parameters():
            last = name.rsplit(".", 1)[-1]
            if original:
                of_norm = last == "weight" and name.endswith(
                    ("text_embeddings.layer_norm.weight", "mlm_head.layer_norm.weight", "attention_norm.weight")
                )
                final = name in ("norm.weight", f"{self.base_model_prefix}.norm.weight")
                exempt = last in ("bias", "q_bias", "v_bias", "position_bias_table") or of_norm or final
            else:
                exempt = parameter.ndim < 2 or last in ("position_bias_table", "cls_token", "position_embeddings")
            if exempt:
                names.add(name)
        return names

    def get_parameter_group(self, name: str) -> str:
        """`"head"` for the parameters of a task's new head, `"body"` for all others."""
        return "head" if name.startswith("classifier.") else "body"

    def get_parameter_layer(self, name: str) -> tuple[int, int]:
        """(depth, depth of the top) of a parameter: 0 embeddings, i + 1 block i, the top everything above."""
        top = self.config.num_hidden_layers + 1
        name = name.removeprefix(f"{self.base_model_prefix}.")
        if name.startswith(("text_embeddings.", "image_embeddings.", "token_type_embeddings.")):
            return 0, top
        if name.startswith("layers."):
            return int(name.split(".")[1]) + 1, top
        return top, top

    def freeze_for_language_stage(self):
        """Freeze what stage 2 of the paper freezes: attention, its norms, scales, all of the picture, the pooler.

        Text embeddings, type table, text experts with their norms, position bias, final norm, vocabulary head train.
        """
        self.requires_grad_(False)
        base = self.base_model
        trained = [base.text_embeddings, base.token_type_embeddings, base.norm, getattr(self, "mlm_head", None)]
        trained += [layer.experts["text"] for layer in base.layers]
        for module in trained:
            if module is not None:
                module.requires_grad_(True)
        for layer in base.layers:
            if layer.attention.position_bias_table is not None:
                layer.attention.position_bias_table.requires_grad_(True)

    def _encode(self, *, only_first: bool = True, **inputs) -> VlmoModelOutput:
        """The base model's output for a head; with `only_first` no more than the first position of the last block is
        computed, unless all states are asked for."""
        asked = any(inputs.get(name, getattr(self.config, name, False)) for name in _RECORDED)
        if only_first and not asked:
            inputs["num_outputs"] = 1
        return self.base_model(return_dict=True, **inputs)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.base_model.text_embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding):
        self.base_model.text_embeddings.word_embeddings = value


class VlmoModel(VlmoPreTrainedModel):
    """The Transformer without a head: encodes a picture, a text, or a pair of both.

    >>> model = VlmoModel.from_pretrained("path/or/id")
    >>> model(**processor(images=picture)).pooler_output  # a picture
    >>> model(**processor(images=picture, text="a dog on a beach")).last_hidden_state  # text first, then the picture
    """

    _auto_class = "AutoModel"

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        layers = config.num_hidden_layers
        drop_probs = [config.drop_path_rate * index / max(1, layers - 1) for index in range(layers)]
        self.text_embeddings = MomeTextEmbeddings(config)
        self.image_embeddings = MomeImageEmbeddings(config)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            MomeBlock(config, has_vl_expert=index >= config.vl_expert_start_layer, drop_prob=drop_probs[index])
            for index in range(layers)
        )
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
        **config_kwargs,
    ) -> "VlmoModel":
        """Start from a BEiT: attention, picture embedding and picture experts are its own, the rest is new.

        Args:
            beit: Hub id, folder or object of a BEiT with relative position bias, shared by its blocks (as after
                pre-training: every block gets a copy) or one for each (as after fine-tuning). Objects are copied.
            dtype: data type of the weights; that of the BEiT when not given.
            output_loading_info: also return a dict with the `missing_keys`, as `from_pretrained` does: new parameters.
            config_kwargs: fields of `VlmoConfig`, such as `max_text_length` or `vl_expert_start_layer`.

        Text experts are not copied from the picture's, and the final norm stays new unless BEiT has one. Raises
        TypeError for models of another architecture, ValueError for a BEiT without relative position bias when
        `use_relative_position_bias`.
        """
        source = load_beit(beit)
        theirs = source.config
        layers = theirs.num_hidden_layers
        fields = {
            "hidden_size": theirs.hidden_size,
            "num_hidden_layers": layers,
            "num_attention_heads": theirs.num_attention_heads,
            "intermediate_size": theirs.intermediate_size,
            "image_size": theirs.image_size,
            "patch_size": theirs.patch_size,
            "num_channels": theirs.num_channels,
            "hidden_act": theirs.hidden_act,
            "layer_scale_init_value": theirs.layer_scale_init_value or None,
            "vl_expert_start_layer": max(0, layers - (2 if layers <= 12 else 3)),
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
                "This BEiT has no relative position bias: give use_relative_position_bias=False and "
                "use_absolute_position_embeddings=True."
            )
        wanted_size, config.image_size = config.image_size, theirs.image_size
        model = cls(config)
        copied = copy_beit(source, model)
        model.resize_inputs(image_size=wanted_size)
        model = model.to(dtype or source.dtype).eval()
        missing = [name for name, _ in model.named_parameters() if name not in copied]
        return (model, {"missing_keys": missing}) if output_loading_info else model

    def embed_text(
        self, input_ids: torch.LongTensor | None = None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Texts as they enter the first block, type embedding included: (rows, length, dim)."""
        return self.text_embeddings(input_ids, inputs_embeds) + self.token_type_embeddings.weight[0]

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
        if isinstance(image_type, int):
            return image_embeds + self.token_type_embeddings.weight[image_type]
        return image_embeds + self.token_type_embeddings(image_type).unsqueeze(1)

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
        **kwargs,
    ) -> VlmoModelOutput:
        """Encode what is given: pictures, texts, or pairs (spec of the paths: paper, figure 2).

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

        Raises ValueError when nothing is given, when a text is too long or its batch differs from the pictures', and
        for `output_vl_branch` with a pair or in a model without vision-language experts.
        """
        has_text = input_ids is not None or inputs_embeds is not None
        has_image = pixel_values is not None or image_embeds is not None
        if input_ids is not None and inputs_embeds is not None:
            raise ValueError("Give either input_ids or inputs_embeds, not both.")
        if not has_text and not has_image:
            raise ValueError("VLMo encodes pictures, texts or both: give pixel_values, input_ids or both.")
        start = self.config.vl_expert_start_layer
        if output_vl_branch and ((has_text and has_image) or start == len(self.layers)):
            raise ValueError(
                "The vision-language branch (output_vl_branch) takes a picture or a text alone, and a model with "
                f"vision-language experts; this one has {len(self.layers) - start} of them."
            )
        parts, text_length = [], 0
        if has_text:
            text_length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            self._check_text(text_length)
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
        hidden_states = self.norm(hidden_states)
        vl_hidden_state = None
        if output_vl_branch:
            for index in range(start, len(self.layers)):
                num_kept = num_outputs if index == last else None
                below = self.layers[index](below, "vl", num_outputs=num_kept, **options)
            vl_hidden_state = self.norm(below)
        return VlmoModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=self.pooler(hidden_states),
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


class VlmoForImageClassification(VlmoPreTrainedModel):
    """Labels of a picture: the pooled I_CLS and a linear layer.

    The paper fine-tunes its picture path on ImageNet; the release has no code for it. This head is the plainest one.
    """

    _auto_class = "AutoModelForImageClassification"
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        self.vlmo = VlmoModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Classify pictures (batch, channels, size, size); `labels` (batch,) are class numbers, -100 does not count.

        Returns the mean cross-entropy and logits (batch, labels).
        """
        outputs = self._encode(pixel_values=pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else classification_loss(logits, labels)
        return SequenceClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class VlmoForImagesAndTextClassification(VlmoPreTrainedModel):
    """Is a statement true of two pictures (NLVR2): two fusion passes, the second with its own picture type.

    Needs a configuration with `type_vocab_size=3`; `from_pretrained` adds the third type to any other checkpoint.
    """

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        self.vlmo = VlmoModel(config)
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
                "with VlmoConfig(type_vocab_size=3), or call resize_inputs(type_vocab_size=3)."
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


class VlmoForImageTextRetrieval(VlmoPreTrainedModel):
    """Dual encoder for retrieval and zero-shot classification, with a matching head for re-ranking if it has one.

    >>> images = model.get_image_features(**processor(images=pictures)).pooler_output
    >>> texts = model.get_text_features(**processor(text=captions, padding=True)).pooler_output
    >>> similarity = images @ texts.T
    """

    _auto_class = "AutoModelForZeroShotImageClassification"

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        dim = config.hidden_size
        self.vlmo = VlmoModel(config)
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
    ) -> VlmoImageTextOutput:
        """Compare all pictures (images, channels, size, size) with all texts (texts, length).

        The loss takes text i as the one of picture i, over the pairs of all processes in training; it is `None` when
        the numbers differ. The matching head takes no part in it. `chunk_size` trains on batches that do not fit into
        memory: so many rows are encoded at a time, and once more in the backward pass.
        """
        kwargs = {name: value for name, value in kwargs.items() if name not in _RECORDED}  # of which tower?
        if attention_mask is None and input_ids is not None:
            attention_mask = torch.ones_like(input_ids)

        def encode_images(pixel_values):
            outputs = self._encode(pixel_values=pixel_values, **kwargs)
            return project(outputs, self.itc_image_projection).pooler_output

        def encode_texts(input_ids, attention_mask):
            outputs = self._encode(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            return project(outputs, self.itc_text_projection).pooler_output

        if chunk_size is None or not torch.is_grad_enabled():
            image_embeds, text_embeds = encode_images(pixel_values), encode_texts(input_ids, attention_mask)
        else:
            image_embeds = encode_in_chunks(encode_images, pixel_values, chunk_size=chunk_size)
            text_embeds = encode_in_chunks(encode_texts, input_ids, attention_mask, chunk_size=chunk_size)
        all_images, all_texts = image_embeds, text_embeds
        is_paired = return_loss and len(image_embeds) == len(text_embeds)
        if is_paired and self.training:
            all_images, all_texts = gather_features(image_embeds), gather_features(text_embeds)
        logits_per_image = contrastive_logits(all_images, all_texts, self.logit_scale)
        return VlmoImageTextOutput(
            loss=contrastive_loss(logits_per_image) if is_paired else None,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_image.t(),
            image_embeds=image_embeds,
            text_embeds=text_embeds,
        )


class VlmoForMaskedLM(VlmoPreTrainedModel):
    """Masked words of a text alone (stage 2), or of a text with its picture."""

    _auto_class = "AutoModelForMaskedLM"
    _tied_weights_keys = {"mlm_head.decoder.weight": "vlmo.text_embeddings.word_embeddings.weight"}

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        self.vlmo = VlmoModel(config)
        self.mlm_head = MomeMaskedLanguageHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear):
        self.mlm_head.decoder = value

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

        Returns the mean cross-entropy over hidden words (0 without any) and logits (batch, length, vocabulary).
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
        loss = None if labels is None else masked_language_loss(logits, labels)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class VlmoForPreTraining(VlmoPreTrainedModel):
    """Pre-training on pairs (stage 3): masked words, contrast, and matching with hard negatives.

    >>> outputs = model(**batch)  # of hf_vlp.data.task_collators.PreTrainingCollator
    >>> outputs.loss, outputs.losses["itm"]
    """

    _auto_class = "AutoModelForPreTraining"
    _tied_weights_keys = {"mlm_head.decoder.weight": "vlmo.text_embeddings.word_embeddings.weight"}

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        dim = config.hidden_size
        self.vlmo = VlmoModel(config)
        self.mlm_head = MomeMaskedLanguageHead(config)
        self.itm_head = nn.Linear(dim, 2)
        self.itc_text_projection = nn.Linear(dim, dim, bias=False)
        self.itc_image_projection = nn.Linear(dim, dim, bias=False)
        self.itc_text_vl_projection = nn.Linear(dim, dim, bias=False)
        self.itc_image_vl_projection = nn.Linear(dim, dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.logit_vl_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.mlm_head.decoder

    def set_output_embeddings(self, value: nn.Linear):
        self.mlm_head.decoder = value

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.FloatTensor, vl_branch: bool = False, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Unit-norm features of pictures, `pooler_output` (images, dim); `vl_branch` takes the other branch's."""
        outputs = self._encode(only_first=False, pixel_values=pixel_values, output_vl_branch=vl_branch, **kwargs)
        return project(outputs, self.itc_image_vl_projection if vl_branch else self.itc_image_projection, vl_branch)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        vl_branch: bool = False,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Unit-norm features of texts, `pooler_output` (texts, dim); `vl_branch` takes the other branch's."""
        texts = {"input_ids": input_ids, "attention_mask": attention_mask}
        outputs = self._encode(only_first=False, output_vl_branch=vl_branch, **texts, **kwargs)
        return project(outputs, self.itc_text_vl_projection if vl_branch else self.itc_text_projection, vl_branch)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        mlm_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        itm_negative_image_index: torch.LongTensor | None = None,
        itm_negative_text_index: torch.LongTensor | None = None,
        num_matching: int | None = None,
        **kwargs,
    ) -> VlmoForPreTrainingOutput:
        """One step on B pairs: three objectives on two unimodal passes and one fusion pass of 4B rows.

        Args:
            input_ids, attention_mask: captions without masks, (B, length).
            pixel_values: their pictures, (B, channels, size, size).
            mlm_input_ids: the captions with masked words, (B, length); default `input_ids`.
            labels: the masked words, (B, length), -100 elsewhere; without them there is no loss.
            itm_negative_image_index, itm_negative_text_index: (B,), negatives drawn before, positions among the pairs
                of all processes, own ones first; drawn by similarity when not given.
            num_matching: pairs of the batch that take part in matching, the first ones (default all with `labels` or
                given negatives, else none): less work, and another training. Not in the original.

        Raises ValueError for matching in a batch of one pair, which has no negative, and when the negatives of only
        one kind are given.
        """
        if input_ids is None or pixel_values is None:
            raise ValueError("Pre-training needs pairs: give pixel_values and input_ids.")
        if (itm_negative_image_index is None) != (itm_negative_text_index is None):
            raise ValueError("Give itm_negative_image_index and itm_negative_text_index together, or neither.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        rows, length = input_ids.shape
        if num_matching is None:
            num_matching = rows if labels is not None or itm_negative_image_index is not None else 0
        num_matching = min(num_matching, rows)
        kwargs = {name: value for name, value in kwargs.items() if name not in _RECORDED}  # of which pass?
        patches = self.vlmo.image_embeddings(pixel_values)  # once for all passes
        image = self._encode(image_embeds=patches, output_vl_branch=True, **kwargs)
        text = self._encode(input_ids=input_ids, attention_mask=attention_mask, output_vl_branch=True, **kwargs)
        features = {
            "image_embeds": project(image, self.itc_image_projection).pooler_output,
            "text_embeds": project(text, self.itc_text_projection).pooler_output,
            "image_vl_embeds": project(image, self.itc_image_vl_projection, vl_branch=True).pooler_output,
            "text_vl_embeds": project(text, self.itc_text_vl_projection, vl_branch=True).pooler_output,
        }
        gathered = {name: gather_features(value) if self.training else value for name, value in features.items()}
        logits = contrastive_logits(gathered["image_embeds"], gathered["text_embeds"], self.logit_scale)
        vl_logits = contrastive_logits(gathered["image_vl_embeds"], gathered["text_vl_embeds"], self.logit_vl_scale)

        texts = [input_ids if mlm_input_ids is None else mlm_input_ids]
        masks, images = [attention_mask], [patches]
        negatives = None
        if num_matching:
            negatives = HardNegatives(itm_negative_image_index, itm_negative_text_index)
            if itm_negative_image_index is None:
                negatives = draw_hard_negatives(logits, rows)
            kept = HardNegatives(*(index[:num_matching] for index in negatives))
            negative_images, negative_ids, negative_masks = self._take_negatives(
                kept, pixel_values, patches, input_ids, attention_mask
            )
            own = slice(None, num_matching)
            texts += [input_ids[own], input_ids[own], negative_ids]
            masks += [attention_mask[own], attention_mask[own], negative_masks]
            images += [patches[own], negative_images, patches[own]]
        longest = max(part.shape[1] for part in texts)
        fused = self._encode(
            only_first=False,
            input_ids=torch.cat([pad_right(part, longest, self.config.pad_token_id or 0) for part in texts]),
            attention_mask=torch.cat([pad_right(part, longest, 0) for part in masks]),
            image_embeds=torch.cat(images),
            num_outputs=length,
            **kwargs,
        )
        mlm_logits = self.mlm_head(fused.text_hidden_state[:rows, :length])
        itm_logits = self.itm_head(fused.pooler_output[rows:]) if num_matching else None

        loss = losses = None
        if labels is not None:
            losses = {
                "mlm": masked_language_loss(mlm_logits, labels),
                "itc": 0.5 * (contrastive_loss(logits) + contrastive_loss(vl_logits)),
            }
            if num_matching:
                losses["itm"] = matching_loss(itm_logits)
            loss = sum(getattr(self.config, f"{name}_loss_weight") * value for name, value in losses.items())
        return VlmoForPreTrainingOutput(
            loss=loss,
            losses=losses,
            mlm_logits=mlm_logits,
            itm_logits=itm_logits,
            logits_per_image=logits,
            logits_per_text=logits.t(),
            vl_logits_per_image=vl_logits,
            itm_negative_image_index=negatives.image_index if negatives else None,
            itm_negative_text_index=negatives.text_index if negatives else None,
            **features,
        )

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
            drawn = self.vlmo.image_embeddings(gather_rows(pixel_values)[negatives.image_index])
        else:
            drawn = patches[negatives.image_index]
        return drawn, input_ids[negatives.text_index], attention_mask[negatives.text_index]


class VlmoForVisualQuestionAnswering(VlmoPreTrainedModel):
    """Answers of a closed list to questions about pictures."""

    _auto_class = "AutoModelForVisualQuestionAnswering"

    def __init__(self, config: VlmoConfig):
        super().__init__(config)
        self.vlmo = VlmoModel(config)
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


def project(outputs: VlmoModelOutput, projection: nn.Linear, vl_branch: bool = False) -> BaseModelOutputWithPooling:
    """Unit-norm features from the first position; `vl_branch` takes it from the second pass."""
    hidden_states = outputs.vl_hidden_state if vl_branch else outputs.last_hidden_state
    features = nn.functional.normalize(projection(hidden_states[:, 0]), dim=-1)
    return BaseModelOutputWithPooling(hidden_states, features, outputs.hidden_states, outputs.attentions)


def pad_right(rows: torch.Tensor, length: int, value: int) -> torch.Tensor:
    """(rows, at most length) -> (rows, length)."""
    return nn.functional.pad(rows, (0, length - rows.shape[1]), value=value)


def load_beit(model: str | os.PathLike | PreTrainedModel) -> BeitModel:
    """BEiT without its head, given by id, folder or object."""
    if isinstance(model, (str, os.PathLike)):
        config = AutoConfig.from_pretrained(model)
        if config.model_type != "beit":
            raise TypeError(f"{model} is a {config.model_type!r} model; the picture path of VLMo starts from BEiT.")
        return AutoModel.from_pretrained(model)
    if isinstance(model, (BeitForImageClassification, BeitForMaskedImageModeling)):
        return model.beit
    if isinstance(model, BeitModel):
        return model
    raise TypeError(f"VLMo starts from a BEiT or the id or folder of one, not from {type(model).__name__}.")


@torch.no_grad()
def copy_beit(source: BeitModel, target: VlmoModel) -> set[str]:
    """Copy embeddings, attention, picture experts and position bias of a BEiT of the same size.

    A bias table shared by all blocks of the BEiT is copied to each of ours. Returns the names of our parameters that
    were filled, in part at least.
    """
    theirs = dict(source.named_parameters())
    ours = {
        "image_embeddings.cls_token": theirs["embeddings.cls_token"],
        "image_embeddings.patch_projection.weight": theirs["embeddings.patch_embeddings.projection.weight"],
        "image_embeddings.patch_projection.bias": theirs["embeddings.patch_embeddings.projection.bias"],
    }
    if "embeddings.position_embeddings" in theirs and target.image_embeddings.position_embeddings is not None:
        ours["image_embeddings.position_embeddings"] = theirs["embeddings.position_embeddings"]
    if "layernorm.weight" in theirs:  # absent from mean-pooled models
        ours |= {"norm.weight": theirs["layernorm.weight"], "norm.bias": theirs["layernorm.bias"]}
    tables = set()
    for index, layer in enumerate(target.layers):
        block = f"layers.{index}."  # here and there
        attention = f"{block}attention."
        ours |= {
            f"{attention}qkv.weight": torch.cat([theirs[f"{attention}{part}_proj.weight"] for part in "qkv"]),
            f"{attention}q_bias": theirs[f"{attention}q_proj.bias"],
            f"{attention}v_bias": theirs[f"{attention}v_proj.bias"],
            f"{attention}output.weight": theirs[f"{attention}o_proj.weight"],
            f"{attention}output.bias": theirs[f"{attention}o_proj.bias"],
        }
        for end in ("weight", "bias"):
            ours |= {
                f"{block}attention_norm.{end}": theirs[f"{block}layernorm_before.{end}"],
                f"{block}experts.image.norm.{end}": theirs[f"{block}layernorm_after.{end}"],
                f"{block}experts.image.fc1.{end}": theirs[f"{block}mlp.fc1.{end}"],
                f"{block}experts.image.fc2.{end}": theirs[f"{block}mlp.fc2.{end}"],
            }
        if layer.attention_scale is not None and f"{block}lambda_1" in theirs:
            ours[f"{block}attention_scale"] = theirs[f"{block}lambda_1"]
            ours[f"{block}expert_scale"] = theirs[f"{block}lambda_2"]
        if layer.attention.position_bias_table is not None:
            own = f"{block}relative_position_bias.relative_position_bias_table"
            table = theirs.get(own, theirs.get("shared_position_bias.relative_position_bias_table"))
            # Rows of texts and of pairs come after those of pictures and stay 0.
            layer.attention.position_bias_table[: len(table)] = table
            tables.add(f"{block}attention.position_bias_table")
    parameters = dict(target.named_parameters())
    for name, value in ours.items():
        parameters[name].copy_(value)
    return tables | ours.keys()


__all__ = [
    "VlmoForImageClassification",
    "VlmoForImageTextRetrieval",
    "VlmoForImagesAndTextClassification",
    "VlmoForMaskedLM",
    "VlmoForPreTraining",
    "VlmoForVisualQuestionAnswering",
    "VlmoModel",
    "VlmoPreTrainedModel",
]
