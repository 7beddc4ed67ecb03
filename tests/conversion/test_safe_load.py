"""Reading foreign checkpoints.

Covered: every nesting and prefix, both file formats and the legacy format of torch, settings beside the tensors, the
one class that is allowed, half precision, SHA-256, and one clear ValueError each for: code in the pickle (never run),
cut-off files of three formats, an empty file, a Git LFS pointer, a web page, no tensors, a tensor or list in the place
of a dictionary, a folder.
"""

import hashlib
import pickle
from argparse import Namespace
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from hf_vlp.conversion.safe_load import load_checkpoint, peel

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor)
        assert actual[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    "content, nesting",
    [
        (TENSORS, ()),
        (OrderedDict(TENSORS), ()),
        ({"state_dict": TENSORS, "epoch": 3}, ("state_dict",)),
        ({"model": TENSORS, "optimizer": {"state": {0: torch.ones(2)}}}, ("model",)),
        ({"module": {f"module.{key}": value for key, value in TENSORS.items()}}, ("module", "module.")),
        ({f"module.{key}": value for key, value in TENSORS.items()}, ("module.",)),
        ({"model": {"state_dict": TENSORS}}, ("model", "state_dict")),
        ({"state_dict": TENSORS, "model": {"a.weight": torch.zeros(1)}}, ("state_dict",)),
    ],
)
def test_every_nesting_is_peeled(tmp_path, content, nesting):
    path = tmp_path / "file.ckpt"
    torch.save(content, path)
    loaded = load_checkpoint(path)
    assert loaded.nesting == nesting
    assert_same(loaded.state_dict, TENSORS)
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_lies_beside_the_tensors_is_told(tmp_path):
    content = {
        "state_dict": {**TENSORS, "note": "text"},
        "hyper_parameters": {"config": {"image_size": 64, "names": ["a"]}},
        "optimizer_states": [{"state": {0: torch.ones(2)}}],
    }
    torch.save(content, tmp_path / "file.pt")
    loaded = load_checkpoint(tmp_path / "file.pt")
    assert_same(loaded.state_dict, TENSORS)
    assert set(loaded.ignored) == {"hyper_parameters", "optimizer_states", "state_dict.note"}
    assert loaded.settings == {"hyper_parameters": content["hyper_parameters"], "note": "text"}


def test_a_prefix_that_not_all_names_share_is_kept():
    names = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert_same(peel(names)[0], names)


def test_legacy_files_and_safetensors_are_read(tmp_path):
    torch.save({"model": TENSORS}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(tmp_path / "old.pth").state_dict, TENSORS)
    save_file(TENSORS, tmp_path / "new.safetensors")
    assert_same(load_checkpoint(tmp_path / "new.safetensors").state_dict, TENSORS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_cast_on_request(tmp_path, dtype):
    half = torch.randn(5).to(dtype)
    torch.save({"a": half, "b": torch.arange(3), "c": torch.ones(2)}, tmp_path / "half.pt")
    kept = load_checkpoint(tmp_path / "half.pt")
    cast = load_checkpoint(tmp_path / "half.pt", float32=True)
    assert kept.state_dict["a"].dtype == dtype
    assert cast.state_dict["a"].dtype == torch.float32
    assert torch.equal(cast.state_dict["a"], half.float())
    assert cast.state_dict["b"].dtype == torch.int64
    assert cast.dtypes == {str(dtype).removeprefix("torch."): 1, "int64": 1, "float32": 1}


def test_options_of_the_trainer_of_beit_are_allowed(tmp_path):
    options = Namespace(lr=1e-3, output_dir="out")
    torch.save({"model": TENSORS, "args": options, "epoch": 3}, tmp_path / "file.pth")
    loaded = load_checkpoint(tmp_path / "file.pth")
    assert_same(loaded.state_dict, TENSORS)
    assert loaded.settings == {"args": options, "epoch": 3}


class _Bomb:
    def __reduce__(self):
        return (open, ("bomb.txt", "w"))


class _Plain:
    pass


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, new_format):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": TENSORS, "x": _Bomb()}, "file.pt", _use_new_zipfile_serialization=new_format)
    with pytest.raises(ValueError, match=r"more than tensors and plain containers: \w*\.?open.*never done"):
        load_checkpoint("file.pt")
    assert not (tmp_path / "bomb.txt").exists()


def test_the_class_that_a_pickle_needs_is_named(tmp_path):
    torch.save({"model": TENSORS, "args": _Plain()}, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=r"test_safe_load\._Plain"):
        load_checkpoint(tmp_path / "file.pt")


def test_cut_off_files_are_named_as_such(tmp_path):
    big = {"a": torch.randn(1000)}
    torch.save(big, tmp_path / "new.pt")
    torch.save(big, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(big, tmp_path / "file.safetensors")
    for file in list(tmp_path.iterdir()):
        content = file.read_bytes()
        for length in (3, 40, len(content) // 2, len(content) - 5):
            file.write_bytes(content[:length])
            with pytest.raises(ValueError, match=f"cut off, damaged, or of another format .{length:,} bytes"):
                load_checkpoint(file)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    ],
)
def test_accidents_of_downloads_are_recognised(tmp_path, suffix, content, message):
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "content, message",
    [
        ({}, "holds no tensors; it has no entries"),
        ({"model": {"epoch": 3}}, "holds no tensors; it has epoch"),
        ([torch.ones(1)], "holds a list"),
        (torch.ones(1), "holds a Tensor"),
    ],
)
def test_files_without_a_dictionary_of_tensors_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=message):
        load_checkpoint(tmp_path / "file.pt")


def test_a_plain_pickle_is_not_a_checkpoint(tmp_path):
    (tmp_path / "file.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"file\.pt"):
        load_checkpoint(tmp_path / "file.pt")


def test_missing_files_and_folders_are_told_apart(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint .*nothing\.pt"):
        load_checkpoint(tmp_path / "nothing.pt")
