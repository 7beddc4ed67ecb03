"""Checkpoints of BEiT, BEiT v2 and VLMo, to models of VL-BEiT and back.

VL-BEiT ("VL-BEiT: Generative Vision-Language Pretraining", https://arxiv.org/abs/2206.01127) was never released, so
no file has a layout of its own. What stands for one here is VLMo's, whose block it has, with `mask_token` and
`mim_score.{weight,bias}` for hidden patches, and BEiT's `fc_norm` and `head` for a classifier of pictures.

>>> from hf_vlp.conversion.vl_beit import convert
>>> print(convert("beitv2_base_patch16_224_pt1k.pth", "vl-beit-start", head="pretraining", vocab="vocab.txt"))
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from hf_vlp.conversion import vlmo
from hf_vlp.conversion.checks import compare_outputs
from hf_vlp.conversion.report import ConversionReport, enumerate_names
from hf_vlp.conversion.safe_load import LoadedCheckpoint, load_checkpoint
from hf_vlp.conversion.vlmo import BEIT, VLMO, ConversionResult, InferredConfig, Layout, Rule
from hf_vlp.models.mome import modeling_vlmo
from hf_vlp.models.mome.configuration_mome import MomeConfig, first_vl_block
from hf_vlp.models.mome.configuration_vl_beit import VL_BEIT_SIZES, VlBeitConfig
from hf_vlp.models.mome.configuration_vlmo import VlmoConfig

HEADS = {
    "pretraining": "VlBeitForPreTraining",
    "masked_image": "VlBeitForMaskedImageModeling",
    "masked_lm": "VlBeitForMaskedLM",
    "vqa": "VlBeitForVisualQuestionAnswering",
    "nlvr2": "VlBeitForImagesAndTextClassification",
    "retrieval": "VlBeitForImageTextRetrieval",
    "image_classification": "VlBeitForImageClassification",
    "semantic_segmentation": "VlBeitForSemanticSegmentation",
    "base": "VlBeitModel",
}
# What is recognised beside heads and `BEIT`: VLMo with other objectives than ours, or in a repository.
VLMO_MODEL = "vlmo"

_PREFIX = "vl_beit."
_TYPES = "token_type_embeddings.weight"
_WITHOUT_PAIRS = ("masked_image", "masked_lm", "image_classification", "semantic_segmentation", "base")
_CLASSES = ("num_labels", "id2label", "label2id")
_SETTINGS_OF_A_RUN = ("drop_path_rate", "text_dropout")

RULES = (
    *(rule._replace(target=rule.target and rule.target.replace(VLMO.prefix, _PREFIX, 1)) for rule in vlmo.RULES),
    Rule("mask_token", "mask_token"),
    Rule("mim_score.{p}", "mim_head.{p}"),
    Rule("fc_norm.{p}", "classifier.norm.{p}", head="image_classification"),
    Rule("head.{p}", "classifier.output.{p}", head="image_classification"),
)

# BEiT -> the names above: as for VLMo, but VL-BEiT has a place for the heads.
_HEADS_OF_BEIT = {
    "mask_token": "mask_token",
    "lm_head.{p}": "mim_score.{p}",
    "fc_norm.{p}": "fc_norm.{p}",
    "head.{p}": "head.{p}",
}
BEIT_RULES = tuple(
    rule._replace(target=_HEADS_OF_BEIT.get(rule.source, rule.target), reason="")
    if rule.source in _HEADS_OF_BEIT
    else rule
    for rule in vlmo.BEIT_RULES
)


def recognise_head(state_dict: Mapping[str, torch.Tensor]) -> str:
    """The key in `HEADS` that the names of the tensors show, `BEIT`, or `VLMO_MODEL`; ValueError for none of them."""
    recognised = vlmo.recognise_head(state_dict)
    if recognised == BEIT:
        return BEIT
    if "mim_score.weight" in state_dict:
        return "pretraining" if "mlm_score.bias" in state_dict else "masked_image"
    if "fc_norm.weight" in state_dict:
        return "image_classification"
    return VLMO_MODEL if recognised == "pretraining" else recognised


def default_head(state_dict: Mapping[str, torch.Tensor]) -> str:
    """The key in `HEADS` of what is made of a file: what it shows; of a BEiT that classifies, a classifier."""
    recognised = recognise_head(state_dict)
    if recognised == BEIT:
        return "image_classification" if {"fc_norm.weight", "head.weight"} <= set(state_dict) else "masked_image"
    return "pretraining" if recognised == VLMO_MODEL else recognised


VL_BEIT = Layout(
    name="vl_beit",
    title="VL-BEiT",
    heads=HEADS,
    rules=RULES,
    beit_rules=BEIT_RULES,
    config_class=VlBeitConfig,
    recognise=recognise_head,
    default_head=default_head,
    without_original=("semantic_segmentation",),
)


def infer_config(state_dict: Mapping[str, torch.Tensor], **known: Any) -> InferredConfig:
    """Read the sizes of a model from its tensors, those of a BEiT or VLMo in original names.

    As `hf_vlp.conversion.vlmo.infer_config`, with fields of `VlBeitConfig`: a BEiT gets the default length of texts,
    and, at a published size, vision-language experts where that size has them; without one it gets none.
    """
    inferred = vlmo.infer_config(state_dict, **known)
    config = inferred.config
    head = recognise_head(state_dict)
    if head == BEIT:
        length = config.get("max_text_length_of_table", VlBeitConfig().max_text_length_of_table)
        config["max_text_length"] = min(VlBeitConfig().max_text_length, length)
        if inferred.size is not None and known.get("vl_expert_start_layer") is None:
            config["vl_expert_start_layer"] = vlmo.published_field(inferred.size, "vl_expert_start_layer")
        if inferred.size in VL_BEIT_SIZES and "layer_scale_init_value" not in config:
            sizes = VL_BEIT_SIZES[inferred.size]
            config["layer_scale_init_value"] = VlBeitConfig(**sizes).layer_scale_init_value
    for name in ("lm_head.weight", "mim_score.weight"):
        if name in state_dict:
            config["visual_vocab_size"] = len(state_dict[name])
    if "head.weight" in state_dict and default_head(state_dict) == "image_classification":
        config["num_labels"] = len(state_dict["head.weight"])
    return InferredConfig(config, head, inferred.size)


def convert_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    config: VlBeitConfig,
    head: str | None = None,
    *,
    layout: Layout = VL_BEIT,
) -> ConversionResult:
    """Rename and split the tensors of a BEiT or VLMo for a model of ours, see `vlmo.convert_state_dict`.

    After BEiT the type embeddings, which it lacks, are 0 in place of random, so that a picture gives what it gives in
    BEiT. (A decision of this package; they are listed as new all the same.)
    """
    result = vlmo.convert_state_dict(state_dict, config, head, layout=layout)
    name = _TYPES if result.head == "base" else _PREFIX + _TYPES
    if name in result.new:
        like = next(tensor for tensor in result.state_dict.values() if tensor.is_floating_point())
        result.state_dict[name] = like.new_zeros(config.type_vocab_size, config.hidden_size)
    return result


# Names in recordings of the original -> ours, where they differ. One tensor of a recording may serve several inputs.
_INPUT_NAMES = {"visual_tokens": "visual_token_ids"}
_OUTPUT_NAMES = {"logits_all": "logits"}
_JOINT_INPUT_NAMES = {
    "text_masked_50": "input_ids",
    "text_labels_50": "labels",
    "attention_mask": ("attention_mask", "text_attention_mask"),
    "pixel_values": ("pixel_values", "image_pixel_values"),
    "bool_masked_pos": ("bool_masked_pos", "image_bool_masked_pos"),
    "visual_tokens": ("visual_token_ids", "image_visual_token_ids"),
    "text_masked_15": "text_input_ids",
    "text_labels_15": "text_labels",
}
_JOINT_OUTPUT_NAMES = {
    "text_logits": "mlm_logits",
    "image_logits": "mim_logits",
    "pair_text_logits": "mvlm_text_logits",
    "pair_image_logits": "mvlm_image_logits",
    "text_loss": "losses.mlm",
    "image_loss": "losses.mim",
    "pair_text_loss": "losses.mvlm_text",
    "pair_image_loss": "losses.mvlm_image",
    "sum_of_four_losses": "loss",
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
    """Make a repository of VL-BEiT from a BEiT, BEiT v2 or VLMo; returns the report.

    Everything is checked before anything is written, as in `vlmo.convert`; whatever the source does not have (after
    BEiT all that belongs to texts) has initial values and is listed in the report.

    Args:
        checkpoint: .pt, .pth, .ckpt or .safetensors of BEiT, BEiT v2 or VLMo in original names, or the folder of a
            VLMo of ours. Half precision becomes float32.
        head: key in `HEADS`; by default the one that the file shows: a BEiT becomes a model for hidden patches or,
            when it was fine-tuned with averaged patches, a classifier; a pre-trained VLMo one for pre-training.
        config: fields of `VlBeitConfig`, or a JSON file with them.
        size, vocab, labels, parity, tolerance, push_to_hub: as in `vlmo.convert`.
        reverse: write a repository of VL-BEiT as one file in the layout of this module.

    Raises ValueError or OSError with the reason; what was in `output` before then still is.
    """
    if reverse:
        given = {"head": head, "config": config, "size": size, "vocab": vocab, "labels": labels, "parity": parity}
        return vlmo.convert_back(checkpoint, output, given={**given, "push_to_hub": push_to_hub}, layout=VL_BEIT)
    fields = vlmo.read_fields(config, VlBeitConfig)
    is_repository = Path(checkpoint).is_dir()
    if is_repository:
        inferred, made = _inspect_repository(Path(checkpoint))
        has_head = head in (None, made)
    else:
        loaded = load_checkpoint(checkpoint, float32=True)
        inferred = infer_config(loaded.state_dict, **{**vlmo.read_run_settings(loaded.settings), **fields})
        made = default_head(loaded.state_dict)
        # A classifying BEiT brings its head too.
        has_head = head in (None, made) and (inferred.head == made or made == "image_classification")
    vlmo.check_size(inferred, size)
    head = head or made
    read = {name: value for name, value in inferred.config.items() if has_head or name not in _CLASSES}
    wanted = {**read, **_fields_of_next_stage(inferred, head, has_head=has_head), **fields}
    wanted = vlmo.name_classes(wanted, labels, head, starts=not has_head, layout=VL_BEIT)
    model_config = VlBeitConfig(**wanted)
    if is_repository:
        loaded, result, layout = _convert_repository(Path(checkpoint), model_config, head)
    else:
        result, layout = convert_state_dict(loaded.state_dict, model_config, head), VL_BEIT
    compare = None
    if parity is not None:
        is_joint = head == "pretraining"
        compare = partial(
            compare_outputs,
            inputs=Path(parity[0]),
            expected=Path(parity[1]),
            tolerance=tolerance,
            input_names=_JOINT_INPUT_NAMES if is_joint else _INPUT_NAMES,
            output_names=_JOINT_OUTPUT_NAMES if is_joint else _OUTPUT_NAMES,
            drop_inputs=("input_ids",) if is_joint else (),
        )
    return vlmo.write_repository(
        output,
        loaded=loaded,
        recognised=inferred.head,
        result=result,
        config=model_config,
        fields=wanted,
        size=inferred.size,
        inputs=_random_inputs(model_config, head),
        compare=compare,
        vocab=vocab,
        notes=_notes(inferred.head),
        push_to_hub=push_to_hub,
        layout=layout,
    )


def _fields_of_next_stage(inferred: InferredConfig, head: str, *, has_head: bool) -> dict[str, Any]:
    """What differs from the file in a model that it starts."""
    fields: dict[str, Any] = {}
    layers, start = inferred.config["num_hidden_layers"], inferred.config["vl_expert_start_layer"]
    if head not in _WITHOUT_PAIRS and not has_head:
        fields["max_text_length"] = min(VlBeitConfig().max_text_length, inferred.config["max_text_length"])
        if start == layers:
            fields["vl_expert_start_layer"] = first_vl_block(layers)
    if head == "nlvr2":
        fields["type_vocab_size"] = 3
    if head == "retrieval" and not has_head:
        fields["use_matching_head"] = True
    return fields


def _inspect_repository(folder: Path) -> tuple[InferredConfig, str]:
    """Sizes of a VLMo of ours, and the key in `HEADS` of the model that has the same task."""
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == VL_BEIT.name:
        raise ValueError(f"{folder} holds a VL-BEiT, which every class of it loads with from_pretrained, unconverted.")
    if config.model_type != VLMO.name:
        by_model = " A folder of transformers' BEiT goes to VlBeitModel.from_beit_pretrained." * (
            config.model_type == "beit"
        )
        raise ValueError(
            f"{folder} holds a {config.model_type!r} model. A VL-BEiT is made of a VLMo, or of a BEiT's original "
            f"file.{by_model}"
        )
    head = _same_task(config)
    content = config.to_dict()
    shared = {field.name for field in dataclasses.fields(MomeConfig)}
    shared -= {field.name for field in dataclasses.fields(PreTrainedConfig)} | set(_SETTINGS_OF_A_RUN)
    fields = {name: content[name] for name in sorted(shared)}
    if head in vlmo.WITH_CLASSES:
        fields |= {"num_labels": config.num_labels, "id2label": config.id2label, "label2id": config.label2id}
    return InferredConfig(fields, VLMO_MODEL, vlmo.published_size(fields)), head


def _same_task(config: VlmoConfig) -> str:
    """The key in `HEADS` of the class with the name of the saved one."""
    name = config.architectures[0] if config.architectures else "a model of an unknown class"
    found = [head for head, ours in HEADS.items() if ours == name.replace("Vlmo", "VlBeit")]
    if not found:
        raise ValueError(f"The folder holds {name}, whose task VL-BEiT has no model for.")
    return found[0]


def _convert_repository(
    folder: Path, config: VlBeitConfig, head: str
) -> tuple[LoadedCheckpoint, ConversionResult, Layout]:
    """The file in the folder of a VLMo, its tensors for `config`, and the layout in which their names are known.

    Names differ in the prefix alone; sizes are changed as `from_pretrained` does.
    """
    file = folder / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"{folder} has no {file.name}: save the model again, as one file.")
    loaded = load_checkpoint(file)
    stored = AutoConfig.from_pretrained(folder)
    name = HEADS[_same_task(stored)].replace("VlBeit", "Vlmo")
    model, info = getattr(modeling_vlmo, name).from_pretrained(
        folder,
        output_loading_info=True,
        dtype=torch.float32,
        image_size=config.image_size,
        max_text_length=config.max_text_length,
        type_vocab_size=config.type_vocab_size,
    )
    if info["missing_keys"]:
        raise ValueError(f"{folder} lacks weights: {enumerate_names(sorted(info['missing_keys']))}.")
    tensors = model.state_dict()
    is_base = name == VLMO.heads["base"]
    rules = tuple(
        Rule(name, _PREFIX + name.removeprefix(VLMO.prefix) if is_base or name.startswith(VLMO.prefix) else name)
        for name in tensors
    )
    layout = dataclasses.replace(VL_BEIT, rules=rules, recognise=lambda _: VLMO_MODEL)
    result = convert_state_dict(tensors, config, head, layout=layout)
    for name, before in loaded.state_dict.items():
        if before.shape != tensors[name].shape:
            result.resized[name] = f"from {list(before.shape)} to {list(tensors[name].shape)}"
    return dataclasses.replace(loaded, state_dict=tensors), result, layout


def _random_inputs(config: VlBeitConfig, head: str) -> dict[str, torch.Tensor]:
    """A batch of two for each model class."""
    pairs = vlmo.random_pairs(config)
    texts = {name: pairs[name] for name in ("input_ids", "attention_mask")}
    pictures = {"pixel_values": pairs["pixel_values"]}
    hidden = {"bool_masked_pos": torch.arange(2 * config.window_size**2).view(2, -1) % 2 == 0}
    if head == "masked_lm":
        return texts
    if head in ("image_classification", "semantic_segmentation"):
        return pictures
    if head == "masked_image":
        return {**pictures, **hidden}
    if head == "nlvr2":
        return {"pixel_values": pairs["pixel_values"][None], **{name: ids[:1] for name, ids in texts.items()}}
    if head == "pretraining":
        return {**pairs, **hidden, **{f"text_{name}": ids for name, ids in texts.items()}}
    return pairs


def _notes(recognised: str) -> list[str]:
    notes = ["No weights of VL-BEiT were ever published. This is a start for training it, not the paper's model."]
    if recognised == BEIT:
        notes.append("Type embeddings, which BEiT lacks, are 0: a picture alone gives what it gives in BEiT.")
    return notes


__all__ = [
    "BEIT_RULES",
    "HEADS",
    "RULES",
    "VL_BEIT",
    "convert",
    "convert_state_dict",
    "default_head",
    "infer_config",
    "recognise_head",
]
