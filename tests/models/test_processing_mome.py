"""Processor of the mixture-of-modality-experts models: the common tests, and what only it promises.

Own tests: begin and end of texts, cutting, padding and rounded lengths, no token types from processor and tokenizer,
saved or not; pairs of pictures in every form, rows that are no pairs; image size and proportions; name of the saved
image processor and its two back ends; tokenizers without the tokens it needs.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.utils import is_torchvision_available

from hf_vlp.data.tokenization import train_bert_tokenizer, train_gpt2_tokenizer
from hf_vlp.models.mome import processing_mome
from hf_vlp.models.mome.modeling_vlmo import VlmoModel
from hf_vlp.models.mome.processing_mome import MomeImageProcessor, MomeImageProcessorPil, MomeProcessor
from tests.common.processing import ProcessorTests
from tests.hub.tiny_vlmo import make_model

TEXTS = ("a dog", "two small cats sit on a mat")
SIDE = 16


def make_processor(**tokenizer_options) -> MomeProcessor:
    tokenizer = train_bert_tokenizer(list(TEXTS), 80)
    for name, value in tokenizer_options.items():
        setattr(tokenizer, name, value)
    return MomeProcessor(MomeImageProcessor(size=SIDE), tokenizer)


def make_picture(seed: int = 0, width: int = 30, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


class TestMomeProcessor(ProcessorTests):
    processor_class = MomeProcessor
    model_class = VlmoModel
    texts = TEXTS
    bad_calls = [
        ({}, "give images, text, or both"),
        ({"text": 3}, "text must be a string or a list of strings, not int"),
        ({"text": ["a dog", None]}, "text must be a string or a list of strings, not NoneType, str"),
        ({"text": [["a dog", "a cat"]]}, "text must be a string or a list of strings, not list"),
        ({"text": [("a dog", "a cat")]}, "text must be a string or a list of strings, not tuple"),
        ({"text": []}, "text is empty"),
        ({"images": []}, "images is empty"),
        ({"images": [[]]}, r"images\[0\] has 0 picture"),
        ({"images": [None], "text": "a dog"}, "images must be pictures .* not NoneType"),
        ({"images": "no such file.png"}, "no such file.png"),
        ({"images": 3}, "images must be pictures .* not int"),
        ({"images": [b"bytes", 3]}, "images must be pictures .* not bytes, int"),
        ({"text": "a dog", "max_length": 2}, "max_length=2 leaves no room"),
        ({"text": "a dog", "sharpen": True}, "no option sharpen"),
        ({"text": "a dog", "images": [make_picture()], "sharpen": True}, "sharpen"),
    ]

    def make_processor(self) -> MomeProcessor:
        return make_processor()


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def test_texts_begin_and_end(processor):
    batch = processor(text=list(TEXTS))
    for text, ids, mask in zip(TEXTS, batch["input_ids"], batch["attention_mask"]):
        assert ids[mask.bool()].tolist() == processor.tokenizer(text)["input_ids"]
        assert ids[0] == processor.tokenizer.cls_token_id
        assert ids[mask.bool()][-1] == processor.tokenizer.sep_token_id


@pytest.mark.parametrize("max_length", [3, 5])
def test_long_texts_are_cut_before_their_end(processor, max_length):
    whole = processor(text=TEXTS[1])["input_ids"][0].tolist()
    cut = processor(text=TEXTS[1], max_length=max_length)["input_ids"][0].tolist()
    assert len(whole) > max_length
    assert cut == [*whole[: max_length - 1], whole[-1]]


def test_texts_are_cut_to_forty_tokens_unless_told(processor):
    text = "a dog " * 40
    assert processor(text=text)["input_ids"].shape[1] == 40
    assert processor(text=text, max_length=60)["input_ids"].shape[1] == 60
    assert processor(text=text, truncation=False)["input_ids"].shape[1] == 82


def test_texts_are_cut_to_a_smaller_limit_of_the_tokenizer():
    processor = make_processor(model_max_length=6)
    assert processor(text="a dog " * 40)["input_ids"].shape[1] == 6
    assert processor(text="a dog " * 40, max_length=8)["input_ids"].shape[1] == 8


def test_padding_to_the_maximum_and_to_multiples(processor):
    plain = processor(text=list(TEXTS))
    for options, width in (({"padding": "max_length", "max_length": 20}, 20), ({"pad_to_multiple_of": 16}, 16)):
        batch = processor(text=list(TEXTS), **options)
        assert batch["input_ids"].shape == (2, width)
        assert torch.equal(batch["attention_mask"].sum(-1), plain["attention_mask"].sum(-1))
    ids = processor(text=list(TEXTS), padding=False, return_tensors=None)["input_ids"]
    assert [len(row) for row in ids] == plain["attention_mask"].sum(-1).tolist()


def test_padding_stands_on_the_right_whatever_the_tokenizer_says():
    batch = make_processor(padding_side="left")(text=list(TEXTS))
    assert batch["attention_mask"][0].tolist() == sorted(batch["attention_mask"][0].tolist(), reverse=True)
    assert not batch["attention_mask"][0].all()


def test_texts_are_lower_cased(processor):
    assert torch.equal(processor(text="A DOG")["input_ids"], processor(text="a dog")["input_ids"])


def test_empty_text_is_begin_and_end(processor):
    tokenizer = processor.tokenizer
    assert processor(text="")["input_ids"].tolist() == [[tokenizer.cls_token_id, tokenizer.sep_token_id]]


def test_pipelines_that_call_the_tokenizer_alone_get_no_token_types(processor, tmp_path):
    """zero-shot-image-classification and fill-mask do, and pass on to the model all that they get."""
    processor.save_pretrained(tmp_path)
    expected = processor(text=list(TEXTS))
    for tokenizer in (processor.tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        found = tokenizer(list(TEXTS), padding=True, return_tensors="pt")
        assert set(found) == {"input_ids", "attention_mask"}
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["attention_mask"], expected["attention_mask"])


def test_pairs_of_pictures_are_one_row_each(processor):
    left, right = make_picture(0), make_picture(1, 25, 40)
    single = processor(images=[left, right])["pixel_values"]
    assert single.shape == (2, 3, SIDE, SIDE)
    pairs = processor(images=[[left, right], (right, left), [left, left]], text=["a", "b", "c"])
    assert pairs["pixel_values"].shape == (3, 2, 3, SIDE, SIDE)
    assert torch.equal(pairs["pixel_values"][0], single)
    assert torch.equal(pairs["pixel_values"][1], single.flip(0))
    assert torch.equal(pairs["pixel_values"][2], single[[0, 0]])


@pytest.mark.parametrize("kind", ["pt", "np", None])
def test_pairs_come_in_every_kind_of_tensor(processor, kind):
    pair = [make_picture(0), make_picture(1)]
    pixels = processor(images=[pair, pair], return_tensors=kind)["pixel_values"]
    expected = processor(images=pair)["pixel_values"]
    assert np.array_equal(np.asarray(pixels), np.stack([expected, expected]))


def test_pairs_may_be_one_array(processor):
    array = np.random.default_rng(0).integers(0, 256, (2, 2, 20, 30, 3), dtype=np.uint8)
    expected = processor(images=[[Image.fromarray(picture) for picture in pair] for pair in array])["pixel_values"]
    for pairs in (array, torch.from_numpy(array).permute(0, 1, 4, 2, 3)):
        assert torch.equal(processor(images=pairs)["pixel_values"], expected)


@pytest.mark.parametrize("sizes", [(2, 1), (3,), (2, None), (None, 2)])
def test_rows_that_are_no_pairs_are_refused(processor, sizes):
    rows = [make_picture() if size is None else [make_picture()] * size for size in sizes]
    with pytest.raises(ValueError, match=r"picture\(s\), expected 2: pairs are given as \[\[left, right\], ...\]"):
        processor(images=rows)


def test_half_empty_pair_is_refused(processor):
    with pytest.raises(TypeError, match="or pairs of them, not NoneType"):
        processor(images=[[make_picture(), None]])


def test_pictures_fill_the_square_without_cropping(processor):
    """A bright left third is a bright left third of the square, whatever the proportions."""
    for width, height in ((90, 20), (30, 80)):
        array = np.zeros((height, width, 3), dtype=np.uint8)
        array[:, : width // 3] = 255
        pixels = processor(images=Image.fromarray(array))["pixel_values"][0]
        assert pixels.shape == (3, SIDE, SIDE)
        assert (pixels[..., : SIDE // 3 - 1] == 1).all()
        assert (pixels[..., SIDE // 3 + 3 :] == -1).all()


def test_image_size_can_be_chosen_in_the_call(processor):
    assert processor(images=make_picture(), size=32)["pixel_values"].shape == (1, 3, 32, 32)
    assert processor(images=make_picture())["pixel_values"].shape == (1, 3, SIDE, SIDE)


def test_default_size_is_that_of_the_published_models():
    assert MomeImageProcessorPil()(make_picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 224, 224)


def test_saved_name_of_the_image_processor_does_not_name_the_back_end(processor, tmp_path):
    processor.save_pretrained(tmp_path / "both")
    processor.image_processor.save_pretrained(tmp_path / "alone")
    both = json.loads((tmp_path / "both" / "processor_config.json").read_text())["image_processor"]
    alone = json.loads((tmp_path / "alone" / "preprocessor_config.json").read_text())
    assert both["image_processor_type"] == alone["image_processor_type"] == "MomeImageProcessor"
    for folder in ("both", "alone"):
        loaded = AutoImageProcessor.from_pretrained(tmp_path / folder, backend="pil")
        assert type(loaded) is MomeImageProcessorPil
        assert (loaded.size.height, loaded.size.width) == (SIDE, SIDE)


@pytest.mark.skipif(is_torchvision_available(), reason="tests what happens without torchvision")
def test_name_of_the_other_back_end_falls_back_without_torchvision():
    assert processing_mome.MomeImageProcessor is MomeImageProcessorPil


def test_tokenizer_without_begin_and_end_is_refused():
    with pytest.raises(ValueError, match=r"no cls_token\. Give a BertTokenizer"):
        MomeProcessor(MomeImageProcessorPil(), train_gpt2_tokenizer(list(TEXTS), 300))


def test_repository_without_tokenizer_files_is_refused(tmp_path):
    """The library makes a tokenizer of special tokens alone of it, to which every word is the same."""
    make_model("VlmoForImageTextRetrieval").save_pretrained(tmp_path)
    MomeImageProcessorPil(size=32).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows no words, only special tokens"):
        AutoProcessor.from_pretrained(tmp_path)
