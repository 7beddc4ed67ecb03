"""Run settings: one YAML with sections, flags on top, and every unknown key an error that names its neighbour.

    model:            what is trained, and from what it starts      `ModelArguments`
    data:             records and their columns                     `hf_vlp.data.sources.DataArguments`
    batches:          from records to batches                       `BatchArguments`
    training:         transformers' TrainingArguments, and more     `VlpTrainingArguments`
    peft:             LoRA; absent means full training              `PeftArguments`
    self_critical:    settings of that objective                    `SelfCriticalArguments`
    evaluation:       what is measured during and after training    `EvaluationArguments`
    task, objective, stages                                         `RunArguments`

Flags are `--key value` where only one section has the key, and `--section.key value` always; dictionaries are reached
by more dots (`--model.config.num_fusion_layers 2`). Values are written as in YAML.
"""

import dataclasses
import difflib
import enum
import inspect
import itertools
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from hf_vlp.data.sources import DataArguments
from hf_vlp.tasks import TASKS, Task, get_task

# Names that older versions of transformers had, and what to write now.
RENAMED_TRAINING_ARGUMENTS = {
    "warmup_ratio": "warmup_steps (a value below 1 is a ratio of all steps)",
    "evaluation_strategy": "eval_strategy",
    "no_cuda": "use_cpu",
    "logging_dir": "the environment variable of the tracker",
    "overwrite_output_dir": "another output_dir",
    "save_safetensors": "nothing: safetensors is the only format",
    "group_by_length": "train_sampling_strategy: group_by_length",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
    "push_to_hub_model_id": "hub_model_id",
    "half_precision_backend": "nothing: mixed precision is torch's",
    "fp16_backend": "nothing: mixed precision is torch's",
    "use_mps_device": "nothing: the device is found",
    "tokenizer": "model.tokenizer_name_or_path",
    "include_inputs_for_metrics": "include_for_metrics",
}


# What model.freeze may name: `freeze_<name>()` of the model does it.
FREEZABLE = ("vision", "language", "for_language_stage")


def setting(default: Any, help: str):
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": help})


@dataclass
class ModelArguments:
    """What is trained, and from what it starts: nothing, a checkpoint of hf_vlp, or existing parts."""

    architecture: str = setting("vc_gpt", "Model type, as in the table of hf_vlp.auto.")
    model_name_or_path: str | None = setting(None, "Start from this hf_vlp checkpoint (folder or Hub id).")
    vision_model_name_or_path: str | None = setting(None, "Start from this vision tower, together with a text model.")
    text_model_name_or_path: str | None = setting(None, "Start from this language model, with a vision tower.")
    beit_model_name_or_path: str | None = setting(
        None, "Start attention and image side from this BEiT; texts, and experts for them, are new."
    )
    vlmo_model_name_or_path: str | None = setting(None, "VL-BEiT: start the whole Transformer from this VLMo.")
    visual_tokenizer_name_or_path: str | None = setting(
        None, "Frozen visual tokenizer whose ids masked image modelling predicts, where the data hold none."
    )
    cache_visual_tokens: bool = setting(
        False, "Make the ids of all pictures once and keep them, in place of once a step; not with random crops."
    )
    visual_teacher_name_or_path: str | None = setting(
        None, "Training of a visual tokenizer with target features: the vision tower that they are of."
    )
    config: dict = field(
        default_factory=dict, metadata={"help": "Fields of the configuration that differ from its defaults."}
    )
    tokenizer_name_or_path: str | None = setting(
        None, "Tokenizer of the model; default: that of the text model, or one trained from the training texts."
    )
    vocab_size: int = setting(2000, "Most tokens of a tokenizer that is trained from the texts (bytes: at least 257).")
    tokenizer_captions: int = setting(100_000, "Texts that a tokenizer is trained from, at most.")
    answer_vocabulary: str | None = setting(
        None, "JSON with the answers of a new question-answering head; default: those of the training records."
    )
    min_answer_count: int = setting(1, "Answers that are read from the training records occur so often at least.")
    image_processor: dict = field(
        default_factory=dict,
        metadata={
            "help": "Options of the image processor that differ, such as image_mean, image_std, do_center_crop."
        },
    )
    freeze: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What does not train: vision, language (towers), for_language_stage (all but the text side)."
        },
    )
    attn_implementation: str | None = setting(None, "sdpa (default) or eager.")
    dtype: str | None = setting(None, "Type of the weights: float32, bfloat16; default that of the checkpoint.")

    def __post_init__(self):
        from hf_vlp.auto import ARCHITECTURES

        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"model.architecture={self.architecture!r} is not one of {sorted(ARCHITECTURES)}.")
        if (self.vision_model_name_or_path is None) != (self.text_model_name_or_path is None):
            raise ValueError("Starting from parts needs both vision_model_name_or_path and text_model_name_or_path.")
        starts = ("model", "vision_model", "beit_model", "vlmo_model")
        given = [f"{start}_name_or_path" for start in starts if getattr(self, f"{start}_name_or_path")]
        if len(given) > 1:
            raise ValueError(f"Give one starting point, not {' and '.join(given)}.")
        if self.cache_visual_tokens and not self.visual_tokenizer_name_or_path:
            raise ValueError("model.cache_visual_tokens needs model.visual_tokenizer_name_or_path.")
        if unknown := sorted(set(self.freeze) - set(FREEZABLE)):
            raise ValueError(f"model.freeze names {unknown}; what can be frozen is {', '.join(FREEZABLE)}.")


@dataclass
class BatchArguments:
    """How records become batches."""

    max_length: int = setting(40, "Tokens of a text at most, begin and end included; longer ones are cut.")
    draw_windows: bool = setting(
        True,
        "Masked language modelling trains on a part of each text beyond max_length, another one each time; false: on "
        "its beginning, as the original VLMo does.",
    )
    pad_to_multiple_of: int | None = setting(8, "Batches are padded to the longest text, rounded up to this.")
    pad_to_max_length: bool = setting(False, "Pad every batch to max_length, as the original VLMo does.")
    mask_probability: float = setting(0.15, "Share of the word pieces that masked language modelling hides.")
    whole_word: bool = setting(
        True,
        "Hide whole words, not single pieces; joint_pretraining hides pieces unless this says otherwise, a decision "
        "of this package.",
    )
    mask_budget: Literal["tokens", "padded_length"] = setting(
        "tokens",
        "What the share is of: the pieces of a text (a decision of this package for VL-BEiT), or its padded length as "
        "in the original VLMo.",
    )
    pair_mask_probability: float = setting(0.5, "joint_pretraining: share of the word pieces of pairs that is hidden.")
    mask_pair_sides: Literal["both", "text", "image", "alternate"] = setting(
        "both",
        "joint_pretraining: what of a pair is masked; alternate: one side of each, drawn anew every time. Both at "
        "once is a decision of this package.",
    )
    image_mask_ratio: float = setting(0.4, "Share of the patches of a picture that masked image modelling hides.")
    exact_mask_count: bool = setting(
        True,
        "Hide exactly floor(ratio * patches) patches, a decision of this package (BEiT v2 hides exactly 75 of 196); "
        "false: at most so many, as in BEiT.",
    )
    tokenizer_image_size: int | None = setting(
        None, "Side of the pictures that the visual tokenizer sees; default: what it was made for, or the model's."
    )
    tokenizer_resample: Literal["bicubic", "lanczos", "bilinear"] = setting(
        "bicubic", "How these pictures are resized: bicubic for VQ-KD; lanczos, to 112 pixels, for DALL-E's."
    )
    normalize_answers: bool = setting(
        True, "Normalise the annotators' answers before they are looked up; false is the original's quirk."
    )
    captions_per_image: int | str = setting(
        1, "Captions drawn for each picture and batch; the picture is encoded once."
    )
    augment: dict | None = field(
        default=None, metadata={"help": "Augmentation in training: {random_resized_crop: {min_scale: 0.6}}."}
    )
    image_augment: dict | None = field(
        default=None,
        metadata={
            "help": "joint_pretraining: the same for pictures alone, where augment is of pairs: {beit_pretraining:}."
        },
    )
    mixup: float = setting(0.0, "Labelled pictures: mix those of a batch, in shares from Beta(mixup, mixup); 0: off.")
    cutmix: float = setting(0.0, "The same with boxes of one picture in another; with both, one is drawn for a batch.")
    label_smoothing: float = setting(0.0, "Labelled pictures: probability that labels lose to all classes alike.")
    bad_samples: Literal["skip", "raise"] = setting("skip", "What happens to pictures that cannot be read.")
    max_bad_in_a_row: int = setting(50, "So many bad samples in a row stop the run.")
    max_bad_samples: int | None = setting(10_000, "So many bad samples in all stop the run.")
    max_bad_fraction: float = setting(0.1, "A larger share of bad samples stops the run.")


@dataclass
class VlpTrainingArguments(TrainingArguments):
    """transformers' TrainingArguments with what its Trainer does not know."""

    group_learning_rates: dict | None = field(
        default=None,
        metadata={
            "help": "Rates of groups of parameters (vision, language, fusion; or body, head), others take "
            "learning_rate; null undoes."
        },
    )
    head_learning_rate_multiplier: float = setting(1.0, "Factor on the learning rate of the group head (a new task).")
    no_decay: Literal["model", "original"] = setting(
        "model", "Parameters without weight decay: what the model says, or exactly those of the original's code."
    )
    layer_decay: float = setting(1.0, "Factor on the learning rate for each layer below the top (1: off).")
    matching_every: int = setting(1, "Image-text matching in every n-th update only: less work, another training.")
    matching_fraction: float = setting(1.0, "Share of each batch that takes part in image-text matching, likewise.")
    contrastive_chunk_size: int | None = setting(
        None, "Retrieval: encode so many rows of a batch at a time; each is run twice, with the gradient of the whole."
    )
    shuffle_block: int = setting(1000, "Streams are shuffled in blocks of so many records (0: not at all).")

    def __post_init__(self):
        # Collators read the columns of the records, and Trainer would remove those that forward does not name.
        self.remove_unused_columns = False
        if not self.head_learning_rate_multiplier > 0:
            raise ValueError(
                f"training.head_learning_rate_multiplier={self.head_learning_rate_multiplier} must be positive."
            )
        if self.matching_every < 1 or not 0 < self.matching_fraction <= 1:
            raise ValueError(
                f"training.matching_every={self.matching_every} must be at least 1, training.matching_fraction="
                f"{self.matching_fraction} in (0, 1]."
            )
        if self.contrastive_chunk_size is not None and self.contrastive_chunk_size < 1:
            raise ValueError(f"training.contrastive_chunk_size={self.contrastive_chunk_size} must be at least 1.")
        if self.data_seed is None:
            self.data_seed = self.seed
        if self.ddp_find_unused_parameters is None:
            # Experts and poolers that a task does not read have no gradient. Trainer looks for such parameters unless
            # activations are recomputed, for the sake of reentrant checkpointing, which is not its default.
            self.ddp_find_unused_parameters = True
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False  # torch warns at every data loader otherwise
        super().__post_init__()


@dataclass
class PeftArguments:
    """Low-rank adapters (LoRA) instead of full training."""

    preset: str = setting("attention", "Modules that get adapters: a name in the model's lora_presets.")
    target_modules: str | None = setting(None, "A regular expression over full module names, in place of a preset.")
    r: int = setting(8, "Rank.")
    alpha: float = setting(16.0, "Scale: the update is multiplied by alpha / r.")
    dropout: float = setting(0.0, "Dropout on the input of the adapters.")
    bias: Literal["none", "all", "lora_only"] = setting("none", "Which biases train.")
    use_rslora: bool = setting(False, "Scale by alpha / sqrt(r).")
    use_dora: bool = setting(False, "Decompose into magnitude and direction (DoRA).")
    modules_to_save: list[str] = field(
        default_factory=list, metadata={"help": "Modules that train in full beside the adapters."}
    )
    merge: bool = setting(True, "Save the merged model as the repository; the adapters go to its folder adapter/.")


@dataclass
class SelfCriticalArguments:
    """Self-critical sequence training: CIDEr-D of sampled captions against a baseline."""

    num_samples: int = setting(5, "Captions sampled for each picture.")
    baseline: Literal["greedy", "mean_of_others"] = setting("greedy", "What a sample must beat.")
    max_new_tokens: int = setting(20, "Tokens of a caption at most, end included.")
    temperature: float = setting(1.0, "Of the sampling; the loss uses the same distribution.")
    document_frequencies: str | None = setting(
        None, "JSON file of document frequencies; default: counted over the training references."
    )

    def __post_init__(self):
        if self.num_samples < 1 or (self.baseline == "mean_of_others" and self.num_samples < 2):
            raise ValueError(
                f"self_critical.num_samples={self.num_samples} is too few: at least 1, with baseline mean_of_others 2."
            )
        if self.temperature <= 0:
            raise ValueError(f"self_critical.temperature={self.temperature} must be positive.")


@dataclass
class EvaluationArguments:
    """What is measured during training and at its end; `metrics`, `generation` are of captions."""

    metrics: list[str] = field(
        default_factory=lambda: ["cider_d", "bleu", "exact_match"],
        metadata={"help": "Metrics of the captions: names of hf_vlp.metrics.captioning.CAPTION_METRICS."},
    )
    generation: dict = field(
        default_factory=lambda: {"max_new_tokens": 20},
        metadata={"help": "Options of generate, such as num_beams, length_penalty."},
    )
    batch_size: int = setting(32, "Records that are measured together.")
    split: str | None = setting("validation", "Split for the evaluations during training; null for none.")
    max_records: int | None = setting(1000, "Records of that split whose loss is measured during training.")
    num_samples: int = setting(200, "Records of that split that are measured at each evaluation; 0 for none.")
    final_splits: list[str] = field(
        default_factory=lambda: ["validation"],
        metadata={"help": "Splits that are measured after training; an empty list for none."},
    )
    final_max_records: int | None = setting(None, "Records of each of these splits at most.")
    shuffled_pictures: bool = setting(True, "Score the model with the pictures of other records too.")
    sliding_window: dict | None = field(
        default=None,
        metadata={
            "help": "Segmentation: windows of the model's size over larger pictures: {shortest_edge: 512, "
            "longest_edge: 2048, stride: 341}; default: each picture fills one window."
        },
    )
    rerank: int = setting(
        0,
        "Retrieval: candidates of each query that the matching head scores again; 0 for none. VL-BEiT's number is not "
        "known: the 128 of its recipes are a decision of this package.",
    )
    constant_candidates: int = setting(
        200, "Training captions among which the best constant one is searched; 0 for no baselines from training data."
    )


OBJECTIVES = ("model_loss", "self_critical")


@dataclass
class RunArguments:
    """All settings of a run; `stages()` gives them stage by stage."""

    model: ModelArguments
    data: DataArguments
    batches: BatchArguments
    training: VlpTrainingArguments
    peft: PeftArguments | None
    self_critical: SelfCriticalArguments
    evaluation: EvaluationArguments
    task: str = setting("captioning", "What the model learns to do; it chooses collator and metrics.")
    objective: str = setting("model_loss", "model_loss: the model's own (cross-entropy); self_critical: SCST.")
    stage: str | None = setting(None, "Name of the stage that these settings are for.")
    all_stages: list["RunArguments"] = field(default_factory=list, metadata={"help": "Settings of each stage."})
    settings: dict = field(
        default_factory=dict, metadata={"help": "What YAML and flags said, as `parse_arguments` reads it again."}
    )

    def stages(self) -> list["RunArguments"]:
        """The settings of each stage in order; the run itself when the YAML has no `stages`."""
        return self.all_stages or [self]


SECTIONS: dict[str, type] = {
    "model": ModelArguments,
    "data": DataArguments,
    "batches": BatchArguments,
    "training": VlpTrainingArguments,
    "peft": PeftArguments,
    "self_critical": SelfCriticalArguments,
    "evaluation": EvaluationArguments,
}
_TOP_LEVEL = ("task", "objective", "stages")


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as in YAML 1.2 (PyYAML demands 1.0e-4), and a key may stand only once."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$|^[-+]?(\d[\d_]*)\.\d*$|^[-+]?\.\d+([eE][-+]?\d+)?$"),
    list("-+.0123456789"),
)


def read_yaml(path: str | os.PathLike) -> dict:
    """The content of a YAML file as a dict; ValueError tells what is wrong and where."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no settings file {path}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # derived from SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold sections ({', '.join(SECTIONS)}), not {type(content).__name__}.")
    return content


def parse_arguments(
    yaml_file: str | os.PathLike | dict | None = None, flags: Sequence[str] | dict[str, Any] = ()
) -> RunArguments:
    """The settings of a run from a YAML file and flags.

    Args:
        yaml_file: path of the YAML, or its content as a dict; `None` takes the defaults.
        flags: what follows on the command line (`["--learning_rate", "1e-4"]`), or a dict with the same keys. They
            win over the YAML, and over what its stages say.

    Raises ValueError for unknown keys (naming the nearest valid one), ambiguous flags, values of the wrong type, and
    settings that contradict one another.
    """
    if isinstance(yaml_file, dict):
        content = yaml_file
    else:
        content = {} if yaml_file is None else read_yaml(yaml_file)
    settings = _check_keys(content)
    overrides = _parse_flags(flags)
    stages = settings.pop("stages", None) or []
    if not stages:
        run = _build(_merge(settings, overrides))
        _check_data(run.data, run.task)
        return run
    if not isinstance(stages, list) or not all(isinstance(stage, dict) and stage.get("name") for stage in stages):
        raise ValueError("stages must be a list of dictionaries, each with a `name` and the settings that differ.")
    names = [stage["name"] for stage in stages]
    if len(set(names)) < len(names):
        raise ValueError(f"Stages need different names, not {names}.")
    run = _build(_merge(settings, overrides))
    run.settings = {**run.settings, "stages": stages}
    for stage in stages:
        differences = _check_keys({key: value for key, value in stage.items() if key != "name"}, stage["name"])
        if "stages" in differences:
            raise ValueError(f"Stage {stage['name']!r} holds stages itself.")
        own = _merge(_merge(settings, differences), overrides)
        own.setdefault("training", {})["output_dir"] = str(Path(run.training.output_dir) / stage["name"])
        run.all_stages.append(_build(own, stage["name"]))
    for before, after in itertools.pairwise(run.all_stages):
        if before.task != after.task and before.peft is not None and not before.peft.merge:
            raise ValueError(
                f"Stage {after.stage!r} trains another head than {before.stage!r}, whose adapters are not merged: set "
                "peft.merge to true."
            )
    return run


class Protocol(NamedTuple):
    """What an evaluation takes from the settings of a run.

    data, batches: with their defaults.
    evaluation: what the settings say, without defaults.
    seed: of the run, `None` where the settings say nothing of training.
    """

    data: DataArguments
    batches: BatchArguments
    evaluation: dict[str, Any]
    seed: int | None


def parse_protocol(
    yaml_file: str | os.PathLike | dict, flags: Sequence[str] | dict[str, Any] = (), *, task: str | Task
) -> Protocol:
    """The data of a run and how they are measured for a task, without asking whether the run could be trained.

    Of several stages the last one for this task counts. `flags` are of the sections data, batches and evaluation.
    Raises ValueError as `parse_arguments` does.
    """
    task = get_task(task)
    settings = _check_keys(yaml_file if isinstance(yaml_file, dict) else read_yaml(yaml_file))
    overrides = _parse_flags(flags)
    if others := sorted(overrides.keys() - {"data", "batches", "evaluation"}):
        raise ValueError(f"An evaluation takes settings of data, batches and evaluation, not of {', '.join(others)}.")
    for stage in reversed(settings.pop("stages", None) or []):
        if stage.get("task", settings.get("task", "captioning")) == task.name:
            own = {key: value for key, value in stage.items() if key != "name"}
            settings = _merge(settings, _check_keys(own, stage.get("name")))
            break
    settings = _merge(settings, overrides)
    data = _build_section("data", settings.get("data", {}), task)
    _check_data(data, task.name)
    seed = None
    if "training" in settings:
        default = VlpTrainingArguments.__dataclass_fields__["seed"].default
        seed = coerce(settings["training"].get("seed", default), int, "training.seed")
    return Protocol(
        data,
        _build_section("batches", settings.get("batches", {}), task),
        _typed("evaluation", EvaluationArguments, settings.get("evaluation", {})),
        seed,
    )


def _check_data(data: DataArguments, task: str):
    for name in ("images", "texts"):
        if getattr(data, name) is not None and data.record_type != "joint":
            raise ValueError(f"data.{name} is read by the task joint_pretraining alone, not by {task}.")


def _field_names(section: str) -> list[str]:
    return [entry.name for entry in dataclasses.fields(SECTIONS[section]) if entry.init]


def _suggest(key: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Valid are {', '.join(sorted(valid))}."


def _unknown(section: str, key: str, prefix: str = "") -> ValueError:
    if section == "training" and key in RENAMED_TRAINING_ARGUMENTS:
        return ValueError(
            f"{prefix}training.{key} is no longer an argument of transformers' Trainer; write "
            f"{RENAMED_TRAINING_ARGUMENTS[key]}."
        )
    homes = [other for other in SECTIONS if key in _field_names(other)]
    if homes:
        return ValueError(f"{prefix}Unknown key {section}.{key}; it belongs to the section {homes[0]!r}.")
    return ValueError(f"{prefix}Unknown key {section}.{key}. {_suggest(key, _field_names(section))}")


def _check_keys(content: dict, stage: str | None = None) -> dict:
    """The content with every key known; sections that are empty in the YAML (None) become empty dicts."""
    prefix = f"Stage {stage!r}: " if stage else ""
    checked: dict[str, Any] = {}
    for section, values in content.items():
        if section not in SECTIONS and section not in _TOP_LEVEL:
            homes = [other for other in SECTIONS if section in _field_names(other)]
            hint = (
                f"It belongs to the section {homes[0]!r}."
                if homes
                else _suggest(str(section), [*SECTIONS, *_TOP_LEVEL])
            )
            raise ValueError(f"{prefix}Unknown section {section!r}. {hint}")
        if section in _TOP_LEVEL:
            checked[section] = values
            continue
        if values is None and section == "peft":
            checked[section] = None
            continue
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise ValueError(f"{prefix}The section {section!r} must hold keys and values, not {values!r}.")
        for key in values:
            if key not in _field_names(section) or (section == "training" and key in RENAMED_TRAINING_ARGUMENTS):
                raise _unknown(section, key, prefix)
        checked[section] = dict(values)
    return checked


def _parse_flags(flags: Sequence[str] | dict[str, Any]) -> dict:
    """Flags as {section: {key: value}}."""
    parsed: dict[str, Any] = {}
    if isinstance(flags, dict):
        pairs = list(flags.items())
    else:
        pairs, values = [], None
        for word in flags:
            if re.match(r"--[A-Za-z_]", word):
                name, has_value, value = word[2:].partition("=")
                values = [value] if has_value else []
                pairs.append((name, values))
            elif values is None:
                raise ValueError(f"Unexpected argument {word!r}: settings are given as --key value.")
            else:
                values.append(word)
        pairs = [(name, _read_values(words)) for name, words in pairs]
    for name, value in pairs:
        section, keys, value = _find_flag(name.replace("-", "_"), value)
        if section is None:
            parsed[keys[0]] = value
            continue
        target = parsed.setdefault(section, {})
        for key in keys[:-1]:
            target = target.setdefault(key, {})
        target[keys[-1]] = value
    return parsed


def _read_values(words: list[str]) -> Any:
    """`--flag` is true, `--flag a` a value as in YAML, `--flag a b` a list."""
    if not words:
        return True
    values = [yaml.load(word, Loader=_Loader) for word in words]
    return values[0] if len(values) == 1 else values


def _find_flag(name: str, value: Any) -> tuple[str | None, list[str], Any]:
    """(section, keys, value) of a flag; `--no_x` is `x` false."""
    first, *rest = name.split(".")
    if first in _TOP_LEVEL and first != "stages" and not rest:
        return None, [first], value
    if first in SECTIONS and rest:
        fields = _field_names(first)
        if rest[0] in fields and not (first == "training" and rest[0] in RENAMED_TRAINING_ARGUMENTS):
            return first, rest, value
        raise _unknown(first, rest[0], "--")
    homes = [section for section in SECTIONS if first in _field_names(section)]
    if not homes and first.startswith("no_"):
        homes = [section for section in SECTIONS if first[3:] in _field_names(section)]
        if homes and value is True:
            first, value = first[3:], False
    if first in RENAMED_TRAINING_ARGUMENTS:
        raise _unknown("training", first, "--")
    if not homes:
        raise ValueError(
            f"Unknown flag --{name}. {_suggest(first, [key for s in SECTIONS for key in _field_names(s)])}"
        )
    if len(homes) > 1:
        choices = " or ".join(f"--{section}.{first}" for section in homes)
        raise ValueError(f"--{first} is a key of several sections: write {choices}.")
    return homes[0], [first, *rest], value


def _merge(settings: dict, overrides: dict) -> dict:
    """A copy of `settings` in which `overrides` win; dictionaries are merged level by level."""
    merged = {key: _merge(value, {}) if isinstance(value, dict) else value for key, value in settings.items()}
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        if both:
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = _merge(value, {}) if isinstance(value, dict) else value
    return merged


def _build(settings: dict, stage: str | None = None) -> RunArguments:
    """Dataclasses from checked keys."""
    parts: dict[str, Any] = {"stage": stage, "settings": settings}
    for name, allowed in (("task", tuple(TASKS)), ("objective", OBJECTIVES)):
        if name in settings:
            if settings[name] not in allowed:
                raise ValueError(f"{name}={settings[name]!r} is not one of {', '.join(allowed)}.")
            parts[name] = settings[name]
    task = TASKS[parts.get("task", "captioning")]
    for section in SECTIONS:
        values = settings.get(section, None if section == "peft" else {})
        parts[section] = None if values is None else _build_section(section, values, task)
    run = RunArguments(**parts)
    _check_run(run)
    return run


def _build_section(section: str, values: dict, task: Task):
    """The dataclass of a section, with the defaults that its task has."""
    if section == "data":
        values = {"record_type": task.record_type, **values}
    if section == "batches":
        values = {**task.batches, **values}
    dataclass_type = SECTIONS[section]
    return HfArgumentParser(dataclass_type).parse_dict(_typed(section, dataclass_type, values))[0]


def _typed(section: str, dataclass_type: type, values: dict) -> dict:
    """The values as the types of their fields; sections within `data` are dictionaries of such values."""
    hints = typing.get_type_hints(dataclass_type)
    typed = {key: coerce(value, hints[key], f"{section}.{key}") for key, value in values.items()}
    for key in ("images", "texts") if section == "data" else ():
        if typed.get(key) is not None:
            for name in typed[key]:
                if name not in hints:
                    raise ValueError(f"Unknown key data.{key}.{name}. {_suggest(name, list(hints))}")
            typed[key] = _typed(f"data.{key}", dataclass_type, typed[key])
    return typed


def _check_run(run: RunArguments):
    if run.objective == "self_critical" and run.batches.captions_per_image != 1:
        raise ValueError("The self-critical objective draws its own captions: leave batches.captions_per_image at 1.")
    if run.objective == "self_critical" and run.task != "captioning":
        raise ValueError(f"The self-critical objective trains captioners: task={run.task!r} has model_loss only.")
    for name in ("mixup", "cutmix", "label_smoothing"):
        if getattr(run.batches, name) and name not in TASKS[run.task].collator_options:
            raise ValueError(f"batches.{name} is for labelled pictures: task={run.task!r} does not take it.")
    augment = next(iter(run.batches.augment or {}), None)
    if augment is not None and (augment == "segmentation") != (run.task == "semantic_segmentation"):
        raise ValueError(
            f"batches.augment: {augment} does not fit task={run.task!r}: `segmentation` changes pictures with their "
            "maps of classes, all others pictures alone."
        )
    if run.peft is not None and run.model.freeze:
        raise ValueError("peft freezes the whole model: leave model.freeze empty.")
    if run.peft is not None and not run.peft.merge and run.model.model_name_or_path is None:
        raise ValueError("peft.merge: false saves adapters for an existing checkpoint: set model.model_name_or_path.")
    if run.evaluation.split is None and run.training.eval_strategy != "no":
        raise ValueError("evaluation.split is null: set training.eval_strategy to 'no'.")
    if run.data.streams():
        if run.training.max_steps <= 0:
            raise ValueError("A stream has no length (data.streaming): set training.max_steps.")
        for name in ("eval_strategy", "save_strategy"):
            if getattr(run.training, name) == "epoch":
                raise ValueError(f"A stream has no epochs (data.streaming): set training.{name} to steps.")
    best = run.training.metric_for_best_model
    needs_captions = best is not None and best.removeprefix("eval_").split("_")[0] != "loss"
    if needs_captions and run.evaluation.num_samples == 0:
        raise ValueError(f"metric_for_best_model={best} is measured on samples: evaluation.num_samples must not be 0.")


def coerce(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type of a field, or ValueError: an int where a float is due, one value where a list is due."""
    try:
        return _coerce(value, hint)
    except TypeError:
        wanted = getattr(hint, "__name__", None) if inspect.isclass(hint) else str(hint).replace("typing.", "")
        raise ValueError(f"{name} must be {wanted}, not {value!r} ({type(value).__name__}).") from None


def _coerce(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        for choice in arguments:
            # Exact types first: bool is an int, and an int may stand for a float.
            if inspect.isclass(choice) and type(value) is choice:
                return value
        for choice in arguments:
            try:
                return _coerce(value, choice)
            except TypeError:
                continue
        raise TypeError
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError
    if hint is None or hint is type(None):
        if value is None:
            return None
        raise TypeError
    if origin in (list, tuple, Sequence) or hint in (list, tuple):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            value = [value]
        if not isinstance(value, list | tuple):
            raise TypeError
        return [_coerce(item, arguments[0]) if arguments else item for item in value]
    if origin is dict or hint is dict:
        if isinstance(value, dict):
            return value
        raise TypeError
    if inspect.isclass(hint) and issubclass(hint, enum.Enum):
        if isinstance(value, str | hint):
            return value
        raise TypeError
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        raise TypeError
    if hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        raise TypeError
    if hint is str:
        # YAML reads an unquoted `no` as false, and strategies of Trainer are called "no"; a checkpoint to resume from
        # is a folder or true.
        if isinstance(value, bool):
            return "true" if value else "no"
        if isinstance(value, str | os.PathLike):
            return str(value)
        raise TypeError
    if inspect.isclass(hint) and not isinstance(value, hint):
        raise TypeError
    return value


def describe_arguments(section: str | None = None) -> str:
    """The settings of one or all sections with defaults and help, for `--help`; without those of transformers."""
    lines = []
    for name, dataclass_type in SECTIONS.items():
        if section is not None and name != section:
            continue
        lines.append(f"{name}:  {inspect.getdoc(dataclass_type).splitlines()[0]}")
        inherited = {entry.name for entry in dataclasses.fields(TrainingArguments)} if name == "training" else set()
        for entry in dataclasses.fields(dataclass_type):
            if not entry.init or entry.name in inherited:
                continue
            if entry.default is not dataclasses.MISSING:
                default = entry.default
            else:
                default = entry.default_factory() if entry.default_factory is not dataclasses.MISSING else "required"
            lines.append(f"  {entry.name} (default {default!r}): {entry.metadata.get('help', '')}")
        if inherited:
            lines.append("  and every argument of transformers.TrainingArguments")
    return "\n".join(lines)


__all__ = [
    "BatchArguments",
    "EvaluationArguments",
    "ModelArguments",
    "PeftArguments",
    "Protocol",
    "RunArguments",
    "SelfCriticalArguments",
    "VlpTrainingArguments",
    "coerce",
    "describe_arguments",
    "parse_arguments",
    "parse_protocol",
    "read_yaml",
]
