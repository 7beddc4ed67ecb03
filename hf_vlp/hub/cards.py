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
}


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
        languages: codes of the languages it writes; by default those of the architecture's card data.

    Raises ValueError for a model of an architecture without card data, and for a figure that is not a number.
    """
    from hf_vlp import __version__

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    has_adapters = plain is not model
    data = load_card_data(plain.config.model_type)
    evaluations = list(evaluations)
    title = title or (Path(model_id).name if model_id else data["name"])
    metadata = dict(data["metadata"])
    tags = list(metadata["tags"])
    if has_adapters:
        tags.append("lora")
        origin = next(iter(model.peft_config.values())).base_model_name_or_path
        base_models = base_models or ([origin] if origin else [])
    results = _make_results(evaluations, metadata["pipeline_tag"], data["task_name"])
    measured = [result.metric_type for result in results]
    card_data = ModelCardData(
        model_name=title,
        license=metadata["license"],
        language=list(languages or metadata["language"]),
        library_name="peft" if has_adapters else metadata["library_name"],
        pipeline_tag=metadata["pipeline_tag"],
        tags=tags,
        base_model=list(base_models) or None,
        datasets=list(datasets) or None,
        metrics=list(dict.fromkeys(measured or metadata["metrics"])),
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
    facts.append(f"Choices: {', '.join(f'`{name}={getattr(plain.config, name)!r}`' for name in data['choices'])}")
    paper = data["paper"]
    return ModelCard.from_template(
        card_data,
        template_path=str(_CARDS / "template.md"),
        title=title,
        summary=data["summary"].strip(),
        paper_link=f"{data['name']}, [{paper['title']}]({paper['url']}) ({paper['year']})",
        size=_describe_size(model),
        licence_text=metadata["license"],
        facts=facts,
        description=description.strip(),
        model_id=model_id or PLACEHOLDER_ID,
        evaluation=_render_evaluations(evaluations),
        paper_results=_render_paper_results(data, plain.config, evaluations),
        training=_render_training(training),
        differences=_bullets(data["differences"]),
        intended_use=data["intended_use"].strip(),
        limits=_bullets(data["limits"]),
        citation=data["citation"].strip(),
    )


def _make_results(evaluations: list[Evaluation], task_type: str, task_name: str) -> list[EvalResult]:
    """The measured figures in the form of the Hub's `model-index`; those with shuffled pictures are no results."""
    return [
        EvalResult(
            task_type=task_type,
            task_name=task_name,
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
        "The last column is the same model shown another picture of the split: what it scores without looking. CIDEr "
        "and BLEU are given as they are computed; papers multiply them by 100.",
    ]
    protocols = dict.fromkeys(evaluation.protocol for evaluation in evaluations if evaluation.protocol)
    if protocols:
        parts.append(f"Protocol: {'; '.join(protocols)}.")
    return "\n\n".join(parts)


def _render_paper_results(data: dict, config, evaluations: list[Evaluation]) -> str:
    """The paper's numbers, with this checkpoint's own on the same data in the last row."""
    results = data["paper_results"]
    variant = next(
        (
            entry["row"]
            for entry in data["paper_rows"]
            if all(getattr(config, field) == value for field, value in entry["when"].items())
        ),
        None,
    )
    rows = [
        [f"{name} (paper{', this variant' if name == variant else ''})", *map(str, values)]
        for name, values in results["rows"].items()
    ]
    coco = next((entry for entry in evaluations if "coco" in entry.dataset.lower() and entry.split == "test"), None)
    own = {metric_name(key): value for key, value in coco.metrics.items()} if coco else {}
    if "CIDEr-D" in own:
        own["CIDEr"] = own["CIDEr-D"]  # the evaluation server's "CIDEr" is CIDEr-D
    rows.append(
        [
            "**this checkpoint**",
            *(f"{100 * own[name]:.1f}" if name in own else NOT_MEASURED for name in results["metrics"]),
        ]
    )
    return (
        f"For comparison, the numbers of the paper (times 100) on {results['dataset']}. They are **not** of this "
        f"checkpoint:\n\n{_table(['model', *results['metrics']], rows)}"
    )


def _render_training(training: Mapping[str, Any] | None) -> str:
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
    "NOT_MEASURED",
    "PLACEHOLDER_ID",
    "Evaluation",
    "format_count",
    "load_card_data",
    "make_card",
    "metric_name",
]
