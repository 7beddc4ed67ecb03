"""Document frequencies (counting, files, damage, interruption, records); the CIDEr-D scorer of self-critical training
(same numbers as `cider_d`, end of sentence, cache, bad input)."""

import json
import os
import pickle

import numpy as np
import pytest

from hf_vlp.metrics import CiderDScorer, DocumentFrequencies, build_document_frequencies, cider_d

CAPTIONS = [
    ["A red ball near a box.", "the red ball"],
    ["a blue box", "a box that's blue"],
    ["a green cone near a box", "one green cone"],
    ["a red cone", "the cone is red"],
]
END = "<|endoftext|>"


@pytest.fixture
def frequencies():
    return DocumentFrequencies.build(CAPTIONS)


def test_an_ngram_counts_once_per_image(frequencies):
    assert frequencies.num_images == 4
    assert frequencies.counts["a"] == 4  # twice in the first caption, still one image
    assert frequencies.counts["box"] == 3
    assert frequencies.counts["near a box"] == 2
    assert frequencies.counts["<EOS>"] == 4
    assert frequencies.counts["box <EOS>"] == 3


def test_ngrams_of_one_image_are_left_out_and_scores_stay(frequencies, fakecap):
    assert min(frequencies.counts.values()) == 2
    assert "red ball" not in frequencies.counts
    items = fakecap["items"][:100]
    references = [item["references"] for item in items]
    table = DocumentFrequencies.build(references, tokenize=False)
    scores = CiderDScorer(table, tokenize=False).score([item["candidate"] for item in items], references)
    np.testing.assert_allclose(
        scores, cider_d([item["candidate"] for item in items], references, tokenize=False, per_sample=True), rtol=1e-12
    )


def test_the_scorer_gives_the_numbers_of_the_coco_tool(fakecap):
    references = [item["references"] for item in fakecap["items"]]
    scorer = CiderDScorer(DocumentFrequencies.build(references, tokenize=False), tokenize=False)
    scores = scorer.score([item["candidate"] for item in fakecap["items"]], references)
    assert scores.shape == (1000,)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, [item["expected"]["CIDEr"] for item in fakecap["items"]], rtol=0, atol=5.01e-10)
    assert scores.mean() == pytest.approx(fakecap["exact"]["CIDEr"], rel=1e-12)


def test_a_table_survives_its_file(frequencies, tmp_path):
    path = frequencies.save(tmp_path / "new" / "folder" / "df.json")
    assert DocumentFrequencies.load(path) == frequencies
    assert DocumentFrequencies.load(str(path)) == frequencies
    assert os.listdir(path.parent) == ["df.json"]
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["num_images"] == 4
    assert content["counts"]["near a box"] == 2


def test_the_file_does_not_depend_on_the_order_of_the_images(frequencies, tmp_path):
    first = frequencies.save(tmp_path / "a.json").read_bytes()
    assert DocumentFrequencies.build(CAPTIONS[::-1]).save(tmp_path / "b.json").read_bytes() == first


def test_unicode_survives_the_file(tmp_path):
    table = build_document_frequencies([["一 只 猫", "café"], ["一 只 狗", "un café"]], tmp_path / "df.json")
    assert DocumentFrequencies.load(tmp_path / "df.json").counts["一 只"] == 2
    assert table.counts["café"] == 2


@pytest.mark.parametrize(
    "records",
    [
        CAPTIONS,
        [{"image": None, "captions": captions} for captions in CAPTIONS],
        [{"text": captions} for captions in CAPTIONS],
        (tuple(captions) for captions in CAPTIONS),
    ],
    ids=["lists", "captions", "text", "generator of tuples"],
)
def test_records_and_lists_of_captions_count_the_same(records, frequencies, tmp_path):
    assert build_document_frequencies(records, tmp_path / "df.json") == frequencies


def test_a_column_may_hold_one_caption(tmp_path):
    built = build_document_frequencies(
        [{"caption": "a dog"}, {"caption": "a cat"}], tmp_path / "x.json", column="caption"
    )
    assert built.counts["a"] == 2


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"record 1 has no column 'captions'.*'alt'.*pass column="):
        build_document_frequencies([{"captions": ["a"]}, {"alt": "b"}], tmp_path / "df.json", column="captions")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file(frequencies, tmp_path, monkeypatch, failure):
    path = frequencies.save(tmp_path / "df.json")
    before = path.read_bytes()

    def half(content, file, **options):
        file.write('{"format":"hf_vlp')
        raise failure

    monkeypatch.setattr(json, "dump", half)
    with pytest.raises(type(failure)):
        build_document_frequencies([["something else"]], path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["df.json"]


def test_captions_that_break_off_leave_the_old_file(frequencies, tmp_path):
    path = frequencies.save(tmp_path / "df.json")
    before = path.read_bytes()

    def broken():
        yield ["a dog"]
        raise RuntimeError("the stream broke")

    with pytest.raises(RuntimeError, match="stream broke"):
        build_document_frequencies(broken(), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"format": "hf_vlp.doc', "not JSON or is cut short"),
        ("[1, 2]", "no file of document frequencies"),
        ('{"counts": {}, "num_images": 3}', "no file of document frequencies"),
        ('{"format": "hf_vlp.document_frequencies", "version": 9, "max_n": 4}', "version 9"),
        ('{"format": "hf_vlp.document_frequencies", "version": 1, "max_n": 4, "counts": {}}', "num_images"),
        (
            '{"format": "hf_vlp.document_frequencies", "version": 1, "max_n": 4, "num_images": 2, "counts": {"a": 3}}',
            "from 1 to num_images = 2",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_next_step(tmp_path, content, message):
    (tmp_path / "df.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as error:
        DocumentFrequencies.load(tmp_path / "df.json")
    assert "build_document_frequencies" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="build_document_frequencies"):
        DocumentFrequencies.load(tmp_path / "df.json")


@pytest.mark.parametrize(
    "captions, error", [([], ValueError), ([["a"], []], ValueError), (["a dog"], TypeError), ([[1]], TypeError)]
)
def test_captions_that_cannot_be_counted_are_refused(captions, error):
    with pytest.raises(error, match=r"at least one|list of strings|must be a string"):
        DocumentFrequencies.build(captions)


def test_counting_the_end_punishes_a_fragment(frequencies):
    references = [["a red ball near a box"]]
    blind, seeing = CiderDScorer(frequencies), CiderDScorer(frequencies, end_token=END)
    whole, fragment, unfinished = "a red ball near a box", "a red ball near a", "a red ball near a box"
    # without the end a fragment only loses what it left out; with it, the wrong end costs more
    lost_blind = blind.score([whole], references) - blind.score([fragment], references)
    lost_seeing = seeing.score([whole + END], references) - seeing.score([fragment + END], references)
    assert lost_seeing > lost_blind > 0
    assert seeing.score([whole + END], references) > seeing.score([unfinished], references)
    assert seeing.score([whole + END], references) == pytest.approx(10.0)


def test_finished_may_be_said_beside_the_text(frequencies):
    scorer = CiderDScorer(frequencies, end_token=END)
    references = [CAPTIONS[0]] * 2
    by_text = scorer.score(["the red ball" + END, "the red ball"], references)
    by_flag = scorer.score(["the red ball", "the red ball" + END], references, finished=[True, False])
    np.testing.assert_array_equal(by_text, by_flag)
    assert by_text[0] != by_text[1]


def test_references_end_whether_or_not_they_carry_the_token(frequencies):
    scorer = CiderDScorer(frequencies, end_token=END)
    plain = scorer.score(["a red ball" + END], [["the red ball", "a red ball"]])
    marked = scorer.score([f"a red ball {END} "], [["the red ball" + END, f"a red ball {END}"]])
    np.testing.assert_array_equal(plain, marked)


def test_without_an_end_token_ends_do_not_count(frequencies):
    scorer = CiderDScorer(frequencies)
    references = [CAPTIONS[0]]
    np.testing.assert_array_equal(
        scorer.score(["the red ball"], references), scorer.score(["the red ball"], references, finished=[True])
    )


@pytest.mark.parametrize("prediction", ["", "  ", END, f" {END} ", "...", "." + END])
def test_a_prediction_without_words_scores_zero(frequencies, prediction):
    for scorer in (CiderDScorer(frequencies, end_token=END), CiderDScorer(frequencies)):
        if scorer.end_token is None and END in prediction:
            continue
        assert scorer.score([prediction], [CAPTIONS[0]]).tolist() == [0.0]


def test_a_scorer_with_a_small_cache_gives_the_same_scores(frequencies):
    predictions = [caption for captions in CAPTIONS for caption in captions]
    references = [captions for captions in CAPTIONS for _ in captions]
    wide, narrow = CiderDScorer(frequencies), CiderDScorer(frequencies, cache_size=1)
    expected = wide.score(predictions, references)
    np.testing.assert_array_equal(narrow.score(predictions, references), expected)
    np.testing.assert_array_equal(wide.score(predictions, references), expected)
    assert wide._reference_vector.cache_info().misses == len(predictions)


def test_a_scorer_goes_to_another_process(frequencies):
    scorer = CiderDScorer(frequencies, end_token=END, cache_size=7)
    copy = pickle.loads(pickle.dumps(scorer))
    np.testing.assert_array_equal(
        copy.score(["a red ball"], [CAPTIONS[0]]), scorer.score(["a red ball"], [CAPTIONS[0]])
    )
    assert copy.end_token == END


def test_bad_arguments_of_the_scorer_are_refused(frequencies):
    with pytest.raises(TypeError, match=r"DocumentFrequencies\.load"):
        CiderDScorer({"a": 1})
    with pytest.raises(ValueError, match="end_token"):
        CiderDScorer(frequencies, end_token=" ")
    scorer = CiderDScorer(frequencies)
    with pytest.raises(ValueError, match="`finished` has 1 entries for 2"):
        scorer.score(["a", "b"], [["a"], ["b"]], finished=[True])
    with pytest.raises(TypeError, match=r"references\[0\]"):
        scorer.score(["a"], ["a"])
    with pytest.raises(ValueError, match="is empty"):
        scorer.score(["a"], [[]])
