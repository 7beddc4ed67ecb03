"""Visual tokenizers of BEiT v2 (VQ-KD), to ours and back.

Layout: the released code of "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers"
(https://arxiv.org/abs/2208.06366). Files: release `BEiT-v2` of the GitHub repository addf400/files,
`vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth` being the recommended one.

>>> from hf_vlp.conversion.vqkd import convert
>>> print(convert("vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth", "vqkd"))
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hf_vlp.conversion.checks import check_finite_outputs, compare_outputs
from hf_vlp.conversion.report import FILE_NAME, ConversionReport, describe_conversion, describe_source, enumerate_names
from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vlmo import read_fields
from hf_vlp.hub.cards import make_card
from hf_vlp.hub.export import save_repository, staged_directory
from hf_vlp.models.mome.configuration_vl_beit_vqkd import VlBeitVqkdConfig

# Name of a head -> model class. Training has the decoder as well.
HEADS = {"tokenizer": "VlBeitVqkdTokenizer", "training": "VlBeitVqkdForTraining"}

# Names in the original -> ours, as regular expressions; the first that fits holds. The product of queries, keys and
# values is split afterwards, see `split_qkv`.
_TRANSFORMER = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", r"embeddings.patch_embeddings.projection.\1"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", r"layers.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.attn\.qkv\.weight", r"layers.\1.attention.qkv.weight"),
    (r"blocks\.(\d+)\.attn\.q_bias", r"layers.\1.attention.q_proj.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"layers.\1.attention.v_proj.bias"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", r"layers.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", r"layers.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"layers.\1.mlp.fc\2.\3"),
    (r"fc_norm\.(weight|bias)", r"layernorm.\1"),
)
RULES = (
    *((rf"encoder\.{source}", f"encoder.{target}") for source, target in _TRANSFORMER),
    (r"encode_task_layer\.0\.(weight|bias)", r"code_projection.dense.\1"),
    (r"encode_task_layer\.2\.(weight|bias)", r"code_projection.output.\1"),
    (r"quantize\.embedding\.weight", "codebook.weight"),
    (r"quantize\.cluster_size", "codebook.cluster_size"),
    *((rf"decoder\.{source}", f"decoder.{target}") for source, target in _TRANSFORMER),
    (r"decode_task_layer\.0\.(weight|bias)", r"decoder_projection.dense.\1"),
    (r"decode_task_layer\.2\.(weight|bias)", r"decoder_projection.output.\1"),
)
# What is left out, and why.
DROPPED = (
    (r"quantize\.embedding\.(cluster_size|embed_avg)", "kept but never read by the original"),
    (r"quantize\.embedding\.initted", "says that the codebook has its first values"),
    (r"teacher.*", "the teacher, a model of its own"),
    (r"scaling_layer.*", "means and standard deviations of the teacher's pictures"),
    (r"loss.*", "the network of a perceptual loss, not used for token ids"),
)
_OF_DECODER = r"(decoder|decode_task_layer)\..*"
_QKV = re.compile(r"(.*\.attention\.)qkv\.weight")


@dataclass(frozen=True)
class ConversionResult:
    """state_dict: in our names. dropped: {name in the original: reason}. new: our names that the file lacks."""

    state_dict: dict[str, torch.Tensor]
    dropped: dict[str, str]
    new: list[str]


def split_qkv(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Fused products [3 H, H] as queries, keys and values [H, H], everything else as it is."""
    split = {}
    for name, tensor in state_dict.items():
        if found := _QKV.fullmatch(name):
            for part, rows in zip("qkv", tensor.chunk(3)):
                split[f"{found[1]}{part}_proj.weight"] = rows.contiguous()
        else:
            split[name] = tensor
    return split


def join_qkv(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of `split_qkv`."""
    joined = {}
    for name, tensor in state_dict.items():
        stem, found, _ = name.partition("q_proj.weight")
        if found:
            joined[f"{stem}qkv.weight"] = torch.cat([state_dict[f"{stem}{part}_proj.weight"] for part in "qkv"])
        elif not name.endswith(("k_proj.weight", "v_proj.weight")):
            joined[name] = tensor
    return joined


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: VlBeitVqkdConfig, head: str = "tokenizer"
) -> ConversionResult:
    """Tensors in our names, and what became of the others.

    Raises ValueError for a name that no rule knows, for missing tensors and for other shapes than the configuration's.
    """
    converted, dropped, unknown = {}, {}, []
    for name, tensor in state_dict.items():
        reason = next((reason for pattern, reason in DROPPED if re.fullmatch(pattern, name)), None)
        if head == "tokenizer" and re.fullmatch(_OF_DECODER, name):
            reason = "the decoder, which only training needs"
        rule = next((rule for rule in RULES if re.fullmatch(rule[0], name)), None)
        if reason is not None:
            dropped[name] = reason
        elif rule is None:
            unknown.append(name)
        else:
            converted[re.sub(*rule, name)] = tensor
    if unknown:
        raise ValueError(f"The file has tensors that no VQ-KD tokenizer has: {enumerate_names(unknown)}.")
    converted = split_qkv(converted)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in model_class(head)(config).state_dict().items()}
    # Running counts, which only go on in training.
    absent = [name for name in shapes if name not in converted]
    if missing := [name for name in absent if name != "codebook.cluster_size"]:
        raise ValueError(f"The file lacks tensors of {HEADS[head]}: {enumerate_names(missing)} (in our names).")
    surplus = [name for name in converted if name not in shapes]
    wrong = [
        f"{name} {list(tensor.shape)} for {list(shapes[name])}"
        for name, tensor in converted.items()
        if name in shapes and tensor.shape != shapes[name]
    ]
    if surplus or wrong:
        raise ValueError(f"The file does not fit the configuration: {enumerate_names([*surplus, *wrong])}.")
    return ConversionResult(converted, dropped, absent)


def revert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors in the original's names; the inverse of `convert_state_dict` but for what that drops."""
    reverted = {}
    for name, tensor in join_qkv(state_dict).items():
        for source, target in RULES:
            if found := re.fullmatch(_as_pattern(target), name):
                reverted[_fill(source, found.groups())] = tensor
                break
        else:
            raise ValueError(f"{name} has no name in the original.")
    return reverted


def _as_pattern(target: str) -> str:
    return re.sub(r"\\\\\d", r"([\\w]+?)", re.escape(target))


def _fill(source: str, groups: tuple[str, ...]) -> str:
    """The name that a source pattern stands for: its groups filled in order."""
    values = iter(groups)
    return re.sub(r"\([^)]*\)", lambda _: next(values), source).replace("\\", "")


def infer_config(state_dict: Mapping[str, torch.Tensor], **known: Any) -> dict[str, Any]:
    """Fields of `VlBeitVqkdConfig` from the tensors of the original.

    Args:
        known: fields that were given; `num_attention_heads` must be for a width that is no multiple of 64.

    Raises ValueError when this is no VQ-KD tokenizer, or the number of heads cannot be told.
    """
    needed = ("encoder.patch_embed.proj.weight", "encoder.pos_embed", "quantize.embedding.weight")
    if absent := [name for name in needed if name not in state_dict]:
        raise ValueError(
            f"This is no VQ-KD tokenizer in the original layout: there is no {', '.join(absent)}. Names of its "
            f"tensors: {enumerate_names(list(state_dict), 6)}."
        )
    hidden_size, num_channels, patch_size, _ = state_dict[needed[0]].shape
    codebook_size, code_dim = state_dict[needed[2]].shape
    config = {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_blocks(state_dict, "encoder"),
        "num_channels": num_channels,
        "patch_size": patch_size,
        "image_size": math.isqrt(state_dict[needed[1]].shape[1] - 1) * patch_size,
        "codebook_size": codebook_size,
        "code_dim": code_dim,
    }
    if (mlp := state_dict.get("encoder.blocks.0.mlp.fc1.weight")) is not None:
        config["intermediate_size"] = len(mlp)
    if num_blocks := _count_blocks(state_dict, "decoder"):
        config["decoder_num_hidden_layers"] = num_blocks
    if (last := state_dict.get("decode_task_layer.2.weight")) is not None:
        config["target_dim"] = len(last)
    if "num_attention_heads" not in known:
        if hidden_size % 64:
            raise ValueError(
                f"The number of heads cannot be told from a width of {hidden_size}: give num_attention_heads (in "
                "`config`; on the command line in the JSON file of --config)."
            )
        config["num_attention_heads"] = hidden_size // 64  # as in all published files
    return {**config, **known}


def _count_blocks(state_dict: Mapping[str, torch.Tensor], part: str) -> int:
    blocks = {int(found[1]) for name in state_dict if (found := re.match(rf"{part}\.blocks\.(\d+)\.", name))}
    return max(blocks, default=-1) + 1


def model_class(head: str) -> type:
    """The class of a key in `HEADS`; raises ValueError for others."""
    from hf_vlp.models.mome import modeling_vl_beit_vqkd

    if head not in HEADS:
        raise ValueError(f"Unknown head {head!r}. Known heads: {', '.join(HEADS)}.")
    return getattr(modeling_vl_beit_vqkd, HEADS[head])


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    head: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    parity: tuple[str | Path, str | Path] | None = None,
    tolerance: float = 1e-4,
    reverse: bool = False,
    push_to_hub: str | None = None,
    **superfluous: Any,
) -> ConversionReport | Path:
    """Make a repository of ours from a file of the original; returns the report.

    Everything is checked before anything is written: no tensor left over, strict loading, every tensor the same bit
    for bit after the way back, finite outputs on random input, and recorded outputs with `parity`.

    Args:
        checkpoint: .pth or .safetensors, see `load_checkpoint`; with or without the decoder.
        head: `"tokenizer"` (default), or `"training"` to train it further: with the decoder, which the file must have.
        config: fields of `VlBeitVqkdConfig`, or a JSON file with them, that the tensors cannot tell.
        parity: safetensors files with inputs and outputs of the original: `pixel_values_0_to_1`; `codes`,
            `code_vectors`, `encoder_patch_features`.
        tolerance: of `parity`.
        reverse: the other way: `checkpoint` is a repository, `output` a .pth or .safetensors file.
        push_to_hub: id to which the repository is uploaded.
        superfluous: options of other architectures, which must be None.

    Raises ValueError or OSError with the reason; what was in `output` before then still is.
    """
    if given := [name for name, value in superfluous.items() if value is not None]:
        raise ValueError(f"A visual tokenizer has no {', '.join(given)}: leave it out.")
    if reverse:
        options = {"head": head, "config": config, "parity": parity, "push_to_hub": push_to_hub}
        if given := [name for name, value in options.items() if value is not None]:
            raise ValueError(f"The way back takes no {', '.join(given)}: the repository knows what it holds.")
        return convert_back(checkpoint, output)
    head = head or "tokenizer"
    loaded = load_checkpoint(checkpoint, float32=True)
    wanted = infer_config(loaded.state_dict, **read_fields(config, VlBeitVqkdConfig))
    model_config = VlBeitVqkdConfig(**wanted)
    result = convert_state_dict(loaded.state_dict, model_config, head)
    if broken := [name for name, value in result.state_dict.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"The file holds NaN or infinite values: {enumerate_names(broken)}. It is damaged.")
    reverted = revert_state_dict(result.state_dict)
    kept = {name: value for name, value in loaded.state_dict.items() if name not in result.dropped}
    if kept.keys() != reverted.keys() or not all(torch.equal(value, reverted[name]) for name, value in kept.items()):
        raise ValueError("The way back does not give the file again: please report this.")
    checks = [f"{len(kept)} tensors converted back, equal bit for bit"]
    model = model_class(head)(model_config)
    # Counts that the file lacks, the same for all codes: training would replace codes that were never chosen.
    counts = {name: torch.ones_like(model.state_dict()[name]) for name in result.new}
    model.load_state_dict({**result.state_dict, **counts}, strict=True)
    checks.append("strict loading into the model")
    side = model_config.image_size
    pixels = torch.rand(2, model_config.num_channels, side, side, generator=torch.Generator().manual_seed(0))
    inputs = {"pixel_values": pixels} if head == "tokenizer" else {"pixel_values": pixels, "return_loss": False}
    checks.append(check_finite_outputs(model, inputs))
    norms = model.codebook.weight.norm(dim=1)
    checks.append(f"norms of the codes between {norms.min():.6f} and {norms.max():.6f}")
    if parity is not None:
        line = compare_outputs(
            model,
            *map(Path, parity),
            tolerance=tolerance,
            input_names={"pixel_values_0_to_1": "pixel_values"},
            output_names={"codes": "token_ids"},
        )
        checks.append(line)
    report = ConversionReport(
        architecture="vl_beit_vqkd",
        head=head,
        recognised_as="tokenizer with decoder" if _count_blocks(loaded.state_dict, "decoder") else "tokenizer",
        model_class=HEADS[head],
        source=describe_source(loaded),
        size="base" if model_config.hidden_size == 768 and model_config.num_hidden_layers == 12 else "other",
        config=wanted,
        tensors_read=len(loaded.state_dict),
        tensors_written=len(model.state_dict()),
        dropped=result.dropped,
        new=result.new,
        checks=checks,
        notes=["Give it pixels in [0, 1]: divided by 255, not normalised. Its image processor does so."],
    )
    save_repository(
        output,
        model=model,
        processor=make_image_processor(model_config),
        card=make_card(model, description=describe_conversion(loaded), converted_from=loaded.path.name),
        extra_files={FILE_NAME: report.to_dict()},
    )
    if push_to_hub is not None:
        from hf_vlp.hub.push import push_repository

        report.notes.append(f"Pushed to {push_repository(output, push_to_hub)}.")
    return report


def make_image_processor(config: VlBeitVqkdConfig):
    """The image processor of a tokenizer: a square of its size, values in [0, 1]."""
    from hf_vlp.models.mome.processing_mome import MomeImageProcessor

    return MomeImageProcessor(size={"height": config.image_size, "width": config.image_size}, do_normalize=False)


def convert_back(repository: str | Path, output: str | Path) -> Path:
    """Write a saved tokenizer of ours as a file in the original's layout, tensors under `model`.

    Args:
        repository: folder or Hub id of either head.
        output: .pth, .pt or .safetensors (flat); an existing file is replaced once the new one is whole.
    """
    output = Path(output)
    if output.suffix not in (".pt", ".pth", ".safetensors") or output.is_dir():
        raise ValueError(f"{output} must be a file that ends in .pt, .pth or .safetensors.")
    config = VlBeitVqkdConfig.from_pretrained(repository)
    classes = {name: head for head, name in HEADS.items()}
    head = next((classes[name] for name in config.architectures or () if name in classes), "tokenizer")
    model, info = model_class(head).from_pretrained(repository, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{repository} lacks weights: {enumerate_names(sorted(info['missing_keys']))}.")
    reverted = {name: tensor.contiguous() for name, tensor in revert_state_dict(model.state_dict()).items()}
    with staged_directory(output.absolute().parent) as staging:
        if output.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(reverted, staging / output.name)
        else:
            torch.save({"model": reverted}, staging / output.name)
    return output


__all__ = [
    "HEADS",
    "RULES",
    "ConversionResult",
    "convert",
    "convert_back",
    "convert_state_dict",
    "infer_config",
    "join_qkv",
    "model_class",
    "revert_state_dict",
    "split_qkv",
]
