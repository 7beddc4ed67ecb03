"""Original checkpoints, converted to repositories of ours and back."""

# Architecture -> its module here, which has `convert`.
ARCHITECTURES = {"vlmo": "vlmo", "vl_beit": "vl_beit", "vl_beit_vqkd": "vqkd"}

__all__ = ["ARCHITECTURES"]
