"""Pairs, texts and pictures in one data set, for pre-training on all of them in every step.

An item is `{"pair": record, "text": record, "image": record}`, one record of each source that there is, `None` for the
others: `JointRecords` of sources with a length, `JointStream` of streams. (Bao et al., 2022, arXiv 2206.01127: every
batch holds images, texts and pairs.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["SOURCES", "JointRecords", "JointStream"]

SOURCES = ("pair", "text", "image")


def _named_sources(sources: Mapping[str, Any]) -> dict[str, Any]:
    """Those that there are, in the order of `SOURCES`; ValueError when there is none, and for unknown names."""
    if unknown := sorted(sources.keys() - set(SOURCES)):
        raise ValueError(f"Sources are called {', '.join(SOURCES)}, not {', '.join(map(repr, unknown))}.")
    named = {name: sources[name] for name in SOURCES if sources.get(name) is not None}
    if not named:
        raise ValueError(f"Joint records need one source at least, of {', '.join(SOURCES)}.")
    return named


class JointRecords:
    """One record of each source at every index, as long as the longest source.

    A source is gone through in its own order first. A shorter one is then repeated, each time in another order, until
    the longest ends, and in the next epoch goes on where it stopped; records of such a repetition have a number of it
    under `pass`, so that a collator draws anew. What lies at an index is a function of index, epoch and seed alone: a
    resumed run sees the same.

    Args:
        sources: name -> sequence of records (`datasets.Dataset`, list), for some of `pair`, `text`, `image`.
        seed: of the orders.

    Raises ValueError when there is no source, for an unknown name, and for a source that is empty or a stream.
    """

    def __init__(self, sources: Mapping[str, Sequence[dict] | None], *, seed: int = 0):
        self.sources = _named_sources(sources)
        for name, records in self.sources.items():
            if not hasattr(records, "__len__"):
                raise ValueError(
                    f"The source {name!r} is a stream ({type(records).__name__}): joint records need its length. Open "
                    "it without streaming, or all of them as streams for a JointStream."
                )
            if len(records) == 0:
                raise ValueError(f"The source {name!r} is empty. Give None, or leave it out, to train without it.")
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()  # seen by workers that are running already
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def __len__(self) -> int:
        return max(map(len, self.sources.values()))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"Index {index} is out of range: there are {len(self)} joint records.")
        return {name: self._record(name, index) if name in self.sources else None for name in SOURCES}

    def set_epoch(self, epoch: int) -> None:
        """Let the shorter sources go on where they were after so many epochs. Call it before the iteration starts."""
        self._epoch.fill_(epoch)

    def _record(self, name: str, index: int) -> dict[str, Any]:
        records = self.sources[name]
        if len(records) < len(self):  # the longest is shuffled by those who read it
            index += int(self._epoch) * len(self)
        repetition, place = divmod(index, len(records))
        if repetition == 0:
            return records[place]
        order = self._orders.get((name, repetition))
        if order is None:
            generator = np.random.default_rng([self.seed, SOURCES.index(name), repetition])
            order = self._orders[name, repetition] = generator.permutation(len(records))
        return {**records[int(order[place])], "pass": repetition}

    def select(self, indices: Iterable[int]) -> JointRecords:
        """The joint records of a part of each source: those of `indices` that it has, not repeated."""
        indices = list(indices)
        parts = {}
        for name, records in self.sources.items():
            own = [index for index in indices if index < len(records)]
            parts[name] = records.select(own) if hasattr(records, "select") else [records[index] for index in own]
        return JointRecords(parts, seed=self.seed)

    def __repr__(self) -> str:
        lengths = ", ".join(f"{name}: {len(records):,}" for name, records in self.sources.items())
        return f"JointRecords({lengths})"


class JointStream:
    """Streams of pairs, texts and pictures, for training that takes one record of each at a time.

    A stream has no length: `VlpTrainer` reads each source for ever, the records of its later passes numbered under
    `pass`, and continues behind the last batch of an interrupted run (`RecordStream`).

    Args:
        sources: name -> `datasets.IterableDataset`, for some of `pair`, `text`, `image`.
        seed: of the orders in which `take` repeats records.

    Raises ValueError when there is no source, and for an unknown name.
    """

    def __init__(self, sources: Mapping[str, Iterable[dict] | None], *, seed: int = 0):
        self.sources = _named_sources(sources)
        self.seed = seed

    def take(self, count: int | None) -> JointRecords:
        """The first `count` records of each source, in memory; `None` for all."""
        parts = {name: list(itertools.islice(records, count)) for name, records in self.sources.items()}
        return JointRecords(parts, seed=self.seed)
