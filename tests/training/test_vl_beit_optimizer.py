"""Parameter groups of VL-BEiT: BEiT's layer-wise decay and what is not decayed, for every head.

Covers: the rate of every parameter against the formula of BEiT, the head's own factor on top, weight decay of none but
matrices, and mixed labels in the head for classes.
"""

import re

import pytest
import torch
from torch.nn import functional as F

import hf_vlp
from hf_vlp import VlBeitConfig
from hf_vlp.models.mome.mome_losses import classification_loss
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.trainer import make_parameter_groups

BLOCKS = 3
CONFIG = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 2,
    "image_size": 16,
    "patch_size": 8,
    "max_text_length": 12,
    "max_text_length_of_table": 12,
    "visual_vocab_size": 10,
    "type_vocab_size": 3,
    "num_labels": 3,
    "out_indices": [0, 1, 2, 2],
    "auxiliary_channels": 8,
}
HEADS = (
    "ForPreTraining",
    "ForMaskedImageModeling",
    "ForVisualQuestionAnswering",
    "ForImagesAndTextClassification",
    "ForImageTextRetrieval",
    "ForImageClassification",
    "ForSemanticSegmentation",
)


def make_model(head: str):
    torch.manual_seed(0)
    return getattr(hf_vlp, f"VlBeit{head}")(VlBeitConfig(**CONFIG))


def layer_of(name: str) -> int:
    """BEiT's number of a parameter's layer: 0 below the blocks, i + 1 in block i, the last for all that is above."""
    if block := re.search(r"\blayers\.(\d+)\.", name):
        return int(block[1]) + 1
    below = r"\b(patch_projection|cls_token|mask_token|position_embeddings|text_embeddings|token_type_embeddings)\b"
    return 0 if re.search(below, name) else BLOCKS + 1


def groups_by_name(model, tmp_path, **options) -> dict[str, dict]:
    arguments = VlpTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group
        for group in make_parameter_groups(model, arguments)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("head", HEADS)
def test_rates_fall_from_layer_to_layer_as_in_beit(head, tmp_path):
    model = make_model(head)
    found = groups_by_name(model, tmp_path, learning_rate=4e-3, layer_decay=0.65)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, group in found.items():
        assert group["lr"] == pytest.approx(4e-3 * 0.65 ** (BLOCKS + 1 - layer_of(name))), name
    assert {layer_of(name) for name in found} == set(range(BLOCKS + 2))


def test_a_new_head_takes_its_factor_on_top(tmp_path):
    options = {"learning_rate": 3e-5, "layer_decay": 0.9, "head_learning_rate_multiplier": 20.0}
    found = groups_by_name(make_model("ForVisualQuestionAnswering"), tmp_path, **options)
    rates = {name: group["lr"] for name, group in found.items()}
    assert all(rates[name] == pytest.approx(20 * 3e-5) for name in rates if name.startswith("classifier."))
    assert rates["vl_beit.norm.weight"] == pytest.approx(3e-5)


@pytest.mark.parametrize("head", HEADS)
def test_vectors_and_biases_do_not_decay(head, tmp_path):
    model = make_model(head)
    found = groups_by_name(model, tmp_path, weight_decay=0.05)
    tokens_and_tables = ("cls_token", "mask_token", "position_bias_table")
    for name, parameter in model.named_parameters():
        exempt = parameter.ndim < 2 or name.endswith(tokens_and_tables)
        assert found[name]["weight_decay"] == (0.0 if exempt else 0.05), name


def test_the_head_for_classes_learns_from_mixed_labels():
    model = make_model("ForImageClassification").eval()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    output = model(pixel_values=pixels, labels=labels)
    expected = -(labels * F.log_softmax(output.logits, -1)).sum(1).mean()
    torch.testing.assert_close(output.loss, expected)
    whole = model(pixel_values=pixels, labels=torch.tensor([0, 2])).loss
    torch.testing.assert_close(whole, classification_loss(output.logits, torch.eye(3)[[0, 2]]))
