"""Model cards, made from a template, what is known about an architecture, and what was measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

_CARDS = Path(__file__).parent / "model_cards"
NOT_MEASURED = "not measured"
# Stands in the examples for an id that is not known yet; `push_repository` fills it in.
PLACEHOLDER_ID = "path/or/id"

# Key in a dictionary of metrics -> (metric of the Hub, name on the card).
_METRIC_NAMES = {
    "bleu_1": ("bleu", "BLEU-1"),
    "bleu_2": ("bleu", "BLEU-2"),
    "bleu_3": ("bleu", "BLEU-3"),
    "bleu_4": ("bleu", "BLEU-4"),
    "rouge_l": ("rouge", "ROUGE-L"),
    "cider": ("cider", "CIDEr"),
    "cider_d": ("cider", "CIDEr-D"),
    "meteor": ("meteor", "METEOR"),
    "spice": ("spice", "SPICE"),
    "exact_match": ("exact_match", "Exact match"),
    "vqa_accuracy": ("accuracy", "VQA accuracy"),
    "accuracy": ("accuracy", "Accuracy"),
    "consistency": ("accuracy", "Consistency"),
    "mlm_accuracy": ("accuracy", "Accuracy on masked words"),
    "mim_accuracy": ("accuracy", "Accuracy on hidden patches"),
    "mvlm_text_accuracy": ("accuracy", "Accuracy on masked words of pairs"),
    "mvlm_image_accuracy": ("accuracy", "Accuracy on hidden patches of pairs"),
    "masked_accuracy": ("accuracy", "Accuracy on masked words and patches"),
    "itm_accuracy": ("accuracy", "Accuracy of matching"),
    "rsum": ("recall", "Sum of recalls, in per cent"),
    "mean_iou": ("mean_iou", "Mean IoU"),
    "pixel_accuracy": ("accuracy", "Pixel accuracy"),
    "mean_accuracy": ("accuracy", "Mean accuracy of the classes"),
    "explained_variance": ("explained_variance", "Explained variance"),
    "reconstruction_error": ("reconstruction_error", "Reconstruction error"),
    "codes_used": ("codes_used", "Codes used"),
    "perplexity": ("perplexity", "Perplexity of the codes"),
}
for _prefix, _ending in (("", ""), ("reranked_", ", re-ranked")):
    _METRIC_NAMES[f"{_prefix}mean_recall"] = ("recall", f"Mean recall{_ending}")
    for _direction, _name in (("image_to_text", "Image to text"), ("text_to_image", "Text to image")):
        for _k in (1, 5, 10):
            _METRIC_NAMES[f"{_prefix}{_direction}_recall_at_{_k}"] = ("recall", f"{_name} R@{_k}{_ending}")
        for _rank in ("median", "mean"):
            _METRIC_NAMES[f"{_direction}_{_rank}_rank"] = (f"{_rank}_rank", f"{_name} {_rank} rank")


@dataclass(frozen=True)
class CardTask:
    """What the card of a model says of the task that its class does.

    head: end of the name of the model classes; `None` for base models.
    usage: examples, `model_cards/usage/<usage>.md`; also what the data of an architecture calls the task.
    name: of the task, in the metadata.
    pipeline_tag: of the Hub; `None` where none of its tasks is the model's.
    metrics: of the Hub, until something was measured.
    tags: beside those of the architecture.
    """

    head: str | None
    usage: str
    name: str
    pipeline_tag: str | None
    metrics: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


CARD_TASKS = (
    CardTask(
        "ForConditionalGeneration",
        usage="captioning",
        name="Image captioning",
        pipeline_tag="image-to-text",
        metrics=("bleu", "rouge", "cider"),
        tags=("image-captioning",),
    ),
    CardTask(
        "ForVisualQuestionAnswering",
        usage="visual-question-answering",
        name="Visual question answering",
        pipeline_tag="visual-question-answering",
        metrics=("accuracy",),
    ),
    CardTask(
        "ForImagesAndTextClassification",
        usage="image-pairs",
        name="Statements about two pictures",
        pipeline_tag=None,
        metrics=("accuracy",),
        tags=("nlvr2", "visual-reasoning"),
    ),
    CardTask(
        "ForImageTextRetrieval",
        usage="retrieval",
        name="Image-text retrieval",
        pipeline_tag="zero-shot-image-classification",
        metrics=("recall",),
        tags=("image-text-retrieval",),
    ),
    CardTask(
        "ForImageClassification",
        usage="image-classification",
        name="Image classification",
        pipeline_tag="image-classification",
        metrics=("accuracy",),
    ),
    CardTask(
        "ForMaskedLM",
        usage="masked-language",
        name="Masked language modelling",
        pipeline_tag="fill-mask",
        metrics=("accuracy",),
    ),
    CardTask(
        "ForSemanticSegmentation",
        usage="semantic-segmentation",
        name="Semantic segmentation",
        pipeline_tag="image-segmentation",
        metrics=("mean_iou",),
    ),
    CardTask(
        "ForMaskedImageModeling",
        usage="masked-image",
        name="Masked image modelling",
        pipeline_tag=None,
        metrics=("accuracy",),
        tags=("masked-image-modeling",),
    ),
    CardTask(
        "VlBeitForPreTraining",  # before the next: it has no head for retrieval
        usage="joint-pre-training",
        name="Vision-language pre-training by masked prediction",
        pipeline_tag="fill-mask",
        metrics=("accuracy",),
    ),
    CardTask(
        "ForPreTraining",
        usage="pre-training",
        name="Vision-language pre-training",
        pipeline_tag="zero-shot-image-classification",
        metrics=("recall",),
        tags=("image-text-retrieval",),
    ),
    CardTask(
        "ForTraining",
        usage="visual-tokens",
        name="Visual tokens of pictures",
        pipeline_tag=None,
        metrics=("explained_variance",),
    ),
    CardTask(
        None,
        usage="features",
        name="Features of pictures and texts",
        pipeline_tag="image-feature-extraction",
    ),
)


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one split of one data set.

    dataset, split: their names, as a reader knows them.
    metrics: `{"cider_d": 1.21, "exact_match": 0.84}`, in the unit in which `hf_vlp.metrics` returns them.
    shuffled: the same metrics of the same model when each picture was exchanged for another: what it scores without
        looking.
    num_samples: pictures measured; 0 if unknown.
    protocol: how captions were generated and scored, in a few words.
    dataset_id: id of the data set on the Hub, if it has one.
    """

    dataset: str
    split: str
    metrics: Mapping[str, float]
    shuffled: Mapping[str, float] | None = None
    num_samples: int = 0
    protocol: str = ""
    dataset_id: str | None = None

    def __post_init__(self):
        for mapping in (self.metrics, self.shuffled or {}):
            for name, value in mapping.items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise ValueError(
                        f"{name}={value!r} on {self.dataset} ({self.split}) is no measured number. Leave out what was "
                        f"not measured; the card then says so."
                    )


def metric_name(key: str) -> str:
    """`"cider_d"` -> `"CIDEr-D"`; a key that is not known comes back as it is."""
    return _METRIC_NAMES.get(key, ("", key))[1]


@cache
def load_card_data(model_type: str) -> dict[str, Any]:
    """What every card of an architecture says: the content of `model_cards/<model_type>.yaml`."""
    file = _CARDS / f"{model_type}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in _CARDS.glob("*.yaml"))
        raise ValueError(f"There is no card data for models of type {model_type!r}, only for {', '.join(known)}.")
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def published_checkpoints() -> list[str]:
    """Names of the files that authors published and that there is card data for, without their endings."""
    return sorted(path.stem for path in (_CARDS / "published").glob("*.yaml"))


@cache
def load_checkpoint_data(name: str) -> dict[str, Any]:
    """What is known of a published file: its few lines in `model_cards/published`, and what its stage has seen.

    Raises ValueError for a name that is not among `published_checkpoints()`.
    """
    if name not in published_checkpoints():
        raise ValueError(f"{name!r} is no published checkpoint: choose from {', '.join(published_checkpoints())}.")
    own = yaml.safe_load((_CARDS / "published" / f"{name}.yaml").read_text(encoding="utf-8"))
    published = load_card_data(own["model_type"])["published"]
    stage = published["stages"][own["stage"]]
    saw, datasets = [], []
    before = stage
    while before is not None:
        saw.insert(0, before["saw"])
        datasets = [*before["datasets"], *datasets]
        before = published["stages"].get(before.get("after"))
    return {
        **published,
        **own,
        "file": f"{name}.pt",
        "what": stage["what"],
        "command": " ".join([published["command"].format(file=f"{name}.pt"), *stage.get("options", "").split()]),
        "command_inputs": ", ".join(filter(None, [published["command_inputs"], stage.get("inputs")])),
        "columns": stage.get("columns"),
        "saw": "; ".join(saw),
        "datasets": list(dict.fromkeys(datasets)),
    }


def find_card_task(model) -> CardTask:
    """The task of a model class, or of the class that it is derived from; for base models that of the architecture."""
    names = [base.__name__ for base in type(model).__mro__]
    for task in CARD_TASKS:
        if task.head is not None and any(name.endswith(task.head) for name in names):
            return task
    usage = load_card_data(model.config.model_type)["base_model_task"]
    return next(task for task in CARD_TASKS if task.usage == usage)


def make_published_card(name: str, *, model_id: str | None = None) -> ModelCard:
    """The card of a converted published checkpoint, made without its weights."""
    import torch

    from hf_vlp.auto import ARCHITECTURES

    data = load_checkpoint_data(name)
    architecture = ARCHITECTURES[data["model_type"]]
    size = architecture.get("configuration", "PUBLISHED_SIZES")[data["size"]]
    config = architecture.get_config()(**{**size, **data["config"]})
    with torch.device("meta"):
        model = architecture.get("modeling", data["model_class"])(config)
    return make_card(model, checkpoint=name, model_id=model_id)


def make_card(
    model,
    *,
    model_id: str | None = None,
    title: str | None = None,
    description: str = "",
    evaluations: Iterable[Evaluation] = (),
    training: Mapping[str, Any] | None = None,
    base_models: Sequence[str] = (),
    datasets: Sequence[str] = (),
    languages: Sequence[str] | None = None,
    checkpoint: str | None = None,
    converted_from: str | None = None,
) -> ModelCard:
    """The card of a model: `str(card)` is the README.

    Args:
        model: the model it describes, adapters around it or not; sizes are read from it.
        model_id: what the usage examples load: the id on the Hub, or a folder.
        title: heading and name of the model in the metadata; by default the last part of `model_id`.
        description: a paragraph on what is special about this checkpoint.
        evaluations: what was measured. Without any, the card says "not measured".
        training: settings of the run, nested or flat; they become a table.
        base_models, datasets: ids on the Hub that the model started from and was trained on, for the metadata.
        languages: codes of the languages it knows; by default those of the architecture's card data.
        checkpoint: name of the published file that it was converted from, see `published_checkpoints()`; the card then
            tells licence, origin, training and the numbers that its authors report.
        converted_from: name of any other file that weights were taken from, whose licence holds for them.

    Raises ValueError for a model of an architecture without card data, for a checkpoint of another kind than the
    model, and for a figure that is not a number.
    """
    from hf_vlp import __version__

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    has_adapters = plain is not model
    data = load_card_data(plain.config.model_type)
    task = find_card_task(plain)
    published = load_checkpoint_data(checkpoint) if checkpoint else {}
    if published and published["model_class"] not in {base.__name__ for base in type(plain).__mro__}:
        raise ValueError(
            f"{checkpoint} holds a {published['model_class']}, not a {type(plain).__name__}: leave out `checkpoint`, "
            "and name it in `base_models` or in the description if the model started from it."
        )
    evaluations = list(evaluations)
    title = title or (Path(model_id).name if model_id else checkpoint or data["name"])
    metadata, licence_text = dict(data["metadata"]), data["metadata"]["license"]
    if published:
        metadata["license"], licence_text = published["license"], published["licence_text"]
    elif converted_from:
        licence_text = f"that of `{converted_from}` for the weights taken from it; {licence_text} for the code"
        metadata["license"] = "other"
    tags = [*task.tags, *metadata["tags"]]
    if has_adapters:
        tags.append("lora")
        origin = next(iter(model.peft_config.values())).base_model_name_or_path
        base_models = base_models or ([origin] if origin else [])
    results = _make_results(evaluations, task)
    measured = [result.metric_type for result in results]
    card_data = ModelCardData(
        model_name=title,
        license=metadata["license"],
        language=list(languages or metadata["language"]),
        library_name="peft" if has_adapters else metadata["library_name"],
        pipeline_tag=task.pipeline_tag,
        tags=tags,
        base_model=list(base_models) or None,
        datasets=list(datasets or published.get("datasets", ())) or None,
        metrics=list(dict.fromkeys(measured or task.metrics)) or None,
        eval_results=results or None,
    )
    facts = [
        f"Code: every file that model, processor and pipeline need lies in this repository, saved by hf_vlp "
        f"{__version__}"
    ]
    if has_adapters:
        facts = [f"Adapters only: they go on top of `{', '.join(base_models) or 'a base that was not recorded'}`"]
    elif base_models:
        facts.append(f"Started from: {', '.join(base_models)}")
    facts.insert(0, f"Task: {task.name}")
    facts.append(f"Choices: {', '.join(f'`{name}={getattr(plain.config, name)!r}`' for name in data['choices'])}")
    paper = data["paper"]
    usage = (_CARDS / "usage" / f"{task.usage}.md").read_text(encoding="utf-8")
    return ModelCard.from_template(
        card_data,
        template_path=str(_CARDS / "template.md"),
        title=title,
        summary=data["summary"].strip(),
        paper_link=f"{data['name']}, [{paper['title']}]({paper['url']}) ({paper['year']})",
        size=_describe_size(model),
        licence_text=licence_text,
        facts=facts,
        description=description.strip(),
        origin=_render_origin(published),
        usage=usage.strip().replace("{{ model_id }}", model_id or PLACEHOLDER_ID),
        evaluation=_render_evaluations(evaluations),
        paper_results=_render_paper_results(data, task, plain.config, evaluations, published),
        training=_render_training(training, published),
        differences=_bullets(data["differences"]),
        intended_use=data["intended_use"].strip(),
        limits=_bullets([*data["task_limits"].get(task.usage, ()), *data["limits"]]),
        citation=data["citation"].strip(),
    )


def _make_results(evaluations: list[Evaluation], task: CardTask) -> list[EvalResult]:
    """The measured figures in the form of the Hub's `model-index`; those with shuffled pictures are no results."""
    return [
        EvalResult(
            task_type=task.pipeline_tag or task.usage,
            task_name=task.name,
            dataset_type=evaluation.dataset_id or evaluation.dataset,
            dataset_name=f"{evaluation.dataset} ({evaluation.split})",
            dataset_split=evaluation.split,
            metric_type=_METRIC_NAMES.get(key, (key, key))[0],
            metric_name=metric_name(key),
            metric_value=round(float(value), 4),
        )
        for evaluation in evaluations
        for key, value in evaluation.metrics.items()
    ]


def _describe_size(model) -> str:
    """Parameters in all and in each group, tied ones once, adapters apart."""
    from hf_vlp.adapters import parameter_counts  # imports torch, which an upload does without

    sizes = {part: total for part, (total, _) in parameter_counts(model).items()}
    own = {part: size for part, size in sizes.items() if "(adapters)" not in part}
    text = f"{format_count(sum(own.values()))} parameters"
    if len(own) > 1:
        text += f" ({', '.join(f'{part} {format_count(size)}' for part, size in own.items())})"
    adapters = sum(sizes.values()) - sum(own.values())
    return text + (f", and {format_count(adapters)} in adapters" if adapters else "")


def format_count(count: int) -> str:
    """1_234_567 -> `"1.23 M"`."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def _render_origin(published: Mapping[str, Any]) -> str:
    """Where a published checkpoint comes from, and how it was converted."""
    if not published:
        return ""
    file = published["file"]
    return "\n\n".join(
        [
            f"Weights by the authors of the paper: `{file}`, {published['source']}. {published['what']}",
            f"Data that it has seen, by its authors' account: {published['saw']}.",
            "Converted, with every tensor accounted for in a report, by",
            f"```bash\n{published['command']}\n```",
            f"where {published['command_inputs']}.",
        ]
    )


def _render_evaluations(evaluations: list[Evaluation]) -> str:
    if not evaluations:
        return f"On any data set: **{NOT_MEASURED}**."
    rows = []
    for evaluation in evaluations:
        name = f"{evaluation.dataset}, {evaluation.split}"
        if evaluation.num_samples:
            name += f" ({evaluation.num_samples:,} pictures)"
        for key, value in evaluation.metrics.items():
            shuffled = (evaluation.shuffled or {}).get(key)
            rows.append(
                [name, metric_name(key), f"{value:.4f}", NOT_MEASURED if shuffled is None else f"{shuffled:.4f}"]
            )
    parts = [
        _table(["data", "metric", "this checkpoint", "pictures shuffled"], rows),
        "The last column is the same model shown another picture of the split: what it scores without looking. All "
        "are given as they are computed; papers multiply them by 100.",
    ]
    protocols = dict.fromkeys(evaluation.protocol for evaluation in evaluations if evaluation.protocol)
    if protocols:
        parts.append(f"Protocol: {'; '.join(protocols)}.")
    return "\n\n".join(parts)


def _render_paper_results(
    data: dict, task: CardTask, config, evaluations: list[Evaluation], published: Mapping[str, Any]
) -> str:
    """The paper's numbers on this task, or on all if it has none, with this checkpoint's own in the last row."""
    results = data["paper_results"]
    variant = next(
        (
            entry["row"]
            for entry in data["paper_rows"]
            if all(getattr(config, field) == value for field, value in entry["when"].items())
        ),
        None,
    )
    kept = [
        index
        for index, column in enumerate(results["columns"])
        if column["task"] == task.usage and published.get("columns") in (None, column["dataset"])
    ]
    is_of_task = bool(kept)
    kept = kept or list(range(len(results["columns"])))
    rows = []
    for name, values in results["rows"].items():
        source = results["sources"].get(name, "paper")
        label = f"{name} ({source}{', this variant' if name == variant else ''})"
        rows.append([label, *(str(values[index]) for index in kept)])
    columns = [results["columns"][index] for index in kept]
    rows.append(["**this checkpoint**", *(_own_result(column, evaluations) for column in columns)])
    conditions = results["conditions"] + ("" if is_of_task else ", and fine-tuning on each task")
    if published:
        text = (
            f"What its authors report ({results['unit']}), {conditions}. It was **not measured here**: hf_vlp was "
            "written without the published files, and tests that small models of the same layout, converted, give the "
            "outputs of the original code."
        )
    else:
        text = (
            f"For comparison, {results.get('whose', 'the numbers of the paper')} ({results['unit']}), {conditions}. "
            "**Not** measured on this checkpoint:"
        )
    return f"{text}\n\n{_table(['model', *(column['name'] for column in columns)], rows)}"


def _own_result(column: Mapping[str, Any], evaluations: list[Evaluation]) -> str:
    """What this checkpoint was measured at on the data set and split of a column."""
    for evaluation in evaluations:
        if column["dataset"] in evaluation.dataset.lower() and column["split"] == evaluation.split:
            for key in column["metrics"]:
                if key in evaluation.metrics:
                    return f"{100 * evaluation.metrics[key]:.1f}"
    return NOT_MEASURED


def _render_training(training: Mapping[str, Any] | None, published: Mapping[str, Any]) -> str:
    if published and not training:
        table = _table(["setting", "value"], [[name, str(value)] for name, value in published["training"].items()])
        return (
            f"By its authors, started from {published['started_from']}, with the settings of their release:\n\n{table}"
        )
    if not training:
        return "How it was trained was not recorded."
    return _table(["setting", "value"], [[f"`{name}`", value] for name, value in _flatten(training)])


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", f"{value:g}" if isinstance(value, float) else str(value)))
    return rows


def _table(head: list[str], rows: list[list[str]]) -> str:
    escaped = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *escaped])


def _bullets(items: list[str]) -> str:
    return "\n".join(f"* {item.strip()}" for item in items)


__all__ = [
    "CARD_TASKS",
    "NOT_MEASURED",
    "PLACEHOLDER_ID",
    "CardTask",
    "Evaluation",
    "find_card_task",
    "format_count",
    "load_card_data",
    "load_checkpoint_data",
    "make_card",
    "make_published_card",
    "metric_name",
    "published_checkpoints",
]
