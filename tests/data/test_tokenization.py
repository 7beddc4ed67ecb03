"""`hf_vlp.data.tokenization.train_gpt2_tokenizer`.

Covers: lossless encoding of any text, one special token with the last id, determinism whatever the order of the texts,
merges that are really learnt, save and load, generators as input, and each refused input.
"""

import random

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer

from hf_vlp.data.tokenization import END_OF_TEXT, train_gpt2_tokenizer

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
