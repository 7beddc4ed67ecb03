"""Visual tokens in training: the frozen tokenizer that makes targets, and the training of a tokenizer itself."""

import copy
import inspect
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import nn

from hf_vlp.data.collators import BadSamplePolicy
from hf_vlp.data.masked_collators import TOKEN_IDS, VIEW
from hf_vlp.data.task_collators import TaskCollator
from hf_vlp.pretraining.naming import plain_model

# ---- the frozen tokenizer


def load_visual_tokenizer(path: str | os.PathLike):
    """A `VlBeitVqkdTokenizer` from a folder or the Hub, also from a checkpoint of its training; frozen.

    Raises ValueError when there is none, or it lacks weights.
    """
    from transformers import AutoConfig

    import hf_vlp  # noqa: F401 - registers the architectures
    from hf_vlp.models.mome.modeling_vl_beit_vqkd import VlBeitVqkdTokenizer

    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.visual_tokenizer_name_or_path={str(path)!r} is no checkpoint: {error}") from error
    if config.model_type != "vl_beit_vqkd":
        raise ValueError(
            f"{path} holds a model of type {config.model_type!r}, not a visual tokenizer (vl_beit_vqkd). Convert a "
            "published one (hf-vlp convert vl_beit_vqkd), or train one (task visual_tokenizer)."
        )
    tokenizer, info = VlBeitVqkdTokenizer.from_pretrained(path, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{path} lacks weights of the visual tokenizer: {', '.join(sorted(info['missing_keys'])[:4])}."
        )
    return tokenizer.eval().requires_grad_(False)


def visual_vocabulary(path: str | os.PathLike) -> int:
    """Number of tokens of the tokenizer in a folder or on the Hub, read from its configuration alone."""
    from transformers import AutoConfig

    import hf_vlp  # noqa: F401 - registers the architectures

    try:
        return AutoConfig.from_pretrained(path).codebook_size
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"model.visual_tokenizer_name_or_path={str(path)!r} is no visual tokenizer: {error}"
        ) from error


def check_visual_tokenizer(tokenizer, model) -> None:
    """Raise ValueError unless the tokenizer makes what the model predicts: as many classes, one for each patch.

    What a tokenizer does not tell (any callable may be one) is not checked here, but by the model in each batch.
    """
    config, own = plain_model(model).config, getattr(tokenizer, "config", None)
    expected, found = getattr(config, "visual_vocab_size", None), getattr(own, "codebook_size", None)
    if expected is None:
        raise ValueError(f"{type(plain_model(model)).__name__} predicts no visual tokens: give no visual tokenizer.")
    if found is not None and found != expected:
        raise ValueError(
            f"The model predicts visual_vocab_size={expected} visual tokens, the tokenizer has codebook_size={found}. "
            f"Set model.config.visual_vocab_size={found}, or take the tokenizer that the model was trained with."
        )
    expected, found = config.window_size**2, getattr(tokenizer, "num_tokens", None)
    if found is not None and found != expected:
        raise ValueError(
            f"The model has {expected} patches (image_size={config.image_size}, patch_size={config.patch_size}), the "
            f"tokenizer makes {found} tokens of a picture. They must be as many: change model.config.image_size or "
            "patch_size, or take another tokenizer."
        )


class VisualTokens:
    """Turns the views that a batch holds for the tokenizer into token ids, on the device where they are.

    Every `..._tokenizer_pixel_values` (rows, 3, S, S) in [0, 1] becomes `..._visual_token_ids` (rows, patches): of
    pairs under the plain names, of pictures alone under `image_...`.

    Args:
        tokenizer: a `VlBeitVqkdTokenizer`, or any callable: pictures in [0, 1] -> (rows, patches) whole numbers. A
            module is put into evaluation mode and moved to the device of the first batch.
    """

    def __init__(self, tokenizer: Callable[[torch.Tensor], torch.Tensor]):
        self.tokenizer = tokenizer
        self._tokenize = getattr(tokenizer, "get_token_ids", tokenizer)
        if isinstance(tokenizer, nn.Module):
            tokenizer.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with ids in the place of views. Raises ValueError for ids of another shape or kind."""
        return {
            name.removesuffix(VIEW) + TOKEN_IDS if name.endswith(VIEW) else name: (
                self._find(value) if name.endswith(VIEW) else value
            )
            for name, value in batch.items()
        }

    def _find(self, pixel_values: torch.Tensor) -> torch.LongTensor:
        if isinstance(self.tokenizer, nn.Module):
            self.tokenizer.to(pixel_values.device)
        ids = self._tokenize(pixel_values)
        if not torch.is_tensor(ids) or ids.is_floating_point() or ids.ndim != 2 or len(ids) != len(pixel_values):
            found = f"{ids.dtype} {tuple(ids.shape)}" if torch.is_tensor(ids) else type(ids).__name__
            raise ValueError(
                f"The visual tokenizer must give whole numbers of the shape ({len(pixel_values)}, patches), not "
                f"{found}."
            )
        return ids.to(pixel_values.device, torch.long)


def prepare_visual_tokens(stage, model, show: Callable[[str], None] = print):
    """The frozen tokenizer of a run, checked against the model; `None` where the task has no use for one.

    Tells the collator the size of the pictures that the tokenizer was made for, unless `batches.tokenizer_image_size`
    is set, and gives a tokenizer that is trained itself its teacher.

    Args:
        stage: `RunArguments`. show: takes what the user should know.

    Raises ValueError as `load_visual_tokenizer`, `check_visual_tokenizer` and `PatchTeacher` do.
    """
    plain, settings = plain_model(model), stage.model
    if hasattr(plain, "set_teacher"):
        if settings.visual_teacher_name_or_path:
            plain.set_teacher(_make_teacher(settings.visual_teacher_name_or_path, plain.config))
        elif plain.config.target == "features":
            raise ValueError(
                "A visual tokenizer with target='features' needs a teacher: set model.visual_teacher_name_or_path, or "
                "model.config.target=pixels to train without one."
            )
    elif settings.visual_teacher_name_or_path:
        show(
            f"The teacher {settings.visual_teacher_name_or_path} is not used: {type(plain).__name__} is no visual "
            "tokenizer."
        )
    path = settings.visual_tokenizer_name_or_path
    if not path:
        return None
    if not any(name.endswith(TOKEN_IDS) for name in inspect.signature(plain.forward).parameters):
        show(f"The visual tokenizer {path} is not used: {type(plain).__name__} predicts no visual tokens.")
        return None
    tokenizer = load_visual_tokenizer(path)
    check_visual_tokenizer(tokenizer, plain)
    side = getattr(stage.batches, "tokenizer_image_size", None)
    if side not in (None, tokenizer.config.image_size):
        raise ValueError(
            f"batches.tokenizer_image_size={side}, and the visual tokenizer takes pictures of a side of "
            f"{tokenizer.config.image_size}: leave the setting out."
        )
    stage.batches.tokenizer_image_size = tokenizer.config.image_size
    return tokenizer


def _make_teacher(path: str | os.PathLike, config) -> "PatchTeacher":
    teacher = PatchTeacher(path, config.num_tokens)
    if config.target != "features" or teacher.dim != config.target_dim:
        raise ValueError(
            f"The teacher {path} gives features of length {teacher.dim}: set model.config.target=features and "
            f"model.config.target_dim={teacher.dim} (now {config.target!r}, {config.target_dim})."
        )
    return teacher


def cache_visual_tokens(
    records,
    tokenizer,
    *,
    bad_samples: BadSamplePolicy | None = None,
    resample: Literal["bicubic", "lanczos", "bilinear"] = "bicubic",
):
    """Training records with the ids of their pictures, made once; see `hf_vlp.data.visual_tokens`.

    All processes must call it. Each tokenizes its share of the pictures and waits for the others at the end, no longer
    than `training.ddp_timeout` (1800 s): raise that where shares take unequally long. What was made by then is kept.

    Args:
        bad_samples: its settings are taken for each source, in each process by itself.
        resample: how pictures are resized for the tokenizer, `batches.tokenizer_resample`.
    """
    from hf_vlp.data.joint import JointRecords
    from hf_vlp.data.visual_tokens import add_visual_tokens

    state = PartialState()
    tokenizer.to(state.device)

    def add(source):
        return add_visual_tokens(
            source,
            tokenizer,
            bad_samples=copy.deepcopy(bad_samples),
            resample=resample,
            progress=state.is_main_process,
            process_index=state.process_index,
            num_processes=state.num_processes,
            gather=gather_object,
        )

    if isinstance(records, JointRecords):
        sources = {name: source if name == "text" else add(source) for name, source in records.sources.items()}
        return JointRecords(sources, seed=records.seed)
    return add(records)


# ---- its training


class PictureCollator(TaskCollator):
    """Pictures alone: `pixel_values` (rows, 3, H, W), in [0, 1] with the image processor of a visual tokenizer.

    A record has `image`; texts are not looked at. A batch without any good record is one white picture.

    Args:
        options: `bad_samples`, `seed`, `augment`, `max_pixels`, `size_hint`; see `CaptionCollator`.
    """

    text_columns = ()

    def _batch(self, rows) -> dict[str, torch.Tensor]:
        return {"pixel_values": self._pixel_values([row.images[0] for row in rows])}


class PatchTeacher:
    """Features of a vision tower for each patch: what VQ-KD reconstructs (`VlBeitVqkdForTraining.set_teacher`).

    Pictures in [0, 1] are resized to the tower's size and normalised; the last states without the class token are the
    features, (pictures, patches, width).

    Args:
        name_or_path: a vision tower of the library with `last_hidden_state`, such as CLIP's or DINO's (a whole CLIP
            gives its vision tower), with its image processor.
        num_tokens: patches that are expected.

    Raises ValueError for a model without pictures, or with another number of patches.
    """

    def __init__(self, name_or_path: str | os.PathLike, num_tokens: int):
        from transformers import AutoImageProcessor, AutoModel

        model = AutoModel.from_pretrained(name_or_path)
        self.model = getattr(model, "vision_model", model).eval().requires_grad_(False)
        config = getattr(model.config, "vision_config", None) or model.config
        processor = AutoImageProcessor.from_pretrained(name_or_path)
        if not hasattr(config, "image_size") or not hasattr(config, "patch_size"):
            raise ValueError(f"{name_or_path} is no vision tower with patches: {type(model).__name__}.")
        found = (config.image_size // config.patch_size) ** 2
        if found != num_tokens:
            raise ValueError(
                f"The teacher {name_or_path} has {found} patches (image_size={config.image_size}, patch_size="
                f"{config.patch_size}), the visual tokenizer {num_tokens}: change its image_size or patch_size."
            )
        self.image_size, self.num_tokens = config.image_size, num_tokens
        self.mean, self.std = (
            torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std)
        )

    @property
    def dim(self) -> int:
        """Length of the features."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        size = (self.image_size, self.image_size)
        if pixel_values.shape[-2:] != size:
            pixel_values = nn.functional.interpolate(pixel_values, size, mode="bicubic", antialias=True).clamp(0, 1)
        device = pixel_values.device
        self.model.to(device)
        normalised = (pixel_values - self.mean.to(device)) / self.std.to(device)
        return self.model(pixel_values=normalised).last_hidden_state[:, -self.num_tokens :]


def evaluate_visual_tokenizer(
    model,
    processor,
    records: Sequence[dict],
    *,
    batch_size: int = 32,
    progress: bool = True,
    predictions_path: str | os.PathLike | None = None,
    bad_samples: BadSamplePolicy | None = None,
) -> dict[str, float | int]:
    """How well the codes of held-out pictures reconstruct the target, and how many of them are used.

    `reconstruction_error`: mean over patches of the squared error, values in [-1, 1], or of 1 - cosine for features of
    a teacher. `constant_reconstruction_error`: of the mean patch of these pictures given everywhere, the best that
    needs no code. `explained_variance`: 1 - the first / the second. `codes_used`: share of the codebook that occurs.
    `perplexity`: exp of the entropy of the codes, at most their number.

    Arguments are those of `evaluate_model`; `predictions_path` gets the counts of all codes. Raises ValueError when no
    picture can be read.
    """
    from hf_vlp.evaluation import write_json
    from hf_vlp.evaluation_tasks import predict_records, rank_and_world_size

    plain = plain_model(model)
    start = time.perf_counter()

    def predict(images, _):
        pixel_values = processor(images=images, return_tensors="pt")["pixel_values"].to(plain.device)
        outputs = plain(pixel_values=pixel_values, return_loss=False)
        target = plain.make_target(pixel_values)
        errors = plain.reconstruction_errors(outputs.reconstruction, target).mean(dim=1)
        if plain.config.target == "features":  # the mean direction is the best constant for the cosine
            target = nn.functional.normalize(target, dim=-1)
        sums, squares = target.sum(dim=1), target.square().sum(dim=(1, 2))
        return list(zip(outputs.token_ids.tolist(), errors.tolist(), sums.double().cpu(), squares.tolist()))

    predictions = predict_records(
        plain,
        records,
        predict,
        batch_size=batch_size,
        description="Tokenizing",
        progress=progress,
        bad_samples=bad_samples,
    )
    rows = [row for row in predictions if row is not None]
    if not rows:
        raise ValueError(f"None of the {len(predictions)} records has a readable picture: nothing to evaluate.")
    counts = torch.bincount(torch.tensor([row[0] for row in rows]).flatten(), minlength=plain.config.codebook_size)
    error = sum(row[1] for row in rows) / len(rows)
    num_patches = len(rows) * plain.config.num_tokens
    mean = sum(row[2] for row in rows) / num_patches
    if plain.config.target == "features":
        constant = 1 - mean.norm().item()
    else:
        constant = (sum(row[3] for row in rows) / num_patches - mean.square().sum().item()) / len(mean)
    shares = counts[counts > 0] / counts.sum()
    results = {
        "reconstruction_error": error,
        "constant_reconstruction_error": constant,
        "explained_variance": 1 - error / constant if constant > 0 else 0.0,
        "codes_used": len(shares) / len(counts),
        "perplexity": torch.exp(-(shares * shares.log()).sum()).item(),
        "pictures": len(rows),
        "skipped_pictures": len(predictions) - len(rows),
        "samples_per_second": round(len(predictions) / max(1e-9, time.perf_counter() - start), 2),
    }
    if predictions_path is not None and rank_and_world_size()[0] == 0:
        write_json(Path(predictions_path), {"metrics": results, "counts": counts.tolist()})
    return results


__all__ = [
    "PatchTeacher",
    "PictureCollator",
    "VisualTokens",
    "cache_visual_tokens",
    "check_visual_tokenizer",
    "evaluate_visual_tokenizer",
    "load_visual_tokenizer",
    "prepare_visual_tokens",
    "visual_vocabulary",
]
