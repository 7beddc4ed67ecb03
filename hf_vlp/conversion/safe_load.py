"""Reading checkpoints of others: tensors only, whatever wraps them, and nothing in the file is ever executed."""

import hashlib
import pickle
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Where the tensors lie in files of known trainers, in the order of trying; a flat dictionary needs no name.
WRAPPERS = ("state_dict", "module", "model")
PREFIX = "module."
# Classes beyond torch's own list. BEiT's training code stores its options so: attributes, no code.
ALLOWED = (Namespace,)

_HALF = (torch.float16, torch.bfloat16)
_BYTES_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Tensors of a file and what is known about it.

    state_dict: {name: tensor}, without wrappers and common prefix.
    nesting: what was peeled off, from the outside in: names of `WRAPPERS`, and `"module."` for the prefix.
    settings: plain values beside the tensors (epochs, hyperparameters, ...), by their names in the file; tensors of
        optimizers are left out.
    ignored: names of everything in the file that `state_dict` does not hold.
    dtypes: {name of the dtype in the file: number of tensors}.
    """

    path: Path
    sha256: str
    state_dict: dict[str, torch.Tensor]
    nesting: tuple[str, ...]
    settings: dict[str, Any]
    ignored: tuple[str, ...]
    dtypes: dict[str, int]


def load_checkpoint(path: str | Path, *, float32: bool = False) -> LoadedCheckpoint:
    """Read the tensors of a .pt, .pth, .ckpt (by whatever name) or .safetensors file.

    Pickles are read with `weights_only=True` alone: tensors, plain containers and `ALLOWED`. The tensors
    stay on the disk until they are used where the format allows it.

    Args:
        float32: cast tensors of half precision to float32, which is exact.

    Raises FileNotFoundError, and ValueError with the reason and the next step for a file that is no checkpoint, is
    cut off, needs more than tensors and plain containers, or holds no tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder. Give the file of the checkpoint.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    state_dict, nesting, settings, ignored = peel(content, name=str(path))
    dtypes: dict[str, int] = {}
    for tensor in state_dict.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
    if float32:
        state_dict = to_float32(state_dict)
    return LoadedCheckpoint(path, sha256_of(path), state_dict, nesting, settings, ignored, dtypes)


def peel(
    content: Any, *, name: str = "the checkpoint"
) -> tuple[dict[str, torch.Tensor], tuple[str, ...], dict[str, Any], tuple[str, ...]]:
    """Find the tensors inside known wrappers: state_dict, nesting, settings, ignored, as `LoadedCheckpoint` has them.

    A wrapper counts when a dictionary lies under its name. The prefix counts when all names have it.
    """
    nesting: list[str] = []
    settings: dict[str, Any] = {}
    ignored: list[str] = []
    while True:
        if not isinstance(content, Mapping):
            raise ValueError(
                f"{name} holds a {type(content).__name__} where a dictionary of tensors is expected. Save the "
                "state_dict of the model, not the model."
            )
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        beside = {key: value for key, value in content.items() if key != wrapper}
        ignored += [".".join([*nesting, str(key)]) for key in beside]
        settings.update({str(key): value for key, value in beside.items() if not _has_tensor(value)})
        nesting.append(wrapper)
        content = content[wrapper]
    state_dict = {}
    for key, value in content.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            state_dict[key] = value.detach()
        else:
            ignored.append(".".join([*nesting, str(key)]))
            if not _has_tensor(value):
                settings[str(key)] = value
    if not state_dict:
        raise ValueError(
            f"{name} holds no tensors; it has {_enumerate([str(key) for key in content]) or 'no entries'}. Known "
            f"places are a flat dictionary and {', '.join(WRAPPERS)}."
        )
    while all(key.startswith(PREFIX) for key in state_dict):
        state_dict = {key.removeprefix(PREFIX): value for key, value in state_dict.items()}
        nesting.append(PREFIX)
    return state_dict, tuple(nesting), settings, tuple(ignored)


def to_float32(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors with those of half precision in float32."""
    return {name: value.float() if value.dtype in _HALF else value for name, value in state_dict.items()}


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BYTES_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{_explain_content(path)} ({error})") from error


def _read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"  # what torch.save writes since version 1.6
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        needed = re.findall(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            raise ValueError(
                f"{path} holds more than tensors and plain containers: {', '.join(dict.fromkeys(needed))}. Reading "
                "that would run code of the file, which is never done. If you trust it, load it where it was made, "
                'and save its tensors alone: torch.save(checkpoint["state_dict"], PATH).'
            ) from error
        raise ValueError(f"{_explain_content(path)} ({_first_sentence(error)})") from error
    except (EOFError, RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{_explain_content(path)} ({_first_sentence(error)})") from error


def _first_sentence(error: Exception) -> str:
    return re.split(r"[.\n](?:\s|$)", str(error).strip() or type(error).__name__)[0]


def _explain_content(path: Path) -> str:
    """Why a file cannot be read, by its first bytes: frequent accidents of downloads."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return f"{path} is empty. Download it again."
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the file. Fetch it with `git lfs pull`."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"{path} is a web page, probably the message of a dead link. Download the file itself."
    return (
        f"{path} cannot be read as a checkpoint: it is cut off, damaged, or of another format "
        f"({path.stat().st_size:,} bytes). Compare its size with the source's and download it again."
    )


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_tensor(item) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_has_tensor(item) for item in value)
    return isinstance(value, torch.Tensor)


def _enumerate(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


__all__ = ["LoadedCheckpoint", "load_checkpoint", "peel", "sha256_of", "to_float32"]
