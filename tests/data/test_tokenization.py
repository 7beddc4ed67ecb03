"""`hf_vlp.data.tokenization`.

Covers, for `train_gpt2_tokenizer`: lossless encoding of any text, one special token with the last id, determinism
whatever the order of the texts, merges that are really learnt, save and load, generators as input, and each refused
input. For `train_bert_tokenizer`: the special tokens and their places, lower case, pieces within words, characters
that find no room, the same vocabulary in every process, save and load, and each refused input. For `text_windows`: all
tokens in parts of words, what cannot be divided.
"""

import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer

from hf_vlp.data.tokenization import (
    BERT_SPECIAL_TOKENS,
    END_OF_TEXT,
    text_windows,
    train_bert_tokenizer,
    train_gpt2_tokenizer,
)

TEXTS = [f"a {colour} {shape} above a blue {shape}" for colour in ("red", "green") for shape in ("circle", "square")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_gpt2_tokenizer(TEXTS, 300)


def test_any_text_is_encoded_without_loss(tokenizer):
    for text in ("a red circle", "  Spaces\tand\nlines ", "一只狗在草地上奔跑", "café 🙂", "\x00\x7f", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_one_special_token_has_the_last_id_like_gpt2(tokenizer):
    assert isinstance(tokenizer, GPT2Tokenizer)
    assert tokenizer.bos_token == tokenizer.eos_token == tokenizer.pad_token == END_OF_TEXT
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == tokenizer.pad_token_id == len(tokenizer) - 1
    assert tokenizer.vocab_size == len(tokenizer) <= 300
    ids = tokenizer(f"{END_OF_TEXT}a red circle{END_OF_TEXT}")["input_ids"]
    assert ids[0] == ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a red circle"


def test_frequent_words_become_single_tokens(tokenizer):
    assert len(tokenizer(" circle square")["input_ids"]) == 2
    assert len(tokenizer(" zebra")["input_ids"]) > 2


def test_result_does_not_depend_on_the_order_of_the_texts(tokenizer):
    shuffled = TEXTS * 3
    random.Random(0).shuffle(shuffled)
    again = train_gpt2_tokenizer((text for text in shuffled), 300)
    assert again.get_vocab() == train_gpt2_tokenizer(TEXTS * 3, 300).get_vocab()
    assert again("a green square")["input_ids"] == tokenizer("a green square")["input_ids"]


def test_larger_vocabulary_is_used_when_the_texts_allow(tokenizer):
    words = ["".join(random.Random(seed).choices("abcdefgh", k=6)) for seed in range(200)]
    assert len(train_gpt2_tokenizer(words, 400)) == 400


def test_saved_tokenizer_is_loaded_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (GPT2Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.pad_token_id == loaded.eos_token_id == tokenizer.eos_token_id
        for text in (*TEXTS, "一只狗", f"a{END_OF_TEXT}"):
            assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_smallest_vocabulary_is_the_bytes_and_the_special_token():
    tokenizer = train_gpt2_tokenizer(TEXTS, 257)
    assert len(tokenizer) == 257
    assert len(tokenizer("red")["input_ids"]) == 3


@pytest.mark.parametrize(
    "texts, vocab_size, error, words",
    [
        ("one string", 300, TypeError, "not one string"),
        ([["a", "b"]], 300, TypeError, "found"),
        (["a", None], 300, TypeError, "NoneType"),
        ([], 300, ValueError, "no text"),
        (["", ""], 300, ValueError, "all texts are empty"),
        (["a"], 256, ValueError, "at least 257"),
    ],
)
def test_bad_input_is_refused_with_the_reason(texts, vocab_size, error, words):
    with pytest.raises(error, match=words):
        train_gpt2_tokenizer(texts, vocab_size)


# BERT


@pytest.fixture(scope="module")
def bert():
    return train_bert_tokenizer(TEXTS * 2, 60)


def test_bert_special_tokens_come_first_and_enclose_texts(bert):
    assert isinstance(bert, BertTokenizer)
    assert bert.convert_ids_to_tokens(range(5)) == list(BERT_SPECIAL_TOKENS)
    assert (bert.pad_token_id, bert.unk_token_id, bert.cls_token_id, bert.sep_token_id, bert.mask_token_id) == (
        *range(5),
    )
    ids = bert("a red circle")["input_ids"]
    assert (ids[0], ids[-1]) == (bert.cls_token_id, bert.sep_token_id)
    assert bert.decode(ids, skip_special_tokens=True) == "a red circle"


def test_bert_lowers_case_and_knows_frequent_words_whole(bert):
    assert bert.tokenize("A RED Circle above") == ["a", "red", "circle", "above"]
    assert len(bert) <= 60


def test_bert_splits_new_words_into_pieces(bert):
    pieces = bert.tokenize("credible")
    assert "[UNK]" not in pieces
    assert all(piece.startswith("##") for piece in pieces[1:])
    assert "".join(piece.removeprefix("##") for piece in pieces) == "credible"


def test_bert_vocabulary_is_full_when_the_texts_allow():
    assert len(train_bert_tokenizer(random_words(), 150)) == 150


def random_words() -> list[str]:
    generator = random.Random(0)
    return ["".join(generator.choices("abcdefgh", k=generator.randint(1, 7))) for _ in range(300)]


def test_bert_vocabulary_is_the_same_in_every_process_and_order():
    here = train_bert_tokenizer(reversed(random_words()), 120).get_vocab()
    code = (
        "import json, sys; from hf_vlp.data.tokenization import train_bert_tokenizer\n"
        "print(json.dumps(train_bert_tokenizer(json.load(sys.stdin), 120).get_vocab()))"
    )
    there = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(random_words()), capture_output=True, text=True, check=True
    )
    assert json.loads(there.stdout) == here


def test_bert_keeps_the_frequent_characters_when_there_is_no_room_for_all():
    tokenizer = train_bert_tokenizer(["aa bb aa bb c"], 9)
    assert set(tokenizer.get_vocab()) == {*BERT_SPECIAL_TOKENS, "a", "##a", "b", "##b"}
    assert tokenizer.tokenize("aa ab ca") == ["a", "##a", "a", "##b", "[UNK]"]


def test_bert_takes_chinese_characters_for_words():
    tokenizer = train_bert_tokenizer(["一只狗", "一只猫"], 30)
    assert tokenizer.tokenize("一只猫") == ["一", "只", "猫"]
    assert not any(piece.startswith("##") for piece in tokenizer.get_vocab())


def test_saved_bert_tokenizer_is_loaded_equal(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    for loaded in (BertTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.get_vocab() == bert.get_vocab()
        for text in (*TEXTS, "Credible!", "一只狗"):
            assert loaded(text)["input_ids"] == bert(text)["input_ids"]


@pytest.mark.parametrize(
    "texts, vocab_size, error, words",
    [
        ("one string", 300, TypeError, "not one string"),
        (["a", None], 300, TypeError, "NoneType"),
        ([], 300, ValueError, "no text"),
        ([" ", "\n"], 300, ValueError, "all texts are blank"),
        (["a"], 6, ValueError, "at least 7"),
    ],
)
def test_bad_input_of_bert_is_refused_with_the_reason(texts, vocab_size, error, words):
    with pytest.raises(error, match=words):
        train_bert_tokenizer(texts, vocab_size)


# Texts in parts


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 5, 8, 1000])
def test_parts_hold_all_tokens_of_a_text_and_begin_with_words(bert, max_tokens):
    text = "A dog runs, unbelievably fast; \u4e00\u53ea\u72d7! Caf\u00e9s re-open at 10:30 o'clock"
    parts = text_windows(bert, text, max_tokens)
    assert "".join(parts) == text
    pieces = [bert.tokenize(part) for part in parts]
    assert [piece for part in pieces for piece in part] == bert.tokenize(text)
    for part, after in zip(pieces, [*pieces[1:], None]):
        assert not part[0].startswith("##")
        begins = [place for place, piece in enumerate(part) if not piece.startswith("##")]
        assert len(part) <= max_tokens or len(begins) == 1
        if after is not None:  # the next word would not have fitted
            word = next((place for place, piece in enumerate(after) if place and piece[:2] != "##"), len(after))
            assert len(part) + word > max_tokens


def test_a_text_without_words_and_one_of_a_tokenizer_without_places_stay_whole(bert):
    assert text_windows(bert, "", 5) == [""]
    assert text_windows(SimpleNamespace(is_fast=False), "a dog " * 100, 5) == ["a dog " * 100]
