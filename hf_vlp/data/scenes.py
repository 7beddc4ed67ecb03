"""Small drawn pictures with everything that vision-language tasks need, made on the spot from a seed.

A scene holds one to four flat shapes on a light background. Every object has a size, a colour and a shape, no two
objects of a scene share colour *and* shape, boxes never overlap, and two objects stand in a relation ("left of",
"right of", "above", "below") when the distance of their centres along one axis is at least twice that along the other.
Pairs on a diagonal have no relation, so that every caption is plainly true or plainly false of a picture.

====================== ==========================================================================================
`make_scenes`          pictures with captions, boxes, relations and, on request, masks of the objects
`make_questions`       questions and answers of six types (`QUESTION_TYPES`)
`make_statement_pairs` true and false statements over two pictures, in the manner of NLVR2
`make_labels`          pictures with a class: the colour and shape of their one large object
`make_entailment`      pictures with a premise and a hypothesis: entailment, neutral or contradiction
`make_page_pairs`      for retrieval: a picture, a second picture of the same content, and a page of text about it
====================== ==========================================================================================

Splits. Scenes are told apart by their content: the attributes of all objects and the relations among them.

* `compositional` holds exactly the scenes in which an object of some (colour, shape) stands in a relation withheld
  from it (`is_withheld`): in no other split is a yellow square ever left of anything, for example, though yellow
  squares stand above, below and right of other objects, and other objects stand left of those. One triple of colour,
  shape and relation in eight is withheld.
* `train`, `validation` and `test` (80, 10 and 10 percent) divide the rest by a hash of the objects' attributes: two
  objects that appear together in one of them never appear together in another, in whatever relation.

Everything is a function of (kind of data set, split, seed, number of objects, index of the row): a longer data set
begins with the rows of a shorter one, the picture's size changes no content, and process, platform, Python version and
hash seed do not matter.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

__all__ = [
    "COLOURS",
    "ENTAILMENT_LABELS",
    "LABEL_TYPES",
    "LANGUAGES",
    "QUESTION_TYPES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "STATEMENT_TYPES",
    "Scene",
    "SceneObject",
    "answer_vocabulary",
    "draw_masks",
    "draw_scene",
    "is_withheld",
    "make_entailment",
    "make_labels",
    "make_page_pairs",
    "make_questions",
    "make_scenes",
    "make_statement_pairs",
]

SPLITS = ("train", "validation", "test", "compositional")
LANGUAGES = ("en", "zh")
SIZES = ("small", "large")
COLOURS = {
    "red": (216, 40, 44),
    "orange": (244, 140, 28),
    "yellow": (240, 214, 44),
    "green": (44, 160, 72),
    "blue": (44, 88, 212),
    "purple": (136, 56, 172),
    "pink": (246, 132, 188),
    "black": (36, 36, 40),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
RELATIONS = ("left", "right", "above", "below")
QUESTION_TYPES = ("colour", "shape", "size", "count", "relation", "yes/no")
STATEMENT_TYPES = ("both", "exactly one", "neither", "more objects", "count", "relation")
LABEL_TYPES = ("colour", "shape")
ENTAILMENT_LABELS = ("entailment", "neutral", "contradiction")

_COLOUR_NAMES = tuple(COLOURS)
_INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_MAX_OBJECTS = 4
_MAX_COUNT = 3  # highest answer to "how many": four alike are too rare to be asked as often as the others
# Sides of the boxes as a share of the picture's: 13 to 16 and 22 to 26 pixels of 64.
_SIDES = {"small": (0.205, 0.25), "large": (0.345, 0.405)}
_GAP = 0.03  # least distance of two boxes, and of a box from the border
_COLOUR_JITTER = 12  # in each channel; any two colours are 74 or more apart in one of them
_SUPERSAMPLING = 8  # for smooth edges

_CHINESE = {
    "small": "小",
    "large": "大",
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "black": "黑色",
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "diamond": "菱形",
    "cross": "十字形",
    "star": "星形",
    "object": "物体",
    "left": "左边",
    "right": "右边",
    "above": "上方",
    "below": "下方",
    "yes": "是",
    "no": "否",
}
_ENGLISH_RELATION = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
_NUMBERS = {
    "en": ("no", "one", "two", "three", "four", "five", "six", "seven", "eight"),
    "zh": ("零", "一", "两", "三", "四", "五", "六", "七", "八"),
}
# What no picture of flat shapes can tell; without these a hypothesis could not be neutral.
_INVISIBLE = (
    ("is made of wood", "是木头做的"),
    ("is made of glass", "是玻璃做的"),
    ("belongs to a child", "属于一个孩子"),
    ("was drawn yesterday", "是昨天画的"),
    ("is heavy", "很重"),
    ("is cold to the touch", "摸起来很凉"),
    ("will be painted over tomorrow", "明天会被涂掉"),
    ("is older than the picture", "比这幅图更旧"),
)


class _Kind(NamedTuple):
    """What an object is, without its place."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class SceneObject:
    """One object: its attributes, its place and its exact colour.

    x, y: centre, and side: side of the square box, all as a share of the picture's side.
    rgb: the colour it is drawn in, close to that of its name.
    """

    size: str
    colour: str
    shape: str
    x: float
    y: float
    side: float
    rgb: tuple[int, int, int]

    def box(self, image_size: int) -> tuple[int, int, int, int]:
        """Pixels (left, top, right, bottom), the last two exclusive."""
        side = round(self.side * image_size)
        left, top = round(self.x * image_size - side / 2), round(self.y * image_size - side / 2)
        return left, top, left + side, top + side


@dataclass(frozen=True)
class Scene:
    """Objects in drawing order, the background, and what holds among them.

    relations: (i, relation, j), "object i stands in this relation to object j"; both directions of each related pair.
    """

    objects: tuple[SceneObject, ...]
    background: tuple[int, int, int]
    relations: tuple[tuple[int, str, int], ...]

    def content(self) -> tuple:
        """What tells it from other scenes: attributes and relations, whatever the order of the objects."""
        kinds = [_Kind(item.size, item.colour, item.shape) for item in self.objects]
        related = sorted((kinds[i], relation, kinds[j]) for i, relation, j in self.relations)
        return tuple(sorted(kinds)), tuple(related)


def is_withheld(colour: str, shape: str, relation: str) -> bool:
    """Whether only the split `compositional` shows an object of this colour and shape in this relation to another."""
    colour_index, shape_index = _COLOUR_NAMES.index(colour), SHAPES.index(shape)
    if (colour_index + shape_index) % 2:
        return False
    return (colour_index // 2 + shape_index) % len(RELATIONS) == RELATIONS.index(relation)


# --- scenes -------------------------------------------------------------------------------------------------------


class _Dice:
    """Random choices that are the same everywhere: Python promises stability for `random()` only."""

    def __init__(self, *key):
        self.random = random.Random("/".join(map(str, key))).random

    def below(self, number: int) -> int:
        return int(self.random() * number)

    def pick(self, options: Sequence):
        return options[int(self.random() * len(options))]

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def shuffled(self, options: Sequence) -> list:
        options = list(options)
        for position in range(len(options) - 1, 0, -1):
            other = self.below(position + 1)
            options[position], options[other] = options[other], options[position]
        return options


@functools.cache
def _code(kind: _Kind) -> int:
    """A number for an object; not `hash`, which differs from process to process."""
    return int.from_bytes(hashlib.blake2b("/".join(kind).encode(), digest_size=8).digest(), "big")


def _part(kinds: Sequence[_Kind]) -> str:
    """Which of train, validation and test these objects may appear in together, whatever their order."""
    total = sum(map(_code, kinds)) & 0xFFFFFFFFFFFFFFFF
    # Mixed (with the multiplier of splitmix64), lest one object and the remainder of the other decide.
    bucket = ((total ^ (total >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF) >> 32
    return ("validation", "test")[bucket % 10] if bucket % 10 < 2 else "train"


def _relation(first: SceneObject, second: SceneObject) -> str | None:
    """How `first` stands to `second`, or None on a diagonal."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) >= 2 * abs(down):
        return "left" if across < 0 else "right"
    if abs(down) >= 2 * abs(across):
        return "above" if down < 0 else "below"
    return None


def _relations(objects: Sequence[SceneObject]) -> tuple[tuple[int, str, int], ...]:
    found = []
    for i, first in enumerate(objects):
        for j, second in enumerate(objects[:i]):
            relation = _relation(second, first)
            if relation is not None:
                found += [(j, relation, i), (i, _INVERSE[relation], j)]
    return tuple(found)


def _apart(first: SceneObject, second: SceneObject) -> bool:
    least = (first.side + second.side) / 2 + _GAP
    return abs(first.x - second.x) >= least or abs(first.y - second.y) >= least


def _place(kinds: Sequence[_Kind], dice: _Dice) -> tuple[SceneObject, ...] | None:
    """Objects of these kinds at random places, or None when there was no room."""
    objects: list[SceneObject] = []
    for size, colour, shape in kinds:
        side = dice.between(*_SIDES[size])
        rgb = tuple(
            min(255, max(0, value + dice.below(2 * _COLOUR_JITTER + 1) - _COLOUR_JITTER)) for value in COLOURS[colour]
        )
        low = side / 2 + _GAP
        for _ in range(20):
            item = SceneObject(size, colour, shape, dice.between(low, 1 - low), dice.between(low, 1 - low), side, rgb)
            if all(_apart(item, other) for other in objects):
                objects.append(item)
                break
        else:
            return None
    return tuple(objects)


def _random_background(dice: _Dice) -> tuple[int, int, int]:
    grey = 205 + dice.below(38)
    return tuple(grey + dice.below(13) for _ in range(3))


def _random_kinds(dice: _Dice, split: str, num_objects: tuple[int, int]) -> list[_Kind]:
    """What stands in a scene, apart from the places; draws until it may appear in the split."""
    fewest, most = num_objects
    while True:
        number = fewest + dice.below(most - fewest + 1)
        kinds: list[_Kind] = []
        while len(kinds) < number:
            kind = _Kind(dice.pick(SIZES), dice.pick(_COLOUR_NAMES), dice.pick(SHAPES))
            if all(kind[1:] != other[1:] for other in kinds):
                kinds.append(kind)
        if split == "compositional" or _part(kinds) == split:
            return kinds


def _arrange(kinds: Sequence[_Kind], dice: _Dice, split: str) -> Scene | None:
    """A scene of these objects, or None when no place was found that has room for all and belongs to the split."""
    for _ in range(4):
        objects = _place(kinds, dice)
        if objects is None:
            continue
        relations = _relations(objects)
        if len(kinds) > 1 and not relations:
            continue
        withheld = any(is_withheld(objects[i].colour, objects[i].shape, relation) for i, relation, _ in relations)
        if withheld == (split == "compositional"):
            return Scene(objects, _random_background(dice), relations)
    return None


def _random_scene(
    dice: _Dice,
    split: str,
    num_objects: tuple[int, int],
    suits: Callable[[Sequence[_Kind]], bool] = lambda kinds: True,
) -> Scene:
    """A scene that belongs to the split and whose objects suit; draws until one does."""
    while True:
        kinds = _random_kinds(dice, split, num_objects)
        # The cheap test comes before the places are drawn.
        scene = _arrange(kinds, dice, split) if suits(kinds) else None
        if scene is not None:
            return scene


def _second_view(scene: Scene, dice: _Dice) -> Scene:
    """The same content with other places, sides, colours and background."""
    for attempt in range(40):
        reach = 0.16 * (1 - attempt / 40)
        objects = []
        for item in scene.objects:
            side = dice.between(*_SIDES[item.size])
            low = side / 2 + _GAP
            x, y = (min(1 - low, max(low, value + dice.between(-reach, reach))) for value in (item.x, item.y))
            rgb = tuple(
                min(255, max(0, value + dice.below(2 * _COLOUR_JITTER + 1) - _COLOUR_JITTER))
                for value in COLOURS[item.colour]
            )
            objects.append(replace(item, x=x, y=y, side=side, rgb=rgb))
        if _relations(objects) == scene.relations and all(
            _apart(first, second) for i, first in enumerate(objects) for second in objects[:i]
        ):
            return Scene(tuple(objects), _random_background(dice), scene.relations)
    return replace(scene, background=_random_background(dice))


# --- drawing ------------------------------------------------------------------------------------------------------


def _outline(shape: str, side: int) -> list[tuple[float, float]]:
    """Corners of a shape in a square of this side; not for circles and crosses."""
    if shape == "triangle":
        corners = [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)]
    elif shape == "diamond":
        corners = [(0.5, 0.0), (1.0, 0.5), (0.5, 1.0), (0.0, 0.5)]
    elif shape == "star":
        angles = np.pi * (np.arange(10) / 5 - 0.5)
        radii = np.where(np.arange(10) % 2, 0.21, 0.54)
        # a five-pointed star is less high than wide: moved down to stand in the middle of its box
        corners = list(zip(0.5 + radii * np.cos(angles), 0.54 + radii * np.sin(angles)))
    else:
        raise ValueError(f"{shape!r} is not drawn from corners.")
    return [(float(x) * side, float(y) * side) for x, y in corners]


@functools.lru_cache(maxsize=1024)
def _stencil(shape: str, side: int) -> Image.Image:
    """Coverage of each pixel of the box by the shape, mode L: drawn large and averaged down."""
    full = side * _SUPERSAMPLING
    stencil = Image.new("L", (full, full))
    draw = ImageDraw.Draw(stencil)
    if shape == "circle":
        draw.ellipse((0, 0, full - 1, full - 1), fill=255)
    elif shape == "square":
        draw.rectangle((0, 0, full, full), fill=255)
    elif shape == "cross":
        arm = round(full / 3)
        draw.rectangle((arm, 0, full - arm - 1, full), fill=255)
        draw.rectangle((0, arm, full, full - arm - 1), fill=255)
    else:
        draw.polygon(_outline(shape, full), fill=255)
    return stencil.reduce(_SUPERSAMPLING)


def draw_scene(scene: Scene, image_size: int = 64) -> Image.Image:
    """The picture, RGB, `image_size` pixels a side, edges smoothed."""
    image = Image.new("RGB", (image_size, image_size), scene.background)
    for item in scene.objects:
        left, top, right, bottom = item.box(image_size)
        image.paste(item.rgb, (left, top, right, bottom), _stencil(item.shape, right - left))
    return image


def draw_masks(scene: Scene, image_size: int = 64) -> tuple[Image.Image, Image.Image]:
    """Masks of mode L: instances (0 background, 1 + index of the object) and classes (0, 1 + index in `SHAPES`).

    A pixel belongs to an object that covers at least half of it.
    """
    instances = Image.new("L", (image_size, image_size))
    classes = Image.new("L", (image_size, image_size))
    for index, item in enumerate(scene.objects):
        left, top, right, bottom = item.box(image_size)
        covered = _stencil(item.shape, right - left).point(lambda value: 255 if value >= 128 else 0)
        instances.paste(1 + index, (left, top, right, bottom), covered)
        classes.paste(1 + SHAPES.index(item.shape), (left, top, right, bottom), covered)
    return instances, classes


def _png(image: Image.Image) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


# --- words --------------------------------------------------------------------------------------------------------


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(language: str, *, size: str = "", colour: str = "", shape: str = "") -> str:
    """The attributes that are given, without article: "small red circle", "red object"."""
    if language == "en":
        return " ".join(word for word in (size, colour, shape or "object") if word)
    adjective = f"{_CHINESE[size]}的" if size else ""
    return adjective + (_CHINESE[colour] if colour else "") + _CHINESE[shape or "object"]


def _a(language: str, **attributes: str) -> str:
    noun = _noun(language, **attributes)
    return _with_article(noun) if language == "en" else f"一个{noun}"


def _the(language: str, **attributes: str) -> str:
    noun = _noun(language, **attributes)
    return f"the {noun}" if language == "en" else f"这个{noun}"


def _number_of(language: str, number: int, **attributes: str) -> str:
    """ "two red objects" """
    noun = _noun(language, **attributes)
    if language == "zh":
        return f"{_NUMBERS['zh'][number]}个{noun}"
    return f"{_NUMBERS['en'][number]} {noun if number == 1 else _plural(noun)}"


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")


def _kind(item: SceneObject) -> dict[str, str]:
    return {"size": item.size, "colour": item.colour, "shape": item.shape}


def _pair_name(item: SceneObject) -> dict[str, str]:
    """Colour and shape: they name one object of a scene."""
    return {"colour": item.colour, "shape": item.shape}


def _related(language: str, subject: str, relation: str, reference: str, *, sentence: bool = False) -> str:
    """ "subject left of reference", or "subject is left of reference" as a sentence."""
    if language == "zh":
        return f"{subject}在{reference}的{_CHINESE[relation]}"
    return f"{subject} {'is ' if sentence else ''}{_ENGLISH_RELATION[relation]} {reference}"


def _word(language: str, word: str) -> str:
    return word if language == "en" else _CHINESE.get(word, word)


def _captions(scene: Scene, language: str) -> list[str]:
    if len(scene.objects) == 1:
        return [_a(language, **_kind(scene.objects[0]))]
    return [
        _related(language, _a(language, **_kind(scene.objects[i])), relation, _a(language, **_kind(scene.objects[j])))
        for i, relation, j in scene.relations
    ]


def _page(scene: Scene, language: str) -> str:
    """All objects and all relations, each once, in sentences."""
    nouns = [_a(language, **_kind(item)) for item in scene.objects]
    relations = [
        _related(
            language,
            _the(language, **_kind(scene.objects[i])),
            relation,
            _the(language, **_kind(scene.objects[j])),
            sentence=True,
        )
        for i, relation, j in scene.relations
        if relation in ("left", "above")
    ]
    if language == "zh":
        listed = "和".join(nouns)
        return "。".join([f"图中有{_number_of('zh', len(nouns))}：{listed}", *relations]) + "。"
    listed = nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} and {nouns[-1]}"
    sentences = [f"the picture shows {_number_of('en', len(nouns))}: {listed}", *relations]
    return " ".join(sentence[0].upper() + sentence[1:] + "." for sentence in sentences)


def _matches(item: SceneObject | _Kind, attributes: dict[str, str]) -> bool:
    return all(getattr(item, name) == value for name, value in attributes.items())


def _count(objects: Sequence[SceneObject | _Kind], attributes: dict[str, str]) -> int:
    """How many of the objects have all these attributes."""
    return sum(_matches(item, attributes) for item in objects)


def _random_attribute(dice: _Dice, names: Sequence[str] = ("colour", "shape")) -> dict[str, str]:
    name = dice.pick(names)
    return {name: dice.pick({"size": SIZES, "colour": _COLOUR_NAMES, "shape": SHAPES}[name])}


def _wrong_relation(dice: _Dice, item: SceneObject, other: SceneObject, relation: str, split: str) -> str:
    """Another relation; outside of `compositional` none that would put withheld words together."""
    options = [
        wrong
        for wrong in RELATIONS
        if wrong != relation
        and (
            split == "compositional"
            or not (
                is_withheld(item.colour, item.shape, wrong) or is_withheld(other.colour, other.shape, _INVERSE[wrong])
            )
        )
    ]
    return dice.pick(options)


# --- data sets ----------------------------------------------------------------------------------------------------


def _check(number: int, name: str, split: str, image_size: int, language: str, num_objects) -> tuple[int, int]:
    """Raise ValueError for arguments out of range; the number of objects as (fewest, most)."""
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{name} must be a whole number from 0 on, not {number!r}.")
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not one of {', '.join(map(repr, SPLITS))}.")
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r} is not one of {', '.join(map(repr, LANGUAGES))}.")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or not 32 <= image_size <= 4096:
        raise ValueError(f"image_size={image_size!r} must be a number of pixels from 32 to 4096.")
    bounds = (num_objects, num_objects) if isinstance(num_objects, int) else tuple(num_objects)
    if len(bounds) != 2 or not 1 <= bounds[0] <= bounds[1] <= _MAX_OBJECTS:
        raise ValueError(
            f"num_objects={num_objects!r} must be a number, or a pair (fewest, most), from 1 to {_MAX_OBJECTS}."
        )
    if split == "compositional" and bounds[0] < 2:
        raise ValueError(
            f"num_objects={num_objects!r}: the split 'compositional' is about relations and needs at least 2 objects."
        )
    return bounds


def _build(number: int, make_row: Callable[[int], dict[str, Any]], features: dict[str, Any]):
    """The rows as a `datasets.Dataset` in memory."""
    from datasets import Dataset, Features

    columns: dict[str, list] = {name: [] for name in features}
    for index in range(number):
        for name, value in make_row(index).items():
            columns[name].append(value)
    return Dataset.from_dict(columns, features=Features(features))


def _object_features():
    from datasets import List, Value

    return List(
        {
            "size": Value("string"),
            "colour": Value("string"),
            "shape": Value("string"),
            "box": List(Value("int32"), length=4),
            "rgb": List(Value("uint8"), length=3),
        }
    )


def _relation_features():
    from datasets import List, Value

    return List({"subject": Value("int32"), "relation": Value("string"), "object": Value("int32")})


def _annotation(scene: Scene, image_size: int) -> dict[str, list]:
    return {
        "objects": [{**_kind(item), "box": item.box(image_size), "rgb": item.rgb} for item in scene.objects],
        "relations": [{"subject": i, "relation": relation, "object": j} for i, relation, j in scene.relations],
    }


def make_scenes(
    num_scenes: int,
    split: str = "train",
    *,
    seed: int = 0,
    image_size: int = 64,
    num_objects: int | tuple[int, int] = 2,
    language: str = "en",
    masks: bool = False,
):
    """Pictures with captions, as a `datasets.Dataset`.

    Args:
        split: one of `SPLITS`; see the head of this module.
        num_objects: objects in each scene, or (fewest, most); from 1 to 4.
        language: `"en"` or `"zh"`.
        masks: add the columns `instance_mask` and `semantic_mask`.

    Columns: `image`; `image_id`; `captions`, all that are true in the one form that captions have, "a small red circle
    left of a large blue square" - each related pair in both directions, thus two captions of a scene with two objects
    (one without relation when there is one object); `objects`, a list of `size`, `colour`, `shape`, `box` (left, top,
    right, bottom in pixels, the last two exclusive) and `rgb`; `relations`, a list of `subject`, `relation`, `object`
    with indices into `objects`; on request `instance_mask` (0, or 1 + index of the object) and `semantic_mask` (0, or
    1 + index in `SHAPES`), single-channel pictures.

    Raises ValueError for arguments out of range.

    >>> make_scenes(2, "test")[0]["captions"]
    """
    from datasets import Image as ImageFeature
    from datasets import List, Value

    bounds = _check(num_scenes, "num_scenes", split, image_size, language, num_objects)

    def make_row(index: int) -> dict[str, Any]:
        scene = _random_scene(_Dice("scenes", split, seed, *bounds, index), split, bounds)
        row = {
            "image": _png(draw_scene(scene, image_size)),
            "image_id": f"{split}-{seed}-{index}",
            "captions": _captions(scene, language),
            **_annotation(scene, image_size),
        }
        if masks:
            row["instance_mask"], row["semantic_mask"] = map(_png, draw_masks(scene, image_size))
        return row

    features = {
        "image": ImageFeature(),
        "image_id": Value("string"),
        "captions": List(Value("string")),
        "objects": _object_features(),
        "relations": _relation_features(),
    }
    if masks:
        features |= {"instance_mask": ImageFeature(), "semantic_mask": ImageFeature()}
    return _build(num_scenes, make_row, features)


def answer_vocabulary(language: str = "en") -> list[str]:
    """All answers to the questions of `make_questions`, in a fixed order."""
    words = [
        "yes",
        "no",
        *(str(number) for number in range(_MAX_COUNT + 1)),
        *SIZES,
        *_COLOUR_NAMES,
        *SHAPES,
        *RELATIONS,
    ]
    return [_word(language, word) for word in words]


def _ask(
    question_type: str, split: str, bounds: tuple[int, int], dice: _Dice, language: str
) -> tuple[Scene, str, str]:
    """(scene, question, answer). What is asked is fixed before the scene, so that words alone tell no answer."""
    zh = language == "zh"
    if question_type == "count":
        wanted = dice.below(1 + min(_MAX_COUNT, bounds[1]))
        attributes = _random_attribute(dice, ("size", "colour", "shape"))
        scene = _random_scene(dice, split, bounds, lambda kinds: _count(kinds, attributes) == wanted)
        noun = _noun(language, **attributes)
        return scene, f"图中有几个{noun}？" if zh else f"How many {_plural(noun)} are there?", str(wanted)
    if question_type == "yes/no":
        return _ask_yes_or_no(split, bounds, dice, language)
    while True:
        scene = _random_scene(dice, split, bounds)
        if question_type == "relation":
            i, relation, j = dice.pick(scene.relations)
            first, second = (_the(language, **_pair_name(scene.objects[index])) for index in (i, j))
            question = f"{first}在{second}的哪一边？" if zh else f"Where is {first} relative to {second}?"
            return scene, question, _word(language, relation)
        item = dice.pick(scene.objects)
        if question_type == "size":
            name = _the(language, **_pair_name(item))
            return scene, f"{name}是大的还是小的？" if zh else f"Is {name} small or large?", _word(language, item.size)
        other = "shape" if question_type == "colour" else "colour"
        attributes = {"size": item.size, other: getattr(item, other)}
        if _count(scene.objects, {other: attributes[other]}) == 1:
            del attributes["size"]
        if _count(scene.objects, attributes) == 1:
            name, answer = _the(language, **attributes), _word(language, getattr(item, question_type))
            if zh:
                return scene, f"{name}是什么{'颜色' if question_type == 'colour' else '形状'}？", answer
            return scene, f"What {question_type} is {name}?", answer


def _ask_yes_or_no(split: str, bounds: tuple[int, int], dice: _Dice, language: str) -> tuple[Scene, str, str]:
    zh, wanted = language == "zh", dice.random() < 0.5
    answer = _word(language, "yes" if wanted else "no")
    form = dice.pick(("exists", "more", "relation") if bounds[0] > 1 else ("exists", "more"))
    if form == "relation":
        scene = _random_scene(dice, split, bounds)
        i, relation, j = dice.pick(scene.relations)
        item, other = scene.objects[i], scene.objects[j]
        if not wanted:
            relation = _wrong_relation(dice, item, other, relation, split)
        first, second = _the(language, **_pair_name(item)), _the(language, **_pair_name(other))
        statement = _related(language, first, relation, second)
        return scene, f"{statement}吗？" if zh else f"Is {statement}?", answer
    attributes = _random_attribute(dice)
    if form == "exists":
        question = f"图中有{_noun(language, **attributes)}吗？" if zh else f"Is there {_a(language, **attributes)}?"
        scene = _random_scene(dice, split, bounds, lambda kinds: (_count(kinds, attributes) > 0) == wanted)
        return scene, question, answer
    others = attributes
    while others == attributes:
        others = _random_attribute(dice, tuple(attributes))
    first, second = _noun(language, **attributes), _noun(language, **others)
    question = f"{first}比{second}多吗？" if zh else f"Are there more {_plural(first)} than {_plural(second)}?"
    scene = _random_scene(
        dice, split, bounds, lambda kinds: (_count(kinds, attributes) > _count(kinds, others)) == wanted
    )
    return scene, question, answer


def make_questions(
    num_questions: int,
    split: str = "train",
    *,
    seed: int = 0,
    image_size: int = 64,
    num_objects: int | tuple[int, int] = (2, 4),
    language: str = "en",
    question_types: Sequence[str] = QUESTION_TYPES,
):
    """Pictures with one question each, as a `datasets.Dataset`; the types take turns.

    Columns: `image`, `image_id`, `question`, `answer` (one of `answer_vocabulary`), `question_type`, `objects` and
    `relations` as in `make_scenes`. Half of the yes/no questions have the answer yes; counts 0 to 3 are equally
    frequent; none of this can be guessed from the words of the question.

    Raises ValueError for arguments out of range.
    """
    from datasets import Image as ImageFeature
    from datasets import Value

    bounds = _check(num_questions, "num_questions", split, image_size, language, num_objects)
    question_types = list(question_types)
    if not question_types or not set(question_types) <= set(QUESTION_TYPES):
        raise ValueError(f"question_types={question_types} must name some of {', '.join(map(repr, QUESTION_TYPES))}.")
    if "relation" in question_types and bounds[0] < 2:
        raise ValueError(f"num_objects={num_objects!r}: questions of the type 'relation' need at least 2 objects.")

    def make_row(index: int) -> dict[str, Any]:
        question_type = question_types[index % len(question_types)]
        dice = _Dice("questions", question_type, split, seed, *bounds, index)
        scene, question, answer = _ask(question_type, split, bounds, dice, language)
        return {
            "image": _png(draw_scene(scene, image_size)),
            "image_id": f"question-{split}-{seed}-{index}",
            "question": question,
            "answer": answer,
            "question_type": question_type,
            **_annotation(scene, image_size),
        }

    features = {
        "image": ImageFeature(),
        "image_id": Value("string"),
        "question": Value("string"),
        "answer": Value("string"),
        "question_type": Value("string"),
        "objects": _object_features(),
        "relations": _relation_features(),
    }
    return _build(num_questions, make_row, features)


def _state(statement_type: str, dice: _Dice, language: str) -> tuple[str, Callable[..., bool]]:
    """A statement over two pictures and the test of its truth.

    The test takes the objects of the left picture and those of the right one; for the type "relation", the scenes.
    """
    zh = language == "zh"
    attributes = _random_attribute(dice)
    something = _a(language, **attributes)
    if statement_type == "both":
        text = f"两幅图里都有{_noun(language, **attributes)}" if zh else f"both pictures contain {something}"
        return text, lambda left, right: _count(left, attributes) > 0 and _count(right, attributes) > 0
    if statement_type == "exactly one":
        noun = _noun(language, **attributes)
        text = f"只有一幅图里有{noun}" if zh else f"exactly one of the pictures contains {something}"
        return text, lambda left, right: (_count(left, attributes) > 0) != (_count(right, attributes) > 0)
    if statement_type == "neither":
        text = f"两幅图里都没有{_noun(language, **attributes)}" if zh else f"neither picture contains {something}"
        return text, lambda left, right: _count(left, attributes) + _count(right, attributes) == 0
    if statement_type == "more objects":
        first, second = dice.shuffled(("left", "right"))
        sides = {"left": "左", "right": "右"}
        if zh:
            text = f"{sides[first]}图里的物体比{sides[second]}图里的多"
        else:
            text = f"the {first} picture contains more objects than the {second} one"
        sign = 1 if first == "left" else -1
        return text, lambda left, right: sign * (len(left) - len(right)) > 0
    if statement_type == "count":
        number = 1 + dice.below(_MAX_COUNT)
        counted = _number_of(language, number, **attributes)
        text = f"两幅图里一共有{counted}" if zh else f"the two pictures together contain exactly {counted}"
        return text, lambda left, right: _count(left, attributes) + _count(right, attributes) == number
    others, relation = _random_attribute(dice), dice.pick(RELATIONS)
    related = _related(language, something, relation, _a(language, **others), sentence=True)
    text = f"在至少一幅图里，{related}" if zh else f"in at least one of the pictures {related}"

    def holds(left: Scene, right: Scene) -> bool:
        return any(
            found == relation and _matches(scene.objects[i], attributes) and _matches(scene.objects[j], others)
            for scene in (left, right)
            for i, found, j in scene.relations
        )

    return text, holds


def _two_scenes(
    statement_type: str, holds: Callable[..., bool], wanted: bool, split: str, bounds: tuple[int, int], dice: _Dice
) -> list[Scene]:
    """Scenes of which the statement is true, or false, as wanted."""
    while True:
        kinds = [_random_kinds(dice, split, bounds) for _ in range(2)]
        if statement_type != "relation" and holds(*kinds) != wanted:
            continue
        scenes = [_arrange(listed, dice, split) for listed in kinds]
        if None in scenes or (statement_type == "relation" and holds(*scenes) != wanted):
            continue
        return scenes


def make_statement_pairs(
    num_statements: int,
    split: str = "train",
    *,
    seed: int = 0,
    image_size: int = 64,
    num_objects: tuple[int, int] = (2, 4),
    language: str = "en",
    statement_types: Sequence[str] = STATEMENT_TYPES,
):
    """Statements over two pictures, true or false, as a `datasets.Dataset`; the types take turns.

    Columns: `images`, a list of two pictures, left and right; `statement`; `label`, a class label with the names
    `false` and `true`; `statement_type`; `statement_id`; `left_objects` and `right_objects` as in `make_scenes`, with
    `left_relations` and `right_relations`. Half are true, and the words are drawn before the pictures: they do not
    tell.

    Raises ValueError for arguments out of range.
    """
    from datasets import ClassLabel, List, Value
    from datasets import Image as ImageFeature

    bounds = _check(num_statements, "num_statements", split, image_size, language, num_objects)
    statement_types = list(statement_types)
    if not statement_types or not set(statement_types) <= set(STATEMENT_TYPES):
        raise ValueError(
            f"statement_types={statement_types} must name some of {', '.join(map(repr, STATEMENT_TYPES))}."
        )
    if bounds[0] == bounds[1] and "more objects" in statement_types:
        raise ValueError(f"num_objects={num_objects!r}: statements about more objects need different numbers of them.")
    if bounds[0] < 2:
        raise ValueError(f"num_objects={num_objects!r}: statements about relations need at least 2 objects.")
    if split == "compositional" and "relation" in statement_types and bounds[1] < 3:
        # The two objects would have to stand in a withheld relation and in that of the statement: some never can.
        raise ValueError(
            f"num_objects={num_objects!r}: some statements about relations are true of no compositional scene of two "
            "objects. Allow three objects, or leave out the type 'relation'."
        )

    def make_row(index: int) -> dict[str, Any]:
        statement_type = statement_types[index % len(statement_types)]
        dice = _Dice("statements", statement_type, split, seed, *bounds, index)
        text, holds = _state(statement_type, dice, language)
        label = dice.below(2)
        left, right = _two_scenes(statement_type, holds, bool(label), split, bounds, dice)
        row = {
            "images": [_png(draw_scene(scene, image_size)) for scene in (left, right)],
            "statement": text,
            "label": label,
            "statement_type": statement_type,
            "statement_id": f"statement-{split}-{seed}-{index}",
        }
        for side, scene in (("left", left), ("right", right)):
            row |= {f"{side}_{name}": value for name, value in _annotation(scene, image_size).items()}
        return row

    features = {
        "images": List(ImageFeature()),
        "statement": Value("string"),
        "label": ClassLabel(names=["false", "true"]),
        "statement_type": Value("string"),
        "statement_id": Value("string"),
    }
    for side in ("left", "right"):
        features |= {f"{side}_objects": _object_features(), f"{side}_relations": _relation_features()}
    return _build(num_statements, make_row, features)


def _random_kinds_with_one_large(dice: _Dice, split: str, num_objects: tuple[int, int]) -> list[_Kind]:
    """A large object and small ones, or one object of any size; draws until they may appear in the split."""
    fewest, most = num_objects
    while True:
        number = fewest + dice.below(most - fewest + 1)
        size = "large" if number > 1 else dice.pick(SIZES)
        kinds = [_Kind(size, dice.pick(_COLOUR_NAMES), dice.pick(SHAPES))]
        while len(kinds) < number:
            kind = _Kind("small", dice.pick(_COLOUR_NAMES), dice.pick(SHAPES))
            if all(kind[1:] != other[1:] for other in kinds):
                kinds.append(kind)
        # One object alone is in one split only, in each of its sizes: some colours and shapes are never in train.
        known = number > 1 or any(_part([kinds[0]._replace(size=other)]) == "train" for other in SIZES)
        if known and (split == "compositional" or _part(kinds) == split):
            return kinds


def make_labels(
    num_pictures: int,
    split: str = "train",
    *,
    seed: int = 0,
    image_size: int = 64,
    num_objects: int | tuple[int, int] = (2, 4),
    language: str = "en",
    label_types: Sequence[str] = LABEL_TYPES,
):
    """Pictures with a class each, as a `datasets.Dataset`: what their one large object is; all others are small.

    With `num_objects=1` the class is that of the one object, large or small. The class says its colour and its shape
    (48 classes, "red circle"), or one of these only (`label_types=["shape"]`: 6, `["colour"]`: 8). In train all
    classes are about as frequent; the few scenes of a single object in the other splits are of few classes.

    Columns: `image`, `image_id`; `label`, a class label; `objects` and `relations` as in `make_scenes`. What is drawn
    does not depend on `label_types`.

    Raises ValueError for arguments out of range.
    """
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    bounds = _check(num_pictures, "num_pictures", split, image_size, language, num_objects)
    if not label_types or not set(label_types) <= set(LABEL_TYPES):
        raise ValueError(f"label_types={list(label_types)} must name some of {', '.join(map(repr, LABEL_TYPES))}.")
    values = {"colour": _COLOUR_NAMES, "shape": SHAPES}
    used = [name for name in LABEL_TYPES if name in label_types]
    classes = list(itertools.product(*(values[name] for name in used)))

    def make_row(index: int) -> dict[str, Any]:
        dice, scene = _Dice("labels", split, seed, *bounds, index), None
        while scene is None:
            scene = _arrange(_random_kinds_with_one_large(dice, split, bounds), dice, split)
        return {
            "image": _png(draw_scene(scene, image_size)),
            "image_id": f"label-{split}-{seed}-{index}",
            "label": classes.index(tuple(getattr(scene.objects[0], name) for name in used)),
            **_annotation(scene, image_size),
        }

    between = " " if language == "en" else ""
    features = {
        "image": ImageFeature(),
        "image_id": Value("string"),
        "label": ClassLabel(names=[between.join(_word(language, word) for word in words) for words in classes]),
        "objects": _object_features(),
        "relations": _relation_features(),
    }
    return _build(num_pictures, make_row, features)


def _suppose(scene: Scene, label: str, split: str, dice: _Dice, language: str) -> str:
    """A hypothesis that the picture proves, disproves or leaves open."""
    zh = language == "zh"
    if label == "neutral":
        words = dice.pick(_INVISIBLE)[zh]
        name = _the(language, **_pair_name(dice.pick(scene.objects)))
        return f"{name}{words}" if zh else f"{name} {words}"
    true = label == "entailment"
    form = dice.pick(("exists", "relation", "count") if scene.relations else ("exists", "count"))
    if form == "relation":
        i, relation, j = dice.pick(scene.relations)
        item, other = scene.objects[i], scene.objects[j]
        if not true:
            relation = _wrong_relation(dice, item, other, relation, split)
        names = [_the(language, **_pair_name(thing)) for thing in (item, other)]
        return _related(language, names[0], relation, names[1], sentence=True)
    if form == "count":
        number = len(scene.objects)
        if not true:
            number = dice.pick([wrong for wrong in range(1, _MAX_OBJECTS + 1) if wrong != number])
        counted = _number_of(language, number)
        if zh:
            return f"图中有{counted}"
        return f"there {'is' if number == 1 else 'are'} {counted} in the picture"
    kind = _kind(dice.pick(scene.objects))
    if not true:
        values = {"size": SIZES, "colour": _COLOUR_NAMES, "shape": SHAPES}
        while _count(scene.objects, kind):  # one attribute is off, so that the picture has to be looked at closely
            name = dice.pick(tuple(values))
            kind = {**kind, name: dice.pick(values[name])}
    return f"图中有{_a(language, **kind)}" if zh else f"there is {_a(language, **kind)} in the picture"


def make_entailment(
    num_triples: int,
    split: str = "train",
    *,
    seed: int = 0,
    image_size: int = 64,
    num_objects: int | tuple[int, int] = (2, 4),
    language: str = "en",
):
    """Pictures with a hypothesis that they entail, contradict or leave open, as a `datasets.Dataset`.

    Columns: `image`, `image_id`; `premise`, a caption of the picture (it tells less than the picture does, which is
    what the label refers to); `hypothesis`; `label`, a class label with the names `ENTAILMENT_LABELS`; `objects` and
    `relations` as in `make_scenes`. Three rows in succession show one picture with the three labels in random order.
    A picture hides nothing, so neutral hypotheses are about what no picture shows and can be told by their words: a
    model that does not look reaches 2/3, one that does 1.

    Raises ValueError for arguments out of range.
    """
    from datasets import ClassLabel, Value
    from datasets import Image as ImageFeature

    bounds = _check(num_triples, "num_triples", split, image_size, language, num_objects)

    @functools.lru_cache(maxsize=1)
    def make_triple(number: int) -> list[dict[str, Any]]:
        dice = _Dice("entailment", split, seed, *bounds, number)
        scene = _random_scene(dice, split, bounds)
        shared = {
            "image": _png(draw_scene(scene, image_size)),
            "image_id": f"entailment-{split}-{seed}-{number}",
            "premise": dice.pick(_captions(scene, language)),
            **_annotation(scene, image_size),
        }
        return [
            {
                **shared,
                "hypothesis": _suppose(scene, label, split, dice, language),
                "label": ENTAILMENT_LABELS.index(label),
            }
            for label in dice.shuffled(ENTAILMENT_LABELS)
        ]

    features = {
        "image": ImageFeature(),
        "image_id": Value("string"),
        "premise": Value("string"),
        "hypothesis": Value("string"),
        "label": ClassLabel(names=list(ENTAILMENT_LABELS)),
        "objects": _object_features(),
        "relations": _relation_features(),
    }
    return _build(num_triples, lambda index: make_triple(index // 3)[index % 3], features)


def make_page_pairs(
    num_pages: int,
    split: str = "train",
    *,
    seed: int = 0,
    image_size: int = 64,
    num_objects: int | tuple[int, int] = (3, 4),
    language: str = "en",
):
    """Pages for retrieval, as a `datasets.Dataset`: what stands in a row belongs together, and to no other row.

    Columns: `page_id`; `image`; `second_image`, the same content drawn anew (other places, sides, shades and
    background, the same relations); `text`, a page that lists all objects and relations; `objects` and `relations` of
    `image` as in `make_scenes`. No two rows have the same content.

    Raises ValueError for arguments out of range.
    """
    from datasets import Image as ImageFeature
    from datasets import Value

    bounds = _check(num_pages, "num_pages", split, image_size, language, num_objects)
    if bounds[0] < 3:
        raise ValueError(f"num_objects={num_objects!r}: there are too few different scenes with less than 3 objects.")
    seen: set[tuple] = set()

    def make_row(index: int) -> dict[str, Any]:
        dice = _Dice("pages", split, seed, *bounds, index)
        scene = _random_scene(dice, split, bounds)
        while scene.content() in seen:
            scene = _random_scene(dice, split, bounds)
        seen.add(scene.content())
        return {
            "page_id": f"page-{split}-{seed}-{index}",
            "image": _png(draw_scene(scene, image_size)),
            "second_image": _png(draw_scene(_second_view(scene, dice), image_size)),
            "text": _page(scene, language),
            **_annotation(scene, image_size),
        }

    features = {
        "page_id": Value("string"),
        "image": ImageFeature(),
        "second_image": ImageFeature(),
        "text": Value("string"),
        "objects": _object_features(),
        "relations": _relation_features(),
    }
    return _build(num_pages, make_row, features)
