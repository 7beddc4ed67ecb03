"""Where the goldens of VLMo are, and what their `config.json` says about the sizes of a checkpoint."""

import json
import os
from pathlib import Path

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vlmo"
SETTINGS = json.loads((FOLDER / "config.json").read_text()) if FOLDER.is_dir() else {}


def known_sizes(checkpoint: str) -> dict[str, int]:
    """Fields of the configuration that cannot be read from the tensors of a golden checkpoint."""
    kind = "absolute_position_model" if checkpoint == "baseplus" else "relative_bias_model"
    return {
        "num_attention_heads": SETTINGS[kind]["num_attention_heads"],
        "max_text_length_of_table": SETTINGS["max_text_len_of_initckpt"],
    }
