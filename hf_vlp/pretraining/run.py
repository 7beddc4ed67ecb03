"""A training run from one YAML: parse, build, train, save, evaluate."""

import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import set_seed
from transformers.utils import logging

from hf_vlp.adapters import apply_lora, merge_lora, save_adapter
from hf_vlp.data.masked_collators import check_patches_stay
from hf_vlp.data.sources import load_records
from hf_vlp.evaluation import evaluate_model, format_scores, is_score
from hf_vlp.hub.cards import Evaluation, make_card
from hf_vlp.hub.export import save_repository, staged_directory, write_extra_files
from hf_vlp.metrics.captioning import CiderDScorer, DocumentFrequencies, build_document_frequencies
from hf_vlp.pretraining.arguments import ModelArguments, RunArguments, parse_arguments
from hf_vlp.pretraining.build import (
    AUGMENTATION_OPTIONS,
    check_lengths,
    describe_start,
    find_labels,
    first_records,
    freeze_towers,
    iterate_references,
    iterate_texts,
    make_augmentation,
    make_bad_sample_policy,
    make_collator,
    start_model,
    take_turns,
)
from hf_vlp.pretraining.callbacks import EvaluationCallback, JsonLinesCallback, ParameterTableCallback
from hf_vlp.pretraining.self_critical import SelfCriticalCollator, SelfCriticalTrainer
from hf_vlp.pretraining.trainer import VlpTrainer, get_last_checkpoint
from hf_vlp.pretraining.visual_tokens import VisualTokens, cache_visual_tokens, prepare_visual_tokens
from hf_vlp.tasks import get_task

logger = logging.get_logger(__name__)

METRICS_NAME = "metrics.json"
SETTINGS_NAME = "run.yaml"
# What training told, beside a repository whose evaluation has not ended yet.
TRAINED_NAME = "trained.json"


def train(
    arguments: RunArguments | str | os.PathLike | dict,
    flags: Sequence[str] | dict[str, Any] = (),
    *,
    show: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Train, save and evaluate as the settings say, stage after stage.

    Args:
        arguments: parsed settings, or the YAML (a path or its content) that they are parsed from, with `flags`.
        show: takes tables and summaries as text; the command line passes `print`.

    Writes to `training.output_dir`: `checkpoint-N` during training, at the end a complete repository (weights, code,
    processor, card), `metrics.json`, the settings as `run.yaml`, the history as `log.jsonl`, and `predictions/`. Each
    of several stages has a folder of its own below; the last one's model is also the repository of the whole run.
    Every split that is measured is opened before anything is trained, and the repository is written before the final
    evaluation, which adds its scores to the card and `metrics.json`.

    `training.resume_from_checkpoint: true` passes over finished stages, evaluates one that was trained and saved
    before its evaluation failed, and goes on from the last complete checkpoint of the current one, or from the
    beginning where there is none. Works under `accelerate launch`.

    Returns the metrics of the last stage; those of earlier ones are in it under `stages`.
    """
    if int(os.environ.get("RANK", "0")) > 0:

        def show(text: str) -> None:
            """One process tells, the others do the same."""

    run = arguments if isinstance(arguments, RunArguments) else parse_arguments(arguments, flags)
    model = processor = previous = None
    is_retrained = False
    results: dict[str, dict] = {}
    finished: dict[str | None, dict | None] = {}
    for stage in run.stages():  # behind one that is not finished, the others are of an earlier run
        finished[stage.stage] = None if None in finished.values() else load_finished_stage(stage)
    # Those of a last stage must not be found missing after hours of the first.
    splits = {stage.stage: open_splits(stage) for stage in run.stages() if finished[stage.stage] is None}
    for stage in run.stages():
        if previous is not None and not _goes_on(previous, stage):
            stage.model = _start_from_stage(stage.model, previous)
            model = processor = None
        previous = stage
        trained = None if is_retrained else load_trained_stage(stage)
        if finished[stage.stage] is not None or trained is not None:
            own = dataclasses.replace(_start_from_stage(stage.model, stage), config={})
            model, processor = start_model(own, (), task=stage.task)[:2]
        if finished[stage.stage] is not None:
            show(f"Stage {stage.stage}: finished before, taken from {stage.training.output_dir}.")
            results[stage.stage] = finished[stage.stage]
            continue
        if stage.stage:
            what = stage.task if stage.objective == "model_loss" else stage.objective
            show(f"Stage {stage.stage}: {what}.")
        if trained is not None:
            show(f"Trained before, taken from {stage.training.output_dir}; the evaluation is made up for.")
            metrics = evaluate_stage(
                stage,
                model.to(stage.training.device),
                processor,
                trained,
                load_records(stage.data, "train"),
                splits=splits[stage.stage],
                visual_tokenizer=prepare_visual_tokens(stage, model, show),
                show=show,
            )
        else:
            is_retrained, texts = True, iterate_run_texts(run)
            model, processor, metrics = train_stage(
                stage, model, processor, texts=texts, splits=splits[stage.stage], show=show
            )
        results[stage.stage or "run"] = metrics
    last = list(results.values())[-1]
    if run.all_stages:
        last = {**last, "stages": dict(list(results.items())[:-1])}
        whole = dataclasses.replace(previous, training=run.training, settings=run.settings)
        write_results(whole, save(whole, model, processor, last), last)
    return last


def _goes_on(previous: RunArguments, stage: RunArguments) -> bool:
    """Whether a stage trains the very model of the one before; another head or size is built anew."""
    return previous.task == stage.task and previous.model.config == stage.model.config


def _start_from_stage(model: ModelArguments, previous: RunArguments) -> ModelArguments:
    """The settings of a model that starts from the repository of an earlier stage."""
    changed = {
        name: value
        for name, value in model.config.items()
        if name not in previous.model.config or previous.model.config[name] != value
    }
    return dataclasses.replace(
        model,
        model_name_or_path=previous.training.output_dir,
        vision_model_name_or_path=None,
        text_model_name_or_path=None,
        beit_model_name_or_path=None,
        vlmo_model_name_or_path=None,
        config=changed,
    )


def load_finished_stage(stage: RunArguments) -> dict | None:
    """The metrics of a stage that an interrupted run had finished; only looked for when the run is resumed."""
    path = Path(stage.training.output_dir) / METRICS_NAME
    if stage.stage is None or not _wants_resume(stage) or not path.is_file():
        return None
    return json.loads(path.read_text(encoding="utf-8"))


def load_trained_stage(stage: RunArguments) -> dict | None:
    """What the training of a stage told whose evaluation has not ended; only looked for when the run is resumed."""
    path = Path(stage.training.output_dir) / TRAINED_NAME
    return json.loads(path.read_text(encoding="utf-8")) if _wants_resume(stage) and path.is_file() else None


def _wants_resume(stage: RunArguments) -> bool:
    return (stage.training.resume_from_checkpoint or "").lower() in ("true", "auto")


def iterate_run_texts(run: RunArguments) -> Iterator[str]:
    """The training texts of all stages in turns, for a tokenizer that serves each of them. Lazy."""
    stages = run.stages()
    kinds = [(get_task(stage.task).texts, stage.data) for stage in stages]
    different = [stage for place, stage in enumerate(stages) if kinds[place] not in kinds[:place]]
    yield from take_turns([iterate_texts(load_records(stage.data, "train"), stage.task) for stage in different])


def open_splits(stage: RunArguments) -> dict[str, Any]:
    """The splits that a stage measures during and after training, by name."""
    splits = {}
    for name in [stage.evaluation.split] * _evaluates_in_training(stage) + stage.evaluation.final_splits:
        if name not in splits:
            try:
                splits[name] = load_records(stage.data, name)
            except ValueError as error:
                raise ValueError(
                    f"{error} It is to be measured (evaluation.final_splits, evaluation.split): name another one, or "
                    "none ([] and training.eval_strategy no)."
                ) from error
    return splits


def _evaluates_in_training(stage: RunArguments) -> bool:
    return str(stage.training.eval_strategy) not in ("no", "IntervalStrategy.NO")


def train_stage(
    stage: RunArguments,
    model=None,
    processor=None,
    *,
    texts: Iterable[str] | None = None,
    splits: dict[str, Any] | None = None,
    show: Callable[[str], None] = logger.info,
):
    """One stage: build, train, save, evaluate. Returns (model, processor, metrics).

    Args:
        texts: what a tokenizer is trained from; those of the stage by default.
        splits: what `open_splits` gives.
    """
    set_seed(stage.training.seed)
    splits = open_splits(stage) if splits is None else splits
    records = load_records(stage.data, "train")
    start = None
    if model is None:
        start = start_model(
            stage.model,
            iterate_texts(records, stage.task) if texts is None else texts,
            task=stage.task,
            find_labels=lambda: find_labels(stage, records),
        )
        model, processor = start.model, start.processor
    check_lengths(stage, model)
    visual_tokenizer = prepare_visual_tokens(stage, model, show)
    make_collator(stage, processor, model, training=True)  # its settings are checked before hours of tokenizing
    if visual_tokenizer is not None and stage.model.cache_visual_tokens:
        for name in AUGMENTATION_OPTIONS:  # found before hours of tokenizing, not in the first batch behind them
            check_patches_stay(make_augmentation(getattr(stage.batches, name), name))
        records = cache_visual_tokens(
            records,
            visual_tokenizer,
            bad_samples=make_bad_sample_policy(stage.batches),
            resample=stage.batches.tokenizer_resample,
        )
    use_cache = getattr(model.config, "use_cache", None)
    freeze_towers(model, stage.model.freeze)
    if start is not None and start.sources:
        show(describe_start(start))
    if stage.peft is not None:
        options = dataclasses.asdict(stage.peft)
        options.pop("merge")
        model = apply_lora(model, **options)
    if get_task(stage.task).drop_last:
        stage.training.dataloader_drop_last = True
    trainer = make_trainer(
        stage, model, processor, records, splits=splits, visual_tokenizer=visual_tokenizer, show=show
    )
    if PartialState().is_main_process:
        for name in (METRICS_NAME, TRAINED_NAME):  # of an earlier run
            (Path(stage.training.output_dir) / name).unlink(missing_ok=True)
    outcome = trainer.train(resume_from_checkpoint=find_checkpoint(stage, show))
    if use_cache is not None:
        model.config.use_cache = use_cache  # Trainer switches it off, and it would be saved so
    if trainer.bad_sample_counts.get("bad"):
        counts = trainer.bad_sample_counts
        show(f"Bad samples: {counts['bad']:,} of {counts['seen']:,} were skipped ({counts}).")
    metrics = {name: value for name, value in outcome.metrics.items() if name != "total_flos"}
    metrics |= {"train_steps": trainer.state.global_step, "bad_samples": trainer.bad_sample_counts}
    if trainer.state.best_metric is not None:
        metrics["best_metric"] = trainer.state.best_metric
    # Before the evaluation: whatever it meets, the trained weights are there.
    model = save(stage, trainer.accelerator.unwrap_model(trainer.model), processor, metrics)
    metrics = evaluate_stage(
        stage, model, processor, metrics, records, splits=splits, visual_tokenizer=visual_tokenizer, show=show
    )
    return merge_lora(model), processor, metrics


def find_checkpoint(stage: RunArguments, show: Callable[[str], None] = logger.info) -> str | None:
    """The checkpoint that training goes on from, or `None` for the beginning."""
    wanted = stage.training.resume_from_checkpoint
    if wanted in (None, "", "no", "false"):
        if get_last_checkpoint(stage.training.output_dir):
            show(
                f"{stage.training.output_dir} holds checkpoints of an earlier run; this one starts from the beginning."
            )
        return None
    if not _wants_resume(stage):
        return wanted
    checkpoint = get_last_checkpoint(stage.training.output_dir)
    show(f"Resuming from {checkpoint}." if checkpoint else "No complete checkpoint: starting from the beginning.")
    return str(checkpoint) if checkpoint else None


def make_trainer(
    stage: RunArguments, model, processor, records, *, splits, visual_tokenizer=None, show=logger.info
) -> VlpTrainer:
    """The trainer of a stage with its collators and callbacks; `splits` are those of `open_splits`."""
    training, evaluation = stage.training, stage.evaluation
    callbacks = [ParameterTableCallback(show), JsonLinesCallback(Path(training.output_dir) / "log.jsonl")]
    eval_records = scoring = None
    if _evaluates_in_training(stage):
        eval_records = first_records(splits[evaluation.split], evaluation.max_records)
        if get_task(stage.task).drop_last and len(eval_records) % training.eval_batch_size == 1:
            eval_records = first_records(eval_records, len(eval_records) - 1)  # a record alone has no negative
        if evaluation.num_samples > 0:
            scoring = EvaluationCallback(
                processor,
                first_records(eval_records, evaluation.num_samples),
                task=stage.task,
                predictions_dir=Path(training.output_dir) / "predictions",
                **_evaluation_options(stage, baselines=False, visual_tokenizer=visual_tokenizer),
            )
            callbacks.append(scoring)
    options = {
        "model": model,
        "args": training,
        "train_dataset": records,
        "eval_dataset": eval_records,
        "processing_class": processor,
        "callbacks": callbacks,
        "eval_collator": make_collator(stage, processor, model),
        "visual_tokens": None if visual_tokenizer is None else VisualTokens(visual_tokenizer),
    }
    if stage.objective == "self_critical":
        trainer = SelfCriticalTrainer(
            data_collator=make_collator(stage, processor, model, SelfCriticalCollator, training=True),
            scorer=make_scorer(stage, records, end_token=processor.tokenizer.eos_token),
            settings=stage.self_critical,
            **options,
        )
    else:
        trainer = VlpTrainer(data_collator=make_collator(stage, processor, model, training=True), **options)
    if scoring is not None:
        scoring.trainer = trainer
    trainer.eval_collator.set_epoch(0)  # the same draws at every evaluation
    return trainer


def _evaluation_options(stage: RunArguments, *, baselines: bool, visual_tokenizer=None) -> dict[str, Any]:
    """Settings of the run that the evaluation of its task takes; without `baselines` those cost nothing."""
    values = {name.name: getattr(stage.evaluation, name.name) for name in dataclasses.fields(stage.evaluation)}
    values |= {name: getattr(stage.batches, name) for name in get_task(stage.task).collator_options}
    values |= {"seed": stage.training.seed, "progress": baselines, "visual_tokenizer": visual_tokenizer}
    values |= {"bad_samples": make_bad_sample_policy(stage.batches)} if baselines else {"shuffled_pictures": False}
    known = inspect.signature(get_task(stage.task).load("evaluate")).parameters
    return {name: value for name, value in values.items() if name in known}


def make_scorer(stage: RunArguments, records, *, end_token: str) -> CiderDScorer:
    """CIDEr-D with the document frequencies of a file, or of the training references (kept beside the checkpoints)."""
    path = stage.self_critical.document_frequencies
    if path is not None:
        return CiderDScorer(DocumentFrequencies.load(path), end_token=end_token)
    path = Path(stage.training.output_dir) / "document_frequencies.json"
    with PartialState().main_process_first():
        if PartialState().is_main_process or not path.is_file():
            frequencies = build_document_frequencies(iterate_references(records), path)
        else:
            frequencies = DocumentFrequencies.load(path)
    return CiderDScorer(frequencies, end_token=end_token)


def evaluate_stage(
    stage: RunArguments,
    model,
    processor,
    metrics: dict,
    records,
    *,
    splits: dict[str, Any],
    visual_tokenizer=None,
    show: Callable[[str], None] = logger.info,
) -> dict:
    """The final evaluation of a stage that was trained and saved, which marks it as finished.

    Args:
        metrics: those of training; the scores of each of `evaluation.final_splits` are added as `<split>_<metric>`.
        records: training records, for the baselines.
        splits: what `open_splits` gives.
    """
    evaluation = stage.evaluation
    metrics = dict(metrics)
    for split in evaluation.final_splits:
        scores = evaluate_model(
            model,
            processor,
            first_records(splits[split], evaluation.final_max_records),
            stage.task,
            training_records=records if evaluation.constant_candidates else None,
            predictions_path=Path(stage.training.output_dir) / "predictions" / f"{split}.json",
            **_evaluation_options(stage, baselines=True, visual_tokenizer=visual_tokenizer),
        )
        show(format_scores(split, scores))
        metrics |= {f"{split}_{name}": value for name, value in scores.items()}
    write_results(stage, model, metrics)
    return metrics


def save(stage: RunArguments, model, processor, metrics: dict):
    """Write the repository of a trained stage: weights, code, processor, settings, and a card without scores.

    Adapters are merged first if the settings say so. Returns the model as it was saved.
    """
    directory = Path(stage.training.output_dir)
    state = PartialState()
    has_adapters = hasattr(model, "merge_and_unload")
    if has_adapters and stage.peft is not None and stage.peft.merge:
        if state.is_main_process:
            save_adapter(model, directory / "adapter")
        model, has_adapters = merge_lora(model), False
    if state.is_main_process:
        files = {SETTINGS_NAME: yaml.safe_dump(without_folders(stage.settings), sort_keys=False)}
        if not has_adapters:  # those are not loaded as the start of a stage
            files[TRAINED_NAME] = metrics
        card = describe(stage, model, metrics)
        save_repository(directory, model=model, processor=processor, card=card, extra_files=files)
    state.wait_for_everyone()
    return model


def write_results(stage: RunArguments, model, metrics: dict) -> None:
    """Card and metrics of a saved stage. The file of metrics marks it as finished, thus it comes last."""
    directory = Path(stage.training.output_dir)
    state = PartialState()
    state.wait_for_everyone()  # nobody still looks whether the stage is finished
    if state.is_main_process:
        with staged_directory(directory, outdated=(TRAINED_NAME,)) as staging:
            write_extra_files(staging, {"README.md": str(describe(stage, model, metrics)), METRICS_NAME: metrics})
    state.wait_for_everyone()


def describe(stage: RunArguments, model, metrics: dict):
    """The model card: what was measured, on what, and how it was trained."""
    protocol = stage.task
    if stage.task == "captioning":
        protocol = f"generate({', '.join(f'{name}={value}' for name, value in stage.evaluation.generation.items())})"
    names = ", ".join(dict.fromkeys(without_folders(part.source) for part in stage.data.sections().values()))
    evaluations = []
    for split in stage.evaluation.final_splits:
        scores = {
            name.removeprefix(f"{split}_"): value for name, value in metrics.items() if name.startswith(f"{split}_")
        }
        own = {name: value for name, value in scores.items() if is_score(name)}
        if not own:
            continue  # not measured yet, or no scores: nobody knows the answers of a challenge's test part
        shuffled = {name: scores[f"shuffled_{name}"] for name in own if f"shuffled_{name}" in scores}
        evaluations.append(
            Evaluation(
                dataset=names,
                split=split,
                metrics=own,
                shuffled=shuffled or None,
                num_samples=scores.get("pictures", scores.get("samples", 0)),
                protocol=protocol,
            )
        )
    parts = (
        stage.model.model_name_or_path,
        stage.model.vision_model_name_or_path,
        stage.model.text_model_name_or_path,
        stage.model.beit_model_name_or_path,
        stage.model.vlmo_model_name_or_path,
    )
    settings = {name: value for name, value in stage.settings.items() if name not in ("stages", "evaluation")}
    base_models = [part for part in parts if part and not Path(part).exists()]
    start = "Fine-tuned from another checkpoint" if any(parts) else "Trained from nothing"
    return make_card(
        model,
        description=f"{start} with hf_vlp on {names}.",
        evaluations=evaluations,
        training=without_folders(settings),
        base_models=base_models,
    )


def without_folders(settings: Any) -> Any:
    """The settings with every local path cut to its last part: where files lie is nobody else's business."""
    if isinstance(settings, dict):
        return {name: without_folders(value) for name, value in settings.items() if name != "output_dir"}
    if isinstance(settings, list):
        return [without_folders(value) for value in settings]
    is_local = isinstance(settings, str) and os.sep in settings and Path(settings).exists()
    return Path(settings).name if is_local else settings


__all__ = ["evaluate_stage", "find_checkpoint", "make_trainer", "open_splits", "save", "train", "train_stage"]
