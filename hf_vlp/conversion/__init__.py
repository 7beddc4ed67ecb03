"""Original checkpoints, converted to repositories of ours and back."""

# Each has a module here with `convert`.
ARCHITECTURES = ("vlmo",)

__all__ = ["ARCHITECTURES"]
