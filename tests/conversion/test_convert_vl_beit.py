"""Starting VL-BEiT from BEiT, BEiT v2 and VLMo, and back.

Covered, on random tiny files: what is recognised; BEiT (shared table, tables per block, after pre-training and after
fine-tuning), BEiT v2 with its class branch, VLMo in original names and as a repository of ours, the layout of
VL-BEiT; the picture path equal to the source's; what is new and what was left out, in the report; nestings, half
precision, files that need more than tensors; other picture sizes; the way back, bit for bit; every published size on
the meta device; the command and the script; wrong files and options.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, AutoProcessor

import hf_vlp
from hf_vlp.conversion import vlmo
from hf_vlp.conversion.vl_beit import (
    HEADS,
    VL_BEIT,
    convert,
    convert_state_dict,
    default_head,
    infer_config,
    recognise_head,
)
from hf_vlp.models.mome.configuration_vl_beit import VL_BEIT_SIZES

ROOT = Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "dog", "what", "##s", "?"]
SIZES = {
    "vocab_size": len(WORDS),
    "visual_vocab_size": 7,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 1,
    "image_size": 32,
    "max_text_length": 6,
}
GIVEN = {"vocab_size": len(WORDS), "max_text_length": 6}  # what no BEiT tells


def random_beit(kind: str, blocks: int = 2, dim: int = 16, heads: int = 2, patches: int = 2, device="cpu") -> dict:
    """Tensors of a BEiT: "shared" or "per_block" tables after pre-training, "v2" of BEiT v2, "classifier"."""
    ffn = 2 * dim if dim == 16 else 4 * dim
    visual_words = 7 if dim == 16 else 8192
    rows = (2 * patches - 1) ** 2 + 3

    def block(prefix: str) -> dict[str, tuple]:
        return {
            **{f"{prefix}.{name}": (dim,) for name in ("gamma_1", "gamma_2", "attn.q_bias", "attn.v_bias")},
            **{f"{prefix}.{norm}.{end}": (dim,) for norm in ("norm1", "norm2") for end in ("weight", "bias")},
            f"{prefix}.attn.qkv.weight": (3 * dim, dim),
            **{f"{prefix}.attn.proj.weight": (dim, dim), f"{prefix}.attn.proj.bias": (dim,)},
            **{f"{prefix}.mlp.fc1.weight": (ffn, dim), f"{prefix}.mlp.fc1.bias": (ffn,)},
            **{f"{prefix}.mlp.fc2.weight": (dim, ffn), f"{prefix}.mlp.fc2.bias": (dim,)},
        }

    shapes = {"cls_token": (1, 1, dim), "patch_embed.proj.weight": (dim, 3, 16, 16), "patch_embed.proj.bias": (dim,)}
    for index in range(blocks):
        shapes |= block(f"blocks.{index}")
        if kind in ("per_block", "classifier"):
            shapes[f"blocks.{index}.attn.relative_position_bias_table"] = (rows, heads)
    if kind in ("shared", "v2"):
        shapes["rel_pos_bias.relative_position_bias_table"] = (rows, heads)
    if kind == "v2":
        for index in range(2):
            shapes |= block(f"cls_pt_layers.{index}")
        shapes |= {"cls_pt_norm.weight": (dim,), "cls_pt_lm_head.weight": (visual_words, dim)}
    if kind == "classifier":
        shapes |= {f"{name}.{end}": (dim,) for name in ("fc_norm",) for end in ("weight", "bias")}
        shapes |= {"head.weight": (5, dim), "head.bias": (5,)}
    else:
        shapes |= {"mask_token": (1, 1, dim), "norm.weight": (dim,), "norm.bias": (dim,)}
        shapes |= {"lm_head.weight": (visual_words, dim), "lm_head.bias": (visual_words,)}
    tensors = {name: torch.randn(shape, device=device) / 4 for name, shape in shapes.items()}
    tables = ["rel_pos_bias"] if kind in ("shared", "v2") else [f"blocks.{index}.attn" for index in range(blocks)]
    index = torch.zeros(patches**2 + 1, patches**2 + 1, dtype=torch.int64, device=device)
    return {**tensors, **{f"{table}.relative_position_index": index for table in tables}}


def random_vlmo(head: str, **changes):
    """Tensors of a VLMo in original names, and the configuration."""
    fields = {name: value for name, value in SIZES.items() if name != "visual_vocab_size"}
    config = hf_vlp.VlmoConfig(**{**fields, **({"type_vocab_size": 3} if head == "nlvr2" else {}), **changes})
    shapes = vlmo.empty_model(config, head).state_dict()
    ours = {name: torch.randn(value.shape) / 4 for name, value in shapes.items()}
    return vlmo.revert_state_dict(ours, config, head, index_tables=True), config


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def read(repository: Path, head: str):
    return getattr(hf_vlp, HEADS[head]).from_pretrained(repository).eval()


@pytest.fixture
def vocab(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path / "vocab.txt"


def test_what_a_file_holds_is_recognised():
    for kind in ("shared", "per_block", "v2"):
        assert recognise_head(random_beit(kind)) == "beit"
        assert default_head(random_beit(kind)) == "masked_image"
    assert default_head(random_beit("classifier")) == "image_classification"
    for head in ("vqa", "nlvr2", "retrieval", "masked_lm", "base"):
        assert recognise_head(random_vlmo(head)[0]) == default_head(random_vlmo(head)[0]) == head
    assert (recognise_head(random_vlmo("pretraining")[0]), default_head(random_vlmo("pretraining")[0])) == (
        "vlmo",
        "pretraining",
    )
    with pytest.raises(ValueError, match="neither a VLMo nor a BEiT"):
        recognise_head({"encoder.weight": torch.zeros(1)})


@pytest.mark.parametrize("kind", ("shared", "per_block", "v2"))
def test_a_beit_becomes_a_model_for_hidden_patches(tmp_path, kind):
    tensors = random_beit(kind)
    report = convert(save({"model": tensors}, tmp_path / "beit.pth"), tmp_path / "ours", config=GIVEN)
    assert (report.head, report.recognised_as, report.model_class) == ("masked_image", "beit", HEADS["masked_image"])
    model = read(tmp_path / "ours", "masked_image")
    weights = model.state_dict()
    assert model.config.visual_vocab_size == 7
    assert torch.equal(weights["mask_token"], tensors["mask_token"])
    assert torch.equal(weights["mim_head.weight"], tensors["lm_head.weight"])
    assert torch.equal(weights["vl_beit.norm.bias"], tensors["norm.bias"])
    assert torch.equal(weights["vl_beit.layers.1.experts.image.fc2.weight"], tensors["blocks.1.mlp.fc2.weight"])
    assert torch.equal(weights["vl_beit.layers.0.attention_scale"], tensors["blocks.0.gamma_1"])
    for block in range(2):
        own = f"blocks.{block}.attn.relative_position_bias_table"
        table = tensors.get(own, tensors.get("rel_pos_bias.relative_position_bias_table"))
        ours = weights[f"vl_beit.layers.{block}.attention.position_bias_table"]
        assert torch.equal(ours[: len(table)], table)
        assert not ours[len(table) :].any()


def test_the_report_of_a_beit_lists_what_is_new_and_what_was_left_out(tmp_path):
    tensors = random_beit("v2")
    report = convert(save(tensors, tmp_path / "beit.pth"), tmp_path / "ours", config=GIVEN)
    branch = {name for name in tensors if name.startswith("cls_pt_")}
    assert set(report.dropped) == branch | {"rel_pos_bias.relative_position_index"}
    assert {report.dropped[name] for name in branch} == {"BEiT v2's second branch behind the class token"}
    parts = {name.split(".")[1] for name in report.new if ".layers." not in name}
    assert parts == {"text_embeddings", "token_type_embeddings", "pooler"}
    assert {name.split(".")[4] for name in report.new if ".layers." in name} == {"text"}
    assert len(report.dropped) + report.tensors_written - len(report.new) == len(tensors) + 1  # a table for each block
    assert any("No weights of VL-BEiT were ever published" in note for note in report.notes)
    assert any("Type embeddings" in note for note in report.notes)
    assert json.loads((tmp_path / "ours" / "conversion_report.json").read_text())["architecture"] == "vl_beit"
    text = (tmp_path / "ours" / "README.md").read_text()
    assert "released neither code nor weights" in " ".join(text.split())
    assert report.source["sha256"] in text


def test_a_beit_starts_joint_pre_training(tmp_path, vocab):
    tensors = random_beit("v2")
    path = save({"model": tensors}, tmp_path / "beit.pth")
    report = convert(path, tmp_path / "default", head="pretraining", config=GIVEN, vocab=vocab)
    assert any("layers.0.experts.vl." in name for name in report.new)  # in the top two blocks, as in a base size
    fields = {**GIVEN, "vl_expert_start_layer": 1}
    report = convert(path, tmp_path / "ours", head="pretraining", config=fields, vocab=vocab)
    assert {name.split(".")[2] for name in report.new if ".experts.vl." in name} == {"1"}
    assert any(name.startswith("mlm_head.") for name in report.new)
    assert not any(name.startswith(("mim_head.", "mask_token")) for name in report.new)
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "ours").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    inputs = processor(images=torch.zeros(3, 40, 40, dtype=torch.uint8).numpy(), text="red dogs")
    with torch.no_grad():
        assert model(**inputs).mvlm_image_logits.shape == (1, 4, 7)


def test_pictures_go_through_as_in_the_beit_whatever_is_made_of_it(tmp_path):
    """Types, which BEiT lacks, are 0 at the start; nothing of the text's side is read."""
    path = save(random_beit("per_block"), tmp_path / "beit.pth")
    pixels, states = torch.randn(2, 3, 32, 32), []
    for head, fields in (("masked_image", {}), ("pretraining", {"vl_expert_start_layer": 0}), ("base", {})):
        convert(path, tmp_path / head, head=head, config={**GIVEN, **fields})
        model = read(tmp_path / head, head)
        with torch.no_grad():
            states.append(model.base_model(pixel_values=pixels).last_hidden_state)
        assert not model.base_model.token_type_embeddings.weight.any()
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_a_fine_tuned_beit_becomes_a_classifier_or_gives_its_body(tmp_path):
    tensors = random_beit("classifier")
    path = save({"model": tensors}, tmp_path / "beit.pth")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    report = convert(path, tmp_path / "ours", config=GIVEN, labels=tmp_path / "labels.txt")
    assert report.head == "image_classification"
    model = read(tmp_path / "ours", "image_classification")
    assert model.config.id2label[4] == "e"
    assert torch.equal(model.classifier.norm.weight, tensors["fc_norm.weight"])
    assert torch.equal(model.classifier.output.bias, tensors["head.bias"])
    report = convert(path, tmp_path / "body", head="masked_image", config=GIVEN)
    assert {name for name in report.dropped if "index" not in name} == {
        *("fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"),
    }
    assert {"mask_token", "mim_head.weight", "vl_beit.norm.weight"} <= set(report.new)


@pytest.mark.parametrize("head", ("vqa", "nlvr2", "retrieval", "masked_lm", "base", "pretraining"))
def test_a_vlmo_gives_everything_that_it_has(tmp_path, head):
    tensors, config = random_vlmo(head)
    report = convert(save(tensors, tmp_path / "vlmo.pt"), tmp_path / "ours")
    assert report.head == head
    ours = load_file(tmp_path / "ours" / "model.safetensors")
    theirs = vlmo.convert_state_dict(tensors, config, head).state_dict
    shared = {name.replace("vlmo.", "vl_beit."): value for name, value in theirs.items()}
    kept = {name: value for name, value in shared.items() if not name.startswith(("itc_", "itm_", "logit_"))}
    kept = shared if head != "pretraining" else kept
    assert set(ours) == set(kept) | set(report.new)
    assert all(torch.equal(ours[name], value) for name, value in kept.items())
    new = {"mim_head.weight", "mim_head.bias", "mask_token"} if head == "pretraining" else set()
    assert set(report.new) == new


def test_a_pre_trained_vlmo_starts_every_task(tmp_path):
    tensors, _ = random_vlmo("pretraining")
    path = save(tensors, tmp_path / "vlmo.pt")
    tasks = {
        "retrieval": ({}, set()),
        "vqa": ({"num_labels": 3}, {"classifier"}),
        "nlvr2": ({}, {"classifier"}),
        "image_classification": ({"num_labels": 3}, {"classifier"}),
        "masked_lm": ({}, set()),
        "semantic_segmentation": (
            {"num_labels": 3, "out_indices": [0, 0, 1, 1], "decoder_hidden_size": 4},
            {"segmentation_head"},
        ),
    }
    for head, (fields, new) in tasks.items():
        report = convert(path, tmp_path / head, head=head, config=fields)
        assert {name.split(".")[0] for name in report.new} == new, head
        read(tmp_path / head, head)
    assert read(tmp_path / "retrieval", "retrieval").config.use_matching_head
    with pytest.raises(ValueError, match="How many classes shall the new vqa head have"):
        convert(path, tmp_path / "other", head="vqa")


def test_classes_of_one_task_are_not_those_of_another(tmp_path):
    tensors, _ = random_vlmo("vqa", num_labels=4)
    path = save(tensors, tmp_path / "vqa.pt")
    convert(path, tmp_path / "nlvr2", head="nlvr2")
    assert read(tmp_path / "nlvr2", "nlvr2").config.id2label == {0: "False", 1: "True"}
    with pytest.raises(ValueError, match="How many classes"):
        convert(path, tmp_path / "other", head="image_classification")


@pytest.mark.parametrize("stem", ("patch", "convolution"))
@pytest.mark.parametrize(
    "name", ("VlmoModel", "VlmoForPreTraining", "VlmoForVisualQuestionAnswering", "VlmoForMaskedImageModeling")
)
def test_a_repository_of_vlmo_gives_all_its_experts(tmp_path, name, stem):
    fields = {**SIZES, "vision_stem": stem, "id2label": {0: "yes", 1: "no", 2: "red"}}
    source = getattr(hf_vlp, name)(hf_vlp.VlmoConfig(**fields)).eval()
    source.half().save_pretrained(tmp_path / "vlmo")
    source.float()
    report = convert(tmp_path / "vlmo", tmp_path / "ours")
    assert report.recognised_as == "vlmo"
    assert report.model_class == name.replace("Vlmo", "VlBeit")
    model = getattr(hf_vlp, report.model_class).from_pretrained(tmp_path / "ours").eval()
    assert model.dtype == torch.float32
    inputs = {"input_ids": torch.tensor([[2, 5, 3]]), "pixel_values": torch.randn(1, 3, 32, 32)}
    with torch.no_grad():
        expected = source.base_model(**inputs).last_hidden_state
        assert torch.equal(model.base_model(**inputs).last_hidden_state, expected)
    if "Answering" in name:
        assert model.config.id2label == {0: "yes", 1: "no", 2: "red"}
        assert torch.equal(model.classifier.output.weight, source.classifier.output.weight)
    if "MaskedImage" in name:
        assert report.new == []
    assert {name.split(".")[0] for name in report.new} <= {"mim_head", "mask_token"}


def test_a_repository_of_vlmo_changes_size_and_task(tmp_path):
    source = hf_vlp.VlmoForMaskedLM(hf_vlp.VlmoConfig(**{**SIZES, "vl_expert_start_layer": 2, "max_text_length": 90}))
    source.save_pretrained(tmp_path / "vlmo")
    fields = {"vl_expert_start_layer": 1, "image_size": 64}
    report = convert(tmp_path / "vlmo", tmp_path / "ours", head="pretraining", config=fields)
    assert (report.config["image_size"], report.config["max_text_length"]) == (64, 40)
    changed = {name.split(".")[-1] for name in report.resized}
    assert changed == {"position_bias_table", "weight"}
    assert any("layers.1.experts.vl" in name for name in report.new)
    assert read(tmp_path / "ours", "pretraining").config.window_size == 4


def test_tied_words_of_a_repository_stay_tied(tmp_path):
    source = hf_vlp.VlmoForMaskedLM(hf_vlp.VlmoConfig(**SIZES, tie_word_embeddings=True))
    source.save_pretrained(tmp_path / "vlmo")
    convert(tmp_path / "vlmo", tmp_path / "ours")
    model = read(tmp_path / "ours", "masked_lm")
    assert model.mlm_head.decoder.weight is model.vl_beit.text_embeddings.word_embeddings.weight


def test_folders_of_other_models_are_refused(tmp_path):
    fields = {**SIZES, "id2label": {0: "a"}}
    hf_vlp.VlBeitModel(hf_vlp.VlBeitConfig(**fields)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="holds a VL-BEiT, which every class of it loads with from_pretrained"):
        convert(tmp_path / "ours", tmp_path / "other")
    hf_vlp.VlmoModel(hf_vlp.VlmoConfig(**SIZES)).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    with pytest.raises(ValueError, match=r"no model\.safetensors: save the model again, as one file"):
        convert(tmp_path / "shards", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_every_nesting_and_half_precision_are_read(tmp_path):
    tensors = random_beit("shared")
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    wrapped = {
        "flat": half,
        "model": {"model": half, "args": Namespace(lr=1), "epoch": 3},
        "module": {"module": {f"module.{name}": value for name, value in half.items()}},
        "lightning": {"state_dict": half, "optimizer": {"state": half}},
    }
    weights = []
    for name, content in wrapped.items():
        report = convert(save(content, tmp_path / f"{name}.pth"), tmp_path / name, config=GIVEN)
        assert report.source["dtypes"]["float16"] > 0
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert {value.dtype for value in weights[0].values()} == {torch.float32}
    assert torch.equal(weights[0]["mim_head.weight"], half["lm_head.weight"].float())
    for other in weights[1:]:
        assert all(torch.equal(other[name], value) for name, value in weights[0].items())


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("touch executed",)

    torch.save({"model": random_beit("shared"), "evil": Evil()}, tmp_path / "beit.pth")
    with pytest.raises(ValueError, match="more than tensors and plain containers"):
        convert(tmp_path / "beit.pth", tmp_path / "ours", config=GIVEN)
    assert not (tmp_path / "ours").exists()


def test_another_picture_size_interpolates_the_tables(tmp_path):
    path = save(random_beit("per_block"), tmp_path / "beit.pth")
    report = convert(path, tmp_path / "ours", config={**GIVEN, "image_size": 64})
    assert report.resized == {"relative_position_bias_table": "interpolated from 2x2 to 4x4 patches"}
    convert(path, tmp_path / "small", config=GIVEN)
    small = getattr(hf_vlp, HEADS["masked_image"]).from_pretrained(tmp_path / "small", image_size=64)
    large = read(tmp_path / "ours", "masked_image")
    for first, second in zip(small.vl_beit.layers, large.vl_beit.layers, strict=True):
        assert torch.equal(first.attention.position_bias_table, second.attention.position_bias_table)


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"semantic_segmentation"}))
def test_every_head_is_written_as_a_file_and_read_again(tmp_path, head):
    config = hf_vlp.VlBeitConfig(**{**SIZES, **({"type_vocab_size": 3} if head == "nlvr2" else {}), "num_labels": 3})
    model = VL_BEIT.model_class(head)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(tmp_path / "ours")
    file = convert(tmp_path / "ours", tmp_path / "layout.pt", reverse=True)
    tensors = torch.load(file, weights_only=True)
    assert recognise_head(tensors) == head
    known = {"num_attention_heads": 2, "vl_expert_start_layer": 1}
    report = convert(file, tmp_path / "again", config=known)
    assert report.head == head
    assert report.new == []
    again = load_file(tmp_path / "again" / "model.safetensors")
    first = model.state_dict()
    assert set(again) == set(first)
    assert all(torch.equal(again[name], value) for name, value in first.items())


def test_segmentation_has_no_layout_of_an_original(tmp_path):
    fields = {"out_indices": [0, 0, 1, 1], "decoder_hidden_size": 4, "auxiliary_channels": 4}
    hf_vlp.VlBeitForSemanticSegmentation(hf_vlp.VlBeitConfig(**SIZES, **fields)).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"VlBeitForSemanticSegmentation.*no layout"):
        convert(tmp_path / "ours", tmp_path / "layout.pt", reverse=True)


@pytest.mark.parametrize("kind", ("shared", "per_block", "v2", "classifier"))
@pytest.mark.parametrize("size", VL_BEIT_SIZES)
def test_published_sizes_convert_without_leftovers(size, kind):
    """Names and shapes of the published files, on the meta device."""
    config = hf_vlp.VlBeitConfig(**VL_BEIT_SIZES[size])
    tensors = random_beit(
        kind, config.num_hidden_layers, config.hidden_size, config.num_attention_heads, patches=14, device="meta"
    )
    inferred = infer_config(tensors)
    assert inferred.size == size
    found = hf_vlp.VlBeitConfig(**inferred.config)
    for name in ("image_size", "vl_expert_start_layer", "intermediate_size", "max_text_length", "visual_vocab_size"):
        assert getattr(found, name) == getattr(config, name), name
    for head in ("masked_image", "pretraining", None):
        result = convert_state_dict(tensors, found, head)
        model = vlmo.empty_model(found, result.head, VL_BEIT)
        assert set(model.state_dict()) == set(result.state_dict) | set(result.new)


def test_the_command_and_the_script_convert(tmp_path):
    from typer.testing import CliRunner

    from hf_vlp.cli import app

    path = save(random_beit("shared"), tmp_path / "beit.pth")
    (tmp_path / "fields.json").write_text(json.dumps(GIVEN))
    words = ["convert", "vl_beit", str(path), str(tmp_path / "ours"), "--config", str(tmp_path / "fields.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "VlBeitForMaskedImageModeling: head masked_image (recognised: beit)" in done.output
    script = ROOT / "conversion" / "convert_vl_beit.py"
    command = [sys.executable, script, tmp_path / "ours", tmp_path / "back.pt", "--reverse", "--push_to_hub", "me/it"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == "Error: The way back takes no push_to_hub: the repository knows what it holds."


@pytest.mark.parametrize(
    "change, message",
    (
        ({"blocks.0.attn.key_bias": torch.zeros(16)}, r"no VL-BEiT model has: transformer\.blocks\.0\.attn\.key_bias"),
        ({"blocks.1.mlp.fc1.weight": None}, r"lacks tensors.*block 1: mlp_imag\.fc1\.weight"),
        ({"norm.bias": None}, r"lacks tensors.*transformer\.norm\.bias"),
        ({"lm_head.bias": None}, r"lacks tensors.*mim_score\.bias"),
        ({"mask_token": torch.full((1, 1, 16), float("nan"))}, "NaN or infinite values: mask_token"),
    ),
)
def test_damaged_files_are_told_and_nothing_is_written(tmp_path, change, message):
    tensors = {name: value for name, value in {**random_beit("shared"), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        convert(save(tensors, tmp_path / "beit.pth"), tmp_path / "ours", config=GIVEN)
    assert not (tmp_path / "ours").exists()


def test_wrong_options_are_told(tmp_path):
    path = save(random_beit("shared"), tmp_path / "beit.pth")
    output = tmp_path / "ours"
    with pytest.raises(ValueError, match=r"VlBeitConfig has no field image_sise"):
        convert(path, output, config={"image_sise": 64})
    with pytest.raises(ValueError, match=r"not of the size 'base', but unpublished"):
        convert(path, output, size="base")
    with pytest.raises(ValueError, match=r"Unknown head 'captioning'"):
        convert(path, output, head="captioning", config={"vl_expert_start_layer": 1})
    (tmp_path / "labels.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match="VlBeitForMaskedImageModeling has no classes"):
        convert(path, output, config=GIVEN, labels=tmp_path / "labels.txt")
    assert not output.exists()
