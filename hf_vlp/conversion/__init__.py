"""Original checkpoints, converted to repositories of ours and back; the command behind `hf-vlp convert`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

# Architectures whose module here has `convert`, `convert_back`, `HEADS` and `SIZES`.
ARCHITECTURES = ("vlmo",)


def run_command(architecture: str, arguments: Sequence[str], *, show: Callable[[str], None] = print) -> None:
    """Convert as the words of a command line say: CHECKPOINT OUTPUT [--head ...]; see `--help`.

    Shows the report. Raises ValueError or OSError for input that cannot be converted, and SystemExit for wrong
    options, as argparse does.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"Unknown architecture {architecture!r}. Known: {', '.join(ARCHITECTURES)}.")
    module = import_module(f"hf_vlp.conversion.{architecture}")
    options = vars(_make_parser(architecture, module).parse_args(list(arguments)))
    checkpoint, output = options.pop("checkpoint"), options.pop("output")
    options = {name: value for name, value in options.items() if value is not None}
    show(str(module.convert(checkpoint, output, **options)))


def main(architecture: str) -> None:
    """`run_command` for a script: errors in one line on stderr, with exit code 2."""
    try:
        run_command(architecture, sys.argv[1:])
    except (ValueError, TypeError, OSError) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None


def _make_parser(architecture: str, module) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"convert {architecture}",
        description="Turn an original checkpoint into a repository of ours (or back), checked and with a report.",
        epilog=f"Example: hf-vlp convert {architecture} checkpoint.pt converted --vocab vocab.txt",
    )
    add = parser.add_argument
    add("checkpoint", help="original file (.pt, .pth, .ckpt, .safetensors); with --reverse a repository of ours")
    add("output", help="folder of the repository; with --reverse the file (.pt or .safetensors)")
    add("--head", choices=list(module.HEADS), help="by default recognised; another one starts a further stage")
    add("--config", help="JSON file with fields of the configuration that the tensors cannot tell")
    add("--size", choices=list(module.SIZES), help="published size that the file must have")
    add("--vocab", help="vocabulary of the tokenizer (vocab.txt); without it the repository has no tokenizer")
    add("--labels", help="names of the classes in order: a line each, or JSON")
    add("--parity", nargs=2, metavar=("INPUTS", "EXPECTED"), help="safetensors with recorded inputs and outputs")
    add("--tolerance", type=float, help="largest difference to recorded outputs (1e-4)")
    add("--reverse", action="store_true", help="from a repository of ours to a file in the original layout")
    add("--push_to_hub", "--push-to-hub", metavar="ID", help="upload the repository in one commit")
    return parser


__all__ = ["ARCHITECTURES", "main", "run_command"]
