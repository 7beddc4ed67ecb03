"""Configuration of the visual tokenizer of BEiT v2, whose ids are what VL-BEiT predicts behind masked patches."""

from huggingface_hub.dataclasses import strict

from .configuration_mome import PatchesConfig

TARGETS = ("features", "pixels")


@strict
class VlBeitVqkdConfig(PatchesConfig):
    """Sizes of a VQ-KD visual tokenizer (Peng et al., 2022, arXiv 2208.06366).

    The defaults are the recommended published file, `vqkd_encoder_base_decoder_3x768x12_clip`.

    hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder and, but for the number of
        blocks, of the decoder.

    image_size, patch_size, num_channels: pictures are square, their side a multiple of the patch. One token a patch.

    codebook_size, code_dim: number of visual tokens, and length of their vectors.

    hidden_act, layer_norm_eps, initializer_range: of both Transformers.

    drop_path_rate: probability of dropping a residual branch of the encoder's last block in training.

    decoder_num_hidden_layers: blocks of the decoder, which only training has.

    target: what the decoder gives back: `"features"` of a teacher, as in the paper, or `"pixels"` of the patches, a
        decision of this package: a tokenizer from nothing then needs no teacher.

    target_dim: length of the teacher's features (512: CLIP base); unused with `target="pixels"`.

    codebook_decay: share of the old value in the running means of the codebook, per step of training.

    revive_below: codes chosen less often than this share of the mean are replaced by vectors of the batch; 0 replaces
        only those whose running count is 0. A decision of this package.

    commitment_loss_weight: of the term that draws the encoder to its codes.

    Raises ValueError for sizes that do not fit together, naming the value.
    """

    model_type = "vl_beit_vqkd"
    _sizes = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
        "num_channels",
        "codebook_size",
        "code_dim",
        "decoder_num_hidden_layers",
        "target_dim",
    )
    keys_to_ignore_at_inference = ["losses"]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    codebook_size: int = 8192
    code_dim: int = 32
    hidden_act: str = "gelu"
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    drop_path_rate: float | int = 0.0
    decoder_num_hidden_layers: int = 3
    target: str = "features"
    target_dim: int = 512
    codebook_decay: float | int = 0.99
    revive_below: float | int = 0.1
    commitment_loss_weight: float | int = 1.0

    @property
    def num_tokens(self) -> int:
        """Visual tokens of a picture."""
        return self.window_size**2

    @property
    def output_dim(self) -> int:
        """Values that the decoder gives for a patch."""
        return self.num_channels * self.patch_size**2 if self.target == "pixels" else self.target_dim

    def to_dict(self) -> dict:
        """As in the base class; where a class of the model is saved, under one name.

        The library takes VlBeitVqkdTokenizer by its name for a tokenizer of texts, and enters a pair of classes, slow
        and fast, which nothing can load as a model.
        """
        content = super().to_dict()
        if auto_map := content.get("auto_map"):
            content["auto_map"] = {
                auto_class: name if isinstance(name, str) else name[0] for auto_class, name in auto_map.items()
            }
        return content

    def check_sizes(self):
        """As in the base class, for target and codebook too."""
        super().check_sizes()
        if self.target not in TARGETS:
            raise ValueError(f"target={self.target!r} is not one of {', '.join(map(repr, TARGETS))}.")
        for name in ("codebook_decay", "revive_below"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")


__all__ = ["TARGETS", "VlBeitVqkdConfig"]
