"""VLMo's evaluation transform against the goldens of the original's preprocessing.

Covered: every entry of `image_preprocess_expected.safetensors`, through the image processor and through the processor,
as single pictures and as pairs. Pictures and sizes come from the names of the entries alone; `$HF_VLP_GOLDENS` names
another folder.

Tolerances: 1e-6 with the PIL back end, which resamples the same way. torchvision's rounds differently, also between
the two directions: up to two steps of 1 / 127.5, on 1 % of the values of these pictures.
"""

import os
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import is_torchvision_available

from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.models.mome.processing_mome import MomeImageProcessor, MomeImageProcessorPil, MomeProcessor

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vlmo"
EXPECTED = FOLDER / "image_preprocess_expected.safetensors"

pytestmark = pytest.mark.skipif(not EXPECTED.is_file(), reason=f"no {EXPECTED}")


@pytest.fixture(scope="module")
def cases():
    """[(picture, side, expected pixel values)]"""
    found = []
    for name, pixels in load_file(EXPECTED).items():
        picture, side = re.fullmatch(r"(.+)\.size_(\d+)", name).groups()
        found.append((Image.open(FOLDER / f"{picture}.png"), int(side), pixels))
    assert found
    return found


def assert_near(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


def test_image_processor_gives_the_original_pixels(cases):
    for picture, side, expected in cases:
        pixels = MomeImageProcessorPil(size=side)(picture, return_tensors="pt")["pixel_values"]
        assert_near(pixels, expected[None], 1e-6)


def test_side_given_in_the_call_is_the_same(cases):
    for picture, side, expected in cases:
        pixels = MomeImageProcessorPil()(picture, size=side, return_tensors="pt")["pixel_values"]
        assert_near(pixels, expected[None], 1e-6)


def test_pairs_of_pictures_keep_their_order(cases):
    for side in {side for _, side, _ in cases}:
        pictures, pixels = zip(*((picture, pixels) for picture, size, pixels in cases if size == side))
        processor = MomeProcessor(MomeImageProcessorPil(size=side), train_bert_tokenizer(["a dog"], 20))
        found = processor(images=[[pictures[0], pictures[-1]], [pictures[-1], pictures[0]]])["pixel_values"]
        assert_near(found[0], torch.stack([pixels[0], pixels[-1]]), 1e-6)
        assert_near(found[1], torch.stack([pixels[-1], pixels[0]]), 1e-6)


@pytest.mark.skipif(not is_torchvision_available(), reason="needs torchvision")
def test_torchvision_back_end_is_two_steps_apart_at_most(cases):
    for picture, side, expected in cases:
        pixels = MomeImageProcessor(size=side)(picture, return_tensors="pt")["pixel_values"]
        assert_near(pixels, expected[None], 2.01 / 127.5)
        assert (pixels - expected).abs().mean() < 0.02 / 127.5
