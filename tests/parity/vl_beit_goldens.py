"""Where the goldens of VL-BEiT are, and what their `config.json` says about the sizes of a checkpoint."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vl_beit"
SETTINGS = json.loads((FOLDER / "config.json").read_text()) if FOLDER.is_dir() else {}


def read(name: str) -> dict[str, torch.Tensor]:
    """A recording: `mim_shared_rel_inputs`, `composite_expected`, ..."""
    return load_file(FOLDER / f"{name}.safetensors")


def known_sizes(checkpoint: str) -> dict[str, int]:
    """Fields of the configuration that cannot be read from the tensors of a golden checkpoint."""
    if checkpoint != "composite":
        return {"num_attention_heads": SETTINGS["mim"]["num_attention_heads"]}
    settings = SETTINGS["composite"]
    return {
        "num_attention_heads": settings["num_attention_heads"],
        "max_text_length_of_table": settings["max_text_len_of_initckpt"],
    }
