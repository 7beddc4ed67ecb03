"""A VLMo of a few thousand parameters, its processor, and pictures of one colour with captions, questions, pairs."""

import torch
from PIL import Image

from hf_vlp import MomeImageProcessorPil, MomeProcessor, VlmoConfig
from hf_vlp.data.tokenization import train_bert_tokenizer
from tests.training.tiny import COLOURS, make_records

QUESTION = "what colour is it"
TEXTS = [
    *(caption for record in make_records(len(COLOURS)) for caption in record["captions"]),
    QUESTION,
    *(f"is it {colour}" for colour in COLOURS),
    *(f"the left one is {colour}" for colour in COLOURS),
    "yes no",
]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 1,
    "image_size": 16,
    "patch_size": 8,
    "max_text_length": 16,
    "max_text_length_of_table": 24,
    "drop_path_rate": 0.0,
    "text_dropout": 0.0,
    "initializer_range": 0.25,
}


def make_processor() -> MomeProcessor:
    return MomeProcessor(MomeImageProcessorPil(size={"height": 16, "width": 16}), train_bert_tokenizer(TEXTS, 120))


def make_model(model_class, processor, *, seed: int = 0, **options):
    torch.manual_seed(seed)
    return model_class(VlmoConfig(vocab_size=len(processor.tokenizer), **{**SIZES, **options})).eval()


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (16, 16), COLOURS[colour])


def make_questions(number: int) -> list[dict]:
    """ "what colour is it", and every third a question to be answered with yes or no."""
    names = list(COLOURS)
    rows = []
    for index in range(number):
        colour = names[index % len(names)]
        asked = names[(index + index // len(names) % 2) % len(names)]
        row = {"image": picture(colour), "question": QUESTION, "answer": colour, "question_id": index}
        if index % 3 == 2:
            row |= {"question": f"is it {asked}", "answer": "yes" if asked == colour else "no"}
        rows.append(row)
    return rows


def make_statements(number: int) -> list[dict]:
    """Pairs of pictures with a statement about the left one, true for every other pair."""
    names = list(COLOURS)
    rows = []
    for index in range(number):
        left, right = names[index % len(names)], names[(index // 2) % len(names)]
        said = left if index % 2 else names[(index + 1) % len(names)]
        row = {"images": [picture(left), picture(right)], "statement": f"the left one is {said}", "label": index % 2}
        rows.append({**row, "identifier": f"dev-{index // 4}-{index % 2}-{index // 2 % 2}"})
    return rows
