"""What the README tells people to type: every block of Python runs, every command and option exists.

Python blocks run one after another in one folder with a tiny model under the names that the README uses; towers on the
Hub are replaced by tiny ones. Commands are parsed, not run: sub-command, options, and files that they name.
"""

import re
import shlex
from pathlib import Path

import pytest
import typer
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from hf_vlp.cli import app
from hf_vlp.hub.export import save_repository
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
    if name == "train":
        from hf_vlp.pretraining.arguments import parse_arguments

        config = ROOT / context.params["config"]
        if not re.search(r"CONFIG|\.\.\.", str(context.params["config"])):  # a place holder
            assert config.is_file(), config
            parse_arguments(config, [*context.args, "--training.bf16", "false"])
    elif settings:
        assert name in ("evaluate", "document-frequencies")
        assert all(setting.startswith("--data.") for setting in settings)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\((?!https?:|#)([^)\s]+)\)", README))))
def test_link_of_the_readme_leads_to_a_file(path):
    assert (ROOT / path).exists()
