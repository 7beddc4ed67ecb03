"""Every YAML of VLMo in examples/configs trains a step of each of its stages, with a tiny model on drawn data."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BeitConfig, BeitModel

from hf_vlp import VlmoForPreTraining
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.pretraining.arguments import read_yaml
from hf_vlp.pretraining.run import train
from tests.training.tiny_vlmo import SIZES, TEXTS, make_model, make_processor, make_questions

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("vlmo_*.yaml"))
# Sizes of the recipes that a tiny model does not have; what else a recipe says of the model stays.
TINY = {**SIZES, "max_text_length": 40, "max_text_length_of_table": 40}


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, str]:
    """What the recipes start from, in tiny: a checkpoint, a BEiT, a tokenizer, a folder of statements."""
    root = tmp_path_factory.mktemp("starts")
    processor = make_processor()
    make_model(VlmoForPreTraining, processor, max_text_length=40, max_text_length_of_table=40).save_pretrained(
        root / "vlmo"
    )
    processor.save_pretrained(root / "vlmo")
    torch.manual_seed(0)
    names = (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "image_size",
        "patch_size",
    )
    sizes = {name: SIZES[name] for name in names}
    BeitModel(BeitConfig(**sizes, use_relative_position_bias=True)).save_pretrained(root / "beit")
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


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_recipe_trains_a_step_of_each_stage(config, starts, tmp_path):
    content = read_yaml(config)
    for part in (content, *content.get("stages", ())):
        shrink(part, starts)
    flags = {"training.output_dir": str(tmp_path), "training.use_cpu": True, "training.bf16": False}
    flags |= {"training.max_steps": 1, "training.per_device_train_batch_size": 2, "training.disable_tqdm": True}
    flags |= {"training.dataloader_num_workers": 0, "training.gradient_accumulation_steps": 1}
    metrics = train(content, flags, show=lambda text: None)
    for own in (metrics, *metrics.get("stages", {}).values()):
        assert own["train_steps"] == 1
        assert own["train_loss"] == own["train_loss"]  # a number
    assert (tmp_path / "README.md").is_file()


def shrink(part: dict, starts: dict[str, str]):
    """The settings of a run or stage with a tiny model and drawn data."""
    model = part.get("model", {})
    replaced = {"model_name_or_path": "vlmo", "beit_model_name_or_path": "beit", "tokenizer_name_or_path": "tokenizer"}
    for name in replaced.keys() & model.keys():
        model[name] = starts[replaced[name]]
    if "min_answer_count" in model:
        model["min_answer_count"] = 1
    own = model.get("config", {})
    if "hidden_size" in own:
        model["config"] = {**own, **TINY}
    else:
        limits = {"image_size": 32, "max_text_length": 40}
        own |= {name: min(value, limits[name]) for name, value in own.items() if name in limits}
        if "vl_expert_start_layer" in own:  # as many as there are blocks: no such experts
            own["vl_expert_start_layer"] = 2 if own["vl_expert_start_layer"] in (4, 12) else 1
        if "beit_model_name_or_path" in model:
            own |= {"max_text_length_of_table": 40}
    if "data" in part:
        is_statement = part.get("task") == "image_and_text_classification"
        scenes = {"source": "scenes", "num_scenes": 8, "num_eval_scenes": 6}
        part["data"] = {"source": starts["statements"]} if is_statement else scenes
    if "batches" in part:
        part["batches"]["max_length"] = min(40, part["batches"]["max_length"])
        augment = part["batches"].get("augment") or {}
        if "vlmo_training" in augment:
            augment["vlmo_training"]["size"] = 16
    if "rerank" in part.get("evaluation", {}):
        part["evaluation"]["rerank"] = 2
