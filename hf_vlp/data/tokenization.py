"""A GPT-2 tokenizer for models that are trained from nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Tokenizer

__all__ = ["END_OF_TEXT", "train_gpt2_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256


def train_gpt2_tokenizer(texts: Iterable[str], vocab_size: int) -> GPT2Tokenizer:
    """Learn a byte-level byte-pair encoding from `texts` and return it as transformers' `GPT2Tokenizer`.

    Every text of any language can be encoded and decoded again without loss, because all 256 bytes are in the
    vocabulary. `<|endoftext|>` begins, ends and pads a text; it is the last id, as in the released GPT-2
    (50,256 of 50,257), so `tokenizer.eos_token_id == len(tokenizer) - 1`. The result depends on the words of the texts
    and their counts alone, not on their order. Saving and loading give an equal tokenizer.

    Args:
        texts: captions; consumed once, so a generator will do.
        vocab_size: most tokens, special one included; at least 257. Few texts can give fewer: use `len(tokenizer)`.

    Raises TypeError when `texts` is one string or holds something else than strings, ValueError for a vocabulary that
    has no room for the bytes or when no text has a character.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a collection of strings, not one string; pass [text].")
    smallest = NUM_BYTES + 1
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (256 bytes and {END_OF_TEXT}), not {vocab_size}.")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_checked(texts), trainer=trainer)
    model = json.loads(backend.to_str())["model"]  # the only place where the library shows the merges in order
    vocab = {**model["vocab"], END_OF_TEXT: len(model["vocab"])}
    return GPT2Tokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
    )


def _checked(texts: Iterable[str]) -> Iterator[str]:
    characters = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must hold strings only, found {text!r} of type {type(text).__name__}.")
        characters += len(text)
        yield text
    if not characters:
        raise ValueError("There is no text to learn a tokenizer from: all texts are empty. Check the caption column.")
