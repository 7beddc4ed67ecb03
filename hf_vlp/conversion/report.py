"""What a conversion did: one record, as JSON beside the model and as text for the reader."""

import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_vlp.conversion.safe_load import LoadedCheckpoint

FILE_NAME = "conversion_report.json"


@dataclass
class ConversionReport:
    """A conversion, in the order in which it is told.

    architecture, head, model_class: what was made; `recognised_as`: the head that the names of the tensors show.
    source: file, bytes, SHA-256, nesting, dtypes, names of what else the file holds.
    size: name of the published size, or "other"; config: the sizes that were read from the tensors or given.
    tensors_read, tensors_written: how many.
    dropped: {name in the original: reason}; resized: {name in the original: what was done}.
    new: names of parameters that the file does not have, with their initial values.
    checks: what was verified, a line each.
    notes: what the user should know or do next.
    """

    architecture: str
    head: str
    recognised_as: str
    model_class: str
    source: dict[str, Any]
    size: str
    config: dict[str, Any]
    tensors_read: int
    tensors_written: int
    dropped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the versions of what made it, ready for JSON."""
        return {**asdict(self), "versions": _versions()}

    def __str__(self) -> str:
        source = self.source
        lines = [
            f"{source['file']} ({source['bytes']:,} bytes)",
            f"  SHA-256    {source['sha256']}",
            f"  nesting    {' > '.join(source['nesting']) or 'flat'}; "
            + ", ".join(f"{count} {dtype}" for dtype, count in source["dtypes"].items()),
            f"  beside     {', '.join(source['ignored']) or 'nothing'}",
            f"{self.model_class}: head {self.head} (recognised: {self.recognised_as}), size {self.size}",
            "  " + ", ".join(f"{name}={value}" for name, value in self.config.items()),
            f"{self.tensors_read} tensors read, {self.tensors_written} written",
            *_list("dropped", [f"{names}: {reason}" for reason, names in _by_reason(self.dropped).items()]),
            *_list("resized", [f"{name}: {what}" for name, what in self.resized.items()]),
            *_list("new", self.new),
            *(f"  checked    {line}" for line in self.checks),
            *(f"  note       {line}" for line in self.notes),
        ]
        return "\n".join(lines)


def describe_source(loaded: LoadedCheckpoint) -> dict[str, Any]:
    """The field `source` of a report."""
    return {
        "file": Path(loaded.path).name,
        "bytes": Path(loaded.path).stat().st_size,
        "sha256": loaded.sha256,
        "nesting": list(loaded.nesting),
        "dtypes": loaded.dtypes,
        "ignored": list(loaded.ignored),
    }


def describe_conversion(loaded: LoadedCheckpoint) -> str:
    """What the card of a converted model says of its file."""
    return (
        f"Converted from `{loaded.path.name}` (SHA-256 `{loaded.sha256}`); see `{FILE_NAME}` for what was read, "
        "dropped and checked."
    )


def enumerate_names(names: list[str], limit: int = 12) -> str:
    """`a, b, c and 4 more`."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _by_reason(dropped: dict[str, str]) -> dict[str, str]:
    grouped: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        grouped.setdefault(reason, []).append(name)
    return {reason: enumerate_names(names) for reason, names in grouped.items()}


def _list(title: str, lines: list[str]) -> list[str]:
    return [f"  {title:<10} {line}" for line in lines or ["nothing"]]


def _versions() -> dict[str, str]:
    import torch
    import transformers

    from hf_vlp import __version__

    return {
        "hf_vlp": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


__all__ = ["FILE_NAME", "ConversionReport", "describe_conversion", "describe_source", "enumerate_names"]
