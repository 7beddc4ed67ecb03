"""Contrastive objective (ITC) over the pairs of all processes."""

from hf_vlp.models.mome.mome_losses import (
    contrastive_logits,
    contrastive_loss,
    encode_in_chunks,
    gather_features,
    gather_rows,
)

__all__ = ["contrastive_logits", "contrastive_loss", "encode_in_chunks", "gather_features", "gather_rows"]
