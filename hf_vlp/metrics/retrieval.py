"""Recall of image-text retrieval in both directions, from scores or embeddings, with re-ranking by a second model.

A gallery has images and texts; every text belongs to one image, an image to one or more texts. An image's query is
answered by its best-placed text (TR@k of the papers, here `image_to_text`), a text's by its image (IR@k,
`text_to_image`).

**Ties count against the model**: a wrong candidate with the same score as the right one stands before it. A model that
gives every pair the same score has recall 0, wherever the right pairs happen to lie. The other right texts of an image
do not count.

Only `chunk_size` rows of the score matrix exist at a time: COCO's test set (5,000 x 25,000) takes 50 MB, not 500.

```python
>>> scores = torch.tensor([[0.9, 0.8, 0.1], [0.7, 0.2, 0.6]])  # 2 images, 3 texts
>>> metrics = recall_metrics(ranks_of_scores(scores, text_image_ids=[0, 0, 1]), ks=(1,))
>>> metrics["image_to_text_recall_at_1"], round(metrics["text_to_image_recall_at_1"], 4)
(0.5, 1.0)

```
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

ScorePairs = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class RetrievalRanks(NamedTuple):
    """Rank of the right candidate for each query; 1 is the first place.

    image_to_text: (images,), the best of the image's texts. text_to_image: (texts,). Whole numbers, on the CPU.
    """

    image_to_text: torch.Tensor
    text_to_image: torch.Tensor


def _index_texts(
    num_images: int, num_texts: int, text_image_ids: Sequence[Hashable], image_ids: Sequence[Hashable] | None
) -> torch.Tensor:
    """Row of its image for every text, (texts,), after checks."""
    image_ids = range(num_images) if image_ids is None else _listed(image_ids)
    text_image_ids = _listed(text_image_ids)
    if num_images == 0 or num_texts == 0:
        raise ValueError(f"got {num_images} images and {num_texts} texts: retrieval needs at least one of each")
    if len(image_ids) != num_images or len(text_image_ids) != num_texts:
        raise ValueError(
            f"got {len(image_ids)} `image_ids` for {num_images} images and {len(text_image_ids)} `text_image_ids` for "
            f"{num_texts} texts: pass one id for each (scores are a matrix of images x texts)"
        )
    rows = {identity: row for row, identity in enumerate(image_ids)}
    if len(rows) != num_images:
        raise ValueError(f"{num_images - len(rows)} `image_ids` occur twice: every image is one row")
    unknown = [identity for identity in text_image_ids if identity not in rows]
    if unknown:
        raise ValueError(
            f"{len(unknown)} texts belong to images that are not there, the first to {unknown[0]!r}; ids of images "
            f"are like {next(iter(rows))!r}. Leave out the texts of images that were skipped"
        )
    index = torch.tensor([rows[identity] for identity in text_image_ids])
    without = num_images - len(index.unique())
    if without:
        raise ValueError(
            f"{without} of {num_images} images have no text, so they have no right answer: leave them out"
        )
    return index


def _listed(ids: Sequence[Hashable]) -> list[Hashable]:
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)


def _rank(
    score_rows: Callable[[int, int], torch.Tensor],
    query_images: torch.Tensor,
    candidate_images: torch.Tensor,
    chunk_size: int,
    second_scores: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    top_k: int = 0,
) -> torch.Tensor:
    """Rank of the best right candidate of each query; right is a candidate of the same image.

    score_rows: (first, last) -> scores (last - first, candidates) of these queries.
    second_scores: (query, candidate), both (pairs,) -> what is added to the scores of the first `top_k` candidates.
    """
    ranks = []
    for first in range(0, len(query_images), chunk_size):
        last = min(first + chunk_size, len(query_images))
        scores = score_rows(first, last)
        if not torch.isfinite(scores).all():
            raise ValueError(
                f"scores of queries {first} to {last - 1} are not finite: the model or its inputs are broken"
            )
        queries = query_images[first:last].to(scores.device)
        right = queries[:, None] == candidate_images.to(scores.device)  # (queries, candidates)
        rank = _best_rank(scores, right)
        if second_scores is not None:
            top = _first_candidates(scores, top_k)  # (queries, top_k)
            rows = torch.arange(first, last, device=scores.device)[:, None].expand_as(top)
            added = second_scores(rows.flatten(), top.flatten()).reshape(top.shape).to(scores)
            right_at_top = right.gather(1, top)
            again = _best_rank(scores.gather(1, top) + added, right_at_top)
            # What is not among the first stays behind them, in the order of the first scores.
            rank = torch.where(right_at_top.any(1), again, rank)
        ranks.append(rank.cpu())
    return torch.cat(ranks)


def _best_rank(scores: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    return ((scores >= best) & ~right).sum(1) + 1


def _first_candidates(scores: torch.Tensor, top_k: int) -> torch.Tensor:
    """The best `top_k` candidates of each row; of equal ones at the border those that come first."""
    num_candidates = scores.shape[1]
    if top_k >= num_candidates:
        return torch.arange(num_candidates, device=scores.device).expand(len(scores), -1)
    values, top = scores.topk(top_k + 1)
    top = top[:, :top_k].clone()
    ambiguous = values[:, top_k] == values[:, top_k - 1]  # `topk` takes any of the equal ones
    if ambiguous.any():
        top[ambiguous] = scores[ambiguous].argsort(dim=1, descending=True, stable=True)[:, :top_k]
    return top


def _check_matrices(chunk_size: int, **matrices: torch.Tensor) -> None:
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"`chunk_size` must be a whole number from 1 on, got {chunk_size!r}")
    for name, matrix in matrices.items():
        if not isinstance(matrix, torch.Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(matrix).__name__}")
        if matrix.ndim != 2 or not matrix.is_floating_point():
            raise ValueError(
                f"`{name}` must be a matrix of real numbers, got shape {tuple(matrix.shape)}, {matrix.dtype}"
            )


def _embedding_rows(image_embeds: torch.Tensor, text_embeds: torch.Tensor, chunk_size: int, device):
    """The two functions that score queries chunk by chunk, images first."""
    _check_matrices(chunk_size, image_embeds=image_embeds, text_embeds=text_embeds)
    if image_embeds.shape[1] != text_embeds.shape[1]:
        raise ValueError(
            f"`image_embeds` have {image_embeds.shape[1]} dimensions and `text_embeds` {text_embeds.shape[1]}: "
            f"they must lie in one space"
        )
    # Half precision has too few different values: thousands of texts would be tied.
    images, texts = (embeds.detach().to(device, torch.float32) for embeds in (image_embeds, text_embeds))
    return (
        lambda first, last: images[first:last] @ texts.T,
        lambda first, last: texts[first:last] @ images.T,
    )


def ranks_of_scores(
    scores: torch.Tensor,
    text_image_ids: Sequence[Hashable],
    image_ids: Sequence[Hashable] | None = None,
    *,
    chunk_size: int = 512,
) -> RetrievalRanks:
    """Ranks from a score matrix, higher is better.

    scores: (images, texts).
    text_image_ids: id of its image for every text, (texts,); a list or a tensor.
    image_ids: id of every image, (images,), any hashable values; by default 0, 1, 2, ...

    Raises `ValueError` for empty or wrong sizes, double ids, texts without image, images without text, NaN.
    """
    _check_matrices(chunk_size, scores=scores)
    text_images = _index_texts(*scores.shape, text_image_ids, image_ids)
    images = torch.arange(len(scores))
    scores = scores.detach()
    return RetrievalRanks(
        _rank(lambda first, last: scores[first:last], images, text_images, chunk_size),
        _rank(lambda first, last: scores[:, first:last].T, text_images, images, chunk_size),
    )


def ranks_of_embeddings(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    text_image_ids: Sequence[Hashable],
    image_ids: Sequence[Hashable] | None = None,
    *,
    chunk_size: int = 512,
    device: torch.device | str | None = None,
) -> RetrievalRanks:
    """Ranks by the scalar product of embeddings (the cosine, when they have unit norm), in float32.

    image_embeds, text_embeds: (images, dim), (texts, dim).
    text_image_ids, image_ids: see `ranks_of_scores`.
    chunk_size: queries that are scored at a time.
    device: where this is done; by default where the image embeddings are.

    Raises `ValueError` as `ranks_of_scores` does, and for different dimensions.
    """
    rows = _embedding_rows(image_embeds, text_embeds, chunk_size, device or image_embeds.device)
    text_images = _index_texts(len(image_embeds), len(text_embeds), text_image_ids, image_ids)
    images = torch.arange(len(image_embeds))
    return RetrievalRanks(
        _rank(rows[0], images, text_images, chunk_size), _rank(rows[1], text_images, images, chunk_size)
    )


def reranked(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    text_image_ids: Sequence[Hashable],
    score_pairs: ScorePairs,
    image_ids: Sequence[Hashable] | None = None,
    *,
    top_k: int = 32,
    chunk_size: int = 512,
    pair_batch_size: int = 64,
    device: torch.device | str | None = None,
) -> RetrievalRanks:
    """Ranks after the first `top_k` candidates of every query were scored again by a model that sees both.

    The new score is scalar product + second score, as VLMo's code adds cosine and matching logit. Candidates beyond
    `top_k` are not scored again and stay behind the others, in their first order (the original gives them all -100:
    its recall is the same up to k = `top_k`, and beyond it a matter of ties).

    score_pairs: (image rows, text rows), both (pairs,) on the CPU -> scores (pairs,): what
        `VlmoForImageTextRetrieval.score_pairs` gives for these images and texts. Called without gradients, with up to
        `pair_batch_size` pairs, 2 x queries x `top_k` in all.
    Other arguments and errors: see `ranks_of_embeddings`; also `ValueError` when `score_pairs` returns another shape
    or numbers that are not finite.
    """
    for name, value in (("top_k", top_k), ("pair_batch_size", pair_batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be a whole number from 1 on, got {value!r}")
    rows = _embedding_rows(image_embeds, text_embeds, chunk_size, device or image_embeds.device)
    text_images = _index_texts(len(image_embeds), len(text_embeds), text_image_ids, image_ids)
    images = torch.arange(len(image_embeds))

    def second_scores(image_rows: torch.Tensor, text_rows: torch.Tensor) -> torch.Tensor:
        batches = zip(image_rows.cpu().split(pair_batch_size), text_rows.cpu().split(pair_batch_size))
        scores = []
        for batch in batches:
            score = score_pairs(*batch)
            if not isinstance(score, torch.Tensor) or score.shape != batch[0].shape:
                got = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
                raise ValueError(f"`score_pairs` must return one score for each of {len(batch[0])} pairs, got {got}")
            if not torch.isfinite(score).all():
                raise ValueError(
                    "`score_pairs` returned scores that are not finite: the model or its inputs are broken"
                )
            scores.append(score.float().cpu())
        return torch.cat(scores)

    with torch.no_grad():
        return RetrievalRanks(
            _rank(rows[0], images, text_images, chunk_size, second_scores, top_k),
            _rank(rows[1], text_images, images, chunk_size, lambda texts, imgs: second_scores(imgs, texts), top_k),
        )


def recall_metrics(ranks: RetrievalRanks, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at k, median and mean rank in both directions, as a flat dict of numbers.

    Keys: `image_to_text_recall_at_1` ... (fractions), `image_to_text_median_rank`, `image_to_text_mean_rank` (1 is the
    best), the same with `text_to_image_`; `mean_recall`, the mean of all recalls; `rsum`, their sum **in percent**, as
    papers print it (600 at most for three k).
    """
    ks = tuple(ks)
    if not ks or not all(isinstance(k, int) and k > 0 for k in ks) or len(set(ks)) < len(ks):
        raise ValueError(f"`ks` must be different whole numbers from 1 on, got {ks!r}")
    metrics: dict[str, float] = {}
    recalls = []
    for direction, rank in ranks._asdict().items():
        if len(rank) == 0:
            raise ValueError(f"`ranks.{direction}` is empty: recall needs at least one query")
        rank = rank.double()
        for k in ks:
            recalls.append((rank <= k).double().mean().item())
            metrics[f"{direction}_recall_at_{k}"] = recalls[-1]
        metrics[f"{direction}_median_rank"] = rank.quantile(0.5).item()
        metrics[f"{direction}_mean_rank"] = rank.mean().item()
    metrics["mean_recall"] = sum(recalls) / len(recalls)
    metrics["rsum"] = 100 * sum(recalls)
    return metrics


__all__ = [
    "RetrievalRanks",
    "ranks_of_embeddings",
    "ranks_of_scores",
    "recall_metrics",
    "reranked",
]
