"""Masked language modelling (MLM): the loss, and the masking of whole words."""

from hf_vlp.models.mome.mome_losses import masked_language_loss

__all__ = ["masked_language_loss"]
