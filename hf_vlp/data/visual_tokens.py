"""Visual tokens of a whole data set, made once and kept as Arrow.

A tokenizer that is frozen gives a picture the same ids in every epoch. They are kept under the content of the picture
and of the tokenizer (weights and sizes), so that another data set with some of the same pictures, another order or a
renamed file finds them again, and another tokenizer never does.

>>> records = add_visual_tokens(load_records(DataArguments(source="scenes")), tokenizer)
>>> records[0]["visual_token_ids"]  # a number for each patch, row by row

The ids are of the whole picture, resized to a square. They fit training without crops, flips and the like only.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_vlp.data.collators import BadSamplePolicy
from hf_vlp.data.image_io import DEFAULT_MAX_PIXELS, ImageError, load_image, read_image
from hf_vlp.data.masked_collators import TOKEN_IDS, check_resample, make_tokenizer_view

__all__ = ["add_visual_tokens", "default_cache_dir", "picture_key", "tokenizer_fingerprint"]

logger = logging.get_logger(__name__)

# Pictures whose ids are written together: what an interrupted run loses at most.
_PART_SIZE = 4096


def default_cache_dir() -> Path:
    """`hf_vlp_visual_tokens` in the cache of `datasets`."""
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_vlp_visual_tokens"


def tokenizer_fingerprint(tokenizer) -> str:
    """A digest of all that the ids of a `VlBeitVqkdTokenizer` depend on: sizes and weights, in their precision.

    Decoder, running counts of the codebook and settings of training are left out: a tokenizer and the training model
    that it was loaded from have the same.
    """
    config = tokenizer.config
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size")
    names += ("patch_size", "num_channels", "codebook_size", "code_dim", "hidden_act", "layer_norm_eps")
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([config.model_type, *(getattr(config, name) for name in names)]).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        if name.startswith(("encoder.", "code_projection.")) or name == "codebook.weight":
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def picture_key(image) -> bytes:
    """What a picture is known by: a digest of its encoded bytes, wherever they lie, or of a PIL picture's pixels.

    Raises ImageError for a file or address that cannot be read.
    """
    content = read_image(image)
    if isinstance(content, Image.Image):
        content = load_image(content)
        content = repr((content.mode, content.size)).encode() + content.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


class _Tokenizer(NamedTuple):
    """A visual tokenizer with all that is to be known of it, whatever gave it."""

    find: Callable[[torch.Tensor], torch.Tensor]
    module: nn.Module | None
    fingerprint: str
    num_tokens: int
    image_size: int
    resample: str
    dtype: np.dtype

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        """(pictures, patches). Raises ValueError for ids of another shape or kind."""
        views = torch.stack([make_tokenizer_view(image, self.image_size, self.resample) for image in images])
        if self.module is not None and (parameter := next(self.module.parameters(), None)) is not None:
            views = views.to(parameter.device)
        ids = torch.as_tensor(self.find(views))
        expected = (len(images), self.num_tokens)
        if tuple(ids.shape) != expected or ids.is_floating_point():
            raise ValueError(
                f"The visual tokenizer must give whole numbers of the shape {expected}, not {ids.dtype} "
                f"{tuple(ids.shape)}: are num_tokens={self.num_tokens} and image_size={self.image_size} its own?"
            )
        return ids.cpu().numpy().astype(self.dtype)


def _describe_tokenizer(tokenizer, resample: str, given: dict[str, Any]) -> _Tokenizer:
    from hf_vlp.models.mome.modeling_vl_beit_vqkd import VlBeitVqkdTokenizer

    check_resample(resample)
    module = tokenizer if isinstance(tokenizer, nn.Module) else None
    find = getattr(tokenizer, "get_token_ids", tokenizer)
    missing = [name for name, value in given.items() if value is None]
    if isinstance(tokenizer, VlBeitVqkdTokenizer):
        if len(missing) < len(given):
            raise TypeError(f"A {type(tokenizer).__name__} tells {', '.join(given)} itself: leave them out.")
        config = tokenizer.config
        # In the smallest type that holds all codes, as are the files.
        dtype = np.min_scalar_type(config.codebook_size - 1)
        sizes = {"num_tokens": config.num_tokens, "image_size": config.image_size}
        fingerprint = tokenizer_fingerprint(tokenizer)
    elif not callable(find) or missing:
        raise TypeError(
            f"A {type(tokenizer).__name__} does not tell what its ids depend on. Give a VlBeitVqkdTokenizer, or a "
            "callable with fingerprint (a name that no other tokenizer has), num_tokens (of a picture) and image_size "
            f"(side of its pictures); missing: {', '.join(missing) or 'a callable'}."
        )
    else:
        dtype = np.dtype(np.int32)  # nothing says how many codes there are
        fingerprint = hashlib.blake2b(json.dumps(given).encode(), digest_size=16).hexdigest()
        sizes = {name: given[name] for name in ("num_tokens", "image_size")}
    if resample.lower() != "bicubic":
        fingerprint += f"-{resample.lower()}"
    return _Tokenizer(find, module, fingerprint, resample=resample, dtype=dtype, **sizes)


class _Store:
    """Ids of one tokenizer on the disk: a folder of Arrow files, each of which appears whole or not at all."""

    def __init__(self, folder: Path, num_tokens: int, dtype: np.dtype):
        self.folder = folder
        self.num_tokens = num_tokens
        self.dtype = dtype
        self.parts: list[np.ndarray] = []  # mapped into memory where Arrow allows it
        self.places: dict[bytes, int] = {}  # part and row in one number: a pair would take thrice the memory
        for path in sorted(folder.glob("*.arrow")):
            self._read(path)

    def _read(self, path: Path):
        import pyarrow as pa

        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
            keys, ids = table.column("key").to_pylist(), table.column(TOKEN_IDS).chunk(0)
            values = ids.values.to_numpy(zero_copy_only=False).reshape(len(keys), ids.type.list_size)
            if values.shape[1] != self.num_tokens:
                raise ValueError(f"{values.shape[1]} ids a picture, expected {self.num_tokens}")
        except (OSError, ValueError, KeyError, IndexError, AttributeError) as error:  # of Arrow too
            logger.warning(f"{path} is no cache of visual tokens and is passed over: {error}.")
            return
        self._add(keys, values)

    def _add(self, keys: Sequence[bytes], values: np.ndarray):
        first = len(self.parts) << 32
        self.places.update(zip(keys, range(first, first + len(keys))))
        self.parts.append(values)

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def __getitem__(self, key: bytes) -> np.ndarray:
        place = self.places[key]
        return self.parts[place >> 32][place & 0xFFFFFFFF]

    def write(self, keys: Sequence[bytes], values: np.ndarray):
        """Keep the ids of further pictures, (pictures, patches). Raises OSError when the disk is full."""
        import pyarrow as pa

        batch = pa.record_batch({"key": pa.array(keys, pa.binary(16)), TOKEN_IDS: _to_arrow(values)})
        # A name of its own content: processes that make the same part do no harm to each other.
        name = hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest()
        _write_whole(self.folder / f"{name}.arrow", pa.ipc.new_file, batch.schema, [batch])
        self._add(keys, values)

    def write_column(self, keys: Sequence[bytes | None]) -> Path:
        """A file with the ids of pictures in this order, for `datasets` to map into memory; `None` has none.

        In batches of lists of a fixed size: nothing in it counts further than a batch, and no process holds it.
        """
        import pyarrow as pa

        digest = hashlib.blake2b(digest_size=16)
        for key in keys:
            digest.update(b"\0" * 16 if key is None else key)
        path = self.folder / "columns" / f"{digest.hexdigest()}.arrow"
        if _num_rows(path) == len(keys):  # another run may have it mapped: it stays as it is
            return path
        schema = pa.schema({TOKEN_IDS: pa.list_(pa.from_numpy_dtype(self.dtype), self.num_tokens)})

        def batches() -> Iterator[pa.RecordBatch]:
            none = np.zeros(self.num_tokens, self.dtype)
            for start in range(0, len(keys), _PART_SIZE):
                part = keys[start : start + _PART_SIZE]
                values = np.stack([none if key is None else self[key] for key in part]).astype(self.dtype)
                yield pa.record_batch([_to_arrow(values, [key is None for key in part])], schema=schema)

        _write_whole(path, pa.ipc.new_stream, schema, batches())
        return path


def _to_arrow(values: np.ndarray, missing: list[bool] | None = None):
    import pyarrow as pa

    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1], mask=mask)


def _write_whole(path: Path, new_writer: Callable, schema, batches: Iterable):
    """A file of Arrow batches that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".part-{uuid.uuid4().hex}")  # not by tempfile, whose files are for their owner only
    try:
        with temporary.open("xb") as file:
            with new_writer(file, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _num_rows(path: Path) -> int | None:
    """Rows of a column that is there, `None` where none can be read."""
    import datasets

    try:
        return len(datasets.Dataset.from_file(str(path)))
    except (OSError, ValueError):  # of Arrow too
        return None


@torch.no_grad()
def add_visual_tokens(
    records,
    tokenizer,
    *,
    fingerprint: str | None = None,
    num_tokens: int | None = None,
    image_size: int | None = None,
    resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic",
    cache_dir: str | os.PathLike | None = None,
    batch_size: int = 64,
    bad_samples: BadSamplePolicy | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = True,
    process_index: int = 0,
    num_processes: int = 1,
    gather: Callable[[list[str]], list[str]] | None = None,
):
    """The records with the ids of their pictures in a further column.

    Args:
        records: a `datasets.Dataset`, or a list of records, with the column `image`.
        tokenizer: a `VlBeitVqkdTokenizer` on the device where it shall run, or any callable: pictures
            (rows, 3, side, side) in [0, 1] -> (rows, num_tokens) whole numbers. The mode of a module is kept.
        fingerprint, num_tokens, image_size: of a callable, and needed for it: a name that changes whenever its ids
            do, their number for a picture, and the side of the pictures that it takes.
        resample: how pictures are resized for it, `tokenizer_resample` of the collators.
        cache_dir: where ids are kept and looked for; by default in the cache of `datasets`. Several processes need
            the same one.
        batch_size: pictures that are tokenized together.
        bad_samples: what happens to pictures that cannot be read; by default they are counted and have no ids.
        max_pixels: see `load_image`.
        process_index, num_processes, gather: of several processes that all call this with the same records, each
            tokenizes its share; `gather` is called once, with a list of one string, and gives those of all of them in
            their order (`accelerate.utils.gather_object`).

    Returns a `Dataset` (for a list: a list of new dicts) with `visual_token_ids`, a list of `num_tokens` numbers,
    `None` for a picture that cannot be read. The column is a file in `cache_dir`, mapped into memory, not held there.

    Raises ValueError for a stream, and for records without pictures; TypeError for a tokenizer of which too little is
    known; OSError when the disk is full, with everything kept that was there before.
    """
    if not hasattr(records, "__len__"):
        raise ValueError(
            "Visual tokens are kept for data sets with a length, not for streams: open the data without streaming, or "
            "let the trainer tokenize each batch (model.visual_tokenizer_name_or_path)."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    if not 0 <= process_index < num_processes or (num_processes > 1 and gather is None):
        raise ValueError(
            f"process_index={process_index} must be one of num_processes={num_processes}, and several need gather."
        )
    given = {"fingerprint": fingerprint, "num_tokens": num_tokens, "image_size": image_size}
    described = _describe_tokenizer(tokenizer, resample, given)
    bad_samples = bad_samples or BadSamplePolicy()
    store = _Store(
        Path(cache_dir or default_cache_dir()) / described.fingerprint, described.num_tokens, described.dtype
    )
    first, end = (len(records) * index // num_processes for index in (process_index, process_index + 1))
    images = tqdm(_images(records, first, end), total=end - first, unit="picture", disable=not progress)
    was_training = described.module is not None and described.module.training
    try:
        if was_training:
            described.module.eval()
        keys = _tokenize(enumerate(images, first), described, store, batch_size, bad_samples, max_pixels)
    finally:
        if was_training:
            described.module.train()
    if bad_samples.counts["bad"]:
        logger.warning(bad_samples.report())
    path = str(store.write_column(keys))
    return _with_column(records, gather([path]) if num_processes > 1 else [path])


def _images(records, first: int, end: int) -> Iterator[Any]:
    """The pictures of a range of records one by one, undecoded, without the other columns."""
    if hasattr(records, "column_names"):
        import datasets

        if "image" not in records.column_names:
            raise ValueError(f"The records have no 'image', only {records.column_names}.")
        records = records.select_columns("image")
        if isinstance((records.features or {}).get("image"), datasets.Image):
            records = records.cast_column("image", datasets.Image(decode=False))
        share = records.select(range(first, end))  # read in larger pieces than one by one
    else:
        share = (records[index] for index in range(first, end))
    for record in share:
        if "image" not in record:
            raise ValueError(f"The record has no 'image', only {sorted(record)}.")
        yield record["image"]


def _tokenize(
    images: Iterable[tuple[int, Any]],
    tokenizer: _Tokenizer,
    store: _Store,
    batch_size: int,
    bad_samples: BadSamplePolicy,
    max_pixels: int,
) -> list[bytes | None]:
    """Keys of the pictures, all of which the store has then; `None` for those that cannot be read."""
    keys: list[bytes | None] = []
    new_keys: list[bytes] = []
    new_ids: list[np.ndarray] = []
    waiting: dict[bytes, Image.Image] = {}

    def tokenize():
        if waiting:
            new_ids.append(tokenizer(list(waiting.values())))
            new_keys.extend(waiting)
            waiting.clear()

    def keep():
        if new_keys:
            store.write(new_keys, np.concatenate(new_ids))
            new_keys.clear(), new_ids.clear()

    try:
        for index, image in images:
            try:
                content = read_image(image)  # once for both: it may come from afar
                key = picture_key(content)
                if key not in store and key not in waiting:
                    waiting[key] = load_image(content, max_pixels=max_pixels)
                bad_samples.good()
            except ImageError as error:
                key = None
                bad_samples.bad("image", f"record {index}{_path_of(image)}: {error}")
            keys.append(key)
            if len(waiting) == batch_size:
                tokenize()
            if len(new_keys) >= _PART_SIZE:
                keep()
        tokenize()
    finally:
        keep()  # also what was made before an interrupt
    return keys


def _path_of(image) -> str:
    """The path of a picture in brackets, for messages; nothing where it has none."""
    path = image.get("path") if isinstance(image, dict) else image
    return f" ({str(path)[:160]})" if isinstance(path, str | os.PathLike) else ""


def _with_column(records, paths: Sequence[str]):
    import datasets

    if missing := [path for path in paths if not Path(path).is_file()]:
        raise ValueError(
            f"{missing[0]}, written by another process, is not here: all processes need the same cache_dir, on a disk "
            "that their machines share (by default below HF_DATASETS_CACHE)."
        )
    columns = [datasets.Dataset.from_file(path) for path in paths]
    if not hasattr(records, "add_column"):
        found = (ids for column in columns for ids in column[TOKEN_IDS])
        return [{**record, TOKEN_IDS: ids} for record, ids in zip(records, found, strict=True)]
    if TOKEN_IDS in records.column_names:
        records = records.remove_columns(TOKEN_IDS)
    if not len(records):  # which cannot be put side by side
        return records.add_column(TOKEN_IDS, [], feature=columns[0].features[TOKEN_IDS])
    return datasets.concatenate_datasets([records, datasets.concatenate_datasets(columns)], axis=1)
