"""The command line: `hf-vlp COMMAND`, or `python -m hf_vlp.cli COMMAND`. Each command is a thin call into a function.

Everything heavy is imported inside the commands, so that `hf-vlp --help` answers at once. Wrong input is told in one
line on stderr, with exit code 2; `hf-vlp --debug COMMAND` shows where it was found.
"""

import json
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

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


class Task(str, Enum):
    """What a model can be evaluated at."""

    captioning = "captioning"


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


def _read_data_arguments(data: str, extra: list[str]):
    """`DataArguments` from `--data` (a source, or a YAML with a `data:` section) and further `--data.key value`."""
    from hf_vlp.pretraining.arguments import parse_arguments, read_yaml

    content = {"source": data}
    if data.endswith((".yaml", ".yml")):
        content = read_yaml(data).get("data")
        if content is None:
            raise ValueError(f"{data} has no section `data:`.")
    return parse_arguments({"data": content}, extra).data


@app.command(
    context_settings=_TAKES_SETTINGS,
    epilog="\b\nExample: hf-vlp evaluate quickstart --task captioning --data scenes --output predictions.json",
)
def evaluate(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model with its processor.")],
    task: Annotated[Task, typer.Option(help="What is measured.")] = Task.captioning,
    data: Annotated[
        str, typer.Option(help="scenes, a file, folder, pattern or Hub name, or a YAML with a `data:` section.")
    ] = "scenes",
    split: Annotated[str, typer.Option(help="Split of the data.")] = "test",
    metrics: Annotated[
        str, typer.Option(help="Comma-separated: bleu, rouge_l, cider, cider_d, exact_match, meteor, spice.")
    ] = "bleu,rouge_l,cider_d,exact_match",
    num_beams: Annotated[int, typer.Option(min=1, help="Beams; 1 is greedy decoding.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures captioned together.")] = 32,
    max_records: Annotated[int | None, typer.Option(min=1, help="Records at most.")] = None,
    shuffled: Annotated[bool, typer.Option(help="Also score the captions of other pictures.")] = True,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ...; by default an accelerator if any.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the captions, in the format of the COCO server.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="JSON file for the scores and the captions they are of.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
):
    """Score a model on a data set: a table, and JSON on request.

    Columns and files of the data are set with --data.key value, for example --data.image_root DIR.
    """
    import tempfile

    from hf_vlp.captioning import load_captioner, to_coco_results
    from hf_vlp.describe import check_model_id
    from hf_vlp.evaluation import evaluate_captioning, write_json
    from hf_vlp.metrics import caption_metrics
    from hf_vlp.pretraining.build import first_records
    from hf_vlp.pretraining.run import format_scores

    check_model_id(model)
    names = [name.strip() for name in metrics.split(",") if name.strip()]
    try:
        caption_metrics(["a dog"], [["a dog"]], names)  # not after an hour of captioning
    except RuntimeError as error:  # METEOR and SPICE without the Java they need
        raise ValueError(str(error)) from error
    _hide_loading_bars()
    records = first_records(_load_split(data, ctx.args, split), max_records)
    captioner, processor = load_captioner(model, device=device)
    with tempfile.TemporaryDirectory() as folder:
        predictions = report or Path(folder) / "predictions.json"
        scores = evaluate_captioning(
            captioner,
            processor,
            records,
            metrics=names,
            generation={"num_beams": num_beams, "max_new_tokens": max_new_tokens},
            batch_size=batch_size,
            shuffled_pictures=shuffled,
            predictions_path=predictions,
        )
        if output is not None:
            write_json(output, to_coco_results(json.loads(predictions.read_text(encoding="utf-8"))["predictions"]))
    if as_json:
        _echo_json(scores)
    else:
        typer.echo(format_scores(split, scores))


def _load_split(data: str, extra: list[str], split: str):
    from hf_vlp.data.sources import load_records

    return load_records(_read_data_arguments(data, extra), split)


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
    bar = tqdm(total=len(pictures), desc="Captioning", unit="picture", file=sys.stderr, disable=len(pictures) == 1)
    with bar:
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
    if num_failed:
        typer.echo(f"{num_failed} of {len(pictures)} pictures could not be read.", err=True)
    if num_failed == len(pictures) or (strict and num_failed):
        raise typer.Exit(FAILED)


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
    from hf_vlp.metrics import build_document_frequencies
    from hf_vlp.pretraining.build import iterate_references

    frequencies = build_document_frequencies(iterate_references(_load_split(data, ctx.args, split)), output)
    typer.echo(f"{output}: {len(frequencies.counts):,} n-grams of {frequencies.num_images:,} records.")


if __name__ == "__main__":
    app()
