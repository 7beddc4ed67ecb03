"""Masked language modelling (MLM); how words are masked is `hf_vlp.data.masking`."""

from hf_vlp.models.mome.mome_losses import masked_language_loss

__all__ = ["masked_language_loss"]
