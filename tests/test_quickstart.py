"""The quick start on a fraction of its size: does it do all that it says, whatever it learns in a few steps?

Covers: the recipe in the package and the one in `examples/configs`, figures beside those with shuffled pictures,
the complete repository, the reloaded captions being those that were scored, the contact sheet, the seed, and refused
architectures. That the full recipe learns is tested where its numbers are.
"""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from hf_vlp.quickstart import RECIPES, draw_contact_sheet, find_recipe, format_proof, run_quickstart

EXAMPLES = Path(__file__).parent.parent / "examples"
# Everything else is the recipe's.
SMALL = {
    "data.num_scenes": 32,
    "data.num_eval_scenes": 8,
    "training.per_device_train_batch_size": 8,
    "training.disable_tqdm": True,
    "evaluation.num_samples": 4,
    "evaluation.constant_candidates": 2,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    output, lines = tmp_path_factory.mktemp("quickstart") / "repository", []
    result = run_quickstart("vc_gpt", output, max_steps=2, settings=SMALL, show=lines.append)
    return {**result, "output": output, "text": "\n".join(lines)}


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_recipe_of_the_package_is_the_one_in_the_examples(recipe):
    assert recipe.read_text() == (EXAMPLES / "configs" / recipe.name).read_text()


def test_both_splits_are_measured_beside_shuffled_pictures(result):
    for split in ("test", "compositional"):
        for name in ("cider_d", "exact_match"):
            own, shuffled = (result["metrics"][f"{split}_{prefix}{name}"] for prefix in ("", "shuffled_"))
            assert f"{own:.3f}" in result["text"]
            assert f"{shuffled:.3f}" in result["text"]


def test_repository_is_complete_with_card_metrics_and_settings(result):
    names = {file.name for file in result["output"].iterdir()}
    assert {"model.safetensors", "config.json", "modeling_vc_gpt.py", "image_to_text.py", "tokenizer.json"} <= names
    assert {"README.md", "metrics.json", "run.yaml", "contact_sheet.png"} <= names
    saved = json.loads((result["output"] / "metrics.json").read_text())
    assert saved["test_cider_d"] == result["metrics"]["test_cider_d"]
    card = (result["output"] / "README.md").read_text()
    assert "| scenes, test (8 pictures) | CIDEr-D |" in card
    assert "| scenes, compositional (8 pictures) | Exact match |" in card


def test_reloaded_pipeline_gives_the_captions_that_were_scored(result):
    assert {split: len(captions) for split, captions in result["captions"].items()} == {"test": 8, "compositional": 8}
    assert result["num_reproduced"] == 16


def test_contact_sheet_shows_every_picture(result):
    with Image.open(result["contact_sheet"]) as sheet:
        assert sheet.size == (4 * 260, 4 * 290)  # 16 pictures, four in a row


def test_contact_sheet_frames_right_captions_green_and_wrong_ones_red(tmp_path):
    picture = Image.new("RGB", (8, 8), "blue")
    rows = [("test", picture, "A red circle.", ["a blue disc", "a red circle"]), ("test", picture, "a dog", ["a cat"])]
    with Image.open(draw_contact_sheet(rows, tmp_path / "sheet.png", columns=2, side=40)) as sheet:
        right, wrong = sheet.getpixel((5, 20)), sheet.getpixel((140 + 5, 20))
        assert sheet.getpixel((20, 20)) == (0, 0, 255)
    assert right[1] > 2 * right[0]
    assert wrong[0] > 2 * wrong[1]


def test_figures_that_were_not_measured_are_left_out():
    table = format_proof({"test_cider_d": 1.25, "test_shuffled_cider_d": 0.5, "other_cider_d": 1.0}, ["test", "other"])
    lines = [line.split() for line in table.splitlines()]
    assert lines[1] == ["held-out", "scenes:", "CIDEr-D", "1.250", "0.500"]
    assert lines[2] == ["other:", "CIDEr-D", "1.000", "-"]
    assert len(lines) == 3


def test_command_hands_its_options_on(tmp_path, monkeypatch):
    from hf_vlp.cli import app

    calls = []
    monkeypatch.setattr("hf_vlp.quickstart.run_quickstart", lambda *args, **kwargs: calls.append((args, kwargs)))
    result = CliRunner().invoke(app, ["quickstart", "--output", str(tmp_path), "--seed", "3", "--max-steps", "5"])
    assert result.exit_code == 0
    ((architecture, output), options) = calls[0]
    assert (architecture, output, options["seed"], options["max_steps"]) == ("vc_gpt", tmp_path, 3, 5)


def test_architecture_without_a_quick_start_is_refused():
    with pytest.raises(ValueError, match="no quick start for 'blip', only for vc_gpt"):
        find_recipe("blip")
