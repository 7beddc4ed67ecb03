"""Upload a repository to the Hub: weights, code, processor, card and metrics in one commit."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_vlp.hub.cards import PLACEHOLDER_ID
from hf_vlp.hub.export import save_repository

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

# What a training run leaves beside its model, and nobody needs to use it.
_OF_THE_RUN = {"training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt", "log.jsonl"}
_FOLDERS_OF_THE_RUN = {"predictions", "runs"}


def list_repository_files(directory: str | os.PathLike) -> list[Path]:
    """The files of a folder that belong to its repository, relative to it.

    Left out are hidden files, state and logs of training, and folders that hold a model of their own: checkpoints,
    stages, adapters. Raises ValueError, with what is missing, when the folder is not a complete repository.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ValueError(f"There is no folder {directory} (looked in {Path.cwd()}).")
    files = list(_walk(directory, Path()))
    names = {str(file) for file in files}
    needed = {
        "a configuration (config.json)": ("config.json", "adapter_config.json"),
        "weights": ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"),
        "a processor": ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"),
        "a card (README.md)": ("README.md",),
    }
    if missing := [what for what, any_of in needed.items() if not names.intersection(any_of)]:
        raise ValueError(
            f"{directory} is not a complete repository, it lacks {', '.join(missing)}. Save it with "
            "hf_vlp.hub.export.save_repository, or give the output folder of a training run."
        )
    if "model.safetensors.index.json" in names:
        shards = set(json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"].values())
        if absent := sorted(shards - names):
            raise ValueError(f"{directory} lacks weights that its index names: {', '.join(absent)}.")
    return files


def _walk(directory: Path, below: Path) -> Iterator[Path]:
    for path in sorted((directory / below).iterdir()):
        name = below / path.name
        if path.name.startswith(".") or path.name in _OF_THE_RUN:
            continue
        if path.is_file():
            yield name
        elif path.is_dir() and path.name not in _FOLDERS_OF_THE_RUN:
            if not any((path / config).is_file() for config in ("config.json", "adapter_config.json")):
                yield from _walk(directory, name)


def push_repository(
    directory: str | os.PathLike,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """Upload a saved repository in one commit; the repository on the Hub is made if it does not exist.

    Whoever downloads it then sees either all of it or what was there before. In the card's examples the place holder
    of an unknown id becomes `repo_id`.

    Args:
        directory: what `save_repository` or a training run wrote; see `list_repository_files` for what is uploaded.
        private: for a repository that is made now.
        revision: branch, made if it does not exist; the main one by default.
        message: title of the commit.
        token: with the right to write; by default the one of `hf auth login` or `HF_TOKEN`.

    Returns the address of the commit. Raises ValueError for an incomplete folder and for adapters on a base that only
    this machine has, OSError when the Hub refuses or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import httpx

    directory = Path(directory)
    files = list_repository_files(directory)
    if Path("adapter_config.json") in files:
        base = json.loads((directory / "adapter_config.json").read_text()).get("base_model_name_or_path")
        if not base or Path(base).exists():
            raise ValueError(
                f"The adapters in {directory} go on top of {base or 'a base without a name'}, which nobody else has. "
                "Push the base first, and train adapters on the model loaded by its id; or push the merged model."
            )
    card = (directory / "README.md").read_text(encoding="utf-8").replace(PLACEHOLDER_ID, repo_id)
    operations = [
        CommitOperationAdd(
            path_in_repo=file.as_posix(),
            path_or_fileobj=card.encode() if file == Path("README.md") else directory / file,
        )
        for file in files
    ]
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=message or f"Upload {directory.resolve().name} with hf_vlp",
            revision=revision,
        )
    except httpx.HTTPError as error:
        if isinstance(error, OSError):  # the Hub answered, and says why
            raise
        raise OSError(f"The Hub at {api.endpoint} could not be reached ({error}).") from error
    return commit.commit_url


def push_model(
    repo_id: str,
    *,
    model,
    processor,
    card: "ModelCard | str | None" = None,
    extra_files: Mapping[str, Any] | None = None,
    **options,
) -> str:
    """Save a complete repository and upload it in one commit, without leaving files behind.

    Arguments are those of `save_repository`, and as `options` those of `push_repository`. Returns the address of the
    commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / repo_id.split("/")[-1]
        save_repository(directory, model=model, processor=processor, card=card, extra_files=extra_files)
        return push_repository(directory, repo_id, **options)


__all__ = ["list_repository_files", "push_model", "push_repository"]
