"""From settings to models, processors, data sets and trainers."""

import dataclasses
import difflib
import itertools
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from hf_vlp.auto import ARCHITECTURES
from hf_vlp.data import tokenization
from hf_vlp.data.answers import AnswerVocabulary, build_answer_vocabulary
from hf_vlp.data.augment import AUGMENTATIONS
from hf_vlp.data.collators import TEXT_COLUMNS, BadSamplePolicy
from hf_vlp.data.columns import only_columns
from hf_vlp.data.joint import JointRecords, JointStream
from hf_vlp.data.segmentation import segmentation_classes
from hf_vlp.describe import align
from hf_vlp.evaluation_tasks import training_answers
from hf_vlp.pretraining.arguments import BatchArguments, ModelArguments, RunArguments
from hf_vlp.pretraining.naming import plain_model
from hf_vlp.pretraining.visual_tokens import visual_vocabulary
from hf_vlp.tasks import TASKS, Task, get_task

logger = logging.get_logger(__name__)

# Settings of `batches:` that change what is trained on; evaluation sees the records as they are.
AUGMENTATION_OPTIONS = ("augment", "image_augment")
TRAINING_OPTIONS = (*AUGMENTATION_OPTIONS, "mixup", "cutmix", "label_smoothing", "draw_windows")


class Start(NamedTuple):
    """What a stage starts from.

    model, processor: ready to train.
    sources: where weights were taken from, in words; empty when nothing was.
    fresh: names of the parameters that no source had.
    unused: names of the weights of the source that the model has no place for.
    """

    model: Any
    processor: Any
    sources: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


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
        if os.sep in str(path) and not Path(path).exists():  # the Hub was asked as well: its names hold one, too
            raise ValueError(
                f"model.model_name_or_path={str(path)!r}: there is no folder {path} (looked in {Path.cwd()}), and no "
                "such model can be reached on the Hub. If another recipe makes it, run that first."
            ) from error
        raise ValueError(f"model.model_name_or_path={str(path)!r} is not a checkpoint: {error}") from error
    if config.model_type != architecture:
        raise ValueError(
            f"{path} is a checkpoint of {config.model_type!r}, and model.architecture is {architecture!r}. To start "
            "from towers of other architectures give vision_model_name_or_path and text_model_name_or_path."
        )
    return config


def find_model_class(architecture: str, task: str | Task) -> type | None:
    """The model class of an architecture that does a task, `None` if there is none."""
    task, entry = get_task(task), ARCHITECTURES[architecture]
    name = entry.models.get(task.auto_class, "")
    if not name.endswith(task.head):  # the Auto class finds another head, or none
        name = entry.config.removesuffix("Config") + task.head
    if not name.startswith(task.family):
        return None
    try:
        return entry.get("modeling", name)
    except AttributeError:
        return None


def get_model_class(architecture: str, task: str | Task) -> type:
    """The model class of an architecture that does a task; ValueError names the tasks that it has heads for."""
    task = get_task(task)
    model_class = find_model_class(architecture, task)
    if model_class is None:
        heads = [other for other in TASKS if find_model_class(architecture, other)]
        raise ValueError(f"{architecture} has no head for the task {task.name!r}, only for {', '.join(heads)}.")
    return model_class


def make_image_processor(architecture: str, config: PreTrainedConfig, options: dict):
    """The image processor that fits a configuration, with some of its options replaced."""
    from transformers.utils import is_torchvision_available

    backend = "torchvision" if is_torchvision_available() else "pil"
    entry = ARCHITECTURES[architecture]
    processor_class = entry.get_image_processor(backend)
    return processor_class(**{**entry.image_processor_options, **_image_size_options(config), **options})


def _image_size_options(config: PreTrainedConfig) -> dict:
    """Options of the image processor that follow from the size of the model's pictures."""
    if hasattr(config, "vision_config"):
        size = config.vision_config.image_size
        return {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return {"size": {"height": config.image_size, "width": config.image_size}}


def start_model(
    settings: ModelArguments,
    texts: Iterable[str],
    *,
    task: str | Task = "captioning",
    find_labels: Callable[[], Sequence[str] | None] = lambda: None,
) -> Start:
    """The model and processor that a stage starts from, and what of it was taken from where.

    Args:
        settings: where they come from: nothing, a checkpoint (of any head), existing parts, or a BEiT.
        texts: training texts, read only if a tokenizer is trained from them.
        task: chooses the head.
        find_labels: gives the names of the labels of a new head, `None` for the configuration's; not called for a
            checkpoint that has this head, which keeps its own.

    Raises ValueError for configurations that are impossible, checkpoints of another architecture, towers that do not
    fit, and architectures without a head for the task.
    """
    task = get_task(task)
    model_class = get_model_class(settings.architecture, task)
    if settings.model_name_or_path:
        return _start_from_checkpoint(settings, model_class, task, find_labels)
    processor_name = ARCHITECTURES[settings.architecture].processor
    if processor_name is None:
        return _start_without_texts(settings, model_class)
    processor_class = ARCHITECTURES[settings.architecture].get("processing", processor_name)
    tokenizer = _make_tokenizer(settings, texts)
    if settings.vision_model_name_or_path:
        return _start_from_parts(settings, model_class, processor_class, tokenizer)
    values = {
        **_head_values(settings.architecture, task, find_labels()),
        **_visual_values(settings),
        **settings.config,
    }
    if "text_config" in getattr(ARCHITECTURES[settings.architecture].get_config(), "sub_configs", {}):
        tokens = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
        tokens["pad_token_id"] = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        values["text_config"] = {**(values.get("text_config") or {}), "vocab_size": len(tokenizer), **tokens}
    else:
        values |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if settings.beit_model_name_or_path or settings.vlmo_model_name_or_path:
        start = _start_from_other(settings, model_class, values)
    else:
        start = Start(model_class(make_config(settings.architecture, values)), None)
    model = _set_up(start.model, settings)
    image_processor = make_image_processor(settings.architecture, model.config, settings.image_processor)
    return start._replace(processor=processor_class(image_processor, tokenizer))


def _set_up(model, settings: ModelArguments):
    """The new model with the wanted attention and in the wanted type."""
    if settings.attn_implementation:
        model.set_attn_implementation(settings.attn_implementation)
    if settings.dtype:
        import torch

        model.to(getattr(torch, settings.dtype))
    return model


def _start_without_texts(settings: ModelArguments, model_class: type) -> Start:
    """A new model of pictures alone, with an image processor for processor."""
    for name in ("vision_model", "beit_model", "vlmo_model", "tokenizer"):
        name = f"{name}_name_or_path"
        if getattr(settings, name):
            raise ValueError(f"{settings.architecture} is not built from other models: leave out model.{name}.")
    model = _set_up(model_class(make_config(settings.architecture, settings.config)), settings)
    return Start(model, make_image_processor(settings.architecture, model.config, settings.image_processor))


def _visual_values(settings: ModelArguments) -> dict:
    """The number of visual tokens that a new model predicts, if a tokenizer is given and the model has them."""
    fields = {entry.name for entry in dataclasses.fields(ARCHITECTURES[settings.architecture].get_config())}
    if not settings.visual_tokenizer_name_or_path or "visual_vocab_size" not in fields:
        return {}
    return {"visual_vocab_size": visual_vocabulary(settings.visual_tokenizer_name_or_path)}


def _head_values(architecture: str, task: Task, labels: Sequence[str] | None) -> dict:
    """Fields of the configuration that a new head of this task needs."""
    config_class = ARCHITECTURES[architecture].get_config()
    fields = {entry.name for entry in dataclasses.fields(config_class)}
    values = {name: value for name, value in task.config.items() if name in fields}
    if labels:
        values |= {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return values


def _start_from_checkpoint(settings: ModelArguments, model_class: type, task: Task, find_labels: Callable) -> Start:
    path = settings.model_name_or_path
    config = check_architecture(path, settings.architecture)
    check_config_keys(type(config), settings.config)
    has_same_head = model_class.__name__ in (config.architectures or ())
    values = {}
    if not has_same_head:
        values = {**_head_values(settings.architecture, task, find_labels()), **_visual_values(settings)}
    config = AutoConfig.from_pretrained(path, **{**values, **settings.config})
    options = {}
    if settings.attn_implementation:
        options["attn_implementation"] = settings.attn_implementation
    if settings.dtype:
        options["dtype"] = settings.dtype
    if not has_same_head:  # heads of two tasks may have the same names and other sizes
        options["ignore_mismatched_sizes"] = True
    model, info = model_class.from_pretrained(path, config=config, output_loading_info=True, **options)
    other_sizes = {name for name, *_ in info["mismatched_keys"]}
    group_of = getattr(model, "get_parameter_group", lambda name: "all")
    if body := sorted(name for name in other_sizes if group_of(name) != "head"):
        raise ValueError(
            f"model.config gives {', '.join(body[:5])} other sizes than {path} has: leave sizes as they are."
        )
    image_options = _image_size_options(model.config) if "image_size" in settings.config else {}
    processor = AutoProcessor.from_pretrained(path, **{**image_options, **settings.image_processor})
    return Start(
        model,
        processor,
        sources=(str(path),),
        fresh=tuple(sorted({*info["missing_keys"], *other_sizes})),
        unused=tuple(sorted(info["unexpected_keys"])),
    )


def _start_from_other(settings: ModelArguments, model_class: type, values: dict) -> Start:
    """From a BEiT or a VLMo, which the model without a head is made of."""
    source = "beit" if settings.beit_model_name_or_path else "vlmo"
    path, entry = getattr(settings, f"{source}_model_name_or_path"), ARCHITECTURES[settings.architecture]
    start = getattr(entry.get("modeling", entry.models["AutoModel"]), f"from_{source}_pretrained", None)
    if start is None:
        raise ValueError(f"{settings.architecture} has no start for {source}_model_name_or_path: leave it out.")
    check_config_keys(entry.get_config(), settings.config)
    try:
        base, info = start(path, output_loading_info=True, **values)
    except (TypeError, OSError) as error:
        raise ValueError(f"{path} does not make a {settings.architecture} model: {error}") from error
    model = model_class(base.config).to(base.dtype)
    model.base_model.load_state_dict(base.state_dict())
    taken = {name for name, _ in base.named_parameters()} - set(info["missing_keys"])
    prefix = f"{model.base_model_prefix}."
    fresh = tuple(name for name, _ in model.named_parameters() if name.removeprefix(prefix) not in taken)
    return Start(model, None, sources=(str(path),), fresh=fresh, unused=tuple(info["unexpected_keys"]))


def _start_from_parts(settings: ModelArguments, model_class: type, processor_class: type, tokenizer) -> Start:
    check_config_keys(ARCHITECTURES[settings.architecture].get_config(), settings.config)
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
    return Start(model, processor_class(image_processor, tokenizer))


def _make_tokenizer(settings: ModelArguments, texts: Iterable[str]):
    path = settings.tokenizer_name_or_path or settings.text_model_name_or_path or settings.vlmo_model_name_or_path
    if path:
        return AutoTokenizer.from_pretrained(path)
    if ARCHITECTURES[settings.architecture].tokenizer == "BertTokenizer":
        train_tokenizer = tokenization.train_bert_tokenizer
    else:
        train_tokenizer = tokenization.train_gpt2_tokenizer
    return train_tokenizer(itertools.islice(texts, settings.tokenizer_captions), settings.vocab_size)


def describe_start(start: Start) -> str:
    """A table of a model at its start, one row for each kind of module: what was taken, is fresh, and trains.

    Layers of one kind share a row, their number written as `*`. Empty when the model was not taken from anywhere.
    """
    if not start.sources:
        return ""
    fresh = set(start.fresh)
    counts: dict[str, list[int]] = {}
    for name, parameter in start.model.named_parameters():
        part = ".".join("*" if piece.isdigit() else piece for piece in name.split(".")[:-1][:5]) or name
        entry = counts.setdefault(part, [0, 0, 0])
        entry[0 if name not in fresh else 1] += parameter.numel()
        entry[2] += parameter.numel() if parameter.requires_grad else 0
    rows = [["part", "taken", "fresh", "trains"]]
    for part, (taken, new, trainable) in counts.items():
        trains = "no" if not trainable else "yes" if trainable == taken + new else f"{trainable:,}"
        rows.append([part, f"{taken:,}", f"{new:,}", trains])
    total, new, trainable = (sum(entry[column] for entry in counts.values()) for column in range(3))
    rows.append(["total", f"{total:,}", f"{new:,}", f"{trainable:,}"])
    lines = [f"Start: {' and '.join(start.sources)}", *align(rows)]
    if start.unused:
        shown = ", ".join(start.unused[:5]) + (", ..." if len(start.unused) > 5 else "")
        lines.append(f"Not used of the source: {len(start.unused)} tensors ({shown})")
    return "\n".join(lines)


def check_lengths(run: RunArguments, model) -> None:
    """Raise ValueError when texts of the run can be longer than the positions that the model has."""
    config = model.config
    if hasattr(config, "text_config"):
        positions = getattr(config.get_text_config(), "max_position_embeddings", None)
        raise_it = "model.config.text_config.n_positions"
        owner = "the language model"
    else:
        raise_it = (
            "max_text_length_of_table"
            if not getattr(config, "use_absolute_position_embeddings", True)
            else "max_text_length"
        )
        positions, raise_it, owner = getattr(config, raise_it, None), f"model.config.{raise_it}", "the model"
    if positions is None or "max_length" not in get_task(run.task).collator_options:
        return  # pictures alone
    lengths = {"batches.max_length": run.batches.max_length}
    multiple = run.batches.pad_to_multiple_of or 1
    padded = -(-run.batches.max_length // multiple) * multiple
    if padded > run.batches.max_length:
        lengths[f"batches.max_length padded to a multiple of {multiple}"] = padded
    if run.task == "captioning":
        lengths["evaluation.generation.max_new_tokens"] = run.evaluation.generation.get("max_new_tokens", 0)
        lengths["self_critical.max_new_tokens"] = run.self_critical.max_new_tokens
    for name, length in lengths.items():
        if length > positions:
            raise ValueError(
                f"{name}={length} is longer than the {positions} positions of {owner}: lower it, or raise {raise_it}."
            )


def freeze_towers(model, towers: Sequence[str]) -> None:
    """Freeze exactly these (vision, language, for_language_stage); the rest trains."""
    model.requires_grad_(True)
    for tower in towers:
        freeze = getattr(model, f"freeze_{tower}", None)
        if freeze is None:
            raise ValueError(f"{type(model).__name__} has no {tower} to freeze.")
        freeze()


def find_labels(run: RunArguments, records) -> list[str] | None:
    """The labels of a new head for the task of a run, read from its training records where the task says so.

    Answers are normalised and numbered by first appearance (`build_answer_vocabulary`), unless
    `model.answer_vocabulary` names a file. Classes are numbered as the data number them, named ones by alphabet;
    records without a label do not count. Those of pixels are `data.label_names`, or known for scenes. Raises
    ValueError for labels that are no classes.
    """
    labels = get_task(run.task).labels
    if isinstance(labels, tuple):
        return list(labels)
    if labels == "answers":
        if run.model.answer_vocabulary:
            return list(AnswerVocabulary.load(run.model.answer_vocabulary))
        annotations = (
            {"question_id": index, "multiple_choice_answer": answer}
            for index, (_, answer) in enumerate(training_answers(records))
        )
        return list(build_answer_vocabulary(annotations, run.model.min_answer_count))
    if labels == "pixel classes":
        names = segmentation_classes(run.data)
        if names is None:
            raise ValueError("A new head for segmentation needs the names of its classes: set data.label_names.")
        return names
    if labels == "classes":
        feature = (getattr(records, "features", None) or {}).get("label")
        if getattr(feature, "names", None):
            return list(feature.names)
        return _name_classes({record.get("label") for record in only_columns(records, ("label",))} - {None})
    return None


def _name_classes(labels: set) -> list[str]:
    """Names of the classes of a new head, from the different labels of its training records."""
    if labels and all(isinstance(label, str) for label in labels):
        return sorted(labels)
    if labels and all(isinstance(label, bool) for label in labels):
        return ["False", "True"]
    bad = [label for label in labels if not isinstance(label, numbers.Integral) or label < 0]
    if bad or not labels:
        shown = ", ".join(sorted(map(repr, bad))[:5]) or "none"
        raise ValueError(
            "The classes of a new head are read from the labels of the training records, which must be names, or "
            f"whole numbers from 0 on; found {shown}. Check data.label_column, or leave out such records."
        )
    return [str(label) for label in range(max(map(int, labels)) + 1)]


def iterate_captions(records) -> Iterator[str]:
    """The captions of a data set one by one, without its pictures."""
    for captions in iterate_references(records):
        yield from captions


def iterate_references(records) -> Iterator[list[str]]:
    """The list of captions of each record that has any, without its pictures."""
    from hf_vlp.data.collators import record_captions

    for record in only_columns(records, TEXT_COLUMNS):
        if captions := record_captions(record):
            yield captions


def iterate_texts(records, task: str | Task) -> Iterator[str]:
    """The texts of a data set that its tokenizer is trained from, without its pictures.

    Of joint records they are those of pairs and of texts alone, in turns.
    """
    if isinstance(records, JointRecords | JointStream):
        sources = (records.sources[name] for name in ("pair", "text") if name in records.sources)
        yield from take_turns([iterate_texts(source, task) for source in sources])
        return
    columns = get_task(task).texts
    if not set(columns) & set(getattr(records, "column_names", None) or columns):
        return  # pictures alone, which need not be read for this
    for record in only_columns(records, columns):
        texts = next((record[column] for column in columns if record.get(column) is not None), ())
        yield from (text for text in ([texts] if isinstance(texts, str) else texts) if text and text.strip())


def take_turns(sources: Iterable[Iterator[str]]) -> Iterator[str]:
    """One item of each in turns, until the last one ends."""
    sources = list(sources)
    while sources:
        for source in list(sources):
            item = next(source, None)
            if item is None:
                sources.remove(source)
            else:
                yield item


def first_records(records, count: int | None):
    """The first `count` records as something with a length: a part of the data set, or a list from a stream."""
    if hasattr(records, "__len__"):
        if count is None or count >= len(records):
            return records
        return records.select(range(count)) if hasattr(records, "select") else records[:count]
    if isinstance(records, JointStream):
        return records.take(count)
    return list(itertools.islice(records, count))


def make_augmentation(settings: dict | None, key: str = "augment") -> Callable | None:
    """The augmentation that `batches.augment` (or another key) describes; ValueError for an unknown one or option."""
    if not settings:
        return None
    if len(settings) != 1 or not set(settings) <= set(AUGMENTATIONS):
        raise ValueError(f"batches.{key}={settings} must hold one of {', '.join(AUGMENTATIONS)} with its options.")
    ((name, options),) = settings.items()
    try:
        return AUGMENTATIONS[name](**(options or {}))
    except TypeError as error:
        raise ValueError(f"batches.{key}.{name}: {error}") from error


def make_collator(run: RunArguments, processor, model, collator_class: type | None = None, *, training: bool = False):
    """A collator with the settings of `batches:` and its own counts of bad samples.

    Args:
        model: gives the labels of its head.
        collator_class: by default that of the task.
        training: for training: with augmentation, mixing and smoothed labels.
    """
    batches, task = run.batches, get_task(run.task)
    options = {
        name: getattr(batches, name) for name in task.collator_options if training or name not in TRAINING_OPTIONS
    }
    if options.get("captions_per_image", 1) != "all" and isinstance(options.get("captions_per_image"), str):
        raise ValueError(f"batches.captions_per_image={batches.captions_per_image!r} is neither a number nor 'all'.")
    for name in AUGMENTATION_OPTIONS:
        if name in options:
            options[name] = make_augmentation(options[name], name)
    options |= {name: getattr(plain_model(model).config, name) for name in task.collator_config}
    if task.collator_labels:
        options[task.collator_labels] = dict(plain_model(model).config.label2id)
    collator_class = collator_class or task.load("collator")
    return collator_class(
        processor, bad_samples=make_bad_sample_policy(batches), seed=run.training.data_seed, **options
    )


def make_bad_sample_policy(batches: BatchArguments) -> BadSamplePolicy:
    """A policy with the limits of `batches:`, which counts on its own."""
    return BadSamplePolicy(
        batches.bad_samples,
        max_in_a_row=batches.max_bad_in_a_row,
        max_total=batches.max_bad_samples,
        max_fraction=batches.max_bad_fraction,
    )


__all__ = [
    "AUGMENTATION_OPTIONS",
    "Start",
    "check_architecture",
    "check_config_keys",
    "check_lengths",
    "describe_start",
    "find_labels",
    "find_model_class",
    "first_records",
    "freeze_towers",
    "get_model_class",
    "iterate_captions",
    "iterate_references",
    "iterate_texts",
    "make_augmentation",
    "make_bad_sample_policy",
    "make_collator",
    "make_config",
    "make_image_processor",
    "start_model",
    "take_turns",
]
