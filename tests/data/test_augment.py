"""Augmentation: what a crop keeps, that it is reproducible, and that bad options are refused."""

import random

import numpy as np
import pytest
from PIL import Image

from hf_vlp.data.augment import RandomResizedCrop


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


@pytest.mark.parametrize("options", [{"min_scale": 0}, {"min_scale": 1.5}, {"max_ratio": 0.5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        RandomResizedCrop(**options)


def test_settings_name_an_augmentation_and_its_options():
    from hf_vlp.pretraining.build import make_augmentation

    assert make_augmentation(None) is None
    assert make_augmentation({"random_resized_crop": {"min_scale": 0.7, "flip": True}}).min_scale == 0.7
    assert make_augmentation({"random_resized_crop": None}).flip is False
    with pytest.raises(ValueError, match="random_resized_crop"):
        make_augmentation({"crop": {}})
    with pytest.raises(ValueError, match="scale"):
        make_augmentation({"random_resized_crop": {"scale": 0.7}})
