"""The conversion table of VLMo against the layout of every published file, without the files.

Covered: for each section of `vlmo_state_dict.json` (all sizes, stages, tasks) at its real shapes on the meta device:
recognised head, sizes read from the tensors, nothing left over or new on either side, the original names and shapes
back, the stated number of parameters; the bias table's split and join; a bit-equal round trip of random weights at a
published shape; errors for unknown heads, missing experts, wrong sizes, unreadable sizes.
"""

import json
from pathlib import Path

import pytest
import torch

from hf_vlp.conversion.vlmo import (
    HEADS,
    check_round_trip,
    convert_state_dict,
    empty_model,
    infer_config,
    join_blocks,
    recognise_head,
    revert_state_dict,
    split_by_block,
)
from hf_vlp.models.mome.configuration_vlmo import PUBLISHED_SIZES, VlmoConfig

SECTIONS = json.loads((Path(__file__).parents[1] / "fixtures" / "vlmo_state_dict.json").read_text())["sections"]
HEAD_OF = {"pretrain": "pretraining", "textmlm": "masked_lm", "vqa": "vqa", "nlvr2": "nlvr2", "irtr": "retrieval"}
TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 1,
    "image_size": 48,
    "max_text_length": 6,
}


def tensors_of(section: str, device: str = "meta") -> dict[str, torch.Tensor]:
    tensors = {}
    for name, (shape, *blocks) in SECTIONS[section]["tensors"].items():
        dtype = torch.int64 if name.endswith("position_ids") else torch.float32
        for block in range(blocks[0], blocks[1] + 1) if blocks else [None]:
            tensors[name.format(i=block)] = torch.empty(shape, dtype=dtype, device=device)
    return tensors


def random_file(head: str, **changes) -> tuple[dict[str, torch.Tensor], VlmoConfig]:
    """Random tensors in original names for a tiny model."""
    config = VlmoConfig(**{**TINY, **changes})
    shapes = empty_model(config, head).state_dict()
    ours = {name: torch.randn(tensor.shape) for name, tensor in shapes.items()}
    return revert_state_dict(ours, config, head), config


@pytest.mark.parametrize("section", SECTIONS)
def test_every_published_layout_converts_without_leftovers_both_ways(section):
    original = tensors_of(section)
    assert len(original) == SECTIONS[section]["entries"]
    inferred = infer_config(original)
    assert inferred.head == HEAD_OF[section.split("_")[0]]
    size = next(size for size in ("base_plus", "base", "large") if size in section)
    assert inferred.size == size
    for field, value in PUBLISHED_SIZES[size].items():
        if field != "vl_expert_start_layer" or inferred.head != "masked_lm":
            assert inferred.config.get(field, getattr(VlmoConfig(), field)) == value
    config = VlmoConfig(**inferred.config)
    last = section.rsplit("_", 1)[-1]
    assert config.image_size == (int(last) if last.isdigit() else 224)
    assert config.max_text_length == (196 if inferred.head == "masked_lm" else 40)
    result = convert_state_dict(original, config)
    assert result.new == []
    assert result.resized == {}
    assert set(result.dropped) == {"text_embeddings.position_ids"}
    model = empty_model(config, inferred.head)
    assert {name: tensor.shape for name, tensor in result.state_dict.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == SECTIONS[section]["trainable_parameters"]
    back = revert_state_dict(result.state_dict, config, inferred.head)
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in back.items()} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in original.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("section", ["pretrain_base", "nlvr2_base_plus_384", "vqa_base_480", "textmlm_base"])
def test_random_weights_of_published_shapes_come_back_bit_for_bit(section):
    original = tensors_of(section, "cpu")
    for name, tensor in original.items():
        if tensor.is_floating_point():
            tensor.normal_()
        else:
            original[name] = torch.arange(tensor.shape[1])[None]
    inferred = infer_config(original)
    config = VlmoConfig(**inferred.config)
    back = revert_state_dict(convert_state_dict(original, config).state_dict, config, inferred.head)
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"image_classification"}))  # which no original has
@pytest.mark.parametrize("absolute", [False, True])
def test_random_weights_come_back_bit_for_bit(head, absolute):
    changes = {"type_vocab_size": 3} if head == "nlvr2" else {}
    if absolute:
        changes |= {
            "use_relative_position_bias": False,
            "use_absolute_position_embeddings": True,
            "layer_scale_init_value": None,
        }
    original, config = random_file(head, **changes)
    assert recognise_head(original) == head
    known = {"num_attention_heads": 2} if absolute else {}
    if head == "base":
        known["vl_expert_start_layer"] = 1
    inferred = infer_config(original, **known)
    assert VlmoConfig(**inferred.config).to_dict() == {**config.to_dict(), "id2label": {0: "LABEL_0", 1: "LABEL_1"}}
    result = convert_state_dict(original, config)
    assert check_round_trip(result, config) == len(original) - 1
    back = revert_state_dict(result.state_dict, config, head)
    assert set(back) == set(original)
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())


def test_each_block_gets_its_own_columns_of_the_bias_table():
    table = torch.arange(12.0).expand(5, 12).contiguous()
    blocks = split_by_block(table, 3)
    assert [block[0].tolist() for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert torch.equal(join_blocks(blocks), table)
    with pytest.raises(ValueError, match=r"\[5, 12\].*5 blocks"):
        split_by_block(table, 5)


def test_tensors_of_an_unknown_head_are_refused_by_name():
    original, config = random_file("vqa")
    original["caption_score.fc.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"no VLMo model has: caption_score\.fc\.weight"):
        convert_state_dict(original, config)
    with pytest.raises(ValueError, match="neither a VLMo nor a BEiT"):
        recognise_head({"encoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"Unknown head 'captioning'\. Known heads: pretraining"):
        convert_state_dict(random_file("vqa")[0], config, "captioning")


@pytest.mark.parametrize("expert", ["text", "imag", "vl"])
def test_a_missing_expert_is_named_with_its_block(expert):
    original, _ = random_file("pretraining")
    lost = [name for name in original if f"blocks.2.mlp_{expert}" in name or f"blocks.2.norm2_{expert}" in name]
    assert len(lost) == 6
    rest = {name: tensor for name, tensor in original.items() if name not in lost}
    with pytest.raises(ValueError, match=r"block 2: ") as error:
        convert_state_dict(rest, VlmoConfig(**infer_config(rest).config))
    for name in lost:
        assert name.split("blocks.2.")[1] in str(error.value)
    assert "block 1" not in str(error.value)


def test_the_first_missing_vision_language_expert_of_a_published_size_is_noticed():
    original = tensors_of("vqa_base_480")
    rest = {name: tensor for name, tensor in original.items() if "blocks.10.mlp_vl" not in name}
    rest = {name: tensor for name, tensor in rest.items() if "blocks.10.norm2_vl" not in name}
    with pytest.raises(ValueError, match=r"block 10: norm2_vl\.weight|block 10: .*mlp_vl\.fc1\.weight"):
        convert_state_dict(rest, VlmoConfig(**infer_config(rest).config))


def test_a_model_without_any_vision_language_expert_must_be_meant():
    original, _ = random_file("vqa")
    rest = {name: tensor for name, tensor in original.items() if "_vl" not in name}
    with pytest.raises(ValueError, match=r"No block has a vision-language expert.*vl_expert_start_layer=3"):
        infer_config(rest)
    inferred = infer_config(rest, vl_expert_start_layer=3)
    assert convert_state_dict(rest, VlmoConfig(**inferred.config)).new == []


@pytest.mark.parametrize(
    "name", ["pooler.dense.bias", "relative_position_bias_table", "logit_scale", "transformer.blocks.0.gamma_1"]
)
def test_every_other_missing_tensor_is_an_error(name):
    original, config = random_file("pretraining")
    del original[name]
    with pytest.raises(ValueError, match=f"lacks tensors of VlmoForPreTraining.*{name.split('.')[-1]}"):
        convert_state_dict(original, config)


@pytest.mark.parametrize("name", ["relative_position_bias_table", "token_type_embeddings.weight"])
def test_tensors_that_sizes_are_read_from_must_be_there_with_their_dimensions(name):
    original, _ = random_file("vqa")
    with pytest.raises(ValueError, match=rf"{name} has the shape \[5\], where 2 dimensions"):
        infer_config({**original, name: torch.zeros(5)})
    with pytest.raises(ValueError, match=r"no tensor transformer\.pos_embed|no tensor token_type_embeddings"):
        infer_config({key: tensor for key, tensor in original.items() if key != name})


def test_a_missing_block_is_named():
    original, _ = random_file("vqa")
    with pytest.raises(ValueError, match="no tensor of block 1"):
        infer_config({name: tensor for name, tensor in original.items() if ".blocks.1." not in name})


def test_tensors_of_another_size_are_refused_with_both_shapes():
    original, config = random_file("vqa")
    original["transformer.blocks.1.mlp_text.fc1.weight"] = torch.zeros(31, 16)
    with pytest.raises(ValueError, match=r"blocks\.1\.mlp_text\.fc1\.weight is \[31, 16\], not \[32, 16\]"):
        convert_state_dict(original, config)
    with pytest.raises(ValueError, match=r"word_embeddings\.weight is \[50, 16\], not \[50, 24\].* and \d+ more"):
        convert_state_dict(random_file("vqa")[0], VlmoConfig(**{**TINY, "hidden_size": 24}))


def test_tensors_without_a_place_in_the_configuration_are_refused():
    original, _ = random_file("vqa")
    without_scale = VlmoConfig(**{**TINY, "layer_scale_init_value": None})
    with pytest.raises(ValueError, match=r"no place for transformer\.blocks\.0\.gamma_1"):
        convert_state_dict(original, without_scale)
    with pytest.raises(ValueError, match=r"no place for .*blocks\.1\.norm2_vl|no place for .*blocks\.1\.mlp_vl"):
        convert_state_dict(original, VlmoConfig(**{**TINY, "vl_expert_start_layer": 3}))


def test_sizes_that_tensors_cannot_tell_are_asked_for():
    absolute = {"use_relative_position_bias": False, "use_absolute_position_embeddings": True}
    original, _ = random_file("vqa", **absolute)
    with pytest.raises(ValueError, match=r"number of attention heads cannot be read.*num_attention_heads"):
        infer_config(original)
    original, _ = random_file("vqa", max_text_length_of_table=20)
    with pytest.raises(ValueError, match=r"70 rows.*Give image_size or max_text_length_of_table"):
        infer_config(original)
    for known in ({"image_size": 48}, {"max_text_length_of_table": 20}):
        inferred = VlmoConfig(**infer_config(original, **known).config)
        assert (inferred.image_size, inferred.max_text_length_of_table) == (48, 20)
    with pytest.raises(ValueError, match=r"70 rows.*'image_size': 160"):
        infer_config(original, image_size=160)


def test_index_tables_tell_the_sizes_and_are_written_on_request():
    original, config = random_file("retrieval", max_text_length_of_table=20)
    ours = convert_state_dict(original, config).state_dict
    with_index = revert_state_dict(ours, config, "retrieval", index_tables=True)
    assert set(with_index) - set(original) == {
        "relative_position_index",
        "text_relative_position_index",
        "text_imag_relative_position_index",
    }
    assert infer_config(with_index).config["max_text_length_of_table"] == 20
    assert set(convert_state_dict(with_index, config).dropped) == {
        "text_embeddings.position_ids",
        "relative_position_index",
        "text_relative_position_index",
        "text_imag_relative_position_index",
    }


def test_parameters_without_an_original_are_not_written():
    config = VlmoConfig(**TINY)
    ours = {"vlmo.image_embeddings.stem.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"no name for vlmo\.image_embeddings\.stem"):
        revert_state_dict(ours, config, "vqa")


def test_a_round_trip_that_differs_is_a_fault():
    original, config = random_file("vqa")
    result = convert_state_dict(original, config)
    result.state_dict["vlmo.layers.1.attention.q_bias"] = torch.zeros(16)
    with pytest.raises(RuntimeError, match=r"transformer\.blocks\.1\.attn\.q_bias"):
        check_round_trip(result, config)
