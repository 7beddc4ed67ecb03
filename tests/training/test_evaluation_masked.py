"""Evaluation of joint pre-training and of masked pictures, and short runs of both tasks through `train`.

Covers: accuracies of models whose answers are known, baselines beside them, pictures of other records, sources left
out and named, texts without words, sides of pairs, reads of records, cached visual tokens, kinds of visual tokenizers,
reproducibility, bad pictures, the file of predictions, a missing visual tokenizer; training on scenes from nothing,
resumed in the middle with the same result.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from hf_vlp import (
    MomeImageProcessorPil,
    MomeProcessor,
    VlBeitConfig,
    VlBeitForMaskedImageModeling,
    VlBeitForPreTraining,
    VlBeitVqkdConfig,
    VlBeitVqkdTokenizer,
)
from hf_vlp.cli import app
from hf_vlp.data.joint import JointRecords
from hf_vlp.evaluation import evaluate_model, format_scores
from hf_vlp.pretraining.run import train
from hf_vlp.pretraining.visual_tokens import VisualTokens
from tests.training.tiny import COLOURS, make_records
from tests.training.tiny_vlmo import SIZES, make_processor

PATCHES, CODES = 16, 8
PALETTE = torch.tensor(list(COLOURS.values())) / 255  # (colours, 3)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def visual_tokenizer():
    torch.manual_seed(0)
    sizes = {
        name: SIZES[name] for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    }
    return VlBeitVqkdTokenizer(VlBeitVqkdConfig(**sizes, image_size=32, patch_size=8, codebook_size=CODES, code_dim=4))


def colour_ids(pixel_values: torch.Tensor) -> torch.LongTensor:
    """A visual tokenizer: the number of the picture's colour for each of its patches, pixels in [0, 1]."""
    return torch.cdist(pixel_values[..., 0, 0], PALETTE).argmin(-1)[:, None].expand(-1, PATCHES)


class Looking(nn.Module):
    """Knows the colour of every picture: says it for each hidden patch and word; without a picture it says red."""

    device, dtype = torch.device("cpu"), torch.float32
    config = SimpleNamespace(window_size=4)

    def __init__(self, processor):
        super().__init__()
        self.ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(list(COLOURS)))
        self.seen: list[set] = []

    def words(self, colours, input_ids):
        return nn.functional.one_hot(self.ids[colours][:, None].expand_as(input_ids), 120).float()

    def forward(self, **batch):
        self.seen.append(set(batch))
        outputs = {}
        for prefix, name in (("image_", "mim"), ("", "mvlm_image")):
            if f"{prefix}pixel_values" in batch:
                colours = colour_ids((batch[f"{prefix}pixel_values"] + 1) / 2)
                outputs[f"{name}_logits"] = nn.functional.one_hot(colours, CODES).float()
        if "input_ids" in batch:
            colours = colour_ids((batch["pixel_values"] + 1) / 2)[:, 0]
            outputs["mvlm_text_logits"] = self.words(colours, batch["input_ids"])
        if "text_input_ids" in batch:
            outputs["mlm_logits"] = self.words(
                torch.zeros(len(batch["text_input_ids"]), dtype=int), batch["text_input_ids"]
            )
        return {"logits": outputs.get("mvlm_image_logits"), **outputs}


def one_word_records(number: int) -> list[dict]:
    return [{**record, "captions": [list(COLOURS)[index % 6]]} for index, record in enumerate(make_records(number))]


def measure(model, processor, records, task="joint_pretraining", **options):
    options = {"visual_tokenizer": colour_ids, "progress": False, **options}
    return evaluate_model(model, processor, records, task, **options)


@pytest.fixture
def records() -> JointRecords:
    return JointRecords({"pair": one_word_records(12), "text": one_word_records(18), "image": make_records(24)})


def test_each_objective_is_scored_beside_what_is_hidden_most_often(processor, records):
    scores = measure(Looking(processor), processor, records, batch_size=5)
    assert (scores["mvlm_text_accuracy"], scores["mvlm_image_accuracy"], scores["mim_accuracy"]) == (1, 1, 1)
    assert scores["mlm_accuracy"] == pytest.approx(1 / 6)  # it says red, one of six
    for name in ("mvlm_text", "mvlm_image", "mim", "mlm"):
        assert scores[f"constant_{name}_accuracy"] == pytest.approx(1 / 6)
    assert scores["masked_accuracy"] == pytest.approx((3 + 1 / 6) / 4)
    assert scores["constant_masked_accuracy"] == pytest.approx(1 / 6)
    assert "shuffled_mvlm_text_accuracy" not in scores
    assert (scores["samples"], scores["skipped_samples"]) == (54, 0)
    assert "masked_accuracy" in format_scores("test", scores)


def test_pictures_of_other_records_mislead(processor, records):
    model = Looking(processor)
    scores = measure(model, processor, records, shuffled_pictures=True)
    assert scores["mvlm_text_accuracy"] == 1
    assert scores["shuffled_mvlm_text_accuracy"] < 0.5
    assert "shuffled_mvlm_image_accuracy" not in scores
    single = JointRecords({"pair": one_word_records(1)})
    assert "shuffled_mvlm_text_accuracy" not in measure(model, processor, single, shuffled_pictures=True)


@pytest.mark.parametrize(
    "name, measured", [("pair", {"mvlm_text", "mvlm_image"}), ("text", {"mlm"}), ("image", {"mim"})]
)
def test_sources_that_are_missing_are_not_scored(processor, records, name, measured):
    scores = measure(Looking(processor), processor, JointRecords({name: records.sources[name]}))
    found = {key.removesuffix("_accuracy") for key in scores if key.endswith("_accuracy")}
    assert found == {*measured, "masked", *(f"constant_{objective}" for objective in (*measured, "masked"))}
    told = {part.split(" (")[0] for part in scores["not_measured"].split("; ")}
    assert told == {"mvlm_text", "mvlm_image", "mlm", "mim"} - measured
    assert {"pair": "data.texts", "text": "data.images", "image": "data.texts"}[name] in format_scores("test", scores)


def test_texts_in_which_no_word_can_be_hidden_are_not_measured(processor):
    records = {"image": make_records(2), "text": [{"captions": ["\u2603"]}] * 3}
    scores = measure(Looking(processor), processor, JointRecords(records))
    assert (scores["samples"], scores["skipped_samples"]) == (2, 3)
    assert scores["masked_accuracy"] == scores["mim_accuracy"]
    assert "mlm (no record is usable" in scores["not_measured"]
    with pytest.raises(ValueError, match="nothing to evaluate"):
        measure(Looking(processor), processor, JointRecords({"text": records["text"]}))


class Reads(list):
    """Counts how often records are read."""

    count = 0

    def __getitem__(self, index):
        self.count += 1
        return super().__getitem__(index)


def test_records_are_read_one_at_a_time_and_once_for_each_pass(processor):
    pairs = Reads(one_word_records(6))
    measure(Looking(processor), processor, JointRecords({"pair": pairs}))
    assert pairs.count == 6
    measure(Looking(processor), processor, JointRecords({"pair": pairs}), shuffled_pictures=True)
    assert pairs.count == 6 + 6 + 12  # the last pass reads the record and that of the other picture


def test_shorter_sources_are_measured_once(processor):
    records = JointRecords({"text": one_word_records(7), "image": make_records(2)})
    assert measure(Looking(processor), processor, records)["samples"] == 9


def test_a_plain_list_is_one_of_pairs(processor):
    assert measure(Looking(processor), processor, one_word_records(6))["mvlm_text_accuracy"] == 1


@pytest.mark.parametrize("side, gone", [("text", "mvlm_image"), ("image", "mvlm_text")])
def test_the_side_that_is_masked_in_training_is_measured(processor, side, gone):
    model = Looking(processor)
    tokenizer = colour_ids if side == "image" else None
    scores = measure(model, processor, one_word_records(6), mask_pair_sides=side, visual_tokenizer=tokenizer)
    assert f"{gone}_accuracy" not in scores
    assert ("bool_masked_pos" in model.seen[0]) == (side == "image")


def test_targets_are_kept_from_the_model(processor, records):
    model = Looking(processor)
    measure(model, processor, records, shuffled_pictures=True)
    assert not any(
        name.endswith(("labels", "visual_token_ids", "tokenizer_pixel_values")) for name in set().union(*model.seen)
    )


def test_pictures_alone_are_scored(processor):
    scores = measure(Looking(processor), processor, make_records(18), "masked_image")
    assert scores["mim_accuracy"] == 1
    assert scores["constant_mim_accuracy"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("task", ["joint_pretraining", "masked_image"])
def test_cached_tokens_need_no_tokenizer(processor, task):
    records = [{**record, "visual_token_ids": [index % 6] * PATCHES} for index, record in enumerate(make_records(6))]
    if task == "joint_pretraining":
        records = JointRecords({"image": records})
    assert measure(Looking(processor), processor, records, task, visual_tokenizer=None)["mim_accuracy"] == 1


@pytest.mark.parametrize("task", ["joint_pretraining", "masked_image"])
def test_a_missing_tokenizer_is_told(processor, task):
    with pytest.raises(ValueError, match=r"visual_tokenizer.*--visual-tokenizer.*cached visual_token_ids"):
        measure(Looking(processor), processor, make_records(2), task, visual_tokenizer=None)


def test_tokenizers_come_wrapped_or_from_a_folder(processor, visual_tokenizer, tmp_path):
    wrapped = VisualTokens(colour_ids)
    assert (
        measure(Looking(processor), processor, make_records(3), visual_tokenizer=wrapped)["mvlm_image_accuracy"] == 1
    )
    visual_tokenizer.save_pretrained(tmp_path)
    scores = measure(Looking(processor), processor, make_records(6), "masked_image", visual_tokenizer=str(tmp_path))
    again = measure(Looking(processor), processor, make_records(6), "masked_image", visual_tokenizer=visual_tokenizer)
    assert scores["mim_accuracy"] == again["mim_accuracy"] < 1


def test_the_same_is_hidden_at_every_evaluation(processor):
    torch.manual_seed(0)
    sizes = {**SIZES, "image_size": 16, "patch_size": 4}
    model = VlBeitForPreTraining(VlBeitConfig(vocab_size=120, visual_vocab_size=CODES, **sizes)).train()
    records = JointRecords({"pair": make_records(6), "image": make_records(4), "text": make_records(3)})
    first = measure(model, processor, records, batch_size=4)
    assert model.training
    rates = {"samples_per_second"}
    again = measure(model, processor, records, batch_size=3)
    assert {name: first[name] for name in first.keys() - rates} == {name: again[name] for name in again.keys() - rates}


def test_bad_pictures_are_left_out_and_counted(processor, records):
    pairs, images = list(records.sources["pair"]), list(records.sources["image"])
    pairs[1] = {**pairs[1], "image": b"no picture"}
    pairs[2] = {**pairs[2], "captions": []}
    images[0] = {"image": b"no picture"}
    scores = measure(
        Looking(processor), processor, JointRecords({"pair": pairs, "image": images}), shuffled_pictures=True
    )
    assert (scores["samples"], scores["skipped_samples"]) == (33, 3)
    assert scores["mvlm_text_accuracy"] == 1


def test_the_file_tells_words_and_counts_of_patches(processor, records, tmp_path):
    path = tmp_path / "guesses.json"
    measure(Looking(processor), processor, records, predictions_path=path)
    rows = json.loads(path.read_text())["predictions"]
    assert [row["source"] for row in rows].count("text") == 18
    assert rows[1] == {"source": "pair", "id": 1, "words": [["green", "green"]], "patches": 6, "patches_right": 6}


def test_the_command_line_measures_with_a_tokenizer(processor, visual_tokenizer, tmp_path):
    sizes = {**SIZES, "image_size": 32, "patch_size": 8, "max_text_length": 40, "max_text_length_of_table": 40}
    torch.manual_seed(0)
    VlBeitForPreTraining(VlBeitConfig(vocab_size=120, visual_vocab_size=CODES, **sizes)).save_pretrained(tmp_path)
    MomeProcessor(MomeImageProcessorPil(size=32), processor.tokenizer).save_pretrained(tmp_path)
    visual_tokenizer.save_pretrained(tmp_path / "tokenizer")
    command = ["evaluate", str(tmp_path), "--device", "cpu", "--json", "--no-shuffled", "--data.num_eval_scenes", "3"]
    command += ["--data.scene_size", "32", "--data.images.num_eval_scenes", "2", "--data.images.scene_size", "32"]
    assert "--visual-tokenizer" in CliRunner().invoke(app, command).stderr
    result = CliRunner().invoke(app, [*command, "--visual-tokenizer", str(tmp_path / "tokenizer")])
    assert result.exit_code == 0, result.output
    scores = json.loads(result.stdout)
    assert scores["samples"] == 5
    assert scores["not_measured"] == "mlm (there are no texts alone: set data.texts)"
    assert {"mvlm_text_accuracy", "mvlm_image_accuracy", "mim_accuracy"} <= set(scores)


# Training


def make_settings(folder, task, **data) -> dict:
    scenes = {"source": "scenes", "num_eval_scenes": 5, "scene_size": 32}
    config = {**SIZES, "image_size": 32, "patch_size": 8, "max_text_length": 24, "max_text_length_of_table": 24}
    content = {
        "task": task,
        "model": {
            "architecture": "vl_beit",
            "vocab_size": 100,
            "config": {**config, "visual_vocab_size": CODES},
            "visual_tokenizer_name_or_path": str(folder / "tokenizer"),
        },
        "data": {**scenes, "num_scenes": 8, **data},
        "batches": {"max_length": 24, "augment": {"beit_pair_pretraining": {}}},
        "training": {
            "output_dir": str(folder / "run"),
            "per_device_train_batch_size": 4,
            "max_steps": 4,
            "save_steps": 2,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "evaluation": {"num_samples": 3, "final_splits": ["test"]},
    }
    if task == "joint_pretraining":
        content["data"] |= {
            "texts": {**scenes, "num_scenes": 4},
            "images": {**scenes, "num_scenes": 11, "scene_seed": 1},
        }
        content["batches"]["image_augment"] = {"beit_pretraining": {}}
    return content


def history_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("streaming", [False, True])
def test_joint_pretraining_on_scenes_logs_four_losses_and_resumes_exactly(streaming, visual_tokenizer, tmp_path):
    visual_tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = make_settings(tmp_path, "joint_pretraining")
    if streaming:  # one source is enough
        settings["data"]["texts"]["streaming"] = True
        settings["training"]["shuffle_block"] = 3
    metrics = train(settings, show=lambda text: None)
    history = history_of(tmp_path)
    losses = {f"loss_{name}" for name in ("mlm", "mim", "mvlm_text", "mvlm_image")}
    steps = [entry for entry in history if losses <= set(entry)]
    assert len(steps) == 4
    assert steps[0]["loss"] == pytest.approx(sum(steps[0][name] for name in losses), abs=1e-3)
    assert any("eval_masked_accuracy" in entry for entry in history)
    assert metrics["test_samples"] == 15
    assert 0 <= metrics["test_shuffled_mvlm_text_accuracy"] <= 1
    assert metrics["bad_samples"]["bad"] == metrics["bad_samples"]["bad_pair"] == 0
    before = VlBeitForPreTraining.from_pretrained(tmp_path / "run").state_dict()
    again = train(settings, {"resume_from_checkpoint": str(tmp_path / "run" / "checkpoint-2")}, show=lambda text: None)
    after = VlBeitForPreTraining.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again["test_masked_accuracy"] == metrics["test_masked_accuracy"]


def test_pictures_alone_train_from_nothing(visual_tokenizer, tmp_path):
    visual_tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = make_settings(tmp_path, "masked_image")
    settings["batches"] = {"augment": {"beit_pretraining": {}}, "exact_mask_count": False}
    metrics = train(settings, show=lambda text: None)
    assert 0 <= metrics["test_mim_accuracy"] <= 1
    assert metrics["test_samples"] == 5
    VlBeitForMaskedImageModeling.from_pretrained(tmp_path / "run")
