"""Everything under `examples/`: configurations and scripts.

Covers: each YAML opens with command, hardware, time and score; those of VC-GPT train one step with a tiny model on
scenes, every other setting being their own; scripts run, and stay short.
"""

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import hf_vlp
from hf_vlp.hub.export import save_repository
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor
from tests.hub.tiny_vlmo import make_model as make_vlmo
from tests.hub.tiny_vlmo import make_processor as make_vlmo_processor

EXAMPLES = Path(__file__).parent.parent / "examples"
CONFIGS = sorted((EXAMPLES / "configs").glob("*.yaml"))
SCRIPTS = sorted((EXAMPLES / "scripts").glob("*.py"))
# What the machines of the recipes have and a test does not.
NO_GPU = {"training.bf16": False, "training.dataloader_num_workers": 0}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    return save_repository(directory, model=make_tiny_model(), processor=make_tiny_processor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures with captions in each of three splits, as an imagefolder."""
    root = tmp_path_factory.mktemp("pictures")
    for split in ("train", "validation", "test"):
        (root / split).mkdir()
        lines = []
        for seed in range(6):
            make_picture(seed).save(root / split / f"{seed}.png")
            lines.append(f'{{"file_name": "{seed}.png", "captions": ["a red circle", "number {seed}"]}}')
        (root / split / "metadata.jsonl").write_text("\n".join(lines))
    return root


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configuration_opens_with_what_to_expect(config):
    head = "".join(line for line in config.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(f"# {word}:" in head for word in ("command", "hardware", "time", "score")), head
    command = re.search(r"# command: +(.*(?:\n#   +.*)*)", head).group(1)
    assert config.name in command


# Those of VLMo and VL-BEiT train their step in tests/training/test_vlmo_recipes.py and test_vl_beit_recipes.py.
@pytest.mark.parametrize("config", [path for path in CONFIGS if "vc_gpt" in path.name], ids=lambda path: path.stem)
def test_configuration_trains_a_step(config, model, tmp_path):
    from hf_vlp.pretraining.arguments import read_yaml
    from hf_vlp.pretraining.run import train

    content = read_yaml(config)
    content["model"] = {"model_name_or_path": str(model)}
    content["data"] = {"source": "scenes", "num_scenes": 8, "num_eval_scenes": 4}
    content["batches"] = {**content.get("batches", {}), "max_length": 24}
    if content["batches"].get("captions_per_image", 1) != 1:
        content["batches"]["captions_per_image"] = 2
    content.get("self_critical", {}).pop("document_frequencies", None)
    flags = {**NO_GPU, "training.output_dir": str(tmp_path), "training.max_steps": 1, "training.use_cpu": True}
    flags |= {"training.per_device_train_batch_size": 2, "evaluation.constant_candidates": 2}
    flags |= {"evaluation.generation.max_new_tokens": 4, "training.disable_tqdm": True}
    metrics = train(content, flags, show=lambda text: None)
    assert metrics["train_steps"] == 1
    assert metrics["train_loss"] == metrics["train_loss"]  # a number
    assert (tmp_path / "README.md").is_file()


def run_script(name: str, *arguments, monkeypatch):
    script = EXAMPLES / "scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
    runpy.run_path(str(script), run_name="__main__")


def test_every_script_is_short_and_has_a_test():
    assert {script.stem for script in SCRIPTS} == {
        "caption_folder",
        "compare_with_shuffled",
        "evaluate_model",
        "extract_features",
        "finetune_lora",
        "finetune_questions",
        "prepare_ade20k",
        "prepare_nlvr2",
        "prepare_vqa_v2",
        "search_pictures",
    }
    assert all(len(script.read_text().splitlines()) <= 60 for script in SCRIPTS)


def test_caption_folder_writes_a_line_per_picture(model, folder, tmp_path, monkeypatch):
    run_script("caption_folder", model, folder / "test", tmp_path / "captions.jsonl", monkeypatch=monkeypatch)
    assert len((tmp_path / "captions.jsonl").read_text().splitlines()) == 6


def test_evaluate_model_prints_scores_and_the_worst_captions(model, folder, monkeypatch, capsys):
    run_script("evaluate_model", model, folder, monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert "'cider_d': " in lines[0]
    assert len([line for line in lines if "(reference: 'a red circle')" in line]) == 5


def test_compare_with_shuffled_prints_both_baselines(model, folder, monkeypatch, capsys):
    run_script("compare_with_shuffled", model, folder, monkeypatch=monkeypatch)
    output = capsys.readouterr().out
    assert "pictures shuffled" in output
    assert "constant: " in output


def test_finetune_lora_saves_adapters_and_a_merged_model(model, folder, tmp_path, monkeypatch, capsys):
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    run_script("finetune_lora", model, folder, tmp_path, "2", monkeypatch=monkeypatch)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(model)
    inputs = make_tiny_processor()(images=[make_picture()], text=["a"])
    before = base(**inputs).logits
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter")
    # Adding the product to the weights first changes the order of the sums.
    torch.testing.assert_close(adapted(**inputs).logits, merged(**inputs).logits, rtol=1e-3, atol=1e-4)
    assert not torch.equal(before, merged(**inputs).logits)


@pytest.fixture(scope="module")
def vlmo(tmp_path_factory):
    """Repositories of tiny models of VLMo and VL-BEiT: name of the class -> folder."""
    root = tmp_path_factory.mktemp("vlmo")
    names = ("VlmoModel", "VlmoForPreTraining", "VlmoForImageTextRetrieval", "VlBeitForPreTraining")
    return {
        name: save_repository(root / name, model=make_vlmo(name), processor=make_vlmo_processor()) for name in names
    }


def test_search_pictures_ranks_them_for_each_text(vlmo, folder, monkeypatch, capsys):
    model = vlmo["VlmoForImageTextRetrieval"]
    run_script("search_pictures", model, folder / "test", "a dog", "a red bus", monkeypatch=monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == ["a dog", "a red bus"]
    assert len([line for line in lines if line.endswith(".png")]) == 6


@pytest.mark.parametrize(
    ("name", "key"), (("VlmoModel", "pooler_output"), ("VlmoForImageTextRetrieval", "image_embeds"))
)
def test_extract_features_writes_a_row_per_picture(name, key, vlmo, folder, tmp_path, monkeypatch):
    run_script("extract_features", vlmo[name], folder / "test", tmp_path / "f.safetensors", monkeypatch=monkeypatch)
    features = load_file(tmp_path / "f.safetensors")
    assert features.keys() == {key}
    assert features[key].shape == (6, 16)
    if key == "image_embeds":
        torch.testing.assert_close(features[key].norm(dim=1), torch.ones(6))


@pytest.mark.parametrize("name", ("VlmoForPreTraining", "VlBeitForPreTraining"))
def test_finetune_questions_saves_a_model_that_answers(name, vlmo, tmp_path, monkeypatch, capsys):
    from hf_vlp.data import sources

    load_records = sources.load_records

    def load_few(arguments, split):
        return load_records(replace(arguments, num_scenes=8, num_eval_scenes=8), split).select(range(8))

    monkeypatch.setattr(sources, "load_records", load_few)
    run_script("finetune_questions", vlmo[name], "scenes", tmp_path, "2", monkeypatch=monkeypatch)
    assert "exact_match" in capsys.readouterr().out
    answerer = hf_vlp.pipeline("visual-question-answering", model=str(tmp_path))
    (answer,) = answerer(image=make_picture(), question="what is it?", top_k=1)
    assert answer["answer"] in answerer.model.config.label2id


def test_prepared_vqa_v2_trains_and_gives_a_submission(vlmo, tmp_path, monkeypatch, capsys):
    from hf_vlp.cli import app
    from hf_vlp.pretraining.run import train

    source, output = tmp_path / "source", tmp_path / "records"
    answers = ["red", "blue", "yes"]
    for part, first in (("train2014", 0), ("val2014", 10), ("test2015", 20)):
        (source / part).mkdir(parents=True)
        questions, annotations = [], []
        for index in range(first, first + 6):
            make_picture(index).save(source / part / f"COCO_{part}_{index:012d}.jpg")
            for number in range(3):  # each answer twelve times: more than the nine that a label needs
                answer = answers[(index + number) % 3]
                identity = {"question_id": 10 * index + number, "image_id": index}
                questions.append({**identity, "question": "what is it?"})
                annotations.append(
                    {
                        **identity,
                        "multiple_choice_answer": answer,
                        "answers": [{"answer": answer}] * 9 + [{"answer": "no"}],
                    }
                )
        (source / f"v2_OpenEnded_mscoco_{part}_questions.json").write_text(json.dumps({"questions": questions}))
        if part != "test2015":
            (source / f"v2_mscoco_{part}_annotations.json").write_text(json.dumps({"annotations": annotations}))
    run_script("prepare_vqa_v2", source, output, 2, monkeypatch=monkeypatch)
    assert "train: 30 questions\nvalidation: 6 questions\ntest: 18 questions" in capsys.readouterr().out
    names = json.loads((output / "answers.json").read_text())
    settings = {
        "task": "visual_question_answering",
        "model": {
            "architecture": "vlmo",
            "model_name_or_path": str(vlmo["VlmoForPreTraining"]),
            "answer_vocabulary": str(output / "answers.json"),
        },
        "data": {"source": str(output)},
        "training": {"output_dir": str(tmp_path / "model"), "max_steps": 1, "use_cpu": True, "save_strategy": "no"},
    }
    metrics = train(settings, {"training.per_device_train_batch_size": 2}, show=lambda text: None)
    assert 0 <= metrics["validation_vqa_accuracy"] <= 1
    submission = tmp_path / "submission.json"
    arguments = ["evaluate", str(tmp_path / "model"), "--data", str(output), "--output", str(submission)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    entries = json.loads(submission.read_text())
    assert len(entries) == 18
    assert {entry["answer"] for entry in entries} <= set(names if isinstance(names, list) else names["answers"])


def test_prepared_nlvr2_is_read_as_statements(tmp_path, monkeypatch):
    from hf_vlp.data.sources import DataArguments, load_records

    source, output = tmp_path / "source", tmp_path / "records"
    for part, place in (("train", "images/train/7"), ("dev", "dev"), ("test1", "test1")):
        (source / place).mkdir(parents=True)
        for side in range(2):
            make_picture(side).save(source / place / f"{part}-3-0-img{side}.png")
        example = {"identifier": f"{part}-3-0-1", "sentence": "two circles", "label": "True", "directory": 7}
        if part != "train":
            del example["directory"]
        (source / f"{part}.json").write_text(json.dumps(example) + "\n")
    run_script("prepare_nlvr2", source, output, monkeypatch=monkeypatch)
    for split in ("train", "validation", "test"):
        (record,) = load_records(DataArguments(source=str(output), record_type="statements"), split)
        assert record["sentence" if "sentence" in record else "statement"] == "two circles"
        assert record["label"] in (True, 1)
        assert len(record["images"]) == 2
        assert all(Path(image["path"]).is_file() for image in record["images"])
