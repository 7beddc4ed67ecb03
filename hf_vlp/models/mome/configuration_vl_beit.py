"""Configuration of VL-BEiT."""

from collections.abc import Sequence

from huggingface_hub.dataclasses import strict

from .configuration_mome import MomeConfig

# Overrides of the defaults. The paper does not list its sizes: these are BEiT's, with VLMo's vision-language experts.
VL_BEIT_SIZES = {
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "vl_expert_start_layer": 21,
        "layer_scale_init_value": 1e-5,
    },
}


@strict
class VlBeitConfig(MomeConfig):
    """Sizes and choices of a VL-BEiT model (Bao et al., 2022, arXiv 2206.01127); the defaults are a base model.

    Neither code nor weights of the paper were released. Decisions of this package, where its sources are silent: the
    sizes; LayerScale (0.1 in the base, 1e-5 in the large size, as in BEiT); positions (VLMo's relative bias); the text
    in front of the picture, and its first position as the pooled one; the vocabulary (BERT's); the weights of the
    losses (1 each); heads that words alone and words of pairs share, and likewise patches; the rescaling of every
    expert.

    rescale_by_depth: new weights of the attention's output and of each expert's second layer are divided by
        sqrt(2 l) in block l (from 1), as in BEiT.

    mlm_loss_weight, mim_loss_weight, mvlm_text_loss_weight, mvlm_image_loss_weight: of the four terms of
        `VlBeitForPreTraining`: words of texts, patches of pictures, words and patches of pairs.

    itc_loss_weight, itm_loss_weight: of contrast and matching, with which `VlBeitForImageTextRetrieval` is fine-tuned.

    out_indices: four blocks (from 0) whose outputs segmentation reads; `None` spreads them: 3, 5, 7 and 11 of 12.

    decoder_hidden_size, pool_scales, decoder_dropout: channels (`None`: `hidden_size`), grid sizes of the pyramid
        pooling and dropout before the classifier of UPerNet, the decoder of segmentation.

    auxiliary_loss_weight, auxiliary_channels, auxiliary_num_convs, auxiliary_index: of the auxiliary head of
        segmentation, which reads the output `auxiliary_index` of the four; weight 0 for none.

    semantic_loss_ignore_index: label of pixels that do not count.

    All other fields are those of `MomeConfig`.
    """

    model_type = "vl_beit"
    _other_starts = "To start from BEiT or VLMo use VlBeitModel.from_beit_pretrained or from_vlmo_pretrained."

    rescale_by_depth: bool = True
    mlm_loss_weight: float | int = 1.0
    mim_loss_weight: float | int = 1.0
    mvlm_text_loss_weight: float | int = 1.0
    mvlm_image_loss_weight: float | int = 1.0
    itc_loss_weight: float | int = 1.0
    itm_loss_weight: float | int = 1.0
    out_indices: Sequence[int] | None = None
    decoder_hidden_size: int | None = None
    pool_scales: Sequence[int] = (1, 2, 3, 6)
    decoder_dropout: float | int = 0.1
    auxiliary_loss_weight: float | int = 0.4
    auxiliary_channels: int = 256
    auxiliary_num_convs: int = 1
    auxiliary_index: int = 2
    semantic_loss_ignore_index: int = 255

    def check_sizes(self):
        """As in the base class, for the fields of segmentation too."""
        super().check_sizes()
        if self.out_indices is not None and (
            len(self.out_indices) != 4 or not all(0 <= index < self.num_hidden_layers for index in self.out_indices)
        ):
            raise ValueError(
                f"out_indices={self.out_indices} must name four blocks from 0 to {self.num_hidden_layers - 1}."
            )
        for name in ("decoder_hidden_size", "auxiliary_channels", "auxiliary_num_convs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        if not self.pool_scales or min(self.pool_scales) < 1:
            raise ValueError(f"pool_scales={self.pool_scales} must be grid sizes of at least 1.")
        if not 0 <= self.decoder_dropout < 1:
            raise ValueError(f"decoder_dropout={self.decoder_dropout} must lie in [0, 1).")
        if not 0 <= self.auxiliary_index < 4:
            raise ValueError(f"auxiliary_index={self.auxiliary_index} is none of the four outputs, 0 to 3.")


__all__ = ["VL_BEIT_SIZES", "VlBeitConfig"]
