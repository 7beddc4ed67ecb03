"""Loading of models for use: what a checkpoint lacks is an error, where transformers fills it with random values."""

from typing import Any


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


__all__ = ["load_complete"]
