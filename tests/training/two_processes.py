"""Run by test_distributed.py in one process or under torch.distributed.run: `two_processes.py MODE OUTPUT_DIR`."""

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from transformers import TrainerCallback

from hf_vlp.data.collators import CaptionCollator
from hf_vlp.evaluation import generate_captions
from hf_vlp.pretraining.arguments import SelfCriticalArguments, VlpTrainingArguments
from hf_vlp.pretraining.run import train
from hf_vlp.pretraining.self_critical import SelfCriticalCollator, SelfCriticalTrainer
from hf_vlp.pretraining.trainer import VlpTrainer
from tests.training.test_resume import make_stream
from tests.training.test_run_vlmo import make_settings
from tests.training.test_self_critical import make_scorer
from tests.training.tiny import make_model, make_processor, make_records

BEST = {
    "eval_strategy": "steps",
    "eval_steps": 2,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_score",
    "greater_is_better": False,  # of the steps 2 and 4, the first
}


class StepAsScore(TrainerCallback):
    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_score"] = state.global_step


def train_a_part(output_dir: Path):
    """Masked words of a VLMo, whose picture experts and pooler get no gradient, with recomputed activations."""
    settings = make_settings(output_dir, "masked_language")
    settings["training"]["activation_checkpointing"] = True
    metrics = train(settings)
    if PartialState().is_main_process:
        (output_dir / "result.json").write_text(json.dumps(metrics))


def main(mode: str, output_dir: Path):
    torch.set_num_threads(1)
    if mode == "part":
        return train_a_part(output_dir)
    processor = make_processor()
    num_processes = PartialState(cpu=True).num_processes
    args = VlpTrainingArguments(
        str(output_dir),
        per_device_train_batch_size=8 // num_processes,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        **(BEST if mode == "best" else {}),
    )
    options = {"eval_dataset": make_records(4), "callbacks": [StepAsScore()]}
    options |= {"model": make_model(processor, dropout=0.0), "args": args, "processing_class": processor}
    # captions of different lengths: a mean per process would not be the mean over all tokens
    records = make_records(32)
    for index, record in enumerate(records):
        record["captions"] = ["red " * (1 + 3 * (index % 2)) + record["captions"][0]]
    records[5] = {**records[5], "image": b"no picture"}
    if mode == "self_critical":
        trainer = SelfCriticalTrainer(
            train_dataset=records,
            data_collator=SelfCriticalCollator(processor),
            scorer=make_scorer(processor),
            settings=SelfCriticalArguments(num_samples=2, max_new_tokens=6),
            **options,
        )
    else:
        data = make_stream(12, 2) if mode.startswith("stream") else records
        trainer = VlpTrainer(train_dataset=data, data_collator=CaptionCollator(processor), **options)
    trainer.train(resume_from_checkpoint=str(output_dir / "checkpoint-2") if mode.endswith("resume") else None)
    rank = trainer.args.process_index
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    save_file(weights, str(output_dir / f"weights-{rank}.safetensors"))
    captions = generate_captions(trainer.model, processor, make_records(7), batch_size=2, progress=False)
    if rank == 0:
        content = {
            "history": trainer.state.log_history,
            "bad_samples": trainer.bad_sample_counts,
            "captions": captions,
        }
        (output_dir / "result.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    # Left to the interpreter's exit, the threads of gloo abort the process now and then.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
