"""Opens `transformers.pipeline` for tasks that transformers 5 removed.

After `import hf_vlp`, `pipeline("image-to-text", model=...)` and `pipeline("visual-question-answering", model=...)`
build our pipelines, for every model, native ones included, and ask for no `trust_remote_code`. transformers rewrites
or refuses these names before it looks at its registry (`register_pipeline` alone has no effect on them), so three
things are done to the module `transformers.pipelines`, and to nothing else:

1. the task is entered in its registry;
2. `_resolve_deprecated_task` lets the names in `DOORS` through;
3. the `AutoConfig` it reads configs with hides `custom_pipelines` entries that name a pipeline of this package: a
   repository exported with pipeline code then uses the installed class instead of asking to run the copy.

A task that transformers still knows, or that somebody has registered before, is left alone, and so are all others.
Nothing is imported for it: when `transformers.pipelines` (3 s with torch) has not been imported yet, the doors
are opened at the end of its import. `HF_VLP_PIPELINES=0` in the environment keeps them closed at `import hf_vlp`,
`uninstall()` closes them and puts everything back.
"""

import contextlib
import importlib
import os
import sys
import threading
from dataclasses import dataclass

from hf_vlp.import_hooks import after_import

TARGET = "transformers.pipelines"


@dataclass(frozen=True)
class Door:
    """A task, the class that serves it, the auto classes that load its models, the model used when none is named."""

    task: str
    pipeline: str
    auto_classes: tuple[str, ...]
    default_model: tuple[str, str]
    aliases: tuple[str, ...] = ()

    @property
    def exported_name(self) -> str:
        """`file.Class`, as `custom_pipelines` of an exported repository has it."""
        return ".".join(self.pipeline.split(".")[-2:])

    def pipeline_class(self) -> type:
        module, name = self.pipeline.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)


# The default models are those of transformers 4.57.
_ALL = (
    Door(
        "image-to-text",
        "hf_vlp.pipelines.image_to_text.ImageToTextPipeline",
        ("AutoModelForImageTextToText",),
        ("ydshieh/vit-gpt2-coco-en", "5bebf1e"),
    ),
    Door(
        "visual-question-answering",
        "hf_vlp.pipelines.visual_question_answering.VisualQuestionAnsweringPipeline",
        ("AutoModelForVisualQuestionAnswering",),
        ("dandelin/vilt-b32-finetuned-vqa", "d0a1f6a"),
        aliases=("vqa",),
    ),
)
DOORS: dict[str, Door] = {door.task: door for door in _ALL}


def find_door(task: str | None) -> Door | None:
    """The door for a task or one of its aliases, `None` for the tasks of others."""
    return next((door for door in DOORS.values() if task == door.task or task in door.aliases), None)


def enabled() -> bool:
    """Whether the environment lets `import hf_vlp` open the doors (`HF_VLP_PIPELINES`, on by default)."""
    value = os.environ.get("HF_VLP_PIPELINES", "1").strip().lower()
    if value in ("1", "true", "yes", "on", ""):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"HF_VLP_PIPELINES={value!r}: expected 1 or 0 (or true, false, yes, no, on, off).")


def install() -> None:
    """Open the doors, now or, if `transformers.pipelines` is not imported yet, when it is. Twice is once."""
    global _wanted
    with _lock:
        _wanted = True
    if TARGET in sys.modules:
        # Returns at once, unless another thread is in the middle of the import: then it waits for its end. Not under
        # our lock, which that thread needs if it opens the doors itself.
        importlib.import_module(TARGET)
    after_import(TARGET, _open)


def uninstall() -> None:
    """Close the doors and put back what was there."""
    global _wanted
    with _lock:
        _wanted = False
        _close()


@contextlib.contextmanager
def opened():
    """Doors open inside the `with` block, whether installed or not. Imports `transformers.pipelines`."""
    global _visitors
    importlib.import_module(TARGET)
    with _lock:
        _visitors += 1
        _open()
    try:
        yield
    finally:
        with _lock:
            _visitors -= 1
            _close()


_lock = threading.RLock()
_wanted = False
_visitors = 0
_opened: "_Opened | None" = None


def _open() -> None:
    """Open the doors if anybody still wants them open and they are not."""
    global _opened
    with _lock:
        module = sys.modules[TARGET]
        if (_wanted or _visitors) and (_opened is None or _opened.module is not module):
            _opened = _Opened(module)


def _close() -> None:
    """Close the doors if nobody wants them open."""
    global _opened
    if _opened is not None and not (_wanted or _visitors):
        _opened.undo()
        _opened = None


class _Opened:
    """What was done to the module, and how to undo it.

    Wrappers ask `self.tasks` at each call: should somebody have wrapped them in turn, so that they cannot be taken out
    any more, they become transparent after `undo`.
    """

    def __init__(self, module):
        self.module = module
        self.tasks: dict[str, Door] = {}
        self.entries: dict[str, dict] = {}
        self.aliases: dict[str, str] = {}
        self.replaced: dict[str, tuple] = {}
        registry = getattr(module, "PIPELINE_REGISTRY", None)
        if registry is None:
            return
        known = set(registry.supported_tasks) | set(registry.task_aliases)
        for door in DOORS.values():
            if door.task in known:
                continue
            self._register(door, registry)
        if self.tasks:
            if hasattr(module, "_resolve_deprecated_task"):
                self._replace("_resolve_deprecated_task", self._let_through(module._resolve_deprecated_task))
            if hasattr(module, "AutoConfig"):
                self._replace("AutoConfig", self._config_reader(module.AutoConfig))

    def _register(self, door: Door, registry) -> None:
        transformers = importlib.import_module("transformers")
        lazy = hasattr(self.module, "_resolve_impl")  # otherwise only classes are understood
        self.entries[door.task] = registry.supported_tasks[door.task] = {
            "impl": door.pipeline if lazy else door.pipeline_class(),
            "pt": tuple(getattr(transformers, name) for name in door.auto_classes),
            "default": {"model": door.default_model},
            "type": "multimodal",
        }
        self.tasks[door.task] = door
        for alias in door.aliases:
            if alias not in registry.supported_tasks and alias not in registry.task_aliases:
                self.aliases[alias] = registry.task_aliases[alias] = door.task
                self.tasks[alias] = door

    def _replace(self, name: str, value) -> None:
        self.replaced[name] = (getattr(self.module, name), value)
        setattr(self.module, name, value)

    def _let_through(self, resolve):
        def _resolve_deprecated_task(task, *args, **kwargs):
            return task if task in self.tasks else resolve(task, *args, **kwargs)

        return _resolve_deprecated_task

    def _config_reader(self, auto_config):
        state = self

        class AutoConfig(auto_config):
            @classmethod
            def from_pretrained(cls, *args, **kwargs):
                config = auto_config.from_pretrained(*args, **kwargs)
                listed = getattr(config, "custom_pipelines", None)
                if isinstance(listed, dict) and any(state.serves(task, listed) for task in listed):
                    config.custom_pipelines = _Listed(listed, state)
                return config

        AutoConfig.__doc__ = auto_config.__doc__
        return AutoConfig

    def serves(self, task: str, listed: dict) -> bool:
        """Whether the entry of a repository is a copy of the pipeline that is installed here."""
        door, entry = self.tasks.get(task), listed.get(task)
        # On the Hub the repository's name stands in front: "user/name--image_to_text.ImageToTextPipeline".
        name = entry.get("impl") if isinstance(entry, dict) else None
        return door is not None and isinstance(name, str) and name.split("--")[-1] == door.exported_name

    def undo(self) -> None:
        registry = getattr(self.module, "PIPELINE_REGISTRY", None)
        for task, entry in self.entries.items():
            # Somebody may have registered their own in the meantime: that one is not ours to remove.
            if registry.supported_tasks.get(task) is entry:
                del registry.supported_tasks[task]
        for alias, task in self.aliases.items():
            if registry.task_aliases.get(alias) == task:
                del registry.task_aliases[alias]
        for name, (before, ours) in self.replaced.items():
            if getattr(self.module, name) is ours:
                setattr(self.module, name, before)
        self.tasks = {}


class _Listed(dict):
    """`custom_pipelines` that still lists all its tasks, but denies having those that are served here.

    `pipeline` tests `task in custom_pipelines` to decide whether to run the repository's code, and reads the keys to
    find out the task when none is given.
    """

    def __init__(self, listed: dict, opened: _Opened):
        super().__init__(listed)
        self._opened = opened

    def __contains__(self, task) -> bool:
        return super().__contains__(task) and not self._opened.serves(task, self)

    def __reduce__(self):
        # Copies and pickles are plain dicts.
        return dict, (dict(self),)
