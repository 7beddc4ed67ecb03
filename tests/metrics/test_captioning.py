"""BLEU, ROUGE-L, CIDEr, CIDEr-D, exact match: published and exact numbers of the COCO tool (corpus, per image), plain
CIDEr against a direct computation from its formula, laws, empty and single captions, ties, errors for bad input."""

import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from hf_vlp.metrics import (
    DocumentFrequencies,
    bleu,
    caption_metrics,
    cider,
    cider_d,
    exact_match,
    ptb_tokenize,
    rouge_l,
)

# our name -> the name in the fixtures; what the COCO tool calls CIDEr is CIDEr-D
NAMES = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)} | {"rouge_l": "ROUGE_L", "cider_d": "CIDEr"}
SINGLE = {"rouge_l": rouge_l, "cider": cider, "cider_d": cider_d, "exact_match": exact_match}


@pytest.fixture(scope="module")
def captions(fakecap):
    return [item["candidate"] for item in fakecap["items"]], [item["references"] for item in fakecap["items"]]


@pytest.fixture(scope="module")
def scores(captions):
    return caption_metrics(*captions, tokenize=False)


@pytest.mark.parametrize("name", NAMES)
def test_coco_corpus_scores_are_the_exact_ones(fakecap, scores, name):
    assert scores[name] == pytest.approx(fakecap["exact"][NAMES[name]], rel=1e-12, abs=0)


@pytest.mark.parametrize("name", NAMES)
def test_coco_corpus_scores_round_to_the_published_digits(fakecap, scores, name):
    assert round(scores[name], 3) == fakecap["published"][NAMES[name]]


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_each_image_are_those_of_the_coco_tool(fakecap, captions, name):
    values = caption_metrics(*captions, ("bleu", "rouge_l", "cider_d"), tokenize=False, per_sample=True)[name]
    expected = [item["expected"][NAMES[name]] for item in fakecap["items"]]
    # the fixture has nine decimals
    np.testing.assert_allclose(values, expected, rtol=0, atol=5.01e-10)


def test_small_published_cases_are_reproduced(small_cases):
    for case in small_cases:
        values = caption_metrics(case["candidates"], case["references"], tokenize=not case["tokenised"])
        for name, theirs in NAMES.items():
            assert values[name] == pytest.approx(case["exact"][theirs], rel=1e-12, abs=1e-15), (case["name"], name)
            # published with four to seven digits, some cut off and some rounded
            assert values[name] == pytest.approx(case["published"][theirs], abs=6e-5), (case["name"], name)


def test_raw_captions_are_tokenised_as_in_the_small_published_case(small_cases):
    case = next(case for case in small_cases if not case["tokenised"])
    assert ptb_tokenize(case["candidates"]) == case["candidates_tokenised"]
    assert [ptb_tokenize(texts) for texts in case["references"]] == case["references_tokenised"]


def test_the_functions_give_what_caption_metrics_gives(captions, scores):
    predictions, references = captions[0][:50], captions[1][:50]
    together = caption_metrics(predictions, references, ("bleu", *SINGLE))
    each = caption_metrics(predictions, references, ("bleu", *SINGLE), per_sample=True)
    assert together == bleu(predictions, references) | {
        name: function(predictions, references) for name, function in SINGLE.items()
    }
    for name, function in SINGLE.items():
        np.testing.assert_array_equal(each[name], function(predictions, references, per_sample=True))
        assert together[name] == each[name].mean()


def test_plain_cider_follows_its_formula(captions):
    predictions, references = captions[0][:40], captions[1][:40]

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    expected = np.zeros(len(predictions))
    for n in range(1, 5):
        frequency = Counter(gram for texts in references for gram in set().union(*(grams(text, n) for text in texts)))

        def vector(text, n=n, frequency=frequency):
            counts = grams(text, n)
            return {
                gram: count / sum(counts.values()) * math.log(len(references) / max(1, frequency[gram]))
                for gram, count in counts.items()
            }

        for index, (prediction, texts) in enumerate(zip(predictions, references)):
            own = vector(prediction)
            for text in texts:
                other = vector(text)
                lengths = math.hypot(*own.values()) * math.hypot(*other.values())
                if lengths > 0:
                    product = sum(weight * other.get(gram, 0.0) for gram, weight in own.items())
                    expected[index] += 10 * product / lengths / 4 / len(texts)
    np.testing.assert_allclose(cider(predictions, references, tokenize=False, per_sample=True), expected, rtol=1e-12)


def test_repeating_words_pays_in_plain_cider_more_than_in_cider_d():
    # the reason for CIDEr-D: a caption that repeats the rare word
    references = [["a zebra stands"], ["a dog runs"], ["a cat sleeps"]]
    predictions = ["zebra zebra zebra zebra zebra zebra", "a dog runs", "a cat sleeps"]
    plain = cider(predictions, references, per_sample=True)
    clipped = cider_d(predictions, references, per_sample=True)
    assert plain[0] > 2 * clipped[0] > 0
    np.testing.assert_allclose(plain[1:], clipped[1:])


def test_a_perfect_caption_scores_the_maximum():
    references = [["a red ball lies here"], ["two blue cones stand there"]]
    predictions = [texts[0] for texts in references]
    values = caption_metrics(predictions, references, ("bleu", *SINGLE))
    assert values == pytest.approx(
        {**{f"bleu_{n}": 1.0 for n in range(1, 5)}, "rouge_l": 1.0, "cider": 10.0, "cider_d": 10.0, "exact_match": 1.0}
    )


def test_the_order_of_the_images_and_of_the_references_does_not_matter(captions):
    predictions, references = captions[0][:60], captions[1][:60]
    names = ("bleu", *SINGLE)
    straight = caption_metrics(predictions, references, names, tokenize=False, per_sample=True)
    turned = caption_metrics(
        predictions[::-1], [texts[::-1] for texts in references[::-1]], names, tokenize=False, per_sample=True
    )
    for name, values in straight.items():
        np.testing.assert_allclose(values, turned[name][::-1], rtol=1e-12)


def test_case_and_punctuation_do_not_count(captions):
    predictions, references = captions[0][:30], captions[1][:30]
    shouted = [f"  {prediction.upper()} ." for prediction in predictions]
    assert caption_metrics(shouted, references) == caption_metrics(predictions, references)


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    # lengths 2 and 4 are equally far from 3: with 2 there is no penalty for brevity
    assert bleu(["a b c"], [["a b c d", "a b"]])["bleu_1"] == pytest.approx(1.0)
    assert bleu(["a b c"], [["a b c d"]])["bleu_1"] == pytest.approx(math.exp(1 - 4 / 3))


def test_bleu_of_higher_order_goes_on():
    values = bleu(["a b c d e f"], [["a b c d e f"]], max_n=6)
    assert list(values) == [f"bleu_{n}" for n in range(1, 7)]
    assert values["bleu_6"] == pytest.approx(1.0)


def test_rouge_l_takes_precision_and_recall_from_different_references():
    # precision 1 from the long reference, recall 1 from the short one
    assert rouge_l(["a b c"], [["a x b y c z", "b"]]) == pytest.approx(1.0)
    # beta 1.2: precision 2/3, recall 2/4
    assert rouge_l(["a b c"], [["a x b y"]]) == pytest.approx((1 + 1.44) * (2 / 3) * 0.5 / (0.5 + 1.44 * 2 / 3))


def test_rouge_l_finds_the_longest_common_subsequence():
    generator = np.random.default_rng(0)
    for _ in range(200):
        first, second = (generator.integers(0, 5, generator.integers(1, 80)).astype(str).tolist() for _ in range(2))
        table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
        for i, a in enumerate(first):
            for j, b in enumerate(second):
                table[i + 1, j + 1] = table[i, j] + 1 if a == b else max(table[i, j + 1], table[i + 1, j])
        precision, recall = table[-1, -1] / len(first), table[-1, -1] / len(second)
        expected = 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0
        assert rouge_l([" ".join(first)], [[" ".join(second)]], tokenize=False) == pytest.approx(expected)


def test_exact_match_asks_for_one_equal_reference():
    predictions = ["A dog runs.", "a cat", "it's a man", ""]
    references = [["the dog", "a dog  runs"], ["a cat sleeps"], ["It’s a man!"], ["", "..."]]
    assert exact_match(predictions, references) == 0.5
    assert exact_match(predictions, references, per_sample=True).tolist() == [True, False, True, False]
    assert exact_match(["A"], [["a"]], tokenize=False) == 0.0


def test_scores_of_tokens_with_unicode_are_whole():
    references = [["un chat noir à côté"], ["四只 猫 在 这里"], ["кот спит"]]
    predictions = [texts[0] for texts in references]
    assert cider_d(predictions, references, per_sample=True)[0] == pytest.approx(10.0)
    assert bleu(predictions[1:2], references[1:2])["bleu_4"] == pytest.approx(1.0)
    assert rouge_l(predictions, references) == pytest.approx(1.0)


@pytest.mark.parametrize("empty", ["", "   ", "...", "😀"])
def test_an_empty_prediction_scores_zero(empty):
    references = [["a dog runs home", "the dog"], ["a cat sleeps here"], ["..."]]
    values = caption_metrics([empty, "a cat sleeps here", empty], references, ("bleu", *SINGLE), per_sample=True)
    for name, value in values.items():
        assert value[0] == 0.0, name
        assert value[2] == 0.0, name
        assert value[1] > 0.0, name
    assert all(value == 0.0 for value in caption_metrics([empty], [["a dog"]], ("bleu", *SINGLE)).values())


def test_words_fewer_than_n_give_no_error():
    values = caption_metrics(["dog", "cat"], [["dog", "a dog"], ["cat"]])
    assert values["bleu_1"] == pytest.approx(1.0)
    assert values["bleu_4"] < 0.01
    assert np.isfinite(list(values.values())).all()


def test_cider_of_one_single_image_is_zero_without_document_frequencies():
    # every n-gram is in every image, so none says anything
    assert cider_d(["a dog"], [["a dog"]]) == 0.0
    assert cider(["a dog"], [["a dog"]]) == 0.0
    frequencies = DocumentFrequencies.build([["a dog"], ["a cat"], ["a bird"]])
    assert cider_d(["a dog"], [["a dog"]], document_frequencies=frequencies) == pytest.approx(5.0)


def test_given_document_frequencies_of_the_references_change_nothing(captions):
    predictions, references = captions[0][:50], captions[1][:50]
    frequencies = DocumentFrequencies.build(references, tokenize=False)
    for function in (cider, cider_d):
        np.testing.assert_allclose(
            function(predictions, references, document_frequencies=frequencies, tokenize=False, per_sample=True),
            function(predictions, references, tokenize=False, per_sample=True),
            rtol=1e-12,
        )


EVERY = [bleu, rouge_l, cider, cider_d, exact_match, caption_metrics]


@pytest.mark.parametrize("function", EVERY)
@pytest.mark.parametrize(
    "predictions, references, error, message",
    [
        ("a dog", [["a dog"]], TypeError, "`predictions` must be a list"),
        (["a dog"], "a dog", TypeError, "`references` must be a list"),
        (["a dog"], ["a dog"], TypeError, r"\[\[text\]"),
        ([1], [["a"]], TypeError, r"predictions\[0\]"),
        (["a"], [["a", None]], TypeError, r"references\[0\]\[1\]"),
        (["a"], [3], TypeError, r"references\[0\]"),
        (["a", "b"], [["a"], []], ValueError, r"references\[1\]` is empty"),
        (["a", "b"], [["a"]], ValueError, "2 predictions and 1 reference"),
        ([], [], ValueError, "no predictions"),
    ],
)
def test_bad_input_is_refused_with_its_place(function, predictions, references, error, message):
    with pytest.raises(error, match=message):
        function(predictions, references)


def test_unknown_metrics_and_orders_are_refused():
    with pytest.raises(ValueError, match=r"unknown metrics \['CIDEr'\]: choose from"):
        caption_metrics(["a"], [["a"]], ("bleu", "CIDEr"))
    with pytest.raises(TypeError, match="`metrics` must be a list"):
        caption_metrics(["a"], [["a"]], "bleu")
    with pytest.raises(ValueError, match="max_n"):
        bleu(["a"], [["a"]], max_n=0)


def test_importing_the_metrics_needs_nothing_but_numpy():
    code = (
        "import sys, hf_vlp.metrics as m; m.caption_metrics(['a'], [['a']]); "
        "print([n for n in ('torch', 'datasets', 'evaluate', 'pycocoevalcap', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
