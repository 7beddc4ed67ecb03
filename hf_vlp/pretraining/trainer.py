"""Trainer for every system of this package: transformers' Trainer with what pre-training needs on top.

What is overridden, and why, stands at the head of each method. In short: named losses and throughput in the logs,
parameter groups with their own learning rates, checkpoints that appear whole or not at all, and streams that resume
behind the last batch that was trained on.
"""

import contextlib
import inspect
import json
import math
import os
import shutil
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from hf_vlp.pretraining.callbacks import BookkeepingCallback
from hf_vlp.pretraining.naming import plain_model, plain_name
from hf_vlp.pretraining.records import RecordStream, StreamLoader
from hf_vlp.pretraining.visual_tokens import VIEW, VisualTokens

logger = logging.get_logger(__name__)

# Written to inside the output folder while a checkpoint is being saved. `checkpoint-N`, the name that resume looks
# for, exists only once the checkpoint is complete.
STAGING_DIR = ".saving-checkpoint"
STREAM_STATE_NAME = "stream_state_{}.json"

_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json")
_TRAINER_STATE = "trainer_state.json"
# One of each group tells how many pairs, texts and pictures a batch holds.
_ROWS = (("pixel_values", "input_ids"), ("text_input_ids",), ("image_pixel_values",))


def is_complete_checkpoint(folder: str | os.PathLike) -> bool:
    """Whether a checkpoint folder holds all that a resume reads: state, weights (every shard) and optimizer."""
    folder = Path(folder)
    try:
        json.loads((folder / _TRAINER_STATE).read_text())
        index = folder / "model.safetensors.index.json"
        shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else ()
    except (OSError, ValueError, KeyError):
        return False
    weights = any((folder / name).is_file() for name in _WEIGHTS) and all((folder / name).is_file() for name in shards)
    return weights and (folder / "optimizer.pt").is_file() and (folder / "scheduler.pt").is_file()


def get_last_checkpoint(output_dir: str | os.PathLike) -> Path | None:
    """The newest complete `checkpoint-N` of a run, or `None`; broken ones are passed over with a warning."""
    folders = [
        (int(folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")), folder)
        for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if folder.is_dir() and folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdigit()
    ]
    for _, folder in sorted(folders, reverse=True):
        if is_complete_checkpoint(folder):
            return folder
        logger.warning(f"{folder} is not a complete checkpoint and is passed over.")
    return None


class VlpTrainer(Trainer):
    """Trainer for models that may return `losses: dict[str, Tensor]` beside `loss`.

    Args:
        train_dataset: map-style, or a `datasets.IterableDataset`, which is then read as an endless, resumable stream
            (set `max_steps`); `args.shuffle_block` says in what blocks it is shuffled.
        args: `VlpTrainingArguments` (see `arguments.py`); plain `TrainingArguments` work too.
        eval_collator: the collator of evaluations, if another than that of training.
        visual_tokens: turns the pictures that a batch holds for a visual tokenizer into the targets of the model.

    The other arguments are those of `transformers.Trainer`.
    """

    def __init__(
        self,
        model=None,
        args=None,
        data_collator=None,
        train_dataset=None,
        eval_collator=None,
        visual_tokens: VisualTokens | None = None,
        **kwargs,
    ):
        self._stream_loader = None
        self.visual_tokens = visual_tokens
        self.eval_collator = eval_collator
        if args is not None and args.label_smoothing_factor:
            raise ValueError(
                "label_smoothing_factor is not supported: Trainer would smooth against labels that are not shifted. "
                "Leave it at 0."
            )
        if train_dataset is not None and not hasattr(train_dataset, "__len__"):
            if args is None or args.max_steps <= 0:
                raise ValueError("A stream has no length: set max_steps (training.max_steps in the YAML).")
            # Skipping batches reads them all again and ends with the first epoch; the stream knows its own position.
            args.ignore_data_skip = True
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._tensor_sums: dict[str, list] = {}
        self._eval_sums: dict[str, list] | None = None
        self._num_samples, self._clock_start, self._last_drained = 0, None, 0
        self._is_staging = False
        self._learning_rates: dict[str, float] = {}
        self.bad_sample_counts: dict[str, int] = {}  # of all processes, filled at the end of training
        super().__init__(model, args, data_collator, train_dataset, **kwargs)
        synchronise_batch_norm(self.model, self.args)
        self.add_callback(BookkeepingCallback(self))
        if self.args.label_names is None and (self.can_return_loss or "labels" not in self.label_names):
            # Stock: no loss in evaluation where a batch lacks one of all arguments that are called labels, or where
            # none is called so. These models find their targets themselves, in training and evaluation alike.
            self.label_names, self.can_return_loss = [], True
        self._matches_less = (getattr(args, "matching_every", 1), getattr(args, "matching_fraction", 1.0)) != (1, 1.0)
        self._chunk_size = getattr(args, "contrastive_chunk_size", None)
        plain = plain_model(self.model)
        for is_set, names, argument in (
            (self._matches_less, "matching_every and matching_fraction", "num_matching"),
            (self._chunk_size is not None, "contrastive_chunk_size", "chunk_size"),
        ):
            if is_set and argument not in inspect.signature(plain.forward).parameters:
                raise ValueError(f"{type(plain).__name__} does not take {argument}: leave out {names}.")

    # ---- data

    @property
    def is_streaming(self) -> bool:
        return self._stream_loader is not None

    def get_train_dataloader(self):
        # Stock: a stream is dispatched from the first process, is ahead of training by what is prefetched, and cannot
        # be resumed behind its first epoch.
        if hasattr(self.train_dataset, "__len__"):
            return super().get_train_dataloader()
        args = self.args
        stream = RecordStream(
            self.train_dataset,
            batch_size=self._train_batch_size,
            shuffle_block=getattr(args, "shuffle_block", 0),
            seed=args.seed if args.data_seed is None else args.data_seed,
            process_index=args.process_index,
            num_processes=args.world_size,
        )
        options = {"pin_memory": args.dataloader_pin_memory}
        if args.dataloader_num_workers > 0:
            options["prefetch_factor"] = args.dataloader_prefetch_factor
            options["multiprocessing_context"] = args.dataloader_multiprocessing_context
        self._stream_loader = StreamLoader(
            stream, self.data_collator, num_workers=args.dataloader_num_workers, seed=args.seed, **options
        )
        return self._stream_loader

    def get_eval_dataloader(self, eval_dataset=None):
        # Stock: one collator for both, so that bad samples of both are counted as one and captions change by epoch;
        # and `dataloader_drop_last`, meant for training, leaves records out of the evaluation as well.
        collator, drop_last = self.data_collator, self.args.dataloader_drop_last
        try:
            self.data_collator, self.args.dataloader_drop_last = self.eval_collator or collator, False
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, drop_last

    def _prepare_inputs(self, inputs):
        # Stock: a model makes its targets itself; these come from another model, frozen, on the same device.
        inputs = super()._prepare_inputs(inputs)
        if self.visual_tokens is not None:
            return self.visual_tokens(inputs)
        if views := [name for name in inputs if name.endswith(VIEW)]:
            raise ValueError(
                f"The batch holds {', '.join(views)} for a visual tokenizer, and there is none: set "
                "model.visual_tokenizer_name_or_path (VlpTrainer: visual_tokens), or give data with cached "
                "visual_token_ids."
            )
        return inputs

    def _get_num_items_in_batch(self, batch_samples, device):
        # Stock: a batch whose pictures are all bad has no token, and its loss would be 0 / 0.
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        return num_items.clamp(min=1) if torch.is_tensor(num_items) else num_items

    # ---- losses and logs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Stock: only the total is known to the logs.
        labels = inputs.get("labels")
        if num_items_in_batch is None and self.model_accepts_loss_kwargs and labels is not None:
            if not model.training and not (labels != -100).any():
                num_items_in_batch = torch.ones((), device=labels.device)  # as above, in evaluation
        if self._matches_less and model.training:
            turn = self.state.global_step % self.args.matching_every == 0
            rows = math.ceil(self.args.matching_fraction * self._batch_size_of(inputs))
            inputs = {**inputs, "num_matching": rows if turn else 0}
        if self._chunk_size is not None and model.training:
            inputs = {**inputs, "chunk_size": self._chunk_size}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        losses = outputs.get("losses") if isinstance(outputs, dict) else None
        if losses:
            self._record_losses(losses, model.training, num_items_in_batch, self._batch_size_of(inputs))
        if model.training:
            self._num_samples += self._batch_size_of(inputs)
        return (loss, outputs) if return_outputs else loss

    @staticmethod
    def _batch_size_of(inputs) -> int:
        """Pairs, texts and pictures of a batch together."""
        sources = [next((inputs[name] for name in names if inputs.get(name) is not None), None) for names in _ROWS]
        if any(tensor is not None for tensor in sources):
            return sum(len(tensor) for tensor in sources if tensor is not None)
        return len(next(value for value in inputs.values() if torch.is_tensor(value)))

    def _record_losses(self, losses: dict, training: bool, num_items_in_batch, batch_size: int):
        """Sum the named losses so that over an update they add up as the total does."""
        if not training:
            if self._eval_sums is not None:
                for name, value in losses.items():
                    entry = self._eval_sums.setdefault(name, [0.0, 0])
                    entry[0] = entry[0] + value.detach().float() * batch_size
                    entry[1] += batch_size
            return
        if self.model_accepts_loss_kwargs and num_items_in_batch is not None:
            # Each is a share of the mean over all tokens of the update; compute_loss scales the total likewise.
            scale = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        else:
            scale = 1 / self.current_gradient_accumulation_steps
        for name, value in losses.items():
            self._tensor_sums[name] = self._tensor_sums.get(name, 0.0) + value.detach().float() * scale

    def record(self, name: str, value: float, weight: float = 1.0):
        """Add a number to the mean that is logged under `name` next time (weighted, over all processes)."""
        entry = self._sums[name]
        entry[0] += value * weight
        entry[1] += weight

    def start_clock(self):
        """Begin to count steps and samples; called when training begins."""
        self._num_samples, self._clock_start = 0, time.perf_counter()
        self._last_drained = self.state.global_step

    @contextlib.contextmanager
    def off_the_clock(self):
        """Time spent inside does not count for the rate of samples."""
        start = time.perf_counter()
        yield
        if self._clock_start is not None:
            self._clock_start += time.perf_counter() - start

    def _drain(self, num_steps: int) -> dict[str, float]:
        """Means over the steps since the last log and over the processes, and the throughput."""
        now = time.perf_counter()
        local = {
            "losses": {name: float(value) for name, value in self._tensor_sums.items()},
            "means": {name: tuple(entry) for name, entry in self._sums.items()},
            "samples": self._num_samples,
            "memory": self._peak_memory(),
        }
        gathered = gather_object([local])
        logs = {}
        for name in sorted({name for part in gathered for name in part["losses"]}):
            total = sum(part["losses"].get(name, 0.0) for part in gathered)
            logs[f"loss_{name}"] = total / len(gathered) / max(1, num_steps)
        for name in sorted({name for part in gathered for name in part["means"]}):
            entries = [part["means"][name] for part in gathered if name in part["means"]]
            logs[name] = sum(total for total, _ in entries) / max(1e-12, sum(weight for _, weight in entries))
        if self._clock_start is not None:
            seconds = max(1e-9, now - self._clock_start)
            logs["samples_per_second"] = round(sum(part["samples"] for part in gathered) / seconds, 2)
        logs["memory_gb"] = round(max(part["memory"] for part in gathered), 3)
        self._tensor_sums.clear()
        self._sums.clear()
        self._num_samples, self._clock_start = 0, now
        return logs

    @staticmethod
    def _peak_memory() -> float:
        """Peak in GB: of the accelerator if there is one, otherwise of the process."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**30
        try:
            import resource
        except ImportError:  # not on Windows
            return 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**30 if sys.platform == "darwin" else 2**20)

    def log(self, logs, start_time=None):
        # Stock: neither named losses nor the rate of samples.
        if "loss" in logs and "learning_rate" in logs:
            num_steps = self.state.global_step - self._last_drained
            self._last_drained = self.state.global_step
            logs.update(self._drain(num_steps))
            if len({group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups}) > 1:
                logs.update({f"learning_rate_{name}": value for name, value in self._learning_rates.items()})
        super().log(logs, start_time)

    def note_learning_rates(self):
        """Keep the rates of this update for the log: of each group, and of its layers the highest."""
        self._learning_rates = {}
        for group in self.optimizer.param_groups:
            if "name" in group:
                self._learning_rates[group["name"]] = max(
                    self._learning_rates.get(group["name"], 0.0), float(group["lr"])
                )

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, **kwargs):
        # Stock: only the total is averaged.
        self._eval_sums = {}
        with self.off_the_clock():
            output = super().evaluation_loop(dataloader, description, prediction_loss_only, **kwargs)
        parts = gather_object([{name: (float(total), count) for name, (total, count) in self._eval_sums.items()}])
        self._eval_sums = None
        prefix = kwargs.get("metric_key_prefix", "eval")
        for name in sorted({name for part in parts for name in part}):
            entries = [part[name] for part in parts if name in part]
            mean = sum(total for total, _ in entries) / max(1, sum(count for _, count in entries))
            output.metrics[f"{prefix}_loss_{name}"] = mean
        return output

    # ---- optimizer

    def create_optimizer(self, model=None):
        # Stock: one learning rate for all, and names that hold "bias" or "norm" as the only ones without decay.
        if self.optimizer is None:
            model = self.model if model is None else model
            groups = make_parameter_groups(model, self.args)
            optimizer_class, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(
                self.args, model
            )
            if {"params", "model", "optimizer_dict"} & options.keys():
                raise ValueError(
                    f"optim={self.args.optim} brings its own parameter groups; use an AdamW, Adafactor, SGD or Lion, "
                    "to which the groups of the model can be given."
                )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    # ---- checkpoints

    def _get_output_dir(self, trial):
        # Stock: see _save_checkpoint.
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, STAGING_DIR) if self._is_staging else folder

    def _push_from_checkpoint(self, checkpoint_folder):
        # Stock: pushes a folder that is about to be moved; _save_checkpoint calls it again behind the move.
        if not self._is_staging:
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model, trial):
        # Stock: writes into checkpoint-N itself, so that an interrupted save is taken for the last checkpoint on
        # resume. Here everything goes to a staging folder, which then gets that name.
        with self.off_the_clock():
            self._save_checkpoint_at_once(model, trial)

    def _save_checkpoint_at_once(self, model, trial):
        run_dir = Path(self._get_output_dir(trial))
        final = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        staging = run_dir / STAGING_DIR
        if self.args.should_save:
            shutil.rmtree(staging, ignore_errors=True)  # of a save that was interrupted
            staging.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self._is_staging = True
        try:
            super()._save_checkpoint(model, trial)
            self._finish_checkpoint(staging / final.name, run_dir)
        except (
            OSError,
            RuntimeError,
            SafetensorError,
        ) as error:  # how Python, torch and safetensors report a full disk
            if self.args.should_save:
                shutil.rmtree(staging, ignore_errors=True)
            last = get_last_checkpoint(run_dir)
            kept = f"the last complete checkpoint is {last}" if last else "there is no earlier checkpoint"
            raise OSError(
                f"Saving the checkpoint of step {self.state.global_step} in {run_dir} failed ({error}); {kept}. "
                "Free some space and go on with --resume_from_checkpoint true",
            ) from error
        finally:
            self._is_staging = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            if final.exists():  # the step was saved before, by the run that this one resumed
                shutil.rmtree(final)
            os.replace(staging / final.name, final)
            staging.rmdir()
            _sync(run_dir)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
            )
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(final))

    def _finish_checkpoint(self, folder: Path, run_dir: Path):
        """Give the state the place where the best checkpoint will be, and get everything onto the disk."""
        if self.state.best_global_step:
            best = run_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            if best.name == folder.name or best.is_dir():
                self.state.best_model_checkpoint = str(best)  # in every process: each loads it at the end
        if not self.args.should_save:
            return
        self.state.save_to_json(str(folder / _TRAINER_STATE))
        for file in sorted(folder.rglob("*")):
            _sync(file)

    def _save_rng_state(self, output_dir):
        # Stock: a stream's position is not saved.
        super()._save_rng_state(output_dir)
        if self._stream_loader is not None:
            state = {**self._stream_loader.state_dict(), "num_processes": self.args.world_size}
            path = Path(output_dir) / STREAM_STATE_NAME.format(self.args.process_index)
            path.write_text(json.dumps(state))

    def _load_rng_state(self, checkpoint):
        # Stock: a stream starts again from the beginning. Called before the first batch is asked for.
        super()._load_rng_state(checkpoint)
        if self._stream_loader is None or checkpoint is None:
            return
        path = Path(checkpoint) / STREAM_STATE_NAME.format(self.args.process_index)
        if not path.is_file():
            raise ValueError(
                f"{checkpoint} holds no position of a stream for process {self.args.process_index}: it was written by "
                "a run with data that is not streamed, or with fewer processes."
            )
        state = json.loads(path.read_text())
        if state.pop("num_processes") != self.args.world_size:
            raise ValueError("A stream resumes only with as many processes as before: each reads its own part.")
        self._stream_loader.load_state_dict(state)

    def _issue_warnings_after_load(self, load_result):
        # Stock: tied weights, which a checkpoint holds once, are reported as missing.
        tied = getattr(plain_model(self.model), "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if plain_name(name) not in tied]
        super()._issue_warnings_after_load(type(load_result)(missing, load_result.unexpected_keys))

    def train(self, resume_from_checkpoint=None, **kwargs):
        # Stock: `True` takes the newest folder of that name, complete or not.
        if resume_from_checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)
            if checkpoint is None:
                raise ValueError(f"No complete checkpoint to resume from in {self.args.output_dir}.")
            resume_from_checkpoint = str(checkpoint)
        elif isinstance(resume_from_checkpoint, (str, os.PathLike)):
            resume_from_checkpoint = str(resume_from_checkpoint)
            if not is_complete_checkpoint(resume_from_checkpoint):
                raise ValueError(
                    f"{resume_from_checkpoint} is not a complete checkpoint (trainer_state.json, weights, "
                    "optimizer.pt, scheduler.pt): name another, or true for the newest complete one."
                )
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


def _sync(path: Path):
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def synchronise_batch_norm(model: nn.Module, args) -> None:
    """With several processes on GPUs, normalise over the pictures of all of them, in place; names stay as they are.

    For the decoder of segmentation, whose recipe has two pictures a process. (torch does it on no CPU.)
    """
    if args.world_size > 1 and args.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)


def make_parameter_groups(model: nn.Module, args) -> list[dict]:
    """Groups of trainable parameters with their learning rate and weight decay, for an optimizer.

    A model tells its groups through `get_parameter_group(name) -> str`, the parameters without decay through
    `no_weight_decay() -> set[str]`, and, for layer-wise decay, the depth of a parameter through
    `get_parameter_layer(name) -> (layer, number of layers)`, counted from the input. A model without these has one
    group, `"all"`, and no decay on vectors.

    Args:
        args: with `learning_rate`, `weight_decay` and, optionally, `group_learning_rates` (group -> rate) and
            `layer_decay` (factor per layer below the top; 1 is off), `head_learning_rate_multiplier` (for the group
            `"head"`) and `no_decay` (`"original"` asks the model for `no_weight_decay(original=True)` and decays all
            others, vectors included).

    Returns dicts with `params`, `lr`, `weight_decay`, `name`. Raises ValueError for rates of unknown groups, for layer
    decay on a model that does not tell its layers, and when nothing trains.
    """
    plain = plain_model(model)
    group_of = getattr(plain, "get_parameter_group", lambda name: "all")
    as_original = getattr(args, "no_decay", "model") == "original"
    if as_original:
        if "original" not in inspect.signature(getattr(plain, "no_weight_decay", dict)).parameters:
            raise ValueError(
                f"no_decay='original' needs a model that tells it (no_weight_decay(original=True)); "
                f"{type(plain).__name__} does not. Set no_decay to model."
            )
        no_decay = plain.no_weight_decay(original=True)
    else:
        no_decay = plain.no_weight_decay() if hasattr(plain, "no_weight_decay") else None
    rates = dict(getattr(args, "group_learning_rates", None) or {})
    layer_decay = getattr(args, "layer_decay", 1.0)
    if layer_decay != 1.0 and not hasattr(plain, "get_parameter_layer"):
        raise ValueError(
            f"layer_decay={layer_decay} needs a model that tells the layer of its parameters "
            f"(get_parameter_layer); {type(plain).__name__} does not. Set layer_decay to 1."
        )
    known = {group_of(plain_name(name)) for name, _ in model.named_parameters()}
    if unknown := sorted(rates.keys() - known):
        raise ValueError(f"group_learning_rates names {unknown}; {type(plain).__name__} has {sorted(known)}.")
    multiplier = getattr(args, "head_learning_rate_multiplier", 1.0)
    if multiplier != 1.0 and "head" not in known:
        raise ValueError(
            f"head_learning_rate_multiplier={multiplier} needs a group 'head'; {type(plain).__name__} has "
            f"{sorted(known)}. Set group_learning_rates instead."
        )
    groups: dict[tuple, dict] = {}
    for full_name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        name = plain_name(full_name)
        group = group_of(name)
        decays = (as_original or parameter.ndim > 1) and (no_decay is None or name not in no_decay)
        rate, depth = rates.get(group, args.learning_rate), 0
        if group == "head":
            rate = rate * multiplier
        if layer_decay != 1.0:
            layer, num_layers = plain.get_parameter_layer(name)
            depth = num_layers - layer
            rate = rate * layer_decay**depth
        entry = groups.setdefault(
            (group, decays, depth),
            {"params": [], "lr": rate, "weight_decay": args.weight_decay if decays else 0.0, "name": group},
        )
        entry["params"].append(parameter)
    if not groups:
        raise ValueError("Nothing trains: every parameter is frozen. Freeze less, or add adapters (peft:).")
    return list(groups.values())


__all__ = [
    "VlpTrainer",
    "get_last_checkpoint",
    "is_complete_checkpoint",
    "make_parameter_groups",
    "synchronise_batch_norm",
]
