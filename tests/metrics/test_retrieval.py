"""Recall of retrieval: values against a plain ranking, ties, chunks, ids, re-ranking, bad input."""

import numpy as np
import pytest
import torch

from hf_vlp.metrics.retrieval import (
    RetrievalRanks,
    ranks_of_embeddings,
    ranks_of_scores,
    recall_metrics,
    reranked,
)

IMAGES, PER_IMAGE, DIM = 7, 3, 5
OWNERS = torch.arange(IMAGES).repeat_interleave(PER_IMAGE)[torch.randperm(21, generator=torch.manual_seed(3))]


def lists(ranks: RetrievalRanks) -> list[list[int]]:
    return [ranks.image_to_text.tolist(), ranks.text_to_image.tolist()]


def plain_ranks(scores: torch.Tensor, owners: list[int]) -> list[list[int]]:
    """By the definition, one query at a time: wrong candidates that are not worse than the best right one, plus 1."""
    both = []
    for matrix, is_right in (
        (scores.tolist(), lambda image, text: owners[text] == image),
        (scores.T.tolist(), lambda text, image: owners[text] == image),
    ):
        ranks = []
        for query, row in enumerate(matrix):
            best = max(score for candidate, score in enumerate(row) if is_right(query, candidate))
            wrong = [score for candidate, score in enumerate(row) if not is_right(query, candidate)]
            ranks.append(1 + sum(score >= best for score in wrong))
        both.append(ranks)
    return both


@pytest.fixture
def scores():
    return torch.randn(IMAGES, len(OWNERS))


@pytest.fixture
def embeddings():
    # small whole numbers: products are exact and many are tied
    return torch.randint(-2, 3, (IMAGES, DIM)).float(), torch.randint(-2, 3, (len(OWNERS), DIM)).float()


@pytest.mark.parametrize("chunk_size", [1, 4, 512])
def test_ranks_of_scores_follow_the_definition(scores, chunk_size):
    assert lists(ranks_of_scores(scores, OWNERS, chunk_size=chunk_size)) == plain_ranks(scores, OWNERS.tolist())


@pytest.mark.parametrize("chunk_size", [1, 4, 512])
def test_ranks_of_embeddings_follow_the_definition_with_ties(embeddings, chunk_size):
    images, texts = embeddings
    ranks = ranks_of_embeddings(images, texts, OWNERS, chunk_size=chunk_size)
    assert lists(ranks) == plain_ranks(images @ texts.T, OWNERS.tolist())


def test_a_model_that_tells_nothing_apart_has_no_recall():
    ranks = ranks_of_scores(torch.zeros(4, 8), [0, 0, 1, 1, 2, 2, 3, 3])
    assert lists(ranks) == [[7] * 4, [4] * 8]  # behind all wrong texts, not behind the other right one
    assert recall_metrics(ranks, ks=(1, 3))["mean_recall"] == 0.0


def test_the_best_text_of_an_image_counts():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.2, 0.3, 0.8]])
    assert lists(ranks_of_scores(scores, [0, 0, 1])) == [[1, 1], [2, 1, 1]]


def test_images_may_have_different_numbers_of_texts_in_any_order():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.3, 0.4]])
    assert lists(ranks_of_scores(scores, [1, 0, 1])) == [[3, 1], [2, 2, 2]]


def test_ids_may_be_any_names(scores):
    names = [f"{image}.jpg" for image in range(IMAGES)]
    ranks = ranks_of_scores(scores, [names[owner] for owner in OWNERS], names)
    assert lists(ranks) == lists(ranks_of_scores(scores, OWNERS))


def test_images_may_come_in_any_order(scores):
    order = torch.randperm(IMAGES)
    ranks = ranks_of_scores(scores[order], OWNERS, order)
    straight = ranks_of_scores(scores, OWNERS)
    assert torch.equal(ranks.image_to_text, straight.image_to_text[order])
    assert torch.equal(ranks.text_to_image, straight.text_to_image)


def test_half_precision_embeddings_are_compared_in_float32():
    # 1 + 2^-10 and 1 are one number in bfloat16 after the product
    images = torch.tensor([[1.0, 2**-10]], dtype=torch.bfloat16)
    texts = torch.tensor([[1.0, 1.0], [1.0, 0.0]], dtype=torch.bfloat16)
    images, owners = torch.cat([images, -images]), [0, 1]
    assert ranks_of_embeddings(images, texts, owners).image_to_text[0] == 1


def test_the_whole_matrix_is_never_made(monkeypatch):
    largest = 0
    product = torch.Tensor.__matmul__

    def watched(left, right):
        nonlocal largest
        result = product(left, right)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    images, texts = torch.randn(40, DIM), torch.randn(80, DIM)
    ranks_of_embeddings(images, texts, [text // 2 for text in range(80)], chunk_size=8)
    assert largest == 8 * 80


def test_metrics_of_known_ranks():
    ranks = RetrievalRanks(torch.tensor([1, 1, 6, 12]), torch.tensor([1, 2, 5, 5, 11]))
    metrics = recall_metrics(ranks)
    assert metrics == pytest.approx(
        {
            "image_to_text_recall_at_1": 0.5,
            "image_to_text_recall_at_5": 0.5,
            "image_to_text_recall_at_10": 0.75,
            "image_to_text_median_rank": 3.5,
            "image_to_text_mean_rank": 5.0,
            "text_to_image_recall_at_1": 0.2,
            "text_to_image_recall_at_5": 0.8,
            "text_to_image_recall_at_10": 0.8,
            "text_to_image_median_rank": 5.0,
            "text_to_image_mean_rank": 4.8,
            "mean_recall": (0.5 + 0.5 + 0.75 + 0.2 + 0.8 + 0.8) / 6,
            "rsum": 100 * (0.5 + 0.5 + 0.75 + 0.2 + 0.8 + 0.8),
        }
    )
    assert all(type(value) is float for value in metrics.values())


def test_other_k_may_be_asked_for():
    ranks = RetrievalRanks(torch.tensor([1, 3]), torch.tensor([2, 2]))
    assert recall_metrics(ranks, ks=(2,))["rsum"] == 150.0


def by_table(table: torch.Tensor):
    """`score_pairs` that reads a matrix, and the list of pairs it was asked for."""
    asked = []

    def score_pairs(images, texts):
        asked.extend(zip(images.tolist(), texts.tolist()))
        return table[images, texts]

    return score_pairs, asked


def test_reranking_everything_equals_ranking_the_sum(embeddings):
    images, texts = embeddings
    second = torch.randint(-5, 6, (IMAGES, len(OWNERS))).float()
    score_pairs, asked = by_table(second)
    ranks = reranked(images, texts, OWNERS, score_pairs, top_k=100, chunk_size=4)
    assert lists(ranks) == plain_ranks(images @ texts.T + second, OWNERS.tolist())
    assert len(asked) == 2 * IMAGES * len(OWNERS)


def test_reranking_equals_the_original_up_to_k(embeddings):
    """The original gives what is not among the first k a score below all others."""
    images, texts = embeddings
    images, texts = images + torch.randn_like(images), texts + torch.randn_like(texts)  # no ties
    second, top_k = torch.randn(IMAGES, len(OWNERS)), 4
    first = images @ texts.T
    by_image, by_text = (torch.full_like(first, -100.0) for _ in range(2))
    places = first.topk(top_k, dim=1).indices
    by_image.scatter_(1, places, (first + second).gather(1, places))
    places = first.topk(top_k, dim=0).indices
    by_text.scatter_(0, places, (first + second).gather(0, places))
    expected = RetrievalRanks(
        ranks_of_scores(by_image, OWNERS).image_to_text, ranks_of_scores(by_text, OWNERS).text_to_image
    )
    ranks = reranked(images, texts, OWNERS, by_table(second)[0], top_k=top_k, chunk_size=2)
    for ours, theirs in zip(ranks, expected):
        assert torch.equal(ours.clamp(max=top_k + 1), theirs.clamp(max=top_k + 1))


def test_what_is_not_among_the_first_keeps_its_place(embeddings):
    images, texts = embeddings
    images, texts = images + torch.randn_like(images), texts + torch.randn_like(texts)
    ranks = reranked(images, texts, OWNERS, lambda image, text: torch.full((len(image),), -1e3), top_k=1)
    assert lists(ranks) == lists(ranks_of_embeddings(images, texts, OWNERS))
    assert max(ranks.text_to_image.tolist()) > 2


def test_only_the_first_candidates_are_scored_again_in_batches(embeddings):
    images, texts = embeddings
    images, texts = images + torch.randn_like(images), texts + torch.randn_like(texts)
    sizes = []
    score_pairs, asked = by_table(torch.zeros(IMAGES, len(OWNERS)))

    def counted(image_rows, text_rows):
        sizes.append(len(image_rows))
        return score_pairs(image_rows, text_rows)

    reranked(images, texts, OWNERS, counted, top_k=2, pair_batch_size=5)
    scores = images @ texts.T
    expected = {(image, text) for image in range(IMAGES) for text in scores[image].topk(2).indices.tolist()}
    expected |= {(image, text) for text in range(len(OWNERS)) for image in scores[:, text].topk(2).indices.tolist()}
    assert set(asked) == expected
    assert max(sizes) == 5
    assert sum(sizes) == 2 * (IMAGES + len(OWNERS))


def test_of_equal_candidates_at_the_border_the_first_are_scored_again():
    score_pairs, asked = by_table(torch.zeros(300, 300))
    reranked(torch.ones(300, 2), torch.ones(300, 2), range(300), score_pairs, top_k=3)
    assert {text for _, text in asked[: 300 * 3]} == {0, 1, 2}
    assert {image for image, _ in asked[300 * 3 :]} == {0, 1, 2}


def test_reranking_builds_no_graph(embeddings):
    images, texts = embeddings
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def score_pairs(image_rows, text_rows):
        scores = image_rows * weight
        seen.append(scores.requires_grad)
        return scores

    reranked(images, texts, OWNERS, score_pairs, top_k=2)
    assert not any(seen)


def nan_scores():
    scores = torch.zeros(2, 2)
    scores[1, 0] = float("nan")
    return scores


@pytest.mark.parametrize(
    "scores, owners, ids, error, message",
    [
        (torch.zeros(0, 3), [0, 0, 0], None, ValueError, "0 images and 3 texts"),
        (torch.zeros(2, 0), [], None, ValueError, "2 images and 0 texts"),
        (torch.zeros(2, 3), [0, 1], None, ValueError, "2 `text_image_ids` for 3 texts"),
        (torch.zeros(3, 2), [0, 1], [0, 1], ValueError, "2 `image_ids` for 3 images"),
        (torch.zeros(2, 2), ["a", "b"], ["a", "a"], ValueError, "occur twice"),
        (torch.zeros(2, 2), ["a", "c"], ["a", "b"], ValueError, "1 texts belong to images that are not there.*'c'"),
        (torch.zeros(2, 2), [0, 0], None, ValueError, "1 of 2 images have no text"),
        (nan_scores(), [0, 1], None, ValueError, "not finite"),
        (torch.zeros(4), [0, 1], None, ValueError, r"matrix.*\(4,\)"),
        (torch.zeros(2, 2, dtype=torch.long), [0, 1], None, ValueError, "int64"),
        (np.zeros((2, 2)), [0, 1], None, TypeError, "must be a tensor, got ndarray"),
    ],
)
def test_bad_scores_and_ids_are_refused(scores, owners, ids, error, message):
    with pytest.raises(error, match=message):
        ranks_of_scores(scores, owners, ids)


def test_embeddings_of_different_spaces_are_refused():
    with pytest.raises(ValueError, match="4 dimensions and `text_embeds` 5"):
        ranks_of_embeddings(torch.zeros(2, 4), torch.zeros(2, 5), [0, 1])


@pytest.mark.parametrize("option", ["top_k", "pair_batch_size", "chunk_size"])
def test_sizes_below_one_are_refused(option):
    with pytest.raises(ValueError, match=option):
        reranked(torch.eye(2), torch.eye(2), [0, 1], lambda image, text: image.float(), **{option: 0})


@pytest.mark.parametrize(
    "score_pairs, message",
    [
        (lambda image, text: torch.zeros(len(image), 2), "one score for each of 4 pairs"),
        (lambda image, text: [0.0] * len(image), "got list"),
        (lambda image, text: torch.full((len(image),), float("inf")), "not finite"),
    ],
)
def test_bad_second_scores_are_refused(score_pairs, message):
    with pytest.raises(ValueError, match=message):
        reranked(torch.eye(2), torch.eye(2), [0, 1], score_pairs)


@pytest.mark.parametrize("ks", [(), (0, 1), (1.5,), (1, 1)])
def test_bad_k_are_refused(ks):
    with pytest.raises(ValueError, match="ks"):
        recall_metrics(RetrievalRanks(torch.tensor([1]), torch.tensor([1])), ks=ks)


def test_no_ranks_are_refused():
    with pytest.raises(ValueError, match="image_to_text"):
        recall_metrics(RetrievalRanks(torch.tensor([]), torch.tensor([1])))
