"""Where records come from: one description of a data set, one function that opens it.

`load_records(DataArguments(source=...), "train")` opens any of the kinds below, whole or streaming, and gives records
with the same columns: `image`, not decoded (bytes or a path, so that the collator decodes, counts and drops bad
pictures), `captions`, a list of strings, and whatever else the data holds, under its own name. With another
`record_type` (`questions`, `statements`, `labels`, `texts`, `images`) they are those of other tasks;
`hf_vlp.data.columns` lists them. With `joint` they are records of several sources at once; see `hf_vlp.data.joint`.

=============== ============================================================ ======================================
kind            recognised by                                                notes
=============== ============================================================ ======================================
`scenes`        the word `scenes`                                            drawn on the spot, no download
`parquet`       files `*.parquet`, or a folder of them
`jsonl`         files `*.jsonl` or `*.json` (a list of objects), or a folder paths are relative to the file
`csv`           files `*.csv`, `*.tsv`, or a folder of them                  likewise
`imagefolder`   a folder with `metadata.jsonl`, `.csv` or `.parquet`         as in `datasets`; of pictures alone
                                                                             for `images`; in folders named like
                                                                             their classes for `labels`
`webdataset`    files `*.tar`, or a folder of them                           members `key.jpg`, `key.txt`, `key.json`
`text`          files `*.txt`, or a folder of them                           a record for each line; for `texts`
`disk`          a folder written by `Dataset.save_to_disk`
`karpathy`      `dataset_coco.json`, `dataset_flickr30k.json`                `image_root` holds the pictures
`coco`          `captions_val2014.json` and the like                         `image_root` holds the pictures
`visual_genome` `region_descriptions.json`                                   `image_root` holds the pictures
`hub`           anything else: the name of a data set on the Hub
=============== ============================================================ ======================================

File names may hold `*`, `**`, `?` and braces: `shards/{00000..00099}.tar`, `{train,extra}.parquet`.

Which files belong to which split is read from their names (`train-00000-of-00002.parquet`, `val.jsonl`,
`train/0001.tar`; `val`, `valid`, `dev` mean validation); files whose names say nothing are all of `train`. Or say it:
`train_files`, `validation_files`, `test_files`.

A stream comes in the order of its files and can be resumed exactly (`state_dict`, `load_state_dict` of
`datasets.IterableDataset`); shuffling it is the trainer's work (`training.shuffle_block`), because the shuffle buffer
of `datasets` loses its content at a resume.
"""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import re
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hf_vlp.data.columns import IMAGE_EXTENSIONS, RECORD_TYPES, column_names, has_scheme, unify
from hf_vlp.data.joint import JointRecords, JointStream

if TYPE_CHECKING:
    import datasets

__all__ = ["KINDS", "DataArguments", "load_records"]

logger = logging.getLogger(__name__)

KINDS = (
    "auto",
    "scenes",
    "parquet",
    "jsonl",
    "csv",
    "imagefolder",
    "webdataset",
    "text",
    "disk",
    "karpathy",
    "coco",
    "visual_genome",
    "hub",
)

# The type of records of several sources.
JOINT = "joint"

_EXTENSIONS = {
    "parquet": (".parquet",),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv", ".tsv"),
    "webdataset": (".tar", ".tar.gz", ".tgz"),
    "text": (".txt",),
}
_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}


@dataclass
class DataArguments:
    """Which data, what a record holds, and which of their columns hold pictures and texts."""

    source: str | None = field(
        default="scenes",
        metadata={
            "help": "scenes, a file, folder or pattern of files, or a data set on the Hub; null for no pairs, where "
            "images or texts are given."
        },
    )
    kind: str = field(default="auto", metadata={"help": f"How to read the source: {', '.join(KINDS)}."})
    record_type: str = field(
        default="captions",
        metadata={
            "help": "What a record holds, which also chooses the kind of scenes: "
            f"{', '.join(RECORD_TYPES)}, or {JOINT}: pairs, images and texts together."
        },
    )
    images: dict | None = field(
        default=None,
        metadata={
            "help": f"{JOINT}: pictures alone, a section like this one (source, num_scenes, ...); null for none."
        },
    )
    texts: dict | None = field(default=None, metadata={"help": f"{JOINT}: texts alone, likewise."})
    repeat_seed: int = field(
        default=0, metadata={"help": f"{JOINT}: seed of the orders in which the shorter sources are repeated."}
    )
    train_files: list[str] | None = field(
        default=None, metadata={"help": "Files (or patterns) of the training split; replaces source for it."}
    )
    validation_files: list[str] | None = field(
        default=None, metadata={"help": "Files (or patterns) of the validation split."}
    )
    test_files: list[str] | None = field(default=None, metadata={"help": "Files (or patterns) of the test split."})
    train_split: str = field(default="train", metadata={"help": "What the data call their training split."})
    validation_split: str = field(
        default="validation", metadata={"help": "What the data call their validation split."}
    )
    test_split: str = field(default="test", metadata={"help": "What the data call their test split."})
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration (subset) of a data set on the Hub."}
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of a data set on the Hub."}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Column with the pictures (bytes, paths or addresses); default: found."}
    )
    caption_columns: list[str] | None = field(
        default=None,
        metadata={
            "help": "Columns with captions; dots reach into objects: json.caption, sentences.raw. Default: found."
        },
    )
    text_column: str | None = field(
        default=None,
        metadata={"help": "questions, statements: column with the question or questions, or the statement."},
    )
    answer_column: str | None = field(
        default=None,
        metadata={"help": "questions: column with the answer, the annotators' answers, or one for each question."},
    )
    label_column: str | None = field(
        default=None, metadata={"help": "statements, labels: column with the labels; segmentation: with the maps."}
    )
    label_names: list[str] | None = field(
        default=None,
        metadata={"help": "segmentation: names of the classes in the order of their numbers, or a file, one a line."},
    )
    image_columns: list[str] | None = field(
        default=None, metadata={"help": "statements: the two columns with the left and the right picture."}
    )
    image_root: str | None = field(
        default=None,
        metadata={
            "help": "Folder that relative picture paths start from; default: the folder of the file that names them."
        },
    )
    exclude_ids: str | None = field(
        default=None,
        metadata={
            "help": "File with ids (image_id or file_name) of pictures to leave out, one a line or a JSON list."
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read record by record, instead of preparing the whole data set first."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Records of the training split at most."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Records of every other split at most."})
    dataset_cache: str | None = field(
        default=None, metadata={"help": "Folder for prepared data; default: the cache of the datasets library."}
    )
    num_scenes: int = field(default=4000, metadata={"help": "scenes: pictures of the training split."})
    num_eval_scenes: int = field(default=400, metadata={"help": "scenes: pictures of every other split."})
    scene_size: int = field(default=64, metadata={"help": "scenes: width and height in pixels."})
    scene_objects: list[int] | None = field(
        default=None,
        metadata={"help": "scenes: objects in a picture, or fewest and most; default 2 with captions, else 2 to 4."},
    )
    scene_types: list[str] | None = field(
        default=None, metadata={"help": "scenes: types of questions or statements, or what labels tell; default: all."}
    )
    scene_language: str = field(default="en", metadata={"help": "scenes: language of the captions, en or zh."})
    scene_seed: int = field(default=0, metadata={"help": "scenes: seed of the pictures."})

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}.")
        if self.record_type not in (*RECORD_TYPES, JOINT):
            types = ", ".join((*RECORD_TYPES, JOINT))
            raise ValueError(f"record_type must be one of {types}, not {self.record_type!r}.")
        for name in ("images", "texts"):
            self._read_section(name)
        if self.source is None and self.record_type == JOINT and (self.images or self.texts):
            pass  # no pairs
        elif not isinstance(self.source, str | os.PathLike) or not str(self.source):
            raise ValueError(
                f"source must be 'scenes', a path, a pattern or a name on the Hub, not {self.source!r}. Only joint "
                "pre-training does without, where data.images or data.texts are given."
            )
        else:
            self.source = os.fspath(self.source)
        lists = ("train_files", "validation_files", "test_files", "caption_columns", "scene_objects", "scene_types")
        for name in (*lists, "label_names"):
            value = getattr(self, name)
            if isinstance(value, str | int):  # one entry need not be written as a list
                setattr(self, name, [value])
            elif value is not None and not value:
                raise ValueError(f"{name} must not be an empty list; leave it out instead.")
        if self.image_columns is not None and len(self.image_columns) != 2:
            raise ValueError(f"image_columns must name two columns, left and right, not {self.image_columns!r}.")
        if self.scene_objects is not None and len(self.scene_objects) > 2:
            raise ValueError(f"scene_objects must be a number, or fewest and most, not {self.scene_objects}.")
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name.startswith(("max_", "num_")) and value is not None and value < 1:
                raise ValueError(f"{entry.name} must be at least 1, not {value}.")

    def _read_section(self, name: str):
        """Turn the dictionary `images` or `texts` into arguments of its own."""
        section = getattr(self, name)
        if section is None:
            return
        if isinstance(section, dict):
            if unknown := sorted(section.keys() - {entry.name for entry in fields(self)}):
                raise ValueError(f"data.{name} has no {', '.join(unknown)}; it takes what data takes.")
            try:
                section = DataArguments(**{"record_type": name, **section})
            except ValueError as error:
                raise ValueError(f"data.{name}: {error}") from error
        if not isinstance(section, DataArguments):
            raise ValueError(f"data.{name} must be a section like data itself, not {section!r}.")
        if section.record_type == JOINT or section.images or section.texts:
            raise ValueError(f"data.{name} describes one source: it holds no images, texts or joint records.")
        setattr(self, name, section)

    def sections(self) -> dict[str, DataArguments]:
        """Each source by itself: for joint pre-training `pair`, `text` and `image`, those of them that there are."""
        own = replace(self, source=self.source or "scenes", record_type="captions", images=None, texts=None)
        sections = {"pair": own if self.source else None, "text": self.texts, "image": self.images}
        if self.record_type != JOINT:
            sections = {self.record_type: self}
        return {name: section for name, section in sections.items() if section is not None}

    def is_remote(self) -> bool:
        """Whether the training split is downloaded: a name on the Hub, or an address."""
        if self.train_files:
            return any(map(has_scheme, self.train_files))
        return has_scheme(self.source) or _Opener(self, "train", False)._kind() == "hub"

    def streams(self) -> bool:
        """Whether the records come as a stream: one source that does makes all of joint pre-training do."""
        return any(section.streaming for section in self.sections().values())


def load_records(
    arguments: DataArguments, split: str = "train", streaming: bool | None = None
) -> datasets.Dataset | datasets.IterableDataset | JointRecords | JointStream:
    """Open one split of the data set that `arguments` describe.

    Args:
        split: `"train"`, `"validation"`, `"test"` (the names the data use for these are in the arguments), or any
            other split by the name that the data have for it.
        streaming: overrides `arguments.streaming`.

    Returns a `datasets.Dataset`, or a `datasets.IterableDataset` when streaming, with the columns that belong to
    `arguments.record_type` (by default `image`, undecoded, and `captions`, a list of strings) and the others of the
    data. Where one picture has a list of questions, the rows of the `Dataset` share it: its column `image` holds
    numbers of pictures, and reading a row puts the picture in their place. Writing such a data set to a file would
    lose the pictures. With the record type `joint`, `JointRecords` over the sources that there are, or a `JointStream`
    when any of them is streaming.

    Raises ValueError when there is no such file, folder, split or column, when a folder holds no data, and when no
    record has a text; the message says what there is and what to set. In a stream, records without texts are found,
    counted and limited by the collator.
    """
    if not isinstance(split, str) or not split:
        raise ValueError(f"split must be a name such as 'train', not {split!r}.")
    if arguments.record_type == JOINT:
        return _load_joint(arguments, split, streaming)
    streaming = arguments.streaming if streaming is None else streaming
    opener = _Opener(arguments, split, streaming)
    dataset = opener.open()
    if not streaming:
        # Before the columns are mapped: nothing is computed for records that are not used. (A row may hold several
        # questions, each a record.)
        limit_first = arguments.exclude_ids is None and arguments.record_type != "questions"
        dataset = _limit(dataset, arguments, split) if limit_first else dataset
        _require_records(dataset, arguments, split)
    with _naming_damaged_files(arguments.source):
        columns = column_names(dataset)
    if not columns:
        raise ValueError(f"{arguments.source!r} holds no records.")
    dataset = unify(dataset, columns, arguments, streaming=streaming, folder=opener.folder)
    if arguments.exclude_ids is not None:
        dataset = _exclude(dataset, Path(arguments.exclude_ids), streaming)
    if streaming:
        return _limit(dataset, arguments, split)
    dataset = _limit(dataset, arguments, split)
    _require_records(dataset, arguments, split)
    _require_texts(dataset, arguments)
    _require_pictures(dataset)
    return dataset


def _load_joint(arguments: DataArguments, split: str, streaming: bool | None) -> JointRecords | JointStream:
    sources = {}
    streaming = arguments.streams() if streaming is None else streaming
    for name, section in arguments.sections().items():
        place = {"pair": "data", "text": "data.texts", "image": "data.images"}[name]
        try:
            sources[name] = load_records(section, split, streaming)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return (JointStream if streaming else JointRecords)(sources, seed=arguments.repeat_seed)


def _limit(dataset, arguments: DataArguments, split: str):
    number = arguments.max_train_samples if split == "train" else arguments.max_eval_samples
    if number is None:
        return dataset
    return dataset.select(range(min(number, len(dataset)))) if hasattr(dataset, "select") else dataset.take(number)


def _require_records(dataset, arguments: DataArguments, split: str):
    if len(dataset) == 0:
        raise ValueError(
            f"The split {split!r} of {arguments.source!r} holds no records. Check the files"
            f"{' and ' + arguments.exclude_ids if arguments.exclude_ids else ''}."
        )


def _require_texts(dataset, arguments: DataArguments):
    column = RECORD_TYPES[arguments.record_type]
    if column is None:
        return
    option = "caption_columns" if column == "captions" else "text_column"
    start = 0
    texts_only = dataset.select_columns([column])  # the bytes of the pictures need not be read for this
    while start < len(dataset):  # ends at the first text, thus nearly always in the first piece
        piece = texts_only[start : start + 1000][column]
        texts = (text for cell in piece for text in ([cell] if isinstance(cell, str) else cell or []))
        if any(text is not None and text.strip() for text in texts):
            return
        start += 1000
    raise ValueError(
        f"All {column.removesuffix('s')}s of the {len(dataset):,} records are empty. "
        f"{'Check' if getattr(arguments, option) else f'Set {option}, or check'} the column: the data have "
        f"{', '.join(dataset.column_names)}."
    )


def _require_pictures(dataset):
    """A wrong root is found here, not after the first fifty bad samples."""
    column = next((name for name in ("image", "images") if name in dataset.column_names), None)
    if column is None:
        return
    cells = dataset.select_columns([column])[:10][column]
    if column == "images":
        cells = [cell for pair in cells for cell in pair or ()]
    paths = [cell["path"] for cell in cells if cell and cell["bytes"] is None and cell["path"]]
    if paths and len(paths) == len(cells) and not any(has_scheme(path) or os.path.exists(path) for path in paths):
        raise ValueError(
            f"None of the first {len(paths)} pictures exists, the first one is {paths[0]!r}. Set image_root to the "
            "folder that the paths start from."
        )


# Opening


class _Opener:
    """Finds kind, files and split of one data set and opens it; columns are as the data have them."""

    def __init__(self, arguments: DataArguments, split: str, streaming: bool):
        self.arguments = arguments
        self.split = split
        self.streaming = streaming
        self.folder: str | None = None  # the one folder of the files, where relative paths of pictures start
        self.split_name = {
            "train": arguments.train_split,
            "validation": arguments.validation_split,
            "test": arguments.test_split,
        }.get(split, split)

    def open(self):
        explicit = getattr(self.arguments, f"{self.split}_files", None)
        if explicit:
            files = _expand(explicit)
            return self._open_files(self._kind_of(files), files)
        kind = self._kind()
        if kind in ("disk", "imagefolder") and not os.path.isdir(self.arguments.source):
            raise ValueError(f"There is no folder {self.arguments.source!r} (looked in {os.getcwd()}).")
        if kind in ("scenes", "hub", "disk", "imagefolder"):
            return getattr(self, f"_open_{kind}")()
        found = _expand([self.arguments.source], kind)
        if kind == "karpathy" and len(found) == 1:  # one file with all splits
            return self._open_annotations(kind, found)
        return self._open_files(kind, _files_of_split(found, self.split_name, self.arguments.source))

    def _kind(self) -> str:
        arguments = self.arguments
        source = arguments.source
        if arguments.kind != "auto":
            return arguments.kind
        if source == "scenes":
            return "scenes"
        if os.path.isdir(source):
            return _kind_of_folder(Path(source), arguments.record_type in ("images", "labels"))
        if _by_extension(source) is not None:
            return self._kind_of(_expand([source]))
        looks_like_hub = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith(".")
        if looks_like_hub and not os.path.exists(source):
            return "hub"
        raise ValueError(
            f"Cannot tell what kind of data {source!r} is: "
            + ("it is a file of an unknown type" if os.path.exists(source) else "there is no such file or folder")
            + f" (looked in {os.getcwd()}). Expected 'scenes', a folder, files ending in "
            f"{', '.join(extension for group in _EXTENSIONS.values() for extension in group)}, or a name on the Hub."
        )

    def _kind_of(self, files: list[str]) -> str:
        if self.arguments.kind != "auto":
            return self.arguments.kind
        kinds = {_by_extension(file) for file in files}
        if None in kinds or len(kinds) > 1:
            raise ValueError(f"Files of one split must be of one known type, found {sorted(files)[:5]}. Set kind.")
        kind = kinds.pop()
        if kind == "jsonl" and files[0].endswith(".json") and os.path.isfile(files[0]):
            from hf_vlp.data.annotations import annotation_layout

            layout = annotation_layout(files[0])
            return "jsonl" if layout == "json" else layout
        return kind

    def _open_files(self, kind: str, files: list[str]):
        if kind in ("karpathy", "coco", "visual_genome"):
            return self._open_annotations(kind, files)
        if kind == "hub":
            return self._open_hub(files)
        if kind not in _EXTENSIONS:
            raise ValueError(f"{self.split}_files needs files that can be read one by one, not the kind {kind!r}.")
        options = {"sep": "\t"} if kind == "csv" and files[0].endswith(".tsv") else {}
        dataset = self._load({"jsonl": "json"}.get(kind, kind), data_files={"train": files}, split="train", **options)
        if kind == "text":  # empty lines part paragraphs
            dataset = dataset.filter(lambda line: bool(line.strip()), input_columns=["text"])
        folders = {os.path.dirname(os.path.abspath(file)) for file in files if "://" not in file}
        self.folder = folders.pop() if len(folders) == 1 else None
        return dataset

    def _load(self, path: str, **options):
        import datasets
        from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError

        here = f"{self.arguments.source!r} is no file or folder here (looked in {os.getcwd()}), and"
        try:
            with _naming_damaged_files(options.get("data_files") or options.get("data_dir") or path):
                return datasets.load_dataset(
                    path, streaming=self.streaming, cache_dir=self.arguments.dataset_cache, **options
                )
        except (DatasetNotFoundError, DataFilesNotFoundError) as error:
            raise ValueError(f"{here} cannot be opened on the Hub: {error}") from error
        except ConnectionError as error:
            raise ValueError(f"{here} the Hub cannot be reached: {error}") from error
        except StopIteration:  # how readers of some kinds meet a file of length zero
            raise ValueError(f"{options.get('data_files') or path} holds no records.") from None

    def _open_scenes(self):
        from hf_vlp.data import scenes

        arguments = self.arguments
        number = arguments.num_scenes if self.split == "train" else arguments.num_eval_scenes
        make = {
            "questions": scenes.make_questions,
            "statements": scenes.make_statement_pairs,
            "labels": scenes.make_labels,
        }.get(arguments.record_type, scenes.make_scenes)
        objects = arguments.scene_objects or ([2] if make is scenes.make_scenes else [2, 4])
        types = {}
        if arguments.scene_types is not None:
            if make is scenes.make_scenes:
                raise ValueError(
                    "scene_types are types of questions, statements or labels: set record_type to one of these."
                )
            types = {f"{arguments.record_type.removesuffix('s')}_types": arguments.scene_types}
        if arguments.record_type == "segmentation":
            types = {"masks": True}
        dataset = make(
            number,
            self.split_name,
            seed=arguments.scene_seed,
            image_size=arguments.scene_size,
            num_objects=objects[0] if len(objects) == 1 else tuple(objects),
            language=arguments.scene_language,
            **types,
        )
        return dataset.to_iterable_dataset(num_shards=min(8, number)) if self.streaming else dataset

    def _open_hub(self, files: list[str] | None = None):
        options = {"data_files": {self.split_name: files}} if files else {}
        try:
            return self._load(
                self.arguments.source,
                name=self.arguments.dataset_config,
                revision=self.arguments.dataset_revision,
                split=self.split_name,
                **options,
            )
        except ValueError as error:
            if "Unknown split" in str(error):
                raise ValueError(f"{error} Set {self._split_option()}.") from error
            raise

    def _open_disk(self):
        import datasets

        try:
            dataset = datasets.load_from_disk(self.arguments.source)
        except FileNotFoundError as error:
            raise ValueError(f"{error} It must be a folder written by save_to_disk; otherwise set kind.") from error
        dataset = self._pick(dataset) if isinstance(dataset, dict) else self._only(dataset)
        return dataset.to_iterable_dataset(num_shards=min(8, max(1, len(dataset)))) if self.streaming else dataset

    def _open_imagefolder(self):
        # None: the folders below a split name the classes, where there is no metadata
        drop_labels = None if self.arguments.record_type == "labels" else True
        return self._pick(self._load("imagefolder", data_dir=self.arguments.source, drop_labels=drop_labels))

    def _pick(self, splits):
        """The wanted one of the splits that the data declare."""
        for name in (self.split_name, *_SYNONYMS.get(self.split_name, ())):
            if name in splits:
                return splits[name]
        raise _unknown_split(self.split, self.split_name, list(splits), self.arguments.source)

    def _only(self, dataset):
        if self.split_name != "train":
            raise _unknown_split(self.split, self.split_name, ["train"], self.arguments.source)
        return dataset

    def _split_option(self) -> str:
        return f"{self.split}_split" if self.split in _SYNONYMS else "the name of the split"

    def _open_annotations(self, kind: str, files: list[str]):
        from hf_vlp.data.annotations import karpathy_splits

        if len(files) != 1:
            raise ValueError(f"Annotations of the kind {kind!r} are read from one file, found {files[:5]}.")
        file = files[0]
        root = self.arguments.image_root or os.path.dirname(os.path.abspath(file))
        if not os.path.isdir(root):
            raise ValueError(f"image_root {root!r} is not a folder. Set it to the folder that holds the pictures.")
        stat = os.stat(file)
        options = {
            "kind": kind,
            "path": os.path.abspath(file),
            "split": self.split_name,
            "image_root": os.path.abspath(root),
            # Part of the fingerprint under which datasets caches the result: a changed file is read again. Not a list:
            # datasets takes lists for shards and would call the generator once for each element.
            "stamp": f"{stat.st_size}-{stat.st_mtime_ns}",
        }
        if kind == "karpathy":
            available = karpathy_splits(file)
            reachable = {"train": {"train", "restval"}, "validation": {"val"}}.get(self.split_name, {self.split_name})
            if not reachable & set(available):
                raise _unknown_split(self.split, self.split_name, available, self.arguments.source)
        if self.streaming:
            from datasets import IterableDataset

            return IterableDataset.from_generator(_read_annotations, gen_kwargs=options, features=_record_features())
        from datasets import Dataset

        with _naming_damaged_files(file):
            return Dataset.from_generator(
                _read_annotations,
                gen_kwargs=options,
                features=_record_features(),
                cache_dir=self.arguments.dataset_cache,
            )


@contextlib.contextmanager
def _naming_damaged_files(files):
    """Turn what readers raise on damaged files into a ValueError that names the files."""
    import pyarrow
    from datasets.exceptions import DatasetGenerationError

    try:
        yield
    except (DatasetGenerationError, pyarrow.ArrowException, tarfile.TarError, UnicodeDecodeError, KeyError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        if type(cause) is ValueError:  # our own readers say all there is to say
            raise cause from error
        raise ValueError(
            f"Cannot read {files}: {type(cause).__name__}: {cause}. Check that the files are complete and of the kind "
            "they claim to be."
        ) from error


def _read_annotations(kind: str, path: str, split: str, image_root: str, stamp: str):
    from hf_vlp.data import annotations

    try:
        if kind == "karpathy":
            yield from annotations.read_karpathy(path, split, image_root)
        elif kind == "coco":
            yield from annotations.read_coco_captions(path, image_root)
        else:
            yield from annotations.read_visual_genome(path, image_root)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not laid out like a {kind} file: {type(error).__name__}: {error}. Check the file, or set kind."
        ) from error


def _record_features():
    from datasets import Features, Image, List, Value

    return Features(
        {
            "image": Image(decode=False),
            "captions": List(Value("string")),
            "image_id": Value("string"),
            "file_name": Value("string"),
        }
    )


def _unknown_split(split: str, name: str, available: Iterable[str], source: str) -> ValueError:
    option = f"{split}_split" if split in _SYNONYMS else "the name"
    files = f", or give {split}_files" if split in _SYNONYMS else ""
    called = f" (called {name!r} by the arguments)" if name != split else ""
    return ValueError(
        f"There is no split {split!r}{called} in {source!r}; it has {', '.join(sorted(available))}. "
        f"Set {option} to one of these{files}."
    )


# Files


def _by_extension(name: str) -> str | None:
    name = name.lower()
    return next((kind for kind, extensions in _EXTENSIONS.items() if name.endswith(extensions)), None)


def _kind_of_folder(folder: Path, takes_pictures_alone: bool = False) -> str:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return "disk"
    counts = dict.fromkeys((*_EXTENSIONS, "pictures"), 0)
    for path in folder.rglob("*"):
        if path.name in ("metadata.jsonl", "metadata.csv", "metadata.parquet"):
            return "imagefolder"
        if (kind := _by_extension(path.name)) is not None:
            counts[kind] += 1
        elif path.suffix.lower() in IMAGE_EXTENSIONS:
            counts["pictures"] += 1
    for kind in ("parquet", "webdataset", "jsonl", "csv"):
        if counts[kind]:
            return kind
    if counts["text"] and not counts["pictures"]:
        return "text"
    if counts["pictures"] and takes_pictures_alone:
        return "imagefolder"
    if counts["pictures"]:
        raise ValueError(
            f"The folder {str(folder)!r} holds {counts['pictures']} pictures but no captions. Add a metadata.jsonl "
            'with lines such as {"file_name": "a.jpg", "text": "a dog"}, or give the file with the captions as source '
            "and this folder as image_root."
        )
    raise ValueError(f"The folder {str(folder)!r} is empty: no parquet, jsonl, csv, tar or metadata file in it.")


def _expand_braces(pattern: str) -> list[str]:
    """`a{1..3}b` and `a{x,y}b`, as in a shell; leading zeros are kept."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    body = match.group(1)
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", body):
        first, last = numbers.groups()
        width = len(first) if first.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + step, step)]
    elif "," in body:
        choices = body.split(",")
    else:
        return [pattern]  # braces that mean nothing may be part of a name
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in _expand_braces(f"{before}{choice}{after}")]


def _expand(patterns: list[str], kind: str | None = None) -> list[str]:
    """All files that the patterns stand for, in order; a folder stands for the files of the kind below it."""
    files = []
    for pattern in patterns:
        for name in _expand_braces(os.path.expanduser(pattern)):
            if "://" in name:
                files.append(name)
                continue
            if os.path.isdir(name):
                kind = kind or _kind_of_folder(Path(name))
                found = sorted(str(path) for path in Path(name).rglob("*") if _by_extension(path.name) == kind)
            else:
                found = [name] if os.path.isfile(name) else sorted(glob.glob(name, recursive=True))
            found = [path for path in found if os.path.isfile(path)]
            if not found:
                raise ValueError(
                    f"No such file: {name!r} (looked in {os.getcwd()}). Check the path or pattern"
                    f"{f', from {pattern!r}' if pattern != name else ''}."
                )
            files += found
    return files


def _labels(name: str) -> tuple[str, str | None]:
    """What a file name says of the split: its stem without shard numbers, and train, validation, test or None."""
    path = Path(name)
    stem = path.name.split(".")[0]
    label = re.sub(r"[-_.]?\d+(-of-\d+)?$", "", stem)
    for text in (stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", text.lower()):
            for split, synonyms in _SYNONYMS.items():
                if word in synonyms:
                    return label, split
    return label, None


def _files_of_split(files: list[str], split: str, source: str) -> list[str]:
    # Only folders below the source count: the way to it may well lead through a folder called "test".
    local = [os.path.abspath(file) for file in files if "://" not in file]
    base = source if os.path.isdir(source) else os.path.commonpath([os.path.dirname(file) for file in local] or ["/"])
    labels = {
        file: _labels(os.path.basename(file) if "://" in file else os.path.relpath(file, base)) for file in files
    }
    canonical = next((name for name, synonyms in _SYNONYMS.items() if split in synonyms), split)
    for matches in (
        lambda label, known: label == split,
        lambda label, known: known == canonical,
    ):
        if chosen := [file for file, (label, known) in labels.items() if matches(label, known)]:
            return chosen
    if canonical == "train" and all(known is None for _, known in labels.values()):
        return files
    available = {known or label for label, known in labels.values()}
    if all(known is None for _, known in labels.values()):
        available |= {"train"}
    raise _unknown_split(canonical, split, available, source)


def _exclude(dataset, file: Path, streaming: bool):
    """Leave out records whose `image_id` (or `file_name`) stands in the file."""
    if not file.is_file():
        raise ValueError(f"exclude_ids: no such file {str(file)!r}.")
    content = file.read_text(encoding="utf-8")
    ids = json.loads(content) if content.lstrip().startswith("[") else content.split("\n")
    ids = {str(entry).strip() for entry in ids} - {""}
    columns = column_names(dataset)
    column = next((name for name in ("image_id", "file_name", "id", "__key__") if name in columns), None)
    if column is None:
        raise ValueError(f"exclude_ids needs a column image_id, file_name, id or __key__; the data have {columns}.")
    kept = dataset.filter(lambda value: str(value) not in ids, input_columns=[column])
    if not streaming:
        logger.info("exclude_ids leaves out %d of %d records.", len(dataset) - len(kept), len(dataset))
    return kept
