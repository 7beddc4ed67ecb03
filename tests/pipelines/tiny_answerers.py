"""Models of a few thousand random weights that answer questions about pictures; see `tiny_captioners`."""

import torch
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessorPil,
    BlipProcessor,
    ViltConfig,
    ViltForQuestionAnswering,
    ViltImageProcessorPil,
    ViltProcessor,
)

from tests.pipelines.tiny_captioners import SIZE, TINY, bert_like_tokenizer, save_blip2, widen

ANSWERS = ["yes", "no", "red", "green", "blue", "two", "three"]


def save_vilt(directory):
    """A classifier whose pictures keep their shape."""
    torch.manual_seed(0)
    tokenizer = bert_like_tokenizer()
    config = ViltConfig(
        **TINY,
        vocab_size=len(tokenizer),
        image_size=32,
        patch_size=8,
        max_position_embeddings=12,
        max_image_length=-1,
        id2label=dict(enumerate(ANSWERS)),
        label2id={answer: index for index, answer in enumerate(ANSWERS)},
    )
    widen(ViltForQuestionAnswering(config), 0.3).save_pretrained(directory)
    images = ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8)
    ViltProcessor(images, tokenizer).save_pretrained(directory)
    return directory


def save_blip_vqa(directory):
    """Generates its answers; the question goes into an encoder of its own."""
    torch.manual_seed(0)
    tokenizer = bert_like_tokenizer()
    ids = {"bos_token_id": 4, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {**TINY, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "encoder_hidden_size": 32}
    vision = {**TINY, "image_size": 16, "patch_size": 8}
    widen(BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision))).save_pretrained(directory)
    BlipProcessor(BlipImageProcessorPil(size=SIZE), tokenizer).save_pretrained(directory)
    return directory


ANSWERERS = {"vilt": save_vilt, "blip": save_blip_vqa, "blip2": save_blip2}
