"""Conversion of VLMo's checkpoints against the goldens of the original code.

Covered: each golden checkpoint (six of VLMo in four nestings, one of BEiT): nesting, recognised head, sizes, no tensor
left over, strict loading into the model class, bit-equal way back with and without index tables; stage 2 into stage 3,
BEiT (fine-tuned, and merely pre-trained with one shared table) into stage 2, pre-training into NLVR2 and into VQA at a
larger picture, with the missing and unexpected names of `load_reports.json`; interpolated tables; the whole command on
each file, with the recorded outputs compared. All other numbers are in `test_vlmo.py`. Sizes come from the files
alone; `$HF_VLP_GOLDENS` names another folder.

Tolerance: 1e-5 for interpolated tables, computed in float64 here; 1e-4 for recorded outputs, whose sums are ordered
in another way; everything else must be equal.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vlmo import (
    HEADS,
    check_round_trip,
    convert,
    convert_state_dict,
    infer_config,
    model_class,
    original_name,
    revert_state_dict,
)
from hf_vlp.models.mome.configuration_vlmo import VlmoConfig
from hf_vlp.models.mome.mome_interpolation import interpolate_position_bias_table

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vlmo"
TABLES = 1e-5
HEAD_OF = {
    "pretrain": "pretraining",
    "stage2": "masked_lm",
    "vqa": "vqa",
    "nlvr2": "nlvr2",
    "retrieval": "retrieval",
    "baseplus": "pretraining",
}
INDEX_TABLES = ("relative_position_index", "text_relative_position_index", "text_imag_relative_position_index")
# Outputs that the command must have compared at least.
COMPARED = {
    "pretrain": {"mlm_logits", "itm_logits", "itc_logits_per_image", "mlm_loss", "itc_loss", "itm_loss"},
    "stage2": {"mlm_logits", "mlm_loss"},
    "vqa": {"logits", "loss"},
    "nlvr2": {"logits", "loss"},
    "retrieval": {"image_embeds", "text_embeds", "logits_per_image", "loss"},
    "baseplus": {"mlm_logits", "mlm_loss", "image_vl_features", "text_vl_features"},
}
MADE_ANEW = (*INDEX_TABLES, "text_embeddings.position_ids")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no goldens in {FOLDER}")


@pytest.fixture(scope="module")
def settings() -> dict:
    return json.loads((FOLDER / "config.json").read_text())


@pytest.fixture(scope="module")
def reports() -> dict:
    return json.loads((FOLDER / "load_reports.json").read_text())


def known(settings, name: str) -> dict:
    """What the tensors of models that are no published size cannot tell."""
    if name == "baseplus":
        return {"num_attention_heads": settings["absolute_position_model"]["num_attention_heads"]}
    return {"max_text_length_of_table": settings["max_text_len_of_initckpt"]}


def read(settings, name: str) -> tuple[dict[str, torch.Tensor], dict]:
    tensors = load_checkpoint(FOLDER / f"{name}.pt", float32=True).state_dict
    return tensors, infer_config(tensors, **known(settings, name)).config


@pytest.fixture(params=HEAD_OF)
def name(request):
    return request.param


def test_the_nesting_is_peeled_and_told(name):
    content = torch.load(FOLDER / f"{name}.pt", weights_only=True)
    loaded = load_checkpoint(FOLDER / f"{name}.pt")
    wrapper = next((key for key in ("state_dict", "module", "model") if isinstance(content.get(key), dict)), None)
    inner = content[wrapper] if wrapper else content
    prefixed = all(key.startswith("module.") for key in inner)
    assert loaded.nesting == (*([wrapper] if wrapper else []), *(["module."] if prefixed else []))
    assert len(loaded.state_dict) == len(inner)
    assert set(loaded.ignored) == (set(content) - {wrapper} if wrapper else set())


def test_head_and_sizes_are_read_from_the_tensors(settings, name):
    tensors, _ = read(settings, name)
    inferred = infer_config(tensors, **known(settings, name))
    assert inferred.head == HEAD_OF[name]
    sizes = settings["absolute_position_model" if name == "baseplus" else "relative_bias_model"]
    config = VlmoConfig(**inferred.config)
    for field in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size"):
        assert getattr(config, field) == sizes[field]
    assert config.intermediate_size == sizes["mlp_ratio"] * sizes["hidden_size"]
    assert config.vl_expert_start_layer == (
        sizes["num_hidden_layers"] if name == "stage2" else sizes["vl_expert_start_layer"]
    )
    assert (config.layer_scale_init_value is not None) == sizes["layer_scale"]
    assert config.use_relative_position_bias == sizes["relative_position_bias"]
    assert config.use_absolute_position_embeddings != sizes["relative_position_bias"]
    assert config.image_size == settings["image_size"]
    assert config.max_text_length == settings["stage2_max_text_len" if name == "stage2" else "max_text_len"]
    assert config.vocab_size == settings["vocab_size"]
    assert config.type_vocab_size == (3 if name == "nlvr2" else 2)
    if name == "vqa":
        assert config.num_labels == settings["num_vqa_labels"]


def test_every_tensor_finds_its_place_and_its_way_back(settings, name):
    tensors, fields = read(settings, name)
    config = VlmoConfig(**fields)
    result = convert_state_dict(tensors, config)
    assert result.new == []
    assert result.resized == {}
    assert set(result.dropped) == set(MADE_ANEW) & set(tensors)
    check_round_trip(result, config)
    has_index = INDEX_TABLES[0] in tensors
    back = revert_state_dict(result.state_dict, config, result.head, index_tables=has_index)
    assert set(back) == set(tensors)
    for key, tensor in tensors.items():
        assert torch.equal(back[key], tensor), key
        assert back[key].dtype == tensor.dtype, key


def test_the_model_of_the_head_loads_strictly(settings, name):
    tensors, fields = read(settings, name)
    config = VlmoConfig(**fields)
    result = convert_state_dict(tensors, config)
    model = model_class(HEAD_OF[name])(config)
    model.load_state_dict(result.state_dict, strict=True)
    back = revert_state_dict(model.state_dict(), config, result.head)
    assert all(torch.equal(back[key], tensors[key]) for key in tensors if key not in INDEX_TABLES)


def test_stage_2_starts_stage_3(settings, reports):
    tensors, fields = read(settings, "stage2")
    start = settings["relative_bias_model"]["vl_expert_start_layer"]
    config = VlmoConfig(**{**fields, "max_text_length": settings["max_text_len"], "vl_expert_start_layer": start})
    result = convert_state_dict(tensors, config, "pretraining")
    missing = [original_name(key, "pretraining") for key in result.new]
    assert sorted(missing) == sorted(reports["stage2_to_stage3"]["missing"])
    unexpected = set(result.dropped) - set(MADE_ANEW)
    assert sorted(unexpected) == sorted(reports["stage2_to_stage3"]["unexpected"])
    assert set(result.resized) == {"text_embeddings.position_embeddings.weight"}
    back = revert_state_dict(result.state_dict, config, "pretraining")
    for key, tensor in load_file(FOLDER / "stage2_to_stage3_expected.safetensors").items():
        assert torch.equal(back[key], tensor), key
    check_round_trip(result, config)


@pytest.fixture(params=["fine-tuned", "merely pre-trained"])
def beit(request, settings) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tensors of a BEiT, and those that a stage-2 model must get from it."""
    tensors = load_checkpoint(FOLDER / "beit_finetuned.pt").state_dict
    expected = load_file(FOLDER / "stage2_init_from_beit_expected.safetensors")
    if request.param == "merely pre-trained":
        # Before fine-tuning all blocks share a table; it comes with a norm of its own and heads of another kind.
        table = tensors["blocks.0.attn.relative_position_bias_table"]
        dim = tensors["cls_token"].shape[-1]
        tensors = {
            key: tensor
            for key, tensor in tensors.items()
            if "relative_position" not in key and not key.startswith(("fc_norm.", "head."))
        }
        norm = {"weight": torch.randn(dim), "bias": torch.randn(dim)}
        tensors |= {
            "rel_pos_bias.relative_position_bias_table": table,
            "rel_pos_bias.relative_position_index": torch.zeros(2, 2, dtype=torch.int64),
            "mask_token": torch.zeros(1, 1, dim),
            "lm_head.weight": torch.zeros(9, dim),
            "lm_head.bias": torch.zeros(9),
            **{f"norm.{key}": value for key, value in norm.items()},
        }
        blocks = settings["relative_bias_model"]["num_hidden_layers"]
        common = expected["relative_position_bias_table"].clone()
        common[: len(table)] = table.repeat(1, blocks)
        expected = expected | {
            "relative_position_bias_table": common,
            **{f"transformer.norm.{key}": value for key, value in norm.items()},
        }
    return tensors, expected


def test_beit_starts_stage_2(settings, beit):
    tensors, expected = beit
    fields = infer_config(tensors, **known(settings, "beit")).config
    config = VlmoConfig(**{**fields, "vocab_size": settings["vocab_size"]})
    assert config.max_text_length == settings["stage2_max_text_len"]
    result = convert_state_dict(tensors, config)
    assert result.head == "masked_lm"
    assert set(result.source) == set(expected)
    ours = result.state_dict | {
        key: tensor for key, tensor in model_class("masked_lm")(config).state_dict().items() if key in result.new
    }
    model = model_class("masked_lm")(config)
    model.load_state_dict(ours, strict=True)
    back = revert_state_dict(model.state_dict(), config, "masked_lm")
    for key, tensor in expected.items():
        assert torch.equal(back[key], tensor), key
    # All that is new, and nothing else, is a tensor of stage 2 that does not come from BEiT.
    stage2, _ = read(settings, "stage2")
    new = {original_name(key, "masked_lm") for key in result.new}
    assert new == set(stage2) - set(expected) - set(MADE_ANEW)
    assert not any("relative_position_bias" in key for key in result.dropped if key.endswith("table"))


def test_pretraining_starts_nlvr2_with_a_third_type(settings):
    tensors, fields = read(settings, "pretrain")
    with pytest.raises(ValueError, match="type_vocab_size=3"):
        convert_state_dict(tensors, VlmoConfig(**fields), "nlvr2")
    result = convert_state_dict(tensors, VlmoConfig(**{**fields, "type_vocab_size": 3}), "nlvr2")
    assert {key.split(".")[0] for key in result.new} == {"classifier"}
    expected = load_file(FOLDER / "nlvr2_init_from_pretrain_expected.safetensors")
    for key, tensor in expected.items():
        assert torch.equal(result.state_dict[f"vlmo.{key}"], tensor)
        assert set(result.resized) == {key}


def test_pretraining_starts_vqa_at_a_larger_picture(settings, reports):
    tensors, fields = read(settings, "pretrain")
    side = settings["interpolated_image_size"]
    config = VlmoConfig(**{**fields, "image_size": side, "num_labels": settings["num_vqa_labels"]})
    result = convert_state_dict(tensors, config, "vqa")
    report = reports["pretrain_to_vqa_larger_image"]
    assert {original_name(key, "vqa").split(".")[0] for key in result.new} == {"vqa_classifier"}
    assert report["missing"] == []  # the original makes its classifier after loading
    assert sorted(set(result.dropped) - set(MADE_ANEW)) == sorted(report["unexpected"])
    expected = load_file(FOLDER / "interp_expected.safetensors")["relative_position_bias_table"]
    back = revert_state_dict(result.state_dict, config, "vqa")["relative_position_bias_table"]
    torch.testing.assert_close(back, expected, atol=TABLES, rtol=0)


def test_absolute_positions_are_interpolated(settings):
    tensors, fields = read(settings, "baseplus")
    config = VlmoConfig(**{**fields, "image_size": settings["interpolated_image_size"]})
    result = convert_state_dict(tensors, config)
    expected = load_file(FOLDER / "baseplus_interp_expected.safetensors")["pos_embed"]
    positions = result.state_dict["vlmo.image_embeddings.position_embeddings"]
    torch.testing.assert_close(positions, expected, atol=TABLES, rtol=0)
    assert set(result.resized) == {"transformer.pos_embed"}


def test_bias_tables_are_interpolated():
    tables = load_file(FOLDER / "interp_tables.safetensors")
    cases = [key.removesuffix(".table") for key in tables if key.endswith(".table")]
    assert cases
    for case in cases:
        source, target, length = (
            int("".join(filter(str.isdigit, part))) for part in case.removeprefix("src_").replace("_to", "").split("_")
        )
        result = interpolate_position_bias_table(tables[f"{case}.table"], source, target, length)
        torch.testing.assert_close(result, tables[f"{case}.expected"], atol=TABLES, rtol=0)


def test_the_command_compares_the_recorded_outputs(settings, name, tmp_path):
    inputs = FOLDER / f"{'pretrain' if name == 'baseplus' else name}_inputs.safetensors"
    recording = (inputs, FOLDER / f"{name}_expected.safetensors")
    if not all(file.is_file() for file in recording):
        pytest.skip(f"no recording of {name} in {FOLDER}")
    report = convert(FOLDER / f"{name}.pt", tmp_path / "out", config=known(settings, name), parity=recording)
    line = report.checks[-1]
    compared = line.split("compared ")[1].split(";")[0].split(", ")
    assert set(compared) >= COMPARED[name], line


def test_every_head_of_a_published_file_is_covered():
    assert set(HEAD_OF.values()) == set(HEADS) - {"base", "image_classification"}
