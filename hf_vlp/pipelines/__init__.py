"""Pipelines of this package, and `pipeline`, which builds them. Imports neither torch nor transformers by itself."""

from importlib import import_module

from hf_vlp.pipelines import doors

_CLASSES = {
    "ImageToTextPipeline": "hf_vlp.pipelines.image_to_text",
    "VisualQuestionAnsweringPipeline": "hf_vlp.pipelines.visual_question_answering",
}
__all__ = [*_CLASSES, "doors", "pipeline"]


def pipeline(task=None, model=None, **kwargs):
    """`transformers.pipeline` plus the tasks of this package, whether or not `doors` are installed.

    For these tasks (`doors.DOORS`) the class is always that of this package, also with `HF_VLP_PIPELINES=0`, and no
    `trust_remote_code` is asked for on its account; `pipeline_class=` overrules it. Any other task goes to
    transformers as it is.

    ```python
    >>> import hf_vlp

    >>> hf_vlp.pipeline("image-to-text", model="Salesforce/blip-image-captioning-base")("parrots.png")
    [{'generated_text': 'two parrots sitting on a branch'}]
    ```
    """
    import transformers

    door = doors.find_door(task)
    if door is not None and kwargs.get("pipeline_class") is None:
        kwargs["pipeline_class"] = door.pipeline_class()
    with doors.opened():
        return transformers.pipeline(task, model, **kwargs)


def __getattr__(name):
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
