"""What models are trained and measured for: one table, read by training, evaluation and the command line.

A new task is an entry here, a collator that makes its batches and a function that measures held-out records. Importing
this module imports neither torch nor a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Task:
    """How one task is trained and measured.

    name: what `task:` in a YAML and `--task` call it.
    head: end of the name of the model classes that do it, `"ForVisualQuestionAnswering"`; used where the architecture
        has no class under `auto_class`.
    family: beginning of the names of these classes, where those of other models do something else.
    auto_class: Auto class of transformers that finds the head, if there is one.
    collator: class that makes batches, as `"module:name"`.
    collator_options: settings of `batches:` that its constructor takes, beside `bad_samples` and `seed`.
    collator_labels: option of its constructor that takes `label2id` of the model's configuration.
    collator_config: options of its constructor that are fields of the model's configuration.
    batches: settings of `batches:` that have another default in this task.
    drop_last: a batch of one record cannot be trained on: the last one of an epoch is left out.
    evaluate: function that measures records and the baselines, as `"module:name"`; called through
        `hf_vlp.evaluation.evaluate_model`.
    score: the metric that stands for the others, higher is better.
    record_type: what a record of the data holds, unless `data.record_type` says otherwise.
    texts: columns of a record with the texts that a tokenizer is trained from; the first that a record has counts.
    labels: where the labels of the head come from: `"answers"` and `"classes"` are read from the training records,
        `"pixel classes"` are `data.label_names` or those of scenes, a tuple names them; `None` for heads without
        labels.
    config: fields of the configuration that the head needs, where the configuration has them.
    """

    name: str
    head: str
    collator: str
    evaluate: str
    score: str
    family: str = ""
    auto_class: str | None = None
    collator_options: tuple[str, ...] = ()
    collator_labels: str | None = None
    collator_config: tuple[str, ...] = ()
    batches: Mapping[str, Any] = field(default_factory=dict)
    drop_last: bool = False
    record_type: str = "captions"
    texts: tuple[str, ...] = ("captions", "text")
    labels: str | tuple[str, ...] | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    def load(self, part: str) -> Any:
        """The object that the field `part` (`"collator"` or `"evaluate"`) names."""
        module, name = getattr(self, part).split(":")
        return getattr(import_module(module), name)


_TEXT_OPTIONS = ("max_length", "pad_to_multiple_of")
_PADDING_OPTIONS = (*_TEXT_OPTIONS, "pad_to_max_length")
_MASKING_OPTIONS = (*_TEXT_OPTIONS, "mask_probability", "whole_word", "mask_budget")
_PATCH_OPTIONS = ("image_mask_ratio", "exact_mask_count", "tokenizer_image_size", "tokenizer_resample", "augment")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="captioning",
            head="ForConditionalGeneration",
            auto_class="AutoModelForImageTextToText",
            collator="hf_vlp.data.collators:CaptionCollator",
            collator_options=(*_TEXT_OPTIONS, "captions_per_image", "augment"),
            evaluate="hf_vlp.evaluation:evaluate_captioning",
            score="cider_d",
        ),
        Task(
            name="pretraining",
            head="ForPreTraining",
            family="Vlmo",
            auto_class="AutoModelForPreTraining",
            collator="hf_vlp.data.task_collators:PreTrainingCollator",
            collator_options=(*_MASKING_OPTIONS, "augment"),
            drop_last=True,
            evaluate="hf_vlp.evaluation_tasks:evaluate_pretraining",
            score="mean_recall",
        ),
        Task(
            # Masked prediction on pairs, texts and pictures in every step.
            name="joint_pretraining",
            head="ForPreTraining",
            family="VlBeit",
            auto_class="AutoModelForPreTraining",
            collator="hf_vlp.data.masked_collators:JointPreTrainingCollator",
            collator_options=(
                *(*_TEXT_OPTIONS, "mask_probability", "whole_word"),
                *("pair_mask_probability", "mask_pair_sides", *_PATCH_OPTIONS, "image_augment", "draw_windows"),
            ),
            collator_config=("window_size",),
            batches={"whole_word": False},
            evaluate="hf_vlp.evaluation_masked:evaluate_joint_pretraining",
            score="masked_accuracy",
            record_type="joint",
        ),
        Task(
            name="masked_image",
            head="ForMaskedImageModeling",
            auto_class="AutoModelForMaskedImageModeling",
            collator="hf_vlp.data.masked_collators:MaskedImageCollator",
            collator_options=_PATCH_OPTIONS,
            collator_config=("window_size",),
            evaluate="hf_vlp.evaluation_masked:evaluate_masked_image",
            score="mim_accuracy",
            record_type="images",
        ),
        Task(
            name="masked_language",
            head="ForMaskedLM",
            auto_class="AutoModelForMaskedLM",
            collator="hf_vlp.data.task_collators:MaskedLanguageCollator",
            collator_options=(*_MASKING_OPTIONS, "draw_windows"),
            evaluate="hf_vlp.evaluation_tasks:evaluate_masked_language",
            score="mlm_accuracy",
            record_type="texts",
        ),
        Task(
            name="visual_question_answering",
            head="ForVisualQuestionAnswering",
            auto_class="AutoModelForVisualQuestionAnswering",
            collator="hf_vlp.data.task_collators:QuestionCollator",
            collator_options=(*_PADDING_OPTIONS, "normalize_answers", "augment"),
            collator_labels="vocabulary",
            evaluate="hf_vlp.evaluation_tasks:evaluate_question_answering",
            score="exact_match",
            record_type="questions",
            texts=("question",),
            labels="answers",
        ),
        Task(
            name="images_and_text_classification",
            head="ForImagesAndTextClassification",
            auto_class="AutoModelForSequenceClassification",  # the nearest there is
            collator="hf_vlp.data.task_collators:PairImagesCollator",
            collator_options=(*_PADDING_OPTIONS, "augment"),
            collator_labels="label2id",
            evaluate="hf_vlp.evaluation_tasks:evaluate_statements",
            score="accuracy",
            record_type="statements",
            texts=("statement", "sentence", "text"),
            labels=("False", "True"),
            config={"type_vocab_size": 3},
        ),
        Task(
            # Statements about one picture, such as NLVR and visual entailment, by the head for questions.
            name="image_and_text_classification",
            head="ForVisualQuestionAnswering",
            auto_class="AutoModelForVisualQuestionAnswering",
            collator="hf_vlp.pretraining.labels:StatementCollator",
            collator_options=(*_PADDING_OPTIONS, "augment"),
            collator_labels="label2id",
            evaluate="hf_vlp.evaluation_tasks:evaluate_statements",
            score="accuracy",
            record_type="statements",
            texts=("statement", "sentence", "text"),
            labels="classes",
        ),
        Task(
            name="image_text_retrieval",
            head="ForImageTextRetrieval",
            auto_class="AutoModelForZeroShotImageClassification",
            collator="hf_vlp.data.task_collators:ImageTextCollator",
            collator_options=(*_PADDING_OPTIONS, "augment"),
            evaluate="hf_vlp.evaluation_tasks:evaluate_retrieval",
            score="mean_recall",
        ),
        Task(
            name="image_classification",
            head="ForImageClassification",
            auto_class="AutoModelForImageClassification",
            collator="hf_vlp.pretraining.labels:LabelCollator",
            collator_options=("augment", "mixup", "cutmix", "label_smoothing"),
            collator_labels="label2id",
            evaluate="hf_vlp.evaluation_tasks:evaluate_image_classification",
            score="accuracy",
            record_type="labels",
            labels="classes",
        ),
        Task(
            # The codes whose numbers masked image modelling predicts.
            name="visual_tokenizer",
            head="ForTraining",
            auto_class="AutoModelForPreTraining",
            collator="hf_vlp.pretraining.visual_tokens:PictureCollator",
            collator_options=("augment",),
            evaluate="hf_vlp.pretraining.visual_tokens:evaluate_visual_tokenizer",
            score="explained_variance",
            record_type="images",
        ),
        Task(
            name="semantic_segmentation",
            head="ForSemanticSegmentation",
            auto_class="AutoModelForSemanticSegmentation",
            collator="hf_vlp.data.segmentation:SegmentationCollator",
            collator_options=("augment",),
            collator_labels="label2id",
            collator_config=("semantic_loss_ignore_index",),
            evaluate="hf_vlp.evaluation_segmentation:evaluate_segmentation",
            score="mean_iou",
            record_type="segmentation",
            labels="pixel classes",
        ),
    )
}


def get_task(task: "str | Task") -> Task:
    """The entry of the table; ValueError names the tasks that exist."""
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        raise ValueError(f"task={task!r} is not one of {', '.join(TASKS)}.")
    return TASKS[task]


def task_of_class(class_name: str) -> Task | None:
    """The task that a model class is for, by the end of its name; `None` for one without a head that is known."""
    return next(
        (task for task in TASKS.values() if class_name.endswith(task.head) and class_name.startswith(task.family)),
        None,
    )


__all__ = ["TASKS", "Task", "get_task", "task_of_class"]
