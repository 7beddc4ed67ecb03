"""What a checkpoint is: sizes, classes that load it, what trains, where LoRA may go. No weights are loaded."""

import inspect
import re
from pathlib import Path
from typing import Any

# Auto class -> the pipelines that serve what it loads.
_TASKS = {
    "AutoModelForImageTextToText": ("image-to-text",),
    "AutoModelForVisualQuestionAnswering": ("visual-question-answering",),
    "AutoModelForZeroShotImageClassification": ("zero-shot-image-classification",),
    "AutoModelForImageClassification": ("image-classification",),
    "AutoModelForMaskedLM": ("fill-mask",),
    "AutoModel": ("image-feature-extraction",),
}


def describe_model(model_id: str, *, lora_rank: int = 8) -> dict[str, Any]:
    """Facts about a checkpoint, read from its configuration alone.

    Args:
        model_id: folder or Hub id, of a model or of adapters.
        lora_rank: rank for which the sizes of adapters are told.

    Returns plain JSON data: `model_type`; `model_class`, whose weights these are; `classes` {auto class: class};
    `pipelines`, the tasks that load it; `settings`, the fields of the configuration that are its architecture;
    `parameters` {part: {"total", "trainable"}} as a fresh `from_pretrained` has them; `lora_presets` {name:
    {"pattern", "modules", "parameters"}}; `adapters`, the settings of adapters, if it is one. Raises OSError or
    ValueError when there is no such model.
    """
    import torch
    from transformers import AutoConfig

    import hf_vlp  # noqa: F401 - registers the architectures
    from hf_vlp.adapters import parameter_counts
    from hf_vlp.auto import ARCHITECTURES

    check_model_id(model_id)
    adapters = _load_adapter_config(model_id)
    config = AutoConfig.from_pretrained(adapters.base_model_name_or_path if adapters else model_id)
    architecture = ARCHITECTURES.get(config.model_type)
    model_class = _find_class(config, architecture)
    loaded_by = _auto_classes(config, model_class)
    with torch.device("meta"):
        model = model_class._from_config(config)
        presets = getattr(model, "lora_presets", {})
        lora_presets = {
            name: {"pattern": pattern, **_adapter_sizes(model, pattern, lora_rank)}
            for name, pattern in presets.items()
        }
        if adapters:
            from peft import get_peft_model

            model = get_peft_model(model, adapters)
    return {
        "model": str(model_id),
        "model_type": config.model_type,
        "model_class": model_class.__name__,
        "classes": dict(architecture.models) if architecture else dict.fromkeys(loaded_by, model_class.__name__),
        "pipelines": [task for name in loaded_by for task in _tasks(name, model_class)],
        "settings": _read_settings(config),
        "parameters": {
            part: {"total": total, "trainable": trainable}
            for part, (total, trainable) in parameter_counts(model).items()
        },
        "lora_rank": lora_rank,
        "lora_presets": lora_presets,
        "adapters": _read_adapters(adapters) if adapters else None,
    }


def _find_class(config, architecture) -> type:
    """The class that a checkpoint was saved from, or the first that an Auto class has for its configuration."""
    import transformers

    for name in config.architectures or ():
        if architecture and name in architecture.models.values():
            return architecture.get("modeling", name)
        if not architecture and isinstance(found := getattr(transformers, name, None), type):
            return found
    for auto_class in (*_TASKS, "AutoModelForPreTraining"):
        mapping = getattr(transformers, auto_class)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(
        f"No class is known for a model of type {config.model_type!r}"
        + (f" ({', '.join(config.architectures)})." if config.architectures else ".")
    )


def _auto_classes(config, model_class: type) -> list[str]:
    """The Auto classes that find `model_class` for this configuration, of those that tell the task."""
    import transformers

    names = []
    for auto_class in _TASKS:
        mapping = getattr(transformers, auto_class)._model_mapping
        found = mapping[type(config)] if type(config) in mapping else ()
        if model_class in (found if isinstance(found, tuple) else (found,)):
            names.append(auto_class)
    return names


def _tasks(auto_class: str, model_class: type) -> tuple[str, ...]:
    """Pipelines for what an Auto class loads."""
    if auto_class == "AutoModel" and "pixel_values" not in inspect.signature(model_class.forward).parameters:
        return ("feature-extraction",)
    return _TASKS[auto_class]


def check_model_id(model_id: str) -> None:
    """Raise ValueError for a path that does not exist, which transformers would look for on the Hub."""
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise ValueError(f"The folder {model_id} holds no model: there is no config.json in it.")
    elif folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(model_id)) or str(model_id).startswith("."):
        raise ValueError(f"{model_id} is neither a folder (looked in {Path.cwd()}) nor the id of a model on the Hub.")


def _load_adapter_config(model_id: str):
    """The peft configuration of a folder or repository with adapters, None for one with a model."""
    from transformers.utils import cached_file

    file = cached_file(
        model_id,
        "adapter_config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    if file is None:
        return None
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(Path(file).parent))
    config.inference_mode = False  # saved as true; what trains is the question here
    return config


def _adapter_sizes(model, pattern: str, rank: int) -> dict[str, int]:
    """Modules that a pattern matches, and what adapters of a rank add: rank * (in + out) for each."""
    matched = [module for name, module in model.named_modules() if re.fullmatch(pattern, name)]
    return {"modules": len(matched), "parameters": sum(rank * sum(module.weight.shape) for module in matched)}


def _read_settings(config) -> dict[str, Any]:
    """The fields of our configurations, the sizes of their parts, and the number of labels if they are named."""
    from transformers import PreTrainedConfig

    classes = type(config).__mro__
    ours = {name for base in classes[: classes.index(PreTrainedConfig)] for name in inspect.get_annotations(base)}
    settings = {}
    labels = list(config.id2label.values())
    if labels != [f"LABEL_{place}" for place in range(len(labels))]:
        settings["num_labels"] = len(labels)
    for name, value in config.to_dict().items():
        if name.endswith("_config") and isinstance(value, dict):
            part = getattr(config, name)
            for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size"):
                if getattr(part, field, None) is not None:
                    settings[f"{name}.{field}"] = getattr(part, field)
            if getattr(part, "vocab_size", None) is not None:
                settings[f"{name}.vocab_size"] = part.vocab_size
        elif name in ours and name != "use_cache" and not name.endswith("_id"):
            settings[name] = value
    return settings


def _read_adapters(adapters) -> dict[str, Any]:
    targets = adapters.target_modules
    return {
        "base_model": adapters.base_model_name_or_path,
        "r": adapters.r,
        "lora_alpha": adapters.lora_alpha,
        "target_modules": sorted(targets) if isinstance(targets, set) else targets,
    }


def format_description(description: dict[str, Any]) -> str:
    """`describe_model`'s facts as text for a terminal."""
    lines = [f"{description['model']}: a {description['model_type']} model, {description['model_class']}"]
    if adapters := description["adapters"]:
        lines[0] += f", adapters of rank {adapters['r']} on {adapters['base_model']}"
    lines += ["", "Loaded by"]
    lines += [f"  {auto_class} -> {name}" for auto_class, name in description["classes"].items()]
    lines += [f'  pipeline("{task}")' for task in description["pipelines"]]
    lines += ["", "Settings", *(f"  {name} = {value}" for name, value in description["settings"].items())]
    parameters = description["parameters"]
    total = {key: sum(part[key] for part in parameters.values()) for key in ("total", "trainable")}
    rows = [["", "parameters", "train"]]
    rows += [
        [f"  {part}", f"{sizes['total']:,}", f"{sizes['trainable']:,}"]
        for part, sizes in {**parameters, "all": total}.items()
    ]
    lines += ["", *align(rows)]
    if presets := description["lora_presets"]:
        rows = [["LoRA preset", "modules", f"parameters at r = {description['lora_rank']}"]]
        rows += [
            [f"  {name}", str(preset["modules"]), f"{preset['parameters']:,}"] for name, preset in presets.items()
        ]
        lines += ["", *align(rows)]
    return "\n".join(lines)


def align(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]


__all__ = ["align", "check_model_id", "describe_model", "format_description"]
