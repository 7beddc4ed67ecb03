"""Tokenizers for models that are trained from nothing, GPT-2's and BERT's kind; texts in parts that fit a model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertTokenizer, GPT2Tokenizer

__all__ = ["BERT_SPECIAL_TOKENS", "END_OF_TEXT", "text_windows", "train_bert_tokenizer", "train_gpt2_tokenizer"]

END_OF_TEXT = "<|endoftext|>"
NUM_BYTES = 256
_NO_TEXT = (
    "There is no text to learn a tokenizer from: all texts are {}. Check the caption column; where records are "
    "pictures alone, name a tokenizer that exists (model.tokenizer_name_or_path)."
)
BERT_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def train_bert_tokenizer(texts: Iterable[str], vocab_size: int) -> BertTokenizer:
    """Learn lower-cased word pieces from `texts` and return them as transformers' `BertTokenizer`.

    Ids 0 to 4 are `BERT_SPECIAL_TOKENS`. Then come the characters, as beginnings and as continuations (`##a`) of
    words, those that are frequent when there is no room for all: a word with a missing character is [UNK]. The result
    depends on the words of the texts and their counts alone, not on their order. Saving and loading give an equal
    tokenizer.

    Args:
        texts: captions or lines; consumed once, so a generator will do. The different words must fit into memory.
        vocab_size: most pieces, special ones included. Few texts can give fewer: use `len(tokenizer)`.

    Raises TypeError when `texts` is one string or holds something else than strings, ValueError for a vocabulary that
    has no room for a single character or when no text has a character.
    """
    if isinstance(texts, str):
        raise TypeError("texts must be a collection of strings, not one string; pass [text].")
    if vocab_size < len(BERT_SPECIAL_TOKENS) + 2:
        raise ValueError(
            f"vocab_size must be at least {len(BERT_SPECIAL_TOKENS) + 2} (the special tokens and one character at the "
            f"beginning and inside of words), not {vocab_size}."
        )
    blank = BertTokenizer().backend_tokenizer  # for its way of splitting texts into words
    words: Counter[str] = Counter()
    for text in _checked(texts):
        words.update(word for word, _ in blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str(text)))
    if not words:
        raise ValueError(_NO_TEXT.format("blank"))
    first, continuing = _frequent_characters(words, vocab_size - len(BERT_SPECIAL_TOKENS))
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The library numbers continuations in the order of a hash table with a random seed and breaks ties of counts
        # by number: the same texts would give another vocabulary each time. Named here, they have fixed numbers.
        special_tokens=[*BERT_SPECIAL_TOKENS, *(f"##{character}" for character in continuing)],
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=False,
    )
    backend.train_from_iterator(_repeated(words), trainer=trainer)
    return BertTokenizer(vocab=json.loads(backend.to_str())["model"]["vocab"])


def _repeated(words: Counter[str], at_once: int = 1000) -> Iterator[str]:
    """Lines in which each word stands as often as it was counted."""
    for word, count in sorted(words.items()):
        for start in range(0, count, at_once):
            yield " ".join([word] * min(at_once, count - start))


def _frequent_characters(words: Counter[str], room: int) -> tuple[list[str], list[str]]:
    """The most frequent characters that fit into `room`, sorted, and those of them that continue words."""
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for word, count in words.items():
        for character in word:
            counts[character] += count
        inside.update(word[1:])
    kept = []
    for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        room -= 2 if character in inside else 1
        if room < 0:
            break
        kept.append(character)
    return sorted(kept), sorted(set(kept) & inside)


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


def text_windows(tokenizer, text: str, max_tokens: int) -> list[str]:
    """The text in consecutive parts of at most `max_tokens` tokens, special ones not counted, divided between words.

    Each part is filled with as many words as fit. A word with more tokens than that is a part of its own; so is the
    whole text where the tokenizer cannot tell words and their places (one that is written in Python).
    """
    if not getattr(tokenizer, "is_fast", False):
        return [text]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    words, places = encoding.word_ids(), encoding["offset_mapping"]
    starts, part, word = [0], 0, 0  # where parts start in the text; tokens that the last part and word begin with
    for token in range(1, len(words) + 1):
        if token < len(words) and words[token] == words[token - 1]:
            continue
        if token - part > max_tokens and word > part:
            part = word
            starts.append(places[part][0])
        word = token
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)])]


def _checked(texts: Iterable[str]) -> Iterator[str]:
    characters = 0
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"texts must hold strings only, found {text!r} of type {type(text).__name__}.")
        characters += len(text)
        yield text
    if not characters:
        raise ValueError(_NO_TEXT.format("empty"))
