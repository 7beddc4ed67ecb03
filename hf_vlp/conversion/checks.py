"""What a converter verifies before it writes anything: outputs are finite, and equal recorded ones."""

import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hf_vlp.conversion.report import enumerate_names
from hf_vlp.conversion.safe_load import load_checkpoint


@torch.no_grad()
def check_finite_outputs(model, inputs: Mapping[str, Any]) -> str:
    """Run the model once, in evaluation mode; returns a line for the report.

    Raises ValueError that names the first outputs with NaN or infinite values.
    """
    outputs = dict(named_tensors(model.eval()(**inputs)))
    broken = [name for name, tensor in outputs.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ValueError(
            f"The converted model gives NaN or infinite values on random input: {enumerate_names(broken)}. The "
            "weights in the file are damaged, or do not belong to this configuration."
        )
    return f"finite outputs on random input: {enumerate_names(list(outputs))}"


@torch.no_grad()
def compare_outputs(
    model,
    inputs: Path,
    expected: Path,
    *,
    tolerance: float,
    input_names: Mapping[str, str | tuple[str, ...]],
    output_names: Mapping[str, str],
    drop_inputs: tuple[str, ...] = (),
) -> str:
    """Compare with recorded outputs of the original; returns a line for the report.

    Args:
        inputs, expected: safetensors files; names of the arguments of `forward`, and of its outputs. Others are told
            and not compared.
        tolerance: largest absolute difference, times the largest expected value where that is above 1.
        input_names, output_names: {name in the file: ours}, for recordings with names of their own. An input may be
            given under several names; the losses in a dictionary are called "losses.<name>".
        drop_inputs: names in the file that are something else in the model's terms.

    Raises ValueError when a difference is above the tolerance, a shape differs, or nothing can be compared.
    """
    recorded = load_checkpoint(inputs).state_dict
    if {"pixel_values_0", "pixel_values_1"} <= set(recorded):  # two pictures to a statement
        pair = [recorded.pop("pixel_values_0"), recorded.pop("pixel_values_1")]
        recorded["pixel_values"] = torch.stack(pair, dim=1)
    accepted = set(inspect.signature(model.forward).parameters)
    given = {}
    for name, tensor in recorded.items():
        ours = input_names.get(name, name)
        if name not in drop_inputs:
            given |= dict.fromkeys(accepted.intersection([ours] if isinstance(ours, str) else ours), tensor)
    outputs = dict(named_tensors(model.eval()(**given)))
    differences: dict[str, float] = {}
    left_out = []
    for name, tensor in load_checkpoint(expected).state_dict.items():
        ours = outputs.get(output_names.get(name, name))
        if ours is None:
            left_out.append(name)
            continue
        if ours.shape != tensor.shape:
            raise ValueError(f"{name} has the shape {list(ours.shape)}, recorded is {list(tensor.shape)}.")
        scale = max(1.0, tensor.abs().max().item())
        differences[name] = (ours.float() - tensor.float()).abs().max().item() / scale
    if not differences:
        raise ValueError(
            f"{expected} has none of the outputs of {type(model).__name__}: {enumerate_names(left_out)}. Known are "
            f"{enumerate_names(list(outputs))}."
        )
    worst = max(differences, key=differences.get)
    # Not `> tolerance`, which holds for no NaN.
    if wrong := [name for name, value in differences.items() if not value <= tolerance]:
        raise ValueError(
            f"The converted model differs from the recording by more than {tolerance:g}: "
            + enumerate_names([f"{name} by {differences[name]:.2e}" for name in wrong])
            + ". Nothing was written."
        )
    line = f"parity with {Path(expected).name}: largest difference {differences[worst]:.2e} ({worst}), "
    line += f"tolerance {tolerance:g}; compared {', '.join(differences)}"
    return line + (f"; not compared: {enumerate_names(left_out)}" if left_out else "")


def named_tensors(outputs: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a model's output with their names; those in dictionaries and tuples as "losses.mlm"."""
    if isinstance(outputs, torch.Tensor):
        yield prefix, outputs
    elif isinstance(outputs, Mapping):
        for name, value in outputs.items():
            yield from named_tensors(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(outputs, (list, tuple)):
        for index, value in enumerate(outputs):
            yield from named_tensors(value, f"{prefix}.{index}")


__all__ = ["check_finite_outputs", "compare_outputs", "named_tensors"]
