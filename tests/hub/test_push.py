"""`hf_vlp.hub.push` over real HTTP, between the unmodified Hub client and a stand-in server.

Covers: one commit with everything, the id in the card's examples, what of a training run stays behind, loading by id
in a process without hf_vlp (Auto classes and pipeline), a second push, a branch, a private repository, the command;
refused: incomplete folders, adapters on a local base, no token, no server.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hf_vlp.hub.export import save_repository
from hf_vlp.hub.push import list_repository_files, push_repository
from tests.hub.hub_server import HubServer
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository amid what a training run leaves."""
    directory = tmp_path_factory.mktemp("push") / "my-captioner"
    save_repository(
        directory,
        model=make_tiny_model(),
        processor=make_tiny_processor(),
        extra_files={"metrics.json": {"cider_d": 0.5}, "figures/a.txt": "a"},
    )
    for name in ("checkpoint-5/config.json", "checkpoint-5/optimizer.pt", "adapter/adapter_config.json", ".cache/x"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    for name in ("log.jsonl", "training_args.bin", "predictions/test.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    return directory


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


def run_python(code: str, hub, home: Path, *, with_package: bool, token: str | None = "hf_test_token"):
    """Run code in a process that knows only this Hub; without the package, any import of it fails."""
    if not with_package:
        code = f"import sys\nsys.modules['hf_vlp'] = None\n{code}"
    environment = {**os.environ, **hub.environment(home, token=token)}
    environment["PYTHONPATH"] = str(ROOT) if with_package else ""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=home, capture_output=True, text=True, check=False
    )


PUSH = "from hf_vlp.hub.push import push_repository\nprint(push_repository({!r}, {!r}{}))"


@pytest.fixture(scope="module")
def pushed(repository, hub, tmp_path_factory):
    code = PUSH.format(str(repository), "me/my-captioner", ", private=True")
    result = run_python(code, hub, tmp_path_factory.mktemp("home"), with_package=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_everything_arrives_in_one_commit(pushed, repository, hub):
    remote = hub.repositories["me/my-captioner"]
    first, commit = remote.commits.values()
    assert first.files == {}
    assert pushed == f"{hub.url}/me/my-captioner/commit/{commit.sha}"
    assert commit.message == "Upload my-captioner with hf_vlp"
    names = {str(file) for file in list_repository_files(repository)}
    assert set(commit.files) == set(commit.written) == names
    assert {"model.safetensors", "modeling_vc_gpt.py", "README.md", "metrics.json", "figures/a.txt"} <= names
    for name in names - {"README.md"}:
        assert commit.files[name] == (repository / name).read_bytes()
    assert remote.private


def test_what_belongs_to_the_training_run_stays_behind(repository):
    names = {str(file) for file in list_repository_files(repository)}
    assert not [name for name in names if re.match(r"checkpoint|adapter/|\.|log|training_args|predictions", name)]


def test_examples_of_the_card_name_the_repository(pushed, hub):
    card = list(hub.repositories["me/my-captioner"].commits.values())[-1].files["README.md"].decode()
    assert 'pipeline("image-to-text", model="me/my-captioner", trust_remote_code=True)' in card
    assert "path/or/id" not in card


def test_process_without_the_package_loads_it_by_id(pushed, repository, hub, tmp_path):
    code = """
import json
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
model = AutoModelForImageTextToText.from_pretrained("me/my-captioner", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("me/my-captioner", trust_remote_code=True)
picture = Image.open("photo.png")
ids = model.generate(**processor(images=[picture]), max_new_tokens=10, num_beams=2)
captioner = pipeline("image-to-text", model="me/my-captioner", trust_remote_code=True)
print(json.dumps([ids.tolist(), captioner(picture, max_new_tokens=10)[0]["generated_text"]]))
"""
    make_picture().save(tmp_path / "photo.png")
    result = run_python(code, hub, tmp_path, with_package=False)
    assert result.returncode == 0, result.stderr[-3000:]
    ids, caption = json.loads(result.stdout.strip().splitlines()[-1])
    model, processor = make_tiny_model(), make_tiny_processor()
    inputs = processor(images=[make_picture()])
    assert ids == model.generate(**inputs, max_new_tokens=10, num_beams=2).tolist()
    greedy = model.generate(**inputs, max_new_tokens=10)
    assert caption == processor.batch_decode(greedy, skip_special_tokens=True)[0]


def test_second_push_to_a_branch_leaves_main_alone(pushed, repository, hub, tmp_path):
    remote = hub.repositories["me/my-captioner"]
    main = remote.branches["main"]
    code = PUSH.format(str(repository), "me/my-captioner", ", revision='trial', message='Try'")
    result = run_python(code, hub, tmp_path, with_package=True)
    assert result.returncode == 0, result.stderr
    assert remote.branches["main"] == main
    assert remote.find("trial").message == "Try"


def test_command_pushes(repository, hub, tmp_path):
    code = f"from hf_vlp.cli import app\napp(['push', {str(repository)!r}, 'me/by-command'])"
    result = run_python(code, hub, tmp_path, with_package=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().startswith(f"{hub.url}/me/by-command/commit/")


def test_model_in_memory_is_pushed_complete(hub, tmp_path):
    code = """
from hf_vlp.hub.push import push_model
from tests.hub.tiny_vc_gpt import make_tiny_model, make_tiny_processor
push_model("me/from-memory", model=make_tiny_model(), processor=make_tiny_processor(), extra_files={"a.txt": "a"})
"""
    result = run_python(code, hub, tmp_path, with_package=True)
    assert result.returncode == 0, result.stderr
    files = hub.repositories["me/from-memory"].find("main").files
    assert {"model.safetensors", "modeling_vc_gpt.py", "processor_config.json", "README.md", "a.txt"} <= files.keys()


def test_missing_token_and_missing_server_are_told_in_one_line(repository, hub, tmp_path):
    code = f"from hf_vlp.cli import app\napp(['push', {str(repository)!r}, 'me/refused'])"
    result = run_python(code, hub, tmp_path, with_package=True, token=None)
    assert result.returncode == 2
    assert "401" in result.stderr.splitlines()[-1]
    assert "me/refused" not in hub.repositories
    nowhere = HubServer()
    nowhere.server.server_close()
    result = run_python(code, nowhere, tmp_path, with_package=True)
    assert result.returncode == 2
    assert "could not be reached" in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "name, words",
    [
        ("config.json", "a configuration"),
        ("model.safetensors", "weights"),
        ("processor_config.json tokenizer_config.json", "a processor"),
        ("README.md", "a card"),
    ],
)
def test_incomplete_folder_is_refused_with_what_is_missing(name, words, repository, tmp_path):
    for file in list_repository_files(repository):
        if str(file) not in name.split():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes((repository / file).read_bytes())
    with pytest.raises(ValueError, match=f"lacks {words}"):
        push_repository(tmp_path, "me/x")


def test_missing_folder_and_missing_shard_are_refused(repository, tmp_path):
    with pytest.raises(ValueError, match="no folder"):
        push_repository(tmp_path / "none", "me/x")
    for file in ("config.json", "processor_config.json", "README.md"):
        (tmp_path / file).write_bytes((repository / file).read_bytes())
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="model-00001-of-00002"):
        push_repository(tmp_path, "me/x")


def test_adapters_on_a_local_base_are_refused(repository, tmp_path):
    from transformers import AutoModelForImageTextToText

    from hf_vlp.adapters import apply_lora

    model = apply_lora(AutoModelForImageTextToText.from_pretrained(repository), r=2)
    save_repository(tmp_path / "adapter", model=model, processor=make_tiny_processor())
    with pytest.raises(ValueError, match="Push the base first"):
        push_repository(tmp_path / "adapter", "me/x")
