"""`hf_vlp.hub.export`: complete repositories, saved whole or not at all.

Covers: what a repository contains, equal tokens in a process without hf_vlp (model, processor, pipeline), no trust
question with it, extra files and refused names, outdated weights, and saves that fail: full disk (while the model is
written, while the processor is, while files are moved), interrupt, a file in the way. After each the old repository is
byte for byte what it was, and no staging folder is left.
"""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline

from hf_vlp.hub.export import save_repository, staged_directory
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor


def snapshot(directory: Path) -> dict[str, bytes]:
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def processor():
    return make_tiny_processor()


@pytest.fixture(scope="module")
def repository(tmp_path_factory, processor):
    directory = tmp_path_factory.mktemp("hub") / "tiny-vc-gpt"
    return save_repository(
        directory, model=make_tiny_model(), processor=processor, extra_files={"metrics.json": {"cider_d": 0.5}}
    )


def test_repository_has_weights_code_processor_card_and_metrics(repository):
    assert {file.name for file in repository.iterdir()} == {
        "README.md",
        "config.json",
        "configuration_vc_gpt.py",
        "generation_config.json",
        "image_to_text.py",
        "metrics.json",
        "model.safetensors",
        "modeling_vc_gpt.py",
        "processing_vc_gpt.py",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } | {file.name for file in repository.iterdir() if file.suffix == ".py"}
    config = json.loads((repository / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_vc_gpt.VcGptConfig",
        "AutoModel": "modeling_vc_gpt.VcGptModel",
        "AutoModelForImageTextToText": "modeling_vc_gpt.VcGptForConditionalGeneration",
    }
    assert list(config["custom_pipelines"]) == ["image-to-text"]
    assert json.loads((repository / "metrics.json").read_text()) == {"cider_d": 0.5}
    assert "not measured" in (repository / "README.md").read_text()


def test_process_without_the_package_generates_the_same_tokens(repository, tmp_path):
    make_picture().save(tmp_path / "photo.png")
    code = f"""
import sys
sys.modules["hf_vlp"] = None  # any import of it fails
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
model = AutoModelForImageTextToText.from_pretrained({str(repository)!r}, trust_remote_code=True)
processor = AutoProcessor.from_pretrained({str(repository)!r}, trust_remote_code=True)
picture = Image.open("photo.png")
print(model.generate(**processor(images=[picture]), max_new_tokens=12, num_beams=2).tolist())
captioner = pipeline("image-to-text", model={str(repository)!r}, trust_remote_code=True)
print(captioner("photo.png", max_new_tokens=12))
"""
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    tokens, captions = result.stdout.strip().splitlines()[-2:]

    model = AutoModelForImageTextToText.from_pretrained(repository)
    processor = AutoProcessor.from_pretrained(repository)
    assert type(model).__module__.startswith("hf_vlp.")
    expected = model.generate(**processor(images=[make_picture()]), max_new_tokens=12, num_beams=2)
    assert json.loads(tokens) == expected.tolist()
    captioner = pipeline("image-to-text", model=str(repository))
    assert captions == str(captioner(str(tmp_path / "photo.png"), max_new_tokens=12))


def test_saved_repository_is_loaded_with_equal_weights(repository):
    expected = make_tiny_model().state_dict()
    loaded = AutoModelForImageTextToText.from_pretrained(repository).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_safetensors(*args, **kwargs):
    import safetensors

    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def interrupt(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "place, failure, error",
    [
        ("transformers.modeling_utils.safe_save_file", full_disk_in_safetensors, OSError),
        ("transformers.processing_utils.ProcessorMixin.save_pretrained", full_disk, OSError),
        ("transformers.processing_utils.ProcessorMixin.save_pretrained", interrupt, KeyboardInterrupt),
        ("hf_vlp.hub.export.write_extra_files", full_disk, OSError),
        ("os.fsync", full_disk, OSError),
    ],
)
@pytest.mark.parametrize("is_new", [False, True])
def test_failed_save_keeps_the_old_repository(place, failure, error, is_new, processor, tmp_path, monkeypatch):
    directory = tmp_path / "outer" / "repository"
    if not is_new:
        save_repository(directory, model=make_tiny_model(), processor=processor)
    before = snapshot(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(place, failure)
        with pytest.raises(error) as caught:
            save_repository(directory, model=make_tiny_model(seed=1), processor=processor)
    if error is OSError:
        assert str(directory) in str(caught.value)
        assert "No space left" in str(caught.value)
        assert ("nothing was written" if is_new else "what was there before is unchanged") in str(caught.value)
    assert snapshot(tmp_path) == before
    assert directory.parent.exists() != is_new
    if not is_new:
        assert not list(directory.glob(".*"))


@pytest.mark.parametrize("moment", ["before", "behind"])
@pytest.mark.parametrize("nth", range(8))
def test_interrupt_between_two_moves_puts_the_old_files_back(nth, moment, tmp_path, monkeypatch):
    directory = tmp_path / "repository"
    directory.mkdir()
    for name in ("a", "b", "mine.txt", "old-1.bin"):
        (directory / name).write_text(f"old {name}")
    before = snapshot(directory)
    replace, calls = os.replace, []

    def interrupted(source, destination):
        calls.append(source)
        if len(calls) != nth + 1:
            return replace(source, destination)
        if moment == "behind":
            replace(source, destination)
        raise KeyboardInterrupt

    # Three old files are moved away and four new ones in; nth=7 is never reached.
    monkeypatch.setattr(os, "replace", interrupted)
    if nth < 7:
        with pytest.raises(KeyboardInterrupt):
            save_four_files(directory)
        assert snapshot(directory) == before
    else:
        save_four_files(directory)
        assert snapshot(directory) == {
            "a": b"new",
            "b": b"new",
            "c": b"new",
            "deep/d": b"new",
            "mine.txt": b"old mine.txt",
        }
    assert not list(directory.glob(".*"))


def save_four_files(directory: Path):
    with staged_directory(directory, outdated=("old-*.bin",)) as staging:
        (staging / "deep").mkdir()
        for name in ("a", "b", "c", "deep/d"):
            (staging / name).write_text("new")


def test_shards_and_adapters_of_an_earlier_save_do_not_survive(processor, tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "checkpoint-10").mkdir()
    (tmp_path / "checkpoint-10" / "model.safetensors").write_text("kept")
    save_repository(tmp_path, model=make_tiny_model(), processor=processor)
    assert [file.name for file in sorted(tmp_path.glob("*model*.safetensors*"))] == ["model.safetensors"]
    assert not (tmp_path / "adapter_config.json").exists()
    assert (tmp_path / "checkpoint-10" / "model.safetensors").read_text() == "kept"


def test_adapters_are_saved_alone_and_found_by_the_auto_class(repository, processor, tmp_path):
    from hf_vlp.adapters import apply_lora

    model = apply_lora(AutoModelForImageTextToText.from_pretrained(repository), preset="attention", r=2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    save_repository(tmp_path / "adapter", model=model.eval(), processor=processor)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    inputs = processor(images=[make_picture()], text=["a"])
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert str(repository) in (tmp_path / "adapter" / "README.md").read_text()


def test_extra_files_are_text_bytes_copies_or_json(processor, tmp_path):
    (tmp_path / "sheet.png").write_bytes(b"png")
    directory = save_repository(
        tmp_path / "repository",
        model=make_tiny_model(),
        processor=processor,
        card="# mine",
        extra_files={"a.txt": "Text", "b.bin": b"\0", "deep/c.png": tmp_path / "sheet.png", "d.json": [1]},
    )
    files = snapshot(directory)
    assert (files["a.txt"], files["b.bin"], files["deep/c.png"]) == (b"Text", b"\0", b"png")
    assert json.loads(files["d.json"]) == [1]
    assert files["README.md"] == b"# mine"


@pytest.mark.parametrize("name, content", [("/etc/x", "x"), ("../x", "x"), ("", "x"), ("x", 1)])
def test_extra_files_that_cannot_be_are_refused_and_nothing_is_saved(name, content, processor, tmp_path):
    with pytest.raises(ValueError, match=r"in a repository|must be text"):
        save_repository(
            tmp_path / "repository", model=make_tiny_model(), processor=processor, extra_files={name: content}
        )
    assert not (tmp_path / "repository").exists()


def test_missing_extra_file_is_not_called_a_full_disk(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        save_repository(
            tmp_path / "repository",
            model=make_tiny_model(),
            processor=processor,
            extra_files={"no.png": tmp_path / "no.png"},
        )


def test_file_in_the_way_is_refused(processor, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        save_repository(tmp_path / "file", model=make_tiny_model(), processor=processor)
    assert (tmp_path / "file").read_text() == "mine"
