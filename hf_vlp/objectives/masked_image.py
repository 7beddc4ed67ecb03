"""Masked image modelling (MIM); how patches are masked is `hf_vlp.data.patch_masks`."""

from hf_vlp.models.mome.mome_losses import masked_image_loss

__all__ = ["masked_image_loss"]
