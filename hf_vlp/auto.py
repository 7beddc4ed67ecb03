"""One table of all architectures, and their registration with the Auto classes of transformers.

The mappings behind the Auto classes keep registered classes in a dictionary. Ours is put in its place and fills itself
when it is first read: `import hf_vlp` therefore imports neither torch nor a model file. (Registering the classes right
after transformers' own modules are imported would be simpler, but these are often imported in the middle of a model
file that ours needs in turn.)
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .import_hooks import after_import


@dataclass(frozen=True)
class Architecture:
    """Where the classes of an architecture live, and which Auto class finds which of them.

    package: folder under `hf_vlp.models`. module: its files are `{configuration,modeling}_<module>.py` and
        `processing_<package>.py`.
    config, processor: names of these classes; `tokenizer` is one of transformers. Without a processor and a tokenizer
        the image processor is all that a model needs.
    models: {name of the auto class: name of the model class}.
    image_processors: {back end: class of transformers or of the processing file}, as `AutoImageProcessor` takes them.
    image_processor_options: settings of a new image processor that differ from its defaults.
    pipelines: tasks of the pipelines whose code goes into each checkpoint.
    """

    package: str
    module: str
    config: str
    processor: str | None
    tokenizer: str | None
    models: dict[str, str]
    image_processors: dict[str, str] = field(default_factory=dict)
    image_processor_options: dict[str, Any] = field(default_factory=dict)
    pipelines: tuple[str, ...] = ()

    def get(self, part: str, name: str) -> type:
        """The class `name` of this architecture; `part` is configuration, modeling or processing."""
        suffix = self.package if part == "processing" else self.module
        return getattr(import_module(f"hf_vlp.models.{self.package}.{part}_{suffix}"), name)

    def get_config(self) -> type:
        return self.get("configuration", self.config)

    def get_image_processor(self, backend: str) -> type:
        """The image processor of a back end: "pil" or "torchvision"."""
        import transformers

        name = self.image_processors[backend]
        return getattr(transformers, name) if hasattr(transformers, name) else self.get("processing", name)


ARCHITECTURES = {
    "vc_gpt": Architecture(
        package="vc_gpt",
        module="vc_gpt",
        config="VcGptConfig",
        processor="VcGptProcessor",
        tokenizer="GPT2Tokenizer",
        models={"AutoModel": "VcGptModel", "AutoModelForImageTextToText": "VcGptForConditionalGeneration"},
        image_processors={"pil": "CLIPImageProcessorPil", "torchvision": "CLIPImageProcessor"},
        pipelines=("image-to-text",),
    ),
    "vl_beit": Architecture(
        package="mome",
        module="vl_beit",
        config="VlBeitConfig",
        processor="MomeProcessor",
        tokenizer="BertTokenizer",
        models={
            "AutoModel": "VlBeitModel",
            "AutoModelForPreTraining": "VlBeitForPreTraining",
            "AutoModelForMaskedImageModeling": "VlBeitForMaskedImageModeling",
            "AutoModelForMaskedLM": "VlBeitForMaskedLM",
            "AutoModelForVisualQuestionAnswering": "VlBeitForVisualQuestionAnswering",
            "AutoModelForSequenceClassification": "VlBeitForImagesAndTextClassification",
            "AutoModelForZeroShotImageClassification": "VlBeitForImageTextRetrieval",
            "AutoModelForImageClassification": "VlBeitForImageClassification",
            "AutoModelForSemanticSegmentation": "VlBeitForSemanticSegmentation",
        },
        image_processors={"pil": "MomeImageProcessorPil", "torchvision": "MomeImageProcessor"},
        pipelines=("visual-question-answering",),
    ),
    "vlmo": Architecture(
        package="mome",
        module="vlmo",
        config="VlmoConfig",
        processor="MomeProcessor",
        tokenizer="BertTokenizer",
        models={
            "AutoModel": "VlmoModel",
            "AutoModelForPreTraining": "VlmoForPreTraining",
            "AutoModelForMaskedImageModeling": "VlmoForMaskedImageModeling",
            "AutoModelForMaskedLM": "VlmoForMaskedLM",
            "AutoModelForVisualQuestionAnswering": "VlmoForVisualQuestionAnswering",
            # The nearest there is for NLVR2: a label for a sentence, read with two pictures.
            "AutoModelForSequenceClassification": "VlmoForImagesAndTextClassification",
            "AutoModelForZeroShotImageClassification": "VlmoForImageTextRetrieval",
            "AutoModelForImageClassification": "VlmoForImageClassification",
        },
        image_processors={"pil": "MomeImageProcessorPil", "torchvision": "MomeImageProcessor"},
        pipelines=("visual-question-answering",),
    ),
    "vl_beit_vqkd": Architecture(
        package="mome",
        module="vl_beit_vqkd",
        config="VlBeitVqkdConfig",
        processor=None,
        tokenizer=None,
        models={"AutoModel": "VlBeitVqkdTokenizer", "AutoModelForPreTraining": "VlBeitVqkdForTraining"},
        image_processors={"pil": "MomeImageProcessorPil", "torchvision": "MomeImageProcessor"},
        image_processor_options={"do_normalize": False},  # pixels in [0, 1]
    ),
}


class LazyEntries(dict):
    """Entries of an Auto mapping; `make_entries` gives ours when they are first read."""

    def __init__(self, entries: dict, make_entries: Callable[[], dict]):
        super().__init__(entries)
        self._make_entries = make_entries

    def _fill(self):
        make_entries, self._make_entries = self._make_entries, None
        if make_entries is None:
            return
        try:
            entries = make_entries()
        except (ImportError, AttributeError):
            # Read while transformers is still importing a module that ours needs: try again at the next reading.
            if not _transformers_is_importing():
                raise
            self._make_entries = make_entries
        else:
            for key, value in entries.items():
                self.setdefault(key, value)

    def __contains__(self, key):
        self._fill()
        return super().__contains__(key)

    def __getitem__(self, key):
        self._fill()
        return super().__getitem__(key)

    def __iter__(self):
        self._fill()
        return super().__iter__()

    def __len__(self):
        self._fill()
        return super().__len__()

    def keys(self):
        self._fill()
        return super().keys()

    def values(self):
        self._fill()
        return super().values()

    def items(self):
        self._fill()
        return super().items()


def _transformers_is_importing() -> bool:
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("transformers.")]
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in modules)


def _add_lazily(mapping, make_entries: Callable[[], dict]) -> None:
    if not isinstance(mapping._extra_content, LazyEntries):
        mapping._extra_content = LazyEntries(mapping._extra_content, make_entries)


def _register_configs():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    _add_lazily(CONFIG_MAPPING, lambda: {name: entry.get_config() for name, entry in ARCHITECTURES.items()})


def _register_models():
    from transformers.models.auto import modeling_auto

    for auto_class in {name for entry in ARCHITECTURES.values() for name in entry.models}:

        def make_entries(auto_class=auto_class):
            return {
                entry.get_config(): entry.get("modeling", entry.models[auto_class])
                for entry in ARCHITECTURES.values()
                if auto_class in entry.models
            }

        _add_lazily(getattr(modeling_auto, auto_class)._model_mapping, make_entries)


def _register_processors():
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    _add_lazily(
        PROCESSOR_MAPPING,
        lambda: {
            entry.get_config(): entry.get("processing", entry.processor)
            for entry in ARCHITECTURES.values()
            if entry.processor
        },
    )


def _register_image_processors():
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    def make_entries():
        from transformers.utils import is_torchvision_available

        return {
            entry.get_config(): {
                backend: entry.get_image_processor(backend)
                for backend in entry.image_processors
                if backend != "torchvision" or is_torchvision_available()
            }
            for entry in ARCHITECTURES.values()
            if entry.image_processors
        }

    _add_lazily(IMAGE_PROCESSOR_MAPPING, make_entries)


def _register_tokenizers():
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

    def make_entries():
        import transformers

        return {
            entry.get_config(): getattr(transformers, entry.tokenizer)
            for entry in ARCHITECTURES.values()
            if entry.tokenizer
        }

    _add_lazily(TOKENIZER_MAPPING, make_entries)


def _export_pipelines_with(entry: Architecture):
    def export_pipelines(cls, directory):
        """The pipelines that run this very class: another head's would start from random weights."""
        from hf_vlp.pipelines.doors import DOORS
        from hf_vlp.pipelines.export import export_pipeline_files

        tasks = [
            task
            for task in entry.pipelines
            if cls.__name__ in (entry.models.get(name) for name in DOORS[task].auto_classes)
        ]
        return export_pipeline_files(directory, tasks=tasks)

    base_class = entry.get("modeling", f"{entry.config.removesuffix('Config')}PreTrainedModel")
    base_class._export_pipelines = classmethod(export_pipelines)


def _register_lora_targets():
    from hf_vlp.adapters import register_lora_targets

    register_lora_targets()


def register() -> None:
    """Make every architecture known to the Auto classes, whether or not transformers has imported them yet."""
    auto = "transformers.models.auto"
    after_import(f"{auto}.configuration_auto", _register_configs)
    after_import(f"{auto}.modeling_auto", _register_models)
    after_import(f"{auto}.processing_auto", _register_processors)
    after_import(f"{auto}.image_processing_auto", _register_image_processors)
    after_import(f"{auto}.tokenization_auto", _register_tokenizers)
    after_import("peft", _register_lora_targets)
    for entry in ARCHITECTURES.values():
        modeling = f"hf_vlp.models.{entry.package}.modeling_{entry.module}"
        after_import(modeling, lambda entry=entry: _export_pipelines_with(entry))


__all__ = ["ARCHITECTURES", "Architecture", "register"]
