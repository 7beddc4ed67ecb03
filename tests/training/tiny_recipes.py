"""What the tests of recipes in examples/configs share: starts of a few thousand parameters, shrunk settings."""

import json
from pathlib import Path

import torch
from transformers import BeitConfig, BeitModel

from hf_vlp import VlBeitConfig, VlBeitForPreTraining, VlBeitVqkdConfig, VlBeitVqkdTokenizer, VlmoForPreTraining
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.pretraining.arguments import read_yaml
from hf_vlp.pretraining.run import train
from tests.training.tiny_vlmo import SIZES, TEXTS, make_model, make_processor, make_questions

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
CODES = 8  # visual tokens
TEXT_LENGTHS = {"max_text_length": 40, "max_text_length_of_table": 40}
# Sizes of the recipes that a tiny model does not have; what else a recipe says of the model stays.
TINY = {**SIZES, **TEXT_LENGTHS}
VISION = {name: value for name, value in SIZES.items() if name in vars(BeitConfig()) and name != "initializer_range"}
VISUAL = {**VISION, "codebook_size": CODES, "code_dim": 4}  # of the visual tokenizer


def make_starts(root: Path) -> dict[str, str]:
    """What recipes start from, in tiny: checkpoints, a BEiT, a tokenizer, a visual one, a folder of statements."""
    processor = make_processor()
    make_model(VlmoForPreTraining, processor, **TEXT_LENGTHS).save_pretrained(root / "vlmo")
    torch.manual_seed(0)
    sizes = {**TINY, "vocab_size": len(processor.tokenizer), "visual_vocab_size": CODES}
    VlBeitForPreTraining(VlBeitConfig(**sizes)).save_pretrained(root / "vl_beit")
    for name in ("vlmo", "vl_beit"):
        processor.save_pretrained(root / name)
    BeitModel(BeitConfig(**VISION, use_relative_position_bias=True)).save_pretrained(root / "beit")
    VlBeitVqkdTokenizer(VlBeitVqkdConfig(**VISUAL)).save_pretrained(root / "visual")
    train_bert_tokenizer(TEXTS, 120).save_pretrained(root / "tokenizer")
    (root / "statements").mkdir()
    for split in ("train", "val", "test"):
        lines = []
        for index, record in enumerate(make_questions(8)):
            record["image"].save(root / "statements" / f"{index}.png")
            row = {"image": f"{index}.png", "sentence": record["question"], "label": index % 2 == 0}
            lines.append(json.dumps({**row, "example_id": f"{split}-{index}-0", "permutation": 0}))
        (root / "statements" / f"{split}.jsonl").write_text("\n".join(lines))
    return {path.name: str(path) for path in root.iterdir()}


def train_a_step(config: Path, starts: dict[str, str], folder: Path) -> dict:
    """The metrics of a recipe whose every stage trained one step, with a tiny model on drawn data."""
    content = read_yaml(config)
    for part in (content, *content.get("stages", ())):
        shrink(part, starts, content["model"]["architecture"])
    flags = {"training.output_dir": str(folder), "training.use_cpu": True, "training.bf16": False}
    flags |= {"training.max_steps": 1, "training.per_device_train_batch_size": 2, "training.disable_tqdm": True}
    flags |= {"training.dataloader_num_workers": 0, "training.gradient_accumulation_steps": 1}
    flags |= {"training.warmup_steps": 0}  # polynomial decay divides by the steps behind it
    return train(content, flags, show=lambda text: None)


def shrink(part: dict, starts: dict[str, str], architecture: str):
    """The settings of a run or stage with a tiny model and drawn data."""
    model = part.get("model", {})
    replaced = {
        "model_name_or_path": architecture,
        "beit_model_name_or_path": "beit",
        "tokenizer_name_or_path": "tokenizer",
        "visual_tokenizer_name_or_path": "visual",
    }
    for name in replaced.keys() & model.keys():
        model[name] = starts[replaced[name]]
    if "min_answer_count" in model:
        model["min_answer_count"] = 1
    own = model.get("config", {})
    limits = {"image_size": 32, "max_text_length": 40}
    own |= {name: min(value, limits[name]) for name, value in own.items() if name in limits}
    if "vl_expert_start_layer" in own:  # as many as there are blocks: no such experts
        own["vl_expert_start_layer"] = 2 if own["vl_expert_start_layer"] in (4, 12) else 1
    if "visual_vocab_size" in own:
        own["visual_vocab_size"] = CODES
    is_new = "architecture" in model and not {"model_name_or_path", "beit_model_name_or_path"} & model.keys()
    if is_new and architecture == "vl_beit_vqkd":
        model["config"] = {**own, **VISUAL}
    elif is_new:
        model["config"] = {**own, **TINY, "vl_expert_start_layer": own.get("vl_expert_start_layer", 1)}
    elif "beit_model_name_or_path" in model:
        own |= {"max_text_length_of_table": 40}
    if "data" in part:
        is_statement = part.get("task") == "image_and_text_classification"
        part["data"] = {"source": starts["statements"]} if is_statement else drawn(part["data"])
    batches = part.get("batches", {})
    if "max_length" in batches:
        batches["max_length"] = min(40, batches["max_length"])
    augment, evaluation = batches.get("augment") or {}, part.get("evaluation", {})
    if "vlmo_training" in augment:
        augment["vlmo_training"]["size"] = 16
    if "segmentation" in augment:
        augment["segmentation"] = {"crop_size": 32, "base_size": 32, "max_size": 128}
    if evaluation.get("rerank"):
        evaluation["rerank"] = 2
    if evaluation.get("sliding_window"):
        evaluation["sliding_window"] = {"shortest_edge": 32, "longest_edge": 128, "stride": 24}


def drawn(data: dict) -> dict:
    """A section `data` of eight drawn scenes, with what it says of scenes, and each of its own sections likewise."""
    kept = {name: value for name, value in data.items() if name.startswith("scene_")}
    kept |= {name: drawn(value) for name, value in data.items() if isinstance(value, dict)}
    return {**kept, "source": "scenes", "num_scenes": 8, "num_eval_scenes": 6}
