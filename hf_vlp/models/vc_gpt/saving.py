"""Saving of models with everything that a repository needs to load without hf_vlp.

Each folder of `hf_vlp/models` holds this same file: a checkpoint carries the files of one folder.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files


class SelfContainedSaving:
    """Mixin for a `PreTrainedModel`: weights, configuration, the code of the model and of its pipelines."""

    # {auto class: class name} of the model file; all of them are entered, where saving enters the saved one alone.
    _exported_classes: dict[str, str] = {}

    # Copies the code of pipelines into a folder and returns the `custom_pipelines` of its configuration. Set by
    # hf_vlp; None in code that was itself loaded from a repository.
    _export_pipelines: Callable[[Path], dict] | None = None

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """Save weights, configuration, the code of the model and of its pipelines, so that the folder needs no hf_vlp.

        Everything is written to a staging folder first and then moved over file by file: an interrupted save or a full
        disk leaves what was there before. Weights of the same variant that an earlier save left are removed, when the
        model itself is saved and not its adapters. Arguments are those of `PreTrainedModel.save_pretrained`; weights
        keep their in-memory names (`save_original_format=False`), without which Trainer cannot resume a nested tower
        of the library.
        """
        if not is_main_process:
            return
        target = Path(save_directory)
        kwargs.setdefault("save_original_format", False)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", target.resolve().name)
        target.mkdir(parents=True, exist_ok=True)
        # Of the class that names them: a user's own subclass lives elsewhere.
        defining_class = next(base for base in type(self).__mro__ if "_exported_classes" in vars(base))
        file_name = defining_class.__module__.split(".")[-1]
        export_fields = {
            "auto_map": {auto_class: f"{file_name}.{name}" for auto_class, name in self._exported_classes.items()}
        }
        with tempfile.TemporaryDirectory(dir=target, prefix=".saving-") as staging:
            export_pipelines = self._export_pipelines or self._carry_pipelines
            export_fields["custom_pipelines"] = export_pipelines(Path(staging))
            before = vars(self.config).copy()
            vars(self.config).update(export_fields)
            try:
                super().save_pretrained(staging, **kwargs)
            finally:
                for name in export_fields:
                    vars(self.config).pop(name, None)
                    if name in before:
                        vars(self.config)[name] = before[name]
            new_files = sorted(Path(staging).iterdir())
            for file in new_files:
                os.replace(file, target / file.name)
            new_names = {file.name for file in new_files}
            variant = rf"\.{re.escape(kwargs['variant'])}" if kwargs.get("variant") else ""
            weights = re.compile(
                rf"model{variant}(-\d{{5}}-of-\d{{5}})?\.safetensors|model\.safetensors\.index{variant}\.json"
            )
            # A single file left from an earlier save would win over new shards. Adapters replace no model.
            outdated = {file.name for file in target.iterdir() if weights.fullmatch(file.name)} - new_names
            for name in outdated if any(map(weights.fullmatch, new_names)) else ():
                (target / name).unlink()

    def _carry_pipelines(self, directory: Path) -> dict:
        """Copy the code of pipelines from the folder that the model was loaded from, and return its entries.

        For models whose code came from a repository. Entries that name a repository ("id--module.Class") stay valid;
        others whose file is gone are left out.
        """
        carried = {}
        for task, entry in (getattr(self.config, "custom_pipelines", None) or {}).items():
            if "--" not in entry["impl"]:
                source = Path(self.config._name_or_path) / f"{entry['impl'].split('.')[0]}.py"
                if not source.is_file():
                    continue
                for file in (source, *get_relative_import_files(source)):
                    shutil.copyfile(file, directory / Path(file).name)
            carried[task] = entry
        return carried


__all__ = ["SelfContainedSaving"]
