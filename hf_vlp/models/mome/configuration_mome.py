"""What the configurations of VLMo and VL-BEiT share, and what those of visual tokenizers share with them."""

import math
from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

VISION_STEMS = ("patch", "convolution")

# What the library itself, a saved repository or an older generation setting may put into a configuration.
_LIBRARY_FIELDS = {
    *PreTrainedConfig().to_dict(),
    *vars(PreTrainedConfig()),
    *GenerationConfig().to_dict(),
    *("model_type", "auto_map", "custom_pipelines", "name_or_path", "attn_implementation", "torch_dtype"),
    *("_commit_hash", "_attn_implementation", "_from_auto", "num_labels"),
}


def first_vl_block(num_hidden_layers: int) -> int:
    """Where vision-language experts start in a model that gets them: in the top 2 blocks, from 13 blocks on in 3.

    So it is in the published sizes of VLMo; a decision of this package for others.
    """
    return max(0, num_hidden_layers - (2 if num_hidden_layers <= 12 else 3))


@strict
class PatchesConfig(PreTrainedConfig):
    """What configurations of Transformers over patches of pictures refuse; base class of those below and beside."""

    _auto_class = "AutoConfig"
    # How to start from models of other architectures: the end of an error message.
    _other_starts = ""
    # Fields that must be at least 1.
    _sizes: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self, **kwargs):
        unknown = sorted(set(kwargs) - _LIBRARY_FIELDS)
        if unknown:
            logger.warning(
                f"{type(self).__name__} has no field {', '.join(unknown)}: kept, but without any effect on the model."
            )
        super().__post_init__(**kwargs)
        self.check_sizes()  # here as well as below, because @strict wraps what its validators raise

    @property
    def window_size(self) -> int:
        """Patches along one side of a picture."""
        return self.image_size // self.patch_size

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in the base class, which would fill a configuration of another model with our defaults."""
        model_type = config_dict.get("model_type") or cls.model_type
        if model_type != cls.model_type:
            raise ValueError(
                f"This is the configuration of a {model_type!r} model, not of a {cls.model_type!r} one. "
                f"{cls._other_starts}".rstrip()
            )
        return super().from_dict(config_dict, **kwargs)

    def validate_architecture(self):
        """Called by the base class at construction and before saving."""
        self.check_sizes()

    def check_sizes(self):
        """Raise ValueError when a choice is unknown or two sizes do not fit together."""
        for name in self._sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is not one of {', '.join(ACT2FN)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size={self.image_size} is not a multiple of patch_size={self.patch_size}: pixels at the "
                "border would be lost."
            )
        for name in ("layer_norm_eps", "initializer_range"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate} must lie in [0, 1).")
        for name, value in vars(self).items():
            if name.endswith("_loss_weight") and value < 0:
                raise ValueError(f"{name}={value} must not be negative.")


@strict
class MomeConfig(PatchesConfig):
    """Sizes and choices of a Transformer with mixture of modality experts (Bao et al., 2022, arXiv 2111.02358).

    The defaults are the base model. Base class of `VlmoConfig` and `VlBeitConfig`, which add what is theirs.

    vocab_size: of the WordPiece vocabulary, that of bert-base-uncased.

    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the shared Transformer; every expert has
        feed-forward layers of `intermediate_size`.

    vl_expert_start_layer: first block (from 0) with a vision-language expert; equal to `num_hidden_layers` for none,
        as in the language stage.

    image_size, patch_size, num_channels: pictures are square, their side a multiple of the patch.

    max_text_length: tokens of a text that the text position table has rows for. Without absolute positions longer
        texts work too, up to `max_text_length_of_table`.

    max_text_length_of_table: longest text that the relative position bias has rows for (196 in all published files).

    use_relative_position_bias: bias of the attention scores by the distance of two tokens, one table per block.

    use_absolute_position_embeddings: learnt positions added to the patches and the text (base_plus). Without them the
        text position table is kept, unused, as the original does: its files hold one.

    layer_scale_init_value: initial value of the factors on the output of attention and experts; `None` for no factors.

    type_vocab_size: kinds of tokens: 0 text, 1 picture, and 2 the second picture of NLVR2 models.

    text_type_vocab_size: rows of the type table inside the text embeddings, of which the first is used.

    drop_path_rate: probability of dropping the residual branch of a sample in the last block; rises from 0 linearly.

    text_dropout: dropout after the text embeddings; the original uses the drop-path rate of the run for it.

    vision_stem: `"patch"` is the original's patch embedding; `"convolution"` replaces it by stride-2 convolutions that
        end in the same grid, which learns far faster from nothing where pictures are shown whole; hidden patches were
        not learnt with it in a trial of 1,000 steps. A decision of this package; needs a patch size that is a power
        of two.

    hidden_act: activation of the experts.

    layer_norm_eps, text_layer_norm_eps: epsilon of the Transformer's norms, and of the norms in text embeddings and
        vocabulary head.

    initializer_range: standard deviation of the normal that initialises weights.

    logit_scale_init_value: initial logarithm of the contrastive temperature's inverse, log(1 / 0.07).

    use_matching_head: the retrieval model has the matching head for re-ranking; the published files of VLMo lack it.

    visual_vocab_size: classes of the visual tokens that masked image modelling predicts.

    tie_word_embeddings: vocabulary head and word embedding share one table; the original does not tie.

    pad_token_id: of the vocabulary.

    Raises ValueError for sizes that do not fit together, naming the value.
    """

    _sizes = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "num_channels",
        "max_text_length",
        "max_text_length_of_table",
        "text_type_vocab_size",
        "visual_vocab_size",
    )
    # Not gathered by Trainer's evaluation: large, or not one row per sample.
    keys_to_ignore_at_inference = ["losses", "last_hidden_state", "text_hidden_state", "image_hidden_state"]

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vl_expert_start_layer: int = 10
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    max_text_length: int = 40
    max_text_length_of_table: int = 196
    use_relative_position_bias: bool = True
    use_absolute_position_embeddings: bool = False
    layer_scale_init_value: float | int | None = 0.1
    type_vocab_size: int = 2
    text_type_vocab_size: int = 2
    drop_path_rate: float | int = 0.1
    text_dropout: float | int = 0.1
    vision_stem: str = "patch"
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    text_layer_norm_eps: float | int = 1e-12
    initializer_range: float | int = 0.02
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    use_matching_head: bool = True
    visual_vocab_size: int = 8192
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0

    def check_sizes(self):
        """As in the base class, for what texts and pairs need too."""
        super().check_sizes()
        if self.vision_stem not in VISION_STEMS:
            raise ValueError(f"vision_stem={self.vision_stem!r} is not one of {', '.join(map(repr, VISION_STEMS))}.")
        if not 0 <= self.vl_expert_start_layer <= self.num_hidden_layers:
            raise ValueError(
                f"vl_expert_start_layer={self.vl_expert_start_layer} must lie between 0 and num_hidden_layers="
                f"{self.num_hidden_layers}, which means no vision-language expert."
            )
        if self.max_text_length > self.max_text_length_of_table:
            raise ValueError(
                f"max_text_length={self.max_text_length} is longer than max_text_length_of_table="
                f"{self.max_text_length_of_table}, the longest text that the position bias has rows for."
            )
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(f"pad_token_id={self.pad_token_id} is none of the {self.vocab_size} of the vocabulary.")
        if self.type_vocab_size < 2:
            raise ValueError(f"type_vocab_size={self.type_vocab_size}: text and pictures need at least 2.")
        if self.text_layer_norm_eps <= 0:
            raise ValueError(f"text_layer_norm_eps={self.text_layer_norm_eps} must be positive.")
        if not 0 <= self.text_dropout < 1:
            raise ValueError(f"text_dropout={self.text_dropout} must lie in [0, 1).")
        if self.vision_stem == "convolution" and (self.patch_size < 2 or self.patch_size & (self.patch_size - 1)):
            raise ValueError(
                'vision_stem="convolution" halves the picture step by step and needs a patch size that is a power of '
                f"two of at least 2, not {self.patch_size}."
            )


__all__ = ["MomeConfig", "PatchesConfig", "first_vl_block"]
