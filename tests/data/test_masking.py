"""`hf_vlp.data.masking`.

Covers: the rule by which words are taken, against a loop over words; that words are hidden whole, padding and special
tokens never, and every text with a word has a target; chances of long words; what becomes of hidden pieces;
independence of a row from its batch and padding; single pieces, by chance and in exact numbers; reading a tokenizer;
each refused input.
(The statistics of the original are in tests/parity/test_vlmo_masking.py.)
"""

import pytest
import torch

from hf_vlp.data.masking import WordPieces, draw_noise, mask_tokens, mask_whole_words
from hf_vlp.data.tokenization import train_bert_tokenizer

PAD, UNK, CLS, SEP, MASK = range(5)
SIZE = 60
FIRST_CONTINUATION = 40


@pytest.fixture
def pieces():
    continues, special, boundary = (torch.zeros(SIZE, dtype=torch.bool) for _ in range(3))
    continues[FIRST_CONTINUATION:] = True
    special[:5] = True
    boundary[[CLS, SEP]] = True
    return WordPieces(continues, special, boundary, MASK)


def random_texts(batch=200, length=24, seed=0):
    """Texts of random length with words of one to four pieces and some unknown words, padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, SIZE, (batch, length), generator=generator)
    ids[torch.rand(batch, length, generator=generator) < 0.05] = UNK
    lengths = torch.randint(3, length + 1, (batch, 1), generator=generator)
    position = torch.arange(length)
    ids[:, 0] = CLS
    ids[position == lengths - 1] = SEP
    ids[position >= lengths] = PAD
    return ids, (position < lengths).long()


def words_of(row, mask, pieces, budget):
    """Positions of each word that competes, one by one."""
    words = []
    for index, (token, real) in enumerate(zip(row.tolist(), mask.tolist())):
        if (real and token in (CLS, SEP)) or (budget == "tokens" and (not real or token == UNK)):
            continue
        if words and real and bool(pieces.continues[token]):
            words[-1].append(index)
        else:
            words.append([index])
    return words


@pytest.mark.parametrize("budget", ["tokens", "padded_length"])
@pytest.mark.parametrize("probability", [0.15, 0.5])
def test_words_are_taken_in_random_order_unless_they_overshoot(pieces, budget, probability):
    ids, mask = random_texts()
    noise = draw_noise(tuple(ids.shape), torch.Generator().manual_seed(1))
    _, labels = mask_whole_words(ids, mask, pieces, probability=probability, budget=budget, noise=noise)
    for row, real, keys, label in zip(ids, mask, noise[:, 0], labels):
        words = words_of(row, real, pieces, budget)
        length = len(row) if budget == "padded_length" else sum(map(len, words))
        places = max(1, round(probability * length))
        taken = set()
        for rank, number in enumerate(sorted(range(len(words)), key=lambda n: keys[n])):
            if len(taken) + len(words[number]) <= places or (rank == 0 and budget == "tokens"):
                taken |= set(words[number])
        expected = [i for i in sorted(taken) if real[i] and row[i] != UNK]
        assert (label != -100).nonzero().flatten().tolist() == expected
        assert label[expected].tolist() == row[expected].tolist()


@pytest.mark.parametrize("budget", ["tokens", "padded_length"])
def test_padding_and_special_tokens_are_never_touched(pieces, budget):
    ids, mask = random_texts()
    hidden, labels = mask_whole_words(ids, mask, pieces, probability=0.9, budget=budget)
    untouchable = (mask == 0) | (ids < 5)
    assert (labels[untouchable] == -100).all()
    assert torch.equal(hidden[untouchable], ids[untouchable])
    assert torch.equal(hidden[labels == -100], ids[labels == -100])


def test_every_text_with_a_word_has_a_target_in_the_budget_of_tokens(pieces):
    ids, mask = random_texts(batch=500, length=8)
    has_word = (mask.bool() & (ids >= 5)).any(1)
    assert not has_word.all()  # a few texts hold nothing but unknown words
    for mask_words in (mask_whole_words, mask_tokens):
        _, labels = mask_words(ids, mask, pieces, probability=0.01)
        assert torch.equal((labels != -100).any(1), has_word)


def test_long_words_of_short_texts_are_chosen_as_often_as_short_ones(pieces):
    text = torch.tensor([[CLS, 7, 41, 42, 9, 10, SEP]]).repeat(3000, 1)  # words of 3, 1 and 1 pieces, one place
    _, labels = mask_whole_words(text, torch.ones_like(text), pieces, generator=torch.Generator().manual_seed(0))
    counts = (labels != -100)[:, [1, 4, 5]].double().mean(0)
    assert (counts - 1 / 3).abs().max() < 0.04  # over four standard deviations of 0.0086


@pytest.mark.parametrize("mask_words", [mask_whole_words, mask_tokens])
def test_hidden_pieces_are_masked_replaced_or_kept(pieces, mask_words):
    ids, mask = random_texts(batch=3000)
    hidden, labels = mask_words(ids, mask, pieces, generator=torch.Generator().manual_seed(0))
    chosen = labels != -100
    number = int(chosen.sum())
    assert number > 4000
    masked = (hidden[chosen] == MASK).double().mean()
    kept = (hidden[chosen] == labels[chosen]).double().mean()
    assert abs(masked - (0.8 + 0.1 / SIZE)) < 0.03
    assert abs(kept - (0.1 + 0.1 / SIZE)) < 0.025
    replaced = hidden[chosen & (hidden != MASK) & (hidden != labels)]
    assert len(replaced.unique()) > 0.9 * SIZE


def test_single_pieces_are_hidden_independently(pieces):
    ids, mask = random_texts(batch=2000)
    noise = draw_noise(tuple(ids.shape), torch.Generator().manual_seed(0))
    _, labels = mask_tokens(ids, mask, pieces, probability=0.3, at_least_one=False, noise=noise)
    assert torch.equal(labels != -100, (noise[:, 0] < 0.3) & mask.bool() & (ids >= 5))


@pytest.mark.parametrize("probability", [0.15, 0.5, 1.0])
def test_exact_counts_are_shares_of_what_can_be_guessed(pieces, probability):
    ids, mask = random_texts()
    _, labels = mask_tokens(ids, mask, pieces, probability=probability, exact_count=True)
    for row, real, own in zip(ids, mask.bool(), labels):
        candidates = int((real & ~pieces.special[row]).sum())
        assert int((own != -100).sum()) == min(candidates, max(1, round(probability * candidates)))


def test_exact_counts_choose_every_piece_as_often(pieces):
    ids = torch.tensor([[CLS, *range(10, 20), SEP]]).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    _, labels = mask_tokens(ids, torch.ones_like(ids), pieces, probability=0.3, exact_count=True, generator=generator)
    shares = (labels != -100).double().mean(0)
    assert shares[[0, -1]].max() == 0
    assert (shares[1:-1] - 0.3).abs().max() < 5 * (0.3 * 0.7 / 4000) ** 0.5


@pytest.mark.parametrize("exact_count", [False, True])
def test_single_pieces_are_masked_alike_with_any_padding(pieces, exact_count):
    ids, mask = random_texts(20)
    noise = draw_noise((20, 40), torch.Generator().manual_seed(1))
    options = {"probability": 0.4, "exact_count": exact_count}
    wide = [torch.nn.functional.pad(tensor, (0, 16)) for tensor in (ids, mask)]
    hidden, labels = mask_tokens(ids, mask, pieces, noise=noise[..., : ids.shape[1]], **options)
    wide_hidden, wide_labels = mask_tokens(*wide, pieces, noise=noise, **options)
    assert torch.equal(wide_hidden[:, : ids.shape[1]], hidden)
    assert torch.equal(wide_labels[:, : ids.shape[1]], labels)


@pytest.mark.parametrize("mask_words", [mask_whole_words, mask_tokens])
def test_a_row_is_masked_alike_in_any_batch_and_with_any_padding(pieces, mask_words):
    ids, mask = random_texts(batch=6)
    noise = torch.stack([draw_noise((40,), torch.Generator().manual_seed(row)) for row in range(6)])
    together = mask_words(ids, mask, pieces, noise=noise[..., : ids.shape[1]])
    for row in range(6):
        length = int(mask[row].sum())
        alone = mask_words(
            ids[row : row + 1, :length], mask[row : row + 1, :length], pieces, noise=noise[row : row + 1, :, :length]
        )
        for whole, part in zip(together, alone):
            assert torch.equal(whole[row, :length], part[0])


@pytest.mark.parametrize("mask_words", [mask_whole_words, mask_tokens])
def test_the_generator_alone_decides(pieces, mask_words):
    ids, mask = random_texts()
    before = ids.clone()
    first, again, other = (
        mask_words(ids, mask, pieces, generator=torch.Generator().manual_seed(seed))[1] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(ids, before)


def test_empty_batches_stay_empty(pieces):
    for shape in ((0, 7), (2, 0)):
        ids = torch.zeros(shape, dtype=torch.long)
        for mask_words in (mask_whole_words, mask_tokens):
            assert [tuple(part.shape) for part in mask_words(ids, ids, pieces)] == [shape, shape]


def test_pieces_are_read_from_a_tokenizer():
    tokenizer = train_bert_tokenizer(["playing played plays player", "walking walked walks walker"] * 3, 60)
    pieces = WordPieces.from_tokenizer(tokenizer)
    assert len(pieces) == len(tokenizer)
    names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert [name for name, flag in zip(names, pieces.continues) if flag] == [n for n in names if n.startswith("##")]
    assert {name for name, flag in zip(names, pieces.special) if flag} == {
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
    }
    assert {name for name, flag in zip(names, pieces.boundary) if flag} == {"[CLS]", "[SEP]"}
    assert names[pieces.mask_token_id] == "[MASK]"


def test_a_tokenizer_without_a_mask_token_is_refused():
    from hf_vlp.data.tokenization import train_gpt2_tokenizer

    with pytest.raises(ValueError, match="GPT2Tokenizer has no mask token"):
        WordPieces.from_tokenizer(train_gpt2_tokenizer(["a dog"], 257))


@pytest.mark.parametrize("mask_words", [mask_whole_words, mask_tokens])
def test_bad_input_is_refused_with_the_reason(pieces, mask_words):
    ids, mask = random_texts(batch=2)
    with pytest.raises(ValueError, match=r"got \(2, 24\) and \(2, 23\)"):
        mask_words(ids, mask[:, 1:], pieces)
    with pytest.raises(ValueError, match="probability=0"):
        mask_words(ids, mask, pieces, probability=0)
    with pytest.raises(ValueError, match=rf"reach from 0 to 99, but the vocabulary has {SIZE}"):
        mask_words(torch.where(ids == SEP, 99, ids), mask, pieces)


def test_unknown_budgets_and_tables_are_refused(pieces):
    ids, mask = random_texts(batch=2)
    with pytest.raises(ValueError, match="'words'"):
        mask_whole_words(ids, mask, pieces, budget="words")
    with pytest.raises(ValueError, match="one entry for each id"):
        WordPieces(pieces.continues[1:], pieces.special, pieces.boundary, MASK)
    with pytest.raises(ValueError, match="mask_token_id=60"):
        WordPieces(pieces.continues, pieces.special, pieces.boundary, 60)
