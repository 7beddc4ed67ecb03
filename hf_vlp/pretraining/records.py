"""Streams of training records that can be resumed exactly, with any number of workers."""

import copy
import random
from collections.abc import Callable, Iterator

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from hf_vlp.data.joint import SOURCES, JointStream


class RecordStream(IterableDataset):
    """Endless batches of records from a stream, each with the position behind it.

    The stream is shuffled block by block: `shuffle_block` records are read, permuted and handed out. A rolling buffer
    would mix further, but its content is not part of the dataset's state; a block is read again from the state at its
    beginning, so that a resume costs at most one block and is exact.

    Args:
        dataset: a `datasets.IterableDataset` (its `state_dict` gives the positions), or a `JointStream` of several, of
            each of which every joint record holds one; each runs on over its own end.
        batch_size: records per batch; batches run on over the end of an epoch, none is short.
        shuffle_block: size of the blocks; 0 keeps the order of the data.
        seed: seed of the order.
        process_index, num_processes: the part of the stream that is this process's.

    Iterating yields (worker, records, position); `(worker, None, None)` stands for "nothing, ask the next worker".
    """

    def __init__(
        self,
        dataset,
        *,
        batch_size: int,
        shuffle_block: int = 0,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.datasets = dataset.sources if isinstance(dataset, JointStream) else {None: dataset}
        if num_processes > 1:
            from datasets.distributed import split_dataset_by_node

            self.datasets = {
                name: split_dataset_by_node(source, rank=process_index, world_size=num_processes)
                for name, source in self.datasets.items()
            }
        self.num_shards = min(source.num_shards for source in self.datasets.values())
        self.batch_size = batch_size
        self.shuffle_block = shuffle_block
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.start_positions: list[dict | None] = [None]
        self.first_worker = 0

    def _records(self, position: dict | None, worker: int) -> Iterator[tuple[dict, dict]]:
        """(record, position behind it), for ever."""
        if None in self.datasets:
            yield from self._source_records(None, position, worker)  # without end
        # The number of a record's pass is in the record: the epoch, by which collators draw anew, does not move.
        positions = dict.fromkeys(self.datasets) | (position["sources"] if position else {})
        streams = {name: self._source_records(name, positions[name], worker) for name in self.datasets}
        while True:
            joint = dict.fromkeys(SOURCES)
            for name, stream in streams.items():
                record, positions[name] = next(stream)
                joint[name] = {**record, "pass": positions[name]["epoch"]}
            yield joint, {"epoch": 0, "sources": dict(positions)}

    def _source_records(self, name: str | None, position: dict | None, worker: int) -> Iterator[tuple[dict, dict]]:
        """(record, position behind it) of one of the data sets, for ever."""
        position = position or {"epoch": 0, "state": None, "block": 0, "offset": 0}
        epoch, block_index, skip = position["epoch"], position["block"], position["offset"]
        state = position["state"]
        block_size = self.shuffle_block or self.batch_size
        dataset = copy.copy(self.datasets[name])
        if isinstance(getattr(dataset, "_epoch", None), torch.Tensor):
            # The library keeps the epoch in memory shared by all workers; ours reach the end of an epoch one by one.
            dataset._epoch = dataset._epoch.clone()
        while True:
            dataset.set_epoch(epoch)
            # A state of another epoch is ignored: without it an epoch would begin where the last loaded state lies.
            dataset.load_state_dict(state or {**dataset.state_dict(), "epoch": -1})
            records = iter(dataset)
            while True:
                block = []
                for record in records:
                    block.append(record)
                    if len(block) == block_size:
                        break
                if not block:
                    break
                next_state = dataset.state_dict()
                order = list(range(len(block)))
                if self.shuffle_block:
                    key = (self.seed, epoch, self.process_index, worker, block_index, *([name] if name else []))
                    random.Random(repr(key)).shuffle(order)
                for offset in range(skip, len(block)):
                    position = {"epoch": epoch, "state": state, "block": block_index, "offset": offset + 1}
                    yield block[order[offset]], position
                state, skip, block_index = next_state, 0, block_index + 1
            if block_index == 0:
                what = f"The training stream{f' {name!r}' if name else ''} is empty"
                if self.num_processes > 1 or get_worker_info() is not None:
                    what += f" for worker {worker} of process {self.process_index}, whose shards hold no records"
                raise ValueError(
                    f"{what}: check the split, the files and the filters of `data:`, or read it with fewer workers "
                    "(training.dataloader_num_workers) or processes."
                )
            epoch, state, block_index, skip = epoch + 1, None, 0, 0

    def __iter__(self):
        info = get_worker_info()
        worker = info.id if info is not None else 0
        if worker < self.first_worker:
            # Batches are asked for in turn from worker 0 on; the interrupted run stopped in the middle of a round.
            yield worker, None, None
        records = []
        for record, position in self._records(self.start_positions[worker], worker):
            records.append(record)
            if len(records) == self.batch_size:
                yield worker, records, position
                records = []


class _Collate:
    """Collates the records of a stream and lets the position pass."""

    def __init__(self, collator: Callable):
        self.collator = copy.copy(collator)  # shares processor and counts of bad samples
        self.follows_epoch = hasattr(collator, "set_epoch")
        if self.follows_epoch:
            # Collators keep the epoch in memory shared by all workers; ours reach the end of an epoch one by one.
            self.collator._epoch = torch.tensor(-1)

    def __call__(self, item):
        worker, records, position = item
        if records is None:
            return worker, None, None
        if self.follows_epoch:
            self.collator.set_epoch(position["epoch"])
        return worker, self.collator(records), position


class StreamLoader:
    """The training dataloader of a `RecordStream`; its `state_dict` is the position behind the last batch it gave.

    Stock dataloaders are ahead of training by the batches they prefetch, so that the state of the dataset is not the
    position of the training. Here the position travels with the batch.

    Args:
        stream: the batches of records.
        collator: records -> batch (a dict of tensors); its `set_epoch`, if there is one, is called with the epoch.
        num_workers: at most the number of shards of the stream is used.
        options: further options of `torch.utils.data.DataLoader`.
    """

    def __init__(self, stream: RecordStream, collator: Callable, *, num_workers: int = 0, seed: int = 0, **options):
        self.stream = stream
        self.dataset = stream
        self.num_workers = min(num_workers, stream.num_shards)
        self.collator = collator
        self.options = options
        self.seed = seed
        self.positions: list[dict | None] = [None] * max(1, self.num_workers)
        self.next_worker = 0

    def state_dict(self) -> dict:
        """The position in plain JSON types."""
        return {"positions": list(self.positions), "next_worker": self.next_worker, "num_workers": self.num_workers}

    def load_state_dict(self, state: dict):
        """Continue behind the batch that `state` was taken after.

        Raises ValueError if the number of workers differs: each reads its own shards.
        """
        if state["num_workers"] != self.num_workers:
            raise ValueError(
                f"The stream was read by {state['num_workers']} workers and would now be read by {self.num_workers}: "
                f"resume with dataloader_num_workers={state['num_workers']}."
            )
        self.positions = list(state["positions"])
        self.next_worker = state["next_worker"]

    def __iter__(self):
        self.stream.start_positions = list(self.positions)
        self.stream.first_worker = self.next_worker
        loader = DataLoader(
            self.stream,
            batch_size=None,
            collate_fn=_Collate(self.collator),
            num_workers=self.num_workers,
            # An own generator: the default draws the workers' seed from the global state, which a resume must find as
            # it was saved.
            generator=torch.Generator().manual_seed(self.seed),
            **self.options,
        )
        for worker, batch, position in loader:
            if position is None:
                continue
            self.positions[worker] = position
            self.next_worker = (worker + 1) % max(1, self.num_workers)
            yield batch


__all__ = ["RecordStream", "StreamLoader"]
