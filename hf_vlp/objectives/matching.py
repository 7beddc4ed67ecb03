"""Image-text matching (ITM) with hard negatives from all processes."""

from hf_vlp.models.mome.mome_losses import (
    HardNegatives,
    draw_hard_negatives,
    gather_texts,
    hard_negative_weights,
    matching_labels,
    matching_loss,
)

__all__ = [
    "HardNegatives",
    "draw_hard_negatives",
    "gather_texts",
    "hard_negative_weights",
    "matching_labels",
    "matching_loss",
]
