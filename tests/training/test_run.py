"""Whole runs from settings: scenes, stages with SCST, resume of stages, splits that are missing, evaluations that
fail, LoRA, starting points, bad settings."""

import json

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from hf_vlp.data.collators import BadSampleError
from hf_vlp.pretraining import run as run_module
from hf_vlp.pretraining.arguments import ModelArguments, parse_arguments
from hf_vlp.pretraining.build import freeze_towers, make_config, start_model
from hf_vlp.pretraining.run import train, without_folders
from tests.training.tiny import different, make_model, make_processor, make_records, parameters_of

CONFIG = {
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
    },
    "text_config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64},
    "num_fusion_layers": 1,
    "fusion_num_heads": 2,
}


def make_settings(output_dir, **sections) -> dict:
    settings = {
        "model": {"config": CONFIG, "vocab_size": 300},
        "data": {"source": "scenes", "num_scenes": 24, "num_eval_scenes": 6, "scene_size": 32},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_steps": 2,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "evaluation": {"num_samples": 4, "generation": {"max_new_tokens": 6}, "constant_candidates": 5},
    }
    return {
        name: {**settings.get(name, {}), **sections.get(name, {})}
        if isinstance(sections.get(name, {}), dict)
        else sections[name]
        for name in {**settings, **sections}
    }


def test_a_run_leaves_a_repository_with_metrics_history_and_settings(tmp_path):
    shown = []
    settings = make_settings(tmp_path, training={"eval_strategy": "steps", "eval_steps": 2})
    metrics = train(settings, show=shown.append)
    assert metrics["train_steps"] == 3
    assert {"validation_cider_d", "validation_shuffled_cider_d", "validation_constant_cider_d"} <= metrics.keys()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "README.md", "metrics.json", "run.yaml", "log.jsonl"} <= names
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert json.loads((tmp_path / "predictions" / "validation.json").read_text())["predictions"]
    history = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any("eval_cider_d" in entry for entry in history)
    assert parse_arguments(tmp_path / "run.yaml").training.max_steps == 3
    assert any("pictures shuffled" in text for text in shown)
    assert any("learning rate" in text for text in shown)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert model.config.use_cache
    assert AutoProcessor.from_pretrained(tmp_path).tokenizer.vocab_size == model.config.text_config.vocab_size


@pytest.fixture
def staged_settings(tmp_path):
    settings = make_settings(tmp_path, evaluation={"final_splits": []})
    settings["self_critical"] = {"num_samples": 2, "max_new_tokens": 6}
    settings["stages"] = [
        {"name": "cross_entropy"},
        {"name": "scst", "objective": "self_critical", "training": {"max_steps": 2, "learning_rate": 1e-4}},
    ]
    return settings


def test_cross_entropy_and_then_self_critical_from_one_yaml(staged_settings, tmp_path):
    metrics = train(staged_settings)
    assert metrics["train_steps"] == 2
    assert metrics["stages"]["cross_entropy"]["train_steps"] == 3
    assert (tmp_path / "scst" / "document_frequencies.json").is_file()
    first, second, whole = (
        parameters_of(AutoModelForImageTextToText.from_pretrained(folder))
        for folder in (tmp_path / "cross_entropy", tmp_path / "scst", tmp_path)
    )
    assert different(first, second)
    assert different(second, whole) == []
    assert any("reward_sample" in line for line in (tmp_path / "scst" / "log.jsonl").read_text().splitlines())


def test_a_second_yaml_continues_from_the_repository_of_the_first(tmp_path):
    train(make_settings(tmp_path / "first", evaluation={"final_splits": []}))
    settings = make_settings(tmp_path / "second", evaluation={"final_splits": []}, objective="self_critical")
    settings["model"] = {"model_name_or_path": str(tmp_path / "first")}
    settings["self_critical"] = {
        "num_samples": 2,
        "max_new_tokens": 6,
        "document_frequencies": str(tmp_path / "frequencies.json"),
    }
    with pytest.raises(FileNotFoundError, match="document frequencies"):
        train(settings)
    from hf_vlp.metrics.captioning import build_document_frequencies

    build_document_frequencies([["a red square"], ["a blue circle"]], tmp_path / "frequencies.json")
    assert train(settings)["train_steps"] == 3


def test_resume_passes_over_finished_stages(staged_settings, tmp_path, monkeypatch):
    expected = train(staged_settings)
    whole = parameters_of(AutoModelForImageTextToText.from_pretrained(tmp_path))
    (tmp_path / "scst" / "metrics.json").unlink()  # as if the run had been interrupted in its second stage
    stages = []
    train_stage = run_module.train_stage
    monkeypatch.setattr(
        run_module,
        "train_stage",
        lambda stage, *rest, **options: stages.append(stage.stage) or train_stage(stage, *rest, **options),
    )
    shown = []
    metrics = train(staged_settings, ["--resume_from_checkpoint", "true"], show=shown.append)
    assert stages == ["scst"]
    assert any("checkpoint-2" in text for text in shown)
    assert metrics["stages"] == expected["stages"]
    assert different(whole, parameters_of(AutoModelForImageTextToText.from_pretrained(tmp_path))) == []


def test_splits_of_all_stages_are_opened_before_anything_is_trained(staged_settings, monkeypatch):
    monkeypatch.setattr(run_module, "train_stage", lambda *rest, **options: pytest.fail("trained first"))
    staged_settings["stages"][1]["evaluation"] = {"final_splits": ["test", "tset"]}
    with pytest.raises(ValueError, match=r"tset.*evaluation\.final_splits"):
        train(staged_settings)
    staged_settings["stages"][1] |= {"evaluation": {"split": "tset"}}
    staged_settings["stages"][1]["training"] |= {"eval_strategy": "steps", "eval_steps": 1}
    with pytest.raises(ValueError, match=r"tset.*evaluation\.split"):
        train(staged_settings)


@pytest.mark.parametrize("name", [None, "only"])
def test_a_failed_evaluation_leaves_the_weights_and_is_made_up_for(name, tmp_path, monkeypatch):
    def fail(*rest, **options):
        raise ValueError("Too many bad samples")

    settings = make_settings(tmp_path, training={"save_strategy": "no"})
    if name:
        settings["stages"] = [{"name": name}]
    folder = tmp_path / (name or "")
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text('{"of": "an earlier run"}')
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "evaluate_model", fail)
        with pytest.raises(ValueError, match="Too many bad samples"):
            train(settings)
    before = parameters_of(AutoModelForImageTextToText.from_pretrained(folder))
    assert not (folder / "metrics.json").exists()
    assert "validation" not in (folder / "README.md").read_text()
    monkeypatch.setattr(run_module, "train_stage", lambda *rest, **options: pytest.fail("trained again"))
    metrics = train(settings, {"resume_from_checkpoint": "true"})
    assert metrics["train_steps"] == 3
    assert metrics["validation_cider_d"] >= 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    assert "validation" in (folder / "README.md").read_text()
    assert not (folder / "trained.json").exists()
    assert different(before, parameters_of(AutoModelForImageTextToText.from_pretrained(tmp_path))) == []


def test_stages_behind_one_that_is_trained_again_are_not_finished(staged_settings, tmp_path, monkeypatch):
    for name, file in (("cross_entropy", "old.json"), ("scst", "metrics.json"), ("scst", "trained.json")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text("{}")
    stages = []
    monkeypatch.setattr(
        run_module, "train_stage", lambda stage, *rest, **options: stages.append(stage.stage) or (None, None, {})
    )
    for name in ("save", "write_results"):
        monkeypatch.setattr(run_module, name, lambda *rest: None)
    train(staged_settings, {"resume_from_checkpoint": "true"})
    assert stages == ["cross_entropy", "scst"]


def test_the_budget_of_bad_samples_counts_in_the_final_evaluation_too(tmp_path):
    rows = []
    for index in range(4):
        make_records(4)[index]["image"].save(tmp_path / f"{index}.png")
        rows.append({"image": f"{index}.png", "captions": ["a red square", "one red picture"]})
    for split, bad in (("train", []), ("validation", [{"image": "none.png", "captions": ["a red square"]}])):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows + bad)))
    settings = make_settings(tmp_path / "run", batches={"bad_samples": "raise"}, training={"max_steps": 1})
    settings["data"] = {"source": str(tmp_path), "dataset_cache": str(tmp_path / "cache")}
    with pytest.raises(BadSampleError, match=r"none\.png"):
        train(settings)
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path):
    shown = []
    settings = make_settings(tmp_path, evaluation={"final_splits": []}, training={"max_steps": 1})
    train(settings, {"resume_from_checkpoint": "true"}, show=shown.append)
    assert any("starting from the beginning" in text for text in shown)


def test_adapters_train_and_the_merged_model_is_the_repository(tmp_path):
    settings = make_settings(tmp_path, peft={"preset": "attention", "r": 2}, training={"learning_rate": 0.1})
    shown = []
    train(settings, show=shown.append)
    assert any("fusion (adapters)" in text for text in shown)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_stream_of_parquet_trains(tmp_path):
    from hf_vlp.data.scenes import make_scenes

    scenes = make_scenes(16, image_size=32)
    scenes.select_columns(["image", "captions"]).to_parquet(str(tmp_path / "train-00000.parquet"))
    settings = make_settings(
        tmp_path / "out",
        data={"source": str(tmp_path), "streaming": True},
        training={"max_steps": 6, "shuffle_block": 8},  # more than an epoch
        evaluation={"final_splits": []},
    )
    assert train(settings)["train_steps"] == 6


def test_frozen_towers_stay_and_stages_may_free_them(tmp_path):
    model = make_model(make_processor())
    freeze_towers(model, ["vision", "language"])
    groups = {model.get_parameter_group(name) for name, p in model.named_parameters() if p.requires_grad}
    assert groups == {"fusion"}
    freeze_towers(model, [])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_starting_from_parts(tmp_path):
    torch.manual_seed(0)
    vision = CLIPVisionModel(CLIPVisionConfig(**CONFIG["vision_config"]))
    tokenizer = make_processor().tokenizer
    text = GPT2LMHeadModel(GPT2Config(**CONFIG["text_config"], vocab_size=len(tokenizer), eos_token_id=5))
    vision.save_pretrained(tmp_path / "clip")
    text.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    settings = ModelArguments(
        vision_model_name_or_path=str(tmp_path / "clip"),
        text_model_name_or_path=str(tmp_path / "gpt2"),
        config={"num_fusion_layers": 2, "fusion_num_heads": 2},
    )
    model, processor = start_model(settings, ())[:2]
    assert torch.equal(model.model.language_model.wte.weight, text.transformer.wte.weight)
    assert model.config.num_fusion_layers == 2
    assert processor.image_processor.crop_size["height"] == 32
    assert len(processor.tokenizer) == len(tokenizer)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"num_fusion_layer": 2}, r"model\.config\.num_fusion_layer\..*'num_fusion_layers'"),
        ({"vision_config": {"hiden_size": 2}}, r"vision_config\.hiden_size.*'hidden_size'"),
        ({"fusion_num_heads": 7}, r"fusion_num_heads=7"),
        ({"num_fusion_layers": "many"}, r"num_fusion_layers"),
        ({"num_fusion_layers": 0}, r"num_fusion_layers=0"),
        ({"vision_config": {"hidden_size": 10, "num_attention_heads": 4}}, r"\b10\b.*\b4\b"),
    ],
)
def test_impossible_configurations_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        make_config("vc_gpt", config)


def test_captions_longer_than_the_positions_are_refused(tmp_path):
    settings = make_settings(tmp_path, batches={"max_length": 65})
    with pytest.raises(ValueError, match=r"batches\.max_length=65 .*64 positions"):
        train(settings)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint of 'gpt2'.*'vc_gpt'"):
        start_model(ModelArguments(model_name_or_path=str(tmp_path)), ())


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        start_model(ModelArguments(model_name_or_path=str(tmp_path)), ())


@pytest.mark.parametrize("path", ["outputs/pairs", "/nowhere/at/all"])
def test_a_folder_that_another_recipe_makes_is_named(path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=f"no folder {path} .*another recipe makes it, run that first"):
        start_model(ModelArguments(model_name_or_path=path), ())


def test_parts_of_another_kind_are_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=10)).save_pretrained(tmp_path)
    make_processor().tokenizer.save_pretrained(tmp_path)
    settings = ModelArguments(vision_model_name_or_path=str(tmp_path), text_model_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="CLIP"):
        start_model(settings, ())


def test_cards_and_shared_settings_name_no_local_folder(tmp_path):
    settings = {"data": {"source": str(tmp_path), "caption_columns": ["a/b"]}, "training": {"output_dir": "x"}}
    assert without_folders(settings) == {
        "data": {"source": tmp_path.name, "caption_columns": ["a/b"]},
        "training": {},
    }
    assert without_folders("user/name") == "user/name"
