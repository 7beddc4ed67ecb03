"""Time and memory of two or more ways to do the same, side by side in one run."""

import ctypes
import gc
import statistics
import time
from pathlib import Path

import torch


def timed(function, device: str):
    """(seconds, result) of one call, with the device's work in it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def take_turns(ways: dict, rounds: int, device: str = "cpu") -> tuple[dict[str, list[float]], dict]:
    """Seconds of every way in every round, all ways once in each, and their last results; one more round warms up."""
    times, results = {name: [] for name in ways}, {}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            seconds, results[name] = timed(way, device)
            if round_number:
                times[name].append(seconds)
    return times, results


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the rounds of how many times as fast the second way is."""
    return statistics.median(one / other for one, other in zip(slow, fast))


def peak_memory(function, device: str) -> float:
    """Most memory that the call holds beyond what was held before, in MiB."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed memory back, so that it is counted when it is used again
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts from here
    before = _read_status("VmRSS")
    function()
    return (_read_status("VmHWM") - before) / 2**10


def _read_status(name: str) -> int:
    """A field of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
