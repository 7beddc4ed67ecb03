"""Configuration of VC-GPT."""

from huggingface_hub.dataclasses import strict
from transformers import CLIPVisionConfig, GenerationConfig, GPT2Config, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import logging

logger = logging.get_logger(__name__)

VARIANTS = ("vc_gpt", "vanilla")
VISUAL_PAIRINGS = ("layerwise", "final")
VISION_STEMS = ("patch", "convolution")

# Sizes that must be positive.
_VISION_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)
_TEXT_SIZES = ("n_embd", "n_layer", "n_head", "n_positions", "vocab_size")
# What the library itself, a saved repository or an older generation setting may put into a configuration.
_LIBRARY_FIELDS = {
    *PreTrainedConfig().to_dict(),
    *vars(PreTrainedConfig()),
    *GenerationConfig().to_dict(),
    *(
        "model_type",
        "auto_map",
        "custom_pipelines",
        "name_or_path",
        "_commit_hash",
        "attn_implementation",
        "torch_dtype",
    ),
    *("_attn_implementation", "_from_auto", "num_labels"),
}

# Overrides of the defaults (ViT-B/16 and GPT-2 base) for the CLIP tower that the specification names as an option.
PUBLISHED_SIZES = {
    "base": {},
    "large-patch14": {
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        }
    },
}


@strict
class VcGptConfig(PreTrainedConfig):
    """Sizes and choices of a VC-GPT model (Luo et al., 2022, arXiv 2201.12723).

    No code and no weights of the paper were published, and its text leaves many choices open. Every field below except
    `variant` and `self_ensemble` (which the paper's ablation names) is **a decision of this package**, the most
    standard one; the defaults give the base model.

    vision_config: the visual encoder, a `CLIPVisionConfig` (default ViT-B/16 at 224 pixels; decision).

    text_config: the language model, a `GPT2Config` (default GPT-2 base; decision).

    variant: `"vc_gpt"` is the paper's model, with a cross-modal fusion module above both towers; `"vanilla"` is the
        baseline it compares with, cross-attention inside every GPT-2 block and one vocabulary head.

    self_ensemble: whether the logits are the sum of GPT-2's and of the fusion module's vocabulary products. Without
        it, the fusion module's alone ("VC-GPT w/o SE"; this exact form of the ablation is a decision). Only for
        `"vc_gpt"`.

    num_fusion_layers: number N of fusion layers, each with a visual and a text half (decision).

    fusion_num_heads: attention heads of the fusion module; 12 is GPT-2 base's number (decision).

    fusion_mlp_ratio: width of the fusion module's feed-forward layers over GPT-2's width (decision).

    fusion_activation: activation of these layers, GPT-2's own (decision).

    fusion_layer_norm_eps: epsilon of the fusion module's layer norms (decision).

    fusion_dropout: dropout on the outputs of the fusion module's attention and feed-forward layers (decision).

    fusion_attention_dropout: dropout on its attention weights (decision).

    visual_pairing: which visual states text layer i attends to: `"layerwise"`, those after visual layer i; `"final"`,
        those after the last visual layer. The paper's figure allows both readings (decision).

    use_post_layernorm: apply CLIP's post layer norm to the visual tokens (decision: no).

    drop_class_token: give the fusion module the patches only (decision: no, the class token is kept).

    vision_stem: `"patch"` is CLIP's patch embedding; `"convolution"` replaces it by stride-2 convolutions that end in
        the same grid, which learns far faster from nothing (Xiao et al., 2021, arXiv 2106.14881). Not in the paper;
        needs a patch size that is a power of two.

    tie_word_embeddings: GPT-2's vocabulary head shares the word embedding (decision; the paper gives the initial value
        only).

    initializer_range: standard deviation of the normal that initialises the fusion module and its vocabulary head.

    bos_token_id, eos_token_id, pad_token_id: `None` takes those of `text_config`; padding falls back to the end token.

    use_cache: whether `generate` keeps keys and values.

    Raises ValueError for sizes that do not fit together, naming the value.
    """

    model_type = "vc_gpt"
    _auto_class = "AutoConfig"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=CLIPVisionConfig, init_kwargs={"patch_size": 16}),
        "text_config": GPT2Config,
    }
    # Not gathered by Trainer's evaluation: large, and no metric reads them.
    keys_to_ignore_at_inference = ["past_key_values", "image_embeds", "single_modal_logits", "cross_modal_logits"]

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    variant: str = "vc_gpt"
    self_ensemble: bool = True
    num_fusion_layers: int = 6
    fusion_num_heads: int = 12
    fusion_mlp_ratio: float | int = 4
    fusion_activation: str = "gelu_new"
    fusion_layer_norm_eps: float | int = 1e-5
    fusion_dropout: float | int = 0.1
    fusion_attention_dropout: float | int = 0.1
    visual_pairing: str = "layerwise"
    use_post_layernorm: bool = False
    drop_class_token: bool = False
    vision_stem: str = "patch"
    tie_word_embeddings: bool = True
    initializer_range: float | int = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    use_cache: bool = True

    def __post_init__(self, **kwargs):
        unknown = sorted(set(kwargs) - _LIBRARY_FIELDS)
        if unknown:
            logger.warning(
                f"VcGptConfig has no field {', '.join(unknown)}: kept, but without any effect on the model."
            )
        if isinstance(self.vision_config, dict):
            self.vision_config = {"patch_size": 16, **self.vision_config}  # our default, where CLIP's is 32
        super().__post_init__(**kwargs)
        self.text_config.add_cross_attention = self.variant == "vanilla"
        # One switch for both: GPT2Config has a tying field of its own, which would otherwise contradict ours.
        self.text_config.tie_word_embeddings = self.tie_word_embeddings
        if self.bos_token_id is None:
            self.bos_token_id = self.text_config.bos_token_id
        if self.eos_token_id is None:
            self.eos_token_id = self.text_config.eos_token_id
        if self.pad_token_id is None:
            eos = self.eos_token_id
            self.pad_token_id = eos[0] if isinstance(eos, (list, tuple)) else eos
        self.check_sizes()  # here as well as below, because @strict wraps what its validators raise

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in the base class, which would fill a configuration of another model with our defaults."""
        model_type = config_dict.get("model_type") or cls.model_type
        if model_type != cls.model_type:
            raise ValueError(
                f"This is the configuration of a {model_type!r} model, not of a {cls.model_type!r} one. To start from "
                "CLIP and GPT-2 use VcGptForConditionalGeneration.from_vision_text_pretrained."
            )
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self):
        """Called by the base class at construction and before saving."""
        self.check_sizes()

    def check_sizes(self):
        """Raise ValueError when a choice is unknown or two sizes do not fit together."""
        for name, allowed in (
            ("variant", VARIANTS),
            ("visual_pairing", VISUAL_PAIRINGS),
            ("vision_stem", VISION_STEMS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}.")
        if self.fusion_activation not in ACT2FN:
            raise ValueError(f"fusion_activation={self.fusion_activation!r} is not one of {', '.join(ACT2FN)}.")
        for name in ("num_fusion_layers", "fusion_num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        for name in ("fusion_mlp_ratio", "fusion_layer_norm_eps", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        for name in ("fusion_dropout", "fusion_attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        vision, text = self.vision_config, self.text_config
        for part, names in (("vision", _VISION_SIZES), ("text", _TEXT_SIZES)):
            for name in names:
                value = getattr(getattr(self, f"{part}_config"), name)
                if value < 1:
                    raise ValueError(f"{part}_config.{name}={value} must be at least 1.")
        if int(text.hidden_size * self.fusion_mlp_ratio) < 1:
            raise ValueError(f"fusion_mlp_ratio={self.fusion_mlp_ratio} leaves no feed-forward unit.")
        if vision.hidden_size % vision.num_attention_heads:
            raise ValueError(
                f"vision_config.hidden_size={vision.hidden_size} is not a multiple of "
                f"vision_config.num_attention_heads={vision.num_attention_heads}."
            )
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"vision_config.image_size={vision.image_size} is not a multiple of "
                f"vision_config.patch_size={vision.patch_size}: pixels at the border would be lost."
            )
        if text.hidden_size % text.num_attention_heads:
            raise ValueError(
                f"text_config.n_embd={text.hidden_size} is not a multiple of text_config.n_head="
                f"{text.num_attention_heads}."
            )
        if self.variant == "vc_gpt" and text.hidden_size % self.fusion_num_heads:
            raise ValueError(
                f"text_config.n_embd={text.hidden_size} is not a multiple of fusion_num_heads={self.fusion_num_heads}."
            )
        patch = vision.patch_size
        if self.vision_stem == "convolution" and (patch < 2 or patch & (patch - 1)):
            raise ValueError(
                f'vision_stem="convolution" halves the picture step by step and needs a patch size that is a power of '
                f"two of at least 2, not {patch}."
            )


__all__ = ["PUBLISHED_SIZES", "VcGptConfig"]
