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
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers.utils import logging

from hf_vlp.data.collators import BadSamplePolicy
from hf_vlp.data.image_io import DEFAULT_MAX_PIXELS, ImageError, load_image

__all__ = ["COLUMN", "add_visual_tokens", "default_cache_dir", "picture_key", "tokenizer_fingerprint"]

logger = logging.get_logger(__name__)

COLUMN = "visual_token_ids"
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
    """What a picture is known by: a digest of its encoded bytes, of its file's, or of the pixels of a PIL picture.

    Raises ImageError for a file that cannot be read.
    """
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, str | os.PathLike) and Path(image).is_file():
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise ImageError(f"{image} cannot be read: {error}") from error
    if not isinstance(image, bytes):
        image = load_image(image)
        image = repr((image.mode, image.size)).encode() + image.tobytes()
    return hashlib.blake2b(image, digest_size=16).digest()


class _Place(NamedTuple):
    part: int
    row: int


class _Store:
    """Ids of one tokenizer on the disk: a folder of Arrow files, each of which appears whole or not at all."""

    def __init__(self, folder: Path, num_tokens: int):
        self.folder = folder
        self.num_tokens = num_tokens
        self.parts: list[np.ndarray] = []  # mapped into memory where Arrow allows it
        self.places: dict[bytes, _Place] = {}
        for path in sorted(folder.glob("*.arrow")):
            self._read(path)

    def _read(self, path: Path):
        import pyarrow as pa

        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
            keys, ids = table.column("key").to_pylist(), table.column(COLUMN).chunk(0)
            values = ids.values.to_numpy(zero_copy_only=False).reshape(len(keys), ids.type.list_size)
            if values.shape[1] != self.num_tokens:
                raise ValueError(f"{values.shape[1]} ids a picture, expected {self.num_tokens}")
        except (OSError, ValueError, KeyError, IndexError, AttributeError) as error:  # of Arrow too
            logger.warning(f"{path} is no cache of visual tokens and is passed over: {error}.")
            return
        self._add(keys, values)

    def _add(self, keys: Sequence[bytes], values: np.ndarray):
        for row, key in enumerate(keys):
            self.places[key] = _Place(len(self.parts), row)
        self.parts.append(values)

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def __getitem__(self, key: bytes) -> np.ndarray:
        place = self.places[key]
        return self.parts[place.part][place.row]

    def write(self, keys: Sequence[bytes], values: np.ndarray):
        """Keep the ids of further pictures, (pictures, patches). Raises OSError when the disk is full."""
        import pyarrow as pa

        ids = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        table = pa.table({"key": pa.array(keys, pa.binary(16)), COLUMN: ids})
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".part-", dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
                file.flush()
                os.fsync(file.fileno())
            # A name of its own content: processes that make the same part do no harm to each other.
            name = hashlib.blake2b(b"".join(keys), digest_size=8).hexdigest()
            os.replace(temporary, self.folder / f"{name}.arrow")
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        self._add(keys, values)


@torch.no_grad()
def add_visual_tokens(
    records,
    tokenizer,
    *,
    cache_dir: str | os.PathLike | None = None,
    batch_size: int = 64,
    bad_samples: BadSamplePolicy | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    progress: bool = True,
):
    """The records with the ids of their pictures in a further column.

    Args:
        records: a `datasets.Dataset`, or a list of records, with the column `image`.
        tokenizer: a `VlBeitVqkdTokenizer` on the device where it shall run. Its mode is kept.
        cache_dir: where ids are kept and looked for; by default in the cache of `datasets`.
        batch_size: pictures that are tokenized together.
        bad_samples: what happens to pictures that cannot be read; by default they are counted and have no ids.
        max_pixels: see `load_image`.

    Returns a `Dataset` (for a list: a list of new dicts) with `visual_token_ids`, a list of `tokenizer.num_tokens`
    numbers, `None` for a picture that cannot be read. Raises ValueError for a stream, and for records without
    pictures; OSError when the disk is full, with everything kept that was there before.
    """
    if not hasattr(records, "__len__"):
        raise ValueError(
            "Visual tokens are kept for data sets with a length, not for streams: open the data without streaming, or "
            "let the trainer tokenize each batch (model.visual_tokenizer_name_or_path)."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1.")
    bad_samples = bad_samples or BadSamplePolicy()
    folder = Path(cache_dir or default_cache_dir()) / tokenizer_fingerprint(tokenizer)
    store = _Store(folder, tokenizer.config.num_tokens)
    was_training = tokenizer.training
    tokenizer.eval()
    keys: list[bytes | None] = []
    new_keys: list[bytes] = []
    new_ids: list[np.ndarray] = []
    waiting: dict[bytes, Any] = {}

    def tokenize():
        if waiting:
            new_ids.append(_tokenize(tokenizer, list(waiting.values())))
            new_keys.extend(waiting)
            waiting.clear()

    def keep():
        if new_keys:
            store.write(new_keys, np.concatenate(new_ids))
            new_keys.clear(), new_ids.clear()

    try:
        for index, image in enumerate(
            tqdm(_images(records), total=len(records), unit="picture", disable=not progress)
        ):
            try:
                key = picture_key(image)
                if key not in store and key not in waiting:
                    waiting[key] = load_image(image, max_pixels=max_pixels)
                bad_samples.good()
            except ImageError as error:
                key = None
                bad_samples.bad("image", f"record {index}: {error}")
            keys.append(key)
            if len(waiting) == batch_size:
                tokenize()
            if len(new_keys) >= _PART_SIZE:
                keep()
        tokenize()
    finally:
        keep()  # also what was made before an interrupt
        tokenizer.train(was_training)
    if bad_samples.counts["bad"]:
        logger.warning(bad_samples.report())
    return _with_column(records, keys, store)


def _images(records) -> Iterator[Any]:
    """The pictures one by one, undecoded, without the other columns."""
    if hasattr(records, "column_names"):
        import datasets

        if "image" not in records.column_names:
            raise ValueError(f"The records have no 'image', only {records.column_names}.")
        records = records.select_columns("image")
        if isinstance((records.features or {}).get("image"), datasets.Image):
            records = records.cast_column("image", datasets.Image(decode=False))
    for record in records:
        if "image" not in record:
            raise ValueError(f"The record has no 'image', only {sorted(record)}.")
        yield record["image"]


def _tokenize(tokenizer, images: list) -> np.ndarray:
    """(pictures, patches) in the smallest type that holds all codes."""
    from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil

    side = tokenizer.config.image_size
    # Of this back end on every machine: the other one rounds differently, which moves patches to other codes.
    processor = MomeImageProcessorPil(size={"height": side, "width": side}, do_normalize=False)
    pixel_values = processor(images=images, return_tensors="pt")["pixel_values"]
    ids = tokenizer.get_token_ids(pixel_values).cpu().numpy()
    return ids.astype(np.min_scalar_type(tokenizer.config.codebook_size - 1))


def _with_column(records, keys: list[bytes | None], store: _Store):
    if not hasattr(records, "add_column"):
        found = (None if key is None else store[key].tolist() for key in keys)
        return [{**record, COLUMN: ids} for record, ids in zip(records, found)]
    import datasets
    import pyarrow as pa

    values = np.zeros((len(keys), store.num_tokens), np.int32)
    for row, key in enumerate(keys):
        if key is not None:
            values[row] = store[key]
    offsets = np.arange(len(keys) + 1, dtype=np.int32) * store.num_tokens
    missing = pa.array([key is None for key in keys])
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()), mask=missing)
    if COLUMN in records.column_names:
        records = records.remove_columns(COLUMN)
    features = datasets.Features({COLUMN: datasets.List(datasets.Value("int32"))})
    ids = datasets.Dataset(pa.table({COLUMN: column}), info=datasets.DatasetInfo(features=features))
    return datasets.concatenate_datasets([records, ids], axis=1)
