"""From the neutral names of the VC-GPT goldens to the parameters of `VcGptForConditionalGeneration`.

The goldens hold separate query, key and value projections where the fusion module has one product for all of them.
"""

import re

import torch

# Neutral pattern -> ours; a target with several sources is their concatenation along the output dimension, in order.
_RENAMED = (
    (r"^transformer\.", "model.language_model."),
    (r"^fusion\.lm_head\.", "fusion_lm_head."),
    (r"^fusion\.visual_proj\.", "model.visual_proj."),
    (r"^(vision_model|fusion)\.", r"model.\1."),
)
_FUSED = (
    (r"(fusion\..*\.self_attn)\.([qkv])_proj\.", r"\1.qkv_proj.", "qkv"),
    (r"(fusion\..*\.cross_attn)\.([kv])_proj\.", r"\1.kv_proj.", "kv"),
)
# The class token and the patches are taken before CLIP's last norm, which our model then does not build.
_DROPPED = r"^vision_model\.post_layernorm\."


def locate(name: str) -> tuple[str, int, int]:
    """Our parameter for a neutral name, and which part of how many parts of its rows it is."""
    part, parts = 0, 1
    for pattern, target, letters in _FUSED:
        if match := re.search(pattern, name):
            part, parts = letters.index(match[2]), len(letters)
            name = re.sub(pattern, target, name)
            break
    for pattern, target in _RENAMED:
        name, count = re.subn(pattern, target, name)
        if count:
            break
    return name, part, parts


def to_ours(neutral: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under our names."""
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in neutral.items():
        if not re.search(_DROPPED, name):
            target, part, _ = locate(name)
            pieces.setdefault(target, {})[part] = tensor
    return {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in pieces.items()}


def select(ours: dict[str, torch.Tensor], neutral_name: str) -> torch.Tensor:
    """The tensor of ours that a neutral name stands for: the whole, or its part of the rows."""
    name, part, parts = locate(neutral_name)
    return ours[name].chunk(parts)[part]
