"""The visual tokenizer against the original BEiT v2 code at toy size, driven by the goldens alone.

Covers: token ids exactly, features of the patches to 1e-5, code vectors to 1e-4; the same through either attention,
through the model for training, in chunks of the search and one picture at a time; half precision.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp.conversion import vqkd
from hf_vlp.models.mome import modeling_vl_beit_vqkd
from hf_vlp.models.mome.configuration_vl_beit_vqkd import VlBeitVqkdConfig

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vl_beit"
pytestmark = pytest.mark.skipif(not (FOLDER / "vqkd.pt").is_file(), reason="no goldens of the visual tokenizer")


@pytest.fixture(scope="module")
def recorded():
    return {**load_file(FOLDER / "vqkd_inputs.safetensors"), **load_file(FOLDER / "vqkd_expected.safetensors")}


def load_tokenizer(head: str = "tokenizer"):
    state_dict = torch.load(FOLDER / "vqkd.pt", weights_only=True)["model"]
    sizes = json.loads((FOLDER / "config.json").read_text())["vqkd"]
    config = VlBeitVqkdConfig(**vqkd.infer_config(state_dict, num_attention_heads=sizes["num_attention_heads"]))
    assert {name: getattr(config, name) for name in sizes if name != "mlp_ratio"} == {
        name: value for name, value in sizes.items() if name != "mlp_ratio"
    }
    assert config.intermediate_size == sizes["mlp_ratio"] * sizes["hidden_size"]
    model = vqkd.model_class(head)(config)
    model.load_state_dict(vqkd.convert_state_dict(state_dict, config, head).state_dict, strict=True)
    return model.eval()


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@torch.no_grad()
def test_ids_features_and_vectors_are_those_of_the_original(recorded, attention):
    tokenizer = load_tokenizer()
    tokenizer.set_attn_implementation(attention)
    outputs = tokenizer(recorded["pixel_values_0_to_1"])
    assert torch.equal(outputs.token_ids, recorded["codes"])
    # Sums in another order.
    torch.testing.assert_close(outputs.encoder_patch_features, recorded["encoder_patch_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.code_vectors, recorded["code_vectors"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("head", vqkd.HEADS)
def test_ids_are_those_of_the_original_for_either_class(recorded, head):
    assert torch.equal(load_tokenizer(head).get_token_ids(recorded["pixel_values_0_to_1"]), recorded["codes"])


def test_ids_depend_on_neither_batch_nor_chunk(recorded, monkeypatch):
    monkeypatch.setattr(modeling_vl_beit_vqkd, "_ROWS_AT_ONCE", 3)
    tokenizer = load_tokenizer()
    for picture, codes in zip(recorded["pixel_values_0_to_1"], recorded["codes"]):
        assert torch.equal(tokenizer.get_token_ids(picture[None])[0], codes)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_half_precision_keeps_nearly_all_ids(recorded, dtype):
    ids = load_tokenizer().to(dtype).get_token_ids(recorded["pixel_values_0_to_1"].to(dtype))
    # The golden's nearest and second nearest code differ by 2e-3 at least; eight bits of mantissa cannot keep all.
    assert (ids == recorded["codes"]).float().mean() >= 0.9
