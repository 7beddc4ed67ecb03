"""What the README tells people to type: every block of Python runs, every command and option exists.

Python blocks run one after another in one folder with a tiny model under the names that the README uses; towers on the
Hub are replaced by tiny ones. Commands are parsed, not run: sub-command, options, and files that they name; but one
conversion runs from end to end, and so does joint evaluation. The table of models names every class with a task, and
each line of own data is read by the record type beside it.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from transformers import (
    AutoProcessor,
    BeitConfig,
    BeitForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
)
from typer.testing import CliRunner

import hf_vlp
from hf_vlp import VlBeitConfig, VlBeitForPreTraining
from hf_vlp.cli import app
from hf_vlp.data.columns import RECORD_TYPES
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.hub.export import save_repository
from tests.conversion.test_convert_vl_beit import WORDS, random_beit
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor
from tests.hub.tiny_vlmo import make_model as make_vlmo
from tests.hub.tiny_vlmo import make_processor as make_vlmo_processor

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def find_commands() -> list[list[str]]:
    """Every `hf-vlp ...` (also `accelerate launch -m hf_vlp.cli ...`) in shell blocks and between back quotes."""
    text = "\n".join(find_blocks("bash")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in re.split(r"&&|;|\|", line)]
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE))
    commands = [re.match(r"\s*(?:hf-vlp|.*-m hf_vlp\.cli)\s+(.*)", line) for line in lines]
    return [shlex.split(command.group(1), comments=True) for command in commands if command]


PYTHON_BLOCKS = find_blocks("python")
COMMANDS = find_commands()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README takes for granted: a model, pictures, towers."""
    directory = tmp_path_factory.mktemp("readme")
    save_repository(directory / "quickstart", model=make_tiny_model(), processor=make_tiny_processor())
    (directory / "photos").mkdir()
    for name in ("photo.png", "photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        make_picture().save(directory / name)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(vision).save_pretrained(directory / "openai" / "clip-vit-base-patch16")
    text = GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=32, vocab_size=300, bos_token_id=0, eos_token_id=0)
    for name in ("gpt2", "openai-community/gpt2"):
        GPT2LMHeadModel(text).save_pretrained(directory / name)
    for name, class_name in (
        ("vlmo-base", "VlmoForPreTraining"),
        ("vlmo-base-vqa", "VlmoForVisualQuestionAnswering"),
        ("vl-beit-segmentation", "VlBeitForSemanticSegmentation"),
    ):
        save_repository(directory / name, model=make_vlmo(class_name), processor=make_vlmo_processor())
    beit = BeitConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        use_relative_position_bias=True,
    )
    BeitForImageClassification(beit).save_pretrained(directory / "microsoft" / "beit-base-patch16-224")
    return directory


def test_there_are_blocks_and_commands_to_test():
    assert len(PYTHON_BLOCKS) >= 3
    assert {command[0] for command in COMMANDS} >= {"quickstart", "train", "evaluate", "caption"}


@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_python_of_the_readme_runs(number, place, monkeypatch):
    monkeypatch.chdir(place)  # ids of the Hub are folders here
    exec(compile(PYTHON_BLOCKS[number], f"README.md, Python block {number + 1}", "exec"), {"__name__": "readme"})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_command_of_the_readme_exists_with_its_options(command):
    name, *arguments = command
    group = typer.main.get_command(app)
    assert name in group.commands
    # Parses without calling: unknown options and missing arguments raise.
    context = group.commands[name].make_context(name, list(arguments))
    settings = [argument for argument in context.args if argument.startswith("--")]
    if name == "train" and not context.params["list_settings"]:
        from hf_vlp.pretraining.arguments import parse_arguments

        config = ROOT / context.params["config"]
        if not re.search(r"CONFIG|\.\.\.", str(context.params["config"])):  # a place holder
            assert config.is_file(), config
            parse_arguments(config, [*context.args, "--training.bf16", "false"])
    elif settings:
        assert name in ("evaluate", "document-frequencies")
        assert all(setting.startswith("--data.") for setting in settings)


def run_command(*start: str, further: tuple[str, ...] = ()) -> str:
    """What the README's only command that begins so prints."""
    (command,) = [command for command in COMMANDS if command[: len(start)] == list(start)]
    done = CliRunner().invoke(app, [*command, *further])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_conversion_of_beit_v2_makes_a_start_of_joint_pre_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = random_beit("v2", blocks=3, dim=64, heads=1)
    torch.save({"model": tensors}, "beitv2_base_patch16_224_pt1k.pth")
    words = [*WORDS, *(f"word{number}" for number in range(len(WORDS), VlBeitConfig().vocab_size))]
    Path("vocab.txt").write_text("\n".join(words) + "\n")
    report = run_command("convert", "vl_beit")
    assert re.search(r"dropped +cls_pt_layers\.0\.gamma_1,", report)
    model = VlBeitForPreTraining.from_pretrained("vl-beit-from-beit-v2")
    assert torch.equal(model.vl_beit.layers[2].experts["image"].fc1.weight, tensors["blocks.2.mlp.fc1.weight"])
    assert model.config.vl_expert_start_layer == 1
    assert AutoProcessor.from_pretrained("vl-beit-from-beit-v2").tokenizer.tokenize("red dogs") == [
        "red",
        "dog",
        "##s",
    ]


def test_joint_evaluation_measures_all_four_objectives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = make_vlmo("VlBeitVqkdTokenizer", image_size=32, patch_size=16)
    model = make_vlmo("VlBeitForPreTraining", visual_vocab_size=tokenizer.config.codebook_size)
    save_repository("outputs/vl_beit_scenes", model=model, processor=make_vlmo_processor())
    tokenizer.save_pretrained("outputs/vl_beit_scenes_tokenizer")
    few = [f"--data.{part}num_eval_scenes" for part in ("", "images.", "texts.")]
    further = ("--json", *(word for name in few for word in (name, "2")))
    scores = json.loads(run_command("evaluate", "outputs/vl_beit_scenes", further=further))
    objectives = ("mlm", "mim", "mvlm_text", "mvlm_image")
    assert {f"{name}_accuracy" for name in objectives} <= scores.keys()


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", README))))
def test_link_of_the_readme_leads_to_a_file(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", [name for name in hf_vlp.__all__ if "For" in name])
def test_table_of_models_names_every_class_with_a_task(name):
    assert f"`{name}`" in README[: README.index("## Install")]


OWN_DATA = re.findall(r"^\| `(\w+)` \| [^|]* \| `(\{.*\})` \|$", README, re.MULTILINE)
# What collators read, see `hf_vlp.data.columns`.
COLUMNS = {
    "captions": {"image", "captions"},
    "texts": {"captions"},
    "questions": {"image", "question", "answers"},
    "statements": {"images", "statement", "label"},
    "labels": {"image", "label"},
    "segmentation": {"image", "segmentation_map"},
    "images": {"image"},
}


def test_every_record_type_has_a_line_of_own_data():
    assert {record_type for record_type, _ in OWN_DATA} == set(RECORD_TYPES)


@pytest.mark.parametrize("record_type, line", OWN_DATA, ids=[record_type for record_type, _ in OWN_DATA])
def test_line_of_own_data_is_read(record_type, line, tmp_path):
    for name in re.findall(r'"(\w+\.\w+)"', line):
        make_picture().save(tmp_path / name)
    (tmp_path / "train.jsonl").write_text(f"{line}\n")
    (record,) = load_records(DataArguments(source=str(tmp_path), record_type=record_type), "train")
    assert record.keys() == COLUMNS[record_type]
    pictures = [*record.get("images", ()), *(record[name] for name in ("image", "segmentation_map") if name in record)]
    assert all(Path(picture["path"]).is_file() for picture in pictures)
    assert len(pictures) == line.count(".jpg") + line.count(".png")
