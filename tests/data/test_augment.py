"""`hf_vlp.data.augment`.

Covers: what a crop keeps; each operation of `RandomAugment` and how often it is drawn; size, crop, flip and operations
of `VlmoTraining`; colours, flip and crop of `BeitPreTraining`, and what of it pairs are spared; that all are functions
of their generator; how settings name them; each refused option.
"""

import random

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from hf_vlp.data.augment import (
    AUGMENTATIONS,
    BeitPairPreTraining,
    BeitPreTraining,
    RandomAugment,
    RandomResizedCrop,
    VlmoTraining,
)


@pytest.fixture
def picture():
    return Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint32).astype(np.uint8).reshape(60, 80, 3))


def test_crops_keep_at_least_the_asked_share(picture):
    crop = RandomResizedCrop(min_scale=0.5, max_ratio=4 / 3)
    generator = random.Random(0)
    parts = [crop(picture, generator) for _ in range(200)]
    shares = [part.width * part.height / (80 * 60) for part in parts]
    assert min(shares) > 0.43  # half, less where a side that would be too long was cut
    assert max(shares) <= 1
    assert len({part.size for part in parts}) > 50


def test_the_same_generator_gives_the_same_part(picture):
    crop = RandomResizedCrop(flip=True)
    first, second = (crop(picture, random.Random(7)) for _ in range(2))
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != crop(picture, random.Random(8)).tobytes()


def test_flip_mirrors_half_of_the_pictures(picture):
    crop = RandomResizedCrop(min_scale=1.0, max_ratio=1.0, flip=True)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    generator = random.Random(0)
    count = sum(crop(picture, generator).tobytes() == mirrored for _ in range(400))
    assert 160 < count < 240


def test_a_single_pixel_survives():
    assert RandomResizedCrop(min_scale=0.1)(Image.new("RGB", (1, 1)), random.Random(0)).size == (1, 1)


# RandomAugment


def pixels(image) -> np.ndarray:
    return np.asarray(image, dtype=int)


@pytest.fixture
def natural():
    """A somewhat grainy picture in dark colours."""
    y, x = np.mgrid[:48, :64]
    channels = [60 + 40 * np.sin(x / 9), 50 + 30 * np.cos(y / 7), 40 + x // 4 + y // 4]
    grain = np.random.default_rng(0).integers(0, 9, (48, 64, 3))
    return Image.fromarray((np.stack(channels, -1) + grain).astype(np.uint8))


@pytest.mark.parametrize("magnitude, factor", [(7, 1.36), (0, 0.1), (5, 1.0)])
def test_brightness_multiplies_by_the_level(natural, magnitude, factor):
    brighter = pixels(RandomAugment(magnitude=magnitude).apply("brightness", natural))
    assert np.abs(brighter - pixels(natural) * factor).max() <= 1


def test_sharpness_adds_what_smoothing_takes_away(natural):
    smooth = pixels(natural.filter(ImageFilter.SMOOTH))
    expected = np.clip(smooth + 1.36 * (pixels(natural) - smooth), 0, 255)
    assert np.abs(pixels(RandomAugment().apply("sharpness", natural)) - expected).max() <= 1
    assert np.abs(expected - pixels(natural)).max() > 1


def test_auto_contrast_stretches_each_channel_to_the_whole_range(natural):
    stretched = pixels(RandomAugment().apply("auto_contrast", natural))
    assert stretched.min((0, 1)).tolist() == [0, 0, 0]
    assert (stretched.max((0, 1)) >= 254).all()  # Pillow rounds down


def test_equalize_spreads_the_values_evenly(natural):
    even = pixels(RandomAugment().apply("equalize", natural))
    for channel in range(3):
        quarters = np.histogram(even[..., channel], 4, (0, 256))[0]
        assert quarters.min() > 0.6 * quarters.max()
    assert np.histogram(pixels(natural)[..., 0], 4, (0, 256))[0].min() == 0


def test_translations_move_by_pixels_and_fill_with_grey(natural):
    augment = RandomAugment(magnitude=7)
    for sign in (1, -1):
        moved = pixels(augment.apply("translate_x", natural, sign))
        assert (moved == pixels(augment.apply("translate_x", natural, sign))).all()
        old, gap = pixels(natural), slice(-7, None) if sign == 1 else slice(7)
        assert (moved[:, gap] == 128).all()
        assert (moved[:, :-7] == old[:, 7:]).all() if sign == 1 else (moved[:, 7:] == old[:, :-7]).all()
    moved = pixels(augment.apply("translate_y", natural))
    assert (moved[-7:] == 128).all()
    assert (moved[:-7] == pixels(natural)[7:]).all()


@pytest.mark.parametrize("name, axis", [("shear_x", 0), ("shear_y", 1)])
def test_shears_move_each_line_by_its_distance(name, axis):
    square = np.zeros((100, 100, 3), np.uint8)
    square[40:50, 40:50] = 255
    sheared = pixels(RandomAugment(magnitude=7, fill=(0, 0, 0)).apply(name, Image.fromarray(square), -1))[..., 0]
    centre = np.array([(sheared.sum(1 - side) * np.arange(100)).sum() / sheared.sum() for side in (0, 1)])
    expected = np.array([44.5, 44.5])
    expected[1 - axis] += 0.21 * 45
    assert np.abs(centre - expected).max() < 0.2


def test_rotation_is_by_thirty_degrees_at_most_and_in_the_direction_of_its_sign():
    line = np.zeros((101, 101, 3), np.uint8)
    line[49:52, 50:] = 255  # from the middle to the right
    for magnitude, sign in ((7, 1), (10, 1), (7, -1)):
        turned = pixels(
            RandomAugment(magnitude=magnitude, fill=(0, 0, 0)).apply("rotate", Image.fromarray(line), sign)
        )
        y, x = np.nonzero(turned[..., 0] > 128)
        angle = np.degrees(np.arctan2(50 - y.mean(), x.mean() - 50))
        assert abs(angle - sign * 3 * magnitude) < 1.5
    corners = pixels(RandomAugment().apply("rotate", Image.new("RGB", (40, 40))))
    assert corners[0, 0].tolist() == [128, 128, 128]


def test_operations_are_drawn_alike_and_half_of_them_are_used(natural, monkeypatch):
    augment = RandomAugment()
    used = []
    monkeypatch.setattr(augment, "apply", lambda name, image, sign: used.append((name, sign)) or image)
    generator = random.Random(0)
    for _ in range(2000):
        augment(natural, generator)
    assert abs(len(used) - 2000) < 5 * 1000**0.5  # of 4000 draws, five deviations
    counts = [sum(name == each for name, _ in used) for each in RandomAugment.OPERATIONS]
    assert max(counts) - min(counts) < 100  # about 200 each
    assert 800 < sum(sign == 1 for _, sign in used) < 1200


def test_probability_one_always_changes_and_zero_never_does(natural):
    generator = random.Random(0)
    never = RandomAugment(probability=0)
    assert all(never(natural, generator) is natural for _ in range(20))
    always = RandomAugment(num_operations=6, probability=1)
    assert all(always(natural, generator).tobytes() != natural.tobytes() for _ in range(20))


@pytest.mark.parametrize("name", RandomAugment.OPERATIONS)
def test_operations_keep_size_and_leave_the_given_picture_alone(natural, name):
    before = natural.tobytes()
    after = RandomAugment().apply(name, natural)
    assert (after.size, after.mode) == (natural.size, "RGB")
    assert (after.tobytes() == before) == (name == "identity")
    assert natural.tobytes() == before
    assert RandomAugment().apply(name, Image.new("RGB", (1, 1))).size == (1, 1)


def test_unknown_operations_are_refused(natural):
    with pytest.raises(ValueError, match="no operation 'solarize'"):
        RandomAugment().apply("solarize", natural)


# VlmoTraining


def test_vlmo_pictures_are_squares_of_the_asked_size(picture):
    generator = random.Random(0)
    assert {VlmoTraining(32)(picture, generator).size for _ in range(20)} == {(32, 32)}
    for size in ((1, 1), (300, 2), (2, 300)):
        assert VlmoTraining(8)(Image.new("RGB", size), generator).size == (8, 8)


def test_vlmo_parts_have_the_asked_area_and_ratio():
    augment = VlmoTraining()
    generator = random.Random(0)
    boxes = [augment._part(400, 300, generator) for _ in range(2000)]
    shares = np.array([(right - left) * (bottom - top) / 120_000 for left, top, right, bottom in boxes])
    ratios = np.array([(right - left) / (bottom - top) for left, top, right, bottom in boxes])
    assert shares.min() > 0.495
    assert shares.max() <= 1
    assert ratios.min() > 0.745
    assert ratios.max() < 1.34
    assert np.ptp(shares) > 0.4
    assert all(0 <= left < right <= 400 and 0 <= top < bottom <= 300 for left, top, right, bottom in boxes)
    # nothing of that ratio with half of the area fits into a strip
    assert augment._part(900, 30, generator) == (430, 0, 470, 30)
    assert augment._part(30, 900, generator) == (0, 430, 30, 470)


def test_vlmo_without_crop_and_operations_is_resize_and_flip(natural):
    square = natural.resize((48, 48))
    augment = VlmoTraining(24, min_scale=1, max_ratio=1, num_operations=0)
    plain = square.resize((24, 24), Image.Resampling.BICUBIC)
    mirrored = plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    generator = random.Random(0)
    results = [augment(square, generator).tobytes() for _ in range(200)]
    assert set(results) == {plain.tobytes(), mirrored}
    assert 70 < results.count(mirrored) < 130
    unflipped = VlmoTraining(24, min_scale=1, max_ratio=1, num_operations=0, flip=False)
    assert {unflipped(square, generator).tobytes() for _ in range(20)} == {plain.tobytes()}


# BeitPreTraining


def test_beit_parts_are_those_of_vlmo_and_keep_their_size(natural):
    augment = BeitPreTraining(min_scale=0.3, flip=False, color_jitter=0)
    box = VlmoTraining(min_scale=0.3)._part(natural.width, natural.height, random.Random(5))
    part = augment(natural, random.Random(5))
    assert part.tobytes() == natural.crop(box).tobytes()
    sizes = [augment(natural, random.Random(seed)).size for seed in range(200)]
    shares = [width * height / (natural.width * natural.height) for width, height in sizes]
    assert min(shares) > 0.29
    assert max(shares) > 0.9


def test_beit_flips_half_of_the_pictures(natural):
    augment = BeitPreTraining(min_scale=1, color_jitter=0)
    mirrored = natural.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes()
    results = [augment(natural, random.Random(seed)).tobytes() for seed in range(200)]
    assert set(results) == {natural.tobytes(), mirrored}
    assert 70 < results.count(mirrored) < 130


def test_beit_colours_change_by_the_asked_factors_in_random_order(monkeypatch, natural):
    calls = []

    class Noted:
        def __init__(self, name):
            self.name = name

        def __call__(self, image):
            return type("Enhancer", (), {"enhance": lambda _, factor: calls.append((self.name, factor)) or image})()

    monkeypatch.setattr(BeitPreTraining, "_ENHANCERS", tuple(map(Noted, "bcs")))
    generator = random.Random(0)
    for _ in range(300):
        BeitPreTraining(color_jitter=0.4)(natural, generator)
    orders = {"".join(name for name, _ in calls[start : start + 3]) for start in range(0, 900, 3)}
    factors = [factor for _, factor in calls]
    assert len(orders) == 6
    assert 0.6 <= min(factors) < 0.61
    assert 1.39 < max(factors) <= 1.4


def test_beit_colours_are_brightness_contrast_and_saturation(natural):
    assert BeitPreTraining._ENHANCERS == (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    augment = BeitPreTraining(min_scale=1, flip=False, color_jitter=0.4)
    changed = [augment(natural, random.Random(seed)) for seed in range(20)]
    assert all(picture.tobytes() != natural.tobytes() for picture in changed)
    assert {picture.size for picture in changed} == {natural.size}


def test_pairs_are_neither_mirrored_nor_coloured(natural):
    augment = BeitPairPreTraining()
    for seed in range(30):
        box = VlmoTraining()._part(natural.width, natural.height, random.Random(seed))
        assert augment(natural, random.Random(seed)).tobytes() == natural.crop(box).tobytes()


@pytest.mark.parametrize(
    "options, moves",
    [({}, True), ({"flip": False}, True), ({"min_scale": 1}, True), ({"min_scale": 1, "flip": False}, False)],
)
def test_changes_of_colour_alone_leave_patches_in_place(natural, options, moves):
    augment = BeitPreTraining(color_jitter=0, **options)
    assert augment.is_geometric == moves
    same = {augment(natural, random.Random(seed)).tobytes() for seed in range(20)} == {natural.tobytes()}
    assert same != moves


@pytest.mark.parametrize("augment", [RandomAugment(), VlmoTraining(32), BeitPreTraining(), BeitPairPreTraining()])
def test_the_generator_alone_decides(natural, augment):
    pictures = [augment(natural, random.Random(seed)).tobytes() for seed in range(12)]
    assert pictures == [augment(natural, random.Random(seed)).tobytes() for seed in range(12)]
    assert len(set(pictures)) > 6


# Options


@pytest.mark.parametrize(
    "augmentation, options",
    [
        (RandomResizedCrop, {"min_scale": 0}),
        (RandomResizedCrop, {"min_scale": 1.5}),
        (RandomResizedCrop, {"max_ratio": 0.5}),
        (RandomAugment, {"num_operations": 0}),
        (RandomAugment, {"magnitude": 11}),
        (RandomAugment, {"probability": -0.1}),
        (RandomAugment, {"fill": (0, 0, 256)}),
        (VlmoTraining, {"size": 0}),
        (VlmoTraining, {"min_scale": 2}),
        (VlmoTraining, {"max_ratio": 0.9}),
        (VlmoTraining, {"magnitude": -1}),
        (BeitPreTraining, {"min_scale": 0}),
        (BeitPreTraining, {"max_ratio": 0.5}),
        (BeitPreTraining, {"color_jitter": 1.5}),
    ],
)
def test_impossible_options_are_refused(augmentation, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        augmentation(**options)


def test_settings_name_an_augmentation_and_its_options():
    from hf_vlp.pretraining.build import make_augmentation

    assert make_augmentation(None) is None
    assert make_augmentation({"random_resized_crop": {"min_scale": 0.7, "flip": True}}).min_scale == 0.7
    assert make_augmentation({"random_resized_crop": None}).flip is False
    assert make_augmentation({"vlmo_training": {"size": 64, "flip": False}}).size == 64
    assert {name: type(make_augmentation({name: None})) for name in AUGMENTATIONS} == AUGMENTATIONS
    with pytest.raises(ValueError, match="random_resized_crop"):
        make_augmentation({"crop": {}})
    with pytest.raises(ValueError, match="scale"):
        make_augmentation({"random_resized_crop": {"scale": 0.7}})
