"""From settings to models, processors, data sets and trainers."""

import dataclasses
import difflib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from hf_vlp.auto import ARCHITECTURES
from hf_vlp.data.augment import AUGMENTATIONS
from hf_vlp.data.collators import BadSamplePolicy, CaptionCollator
from hf_vlp.data.tokenization import train_gpt2_tokenizer
from hf_vlp.pretraining.arguments import ModelArguments, RunArguments

logger = logging.get_logger(__name__)

# Which Auto class has the head of a task.
TASK_AUTO_CLASSES = {"captioning": "AutoModelForImageTextToText"}


def check_config_keys(config_class: type[PreTrainedConfig], values: dict, prefix: str = "model.config") -> None:
    """Raise ValueError for keys that the configuration does not have; configurations themselves take any keyword."""
    sub_configs = getattr(config_class, "sub_configs", {})
    valid = {entry.name for entry in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    for key, value in values.items():
        if key not in valid:
            near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Valid are {', '.join(sorted(valid))}."
            raise ValueError(f"{config_class.__name__} has no {prefix}.{key}. {hint}")
        if key in sub_configs and isinstance(value, dict):
            check_config_keys(sub_configs[key], value, f"{prefix}.{key}")


def make_config(architecture: str, values: dict) -> PreTrainedConfig:
    """A configuration with `values` in place of its defaults; ValueError names a wrong key, type or size."""
    config_class = ARCHITECTURES[architecture].get_config()
    check_config_keys(config_class, values)
    try:
        return config_class(**values)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = error.__cause__ or error  # validators of huggingface_hub wrap what went wrong
        raise ValueError(f"model.config does not describe a {architecture} model: {reason}") from error


def check_architecture(path: str | os.PathLike, architecture: str) -> PreTrainedConfig:
    """The configuration of a checkpoint; ValueError when it is of another architecture or no checkpoint at all."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.model_name_or_path={str(path)!r} is not a checkpoint: {error}") from error
    if config.model_type != architecture:
        raise ValueError(
            f"{path} is a checkpoint of {config.model_type!r}, and model.architecture is {architecture!r}. To start "
            "from towers of other architectures give vision_model_name_or_path and text_model_name_or_path."
        )
    return config


def make_image_processor(architecture: str, config: PreTrainedConfig, options: dict):
    """The image processor that fits a configuration, with some of its options replaced."""
    import transformers
    from transformers.utils import is_torchvision_available

    names = ARCHITECTURES[architecture].image_processors
    processor_class = getattr(transformers, names["torchvision" if is_torchvision_available() else "pil"])
    size = config.vision_config.image_size
    defaults = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return processor_class(**{**defaults, **options})


def build_model_and_processor(settings: ModelArguments, captions: Iterable[str], *, task: str = "captioning"):
    """The model and processor that a run starts from.

    Args:
        settings: where they come from: nothing, a checkpoint, or existing parts.
        captions: training captions, read only if a tokenizer is trained from them.
        task: chooses the head.

    Raises ValueError for configurations that are impossible, checkpoints of another architecture, and towers that do
    not fit.
    """
    import transformers

    architecture = ARCHITECTURES[settings.architecture]
    auto_class_name = TASK_AUTO_CLASSES[task]
    model_class = architecture.get("modeling", architecture.models[auto_class_name])
    options = {}
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    if settings.model_name_or_path:
        path = settings.model_name_or_path
        config = check_architecture(path, settings.architecture)
        check_config_keys(type(config), settings.config)
        config = AutoConfig.from_pretrained(path, **settings.config)
        if settings.dtype:
            options["dtype"] = settings.dtype
        model = getattr(transformers, auto_class_name).from_pretrained(path, config=config, **options)
        return model, AutoProcessor.from_pretrained(path, **settings.image_processor)
    processor_class = architecture.get("processing", architecture.processor)
    tokenizer = _make_tokenizer(settings, captions)
    if settings.vision_model_name_or_path:
        check_config_keys(architecture.get_config(), settings.config)
        try:
            model = model_class.from_vision_text_pretrained(
                settings.vision_model_name_or_path,
                settings.text_model_name_or_path,
                dtype=settings.dtype,
                **settings.config,
            )
        except TypeError as error:
            raise ValueError(f"The parts do not make a {settings.architecture} model: {error}") from error
        if len(tokenizer) != model.get_input_embeddings().num_embeddings and settings.tokenizer_name_or_path:
            model.resize_token_embeddings(len(tokenizer))
        if settings.attn_implementation:
            model.set_attn_implementation(settings.attn_implementation)
        try:
            image_processor = AutoImageProcessor.from_pretrained(
                settings.vision_model_name_or_path, **settings.image_processor
            )
        except (OSError, ValueError):
            logger.warning(f"{settings.vision_model_name_or_path} has no image processor; CLIP's settings are taken.")
            image_processor = make_image_processor(settings.architecture, model.config, settings.image_processor)
        return model, processor_class(image_processor, tokenizer)
    values = dict(settings.config)
    tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    tokens["pad_token_id"] = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    values["text_config"] = {**(values.get("text_config") or {}), "vocab_size": len(tokenizer), **tokens}
    config = make_config(settings.architecture, values)
    if settings.attn_implementation:
        config._attn_implementation = settings.attn_implementation
    model = model_class(config)
    if settings.dtype:
        import torch

        model.to(getattr(torch, settings.dtype))
    image_processor = make_image_processor(settings.architecture, config, settings.image_processor)
    return model, processor_class(image_processor, tokenizer)


def _make_tokenizer(settings: ModelArguments, captions: Iterable[str]):
    path = settings.tokenizer_name_or_path or settings.text_model_name_or_path
    if path:
        return AutoTokenizer.from_pretrained(path)
    return train_gpt2_tokenizer(itertools.islice(captions, settings.tokenizer_captions), settings.vocab_size)


def check_lengths(run: RunArguments, model) -> None:
    """Raise ValueError when captions of the run can be longer than the positions that the model has."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return
    lengths = {
        "batches.max_length": run.batches.max_length,
        "evaluation.generation.max_new_tokens": run.evaluation.generation.get("max_new_tokens", 0),
        "self_critical.max_new_tokens": run.self_critical.max_new_tokens,
    }
    for name, length in lengths.items():
        if length > positions:
            raise ValueError(
                f"{name}={length} is longer than the {positions} positions of the language model: lower it, or raise "
                "model.config.text_config.n_positions."
            )


def freeze_towers(model, towers: Sequence[str]) -> None:
    """Freeze exactly these towers (vision, language); the rest trains."""
    model.requires_grad_(True)
    for tower in towers:
        freeze = getattr(model, f"freeze_{tower}", None)
        if freeze is None:
            raise ValueError(f"{type(model).__name__} has no {tower} tower to freeze.")
        freeze()


def iterate_captions(records) -> Iterator[str]:
    """The captions of a data set one by one, without its pictures."""
    for captions in iterate_references(records):
        yield from captions


def iterate_references(records) -> Iterator[list[str]]:
    """The list of captions of each record that has any, without its pictures."""
    from hf_vlp.data.collators import record_captions

    columns = [name for name in ("captions", "text") if name in (getattr(records, "column_names", None) or ())]
    if columns and hasattr(records, "select_columns"):
        records = records.select_columns(columns)
    for record in records:
        if captions := record_captions(record):
            yield captions


def first_records(records, count: int | None):
    """The first `count` records as something with a length: a part of the data set, or a list from a stream."""
    if hasattr(records, "__len__"):
        if count is None or count >= len(records):
            return records
        return records.select(range(count)) if hasattr(records, "select") else records[:count]
    return list(itertools.islice(records, count))


def make_augmentation(settings: dict | None) -> Callable | None:
    """The augmentation that `batches.augment` describes; ValueError for an unknown one or a wrong option."""
    if not settings:
        return None
    if len(settings) != 1 or not set(settings) <= set(AUGMENTATIONS):
        raise ValueError(f"batches.augment={settings} must hold one of {', '.join(AUGMENTATIONS)} with its options.")
    ((name, options),) = settings.items()
    try:
        return AUGMENTATIONS[name](**(options or {}))
    except TypeError as error:
        raise ValueError(f"batches.augment.{name}: {error}") from error


def make_collator(run: RunArguments, processor, collator_class: type = CaptionCollator, **options) -> CaptionCollator:
    """A collator with the settings of `batches:`, but for the augmentation, and its own counts of bad samples."""
    batches = run.batches
    policy = BadSamplePolicy(
        batches.bad_samples,
        max_in_a_row=batches.max_bad_in_a_row,
        max_total=batches.max_bad_samples,
        max_fraction=batches.max_bad_fraction,
    )
    captions_per_image = batches.captions_per_image
    if isinstance(captions_per_image, str) and captions_per_image != "all":
        raise ValueError(f"batches.captions_per_image={captions_per_image!r} is neither a number nor 'all'.")
    return collator_class(
        processor,
        max_length=batches.max_length,
        pad_to_multiple_of=batches.pad_to_multiple_of,
        captions_per_image=captions_per_image,
        bad_samples=policy,
        seed=run.training.data_seed,
        **options,
    )


__all__ = [
    "build_model_and_processor",
    "check_architecture",
    "check_config_keys",
    "check_lengths",
    "first_records",
    "freeze_towers",
    "iterate_captions",
    "iterate_references",
    "make_augmentation",
    "make_collator",
    "make_config",
    "make_image_processor",
]
