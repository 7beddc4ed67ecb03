"""From the columns that data happen to have to the columns that collators read.

================= ====================================================================================================
`record_type`     columns of the records, beside those that the data hold on top
================= ====================================================================================================
`captions`        `image`, `captions` (list of strings)
`texts`           `captions`; pictures are left out
`questions`       `image`, `question`, `answers` (list of strings, unless the data have none) and, when a picture comes
                  with a list of questions, one record for each of them, with `question_id`
`statements`      `image`, or `images` (left and right); `statement`; `label` (unless the data have none)
`labels`          `image`, `label` (a number or a name)
`segmentation`    `image`, `segmentation_map` (a picture or array with the class of each pixel)
`images`          `image`
================= ====================================================================================================

Pictures are never decoded, and their bytes are copied only where two columns become one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hf_vlp.data.sources import DataArguments

__all__ = ["IMAGE_EXTENSIONS", "RECORD_TYPES", "column_names", "has_scheme", "only_columns", "unify"]

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

# What a record holds -> the column with its text, if it has one.
RECORD_TYPES = {
    "captions": "captions",
    "texts": "captions",
    "questions": "question",
    "statements": "statement",
    "labels": None,
    "segmentation": None,
    "images": None,
}

# Names tried in this order when a column is not given.
_IMAGE_COLUMNS = (
    *("image", "img", "jpg", "jpeg", "png", "webp", "picture"),
    *("image_path", "file_name", "filepath", "path", "image_url", "url"),
)
_CAPTION_COLUMNS = (
    *("captions", "caption", "text", "texts", "sentences", "sentence", "txt"),
    *("descriptions", "description", "alt_text", "json"),
)
_NESTED_KEYS = ("captions", "caption", "raw", "text")
_PAIR_COLUMNS = (
    *(("image_left", "image_right"), ("left_image", "right_image"), ("image_0", "image_1"), ("image0", "image1")),
    *(("image_1", "image_2"), ("image1", "image2"), ("left", "right")),
)
_QUESTION_IDS = ("question_id", "question_ids")
_ID_COLUMNS = ("image_id", "file_name", "id", "__key__")


class _Column(NamedTuple):
    """A column of the records to be, and where it comes from."""

    name: str
    sources: tuple[str, ...]  # columns of the data that are used up
    make: Callable[[dict[str, Any]], Any]  # from a row of the data
    feature: Any  # None: that of its source
    as_is: bool = False  # a table need not compute it, only rename its source


def column_names(dataset) -> list[str]:
    """Names of the columns; some streams (lists in JSON) know them from their first record only."""
    return dataset.column_names if dataset.column_names is not None else list(next(iter(dataset), ()))


def only_columns(records, columns: Sequence[str]):
    """The records with those of these columns that they have, so that pictures need not be read; lists stay whole."""
    present = [name for name in columns if name in (getattr(records, "column_names", None) or ())]
    return records.select_columns(present) if present and hasattr(records, "select_columns") else records


def has_scheme(path: str) -> bool:
    """Whether a path is an address, such as `https://...` or `hf://...`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", path) is not None or "::" in path


def unify(dataset, columns: Sequence[str], arguments: DataArguments, *, streaming: bool, folder: str | None):
    """The data set with the columns of `arguments.record_type`.

    Args:
        columns: its columns, from `column_names`.
        folder: where relative paths of pictures start unless `arguments.image_root` says otherwise.

    Raises ValueError when a column is not there or cannot be found; the message says what there is and what to set.
    """
    from datasets import Image, List

    known = dict(dataset.features or {})
    root = arguments.image_root
    if root is not None and not os.path.isdir(root):
        raise ValueError(f"image_root {root!r} is not a folder. Set it to the folder that holds the pictures.")
    plan = _PLANS[arguments.record_type](columns, known, arguments, _Locator(root or folder))
    for name, feature in known.items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), Image) and feature.feature.decode:
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    if arguments.record_type == "texts":
        pictures = [name for name, feature in known.items() if isinstance(feature, Image)]
        dataset, columns = dataset.remove_columns(pictures), [name for name in columns if name not in pictures]
    if arguments.record_type == "questions":
        question = next(column.sources[0] for column in plan if column.name == "question")
        if not _is_text(known.get(question)):  # lists of questions, or a stream that does not know
            return (_split_stream if streaming else _split_table)(dataset, columns, known, plan)
    return _unify_stream(dataset, columns, known, plan) if streaming else _unify_table(dataset, known, plan)


def _rest(columns: Sequence[str], plan: list[_Column]) -> list[str]:
    """Columns that stay as they are: neither used nor called like one that is made."""
    taken = {name for column in plan for name in (column.name, *column.sources)}
    return [name for name in columns if name not in taken]


def _features(dataset, plan: list[_Column], kept: Sequence[str]):
    from datasets import Features

    made = {column.name: column.feature or dataset.features[column.sources[0]] for column in plan}
    return Features({**made, **{name: dataset.features[name] for name in kept}})


def _unify_stream(dataset, columns, known, plan):
    kept = _rest(columns, plan)

    def to_record(row):
        return {**{column.name: column.make(row) for column in plan}, **{name: row.get(name) for name in kept}}

    features = _features(dataset, plan, kept) if known else None
    return dataset.map(to_record, remove_columns=list(columns), features=features)


def _unify_table(dataset, known, plan):
    """Only what must be is computed; a column with the bytes of pictures is not copied but renamed."""
    from datasets import Features, concatenate_datasets

    _require_one_picture_column(plan)
    parts = []
    for column in plan:
        if not column.as_is:
            sources = sorted(column.sources)
            parts.append(
                dataset.select_columns(sources).map(
                    lambda row, column=column: {column.name: column.make(row)},
                    remove_columns=sources,
                    features=Features({column.name: column.feature}),
                    desc=column.name,
                )
            )
    renamed = {column.sources[0]: column for column in plan if column.as_is}
    rest = dataset.remove_columns([name for name in known if name not in {*_rest(known, plan), *renamed}])
    for source, column in renamed.items():
        if column.feature is not None and rest.features[source] != column.feature:
            rest = rest.cast_column(source, column.feature)
        rest = rest.rename_column(source, column.name) if source != column.name else rest
    tables = [table for table in (rest, *parts) if table.column_names]
    return concatenate_datasets(tables, axis=1) if len(tables) > 1 else tables[0]


def _require_one_picture_column(plan: list[_Column]):
    (sources,) = [column.sources for column in plan if column.name == "image"] or [()]
    if len(sources) > 1:
        raise ValueError(
            f"The pictures are in several columns, {', '.join(sources)}. Set image_column to one of them, or "
            "streaming to use all."
        )


# Lists of questions about one picture


def _split_stream(dataset, columns, known, plan):
    """One record for each question; rows are split one by one, so that a batch holds one picture."""
    kept = [name for name in _rest(columns, plan) if name not in _QUESTION_IDS]

    def split(rows, indices):
        return _split(rows, indices, plan, kept, numbered=False)

    features = None
    if known:
        features = _split_features(known, _features(dataset, plan, kept))
    return dataset.map(
        split, batched=True, batch_size=1, with_indices=True, remove_columns=list(columns), features=features
    )


def _split_table(dataset, columns, known, plan):
    """One row for each question, with the number of its picture in place of the picture, which is read on demand."""
    from datasets import Value

    _require_one_picture_column(plan)
    (image,) = [column for column in plan if column.name == "image"]
    sources = list(image.sources)
    pictures = _unify_table(dataset.select_columns(sources), {name: known[name] for name in sources}, [image])
    kept = [name for name in _rest(columns, plan) if name not in _QUESTION_IDS]
    features = _split_features(known, _features(dataset, plan, kept))
    features["image"] = Value("int64")
    texts = dataset.remove_columns(sources) if image.as_is else dataset  # paths may be what names the rows

    def split(rows, indices):
        return _split(rows, indices, plan, kept, numbered=True)

    table = texts.map(
        split, batched=True, with_indices=True, remove_columns=texts.column_names, features=features, desc="questions"
    )
    return table.with_transform(_WithPictures(pictures))


class _WithPictures:
    """Puts the pictures in the place of their numbers when rows are read."""

    def __init__(self, pictures):
        self.pictures = pictures

    def __call__(self, rows: dict[str, list]) -> dict[str, list]:
        return {**rows, "image": self.pictures[rows["image"]]["image"]} if "image" in rows else rows


def _split_features(known, features):
    from datasets import Value

    ids = next((known[name].feature for name in _QUESTION_IDS if hasattr(known.get(name), "feature")), Value("string"))
    return type(features)({**features, "question": Value("string"), "question_id": ids})


def _split(rows: dict[str, list], indices: list[int], plan: list[_Column], kept: list[str], *, numbered: bool):
    """Rows, one for each question, from rows with lists of them; a row with a single question is kept as it is."""
    sources = {column.name: column.sources[0] for column in plan}
    image = next(column for column in plan if column.name == "image")
    made = {name: [] for name in (*sources, "question_id", *kept)}
    for position, index in enumerate(indices):
        row = {name: values[position] for name, values in rows.items()}
        questions, answers = row[sources["question"]], row.get(sources.get("answers"))
        ids = next((row[name] for name in _QUESTION_IDS if row.get(name) is not None), None)
        name = next((row[name] for name in _ID_COLUMNS if row.get(name) is not None), index)
        if not isinstance(questions, list):
            questions, answers, ids = [questions], [answers], [ids or name]
        elif not isinstance(ids, list):
            ids = [f"{name}-{number}" for number in range(len(questions))]
        answers = [None] * len(questions) if answers is None else answers
        if not len(questions) == len(answers) == len(ids):
            raise ValueError(
                f"The row {name!r} has {len(questions)} questions, {len(answers)} answers and {len(ids)} ids. Lists "
                "of questions need an answer, or a list of answers, for each of them."
            )
        picture = index if numbered else image.make(row)
        for question, answer, identity in zip(questions, answers, ids):
            record = {"image": picture, "question": question, "question_id": identity}
            record |= {column: row[column] for column in kept}
            if "answers" in sources:
                record["answers"] = _answers(answer)
            for column, value in record.items():
                made[column].append(value)
    return made


def _answers(cell) -> list[str]:
    """The answers in one cell: a string, a list of them, or VQA's dicts with `answer` in any layout."""
    if isinstance(cell, dict):
        cell = cell.get("answer")
    answers = cell if isinstance(cell, list | tuple) else [cell]
    answers = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    wrong = next((answer for answer in answers if answer is not None and not isinstance(answer, str)), None)
    if wrong is not None:
        raise ValueError(
            f"Answers must be text, not {wrong!r} of type {type(wrong).__name__}. Correct answer_column; class "
            "numbers belong into a column `labels`."
        )
    return [answer for answer in answers if answer is not None]


# What each type of record is made of


def _plan_captions(columns, known, arguments, locate) -> list[_Column]:
    return [_plan_image(columns, known, arguments, locate), *_plan_texts(columns, known, arguments, locate)]


def _plan_texts(columns, known, arguments, locate) -> list[_Column]:
    from datasets import List, Value

    found = _find_captions(columns, known, arguments)
    used = tuple(dict.fromkeys(column.split(".")[0] for column in found))
    text = Value("string")
    as_is = used == ("captions",) and known.get("captions") in (List(text), List(Value("large_string")))
    return [_Column("captions", used, _Extractor(found), List(text), as_is)]


def _plan_questions(columns, known, arguments, locate) -> list[_Column]:
    from datasets import List, Value

    text = Value("string")
    question = _find(columns, arguments.text_column, ("question", "questions"), "question", "text_column")
    plan = [
        _plan_image(columns, known, arguments, locate),
        _Column("question", (question,), lambda row: row[question], text, _is_text(known.get(question))),
    ]
    answer = _find(columns, arguments.answer_column, ("answers", "answer"), "answer", "answer_column", needed=False)
    if answer is not None:
        as_is = known.get(answer) == List(text)
        plan.append(_Column("answers", (answer,), lambda row: _answers(row.get(answer)), List(text), as_is))
    return plan


def _plan_statements(columns, known, arguments, locate) -> list[_Column]:
    from datasets import Value

    names = ("statement", "sentence", "hypothesis", "text", "caption")
    statement = _find(columns, arguments.text_column, names, "statement", "text_column")
    plan = [
        _plan_pair(columns, known, arguments, locate) or _plan_image(columns, known, arguments, locate),
        _Column("statement", (statement,), lambda row: row[statement], Value("string"), as_is=True),
    ]
    label = _find(columns, arguments.label_column, ("label",), "label", "label_column", needed=False)
    if label is not None:
        plan.append(_Column("label", (label,), lambda row: row.get(label), known.get(label), as_is=True))
    return plan


def _plan_labels(columns, known, arguments, locate) -> list[_Column]:
    label = _find(columns, arguments.label_column, ("label", "class", "category"), "label", "label_column")
    return [
        _plan_image(columns, known, arguments, locate),
        _Column("label", (label,), lambda row: row.get(label), known.get(label), as_is=True),
    ]


def _plan_segmentation(columns, known, arguments, locate) -> list[_Column]:
    from datasets import Image

    names = ("segmentation_map", "annotation", "semantic_mask", "mask", "label", "labels", "seg_map")
    found = _find(columns, arguments.label_column, names, "segmentation map", "label_column")
    feature = known.get(found)
    is_text = _is_text(feature)
    made = Image(decode=False) if is_text or isinstance(feature, Image) else None  # an array stays one

    def make(row):
        cell = row.get(found)
        return cell if isinstance(cell, list) else locate(cell)

    return [
        _plan_image(columns, known, arguments, locate),
        _Column("segmentation_map", (found,), make, made, as_is=not is_text),
    ]


def _plan_images(columns, known, arguments, locate) -> list[_Column]:
    return [_plan_image(columns, known, arguments, locate)]


_PLANS = {
    "captions": _plan_captions,
    "texts": _plan_texts,
    "questions": _plan_questions,
    "statements": _plan_statements,
    "labels": _plan_labels,
    "segmentation": _plan_segmentation,
    "images": _plan_images,
}


def _plan_image(columns, known, arguments, locate) -> _Column:
    from datasets import Image

    found = tuple(_find_image(columns, known, arguments))

    def make(row):
        return locate(next((row[name] for name in found if row.get(name) is not None), None))

    return _Column("image", found, make, Image(decode=False), as_is=not _is_text(known.get(found[0])))


def _plan_pair(columns, known, arguments, locate) -> _Column | None:
    """Two pictures, left and right; None when the data have one."""
    from datasets import Image, List

    feature = List(Image(decode=False))
    pair = arguments.image_columns
    if pair is None:
        if arguments.image_column is not None:
            return None
        if "images" in columns:
            inner = getattr(known.get("images"), "feature", None)
            as_is = isinstance(inner, Image)
            return _Column(
                "images", ("images",), lambda row: [locate(cell) for cell in row["images"] or ()], feature, as_is
            )
        pair = next((names for names in _PAIR_COLUMNS if set(names) <= set(columns)), None)
        if pair is None:
            return None
    for name in pair:
        _find(columns, name, (), "image", "image_columns")
    return _Column("images", tuple(pair), lambda row: [locate(row[name]) for name in pair], feature)


def _find(columns, given: str | None, names: Sequence[str], what: str, option: str, *, needed=True) -> str | None:
    """The column that is given, or the first of the usual names."""
    if given is not None and given not in columns:
        raise ValueError(
            f"There is no {what} column {given!r}; the data have {', '.join(columns)}. Set {option} to one of these."
        )
    found = given or next((name for name in names if name in columns), None)
    if found is None and needed:
        raise ValueError(
            f"No {what} column is recognised; the data have {', '.join(columns)}. Set {option} to the one that holds "
            f"the {what}s."
        )
    return found


def _is_text(feature) -> bool:
    from datasets import Value

    return feature in (Value("string"), Value("large_string"))


def _find_image(columns: list[str], known: dict, arguments: DataArguments) -> list[str]:
    from datasets import Image

    if arguments.image_column is not None:
        if arguments.image_column not in columns:
            raise ValueError(
                f"There is no image column {arguments.image_column!r}; the data have {', '.join(columns)}. "
                "Set image_column to one of these."
            )
        return [arguments.image_column]
    typed = [name for name, feature in known.items() if isinstance(feature, Image)]
    if len(typed) == 1:
        return typed
    extensions = [name for name in columns if f".{name}" in IMAGE_EXTENSIONS]  # webdataset with several formats
    if extensions:
        return extensions
    for name in _IMAGE_COLUMNS:
        if name in columns:
            return [name]
    raise ValueError(
        f"No image column is recognised; the data have {', '.join(columns)}. Set image_column to the one that holds "
        "pictures, paths or addresses, or record_type to 'texts' if there are none."
    )


def _find_captions(columns: list[str], known: dict, arguments: DataArguments) -> list[str]:
    if arguments.caption_columns is not None:
        for column in arguments.caption_columns:
            top, *keys = column.split(".")
            if column in columns:
                continue
            if top not in columns:
                raise ValueError(
                    f"There is no caption column {column!r}; the data have {', '.join(columns)}. Set caption_columns "
                    "to one or more of these."
                )
            available = _keys_of(known.get(top))
            if available is not None and keys and keys[0] not in available:
                raise ValueError(
                    f"The column {top!r} has no field {keys[0]!r}, only {', '.join(available) or 'plain values'}. "
                    "Correct caption_columns."
                )
        return arguments.caption_columns
    for name in _CAPTION_COLUMNS:
        if name not in columns:
            continue
        available = _keys_of(known.get(name))
        if not available:
            if name != "json":
                return [name]
        elif key := next((key for key in _NESTED_KEYS if key in available), None):
            return [f"{name}.{key}"]
    raise ValueError(
        f"No caption column is recognised; the data have {', '.join(columns)}. Set caption_columns to the one or "
        "those that hold the captions (dots reach into objects: json.caption)."
    )


def _keys_of(feature) -> list[str] | None:
    """Fields of a column of objects (or lists of them); an empty list for plain values, None when unknown."""
    if feature is None:
        return None
    inner = getattr(feature, "feature", feature)
    return list(inner) if isinstance(inner, dict) else []


class _Extractor:
    """Record -> list of captions, from one or several columns, with dots into objects."""

    def __init__(self, columns: list[str]):
        self.columns = columns

    def __call__(self, row: dict[str, Any]) -> list[str]:
        captions: list[str] = []
        for column in self.columns:
            if column in row:
                self._collect(row[column], [], captions)
            else:
                top, *keys = column.split(".")
                self._collect(row.get(top), keys, captions)
        return captions

    def _collect(self, value, keys: list[str], captions: list[str]) -> None:
        if isinstance(value, list | tuple):
            for item in value:
                self._collect(item, keys, captions)
        elif isinstance(value, dict) and keys:
            self._collect(value.get(keys[0]), keys[1:], captions)
        elif isinstance(value, bytes):
            captions.append(value.decode("utf-8", "replace"))
        elif isinstance(value, str):
            captions.append(value)
        elif value is not None:
            raise ValueError(
                f"Captions must be text, but {', '.join(self.columns)} holds {value!r} of type "
                f"{type(value).__name__}. Correct caption_columns."
            )


class _Locator:
    """Picture cell -> the dict of bytes and path that `datasets.Image(decode=False)` uses.

    Relative paths in text columns get the root in front; what `datasets` itself located, and addresses, stay.
    """

    def __init__(self, root: str | None):
        self.root = root

    def __call__(self, cell) -> dict[str, Any] | None:
        if cell is None or isinstance(cell, dict):
            return cell
        if isinstance(cell, bytes):
            return {"bytes": cell, "path": None}
        if cell and self.root and not has_scheme(cell):
            cell = os.path.join(self.root, cell)
        return {"bytes": None, "path": cell}
