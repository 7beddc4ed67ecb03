"""One rank of the two-rank golden: `torch.distributed.run -m tests.parity.vlmo_two_ranks OUTPUT_DIR`.

Writes what `test_vlmo_two_ranks.py` compares: the outputs of this rank, and its gradients of the contrastive and the
matching loss.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file

from tests.parity.test_vlmo import build
from tests.parity.vlmo_goldens import FOLDER


def main(output_dir: Path):
    torch.set_num_threads(1)
    rank = PartialState(cpu=True).process_index
    model = build("pretrain").train()  # no dropout in it
    inputs = load_file(FOLDER / "retrieval_inputs.safetensors")
    negatives = load_file(FOLDER / "two_rank_itc_itm.safetensors")
    names = ("itm_negative_image_index", "itm_negative_text_index")
    rows = len(negatives[f"rank{rank}.{names[0]}"])
    own = slice(rank * rows, (rank + 1) * rows)
    batch = {name: inputs[f"recall_{name}"][own] for name in ("pixel_values", "input_ids", "attention_mask")}
    # Texts as they come from a collator: each process pads to its own longest.
    longest = int(batch["attention_mask"].sum(dim=1).max())
    for name in ("input_ids", "attention_mask"):
        batch[name] = batch[name][:, :longest]
    batch["labels"] = torch.full_like(batch["input_ids"], -100)  # no masked word: contrast and matching alone
    drawn = model(**batch)
    outputs = model(**batch, **{name: negatives[f"rank{rank}.{name}"] for name in names})
    (outputs.losses["itc"] + outputs.losses["itm"]).backward()
    result = {
        "itc_logits_per_image": outputs.logits_per_image,
        "itc_loss": outputs.losses["itc"],
        "itm_logits": outputs.itm_logits,
        "itm_loss": outputs.losses["itm"],
        **{f"drawn.{name}": drawn[name] for name in names},
        **{
            f"grad.{name}": parameter.grad
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        },
    }
    result = {name: value.detach().contiguous() for name, value in result.items()}
    save_file(result, str(output_dir / f"rank{rank}.safetensors"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    # Left to the interpreter's exit, the threads of gloo abort the process now and then.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
