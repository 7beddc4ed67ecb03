"""Pictures and texts ranked against each other: by a dual encoder, the first candidates again by a matching head."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from tqdm.auto import tqdm

from hf_vlp.data.image_io import ImageError, load_image
from hf_vlp.loading import load_complete

QUERIES = ("texts", "images")
MAX_TEXT_FILE_BYTES = 256 * 1024 * 1024
# Queries that are compared with all candidates at once.
_CHUNK = 1024


@dataclass(frozen=True)
class Match:
    """A candidate for a query.

    similarity: cosine of the two embeddings.
    match: the matching head's logit for the pair, where it was re-ranked; candidates are then ordered by
        `similarity + match`, before all that were not.
    """

    candidate: str
    similarity: float
    match: float | None = None


def find_texts(inputs: Sequence[str]) -> list[str]:
    """All texts that the inputs stand for, each once, in order: texts themselves, and text files with one a line.

    Raises ValueError for a file without a line, a file that is no text, and when nothing is given.
    """
    found: dict[str, None] = {}
    for item in inputs:
        if not item.strip():
            raise ValueError("A text is empty.")
        if not _is_file(item):
            if item.endswith(".txt"):
                raise ValueError(f"There is no file {item} (looked in {Path.cwd()}).")
            found[item] = None
            continue
        path = Path(item).expanduser()
        if path.stat().st_size > MAX_TEXT_FILE_BYTES:
            raise ValueError(f"{item} has more than {MAX_TEXT_FILE_BYTES} bytes: expected a text a line.")
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        except UnicodeDecodeError:
            raise ValueError(f"{item} is not a text file in UTF-8: expected a text a line.") from None
        if not any(lines):
            raise ValueError(f"The file {item} is empty: expected a text a line.")
        found.update(dict.fromkeys(filter(None, lines)))
    if not found:
        raise ValueError("No text was given.")
    return list(found)


def _is_file(item: str) -> bool:
    try:
        return Path(item).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long for a name, no such user, a null byte: it is a text
        return False


def load_matcher(model_id: str, *, device: str | None = None) -> tuple[Any, Any]:
    """A dual encoder and its processor from a folder or Hub id, on a device: an accelerator where there is one.

    Raises OSError or ValueError when there is no such model, or one that has no embeddings of both.
    """
    from transformers import AutoProcessor

    model = load_complete("AutoModelForZeroShotImageClassification", model_id, device=device)
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise ValueError(f"{type(model).__name__} has no separate embeddings of pictures and texts to rank by.")
    return model, AutoProcessor.from_pretrained(model_id)


def can_rerank(model) -> bool:
    """Whether a model can score pairs with a matching head."""
    return hasattr(model, "score_pairs") and bool(getattr(model.config, "use_matching_head", True))


@torch.no_grad()
def embed_pictures(
    model,
    processor,
    pictures: Sequence[str],
    *,
    batch_size: int = 32,
    on_error: Callable[[str, str], None] | None = None,
    progress: bool = False,
) -> tuple[torch.Tensor, list[str]]:
    """Unit-norm embeddings, (pictures, dim) in float32 on the CPU, and the pictures that they are of.

    Pictures that cannot be read are left out; `on_error(picture, reason)` is called for each.
    """
    rows, kept = [], []
    with tqdm(total=len(pictures), desc="Pictures", unit="picture", disable=not progress) as bar:
        for chunk in _batches(pictures, batch_size):
            images = []
            for picture in chunk:
                try:
                    images.append(load_image(picture))
                    kept.append(picture)
                except ImageError as error:
                    if on_error is not None:
                        on_error(picture, str(error))
            if images:
                inputs = _to_model(model, processor(images=images, return_tensors="pt"))
                rows.append(_unit_rows(model.get_image_features(**inputs)))
            bar.update(len(chunk))
    return torch.cat(rows) if rows else torch.empty(0, 0), kept


@torch.no_grad()
def embed_texts(
    model, processor, texts: Sequence[str], *, batch_size: int = 32, progress: bool = False
) -> torch.Tensor:
    """Unit-norm embeddings, (texts, dim) in float32 on the CPU; texts are cut to what the model takes."""
    rows = []
    with tqdm(total=len(texts), desc="Texts", unit="text", disable=not progress) as bar:
        for chunk in _batches(texts, batch_size):
            rows.append(_unit_rows(model.get_text_features(**_encode_texts(model, processor, chunk))))
            bar.update(len(chunk))
    return torch.cat(rows)


def match_pictures_and_texts(
    model,
    processor,
    pictures: Sequence[str],
    texts: Sequence[str],
    *,
    queries: str = "texts",
    top_k: int = 5,
    rerank: int = 0,
    batch_size: int = 32,
    on_error: Callable[[str, str], None] | None = None,
    progress: bool = False,
) -> dict[str, list[Match]]:
    """The best candidates for each query, best first.

    Args:
        model, processor: as `load_matcher` returns them.
        pictures: paths and addresses.
        queries: `"texts"` finds pictures for each text, `"images"` finds texts for each picture.
        top_k: candidates for each query.
        rerank: so many of the first candidates of each query are scored again, by the matching head over the pair:
            similarity plus its logit, as VLMo does. 0 for none. A pass through the model for each pair, against one
            for each picture and text.
        batch_size: pictures, texts or pairs at a time.
        on_error: called with a picture that cannot be read and the reason; such pictures are left out.

    Equal candidates keep the order in which they were given. Raises ValueError when re-ranking is asked of a model
    without matching head.
    """
    if queries not in QUERIES:
        raise ValueError(f"queries={queries!r} is not one of {', '.join(map(repr, QUERIES))}.")
    for name, value, least in (("top_k", top_k, 1), ("rerank", rerank, 0), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}.")
    if rerank and not can_rerank(model):
        raise ValueError(
            f"{type(model).__name__} has no matching head to re-rank with. Rank by similarity alone (rerank=0), or use"
            " a model trained with image-text matching."
        )
    options = {"batch_size": batch_size, "progress": progress}
    image_embeds, pictures = embed_pictures(model, processor, pictures, on_error=on_error, **options)
    if not pictures:
        return {}
    text_embeds = embed_texts(model, processor, texts, **options)

    queried, candidates, rows, columns = (
        (texts, pictures, text_embeds, image_embeds)
        if queries == "texts"
        else (pictures, texts, image_embeds, text_embeds)
    )
    ranked: dict[str, list[Match]] = {}
    # In parts: the whole matrix of a large collection would not fit into memory.
    for chunk, embeds in zip(_batches(queried, _CHUNK), rows.split(_CHUNK)):
        scores, order = (embeds @ columns.T).sort(dim=1, descending=True, stable=True)
        best = max(top_k, rerank)
        for query, values, places in zip(chunk, scores[:, :best].tolist(), order[:, :best].tolist()):
            ranked[query] = [Match(candidates[place], value) for place, value in zip(places, values)]
    if rerank:

        def as_pair(query: str, candidate: str) -> tuple[str, str]:
            return (candidate, query) if queries == "texts" else (query, candidate)

        pairs = [as_pair(query, match.candidate) for query in ranked for match in ranked[query][:rerank]]
        logits = _score_pairs(model, processor, pairs, batch_size=batch_size, progress=progress)
        for query, matches in ranked.items():
            first = [replace(match, match=logits[as_pair(query, match.candidate)]) for match in matches[:rerank]]
            first.sort(key=lambda match: match.similarity + match.match, reverse=True)
            ranked[query] = first + matches[rerank:]
    return {query: matches[:top_k] for query, matches in ranked.items()}


@torch.no_grad()
def _score_pairs(model, processor, pairs, *, batch_size: int, progress: bool) -> dict[tuple[str, str], float]:
    """The matching logit of each (picture, text); picture after picture, so that each is read once."""
    pairs = sorted(pairs)
    logits: dict[tuple[str, str], float] = {}
    name, pixels = None, None
    with tqdm(total=len(pairs), desc="Re-ranking", unit="pair", disable=not progress) as bar:
        for chunk in _batches(pairs, batch_size):
            rows = []
            for picture, _ in chunk:
                if picture != name:
                    inputs = processor(images=load_image(picture), return_tensors="pt")
                    name, pixels = picture, _to_model(model, inputs)["pixel_values"]
                rows.append(pixels)
            text = _encode_texts(model, processor, [text for _, text in chunk])
            scores = model.score_pairs(pixel_values=torch.cat(rows), **text).float().tolist()
            logits.update(zip(chunk, scores))
            bar.update(len(chunk))
    return logits


def _batches(items: Sequence, size: int) -> Iterator[list]:
    items = iter(items)
    while chunk := list(islice(items, size)):
        yield chunk


def _encode_texts(model, processor, texts: list[str]) -> dict[str, torch.Tensor]:
    return _to_model(model, processor(text=texts, padding=True, truncation=True, return_tensors="pt"))


def _to_model(model, inputs) -> dict[str, torch.Tensor]:
    """On the model's device, pictures in its number format."""
    return {
        name: value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)
        for name, value in inputs.items()
    }


def _unit_rows(features) -> torch.Tensor:
    """Embeddings of native models are not of unit norm."""
    return functional.normalize(getattr(features, "pooler_output", features).float().cpu(), dim=-1)


__all__ = [
    "QUERIES",
    "Match",
    "can_rerank",
    "embed_pictures",
    "embed_texts",
    "find_texts",
    "load_matcher",
    "match_pictures_and_texts",
]
