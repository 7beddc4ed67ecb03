"""Callbacks of the trainer: its bookkeeping, the table of parameters at the start, captions at each evaluation."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.utils import logging

from hf_vlp.data.joint import JointRecords

logger = logging.get_logger(__name__)


class BookkeepingCallback(TrainerCallback):
    """What `VlpTrainer` must do at moments that Trainer offers to callbacks only."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.start_clock()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # The draw of captions is a function of the epoch, also when the epoch is resumed in its middle. So are the
        # records that a short source of joint pre-training has reached.
        parts = [self.trainer.data_collator]
        if isinstance(self.trainer.train_dataset, JointRecords):
            parts.append(self.trainer.train_dataset)
        for part in parts:
            if hasattr(part, "set_epoch"):
                part.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.note_learning_rates()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.is_streaming:
            # Trainer counts from the resume; a stream has no epochs to count, so this is the share of the run.
            state.epoch = state.global_step / max(1, state.max_steps)

    def on_train_end(self, args, state, control, **kwargs):
        bad_samples = getattr(self.trainer.data_collator, "bad_samples", None)
        if bad_samples is None:
            return
        for counts in gather_object([bad_samples.counts])[: None if state.is_world_process_zero else 0]:
            for name, count in counts.items():
                self.trainer.bad_sample_counts[name] = self.trainer.bad_sample_counts.get(name, 0) + count


class ParameterTableCallback(TrainerCallback):
    """Shows at the start what trains, at which rate and with which decay.

    Args:
        show: takes the text; by default it goes to the log.
    """

    def __init__(self, show: Callable[[str], None] = logger.info):
        self.show = show

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if state.is_world_process_zero:
            from hf_vlp.adapters import parameter_table

            self.show(parameter_table(model, optimizer))


class EvaluationCallback(TrainerCallback):
    """Measures a few records at each evaluation and adds the scores to its metrics.

    The scores appear as `eval_cider_d`, ... in the metrics that Trainer looks at, so that
    `metric_for_best_model: eval_cider_d` with `load_best_model_at_end: true` keeps the best checkpoint.

    Args:
        processor: of the model.
        records: sequence of records that the task can measure.
        task: see `hf_vlp.evaluation.evaluate_model`.
        predictions_dir: folder for the predictions of each evaluation (`step-N.json`), or `None`.
        options: of the task's evaluation.
    """

    def __init__(
        self,
        processor,
        records: Sequence[dict],
        *,
        task: str,
        predictions_dir: str | os.PathLike | None = None,
        **options,
    ):
        self.processor = processor
        self.records = records
        self.task = task
        self.predictions_dir = predictions_dir
        self.options = options
        self.trainer = None  # set by the caller: scores are logged through it

    def on_evaluate(self, args, state, control, model=None, metrics=None, **kwargs):
        from hf_vlp.evaluation import evaluate_model, is_score

        path = None
        if self.predictions_dir is not None:
            path = Path(self.predictions_dir) / f"step-{state.global_step}.json"
        options = {"progress": False, **self.options}
        with self.trainer.off_the_clock():
            scores = evaluate_model(model, self.processor, self.records, self.task, predictions_path=path, **options)
        # No baselines: they stay the same from one evaluation to the next.
        kept = {name for name, value in scores.items() if is_score(name) or (name.startswith("skipped_") and value)}
        logs = {f"eval_{name}": value for name, value in scores.items() if name in kept}
        metrics.update(logs)
        self.trainer.log(logs)


class JsonLinesCallback(TrainerCallback):
    """Appends every log entry to a file, one JSON object a line: the history of the run outlives its checkpoints."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**logs, "step": state.global_step}) + "\n")


__all__ = [
    "BookkeepingCallback",
    "EvaluationCallback",
    "JsonLinesCallback",
    "ParameterTableCallback",
]
