"""Processor of VC-GPT: the common tests, and where it puts its one special token.

Own tests: begin and end tokens, labels, cutting of long texts, lengths rounded up, options of the pictures, the
padding token, a batch that the model learns from and one that it continues.
"""

import pytest
import torch
from transformers import CLIPImageProcessorPil

from hf_vlp import VcGptConfig, VcGptForConditionalGeneration, VcGptProcessor
from hf_vlp.data.tokenization import train_gpt2_tokenizer
from tests.common.processing import ProcessorTests

TEXTS = ("a dog", "two small cats sit on a mat")
SIZE = {"height": 16, "width": 16}


def make_processor() -> VcGptProcessor:
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)
    return VcGptProcessor(image_processor, train_gpt2_tokenizer(list(TEXTS), 300))


class TestVcGptProcessor(ProcessorTests):
    processor_class = VcGptProcessor
    model_class = VcGptForConditionalGeneration
    texts = TEXTS
    text_arguments = {"text": "left", "captions": "right"}
    bad_calls = [
        ({}, "give images, text .* or captions"),
        ({"text": "a", "captions": "b"}, "not both"),
        ({"text": 3}, "text must be a string or a list of strings"),
        ({"text": ["a dog", 3]}, "text must be a string or a list of strings, not int, str"),
        ({"captions": ["a dog", None]}, "captions must be a string or a list of strings"),
        ({"captions": [["a dog", "a cat"]]}, "captions must be a string or a list of strings, not list"),
        ({"captions": "a dog", "max_length": 2}, "max_length=2"),
        ({"text": "a dog", "max_length": 1}, "max_length=1"),
        ({"text": []}, "text"),
        ({"captions": []}, "captions"),
        ({"images": "no such file.png"}, "no such file.png"),
        ({"text": "a dog", "sharpen": True}, "sharpen"),
    ]

    def make_processor(self) -> VcGptProcessor:
        return make_processor()


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def test_prompts_begin_and_do_not_end(processor):
    mark = processor.tokenizer.eos_token_id
    batch = processor(text=list(TEXTS))
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"]):
        kept = ids[mask.bool()].tolist()
        assert kept[0] == mark
        assert mark not in kept[1:]
    assert "labels" not in batch


def test_captions_begin_and_end(processor):
    mark = processor.tokenizer.eos_token_id
    batch = processor(captions=list(TEXTS))
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"]):
        kept = ids[mask.bool()].tolist()
        assert kept[0] == kept[-1] == mark
        assert mark not in kept[1:-1]


def test_labels_keep_the_end_and_leave_out_the_padding(processor):
    """Padding is the end token too: only the mask tells the two apart."""
    batch = processor(captions=list(TEXTS))
    kept = batch["attention_mask"].bool()
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert set(batch["labels"][~kept].tolist()) == {-100}
    assert (batch["labels"] == processor.tokenizer.eos_token_id).sum(-1).tolist() == [2, 2]


@pytest.mark.parametrize("max_length", [3, 5])
def test_long_captions_are_cut_before_their_end_token(processor, max_length):
    mark = processor.tokenizer.eos_token_id
    whole = processor(captions=TEXTS[1])["input_ids"][0].tolist()
    cut = processor(captions=TEXTS[1], max_length=max_length)["input_ids"][0].tolist()
    assert len(whole) > max_length
    assert cut == [*whole[: max_length - 1], mark]


def test_long_prompts_are_cut(processor):
    whole = processor(text=TEXTS[1])["input_ids"][0].tolist()
    assert processor(text=TEXTS[1], max_length=4)["input_ids"][0].tolist() == whole[:4]


@pytest.mark.parametrize("argument", ["text", "captions"])
def test_lengths_are_rounded_up(processor, argument):
    plain = processor(**{argument: list(TEXTS)})
    rounded = processor(**{argument: list(TEXTS)}, pad_to_multiple_of=16)
    width = plain["input_ids"].shape[1]
    assert width % 16
    assert {value.shape[1] for value in rounded.values()} == {-(-width // 16) * 16}
    assert torch.equal(rounded["attention_mask"].sum(-1), plain["attention_mask"].sum(-1))


def test_empty_prompt_is_the_begin_token(processor):
    assert processor(text="")["input_ids"].tolist() == [[processor.tokenizer.bos_token_id]]


def test_unicode_survives(processor):
    text = "café 犬 🐕"
    ids = processor(captions=text)["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == [text]


def test_options_of_pictures_pass_through(processor):
    picture = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    plain = processor(images=picture, do_normalize=False)["pixel_values"]
    assert plain.min() >= 0
    assert processor(images=picture)["pixel_values"].min() < 0
    assert processor(images=picture, crop_size={"height": 8, "width": 8})["pixel_values"].shape == (1, 3, 8, 8)


def test_tokenizer_without_padding_token_gets_its_end_token():
    tokenizer = train_gpt2_tokenizer(list(TEXTS), 300)
    tokenizer.pad_token = None
    assert VcGptProcessor(CLIPImageProcessorPil(), tokenizer).tokenizer.pad_token_id == tokenizer.eos_token_id


def test_model_learns_from_captions_and_continues_prompts(processor):
    end = processor.tokenizer.eos_token_id
    config = VcGptConfig(
        vision_config={
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 16,
            "patch_size": 8,
        },
        text_config={
            "vocab_size": len(processor.tokenizer),
            "n_embd": 8,
            "n_layer": 1,
            "n_head": 1,
            "n_positions": 32,
            "bos_token_id": end,
            "eos_token_id": end,
        },
        num_fusion_layers=1,
        fusion_num_heads=1,
    )
    model = VcGptForConditionalGeneration(config).eval()
    pictures = torch.randint(0, 256, (2, 3, 20, 30), dtype=torch.uint8)
    loss = model(**processor(images=list(pictures), captions=list(TEXTS))).loss
    assert loss.item() == pytest.approx(torch.tensor(len(processor.tokenizer)).log().item(), abs=0.5)
    prompts = processor(images=list(pictures), text=list(TEXTS))
    ids = model.generate(**prompts, max_new_tokens=3, min_new_tokens=3)
    assert torch.equal(ids[:, :-3], prompts["input_ids"])
    texts = processor.batch_decode(ids, skip_special_tokens=True)
    assert [text.startswith(prompt) for text, prompt in zip(texts, TEXTS)] == [True, True]
