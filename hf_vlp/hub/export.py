"""Save a complete, shareable repository, whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# Weights of an earlier save that the new one does not overwrite: a single file would win over new shards, an adapter
# would be put on the new weights.
_OUTDATED = ("model*.safetensors", "model*.safetensors.index.json", "adapter_model.safetensors", "adapter_config.json")


@contextlib.contextmanager
def staged_directory(directory: str | os.PathLike, *, outdated: tuple[str, ...] = ()) -> Iterator[Path]:
    """Collect files in a staging folder, then move all of them into `directory`, or none.

    Yields the staging folder, which lies inside `directory` so that moving is renaming. Nothing of `directory` changes
    before the block has ended and every byte is on the disk; an exception in the block, a full disk, or an interrupt
    while files are being moved leaves it as it was, without a trace of the attempt. Other files in `directory` stay,
    except those that match a pattern of `outdated` and were not written again. (A power cut during the renames, which
    take well under a millisecond each, can leave old and new files beside one another; what was replaced then lies in
    `.saving-*/replaced`.)

    Raises OSError, with the reason and the state of `directory`, when writing fails.
    """
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise ValueError(f"Cannot save into {target}: it is a file. Give the path of a folder.")
    missing = [folder for folder in (target, *target.parents) if not folder.exists()]  # from the inside out
    moves: list[tuple[Path, Path]] = []
    workplace = None
    try:
        target.mkdir(parents=True, exist_ok=True)
        workplace = Path(tempfile.mkdtemp(dir=target, prefix=".saving-"))
        staging, replaced = workplace / "new", workplace / "replaced"
        staging.mkdir()
        yield staging
        files = [file.relative_to(staging) for file in sorted(staging.rglob("*")) if file.is_file()]
        for file in files:
            _sync(staging / file)
        old = {file.relative_to(target) for pattern in outdated for file in target.glob(pattern)} - set(files)
        for source, destination in [
            *((target / file, replaced / file) for file in (*sorted(old), *files) if (target / file).is_file()),
            *((staging / file, target / file) for file in files),
        ]:
            destination.parent.mkdir(parents=True, exist_ok=True)
            moves.append((source, destination))  # before the move: an interrupt can come right behind it
            os.replace(source, destination)
        moves.clear()
        _sync(target)
    except BaseException as error:
        for source, destination in reversed(moves):
            if destination.exists() and not source.exists():
                os.replace(destination, source)
        if workplace is not None:
            shutil.rmtree(workplace, ignore_errors=True)
            workplace = None
        for folder in missing:
            with contextlib.suppress(OSError):  # somebody else has put a file there
                folder.rmdir()
        if _is_failed_write(error):
            kept = "nothing was written" if missing else "what was there before is unchanged"
            raise OSError(
                getattr(error, "errno", None) or errno.EIO,
                f"Saving into {target} failed ({error}); {kept}. Free some space or save elsewhere.",
            ) from error
        raise
    finally:
        if workplace is not None:
            shutil.rmtree(workplace, ignore_errors=True)


def _is_failed_write(error: BaseException) -> bool:
    """Whether the disk failed: full, over quota, broken, read-only. safetensors wraps these in an error of its own."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM)
    return (isinstance(error, OSError) and error.errno in codes) or type(error).__name__ == "SafetensorError"


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk: some file systems find out only then that
    it is full."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_extra_files(directory: Path, files: Mapping[str, Any]) -> None:
    """Write `{name in the repository: content}`; a content is text, bytes, the path of a file to copy, or JSON data.

    Raises ValueError for a name that leads out of the repository, and for a content of another kind.
    """
    for name, content in files.items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{name!r} is no name of a file in a repository: give a relative one, without '..'.")
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            file.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            file.write_bytes(content)
        elif isinstance(content, os.PathLike):
            shutil.copyfile(content, file)
        elif isinstance(content, (dict, list)):
            file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        else:
            raise ValueError(
                f"The content of {name!r} must be text, bytes, a path or JSON data, not {type(content).__name__}."
            )


def save_repository(
    directory: str | os.PathLike,
    *,
    model,
    processor,
    card: "ModelCard | str | None" = None,
    extra_files: Mapping[str, Any] | None = None,
) -> Path:
    """Save everything that somebody else needs to use a model, in one go.

    Weights, configuration with `auto_map` and `custom_pipelines`, the code of both, the processor and the card: the
    folder loads with `trust_remote_code=True` where only transformers is installed, and can be uploaded as it is
    (`push_repository`). It appears whole or not at all, see `staged_directory`.

    Args:
        model: a model of this package, or one with adapters of peft around it. Then the adapters alone are saved, and
            the repository refers to the one that their base was loaded from; merge them for a whole model
            (`model.merge_and_unload()`).
        processor: saved beside the model; a processor, tokenizer or image processor.
        card: the README, as `make_card` returns it, or text. Without one, a card is made that says nothing was
            measured.
        extra_files: further files, `{"metrics.json": {"cider_d": 1.2}, "sheet.png": Path("...")}`: text, bytes, a path
            to copy, or JSON data. They are written last and may replace others, such as `README.md`.

    Returns the directory. Raises OSError when the disk is full or not writable, and ValueError when `directory` is a
    file; what was there before then still is.
    """
    if card is None:
        from hf_vlp.hub.cards import make_card

        card = make_card(model)
    with staged_directory(directory, outdated=_OUTDATED) as staging:
        model.save_pretrained(staging)
        processor.save_pretrained(staging)
        write_extra_files(staging, {"README.md": str(card), **(extra_files or {})})
    return Path(directory)


__all__ = ["save_repository", "staged_directory", "write_extra_files"]
