"""Original checkpoints of the five systems, converted to repositories of ours and back."""
