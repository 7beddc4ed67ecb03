"""`hf_vlp.matching` on a tiny VLMo and a tiny CLIP.

Covers: embeddings, order and scores against the model's own numbers, in both directions and in every batch size;
re-ranking as similarity plus match logit, of the first candidates only, each picture read once; bad pictures; texts
from files; what is refused.
"""

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
)

from hf_vlp import matching
from hf_vlp.matching import can_rerank, find_texts, load_matcher, match_pictures_and_texts
from tests.pipelines.tiny_captioners import SIZE, TINY, bert_like_tokenizer, picture, widen
from tests.pipelines.tiny_vlmo import save_vlmo

TEXTS = ["the red circle", "a large cross above the square", "small", "blue triangle left of a photo"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    for seed in range(5):
        picture(seed).save(directory / f"{seed}.png")
    return [str(directory / f"{seed}.png") for seed in range(5)]


@pytest.fixture(scope="module")
def vlmo(tmp_path_factory):
    return load_matcher(save_vlmo(tmp_path_factory.mktemp("model") / "vlmo", "VlmoForImageTextRetrieval"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("model") / "clip"
    tokenizer = bert_like_tokenizer()
    text = {**TINY, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": 3}
    config = CLIPConfig(text_config=text, vision_config={**TINY, "image_size": 16, "patch_size": 8}, projection_dim=16)
    widen(CLIPModel(config)).save_pretrained(directory)
    CLIPProcessor(CLIPImageProcessorPil(size=SIZE, crop_size=SIZE), tokenizer).save_pretrained(directory)
    return load_matcher(str(directory))


@torch.no_grad()
def cosines(model, processor, pictures):
    """(texts, pictures), by the model's own forward."""
    batch = processor(
        images=[picture(seed) for seed in range(len(pictures))], text=TEXTS, padding=True, return_tensors="pt"
    )
    return model(**batch).logits_per_text / model.logit_scale.exp()


@torch.no_grad()
def match_logits(model, processor, pictures):
    """(texts, pictures), one pair at a time."""
    rows = [
        [model.score_pairs(**processor(images=picture(seed), text=text)).item() for seed in range(len(pictures))]
        for text in TEXTS
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("name", ["vlmo", "clip"])
def test_candidates_have_the_models_cosines_best_first(request, pictures, name, batch_size):
    model, processor = request.getfixturevalue(name)
    expected = cosines(model, processor, pictures)
    assert expected.std() > 1e-2, "pictures and texts must be told apart"
    for queries, matrix, asked, found in (
        ("texts", expected, TEXTS, pictures),
        ("images", expected.T, pictures, TEXTS),
    ):
        results = match_pictures_and_texts(
            model, processor, pictures, TEXTS, queries=queries, top_k=3, batch_size=batch_size
        )
        assert list(results) == asked
        for row, query in zip(matrix, asked):
            best = row.topk(3)
            assert [match.candidate for match in results[query]] == [found[place] for place in best.indices]
            assert [match.similarity for match in results[query]] == pytest.approx(best.values.tolist(), abs=1e-5)
            assert {match.match for match in results[query]} == {None}


def test_many_queries_are_compared_in_parts(vlmo, pictures, monkeypatch):
    whole = match_pictures_and_texts(*vlmo, pictures, TEXTS)
    monkeypatch.setattr(matching, "_CHUNK", 3)
    parts = match_pictures_and_texts(*vlmo, pictures, TEXTS)
    for query, matches in whole.items():
        assert [match.candidate for match in parts[query]] == [match.candidate for match in matches]
        similarities = [match.similarity for match in matches]
        assert [match.similarity for match in parts[query]] == pytest.approx(similarities, abs=1e-6)


@pytest.mark.parametrize("queries", ["texts", "images"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_first_candidates_are_ranked_again_by_cosine_plus_match_logit(vlmo, pictures, queries, batch_size):
    similarity, logits = cosines(*vlmo, pictures), match_logits(*vlmo, pictures)
    asked, found = (TEXTS, pictures) if queries == "texts" else (pictures, TEXTS)
    if queries == "images":
        similarity, logits = similarity.T, logits.T
    results = match_pictures_and_texts(
        *vlmo, pictures, TEXTS, queries=queries, rerank=3, top_k=4, batch_size=batch_size
    )
    changed = 0
    for query, cosine, logit in zip(asked, similarity, logits):
        order = cosine.argsort(descending=True).tolist()
        first = sorted(order[:3], key=lambda place: -(cosine[place] + logit[place]).item())
        changed += first != order[:3]
        assert [match.candidate for match in results[query]] == [found[place] for place in (first + order[3:])[:4]]
        for match, place in zip(results[query], first):
            assert match.match == pytest.approx(logit[place].item(), abs=1e-4)
            assert match.similarity == pytest.approx(cosine[place].item(), abs=1e-5)
        assert [match.match for match in results[query][3:]] == [None]
    assert changed, "the matching head must change an order"


def test_reranking_reads_each_picture_once_more(vlmo, pictures, monkeypatch):
    read = []

    def load(source, **options):
        read.append(source)
        return load_image(source, **options)

    load_image = matching.load_image
    monkeypatch.setattr(matching, "load_image", load)
    match_pictures_and_texts(*vlmo, pictures, TEXTS, rerank=5, batch_size=3)
    assert sorted(read) == sorted(pictures * 2)


def test_fewer_candidates_than_asked_for_are_all_returned(vlmo, pictures):
    results = match_pictures_and_texts(*vlmo, pictures[:2], TEXTS[:1], top_k=9, rerank=7)
    assert {match.candidate for match in results[TEXTS[0]]} == set(pictures[:2])


def test_bad_pictures_are_left_out_and_told(vlmo, pictures, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    told = {}
    arguments = {"top_k": 9, "rerank": 2, "batch_size": 2}
    results = match_pictures_and_texts(
        *vlmo, [pictures[0], str(bad), pictures[1]], TEXTS, on_error=told.__setitem__, **arguments
    )
    assert list(told) == [str(bad)]
    expected = match_pictures_and_texts(*vlmo, pictures[:2], TEXTS, **arguments)
    assert {query: [match.candidate for match in matches] for query, matches in results.items()} == {
        query: [match.candidate for match in matches] for query, matches in expected.items()
    }
    assert match_pictures_and_texts(*vlmo, [str(bad)], TEXTS) == {}


def test_a_model_without_matching_head_ranks_but_does_not_rerank(clip, pictures, tmp_path):
    bare = load_matcher(save_vlmo(tmp_path / "bare", "VlmoForImageTextRetrieval", use_matching_head=False))
    for matcher in (clip, bare):
        assert not can_rerank(matcher[0])
        assert len(match_pictures_and_texts(*matcher, pictures, TEXTS)) == len(TEXTS)
        with pytest.raises(ValueError, match="no matching head to re-rank with"):
            match_pictures_and_texts(*matcher, pictures, TEXTS, rerank=2)


def test_a_pretrained_model_matches_as_it_is_and_other_heads_are_refused(pictures, tmp_path):
    whole = load_matcher(save_vlmo(tmp_path / "whole", "VlmoForPreTraining"))
    assert can_rerank(whole[0])
    assert len(match_pictures_and_texts(*whole, pictures, TEXTS, rerank=2)) == len(TEXTS)
    with pytest.raises(ValueError, match=r"no weights for itc_image_projection.*It holds VlmoModel"):
        load_matcher(save_vlmo(tmp_path / "base", "VlmoModel"))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"queries": "pictures"}, "queries='pictures' is not one of 'texts', 'images'"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"rerank": -1}, "rerank=-1 must be at least 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_wrong_options_are_refused(vlmo, pictures, options, words):
    with pytest.raises(ValueError, match=words):
        match_pictures_and_texts(*vlmo, pictures, TEXTS, **options)


def test_texts_come_from_words_and_files_each_once(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeffa dog\n\n  a cat \r\na dog\n", encoding="utf-8")
    assert find_texts(["a bird", str(tmp_path / "a.txt"), "a cat"]) == ["a bird", "a dog", "a cat"]
    assert find_texts(["x" * 5000]) == ["x" * 5000], "longer than the name of any file"


def test_texts_that_are_none_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    for given, words in (
        ([], "No text"),
        ([" "], "empty"),
        ([str(tmp_path / "empty.txt")], "is empty"),
        ([str(tmp_path / "binary.txt")], "not a text file"),
        ([str(tmp_path / "none.txt")], "no file"),
    ):
        with pytest.raises(ValueError, match=words):
            find_texts(given)
