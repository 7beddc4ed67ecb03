"""Tests that every processor of pictures and text passes: saving, loading, batches, kinds of tensors, wrong inputs.

Pictures are given as PIL images, arrays and tensors; texts and pictures are made by the test file, which also declares
what a call for training looks like.
"""

import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin


class ProcessorTests:
    """Declarations of a test class, and its tests."""

    processor_class: type[ProcessorMixin]
    model_class: type
    texts: tuple[str, ...] = ("a dog", "two small cats sit on a mat")
    # Text arguments of `__call__`, each with the side that pads it.
    text_arguments: dict[str, str] = {"text": "right"}
    # Arguments and a pattern of the ValueError or TypeError that names what is wrong with them.
    bad_calls: list[tuple[dict, str]] = []

    def make_processor(self) -> ProcessorMixin:
        raise TypeError(f"{type(self).__name__} does not define make_processor.")

    def pytest_generate_tests(self, metafunc):
        if "argument" in metafunc.fixturenames:
            metafunc.parametrize("argument", self.text_arguments)
        if "bad_call" in metafunc.fixturenames:
            metafunc.parametrize("bad_call", self.bad_calls, ids=[message for _, message in self.bad_calls])

    @pytest.fixture(scope="class")
    def processor(self):
        return self.make_processor()

    def pictures(self, number: int = 2) -> list[Image.Image]:
        """Pictures of several sizes, none of them square."""
        generator = np.random.default_rng(0)
        sizes = [(30 + 7 * index, 23 + index) for index in range(number)]
        return [
            Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes
        ]

    def call(self, processor, argument: str, **options):
        return processor(images=self.pictures(len(self.texts)), **{argument: list(self.texts)}, **options)

    def test_outputs_are_inputs_of_the_model(self, processor, argument):
        accepted = inspect.signature(self.model_class.forward).parameters
        outputs = self.call(processor, argument)
        assert set(outputs) <= set(accepted)
        assert {len(value) for value in outputs.values()} == {len(self.texts)}

    def test_declared_input_names_are_those_returned(self, processor):
        names = {name for argument in self.text_arguments for name in self.call(processor, argument)}
        assert set(processor.model_input_names) <= names

    def test_saved_processor_gives_equal_outputs(self, processor, argument, tmp_path):
        processor.save_pretrained(tmp_path)
        expected = self.call(processor, argument)
        for loaded in (self.processor_class.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
            assert type(loaded) is self.processor_class
            assert_same_batch(self.call(loaded, argument), expected)

    def test_saved_again_the_settings_are_equal(self, tmp_path):
        self.make_processor().save_pretrained(tmp_path / "first")
        self.processor_class.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        first, second = read_json(tmp_path / "first"), read_json(tmp_path / "second")
        for loading in ("is_local", "local_files_only"):  # the library writes down how a tokenizer was loaded
            second["tokenizer_config.json"].pop(loading, None)
        assert first == second

    def test_call_changes_no_setting(self, argument, tmp_path):
        processor = self.make_processor()
        processor.save_pretrained(tmp_path / "before")
        self.call(processor, argument)
        processor.save_pretrained(tmp_path / "after")
        assert read_json(tmp_path / "before") == read_json(tmp_path / "after")

    def test_export_gives_equal_outputs_without_the_package(self, processor, tmp_path):
        processor.save_pretrained(tmp_path / "saved")
        argument = next(iter(self.text_arguments))
        for index, picture in enumerate(self.pictures(len(self.texts))):
            picture.save(tmp_path / f"{index}.png")
        torch.save(dict(self.call(processor, argument)), tmp_path / "expected")
        code = EXPORT_PROCESS.format(argument=argument, texts=list(self.texts))
        environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert_same_batch(torch.load(tmp_path / "found"), torch.load(tmp_path / "expected"))

    def test_batch_equals_its_members(self, processor, argument):
        together = self.call(processor, argument)
        for index, (picture, text) in enumerate(zip(self.pictures(len(self.texts)), self.texts)):
            alone = processor(images=picture, **{argument: text})
            assert torch.equal(alone["pixel_values"][0], together["pixel_values"][index])
            length = alone["input_ids"].shape[1]
            kept = slice(-length, None) if self.text_arguments[argument] == "left" else slice(length)
            assert torch.equal(alone["input_ids"][0], together["input_ids"][index, kept])
            assert alone["attention_mask"].all()
            assert together["attention_mask"][index].sum() == length

    def test_padding_stands_on_its_side(self, processor, argument):
        outputs = self.call(processor, argument)
        lengths = outputs["attention_mask"].sum(-1)
        width = outputs["input_ids"].shape[1]
        assert lengths.min() < lengths.max() == width
        short = int(lengths.argmin())
        padding = outputs["attention_mask"][short] == 0
        number = width - int(lengths[short])
        side = slice(number) if self.text_arguments[argument] == "left" else slice(width - number, None)
        assert padding[side].all()
        assert padding.sum() == number
        assert set(outputs["input_ids"][short][padding].tolist()) == {processor.tokenizer.pad_token_id}

    def test_pictures_or_text_may_be_left_out(self, processor, argument):
        both = self.call(processor, argument)
        pictures = processor(images=self.pictures(len(self.texts)))
        texts = processor(**{argument: list(self.texts)})
        assert not set(pictures) & set(texts)
        assert_same_batch({**pictures, **texts}, both)

    @pytest.mark.parametrize("kind, expected", [("pt", torch.Tensor), ("np", np.ndarray), (None, list)])
    def test_return_tensors_chooses_the_kind(self, processor, argument, kind, expected):
        outputs = self.call(processor, argument, return_tensors=kind)
        assert {name for name, value in outputs.items() if not isinstance(value, expected)} == set()
        if kind == "np":
            reference = self.call(processor, argument)
            assert_same_batch({name: torch.from_numpy(value) for name, value in outputs.items()}, reference)

    def test_kinds_of_pictures_are_equal(self, processor):
        picture = self.pictures(1)[0]
        array = np.asarray(picture)
        expected = processor(images=picture)["pixel_values"]
        for other in (array, torch.from_numpy(array.copy()).permute(2, 0, 1), [picture]):
            assert torch.equal(processor(images=other)["pixel_values"], expected)

    def test_grey_and_transparent_pictures_become_three_channels(self, processor):
        picture = self.pictures(1)[0]
        for mode in ("L", "RGBA", "P", "CMYK"):
            assert processor(images=picture.convert(mode))["pixel_values"].shape[1] == 3

    def test_texts_survive_encoding(self, processor, argument):
        ids = processor(**{argument: list(self.texts)})["input_ids"]
        assert processor.batch_decode(ids, skip_special_tokens=True) == list(self.texts)
        assert processor.decode(ids[0], skip_special_tokens=True) == self.texts[0]

    def test_inputs_are_left_alone(self, processor, argument):
        pictures, texts = self.pictures(len(self.texts)), list(self.texts)
        before = [picture.tobytes() for picture in pictures]
        processor(images=pictures, **{argument: texts})
        assert [picture.tobytes() for picture in pictures] == before
        assert texts == list(self.texts)

    def test_bad_call_is_refused(self, processor, bad_call):
        arguments, message = bad_call
        with pytest.raises((ValueError, TypeError), match=message):
            processor(**arguments)


def read_json(folder) -> dict[str, dict]:
    return {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}


def assert_same_batch(first, second):
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


EXPORT_PROCESS = """
import sys
sys.modules["hf_vlp"] = None  # any import of it fails
import torch
from PIL import Image
from transformers import AutoProcessor

texts = {texts!r}
pictures = [Image.open(str(index) + ".png") for index in range(len(texts))]
processor = AutoProcessor.from_pretrained("./saved", trust_remote_code=True)
torch.save(dict(processor(images=pictures, {argument}=texts)), "found")
"""
