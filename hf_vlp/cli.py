"""The command line: `hf-vlp COMMAND`, or `python -m hf_vlp.cli COMMAND`. Each command is a thin call into a function.

Everything heavy is imported inside the commands, so that `hf-vlp --help` answers at once. Wrong input is told in one
line on stderr, with exit code 2; `hf-vlp --debug COMMAND` shows where it was found.
"""

import json
import os
import sys
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from hf_vlp.tasks import TASKS

# Exit codes: a picture that could not be captioned; wrong input, as for wrong options.
FAILED, WRONG_INPUT = 1, 2


class _Group(TyperGroup):
    """Tells errors of the caller in one line."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError, ImportError) as error:
            if isinstance(error, BrokenPipeError):  # `hf-vlp caption ... | head` has read enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(FAILED) from None
            if ctx.params.get("debug"):
                raise
            typer.echo(f"Error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
            raise typer.Exit(WRONG_INPUT) from None


app = typer.Typer(
    cls=_Group,
    name="hf-vlp",
    help="Vision-language models: train, evaluate, caption, share. Each command has an example under --help.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
_TAKES_SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


Task = Enum("Task", {name: name for name in TASKS}, type=str)  # what a model can be evaluated at


class Query(str, Enum):
    """What candidates are found for."""

    texts = "texts"
    images = "images"


def _show_version(wanted: bool):
    if wanted:
        from hf_vlp import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
):
    """Options before the command."""


def _hide_loading_bars():
    """Results only: transformers shows a bar for each set of weights it loads."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _echo_json(data: Any):
    typer.echo(json.dumps(data, ensure_ascii=False, indent=1))


@app.command(epilog="\b\nExample: hf-vlp quickstart --output quickstart")
def quickstart(
    architecture: Annotated[str, typer.Option(help="What is trained; there is a recipe for vc_gpt.")] = "vc_gpt",
    output: Annotated[Path, typer.Option(help="Folder for the repository.")] = Path("quickstart"),
    seed: Annotated[int | None, typer.Option(help="Another seed than the recipe's.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Fewer steps of training, for a look at the course.")] = None,
):
    """Train a small model from nothing on drawn pictures, check that it looks, save, reload and use it.

    About five minutes on two CPU cores, no network. Leaves a complete repository and a contact sheet.
    """
    from hf_vlp.quickstart import run_quickstart

    run_quickstart(architecture, output, seed=seed, max_steps=max_steps, show=typer.echo)


@app.command(
    context_settings=_TAKES_SETTINGS,
    epilog="\b\nExample: hf-vlp train examples/configs/vc_gpt_quick.yaml --training.output_dir outputs/quick",
)
def train(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Argument(help="YAML with the settings of the run.")] = None,
    list_settings: Annotated[bool, typer.Option("--list-settings", help="Print all settings and stop.")] = False,
):
    """Train as a YAML says; every setting can be overridden with --section.key value.

    Runs in many processes under `accelerate launch -m hf_vlp.cli train CONFIG`. An interrupted run goes on with
    --training.resume_from_checkpoint true.
    """
    if list_settings:
        from hf_vlp.pretraining.arguments import describe_arguments

        typer.echo(describe_arguments())
        return
    if config is None or str(config).startswith("--"):
        raise ValueError("Name the YAML of the run first: hf-vlp train CONFIG.yaml [--section.key value ...]")
    from accelerate import PartialState

    from hf_vlp.pretraining.run import train as run_training

    run_training(config, ctx.args, show=typer.echo if PartialState().is_main_process else lambda text: None)
    # Left to the interpreter's exit, the threads of gloo abort the process now and then.
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def _read_protocol(data: str, extra: list[str], task):
    """`Protocol` from `--data` (a source, or a YAML with a `data:` section) and further `--section.key value`."""
    from hf_vlp.pretraining.arguments import parse_protocol, read_yaml

    content = {"data": {"source": data}}
    if data.endswith((".yaml", ".yml")):
        content = read_yaml(data)
        if content.get("data") is None:
            raise ValueError(f"{data} has no section `data:`.")
    return parse_protocol(content, extra, task=task)


@app.command(
    context_settings=_TAKES_SETTINGS,
    epilog="\b\nExample: hf-vlp evaluate quickstart --data scenes --output predictions.json",
)
def evaluate(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model with its processor.")],
    task: Annotated[Task | None, typer.Option(help="What is measured; by default what the model's head does.")] = None,
    data: Annotated[
        str, typer.Option(help="scenes, a file, folder, pattern or Hub name, or the YAML of a run.")
    ] = "scenes",
    split: Annotated[str, typer.Option(help="Split of the data.")] = "test",
    metrics: Annotated[
        str,
        typer.Option(help="Of captions, comma-separated: bleu, rouge_l, cider, cider_d, exact_match, meteor, spice."),
    ] = "bleu,rouge_l,cider_d,exact_match",
    num_beams: Annotated[int, typer.Option(min=1, help="Beams of captions; 1 is greedy decoding.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption.")] = 20,
    rerank: Annotated[
        int, typer.Option(min=0, help="Retrieval: so many candidates are scored again by the matching head.")
    ] = 0,
    visual_tokenizer: Annotated[
        str | None, typer.Option(help="Masked pictures: folder or Hub id of the tokenizer that the model learnt from.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Records measured together.")] = 32,
    max_records: Annotated[int | None, typer.Option(min=1, help="Records at most.")] = None,
    shuffled: Annotated[bool, typer.Option(help="Also score the model with the pictures of other records.")] = True,
    constant: Annotated[
        bool | None,
        typer.Option(
            "--constant/--no-constant",
            help="Also score the best constant output that the split `train` of the data teaches; by default unless "
            "that would be downloaded.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default an accelerator if any.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="JSON file in the benchmark's format: captions as for the COCO server, answers as for EvalAI."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="JSON file for the scores and the predictions that they are of.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
):
    """Score a model on a data set beside what it must beat: a table, and JSON on request.

    Columns and files of the data are set with --data.key value, for example --data.image_root DIR. The YAML of a run
    also says how it measures (its sections batches and evaluation, and its seed); options here, and
    --batches.key value or --evaluation.key value, win over it.
    """
    import inspect
    import tempfile

    from hf_vlp.captioning import load_captioner
    from hf_vlp.data.sources import load_records
    from hf_vlp.describe import check_model_id
    from hf_vlp.evaluation import evaluate_model, format_scores
    from hf_vlp.loading import find_task, load_model_and_processor
    from hf_vlp.metrics import caption_metrics
    from hf_vlp.pretraining.build import first_records

    check_model_id(model)
    chosen = TASKS[task.value] if task else find_task(model)
    protocol = _read_protocol(data, ctx.args, chosen)
    flags = {"batch_size": batch_size, "shuffled_pictures": shuffled, "rerank": rerank}
    flags |= {
        "final_max_records": max_records,
        "metrics": [name.strip() for name in metrics.split(",") if name.strip()],
    }
    parameters = {"shuffled_pictures": "shuffled", "final_max_records": "max_records"}  # where the names differ
    options = {**flags, **protocol.evaluation}
    options |= {name: flags[name] for name in flags if _is_given(ctx, parameters.get(name, name))}
    options |= {name: getattr(protocol.batches, name) for name in chosen.collator_options}
    options |= {"visual_tokenizer": visual_tokenizer, "seed": protocol.seed or 0}
    max_records = options["final_max_records"]
    if chosen.name == "captioning":
        names = options["metrics"]
        try:
            caption_metrics(["a dog"], [["a dog"]], names)  # not after an hour of captioning
        except RuntimeError as error:  # METEOR and SPICE without the Java they need
            raise ValueError(str(error)) from error
        generation = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
        given = {name: value for name, value in generation.items() if _is_given(ctx, name)}
        options["generation"] = {**generation, **options.get("generation", {}), **given}
    if output is not None and chosen.name not in SUBMISSIONS:
        raise ValueError(f"{chosen.name} has no submission format: use --report for its predictions.")
    known = inspect.signature(chosen.load("evaluate")).parameters.keys()
    learns_constant = constant is not False and options.get("constant_candidates", 1) > 0 and known & _TRAINING_OPTIONS
    if learns_constant and constant is None and protocol.data.is_remote():
        learns_constant = False
        typer.echo("No constant baseline: --constant downloads the training split for it.", err=True)
    options = {name: value for name, value in options.items() if name in known}
    _hide_loading_bars()
    records = first_records(load_records(protocol.data, split), max_records)
    load = load_captioner if chosen.name == "captioning" else partial(load_model_and_processor, chosen)
    loaded, processor = load(model, device=device)
    training_records = None
    if learns_constant:
        try:
            training_records = load_records(protocol.data, "train")
        except ValueError as error:
            typer.echo(f"No constant baseline: {' '.join(str(error).split())}", err=True)
    with tempfile.TemporaryDirectory() as folder:
        predictions = report or Path(folder) / "predictions.json"
        options |= {"training_records": training_records, "predictions_path": predictions}
        scores = evaluate_model(loaded, processor, records, chosen, **options)
        if output is not None:
            rows = json.loads(predictions.read_text(encoding="utf-8"))["predictions"]
            SUBMISSIONS[chosen.name](output, rows)
    if as_json:
        _echo_json(scores)
    else:
        typer.echo(format_scores(split, scores))


def _is_given(ctx: typer.Context, parameter: str) -> bool:
    """Whether an option stands on the command line, other than by its default."""
    return ctx.get_parameter_source(parameter).name == "COMMANDLINE"


def _write_coco_results(path: Path, rows: list[dict]):
    from hf_vlp.captioning import to_coco_results
    from hf_vlp.evaluation import write_json

    write_json(path, to_coco_results(rows))


def _write_answers(path: Path, rows: list[dict]):
    from hf_vlp.metrics.vqa import write_vqa_submission

    write_vqa_submission(path, [row["question_id"] for row in rows], [row["answer"] for row in rows])


# Options of evaluations that learn a constant output.
_TRAINING_OPTIONS = {"training_records", "training_captions"}
# Tasks whose benchmark takes files, and what writes them.
SUBMISSIONS = {"captioning": _write_coco_results, "visual_question_answering": _write_answers}


@app.command(epilog='\b\nExample: hf-vlp caption quickstart photo.jpg "photos/*.jpg" --num-beams 5 --json')
def caption(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a captioning model.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, quoted patterns and addresses of pictures.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures captioned together.")] = 8,
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy decoding.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption.")] = 20,
    prompt: Annotated[str | None, typer.Option(help="What every caption begins with.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, in the place of text.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a single picture cannot be read.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default an accelerator if any.")
    ] = None,
):
    """Caption pictures: one line for each, with its name before it when there are several.

    Pictures that cannot be read are told on stderr and counted. The exit code is 1 when none could be captioned, and
    with --strict when one could not.
    """
    from hf_vlp.captioning import find_pictures

    pictures = find_pictures(inputs)  # before the model is loaded: wrong paths are told at once

    from tqdm import tqdm

    from hf_vlp.captioning import caption_pictures
    from hf_vlp.describe import check_model_id
    from hf_vlp.pipelines import pipeline

    check_model_id(model)
    _hide_loading_bars()
    captioner = pipeline("image-to-text", model=model, device=device)
    results = caption_pictures(
        captioner,
        pictures,
        batch_size=batch_size,
        prompt=prompt,
        num_beams=num_beams,
        max_new_tokens=max_new_tokens,
    )
    num_failed = 0
    with _read_bar(len(pictures), "Captioning") as bar:
        for result in results:
            bar.update()
            if result.error is not None:
                num_failed += 1
                tqdm.write(f"{result.picture}: {' '.join(result.error.split())}", file=sys.stderr)
            if as_json:
                line = {"image": result.picture, "caption": result.caption, "error": result.error}
                line = {key: value for key, value in line.items() if value is not None}
                tqdm.write(json.dumps(line, ensure_ascii=False), file=sys.stdout)
            elif result.error is None:
                name = f"{result.picture}\t" if len(pictures) > 1 else ""
                tqdm.write(f"{name}{' '.join(result.caption.split())}", file=sys.stdout)
    _tell_unread(num_failed, len(pictures), strict)


def _read_bar(total: int, description: str):
    """Progress on stderr, for more than one picture; results are written past it with `tqdm.write`."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="picture", file=sys.stderr, disable=total == 1)


def _tell_unread(num_failed: int, total: int, strict: bool):
    """What a command ends with when pictures could not be read."""
    if num_failed:
        typer.echo(f"{num_failed} of {total} pictures could not be read.", err=True)
    if num_failed == total or (strict and num_failed):
        raise typer.Exit(FAILED)


@app.command(
    epilog='\b\nExample: hf-vlp ask path/to/model photo.jpg "photos/*.jpg" --question "What is it?" --top-k 3'
)
def ask(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model for visual question answering.")],
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, quoted patterns and addresses of pictures.")],
    question: Annotated[list[str], typer.Option("--question", "-q", help="The question; may be given several times.")],
    top_k: Annotated[int, typer.Option(min=1, help="Answers to each question.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, in the place of text.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a single picture cannot be read.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default an accelerator if any.")
    ] = None,
):
    """Answer questions about pictures: a line for each, with picture and question before it when there are several.

    Pictures that cannot be read are told on stderr and counted. The exit code is 1 when none could be read, and with
    --strict when one could not.
    """
    from hf_vlp.captioning import find_pictures

    pictures = find_pictures(inputs)  # before the model is loaded: wrong paths are told at once
    questions = list(dict.fromkeys(question))
    if not all(text.strip() for text in questions):
        raise ValueError("A question is empty.")

    from tqdm import tqdm

    from hf_vlp.answering import ask_pictures, load_answerer
    from hf_vlp.describe import check_model_id

    check_model_id(model)
    _hide_loading_bars()
    answerer = load_answerer(model, device=device)
    failed: set[str] = set()
    seen: set[str] = set()
    with _read_bar(len(pictures), "Answering") as bar:
        for result in ask_pictures(answerer, pictures, questions, batch_size=batch_size, top_k=top_k):
            if result.picture not in seen:
                seen.add(result.picture)
                bar.update()
            if result.error is not None and result.picture not in failed:
                failed.add(result.picture)
                tqdm.write(f"{result.picture}: {' '.join(result.error.split())}", file=sys.stderr)
            if as_json:
                line = {"image": result.picture, "question": result.question}
                line |= {"answers": result.answers} if result.error is None else {"error": result.error}
                tqdm.write(json.dumps(line, ensure_ascii=False), file=sys.stdout)
            elif result.error is None:
                names = [result.picture] * (len(pictures) > 1) + [result.question] * (len(questions) > 1)
                tqdm.write("\t".join([*names, _format_answers(result.answers)]), file=sys.stdout)
    _tell_unread(len(failed), len(pictures), strict)


def _format_answers(answers: list[dict[str, Any]]) -> str:
    """`red (0.93), blue (0.04)`; models that generate give no score."""
    return ", ".join(
        answer["answer"] + (f" ({answer['score']:.2f})" if "score" in answer else "") for answer in answers
    )


@app.command(
    epilog='\b\nExample: hf-vlp match path/to/model --images "photos/*.jpg" --texts captions.txt --top-k 3 --rerank 16'
)
def match(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a dual encoder.")],
    images: Annotated[
        list[str],
        typer.Option(help="File, folder, quoted pattern or address of pictures; may be given several times."),
    ],
    texts: Annotated[
        list[str], typer.Option(help="A text, or a file with a text a line; may be given several times.")
    ],
    query: Annotated[
        Query, typer.Option(help="What candidates are found for: pictures for texts, or texts for images.")
    ] = Query.texts,
    top_k: Annotated[int, typer.Option(min=1, help="Candidates for each query.")] = 5,
    rerank: Annotated[
        int, typer.Option(min=0, help="First candidates that the matching head scores again; 0 for none.")
    ] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures, texts or pairs at a time.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, in the place of text.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail when a single picture cannot be read.")] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default an accelerator if any.")
    ] = None,
):
    """Rank pictures for each text, or texts for each picture: query, rank, score and candidate, a line each.

    The score is the cosine of the embeddings. With --rerank it is the sum of that and the matching head's logit, by
    which the first candidates are ordered; those behind them have a dash, as their cosines would not compare. Pictures
    that cannot be read are told on stderr, left out and counted.
    """
    from hf_vlp.captioning import find_pictures
    from hf_vlp.describe import check_model_id

    pictures = find_pictures(images)

    from hf_vlp.matching import find_texts, load_matcher, match_pictures_and_texts

    lines = find_texts(texts)
    check_model_id(model)
    _hide_loading_bars()
    matcher, processor = load_matcher(model, device=device)
    failed: dict[str, str] = {}
    results = match_pictures_and_texts(
        matcher,
        processor,
        pictures,
        lines,
        queries=query.value,
        top_k=top_k,
        rerank=rerank,
        batch_size=batch_size,
        on_error=failed.__setitem__,
        progress=len(pictures) > 1,
    )
    for picture, error in failed.items():
        typer.echo(f"{picture}: {' '.join(error.split())}", err=True)
    for asked, matches in results.items():
        for rank, found in enumerate(matches, start=1):
            if as_json:
                text, picture = (asked, found.candidate) if query is Query.texts else (found.candidate, asked)
                line = {"image": picture, "text": text, "rank": rank, "similarity": found.similarity}
                line |= {} if found.match is None else {"match": found.match}
                typer.echo(json.dumps(line, ensure_ascii=False))
            else:
                score = "-"
                if found.match is not None or not rerank:
                    score = f"{found.similarity + (found.match or 0.0):.4f}"
                typer.echo(f"{asked}\t{rank}\t{score}\t{found.candidate}")
    _tell_unread(len(failed), len(pictures), strict)


@app.command(epilog="\b\nExample: hf-vlp convert vlmo vlmo_base_patch16_480_vqa.pt vlmo-base-vqa --vocab vocab.txt")
def convert(
    architecture: Annotated[str, typer.Argument(help="What it becomes: vlmo, vl_beit, vl_beit_vqkd.")],
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="File of the original (vl_beit starts from BEiT or VLMo, also from the folder of a VLMo), or with "
            "--reverse a folder of ours."
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Folder that is written, or with --reverse a file.")],
    head: Annotated[
        str | None, typer.Option(help="By default what the tensors show; another one starts a further stage.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON with fields of the configuration that the tensors cannot tell.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Published size that the file must have.")] = None,
    vocab: Annotated[
        Path | None, typer.Option(help="Vocabulary of the tokenizer (vocab.txt); without it there is none.")
    ] = None,
    labels: Annotated[Path | None, typer.Option(help="Names of the classes in order: a line each, or JSON.")] = None,
    parity: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="INPUTS EXPECTED", help="Recorded inputs and outputs to compare with (safetensors)."),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="Largest difference to recorded outputs.")] = 1e-4,
    reverse: Annotated[bool, typer.Option("--reverse", help="From a repository to the original's layout.")] = False,
    push_to_hub: Annotated[str | None, typer.Option(metavar="ID", help="Upload the repository too.")] = None,
):
    """Turn an original checkpoint into a repository, or back; everything is checked, and told in a report."""
    from importlib import import_module

    from hf_vlp.conversion import ARCHITECTURES

    if architecture not in ARCHITECTURES:
        raise ValueError(f"There is no conversion for {architecture!r}, only for {', '.join(ARCHITECTURES)}.")
    if not checkpoint.exists():
        raise ValueError(f"There is no file or folder {checkpoint} (looked in {Path.cwd()}).")
    _hide_loading_bars()
    report = import_module(f"hf_vlp.conversion.{ARCHITECTURES[architecture]}").convert(
        checkpoint,
        output,
        head=head,
        config=config,
        size=size,
        vocab=vocab,
        labels=labels,
        parity=parity,
        tolerance=tolerance,
        reverse=reverse,
        push_to_hub=push_to_hub,
    )
    typer.echo(str(report))


@app.command(epilog="\b\nExample: hf-vlp info quickstart --lora-rank 16")
def info(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model or of adapters.")],
    lora_rank: Annotated[int, typer.Option(min=1, help="Rank for which the sizes of adapters are told.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
):
    """Tell what a checkpoint is: sizes, classes that load it, what trains, where LoRA may go. Loads no weights."""
    from hf_vlp.describe import describe_model, format_description

    description = describe_model(model, lora_rank=lora_rank)
    if as_json:
        _echo_json(description)
    else:
        typer.echo(format_description(description))


@app.command(epilog="\b\nExample: hf-vlp push quickstart my-name/my-captioner --private")
def push(
    directory: Annotated[Path, typer.Argument(help="Folder with a complete repository.")],
    repo_id: Annotated[str, typer.Argument(help="Where it goes: NAME or ORGANISATION/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; it is made when it does not exist.")] = None,
    message: Annotated[str | None, typer.Option(help="Message of the commit.")] = None,
):
    """Upload a repository to the Hub in one commit: weights, code, processor, card and metrics.

    Needs a token with the right to write: `hf auth login`, or the environment variable HF_TOKEN.
    """
    from hf_vlp.hub.push import push_repository

    typer.echo(push_repository(directory, repo_id, private=private, revision=revision, message=message))


@app.command(
    name="document-frequencies",
    context_settings=_TAKES_SETTINGS,
    epilog="\b\nExample: hf-vlp document-frequencies frequencies.json --data examples/configs/vc_gpt_coco.yaml",
)
def document_frequencies(
    ctx: typer.Context,
    output: Annotated[Path, typer.Argument(help="JSON file that is written.")],
    data: Annotated[
        str, typer.Option(help="scenes, a file, folder, pattern or Hub name, or a YAML with a `data:` section.")
    ] = "scenes",
    split: Annotated[str, typer.Option(help="Split of the data.")] = "train",
):
    """Count in how many records of a data set each n-gram of the captions occurs, for self-critical training.

    Columns and files of the data are set with --data.key value, for example --data.caption_columns sentences.raw.
    """
    from hf_vlp.data.sources import load_records
    from hf_vlp.metrics import build_document_frequencies
    from hf_vlp.pretraining.build import iterate_references

    records = load_records(_read_protocol(data, ctx.args, TASKS["captioning"]).data, split)
    frequencies = build_document_frequencies(iterate_references(records), output)
    typer.echo(f"{output}: {len(frequencies.counts):,} n-grams of {frequencies.num_images:,} records.")


if __name__ == "__main__":
    app()
