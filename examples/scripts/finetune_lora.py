"""LoRA in plain Python: adapt a captioner to own pictures, then save the adapters and the merged model.

    python examples/scripts/finetune_lora.py MODEL DATA OUTPUT [MAX_STEPS]

DATA is `scenes`, a folder with metadata.jsonl, parquet files, or a data set on the Hub. The same from a YAML:
`hf-vlp train examples/configs/vc_gpt_lora.yaml`.
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_vlp  # noqa: F401 - registers the models
from hf_vlp.adapters import apply_lora, merge_lora, parameter_table, save_adapter
from hf_vlp.data.collators import CaptionCollator
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.hub.export import save_repository
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.trainer import VlpTrainer


def main(model_id: str, data: str, output: str, max_steps: str = "1000") -> None:
    processor = AutoProcessor.from_pretrained(model_id)
    model = apply_lora(AutoModelForImageTextToText.from_pretrained(model_id), preset="attention", r=8)
    print(parameter_table(model))
    trainer = VlpTrainer(
        model=model,
        args=VlpTrainingArguments(
            output_dir=output,
            per_device_train_batch_size=16,
            max_steps=int(max_steps),
            learning_rate=3e-4,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            save_strategy="no",
        ),
        data_collator=CaptionCollator(processor),
        train_dataset=load_records(DataArguments(source=data), "train"),
    )
    trainer.train()
    save_adapter(model, Path(output) / "adapter")
    save_repository(output, model=merge_lora(model), processor=processor)


if __name__ == "__main__":
    main(*sys.argv[1:])
