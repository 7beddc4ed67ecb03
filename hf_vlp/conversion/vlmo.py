"""Original checkpoints of VLMo, to ours and back.

Every tensor of a file is renamed by `RULES`, split or joined by a named operation, or dropped for a stated reason;
nothing is left over on either side. Layouts: the released code of "VLMo: Unified Vision-Language Pre-Training with
Mixture-of-Modality-Experts" (https://arxiv.org/abs/2111.02358), and of BEiT, from which its language stage starts.

>>> from hf_vlp.conversion.vlmo import convert
>>> print(convert("vlmo_base_patch16_480_vqa.pt", "vlmo-base-vqa", vocab="vocab.txt"))
"""

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hf_vlp.conversion.checks import check_finite_outputs, compare_outputs
from hf_vlp.conversion.report import FILE_NAME, ConversionReport, describe_conversion, describe_source, enumerate_names
from hf_vlp.conversion.safe_load import LoadedCheckpoint, load_checkpoint
from hf_vlp.hub.cards import load_checkpoint_data, make_card, published_checkpoints
from hf_vlp.hub.export import save_repository, staged_directory
from hf_vlp.models.mome.configuration_mome import MomeConfig
from hf_vlp.models.mome.configuration_vlmo import PUBLISHED_SIZES, VlmoConfig
from hf_vlp.models.mome.mome import (
    make_image_position_index,
    make_pair_position_index,
    make_text_position_index,
    num_position_rows,
)
from hf_vlp.models.mome.mome_interpolation import interpolate_position_bias_table, interpolate_position_embeddings

# Name of a head -> model class. The last two are in no published file: the model alone, and a head to be trained.
HEADS = {
    "pretraining": "VlmoForPreTraining",
    "masked_lm": "VlmoForMaskedLM",
    "vqa": "VlmoForVisualQuestionAnswering",
    "nlvr2": "VlmoForImagesAndTextClassification",
    "retrieval": "VlmoForImageTextRetrieval",
    "base": "VlmoModel",
    "image_classification": "VlmoForImageClassification",
}
WITH_CLASSES = ("vqa", "nlvr2", "image_classification", "semantic_segmentation")
BEIT = "beit"

_TABLE = "relative_position_bias_table"
_POSITIONS = "transformer.pos_embed"
_TEXT_POSITIONS = "text_embeddings.position_embeddings.weight"
_TYPES = "token_type_embeddings.weight"


class Rule(NamedTuple):
    """One line of a conversion table.

    source, target: names, where {i} is the number of a block, {p} weight or bias, {rest} anything; a target of `None`
        is dropped for the `reason`.
    per_block: one tensor there is a tensor of every block here, see `split_by_block`.
    head: the rule holds for this head alone.
    """

    source: str
    target: str | None
    reason: str = ""
    per_block: bool = False
    head: str | None = None


RULES = (
    Rule("text_embeddings.position_ids", None, "counted 0, 1, 2, ...; made anew"),
    Rule("relative_position_index", None, "index table; made anew"),
    Rule("text_relative_position_index", None, "index table; made anew"),
    Rule("text_imag_relative_position_index", None, "index table; made anew"),
    Rule("text_embeddings.word_embeddings.weight", "vlmo.text_embeddings.word_embeddings.weight"),
    Rule("text_embeddings.position_embeddings.weight", "vlmo.text_embeddings.position_embeddings.weight"),
    Rule("text_embeddings.token_type_embeddings.weight", "vlmo.text_embeddings.token_type_embeddings.weight"),
    Rule("text_embeddings.LayerNorm.{p}", "vlmo.text_embeddings.layer_norm.{p}"),
    Rule("transformer.cls_token", "vlmo.image_embeddings.cls_token"),
    Rule("transformer.pos_embed", "vlmo.image_embeddings.position_embeddings"),
    Rule("transformer.patch_embed.proj.{p}", "vlmo.image_embeddings.patch_projection.{p}"),
    Rule("token_type_embeddings.weight", "vlmo.token_type_embeddings.weight"),
    Rule(_TABLE, "vlmo.layers.{i}.attention.position_bias_table", per_block=True),
    Rule("transformer.blocks.{i}.norm1.{p}", "vlmo.layers.{i}.attention_norm.{p}"),
    Rule("transformer.blocks.{i}.attn.qkv.weight", "vlmo.layers.{i}.attention.qkv.weight"),
    Rule("transformer.blocks.{i}.attn.q_bias", "vlmo.layers.{i}.attention.q_bias"),
    Rule("transformer.blocks.{i}.attn.v_bias", "vlmo.layers.{i}.attention.v_bias"),
    Rule("transformer.blocks.{i}.attn.proj.{p}", "vlmo.layers.{i}.attention.output.{p}"),
    Rule("transformer.blocks.{i}.gamma_1", "vlmo.layers.{i}.attention_scale"),
    Rule("transformer.blocks.{i}.gamma_2", "vlmo.layers.{i}.expert_scale"),
    Rule("transformer.blocks.{i}.norm2_text.{p}", "vlmo.layers.{i}.experts.text.norm.{p}"),
    Rule("transformer.blocks.{i}.norm2_imag.{p}", "vlmo.layers.{i}.experts.image.norm.{p}"),
    Rule("transformer.blocks.{i}.norm2_vl.{p}", "vlmo.layers.{i}.experts.vl.norm.{p}"),
    Rule("transformer.blocks.{i}.mlp_text.fc1.{p}", "vlmo.layers.{i}.experts.text.fc1.{p}"),
    Rule("transformer.blocks.{i}.mlp_text.fc2.{p}", "vlmo.layers.{i}.experts.text.fc2.{p}"),
    Rule("transformer.blocks.{i}.mlp_imag.fc1.{p}", "vlmo.layers.{i}.experts.image.fc1.{p}"),
    Rule("transformer.blocks.{i}.mlp_imag.fc2.{p}", "vlmo.layers.{i}.experts.image.fc2.{p}"),
    Rule("transformer.blocks.{i}.mlp_vl.fc1.{p}", "vlmo.layers.{i}.experts.vl.fc1.{p}"),
    Rule("transformer.blocks.{i}.mlp_vl.fc2.{p}", "vlmo.layers.{i}.experts.vl.fc2.{p}"),
    Rule("transformer.norm.{p}", "vlmo.norm.{p}"),
    Rule("pooler.dense.{p}", "vlmo.pooler.dense.{p}"),
    Rule("mlm_score.transform.dense.{p}", "mlm_head.dense.{p}"),
    Rule("mlm_score.transform.LayerNorm.{p}", "mlm_head.layer_norm.{p}"),
    Rule("mlm_score.decoder.weight", "mlm_head.decoder.weight"),
    Rule("mlm_score.bias", "mlm_head.decoder.bias"),
    Rule("itm_score.fc.{p}", "itm_head.{p}"),
    Rule("itc_text_proj.fc.weight", "itc_text_projection.weight"),
    Rule("itc_image_proj.fc.weight", "itc_image_projection.weight"),
    Rule("itc_vl_text_proj.fc.weight", "itc_text_vl_projection.weight"),
    Rule("itc_vl_image_proj.fc.weight", "itc_image_vl_projection.weight"),
    Rule("logit_scale", "logit_scale"),
    Rule("logit_vl_scale", "logit_vl_scale"),
    Rule("vqa_classifier.0.{p}", "classifier.dense.{p}", head="vqa"),
    Rule("vqa_classifier.1.{p}", "classifier.layer_norm.{p}", head="vqa"),
    Rule("vqa_classifier.3.{p}", "classifier.output.{p}", head="vqa"),
    Rule("nlvr2_classifier.0.{p}", "classifier.dense.{p}", head="nlvr2"),
    Rule("nlvr2_classifier.1.{p}", "classifier.layer_norm.{p}", head="nlvr2"),
    Rule("nlvr2_classifier.3.{p}", "classifier.output.{p}", head="nlvr2"),
)

# BEiT -> the names above; the first rule that fits holds. A table of `per_block` becomes columns of the common one.
BEIT_RULES = (
    Rule("blocks.{i}.attn.relative_position_index", None, "index table; made anew"),
    Rule("rel_pos_bias.relative_position_index", None, "index table; made anew"),
    Rule("blocks.{i}.attn.relative_position_bias_table", _TABLE, per_block=True),
    Rule("rel_pos_bias.relative_position_bias_table", _TABLE, per_block=True),
    Rule("blocks.{i}.mlp.{rest}", "transformer.blocks.{i}.mlp_imag.{rest}"),
    Rule("blocks.{i}.norm2.{p}", "transformer.blocks.{i}.norm2_imag.{p}"),
    Rule("blocks.{i}.{rest}", "transformer.blocks.{i}.{rest}"),
    Rule("cls_token", "transformer.cls_token"),
    Rule("pos_embed", "transformer.pos_embed"),
    Rule("patch_embed.proj.{p}", "transformer.patch_embed.proj.{p}"),
    Rule("norm.{p}", "transformer.norm.{p}"),
    Rule("cls_pt_{rest}", None, "BEiT v2's second branch behind the class token"),
    Rule("mask_token", None, "stands for hidden patches in BEiT's pre-training"),
    Rule("lm_head.{p}", None, "BEiT's head for visual words"),
    Rule("fc_norm.{p}", None, "norm of BEiT's averaged patches; VLMo reads the first position"),
    Rule("head.{p}", None, "BEiT's classifier"),
)

_PLACEHOLDERS = {"i": r"\d+", "p": "weight|bias", "rest": ".+"}


@cache
def _pattern(name: str) -> re.Pattern:
    escaped = re.escape(name)
    for key, expression in _PLACEHOLDERS.items():
        escaped = escaped.replace(rf"\{{{key}\}}", f"(?P<{key}>{expression})")
    return re.compile(escaped)


def _find(rules: tuple[Rule, ...], name: str, side: str = "source") -> tuple[Rule, dict[str, str]] | None:
    """The first rule whose `side` fits the name, and what its placeholders stand for."""
    for rule in rules:
        own = getattr(rule, side)
        if own is not None and (found := _pattern(own).fullmatch(name)):
            return rule, found.groupdict()
    return None


@dataclass(frozen=True)
class Layout:
    """What the conversion of an architecture on VLMo's block has of its own.

    name: of the architecture, and of the attribute that holds the base model. title: its name in texts.
    heads: {name of a head: model class}.
    rules, beit_rules: tables in the manner of `RULES` and `BEIT_RULES`.
    config_class: of its models.
    recognise: tensors in original names -> name of the head that they show, or `BEIT`.
    default_head: tensors in original names -> name of the head that is made of them when none is asked for.
    without_original: heads that the original has no names for.
    """

    name: str
    title: str
    heads: Mapping[str, str]
    rules: tuple[Rule, ...]
    beit_rules: tuple[Rule, ...]
    config_class: type
    recognise: Callable[[Mapping[str, torch.Tensor]], str]
    default_head: Callable[[Mapping[str, torch.Tensor]], str]
    without_original: tuple[str, ...] = ()

    @property
    def prefix(self) -> str:
        """Of our names of the base model's parameters."""
        return f"{self.name}."

    def rules_of(self, head: str) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.head in (None, head))

    def model_class(self, head: str) -> type:
        """The class of a key in `heads`; raises ValueError for others."""
        if head not in self.heads:
            raise ValueError(f"Unknown head {head!r}. Known heads: {', '.join(self.heads)}.")
        return getattr(import_module(f"hf_vlp.models.mome.modeling_{self.name}"), self.heads[head])


def split_by_block(table: torch.Tensor, num_blocks: int) -> list[torch.Tensor]:
    """[rows, blocks * heads] -> for each block [rows, heads]; block i owns the i-th group of columns.

    Raises ValueError when the columns cannot be shared out evenly.
    """
    if table.dim() != 2 or table.shape[1] % num_blocks:
        raise ValueError(
            f"{_TABLE} has the shape {list(table.shape)}; its columns are to be shared out among {num_blocks} blocks. "
            "Check the number of blocks."
        )
    return [block.contiguous() for block in table.chunk(num_blocks, dim=1)]


def join_blocks(tables: list[torch.Tensor]) -> torch.Tensor:
    """The inverse of `split_by_block`."""
    return torch.cat(tables, dim=1)


def recognise_head(state_dict: Mapping[str, torch.Tensor]) -> str:
    """The key in `HEADS` that the names of the tensors show, or `BEIT`; raises ValueError for neither."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in state_dict)

    if has("vqa_classifier."):
        return "vqa"
    if has("nlvr2_classifier."):
        return "nlvr2"
    if has("mlm_score."):
        return "pretraining" if has("itm_score.") or has("itc_") else "masked_lm"
    if has("itc_"):
        return "retrieval"
    if has("transformer."):
        return "base"
    if "cls_token" in state_dict and has("blocks.0."):
        return BEIT
    raise ValueError(
        "This is neither a VLMo nor a BEiT checkpoint in the original layout. Names of its tensors: "
        f"{enumerate_names(list(state_dict), 6)}."
    )


def default_head(state_dict: Mapping[str, torch.Tensor]) -> str:
    """The key in `HEADS` of what is made of a file: what it shows, of a BEiT the language stage."""
    recognised = recognise_head(state_dict)
    return "masked_lm" if recognised == BEIT else recognised


VLMO = Layout(
    name="vlmo",
    title="VLMo",
    heads=HEADS,
    rules=RULES,
    beit_rules=BEIT_RULES,
    config_class=VlmoConfig,
    recognise=recognise_head,
    default_head=default_head,
    without_original=("image_classification",),
)


def published_size(config: Mapping[str, Any]) -> str | None:
    """Name of the published size that these fields of a configuration have, or `None`."""
    names = ("hidden_size", "num_hidden_layers", "intermediate_size")
    fitting = (size for size in PUBLISHED_SIZES if all(config[name] == published_field(size, name) for name in names))
    return next(fitting, None)


class InferredConfig(NamedTuple):
    """`config`: fields of `VlmoConfig`; `head`: what `recognise_head` says; `size`: name of a published size."""

    config: dict[str, Any]
    head: str
    size: str | None


def infer_config(state_dict: Mapping[str, torch.Tensor], **known: Any) -> InferredConfig:
    """Read the sizes of a model from its tensors, those of a VLMo or a BEiT in original names.

    Args:
        known: fields of `VlmoConfig` for what tensors cannot tell: `num_attention_heads` without a bias table and in
            no published size; `max_text_length_of_table` (196 in all published files) or `image_size`, one of which
            divides the rows of the bias table among pictures and texts.

    Raises ValueError that says which of these is needed, or which tensor is missing.
    """
    head = recognise_head(state_dict)
    if head == BEIT:
        state_dict, _ = beit_to_vlmo(
            state_dict, known.get("max_text_length_of_table", _default("max_text_length_of_table"))
        )
    hidden_size, num_channels, patch_size, _ = _shape(state_dict, "transformer.patch_embed.proj.weight", 4)
    expert = "mlp_imag" if head == BEIT else "mlp_text"
    config: dict[str, Any] = {
        "hidden_size": hidden_size,
        "num_hidden_layers": _count_blocks(state_dict),
        "intermediate_size": _shape(state_dict, f"transformer.blocks.0.{expert}.fc1.weight", 2)[0],
        "num_channels": num_channels,
        "patch_size": patch_size,
    }
    size = published_size(config)
    config |= _infer_positions(state_dict, config, size, known)
    if "transformer.blocks.0.gamma_1" not in state_dict:
        config["layer_scale_init_value"] = None
    if head == BEIT:
        config["max_text_length"] = config.get("max_text_length_of_table", _default("max_text_length_of_table"))
    else:
        config["vocab_size"] = _shape(state_dict, "text_embeddings.word_embeddings.weight", 2)[0]
        config["max_text_length"] = _shape(state_dict, _TEXT_POSITIONS, 2)[0]
        config["type_vocab_size"] = _shape(state_dict, _TYPES, 2)[0]
        config["text_type_vocab_size"] = _shape(state_dict, "text_embeddings.token_type_embeddings.weight", 2)[0]
    config["vl_expert_start_layer"] = known.get("vl_expert_start_layer")
    if config["vl_expert_start_layer"] is None:
        config["vl_expert_start_layer"] = _first_vl_block(state_dict, config["num_hidden_layers"], head, size)
    if head in ("vqa", "nlvr2"):
        config["num_labels"] = _shape(state_dict, f"{head}_classifier.3.weight", 2)[0]
    if head == "retrieval":
        config["use_matching_head"] = "itm_score.fc.weight" in state_dict
    return InferredConfig(config, head, size)


def _count_blocks(state_dict: Mapping[str, torch.Tensor]) -> int:
    blocks = {int(found[1]) for name in state_dict if (found := re.match(r"transformer\.blocks\.(\d+)\.", name))}
    count = max(blocks, default=0) + 1
    if absent := sorted(set(range(count)) - blocks):
        raise ValueError(f"The checkpoint has no tensor of block {', '.join(map(str, absent))}.")
    return count


def _infer_positions(
    state_dict: Mapping[str, torch.Tensor], config: Mapping[str, Any], size: str | None, known: Mapping[str, Any]
) -> dict[str, Any]:
    """Fields about positions of pictures and texts, and the number of heads, which the bias table tells."""
    fields: dict[str, Any] = {
        "use_relative_position_bias": _TABLE in state_dict,
        "use_absolute_position_embeddings": _POSITIONS in state_dict,
    }
    heads = None if size is None else published_field(size, "num_attention_heads")
    if _TABLE in state_dict:
        rows, columns = _shape(state_dict, _TABLE, 2)
        index = state_dict.get("relative_position_index")
        window, fields["max_text_length_of_table"] = _divide_rows(rows, index, config["patch_size"], known)
        heads = columns // config["num_hidden_layers"]
    else:
        window = math.isqrt(_shape(state_dict, _POSITIONS, 3)[1] - 1)
    fields["image_size"] = window * config["patch_size"]
    fields["num_attention_heads"] = known.get("num_attention_heads", heads)
    if fields["num_attention_heads"] is None:
        raise ValueError(
            f"The number of attention heads cannot be read from a model without a bias table, and hidden_size="
            f"{config['hidden_size']} with {config['num_hidden_layers']} blocks is no published size. Give "
            'num_attention_heads (on the command line: --config FILE with {"num_attention_heads": ...}).'
        )
    return fields


def _default(name: str) -> Any:
    return getattr(VlmoConfig(), name)


def published_field(size: str, name: str) -> Any:
    """A field of the configuration of a published size."""
    return PUBLISHED_SIZES[size].get(name, _default(name))


def _shape(state_dict: Mapping[str, torch.Tensor], name: str, num_dims: int) -> torch.Size:
    if name not in state_dict:
        raise ValueError(f"The checkpoint has no tensor {name}, from which sizes are read. Is the file whole?")
    shape = state_dict[name].shape
    if len(shape) != num_dims:
        raise ValueError(f"{name} has the shape {list(shape)}, where {num_dims} dimensions are expected.")
    return shape


def _divide_rows(rows: int, index: torch.Tensor | None, patch_size: int, known: Mapping[str, Any]) -> tuple[int, int]:
    """Rows of the bias table -> (patches along a side, longest text): (2 window - 1)^2 + 5 + 2 length of them."""
    length = known.get("max_text_length_of_table")
    if length is None and index is not None and index.dim() == 2:
        window = math.isqrt(max(0, index.shape[0] - 1))
    else:
        tried = _default("max_text_length_of_table") if length is None else length
        if window := _window_of(rows, tried):
            return window, tried
        window = known.get("image_size", 0) // patch_size
    remaining = rows - num_position_rows(window, 0) if window else -1
    if length is None and remaining > 0 and remaining % 2 == 0:
        return window, remaining // 2
    given = {name: known[name] for name in ("max_text_length_of_table", "image_size") if name in known}
    raise ValueError(
        f"{_TABLE} has {rows} rows, which do not divide into (2 * patches along a side - 1)^2 + 5 + 2 * longest text "
        f"with {given or 'the published longest text of 196'}. Give image_size or max_text_length_of_table (in "
        "`config`; on the command line in the JSON file of --config)."
    )


def _window_of(rows: int, max_text_length: int) -> int | None:
    """Patches along a side of the pictures that a bias table with so many rows is for."""
    window = (math.isqrt(max(0, rows - num_position_rows(1, max_text_length) + 1)) + 1) // 2
    return window if window and num_position_rows(window, max_text_length) == rows else None


def _first_vl_block(state_dict: Mapping[str, torch.Tensor], num_layers: int, head: str, size: str | None) -> int:
    with_expert = [
        int(found[1]) for name in state_dict if (found := re.match(r"transformer\.blocks\.(\d+)\.\w+_vl\.", name))
    ]
    if not with_expert and head in (BEIT, "masked_lm", "base"):
        return num_layers
    if size is not None:  # known better than the file can tell when it lacks an expert
        return published_field(size, "vl_expert_start_layer")
    if not with_expert:
        raise ValueError(
            f"No block has a vision-language expert (transformer.blocks.*.mlp_vl, norm2_vl), as {HEADS[head]} has in "
            f"the original. If that is meant, give vl_expert_start_layer={num_layers} (in `config`; on the command "
            "line in the JSON file of --config)."
        )
    return min(with_expert)


def beit_to_vlmo(
    state_dict: Mapping[str, torch.Tensor],
    max_text_length_of_table: int,
    rules: tuple[Rule, ...] = BEIT_RULES,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors of a BEiT under the names of VLMo's language stage, and {name: reason} of what was dropped.

    Picture experts, attention and embedding of the picture come from BEiT; its tables of relative positions, one for
    each block or a common one that every block gets a copy of, are the first rows of VLMo's, those of texts are 0.
    Raises ValueError for tensors that no BEiT has.
    """
    converted: dict[str, torch.Tensor] = {}
    dropped: dict[str, str] = {}
    tables: dict[int, torch.Tensor] = {}
    unknown = []
    num_blocks = 1 + max(int(found[1]) for name in state_dict if (found := re.match(r"blocks\.(\d+)\.", name)))
    for name, tensor in state_dict.items():
        found = _find(rules, name)
        if found is None:
            unknown.append(name)
            continue
        rule, groups = found
        if rule.target is None:
            dropped[name] = rule.reason
        elif rule.per_block:
            tables.update({int(groups["i"]): tensor} if "i" in groups else dict.fromkeys(range(num_blocks), tensor))
        else:
            converted[rule.target.format(**groups)] = tensor
    if unknown:
        raise ValueError(f"The checkpoint has tensors that no BEiT has: {enumerate_names(unknown)}.")
    if tables:
        if absent := sorted(set(range(num_blocks)) - set(tables)):
            raise ValueError(f"Block {', '.join(map(str, absent))} of the BEiT has no relative_position_bias_table.")
        joined = join_blocks([tables[i] for i in range(num_blocks)])
        text_rows = joined.new_zeros(2 * max_text_length_of_table + 2, joined.shape[1])
        converted[_TABLE] = torch.cat((joined, text_rows))
    return converted, dropped


@dataclass(frozen=True)
class ConversionResult:
    """What `convert_state_dict` made.

    state_dict: our names, everything that the file gives. head: the key in `HEADS` that it is for.
    source: the tensors in original names before any change of size, of a BEiT after `beit_to_vlmo`.
    dropped: {original name: reason}; resized: {original name: what was done}; new: our names that the file lacks.
    """

    state_dict: dict[str, torch.Tensor]
    head: str
    source: dict[str, torch.Tensor]
    dropped: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: MomeConfig, head: str | None = None, *, layout: Layout = VLMO
) -> ConversionResult:
    """Rename and split the tensors of an original checkpoint for a model of ours.

    A configuration other than the file's starts another stage, as the original does: positions of another image size
    are interpolated, the text position table is cut to `max_text_length`, the type table grows by a copy of the
    pictures' row. With another `head` than the file's (and with a BEiT file, which starts `masked_lm`), tensors of
    other heads are dropped, and the new head, vision-language experts of a file without any and, after BEiT, the
    text's side are listed as new. Anything else that is left over, missing or of another shape is an error.

    Args:
        state_dict: of VLMo or BEiT, see `load_checkpoint`; may lie on the meta device.
        config: of the model that is filled, see `infer_config`.
        head: key in `HEADS`; the one that the names show by default.
        layout: of the architecture that is made.

    Raises ValueError that names the tensors.
    """
    recognised = layout.recognise(state_dict)
    head = head or layout.default_head(state_dict)
    if head == "nlvr2" and config.type_vocab_size < 3:
        raise ValueError(f"NLVR2 models need type_vocab_size=3, one for each picture, not {config.type_vocab_size}.")
    prefix = layout.prefix if head == "base" else ""
    shapes = {prefix + name: tensor.shape for name, tensor in empty_model(config, head, layout).state_dict().items()}
    source, dropped = dict(state_dict), {}
    if recognised == BEIT:
        source, dropped = beit_to_vlmo(state_dict, config.max_text_length_of_table, layout.beit_rules)
    fitted, resized = _fit(source, config)

    converted: dict[str, torch.Tensor] = {}
    unknown, misplaced = [], []
    for name, tensor in fitted.items():
        found = _find(layout.rules, name)
        if found is None:
            unknown.append(name)
            continue
        rule, groups = found
        if rule.target is None:
            dropped[name] = rule.reason
            continue
        targets = [rule.target.format(**groups)] if not rule.per_block else _of_all_blocks(rule, config)
        if all(target in shapes for target in targets) and rule.head in (None, head):
            tensors = split_by_block(tensor, config.num_hidden_layers) if rule.per_block else [tensor]
            converted.update(zip(targets, tensors, strict=True))
        elif head != recognised and not targets[0].startswith(layout.prefix):
            dropped[name] = f"belongs to another head than {head}"
        else:
            misplaced.append(name)
    if unknown:
        raise ValueError(
            f"The checkpoint has tensors that no {layout.title} model has: {enumerate_names(unknown)}. If they are "
            f"of another head than the known ones ({', '.join(layout.heads)}), take them out of the file."
        )
    if misplaced:
        raise ValueError(
            f"{layout.heads[head]} with this configuration has no place for {enumerate_names(misplaced)}. Check the "
            "configuration (number of blocks, first block with a vision-language expert, positions) and the head."
        )
    wrong = [
        f"{original_name(name, head, layout)} is {list(tensor.shape)}, not {list(shapes[name])}"
        for name, tensor in converted.items()
        if tensor.shape != shapes[name]
    ]
    if wrong:
        raise ValueError(f"Tensors do not have the sizes of the configuration: {enumerate_names(wrong, 6)}.")
    new = _check_missing(shapes, converted, head, layout, starts=head != recognised, from_beit=recognised == BEIT)
    if head == "base":
        converted = {name.removeprefix(layout.prefix): tensor for name, tensor in converted.items()}
        new = [name.removeprefix(layout.prefix) for name in new]
    return ConversionResult(converted, head, source, dropped, resized, new)


def revert_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    config: MomeConfig,
    head: str,
    *,
    index_tables: bool = False,
    layout: Layout = VLMO,
) -> dict[str, torch.Tensor]:
    """Our tensors under the original names, the inverse of `convert_state_dict`.

    Args:
        state_dict: all tensors of the model class of `head`.
        index_tables: with the three tables of positions' indices, as published files have them; the original's loader
            fails without them when the image size changes. The one of pairs is float32 there.
        layout: of the architecture.

    Raises ValueError for tensors that the original has no name for.
    """
    reverted: dict[str, torch.Tensor] = {}
    tables: dict[int, torch.Tensor] = {}
    unknown = []
    rules = layout.rules_of(head)
    for name, tensor in state_dict.items():
        found = _find(rules, layout.prefix + name if head == "base" else name, side="target")
        if found is None:
            unknown.append(name)
        elif found[0].per_block:
            tables[int(found[1]["i"])] = tensor
        else:
            reverted[found[0].source.format(**found[1])] = tensor
    if unknown:
        raise ValueError(f"The original {layout.title} has no name for {enumerate_names(unknown)}.")
    if tables:
        reverted[_TABLE] = join_blocks([tables[i] for i in sorted(tables)])
    reverted["text_embeddings.position_ids"] = torch.arange(config.max_text_length)[None]
    if index_tables and config.use_relative_position_bias:
        image = make_image_position_index(config.window_size)
        length = config.max_text_length_of_table
        text = make_text_position_index(config.max_text_length, config.window_size, length)
        reverted["relative_position_index"] = image
        reverted["text_relative_position_index"] = text
        reverted["text_imag_relative_position_index"] = make_pair_position_index(
            text, image, config.window_size
        ).float()
    return reverted


def check_round_trip(result: ConversionResult, config: MomeConfig, layout: Layout = VLMO) -> int:
    """Go back to the original names and compare bit for bit; returns the number of tensors that were compared.

    Left out are the tensors that were dropped or resized. Raises RuntimeError, a fault of the conversion, when one
    differs.
    """
    reverted = revert_state_dict(result.state_dict, config, result.head, layout=layout)
    compared = [name for name in result.source if name not in result.dropped and name not in result.resized]
    differing = [
        name for name in compared if name not in reverted or not torch.equal(reverted[name], result.source[name])
    ]
    if differing:
        raise RuntimeError(f"Converted back, these tensors differ from the file: {enumerate_names(differing)}.")
    return len(compared)


def original_name(name: str, head: str, layout: Layout = VLMO) -> str:
    """The original name of one of our parameters (with the prefix `vlmo.`, or that of the layout)."""
    found = _find(layout.rules_of(head), name, side="target")
    return name if found is None else found[0].source.format(**found[1])


def model_class(head: str) -> type:
    """The class of a key in `HEADS`; raises ValueError for others."""
    return VLMO.model_class(head)


def empty_model(config: MomeConfig, head: str, layout: Layout = VLMO):
    """The model of a head without memory for its parameters, on the meta device; `config` is copied."""
    with torch.device("meta"):
        return layout.model_class(head)(copy.deepcopy(config))


def _of_all_blocks(rule: Rule, config: MomeConfig) -> list[str]:
    return [rule.target.format(i=i) for i in range(config.num_hidden_layers)]


def _fit(source: dict[str, torch.Tensor], config: MomeConfig) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Give the tables of positions and types the sizes of the configuration where the original does so too."""
    fitted, resized = dict(source), {}
    window = config.window_size
    table, positions = source.get(_TABLE), source.get(_POSITIONS)
    text_positions, types = source.get(_TEXT_POSITIONS), source.get(_TYPES)
    if table is not None and config.use_relative_position_bias:
        length = config.max_text_length_of_table
        before = _window_of(table.shape[0], length)
        if before not in (None, window):
            fitted[_TABLE] = interpolate_position_bias_table(table, before, window, length)
            resized[_TABLE] = f"interpolated from {before}x{before} to {window}x{window} patches"
    if positions is not None and positions.shape[1] != window**2 + 1:
        before = math.isqrt(positions.shape[1] - 1)
        fitted[_POSITIONS] = interpolate_position_embeddings(positions, window)
        resized[_POSITIONS] = f"interpolated from {before}x{before} to {window}x{window} patches"
    if text_positions is not None and text_positions.shape[0] > config.max_text_length:
        fitted[_TEXT_POSITIONS] = text_positions[: config.max_text_length].contiguous()
        resized[_TEXT_POSITIONS] = f"first {config.max_text_length} of {text_positions.shape[0]} rows"
    if types is not None and types.shape[0] == 2 and config.type_vocab_size == 3:
        fitted[_TYPES] = torch.cat((types, types[1:]))
        resized[_TYPES] = "third row, of second pictures, copied from the second"
    return fitted, resized


def _group(name: str, prefix: str) -> str:
    """The part of a model that is there as a whole or not at all."""
    if not name.startswith(prefix):
        return f"head {name.split('.')[0]}"
    name = name.removeprefix(prefix)
    if found := re.match(r"layers\.\d+\.experts\.(\w+)\.", name):
        return f"{found[1]} experts"
    return "attention" if name.startswith("layers.") else name.split(".")[0]


_NEW_AFTER_BEIT = ("text experts", "text_embeddings", "token_type_embeddings", "pooler", "norm", "vl experts")


def _check_missing(
    shapes: Mapping[str, torch.Size],
    converted: Mapping[str, torch.Tensor],
    head: str,
    layout: Layout,
    *,
    starts: bool,
    from_beit: bool,
) -> list[str]:
    """Names that the file lacks, all of them of parts that a new stage begins with; raises ValueError for others."""
    absent = [name for name in shapes if name not in converted]
    groups = {name: _group(name, layout.prefix) for name in shapes}
    present = {groups[name] for name in converted}
    allowed = _NEW_AFTER_BEIT if from_beit else ("vl experts",)
    missing = [
        name
        for name in absent
        if not starts or groups[name] in present or not (groups[name].startswith("head ") or groups[name] in allowed)
    ]
    if not missing:
        return absent
    by_block: dict[str, list[str]] = {}
    for name in missing:
        original = original_name(name, head, layout) if ".position_bias_table" not in name else _TABLE
        found = re.fullmatch(r"transformer\.blocks\.(\d+)\.(.+)", original)
        names = by_block.setdefault(f"block {found[1]}: " if found else "", [])
        if (short := found[2] if found else original) not in names:
            names.append(short)
    listed = "; ".join(block + enumerate_names(names) for block, names in by_block.items())
    raise ValueError(f"The checkpoint lacks tensors of {layout.heads[head]} with this configuration. {listed}.")


_RUN_SETTINGS = {"image_size": "image_size", "max_text_len_of_initckpt": "max_text_length_of_table"}


def read_run_settings(settings: Mapping[str, Any]) -> dict[str, int]:
    """Fields for `infer_config` from the hyperparameters that the original's trainer stores beside the tensors."""
    run = settings.get("hyper_parameters", {})
    run = run.get("config", run) if isinstance(run, Mapping) else {}
    known = {}
    if isinstance(run, Mapping):
        known = {ours: run[theirs] for theirs, ours in _RUN_SETTINGS.items() if type(run.get(theirs)) is int}
    return known


# Names in recordings of the original -> ours, where they differ.
_INPUT_NAMES = {"mlm_labels": "labels", "targets": "labels"}
_OUTPUT_NAMES = {
    "image_features": "image_embeds",
    "text_features": "text_embeds",
    "image_vl_features": "image_vl_embeds",
    "text_vl_features": "text_vl_embeds",
    "itc_logits_per_image": "logits_per_image",
    "itc_logits_per_text": "logits_per_text",
    "itc_vl_logits_per_image": "vl_logits_per_image",
    "mlm_loss": "losses.mlm",
    "itc_loss": "losses.itc",
    "itm_loss": "losses.itm",
    "total_loss": "loss",
}


def convert(
    checkpoint: str | Path,
    output: str | Path,
    *,
    head: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    size: str | None = None,
    vocab: str | Path | None = None,
    labels: str | Path | None = None,
    parity: tuple[str | Path, str | Path] | None = None,
    tolerance: float = 1e-4,
    reverse: bool = False,
    push_to_hub: str | None = None,
) -> ConversionReport | Path:
    """Make a repository of ours from a file of the original; returns the report.

    Everything is checked before anything is written: no tensor left over, strict loading, every tensor the same bit
    for bit after the way back, finite outputs on random input, and recorded outputs with `parity`. The repository with
    weights, code, processor, card and `conversion_report.json` appears whole or not at all.

    Args:
        checkpoint: .pt, .pth, .ckpt or .safetensors, of VLMo or BEiT, see `load_checkpoint`. Half precision becomes
            float32.
        head: key in `HEADS`; by default the one that the file shows. Another one starts a further stage, see
            `convert_state_dict`.
        config: fields of `VlmoConfig`, or a JSON file with them: what the tensors cannot tell, and what shall differ
            from the file (`image_size`, `max_text_length`, rates of dropout, ...).
        size: key in `PUBLISHED_SIZES` that the file must have.
        vocab: the vocabulary of the tokenizer, a WordPiece to a line, or a folder with a `vocab.txt`; without it the
            repository has no tokenizer.
        labels: names of the classes in order: a line each, or JSON as a list or {name: number} or {number: name}.
        parity: safetensors files with inputs and outputs of the original, see `compare_outputs`.
        tolerance: of `parity`.
        reverse: the other way, see `convert_back`; takes no further options, and returns the path of the file.
        push_to_hub: id to which the repository is uploaded.

    Raises ValueError or OSError with the reason; what was in `output` before then still is.
    """
    if reverse:
        given = {"head": head, "config": config, "size": size, "vocab": vocab, "labels": labels, "parity": parity}
        given["push_to_hub"] = push_to_hub
        return convert_back(checkpoint, output, given=given)
    loaded = load_checkpoint(checkpoint, float32=True)
    fields = read_fields(config, VlmoConfig)
    inferred = infer_config(loaded.state_dict, **{**read_run_settings(loaded.settings), **fields})
    check_size(inferred, size)
    head = head or default_head(loaded.state_dict)
    starts = head != inferred.head
    wanted = {**inferred.config, **(_fields_of_next_stage(inferred, head, fields) if starts else {}), **fields}
    wanted = name_classes(wanted, labels, head, starts=starts)
    model_config = VlmoConfig(**wanted)
    compare = None
    if parity is not None:
        of_stage_2 = head == "masked_lm"
        compare = partial(
            compare_outputs,
            inputs=Path(parity[0]),
            expected=Path(parity[1]),
            tolerance=tolerance,
            input_names=_INPUT_NAMES | ({"mlm_input_ids": "input_ids"} if of_stage_2 else {}),
            output_names=_OUTPUT_NAMES | ({"mlm_logits": "logits", "mlm_loss": "loss"} if of_stage_2 else {}),
            drop_inputs=("input_ids",) if of_stage_2 else (),
        )
    return write_repository(
        output,
        loaded=loaded,
        recognised=inferred.head,
        result=convert_state_dict(loaded.state_dict, model_config, head),
        config=model_config,
        fields=wanted,
        size=inferred.size,
        inputs=_random_inputs(model_config, head),
        compare=compare,
        vocab=vocab,
        card_options={"checkpoint": _published_name(loaded, inferred.size, head)},
        push_to_hub=push_to_hub,
    )


def check_size(inferred: InferredConfig, size: str | None) -> None:
    """Raise ValueError for a model that is not of the size that it must have."""
    if size not in (None, *PUBLISHED_SIZES):
        raise ValueError(f"Unknown size {size!r}. Published sizes: {', '.join(PUBLISHED_SIZES)}.")
    if size is not None and inferred.size != size:
        found = {name: inferred.config[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size")}
        raise ValueError(f"The file is not of the size {size!r}, but {inferred.size or 'unpublished'}: {found}.")


def name_classes(
    fields: dict[str, Any], labels: str | Path | None, head: str, *, starts: bool, layout: Layout = VLMO
) -> dict[str, Any]:
    """The fields of a configuration with the names of the classes in the place of their number.

    Args:
        fields: of the configuration. labels: see `convert`.
        head: key in the layout's heads. starts: the file does not have it.

    Raises ValueError for names that do not fit, and when nothing tells how many classes a new head has.
    """
    if names := _read_labels(labels):
        if head not in WITH_CLASSES:
            raise ValueError(f"{layout.heads[head]} has no classes that labels could name.")
        if not starts and len(names) != fields["num_labels"]:
            raise ValueError(f"{labels} names {len(names)} classes, the file has {fields['num_labels']}.")
    elif head == "nlvr2" and fields.get("num_labels", 2) == 2:
        names = ["False", "True"]
    elif starts and head in WITH_CLASSES and not {"num_labels", "id2label"} & set(fields):
        raise ValueError(f"How many classes shall the new {head} head have? Give labels, or num_labels in the config.")
    if not names:
        return fields
    return {
        **{name: value for name, value in fields.items() if name != "num_labels"},
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
    }


def write_repository(
    output: str | Path,
    *,
    loaded: LoadedCheckpoint,
    recognised: str,
    result: ConversionResult,
    config: MomeConfig,
    fields: Mapping[str, Any],
    size: str | None,
    inputs: Mapping[str, Any],
    compare: Callable[[Any], str] | None = None,
    vocab: str | Path | None = None,
    notes: Sequence[str] = (),
    card_options: Mapping[str, Any] | None = None,
    push_to_hub: str | None = None,
    layout: Layout = VLMO,
) -> ConversionReport:
    """Check converted tensors, then write the repository of a model with them; the second half of `convert`.

    Args:
        loaded: the file. recognised: what `layout.recognise` found in it. result: its tensors in our names; values
            for names in `result.new` win over initial ones.
        config: of the model. fields: those of it that the report tells. size: name of the published size.
        inputs: of a trial. compare: takes the model, returns a line for the report, and raises when outputs differ.
        notes: further lines of the report. card_options: of `make_card`.
        layout: of the architecture.

    Raises ValueError with the reason; nothing is written then.
    """
    head = result.head
    broken = [name for name, value in result.state_dict.items() if not torch.isfinite(value).all()]
    if broken:
        originals = [original_name(name, head, layout) for name in broken]
        raise ValueError(f"The file holds NaN or infinite values: {enumerate_names(originals)}. It is damaged.")
    checks = [f"{check_round_trip(result, config, layout)} tensors converted back, equal bit for bit"]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # new parameters are the same in every conversion
        model = layout.model_class(head)(config)
    fresh = {name: tensor for name, tensor in model.state_dict().items() if name in result.new}
    model.load_state_dict({**fresh, **result.state_dict}, strict=True)
    checks.append("strict loading into the model")
    checks.append(check_finite_outputs(model, inputs))
    if compare is not None:
        checks.append(compare(model))
    processor, lacking = _make_processor(config, vocab)
    if result.new:
        lacking.append("New parameters have initial values (of seed 0): train the model before it is used.")
    report = ConversionReport(
        architecture=layout.name,
        head=head,
        recognised_as=recognised,
        model_class=layout.heads[head],
        source=describe_source(loaded),
        size=size or "other",
        config={name: value for name, value in fields.items() if name not in ("id2label", "label2id")},
        tensors_read=len(loaded.state_dict),
        tensors_written=len(model.state_dict()),
        dropped=result.dropped,
        resized=result.resized,
        new=result.new,
        checks=checks,
        notes=[*lacking, *notes],
    )
    options = {"description": describe_conversion(loaded), "converted_from": loaded.path.name, **(card_options or {})}
    save_repository(
        output,
        model=model,
        processor=processor,
        card=make_card(model, **options),
        extra_files={FILE_NAME: report.to_dict()},
    )
    if push_to_hub is not None:
        from hf_vlp.hub.push import push_repository

        report.notes.append(f"Pushed to {push_repository(output, push_to_hub)}.")
    return report


def convert_back(
    repository: str | Path, output: str | Path, *, given: Mapping[str, Any] | None = None, layout: Layout = VLMO
) -> Path:
    """Write a saved model of ours as a flat file in the layout of the published ones, index tables included.

    Args:
        repository: folder or Hub id of a model with a head of the original.
        output: .pt or .safetensors; an existing file is replaced once the new one is whole.
        given: options of `convert`, none of which has a meaning here.
        layout: of the architecture.

    Raises ValueError for models that the original has no layout for, and for options that are not `None`.
    """
    if superfluous := [name for name, value in (given or {}).items() if value is not None]:
        raise ValueError(f"The way back takes no {', '.join(superfluous)}: the repository knows what it holds.")
    output = Path(output)
    if output.suffix not in (".pt", ".pth", ".ckpt", ".safetensors"):
        raise ValueError(f"{output} must end in .pt, .pth, .ckpt or .safetensors: it becomes one file.")
    if output.is_dir():
        raise ValueError(f"{output} is a folder; name the file that is to be written.")
    config = layout.config_class.from_pretrained(repository)
    classes = {name: head for head, name in layout.heads.items() if head not in layout.without_original}
    head = next((classes[name] for name in config.architectures or [] if name in classes), None)
    if head is None:
        raise ValueError(
            f"{repository} holds {config.architectures}, for which the original has no layout. Known: "
            f"{', '.join(classes)}."
        )
    model, info = layout.model_class(head).from_pretrained(repository, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{repository} lacks weights: {enumerate_names(sorted(info['missing_keys']))}.")
    reverted = revert_state_dict(model.state_dict(), model.config, head, index_tables=True, layout=layout)
    reverted = {name: tensor.detach().contiguous() for name, tensor in reverted.items()}
    with staged_directory(output.absolute().parent) as staging:
        if output.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(reverted, staging / output.name)
        else:
            torch.save(reverted, staging / output.name)
    return output


def _published_name(loaded: LoadedCheckpoint, size: str | None, head: str) -> str | None:
    """The name of the published file that this one is by its name, size and head, for the card."""
    name = loaded.path.stem
    if name not in published_checkpoints():
        return None
    data = load_checkpoint_data(name)
    return name if (data["size"], data["model_class"]) == (size, HEADS[head]) else None


def read_fields(config: str | Path | Mapping[str, Any] | None, config_class: type) -> dict[str, Any]:
    """Fields of a configuration that were given, alone or in a JSON file; raises ValueError for unknown ones."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        config = _read_json(config)
        if not isinstance(config, Mapping):
            raise ValueError("The configuration must be a JSON object {field: value}.")
    known = set(config_class().to_dict()) | {"num_labels"}
    if unknown := sorted(set(config) - known):
        raise ValueError(f"{config_class.__name__} has no field {enumerate_names(unknown)}.")
    return dict(config)


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}).") from error


def _read_labels(path: str | Path | None) -> list[str] | None:
    """Names of classes in order from a text or JSON file; raises ValueError when numbers are not 0, 1, 2, ..."""
    if path is None:
        return None
    if Path(path).suffix != ".json":
        return [line for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    content = _read_json(path)
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return content
    if isinstance(content, Mapping):
        if all(isinstance(value, int) for value in content.values()):
            content = {value: name for name, value in content.items()}
        by_number = {int(key): name for key, name in content.items() if str(key).isdigit()}
        if len(by_number) == len(content) and sorted(by_number) == list(range(len(by_number))):
            return [str(by_number[index]) for index in range(len(by_number))]
    raise ValueError(f"{path} must be a list of names, {{name: number}} or {{number: name}} with numbers from 0 on.")


def _fields_of_next_stage(inferred: InferredConfig, head: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the file when it starts another stage, as in the original's recipes."""
    fields: dict[str, Any] = {}
    if inferred.head in (BEIT, "masked_lm") and head not in ("masked_lm", "base"):
        fields["max_text_length"] = min(_default("max_text_length"), inferred.config["max_text_length"])
        if inferred.size is not None:
            fields["vl_expert_start_layer"] = published_field(inferred.size, "vl_expert_start_layer")
        elif "vl_expert_start_layer" not in given:
            raise ValueError(
                f"Starting {head} from {inferred.head} adds vision-language experts. Give vl_expert_start_layer, the "
                "first block with one (in `config`; on the command line in the JSON file of --config)."
            )
    if head == "nlvr2":
        fields["type_vocab_size"] = 3
    if head == "retrieval":
        fields["use_matching_head"] = inferred.head == "pretraining"
    return fields


def random_pairs(config: MomeConfig) -> dict[str, torch.Tensor]:
    """Two pictures with texts, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    length = min(8, config.max_text_length)
    picture = (config.num_channels, config.image_size, config.image_size)
    pixels = torch.randn(2, *picture, generator=generator)
    ids = torch.randint(config.vocab_size, (2, length), generator=generator)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _random_inputs(config: VlmoConfig, head: str) -> dict[str, torch.Tensor]:
    """A batch of two for each model class."""
    inputs = random_pairs(config)
    pixels, ids = inputs["pixel_values"], inputs["input_ids"]
    if head == "masked_lm":
        del inputs["pixel_values"]
    elif head == "image_classification":
        inputs = {"pixel_values": pixels}
    elif head == "nlvr2":
        inputs = {"pixel_values": pixels[None], "input_ids": ids[:1], "attention_mask": torch.ones_like(ids[:1])}
    elif head == "pretraining":
        swapped = torch.tensor((1, 0))
        inputs |= {"mlm_input_ids": ids, "labels": ids}
        inputs |= {"itm_negative_image_index": swapped, "itm_negative_text_index": swapped}
    return inputs


def _make_processor(config: MomeConfig, vocab: str | Path | None):
    """The processor of a model, or its image processor alone without a vocabulary, and notes for the report."""
    from hf_vlp.models.mome.processing_mome import MomeImageProcessor, MomeProcessor

    image_processor = MomeImageProcessor(size={"height": config.image_size, "width": config.image_size})
    if vocab is None:
        return image_processor, [
            "No vocabulary was given, so the repository has no tokenizer. Convert again with vocab (--vocab), the "
            "file vocab.txt of bert-base-uncased for the published files."
        ]
    from transformers import BertTokenizer

    vocab = Path(vocab) / "vocab.txt" if Path(vocab).is_dir() else Path(vocab)
    if not vocab.is_file():
        raise FileNotFoundError(f"There is no vocabulary {vocab}.")
    tokenizer = BertTokenizer(vocab=str(vocab), do_lower_case=True, model_max_length=config.max_text_length)
    if len(tokenizer) != config.vocab_size:
        raise ValueError(f"{vocab} has {len(tokenizer)} entries, the model's vocabulary {config.vocab_size}.")
    return MomeProcessor(image_processor, tokenizer), []


__all__ = [
    "BEIT_RULES",
    "HEADS",
    "RULES",
    "ConversionResult",
    "InferredConfig",
    "Rule",
    "beit_to_vlmo",
    "check_round_trip",
    "convert",
    "convert_back",
    "convert_state_dict",
    "empty_model",
    "infer_config",
    "join_blocks",
    "model_class",
    "original_name",
    "published_size",
    "read_run_settings",
    "recognise_head",
    "revert_state_dict",
    "split_by_block",
]
