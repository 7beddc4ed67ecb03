"""Conversion of visual tokenizers: names, reports, checks, the way back, refused files.

Covers: sizes read from tensors; every tensor consumed or dropped with its reason, the decoder taken or left; the way
back bit for bit, for both heads and both kinds of files; recorded outputs compared on the command line; half
precision; files with a teacher inside, without a decoder, without counts; refused: another model's file, missing,
surplus and damaged tensors, options that do not exist, wrong recordings, and nothing is written then.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_vlp import VlBeitVqkdForTraining, VlBeitVqkdTokenizer
from hf_vlp.cli import app
from hf_vlp.conversion import vqkd
from tests.models.tiny_vqkd import SIZES, make_pixels, make_training_model

HEADS = {"num_attention_heads": SIZES["num_attention_heads"]}
GOLDENS = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vl_beit"


@pytest.fixture
def model():
    return make_training_model(target="features")


@pytest.fixture
def original(model):
    """Tensors in the layout of the published files, with what those hold beside the tokenizer."""
    beside = {
        "quantize.embedding.cluster_size": torch.rand(12),
        "quantize.embedding.embed_avg": torch.rand(12, 4),
        "quantize.embedding.initted": torch.tensor([1.0]),
        "scaling_layer.shift": torch.rand(1, 3, 1, 1),
        "teacher_model.visual.proj": torch.rand(2, 2),
    }
    return {**vqkd.revert_state_dict(model.state_dict()), **beside}


@pytest.fixture
def checkpoint(original, tmp_path):
    path = tmp_path / "vqkd.pth"
    torch.save({"model": original, "epoch": 3}, path)
    return path


def test_names_are_those_of_the_goldens():
    if not (GOLDENS / "vqkd.pt").is_file():
        pytest.skip("no goldens of the visual tokenizer")
    recorded = torch.load(GOLDENS / "vqkd.pt", weights_only=True)["model"]
    config = vqkd.VlBeitVqkdConfig(**vqkd.infer_config(recorded, num_attention_heads=3))
    result = vqkd.convert_state_dict(recorded, config, "training")
    assert result.new == []
    assert set(result.dropped) == {f"quantize.embedding.{name}" for name in ("cluster_size", "embed_avg", "initted")}
    reverted = vqkd.revert_state_dict(result.state_dict)
    assert reverted.keys() | result.dropped.keys() == recorded.keys()
    assert all(torch.equal(value, recorded[name]) for name, value in reverted.items())


def test_sizes_are_read_from_the_tensors(original, model):
    config = vqkd.infer_config(original, **HEADS)
    assert config == {name: getattr(model.config, name) for name in config}
    assert "image_size" in config
    assert "decoder_num_hidden_layers" in config


def test_published_width_has_heads_of_64():
    shapes = {
        "encoder.patch_embed.proj.weight": (768, 3, 16, 16),
        "encoder.pos_embed": (1, 197, 768),
        "quantize.embedding.weight": (8192, 32),
    }
    config = vqkd.infer_config({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    assert (config["num_attention_heads"], config["image_size"], config["codebook_size"]) == (12, 224, 8192)


@pytest.mark.parametrize(
    "head, model_class", [("tokenizer", VlBeitVqkdTokenizer), ("training", VlBeitVqkdForTraining)]
)
def test_repository_gives_the_ids_of_the_source(head, model_class, checkpoint, model, tmp_path):
    report = vqkd.convert(checkpoint, tmp_path / "out", head=head, config=HEADS)
    loaded = model_class.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.get_token_ids(make_pixels()), model.get_token_ids(make_pixels()))
    assert report.tensors_written == len(loaded.state_dict())
    stored = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
    assert stored["model_class"] == model_class.__name__
    assert stored["source"]["nesting"] == ["model"]
    assert len(stored["source"]["sha256"]) == 64
    assert set(stored["dropped"]) >= {"teacher_model.visual.proj", "scaling_layer.shift"}
    assert any(name.startswith("decoder.") for name in stored["dropped"]) == (head == "tokenizer")
    assert stored["new"] == []
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["do_normalize"] is False


@pytest.mark.parametrize("suffix", (".pth", ".safetensors"))
def test_way_back_is_equal_bit_for_bit(suffix, checkpoint, original, tmp_path):
    vqkd.convert(checkpoint, tmp_path / "out", head="training", config=HEADS)
    path = vqkd.convert(tmp_path / "out", tmp_path / f"back{suffix}", reverse=True)
    back = load_file(path) if suffix == ".safetensors" else torch.load(path, weights_only=True)["model"]
    assert set(original) - set(back) == {
        *(f"quantize.embedding.{name}" for name in ("cluster_size", "embed_avg", "initted")),
        *("scaling_layer.shift", "teacher_model.visual.proj"),
    }
    assert all(torch.equal(value, original[name]) for name, value in back.items())


def test_file_without_decoder_and_counts_is_converted(original, model, tmp_path):
    path = tmp_path / "encoder.safetensors"
    kept = {
        name: value.contiguous()
        for name, value in original.items()
        if not name.startswith(("decode", "quantize.cluster_size"))
    }
    save_file(kept, path)
    report = vqkd.convert(path, tmp_path / "out", config=HEADS)
    assert report.new == ["codebook.cluster_size"]
    loaded = VlBeitVqkdTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.codebook.cluster_size.eq(1).all()  # training goes on with these codes
    assert torch.equal(loaded.get_token_ids(make_pixels()), model.get_token_ids(make_pixels()))
    with pytest.raises(ValueError, match=r"lacks tensors of VlBeitVqkdForTraining: decoder\."):
        vqkd.convert(path, tmp_path / "other", head="training", config=HEADS)


def test_half_precision_becomes_float32(original, tmp_path):
    path = tmp_path / "half.pth"
    torch.save({"model": {name: value.half() for name, value in original.items()}}, path)
    vqkd.convert(path, tmp_path / "out", config=HEADS)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert torch.equal(saved["codebook.weight"], original["quantize.embedding.weight"].half().float())


def test_command_line_converts_compares_and_reports(checkpoint, model, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HEADS))
    outputs = VlBeitVqkdTokenizer.forward(model, make_pixels())
    save_file({"pixel_values_0_to_1": make_pixels()}, tmp_path / "inputs.safetensors")
    expected = {"codes": outputs.token_ids, "code_vectors": outputs.code_vectors.detach()}
    save_file(expected, tmp_path / "expected.safetensors")
    parity = ["--parity", str(tmp_path / "inputs.safetensors"), str(tmp_path / "expected.safetensors")]
    command = ["convert", "vl_beit_vqkd", str(checkpoint), str(tmp_path / "out")]
    command += ["--config", str(tmp_path / "config.json"), *parity]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    compared = done.output.split("compared ")[1].splitlines()[0]
    assert set(compared.split(", ")) == {"codes", "code_vectors"}
    save_file({"codes": (outputs.token_ids + 1) % 12}, tmp_path / "expected.safetensors")
    done = CliRunner().invoke(app, [*command[:3], str(tmp_path / "wrong"), *command[4:]])
    assert done.exit_code == 2
    assert "differs from the recording" in done.output
    assert not (tmp_path / "wrong").exists()


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    "change, message",
    [
        (without("encoder.pos_embed"), "no VQ-KD tokenizer in the original layout: there is no encoder.pos_embed"),
        (without("encoder.blocks.1.norm1.bias"), r"lacks tensors .* encoder.layers.1.layernorm_before.bias"),
        (
            lambda tensors: {**tensors, "encoder.rel_pos_bias.table": torch.ones(1)},
            "no VQ-KD tokenizer has: encoder.rel",
        ),
        (lambda tensors: {**tensors, "encode_task_layer.2.bias": torch.ones(5)}, r"code_projection.output.bias \[5\]"),
        (lambda tensors: {**tensors, "encoder.fc_norm.bias": torch.full((16,), torch.nan)}, "NaN"),
    ],
)
def test_files_that_are_something_else_are_refused(change, message, original, tmp_path):
    torch.save({"model": change(original)}, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        vqkd.convert(tmp_path / "file.pth", tmp_path / "out", config=HEADS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vocab": "vocab.txt"}, "has no vocab"),
        ({"head": "vqa"}, "Unknown head 'vqa'"),
        ({"config": {"layers": 3}}, "no field layers"),
        ({"config": None}, "number of heads cannot be told from a width of 16"),
        ({"reverse": True}, "takes no config"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=message):
        vqkd.convert(checkpoint, tmp_path / "out", **{"config": HEADS, **options})


def test_fused_product_is_split_and_joined():
    fused = {"encoder.layers.0.attention.qkv.weight": torch.arange(18.0).view(6, 3), "other": torch.ones(1)}
    split = vqkd.split_qkv(fused)
    assert torch.equal(split["encoder.layers.0.attention.k_proj.weight"], torch.arange(6.0, 12.0).view(2, 3))
    joined = vqkd.join_qkv(split)
    assert joined.keys() == fused.keys()
    assert all(torch.equal(value, fused[name]) for name, value in joined.items())
