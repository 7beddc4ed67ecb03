"""From a file of the original to a repository of ours, and back.

Covered, on random tiny files: the complete repository (weights, code, processor, card, report) and its loading through
the Auto classes with the same outputs; the report's contents; half precision; vocabulary, labels, size, fields of the
configuration; recorded outputs compared; further stages from another head's file and from BEiT; the way back, equal
bit for bit; the script; nothing written or replaced when anything is wrong.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vlmo import HEADS, convert, empty_model, model_class, revert_state_dict
from hf_vlp.models.mome.configuration_vlmo import VlmoConfig

ROOT = Path(__file__).parents[2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "dog", "what", "##s", "?"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 1,
    "image_size": 32,
    "max_text_length": 6,
    "num_labels": 3,
}
FILES = ("config.json", "model.safetensors", "README.md", "modeling_vlmo.py", "mome_interpolation.py")


def random_tensors(head: str, **changes) -> tuple[dict[str, torch.Tensor], VlmoConfig]:
    """Tensors of a tiny model in original names."""
    config = VlmoConfig(**{**SIZES, **({"type_vocab_size": 3} if head == "nlvr2" else {}), **changes})
    ours = {name: torch.randn(value.shape) / 4 for name, value in empty_model(config, head).state_dict().items()}
    return revert_state_dict(ours, config, head, index_tables=True), config


def random_beit() -> dict[str, torch.Tensor]:
    """A BEiT classifier of the same size, in the names of its own code."""
    tensors, _ = random_tensors("base")
    beit = {"model": {"fc_norm.weight": torch.ones(16), "head.weight": torch.ones(7, 16), "head.bias": torch.ones(7)}}
    for name, tensor in tensors.items():
        name = name.removeprefix("transformer.").replace("mlp_imag", "mlp").replace("norm2_imag", "norm2")
        if name.startswith(("blocks.", "cls_token", "patch_embed.")) and "_text" not in name and "_vl" not in name:
            beit["model"][name] = tensor
    for block in range(2):
        beit["model"][f"blocks.{block}.attn.relative_position_bias_table"] = torch.randn(12, 2)
    return beit


@pytest.fixture
def vqa(tmp_path) -> Path:
    tensors, _ = random_tensors("vqa")
    torch.save({"state_dict": tensors, "epoch": 9}, tmp_path / "vqa.ckpt")
    return tmp_path / "vqa.ckpt"


@pytest.fixture
def vocab(tmp_path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path / "vocab.txt"


@pytest.fixture
def labels(tmp_path) -> Path:
    (tmp_path / "answers.txt").write_text("yes\nno\nred\n")
    return tmp_path / "answers.txt"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_complete_repository_loads_through_the_auto_classes(tmp_path, vqa, vocab, labels):
    output = tmp_path / "repository"
    report = convert(vqa, output, vocab=vocab, labels=labels)
    assert all((output / name).is_file() for name in FILES)
    processor = AutoProcessor.from_pretrained(output)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(output).eval()
    assert model.config.id2label == {0: "yes", 1: "no", 2: "red"}
    assert model.config.label2id == {"yes": 0, "no": 1, "red": 2}
    inputs = processor(images=torch.zeros(3, 50, 40, dtype=torch.uint8).numpy(), text="What red dogs?")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert inputs["input_ids"].tolist() == [[2, 7, 5, 6, 8, 3]]  # cut to the model's six tokens
    expected = model_class("vqa")(model.config).eval()
    expected.load_state_dict(load_file(output / "model.safetensors"))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
    original = load_checkpoint(vqa).state_dict
    weights = model.state_dict()
    assert torch.equal(weights["classifier.output.weight"], original["vqa_classifier.3.weight"])
    table = original["relative_position_bias_table"]
    assert torch.equal(weights["vlmo.layers.1.attention.position_bias_table"], table[:, 2:])
    assert report.notes == []


def test_the_report_tells_everything_and_is_stored(tmp_path, vqa):
    report = convert(vqa, tmp_path / "repository")
    stored = json.loads((tmp_path / "repository" / "conversion_report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_dict()))
    sha256 = hashlib.sha256(vqa.read_bytes()).hexdigest()
    assert stored["source"]["sha256"] == sha256
    assert stored["source"]["nesting"] == ["state_dict"]
    assert stored["source"]["ignored"] == ["epoch"]
    assert (stored["head"], stored["recognised_as"], stored["size"]) == ("vqa", "vqa", "other")
    assert stored["config"]["hidden_size"] == 16
    assert set(stored["dropped"]) == {
        "text_embeddings.position_ids",
        "relative_position_index",
        "text_relative_position_index",
        "text_imag_relative_position_index",
    }
    assert stored["new"] == []
    assert stored["versions"]["torch"] == torch.__version__
    num_read = len(load_checkpoint(vqa).state_dict)
    assert stored["checks"][0] == f"{num_read - 4} tensors converted back, equal bit for bit"
    text = str(report)
    for part in (sha256, "VlmoForVisualQuestionAnswering", "index table; made anew", "No vocabulary was given"):
        assert part in text
    assert sha256 in (tmp_path / "repository" / "README.md").read_text()


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"image_classification"}))
def test_every_head_converts_and_comes_back_bit_for_bit(tmp_path, head):
    tensors, _ = random_tensors(head)
    torch.save(tensors, tmp_path / "original.pt")
    report = convert(tmp_path / "original.pt", tmp_path / "repository")
    assert report.head == report.recognised_as == head
    assert convert(tmp_path / "repository", tmp_path / "back.pt", reverse=True) == tmp_path / "back.pt"
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor), name
        assert back[name].dtype == tensor.dtype, name


def test_the_way_back_writes_safetensors_too(tmp_path, vqa):
    convert(vqa, tmp_path / "repository")
    convert(tmp_path / "repository", tmp_path / "back.safetensors", reverse=True)
    original = load_checkpoint(vqa).state_dict
    back = load_file(tmp_path / "back.safetensors")
    assert set(back) == set(original)
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())


def test_the_way_back_needs_a_head_of_the_original(tmp_path, vqa):
    torch.save(random_tensors("pretraining")[0], tmp_path / "original.pt")
    convert(tmp_path / "original.pt", tmp_path / "classifier", head="image_classification", config={"num_labels": 4})
    with pytest.raises(ValueError, match=r"VlmoForImageClassification.*no layout"):
        convert(tmp_path / "classifier", tmp_path / "back.pt", reverse=True)
    convert(vqa, tmp_path / "repository")
    with pytest.raises(ValueError, match=r"must end in \.pt"):
        convert(tmp_path / "repository", tmp_path / "back", reverse=True)
    with pytest.raises(ValueError, match="takes no head, vocab"):
        convert(tmp_path / "repository", tmp_path / "back.pt", reverse=True, head="vqa", vocab="v.txt")


def test_half_precision_becomes_float32(tmp_path):
    tensors, _ = random_tensors("retrieval")
    half = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    torch.save({"module": {f"module.{name}": value for name, value in half.items()}}, tmp_path / "half.pt")
    report = convert(tmp_path / "half.pt", tmp_path / "repository")
    assert report.source["dtypes"]["float16"] > 0
    weights = load_file(tmp_path / "repository" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["itc_text_projection.weight"], half["itc_text_proj.fc.weight"].float())


def test_recorded_outputs_are_compared(tmp_path, vqa):
    convert(vqa, tmp_path / "repository")
    model = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path / "repository").eval()
    inputs = {
        "pixel_values": torch.randn(2, 3, 32, 32),
        "input_ids": torch.tensor([[2, 5, 3], [2, 6, 3]]),
        "attention_mask": torch.ones(2, 3, dtype=torch.int64),
    }
    with torch.no_grad():
        outputs = model(**inputs)
    save_file(inputs | {"recall_ids": torch.ones(2)}, tmp_path / "inputs.safetensors")
    recorded = {"logits": outputs.logits + 2.55e-5, "pooled": torch.zeros(1)}
    save_file(recorded, tmp_path / "expected.safetensors")
    recording = (tmp_path / "inputs.safetensors", tmp_path / "expected.safetensors")
    report = convert(vqa, tmp_path / "checked", parity=recording)
    assert "largest difference 2.5" in report.checks[-1]
    assert "compared logits; not compared: pooled" in report.checks[-1]
    with pytest.raises(ValueError, match=r"more than 1e-05: logits by 2\.5\de-05"):
        convert(vqa, tmp_path / "refused", parity=recording, tolerance=1e-5)
    assert not (tmp_path / "refused").exists()
    save_file({"pooled": torch.zeros(1)}, tmp_path / "expected.safetensors")
    with pytest.raises(ValueError, match=r"none of the outputs.*pooled.*logits"):
        convert(vqa, tmp_path / "refused", parity=recording)
    save_file({"logits": outputs.logits * float("nan")}, tmp_path / "expected.safetensors")
    with pytest.raises(ValueError, match="logits by nan"):
        convert(vqa, tmp_path / "refused", parity=recording)


def test_another_head_starts_a_further_stage(tmp_path):
    tensors, _ = random_tensors("pretraining")
    torch.save(tensors, tmp_path / "pretrained.pt")
    retrieval = convert(tmp_path / "pretrained.pt", tmp_path / "retrieval", head="retrieval")
    assert retrieval.new == []
    assert retrieval.config["use_matching_head"] is True
    assert {name.split(".")[0] for name in retrieval.dropped if "position" not in name} == {
        "mlm_score",
        "itc_vl_text_proj",
        "itc_vl_image_proj",
        "logit_vl_scale",
    }
    nlvr2 = convert(tmp_path / "pretrained.pt", tmp_path / "nlvr2", head="nlvr2")
    assert {name.split(".")[0] for name in nlvr2.new} == {"classifier"}
    assert list(nlvr2.resized) == ["token_type_embeddings.weight"]
    assert json.loads((tmp_path / "nlvr2" / "config.json").read_text())["id2label"] == {"0": "False", "1": "True"}
    with pytest.raises(ValueError, match="How many classes shall the new vqa head have"):
        convert(tmp_path / "pretrained.pt", tmp_path / "vqa", head="vqa")
    vqa = convert(tmp_path / "pretrained.pt", tmp_path / "vqa", head="vqa", config={"image_size": 64, "num_labels": 5})
    assert vqa.resized["relative_position_bias_table"] == "interpolated from 2x2 to 4x4 patches"
    again = convert(
        tmp_path / "pretrained.pt", tmp_path / "again", head="vqa", config={"image_size": 64, "num_labels": 5}
    )
    assert vqa.new == again.new
    weights = (tmp_path / name / "model.safetensors" for name in ("vqa", "again"))
    assert next(weights).read_bytes() == next(weights).read_bytes()  # new parameters too


def test_stage_2_starts_from_beit_and_stage_3_from_stage_2(tmp_path):
    torch.save(random_beit(), tmp_path / "beit.pth")
    report = convert(tmp_path / "beit.pth", tmp_path / "stage2", config={"vocab_size": len(WORDS)})
    assert (report.head, report.recognised_as) == ("masked_lm", "beit")
    assert {"head.weight", "fc_norm.weight"} <= set(report.dropped)
    assert any("experts.text" in name for name in report.new)
    assert any("train the model" in note for note in report.notes)
    convert(tmp_path / "stage2", tmp_path / "stage2.pt", reverse=True)
    with pytest.raises(ValueError, match="Give vl_expert_start_layer"):
        convert(tmp_path / "stage2.pt", tmp_path / "stage3", head="pretraining")
    report = convert(
        tmp_path / "stage2.pt", tmp_path / "stage3", head="pretraining", config={"vl_expert_start_layer": 1}
    )
    assert report.config["max_text_length"] == 40
    assert report.resized == {"text_embeddings.position_embeddings.weight": "first 40 of 196 rows"}
    assert any("layers.1.experts.vl" in name for name in report.new)


@pytest.mark.parametrize(
    "content",
    ['["yes", "no", "red"]', '{"yes": 0, "red": 2, "no": 1}', '{"2": "red", "0": "yes", "1": "no"}'],
)
def test_labels_come_in_every_usual_form(tmp_path, vqa, content):
    (tmp_path / "labels.json").write_text(content)
    convert(vqa, tmp_path / "repository", labels=tmp_path / "labels.json")
    stored = json.loads((tmp_path / "repository" / "config.json").read_text())
    assert stored["id2label"] == {"0": "yes", "1": "no", "2": "red"}


@pytest.mark.parametrize(
    "content, message",
    [
        ('["yes"]', "names 1 classes, the file has 3"),
        ('{"yes": 0, "no": 2}', "numbers from 0 on"),
        ('"yes"', "must be a list of names"),
        ("yes,", "is not JSON"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, vqa, content, message):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        convert(vqa, tmp_path / "repository", labels=tmp_path / "labels.json")
    assert not (tmp_path / "repository").exists()


def test_wrong_options_are_told(tmp_path, vqa, vocab):
    output = tmp_path / "repository"
    vocab.write_text("\n".join([*WORDS, "more"]) + "\n")
    with pytest.raises(ValueError, match="11 entries, the model's vocabulary 10"):
        convert(vqa, output, vocab=vocab)
    with pytest.raises(FileNotFoundError, match=r"no vocabulary .*nothing\.txt"):
        convert(vqa, output, vocab=tmp_path / "nothing.txt")
    with pytest.raises(ValueError, match=r"not of the size 'base', but unpublished.*'hidden_size': 16"):
        convert(vqa, output, size="base")
    with pytest.raises(ValueError, match=r"Unknown size 'huge'.*base_plus"):
        convert(vqa, output, size="huge")
    with pytest.raises(ValueError, match="no field image_sise"):
        convert(vqa, output, config={"image_sise": 64})
    with pytest.raises(ValueError, match="Unknown head 'captioning'"):
        convert(vqa, output, head="captioning")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ValueError, match="must be a JSON object"):
        convert(vqa, output, config=tmp_path / "list.json")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    torch.save(random_tensors("retrieval")[0], tmp_path / "retrieval.pt")
    with pytest.raises(ValueError, match="VlmoForImageTextRetrieval has no classes"):
        convert(tmp_path / "retrieval.pt", output, labels=tmp_path / "labels.txt")
    assert not output.exists()


def test_a_failed_conversion_leaves_the_earlier_output_as_it_was(tmp_path, vqa):
    output = tmp_path / "repository"
    convert(vqa, output)
    before = contents(output)
    tensors = load_checkpoint(vqa).state_dict
    broken = tensors | {"pooler.dense.bias": torch.full((16,), float("nan"))}
    missing = {name: value for name, value in tensors.items() if "blocks.1.mlp_vl" not in name}
    for content, message in ((broken, r"NaN or infinite values: pooler\.dense\.bias"), (missing, r"block 1: mlp_vl")):
        torch.save(content, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=message):
            convert(tmp_path / "bad.pt", output)
        assert contents(output) == before


def test_overflowing_activations_are_noticed(tmp_path, vqa):
    tensors = load_checkpoint(vqa).state_dict
    tensors = tensors | {"vqa_classifier.3.weight": torch.full((3, 32), 3e38)}
    torch.save(tensors, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="NaN or infinite values on random input: logits"):
        convert(tmp_path / "bad.pt", tmp_path / "repository")


def test_uploading_comes_last_and_is_told(tmp_path, vqa, monkeypatch):
    pushed = []

    def push(directory, repo_id):
        assert all((directory / name).is_file() for name in FILES)
        pushed.append(repo_id)
        return f"https://huggingface.co/{repo_id}"

    monkeypatch.setattr("hf_vlp.hub.push.push_repository", push)
    report = convert(vqa, tmp_path / "repository", push_to_hub="me/vlmo")
    assert pushed == ["me/vlmo"]
    assert "https://huggingface.co/me/vlmo" in str(report)


def test_the_script_is_the_command_and_tells_errors_in_one_line(tmp_path):
    script = ROOT / "conversion" / "convert_vlmo.py"
    command = [sys.executable, script, tmp_path, tmp_path / "back.pt", "--reverse", "--push_to_hub", "me/vlmo"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.strip() == ("Error: The way back takes no push_to_hub: the repository knows what it holds.")
