"""Drawn scenes: is every word true of the picture, and is every split what it says?

Covers: determinism (prefix, process and hash seed, picture size), disjoint splits, withheld combinations, captions
against boxes and against pixels in both languages, masks against pixels, objects whole and apart, answers to all types
of questions, statements over two pictures, classes, hypotheses, pages, the balance of answers and labels, pictures
that words alone do not give away, and refused arguments.
"""

import io
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hf_vlp.data.scenes import (
    COLOURS,
    ENTAILMENT_LABELS,
    QUESTION_TYPES,
    RELATIONS,
    SHAPES,
    SIZES,
    SPLITS,
    STATEMENT_TYPES,
    answer_vocabulary,
    is_withheld,
    make_entailment,
    make_labels,
    make_page_pairs,
    make_questions,
    make_scenes,
    make_statement_pairs,
)

MAKERS = (make_scenes, make_questions, make_statement_pairs, make_labels, make_entailment, make_page_pairs)
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PHRASES = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
CAPTION = re.compile(
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) (left of|right of|above|below) "
    rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
)


@pytest.fixture(scope="module")
def scenes():
    """Some of each split, with masks, as plain rows."""
    return {split: list(make_scenes(60, split, num_objects=(2, 4), masks=True)) for split in SPLITS}


@pytest.fixture(scope="module")
def rows(scenes):
    return [row for split in SPLITS for row in scenes[split]]


def raw(dataset) -> list:
    """Rows with the bytes of the pictures."""
    return dataset.data.to_pylist()


def kind(item) -> tuple[str, str, str]:
    return item["size"], item["colour"], item["shape"]


def centre(item) -> tuple[float, float]:
    left, top, right, bottom = item["box"]
    return (left + right) / 2, (top + bottom) / 2


def relation_of(item, other) -> str:
    """Along the longer of the two distances, from the boxes alone."""
    across, down = (a - b for a, b in zip(centre(item), centre(other)))
    if abs(across) > abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def named(objects, words: str) -> list:
    """The objects that a phrase such as "small red objects" or "the red circle" may mean."""
    words = words.split()
    plural = {shape + ("es" if shape.endswith("s") else "s"): shape for shape in SHAPES}
    words = [plural.get(word, word) for word in words]
    known = [word for word in words if word in (*SIZES, *COLOURS, *SHAPES)]
    return [item for item in objects if set(known) <= set(kind(item))]


def nearest_colour(rgb) -> str:
    return min(COLOURS, key=lambda name: np.abs(np.subtract(COLOURS[name], rgb)).sum())


# --- determinism and splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKERS)
def test_longer_data_sets_begin_with_the_shorter_ones(make):
    assert raw(make(7, "test", seed=3)) == raw(make(13, "test", seed=3))[:7]


@pytest.mark.parametrize("make", MAKERS)
def test_another_seed_gives_other_rows(make):
    first, second = raw(make(6, seed=0)), raw(make(6, seed=1))
    assert all(a != b for a, b in zip(first, second))


def test_rows_do_not_depend_on_process_and_hash_seed():
    code = """
import hashlib
from hf_vlp.data import scenes as s
rows = [f(6, p).data.to_pylist() for f in (s.make_scenes, s.make_questions, s.make_statement_pairs, s.make_entailment,
        s.make_labels, s.make_page_pairs) for p in ("train", "compositional")]
print(hashlib.sha256(repr(rows).encode()).hexdigest())
"""
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert digests[0] == digests[1] != ""


def test_first_training_scene_is_fixed_for_good():
    """Results that were published with a version of the package must stay comparable with later ones."""
    row = make_scenes(1)[0]
    assert row["captions"][0] == "a small purple cross above a large black cross"
    assert [item["box"] for item in row["objects"]] == [[41, 5, 57, 21], [35, 36, 59, 60]]


def test_picture_size_changes_no_content():
    small, large = make_scenes(10), make_scenes(10, image_size=224)
    assert small["captions"][:] == large["captions"][:]
    assert large[0]["image"].size == (224, 224)
    ratios = np.array(large[0]["objects"][0]["box"]) / np.array(small[0]["objects"][0]["box"])
    np.testing.assert_allclose(ratios, 3.5, rtol=0.1)


def contents(split: str, number: int, **options) -> set:
    return {
        (tuple(sorted(map(kind, row["objects"]))), tuple(sorted(row["captions"])))
        for row in make_scenes(number, split, **options).remove_columns("image")
    }


@pytest.mark.parametrize("num_objects", [2, 3])
def test_no_content_is_in_two_splits(num_objects):
    found = {split: contents(split, 400, num_objects=num_objects, seed=5) for split in SPLITS}
    for split in SPLITS:
        for other in SPLITS:
            assert split == other or not found[split] & found[other]


def test_objects_that_meet_in_test_never_meet_in_train():
    pairs = {
        split: {objects for objects, _ in contents(split, 1000, seed=7)} for split in ("train", "validation", "test")
    }
    assert len(pairs["train"]) > 700
    assert not pairs["train"] & pairs["test"]
    assert not pairs["train"] & pairs["validation"]
    assert not pairs["validation"] & pairs["test"]


def withheld_relations(row) -> list:
    objects = row["objects"]
    return [
        found
        for found in row["relations"]
        if is_withheld(objects[found["subject"]]["colour"], objects[found["subject"]]["shape"], found["relation"])
    ]


def test_withheld_combinations_are_in_the_compositional_split_only():
    for split in SPLITS:
        for row in make_scenes(250, split, num_objects=(2, 4)).remove_columns("image"):
            assert bool(withheld_relations(row)) == (split == "compositional")


def test_one_combination_in_eight_is_withheld_for_every_relation_alike():
    withheld = [(c, s, r) for c in COLOURS for s in SHAPES for r in RELATIONS if is_withheld(c, s, r)]
    assert len(withheld) * 8 == len(COLOURS) * len(SHAPES) * len(RELATIONS)
    assert set(Counter(r for _, _, r in withheld).values()) == {len(withheld) // 4}
    # every colour, every shape and every colour with a shape is still seen in train
    assert max(Counter((c, s) for c, s, _ in withheld).values()) == 1


@pytest.mark.parametrize("make", [make_questions, make_entailment])
def test_no_text_outside_the_compositional_split_puts_withheld_words_together(make):
    text = "question" if make is make_questions else "hypothesis"
    pattern = re.compile(r"the (\w+) (\w+) (?:is )?(left of|right of|above|below) the (\w+) (\w+)")
    found = 0
    for row in make(900, "train", seed=2).remove_columns("image"):
        if match := pattern.search(row[text].replace("Is the", "the")):
            colour, shape, phrase, other_colour, other_shape = match.groups()
            relation = phrase.split()[0]
            assert not is_withheld(colour, shape, relation)
            assert not is_withheld(other_colour, other_shape, INVERSE[relation])
            found += 1
    assert found > 20


# --- pictures -----------------------------------------------------------------------------------------------------


def test_captions_name_objects_of_the_scene_in_a_relation_that_the_boxes_have(rows):
    for row in rows:
        for caption in row["captions"]:
            size, colour, shape, phrase, *other = CAPTION.fullmatch(caption).groups()
            [subject] = [item for item in row["objects"] if kind(item) == (size, colour, shape)]
            [reference] = [item for item in row["objects"] if kind(item) == tuple(other)]
            assert PHRASES[relation_of(subject, reference)] == phrase


def test_two_objects_have_both_captions_and_no_other():
    for row in make_scenes(50, "test").remove_columns("image"):
        first, second = row["objects"]
        relation = relation_of(first, second)
        names = [f"a {' '.join(kind(item))}" for item in (first, second)]
        assert sorted(row["captions"]) == sorted(
            [f"{names[0]} {PHRASES[relation]} {names[1]}", f"{names[1]} {PHRASES[INVERSE[relation]]} {names[0]}"]
        )


def test_captions_are_true_of_the_pixels(rows):
    """Finds the two objects of each caption by colour alone and compares where they are and how large."""
    for row in rows:
        pixels = np.asarray(row["image"]).astype(int)
        background = Counter(map(tuple, pixels.reshape(-1, 3))).most_common(1)[0][0]
        colours = Counter(item["colour"] for item in row["objects"])
        for caption in row["captions"]:
            places = []
            size, colour, _, phrase, other_size, other_colour, _ = CAPTION.fullmatch(caption).groups()
            if colours[colour] > 1 or colours[other_colour] > 1:
                continue
            for named_size, name in ((size, colour), (other_size, other_colour)):
                near = np.abs(pixels - COLOURS[name]).max(-1) <= 12
                near &= np.abs(pixels - background).max(-1) > 0
                down, across = np.nonzero(near)
                extent = max(np.ptp(down), np.ptp(across)) + 1
                assert extent <= 17 if named_size == "small" else extent >= 18
                places.append(((across.min() + across.max()) / 2, (down.min() + down.max()) / 2))
            (x, y), (other_x, other_y) = places
            assert {
                "left of": x < other_x,
                "right of": x > other_x,
                "above": y < other_y,
                "below": y > other_y,
            }[phrase]


def test_pixels_at_the_centre_have_the_colour_that_the_annotation_names(rows):
    for row in rows:
        pixels = np.asarray(row["image"])
        for item in row["objects"]:
            x, y = map(int, centre(item))
            assert pixels[y, x].tolist() == item["rgb"]
            assert nearest_colour(item["rgb"]) == item["colour"]


def test_objects_are_whole_and_apart(rows):
    for row in rows:
        for index, item in enumerate(row["objects"]):
            left, top, right, bottom = item["box"]
            assert left >= 0
            assert top >= 0
            assert right <= 64
            assert bottom <= 64
            assert 12 <= right - left <= 17 if item["size"] == "small" else 21 <= right - left <= 27
            for other in row["objects"][:index]:
                assert (
                    right <= other["box"][0]
                    or other["box"][2] <= left
                    or bottom <= other["box"][1]
                    or other["box"][3] <= top
                )


def test_every_shape_is_drawn_differently():
    """Share of the box that is covered, of large objects: a circle is pi / 4, a triangle and a diamond half."""
    shares = {shape: [] for shape in SHAPES}
    for row in make_scenes(150, num_objects=2, masks=True, image_size=128):
        mask = np.asarray(row["instance_mask"])
        for index, item in enumerate(row["objects"]):
            left, top, right, bottom = item["box"]
            shares[item["shape"]].append((mask == index + 1).sum() / ((right - left) * (bottom - top)))
    means = {shape: float(np.mean(values)) for shape, values in shares.items()}
    expected = {"circle": np.pi / 4, "square": 1.0, "triangle": 0.5, "diamond": 0.5, "cross": 5 / 9}
    for shape, share in expected.items():
        assert means[shape] == pytest.approx(share, abs=0.04)
    assert 0.2 < means["star"] < 0.45


def test_masks_agree_with_the_pixels_and_with_one_another(rows):
    for row in rows:
        pixels = np.asarray(row["image"]).astype(int)
        instances, classes = np.asarray(row["instance_mask"]), np.asarray(row["semantic_mask"])
        assert sorted(np.unique(instances)) == list(range(len(row["objects"]) + 1))
        background = np.array(Counter(map(tuple, pixels.reshape(-1, 3))).most_common(1)[0][0])
        for index, item in enumerate(row["objects"]):
            inside = instances == index + 1
            assert set(classes[inside]) == {1 + SHAPES.index(item["shape"])}
            # a pixel of the mask is covered by half at least: nearer to the object's colour than to the background's
            to_object = np.abs(pixels[inside] - item["rgb"]).sum(-1)
            to_background = np.abs(pixels[inside] - background).sum(-1)
            assert (to_object <= to_background + 3).all()
            left, top, right, bottom = item["box"]
            around = pixels[top:bottom, left:right][~inside[top:bottom, left:right]]
            assert (np.abs(around - background).sum(-1) <= np.abs(around - item["rgb"]).sum(-1) + 3).all()
            pixels[top:bottom, left:right] = background
        assert (pixels == background).all()
        assert (classes[instances == 0] == 0).all()


def test_pictures_are_png_bytes_that_datasets_decodes():
    dataset = make_scenes(2)
    content = raw(dataset)[0]["image"]["bytes"]
    assert Image.open(io.BytesIO(content)).format == "PNG"
    assert dataset[0]["image"].mode == "RGB"


def test_one_object_has_a_caption_without_relation():
    for row in make_scenes(20, num_objects=1):
        assert row["captions"] == [f"a {' '.join(kind(row['objects'][0]))}"]
        assert row["relations"] == []


def test_chinese_captions_say_the_same():
    words = {
        **{"小": "small", "大": "large", "的": "", "红色": "red", "橙色": "orange", "黄色": "yellow", "绿色": "green"},
        **{"蓝色": "blue", "紫色": "purple", "粉色": "pink", "黑色": "black", "圆形": "circle", "正方形": "square"},
        **{"三角形": "triangle", "菱形": "diamond", "十字形": "cross", "星形": "star"},
    }
    sides = {"左边": "left of", "右边": "right of", "上方": "above", "下方": "below"}
    pattern = re.compile(r"一个(.)的(..)(.+?)在一个(.)的(..)(.+?)的(左边|右边|上方|下方)")
    english, chinese = make_scenes(40, "test"), make_scenes(40, "test", language="zh")
    for row, other in zip(english["captions"], chinese["captions"]):
        for caption, original in zip(row, other):
            *parts, side = pattern.fullmatch(original).groups()
            parts = [words[part] for part in parts]
            assert caption == f"a {' '.join(parts[:3])} {sides[side]} a {' '.join(parts[3:])}"


# --- questions, statements, hypotheses, pages ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions():
    return list(make_questions(720, "train").remove_columns("image"))


def true_answer(question: str, objects: list) -> str:
    """Worked out from the words of the question and the boxes."""
    if match := re.fullmatch(r"How many (.+) are there\?", question):
        return str(len(named(objects, match[1])))
    if match := re.fullmatch(r"Is there an? (.+)\?", question):
        return "yes" if named(objects, match[1]) else "no"
    if match := re.fullmatch(r"Are there more (.+) than (.+)\?", question):
        return "yes" if len(named(objects, match[1])) > len(named(objects, match[2])) else "no"
    if match := re.fullmatch(r"Is the (.+) small or large\?", question):
        [item] = named(objects, match[1])
        return item["size"]
    if match := re.fullmatch(r"Where is the (.+) relative to the (.+)\?", question):
        [item], [other] = named(objects, match[1]), named(objects, match[2])
        return relation_of(item, other)
    if match := re.fullmatch(r"Is the (.+) (left of|right of|above|below) the (.+)\?", question):
        [item], [other] = named(objects, match[1]), named(objects, match[3])
        return "yes" if PHRASES[relation_of(item, other)] == match[2] else "no"
    if match := re.fullmatch(r"What (colour|shape) is the (.+)\?", question):
        [item] = named(objects, match[2])
        return item[match[1]]
    raise AssertionError(f"unknown question {question!r}")


def test_answers_are_right(questions):
    for row in questions:
        assert true_answer(row["question"], row["objects"]) == row["answer"], row


def test_question_types_take_turns_and_their_answers_are_balanced(questions):
    assert [row["question_type"] for row in questions[:6]] == list(QUESTION_TYPES)
    answers = {name: Counter() for name in QUESTION_TYPES}
    for row in questions:
        answers[row["question_type"]][row["answer"]] += 1
    for name, number in {"colour": 8, "shape": 6, "size": 2, "count": 4, "relation": 4, "yes/no": 2}.items():
        assert len(answers[name]) == number
        # 120 answers of each type; 2.2 times the even share is far beyond chance
        assert max(answers[name].values()) < (2.2 if number > 2 else 1.3) * 120 / number
    assert {answer for counter in answers.values() for answer in counter} <= set(answer_vocabulary())


def test_words_of_yes_no_questions_do_not_tell_the_answer():
    rows = list(make_questions(600, seed=4, question_types=["yes/no"]).remove_columns("image"))
    for start in ("Is there", "Are there more", "Is the"):
        chosen = [row["answer"] == "yes" for row in rows if row["question"].startswith(f"{start} ")]
        assert len(chosen) > 100
        assert 0.4 < np.mean(chosen) < 0.6


def test_chinese_questions_have_chinese_answers():
    rows = make_questions(60, language="zh").remove_columns("image")
    assert set(rows["answer"]) <= set(answer_vocabulary("zh"))
    assert all(re.fullmatch(r"[\u4e00-\u9fff]+？", question) for question in rows["question"])


def is_true(statement: str, left: list, right: list) -> bool:
    """Worked out from the words of the statement and the boxes."""
    numbers = {"one": 1, "two": 2, "three": 3}
    if match := re.fullmatch(r"both pictures contain an? (.+)", statement):
        return bool(named(left, match[1]) and named(right, match[1]))
    if match := re.fullmatch(r"exactly one of the pictures contains an? (.+)", statement):
        return bool(named(left, match[1])) != bool(named(right, match[1]))
    if match := re.fullmatch(r"neither picture contains an? (.+)", statement):
        return not named(left, match[1]) + named(right, match[1])
    if match := re.fullmatch(r"the (left|right) picture contains more objects than the (left|right) one", statement):
        difference = len(left) - len(right)
        return difference > 0 if match[1] == "left" else difference < 0
    if match := re.fullmatch(r"the two pictures together contain exactly (\w+) (.+)", statement):
        return len(named(left, match[2]) + named(right, match[2])) == numbers[match[1]]
    match = re.fullmatch(
        r"in at least one of the pictures an? (.+) is (left of|right of|above|below) an? (.+)", statement
    )
    return any(
        PHRASES[relation_of(item, other)] == match[2] and is_clear(item, other)
        for objects in (left, right)
        for item in named(objects, match[1])
        for other in named(objects, match[3])
        if item != other
    )


def is_clear(item, other) -> bool:
    """Not near the diagonal, where boxes rounded to pixels could be read either way."""
    across, down = (abs(a - b) for a, b in zip(centre(item), centre(other)))
    return max(across, down) >= 1.9 * min(across, down)


@pytest.fixture(scope="module")
def statements():
    return list(make_statement_pairs(360, "train").remove_columns("images"))


def test_statements_are_true_exactly_where_the_label_says(statements):
    wrong = [
        row
        for row in statements
        if is_true(row["statement"], row["left_objects"], row["right_objects"]) != bool(row["label"])
    ]
    # rounding to pixels moves a pair across the diagonal's limit now and then
    assert all(row["statement_type"] == "relation" for row in wrong)
    assert len(wrong) <= 2


def test_statements_are_half_true_whatever_their_type(statements):
    for name in STATEMENT_TYPES:
        labels = [row["label"] for row in statements if row["statement_type"] == name]
        assert len(labels) == 60
        assert 0.25 < np.mean(labels) < 0.75


def test_statement_pairs_hold_two_pictures():
    dataset = make_statement_pairs(6, "test", image_size=48)
    assert [picture.size for picture in dataset[0]["images"]] == [(48, 48), (48, 48)]
    assert dataset.features["label"].names == ["false", "true"]


def test_hypotheses_have_the_label_that_the_picture_gives_them():
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4}
    rows = list(make_entailment(600, "train").remove_columns("image"))
    counts = Counter()
    for row in rows:
        objects, hypothesis = row["objects"], row["hypothesis"]
        if match := re.fullmatch(r"there (?:is|are) (\w+) objects? in the picture", hypothesis):
            label = "entailment" if numbers[match[1]] == len(objects) else "contradiction"
        elif match := re.fullmatch(r"there is an? (.+) in the picture", hypothesis):
            label = "entailment" if named(objects, match[1]) else "contradiction"
        elif match := re.fullmatch(r"the (.+) is (left of|right of|above|below) the (.+)", hypothesis):
            [item], [other] = named(objects, match[1]), named(objects, match[3])
            label = "entailment" if PHRASES[relation_of(item, other)] == match[2] else "contradiction"
        else:
            label = "neutral"
            assert len(named(objects, " ".join(hypothesis.split()[:3]))) == 1
        assert ENTAILMENT_LABELS[row["label"]] == label
        assert row["premise"] in {
            f"a {' '.join(kind(item))} {PHRASES[relation_of(item, other)]} a {' '.join(kind(other))}"
            for item in objects
            for other in objects
            if item != other
        }
        counts[label] += 1
    assert set(counts.values()) == {200}


def test_pages_belong_to_their_row_only():
    rows = list(make_page_pairs(300, "train"))
    texts = [row["text"] for row in rows]
    assert len(set(texts)) == len(texts)
    for row in rows:
        assert all(text_of in row["text"] for text_of in (" ".join(kind(item)) for item in row["objects"]))
        for found in row["relations"]:
            if found["relation"] in ("left", "above"):
                subject, other = (row["objects"][found[end]] for end in ("subject", "object"))
                phrase = f"he {' '.join(kind(subject))} is {PHRASES[found['relation']]} the {' '.join(kind(other))}."
                assert phrase in row["text"]


def test_second_picture_of_a_page_shows_the_same_objects_elsewhere():
    moved = 0
    for row in make_page_pairs(60, "train"):
        first, second = np.asarray(row["image"]).astype(int), np.asarray(row["second_image"]).astype(int)
        assert (first != second).any()
        for item in row["objects"]:
            if sum(other["colour"] == item["colour"] for other in row["objects"]) > 1:
                continue
            near = np.abs(second - COLOURS[item["colour"]]).max(-1) <= 12
            assert near.sum() >= 20, f"{item} is not in the second picture"
            x, y = map(int, centre(item))
            moved += bool(np.abs(second[y, x] - item["rgb"]).max() > 0)
    assert moved > 30


# --- classes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_class_is_that_of_the_one_large_object(split):
    data = make_labels(60, split)
    names = data.features["label"].names
    assert len(names) == len(COLOURS) * len(SHAPES)
    for row in data:
        (large,) = [item for item in row["objects"] if item["size"] == "large"]
        assert names[row["label"]] == f"{large['colour']} {large['shape']}"
        left, top, right, bottom = large["box"]
        assert right - left == max(item["box"][2] - item["box"][0] for item in row["objects"])
        pixel = row["image"].getpixel(((left + right) // 2, (top + bottom) // 2))
        assert nearest_colour(pixel) == large["colour"]


def test_label_types_change_the_classes_and_not_the_pictures():
    both, shapes = make_labels(30, seed=2), make_labels(30, seed=2, label_types=["shape"])
    assert both.remove_columns("label")[:] == shapes.remove_columns("label")[:]
    assert shapes.features["label"].names == list(SHAPES)
    assert [label % len(SHAPES) for label in both["label"]] == shapes["label"][:]
    assert make_labels(0, label_types=["colour"]).features["label"].names == list(COLOURS)
    assert make_labels(0, language="zh").features["label"].names[0] == "红色圆形"


def test_no_class_is_much_more_frequent_than_others():
    for split in ("train", "test"):
        counts = Counter(make_labels(600, split, image_size=32, label_types=["shape"])["label"])
        assert len(counts) == len(SHAPES)
        assert max(counts.values()) < 0.25 * 600


def test_classes_of_single_objects_in_test_are_those_of_train():
    seen = set(make_labels(600, image_size=32, num_objects=1)["label"])
    test = make_labels(60, "test", image_size=32, num_objects=1)
    assert set(test["label"]) <= seen
    assert {item["size"] for row in test["objects"] for item in row} == set(SIZES)


# --- arguments ----------------------------------------------------------------------------------------------------


def test_no_rows_are_an_empty_data_set_with_all_columns():
    for make in MAKERS:
        empty, full = make(0), make(1)
        assert len(empty) == 0
        assert empty.features == full.features


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_scenes": -1}, "num_scenes.*-1"),
        ({"num_scenes": 2.5}, "num_scenes.*2.5"),
        ({"split": "dev"}, "'dev' is not one of 'train'"),
        ({"language": "de"}, "'de' is not one of 'en', 'zh'"),
        ({"image_size": 8}, "image_size=8"),
        ({"num_objects": 5}, "num_objects=5"),
        ({"num_objects": (3, 2)}, r"num_objects=\(3, 2\)"),
        ({"num_objects": (1, 2, 3)}, "num_objects"),
        ({"num_objects": 1, "split": "compositional"}, "at least 2"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(**{"num_scenes": 1, **arguments})


def test_types_and_numbers_that_a_kind_of_data_cannot_have_are_named():
    with pytest.raises(ValueError, match="size of the moon"):
        make_questions(1, question_types=["size of the moon"])
    with pytest.raises(ValueError, match="statement_types"):
        make_statement_pairs(1, statement_types=[])
    with pytest.raises(ValueError, match="relation"):
        make_questions(1, num_objects=1)
    with pytest.raises(ValueError, match=r"label_types=\['size'\]"):
        make_labels(1, label_types=["size"])
    with pytest.raises(ValueError, match="more objects"):
        make_statement_pairs(1, num_objects=2)
    with pytest.raises(ValueError, match="true of no compositional scene of two objects"):
        make_statement_pairs(1, "compositional", num_objects=2, statement_types=["relation"])
    with pytest.raises(ValueError, match="num_objects=2"):
        make_page_pairs(1, num_objects=2)
