"""What a repository needs for its pipelines to work with `trust_remote_code=True` where hf_vlp is not installed."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from hf_vlp.pipelines.doors import DOORS, Door


def custom_pipelines(tasks: Iterable[str] = ("image-to-text",)) -> dict[str, dict]:
    """The value of `config.custom_pipelines` for `tasks`.

    `{"image-to-text": {"impl": "image_to_text.ImageToTextPipeline", "pt": ["AutoModelForImageTextToText"], "type":
    "multimodal"}}`. The auto classes in `pt` must be in the repository's `auto_map` if the model is not a native one.
    """
    return {
        door.task: {"impl": door.exported_name, "pt": list(door.auto_classes), "type": "multimodal"}
        for door in _doors(tasks)
    }


def export_pipeline_files(directory: str | Path, tasks: Iterable[str] = ("image-to-text",)) -> dict[str, dict]:
    """Copy the pipeline files of `tasks`, with what they import relatively, into `directory`.

    Returns `custom_pipelines(tasks)`: assign it to `config.custom_pipelines` before the config is saved.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tasks = tuple(tasks)
    for door in _doors(tasks):
        source = sys.modules[door.pipeline_class().__module__].__file__
        for file in (source, *get_relative_import_files(source)):
            shutil.copyfile(file, directory / Path(file).name)
    return custom_pipelines(tasks)


def _doors(tasks: Iterable[str]) -> list[Door]:
    tasks = list(tasks)
    unknown = sorted(set(tasks) - set(DOORS))
    if unknown:
        raise ValueError(f"No pipeline of this package serves {unknown}; there are {sorted(DOORS)}.")
    return [DOORS[task] for task in tasks]
