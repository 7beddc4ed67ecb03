"""Loading of models for use: what a checkpoint lacks is an error, where transformers fills it with random values."""

from typing import Any

from hf_vlp.tasks import TASKS, Task, task_of_class


def load_complete(auto_class: str, model_id: str, *, device: str | None = None) -> Any:
    """A model in evaluation mode, on an accelerator where there is one.

    Args:
        auto_class: name of an Auto class, such as `"AutoModelForVisualQuestionAnswering"`.
        model_id: folder or Hub id, of a model or of adapters.
        device: `cpu`, `cuda:1`, ...

    Raises ValueError when the checkpoint has no weights for a part of the model, as for the head of another task;
    OSError or ValueError when there is no such model, or none of this kind.
    """
    import transformers
    from accelerate import PartialState

    import hf_vlp  # noqa: F401 - registers the architectures

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is missing is told below, and once
    try:
        model, report = getattr(transformers, auto_class).from_pretrained(model_id, output_loading_info=True)
    finally:
        transformers.logging.set_verbosity(level)
    if missing := sorted({name.rsplit(".", 1)[0] for name in report["missing_keys"]}):
        listed = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        saved = (getattr(model.config, "architectures", None) or ["another model"])[0]
        raise ValueError(
            f"{model_id} cannot be used as {type(model).__name__}: it has no weights for {listed}. It holds {saved};"
            " fine-tune that for the task first, or name another model."
        )
    return model.to(device or PartialState().device).eval()


def load_model_and_processor(task: Task, model_id: str, *, device: str | None = None) -> tuple[Any, Any]:
    """A model with the head of a task, and its processor; see `load_complete`."""
    from transformers import AutoProcessor

    return load_complete(task.auto_class, model_id, device=device), AutoProcessor.from_pretrained(model_id)


def find_task(model_id: str) -> Task:
    """The task that a checkpoint was saved for, read from its configuration; captioning for unknown classes.

    Raises ValueError for a base model, which has no head to measure.
    """
    from transformers import AutoConfig
    from transformers.utils import cached_file

    import hf_vlp  # noqa: F401 - registers the architectures
    from hf_vlp.auto import ARCHITECTURES

    if cached_file(model_id, "adapter_config.json", _raise_exceptions_for_missing_entries=False):
        from peft import PeftConfig

        model_id = PeftConfig.from_pretrained(model_id).base_model_name_or_path
    config = AutoConfig.from_pretrained(model_id)
    names = getattr(config, "architectures", None) or [""]
    task = task_of_class(names[0])
    if task is None and config.model_type in ARCHITECTURES:
        raise ValueError(
            f"{model_id} holds {names[0] or 'a model'}, which has no head to measure: name a task with --task, and a "
            "model that was trained for it."
        )
    return task or TASKS["captioning"]


__all__ = ["find_task", "load_complete", "load_model_and_processor"]
