"""LoRA for every architecture: presets of target modules, a table of what trains, merging.

Models name their presets themselves (`model.lora_presets`, name -> regular expression over the full module name). The
package peft is imported only when one of these functions is called.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_vlp.pretraining.naming import plain_model, plain_name

logger = logging.get_logger(__name__)


def lora_targets(model: nn.Module, preset: str) -> str:
    """The regular expression of a preset of this model; ValueError names the presets that exist."""
    presets = getattr(plain_model(model), "lora_presets", {})
    if preset not in presets:
        raise ValueError(
            f"{type(plain_model(model)).__name__} has no LoRA preset {preset!r}, only {sorted(presets)}. "
            "For other modules give target_modules, a regular expression over full module names."
        )
    return presets[preset]


def apply_lora(
    model: PreTrainedModel,
    *,
    preset: str = "attention",
    target_modules: str | Sequence[str] | None = None,
    r: int = 8,
    alpha: float = 16,
    dropout: float = 0.0,
    bias: str = "none",
    use_rslora: bool = False,
    use_dora: bool = False,
    modules_to_save: Sequence[str] | None = None,
):
    """Freeze the model and add trainable low-rank adapters.

    Args:
        preset: one of `model.lora_presets`; ignored when `target_modules` is given.
        target_modules: a regular expression over full module names, or a list of name endings.
        r, alpha, dropout, bias, use_rslora, use_dora: as in `peft.LoraConfig`; the update is scaled by alpha / r.
        modules_to_save: modules that train in full and are stored with the adapter, such as a new head.

    Returns a `PeftModel` around `model`, which is changed in place. Raises ValueError for an unknown preset and for
    targets that match no module.
    """
    from peft import LoraConfig, get_peft_model

    targets = target_modules if target_modules else lora_targets(model, preset)
    if not isinstance(targets, str):
        targets = list(targets)
    if not any(_matches(targets, name) for name, _ in model.named_modules()):
        raise ValueError(f"The LoRA targets {targets!r} match no module of {type(model).__name__}.")
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias=bias,
        use_rslora=use_rslora,
        use_dora=use_dora,
        target_modules=targets,
        modules_to_save=list(modules_to_save) if modules_to_save else None,
    )
    with _no_orientation_warnings():
        return get_peft_model(model, config)


@contextlib.contextmanager
def _no_orientation_warnings():
    """GPT-2 keeps its weights as (in, out): peft sees that layer by layer and warns at each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        yield


def _matches(targets, name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def merge_lora(model) -> PreTrainedModel:
    """The plain model with the adapters added into its weights; all of it trains again. A plain model is returned."""
    if not hasattr(model, "merge_and_unload"):
        return model
    return model.merge_and_unload().requires_grad_(True)


def save_adapter(model, directory: str | os.PathLike) -> None:
    """Write the adapters alone (`adapter_model.safetensors`, `adapter_config.json`) to a folder."""
    if not hasattr(model, "peft_config"):
        raise TypeError(f"{type(model).__name__} has no adapters: call apply_lora first.")
    model.save_pretrained(str(directory))


def load_adapter(model: PreTrainedModel, directory: str | os.PathLike, *, trainable: bool = False):
    """The model with adapters from a folder or a Hub id, as a `PeftModel`."""
    from peft import PeftModel

    with _no_orientation_warnings():
        return PeftModel.from_pretrained(model, str(directory), is_trainable=trainable)


def register_lora_targets(mapping: dict | None = None) -> None:
    """Tell peft the targets that `LoraConfig()` without `target_modules` takes for our model types ("attention").

    Args:
        mapping: peft's table, model type -> targets; `peft.utils.constants` has it.
    """
    from hf_vlp.auto import ARCHITECTURES

    if mapping is None:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as mapping
    for model_type, architecture in ARCHITECTURES.items():
        if model_type in mapping:
            continue
        for name in architecture.models.values():
            presets = getattr(architecture.get("modeling", name), "lora_presets", None)
            if presets:
                mapping[model_type] = presets["attention"]
                break


def parameter_counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """{part: (parameters, of these trainable)} by the groups of the model, adapters as a part of their own.

    Tied parameters count once.
    """
    group_of = getattr(plain_model(model), "get_parameter_group", lambda name: "all")
    counts: dict[str, list[int]] = {}
    for full_name, parameter in model.named_parameters():
        name = plain_name(full_name)
        part = group_of(name) + (" (adapters)" if re.search(r"\.lora_|\.modules_to_save\.", name) else "")
        entry = counts.setdefault(part, [0, 0])
        entry[0] += parameter.numel()
        entry[1] += parameter.numel() if parameter.requires_grad else 0
    return {part: (total, trainable) for part, (total, trainable) in counts.items()}


def parameter_table(model: nn.Module, optimizer=None) -> str:
    """A table of the parts of a model: parameters, how many train, and their rates if there is an optimizer."""
    counts = parameter_counts(model)
    rates: dict[str, set[float]] = {}
    for group in getattr(optimizer, "param_groups", ()):
        rates.setdefault(group.get("name", "all"), set()).add(float(group.get("initial_lr", group["lr"])))
    rows = [("part", "parameters", "trainable", "share", "learning rate")]
    for part, (total, trainable) in [*counts.items(), ("total", tuple(map(sum, zip(*counts.values()))))]:
        own_rates = sorted(rates.get(part.removesuffix(" (adapters)"), ())) if trainable and part != "total" else []
        span = f"{own_rates[0]:g}" + (f" to {own_rates[-1]:g}" if len(own_rates) > 1 else "") if own_rates else ""
        rows.append((part, f"{total:,}", f"{trainable:,}", f"{100 * trainable / max(1, total):.1f} %", span))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * max(map(len, lines)))
    lines.insert(-1, lines[1])
    return "\n".join(lines)


__all__ = [
    "apply_lora",
    "load_adapter",
    "lora_targets",
    "merge_lora",
    "parameter_counts",
    "parameter_table",
    "register_lora_targets",
    "save_adapter",
]
