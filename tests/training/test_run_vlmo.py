"""Runs of VLMo from settings: stages with different heads, and every task from nothing.

Covers: language, pairs and questions in one YAML, what each takes from the one before, what stays frozen, resume of
such stages; statements, retrieval, labels; starts from a BEiT and (VL-BEiT) from a VLMo; labels from data, file and
checkpoint; larger pictures; adapters; groups of parameters as in the original, the rate of the head; bad settings.
"""

import functools
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForVisualQuestionAnswering,
    AutoProcessor,
    BeitConfig,
    BeitForImageClassification,
)

from hf_vlp import VlmoForMaskedLM, VlmoForPreTraining
from hf_vlp.data.answers import AnswerVocabulary
from hf_vlp.pretraining.arguments import ModelArguments, VlpTrainingArguments, parse_arguments
from hf_vlp.pretraining.build import find_labels, get_model_class, start_model
from hf_vlp.pretraining.run import train
from hf_vlp.pretraining.trainer import make_parameter_groups
from tests.training.tiny_vlmo import make_model, make_processor, picture

CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vl_expert_start_layer": 1,
    "image_size": 32,
    "patch_size": 16,
    "max_text_length": 24,
    "max_text_length_of_table": 32,
    "drop_path_rate": 0.0,
    "text_dropout": 0.0,
}


def make_settings(output_dir, task: str, **sections) -> dict:
    settings = {
        "task": task,
        "model": {"architecture": "vlmo", "config": CONFIG, "vocab_size": 150},
        "data": {"source": "scenes", "num_scenes": 16, "num_eval_scenes": 6, "scene_size": 32},
        "batches": {"max_length": 24},
        "training": {
            "output_dir": str(output_dir),
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "evaluation": {"batch_size": 4},
    }
    for name, values in sections.items():
        settings[name] = {**settings[name], **values} if isinstance(settings.get(name), dict) else values
    return settings


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """(folder, settings, metrics, shown texts) of a run through language, pairs and questions."""
    folder = tmp_path_factory.mktemp("staged")
    settings = make_settings(folder, "masked_language")
    settings["stages"] = [
        {
            "name": "language",
            "model": {"freeze": ["for_language_stage"], "config": {"vl_expert_start_layer": 2}},
            "training": {"learning_rate": 1e-2, "max_steps": 3, "save_strategy": "steps", "save_steps": 1},
        },
        {
            "name": "pairs",
            "task": "pretraining",
            "model": {"freeze": [], "config": {"vl_expert_start_layer": 1, "max_text_length": 16}},
            "batches": {"max_length": 16},
        },
        {
            "name": "questions",
            "task": "visual_question_answering",
            "model": {"config": {"image_size": 48, "max_text_length": 16}},
            "training": {"head_learning_rate_multiplier": 20.0, "no_decay": "original"},
            "batches": {"max_length": 16},
        },
    ]
    shown = []
    return folder, settings, train(settings, show=shown.append), shown


def test_stages_with_different_heads_follow_one_another(staged):
    folder, _, metrics, shown = staged
    assert {"mlm_accuracy", "constant_mlm_accuracy"} <= {
        name.removeprefix("validation_") for name in metrics["stages"]["language"]
    }
    assert {"validation_itm_accuracy", "validation_mean_recall"} <= metrics["stages"]["pairs"].keys()
    assert {"validation_exact_match", "validation_question_only_exact_match", "validation_constant_answer"} <= set(
        metrics
    )
    model = AutoModelForVisualQuestionAnswering.from_pretrained(folder)
    assert model.config.image_size == 48
    assert {"yes", "no"} <= set(model.config.label2id)
    assert AutoProcessor.from_pretrained(folder).image_processor.size["height"] == 48
    tables = [text for text in shown if text.startswith("Start: ")]
    assert [table.splitlines()[0] for table in tables] == [f"Start: {folder / name}" for name in ("language", "pairs")]


def test_the_tokenizer_knows_the_texts_of_all_stages(staged):
    tokenizer = AutoProcessor.from_pretrained(staged[0] / "language").tokenizer
    assert {"what", "left"} <= set(tokenizer.get_vocab())  # of questions, of captions


def test_a_stage_takes_over_all_that_fits(staged):
    folder, _, _, _ = staged
    settings = ModelArguments(
        architecture="vlmo",
        model_name_or_path=str(folder / "language"),
        config={"vl_expert_start_layer": 1, "max_text_length": 16},
    )
    start = start_model(settings, (), task="pretraining")
    before = dict(VlmoForMaskedLM.from_pretrained(folder / "language").named_parameters())
    for name, parameter in start.model.named_parameters():
        assert (name in start.fresh) == (name not in before), name
        if name == "vlmo.text_embeddings.position_embeddings.weight":
            assert torch.equal(parameter, before[name][:16])
        elif name in before:
            assert torch.equal(parameter, before[name]), name
    assert all("experts.vl" in name or name.startswith(("itc_", "itm_", "logit_")) for name in start.fresh)


def test_the_language_stage_leaves_pictures_and_attention_as_they_were(staged):
    folder, _, _, shown = staged
    first, last = (
        dict(VlmoForMaskedLM.from_pretrained(folder / "language" / f"checkpoint-{step}").named_parameters())
        for step in (1, 3)
    )
    changed = {name for name in first if not torch.equal(first[name], last[name])}
    assert any("experts.text" in name for name in changed)
    assert any(name.startswith("mlm_head") for name in changed)
    assert not [name for name in changed if "experts.image" in name or ".qkv" in name or "image_embeddings" in name]
    tables = [text for text in shown if text.startswith("part ")]  # of language, pairs, questions
    assert ["100.0 %" in table.splitlines()[-1] for table in tables] == [False, True, True]


def test_losses_of_each_objective_are_logged(staged):
    folder, _, _, _ = staged
    entries = [json.loads(line) for line in (folder / "pairs" / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if "loss_itc" in entry]
    assert len(steps) == 2
    for entry in steps:
        parts = 0.25 * entry["loss_mlm"] + entry["loss_itc"] + entry["loss_itm"]
        assert entry["loss"] == pytest.approx(parts, rel=1e-3)


def test_resume_goes_on_with_the_unfinished_head(staged, tmp_path):
    folder, settings, expected, _ = staged
    before = AutoModel.from_pretrained(folder / "questions").state_dict()
    (folder / "questions" / "metrics.json").unlink()
    metrics = train(settings, {"resume_from_checkpoint": "true"}, show=lambda text: None)
    assert metrics["stages"] == expected["stages"]
    after = AutoModel.from_pretrained(folder / "questions").state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("task", ["images_and_text_classification", "image_text_retrieval", "masked_language"])
def test_every_task_trains_from_nothing(task, tmp_path):
    settings = make_settings(tmp_path, task, training={"eval_strategy": "steps", "eval_steps": 2})
    metrics = train(settings, show=lambda text: None)
    assert metrics["train_steps"] == 2
    score = {"images_and_text_classification": "accuracy", "image_text_retrieval": "mean_recall"}.get(
        task, "mlm_accuracy"
    )
    assert 0 <= metrics[f"validation_{score}"] <= 1
    history = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert any(f"eval_{score}" in entry for entry in history)
    assert any("eval_loss" in entry for entry in history)
    assert get_model_class("vlmo", task).from_pretrained(tmp_path).config.hidden_size == 16


def test_labelled_pictures_train_from_a_checkpoint(tmp_path):
    model = make_model(get_model_class("vlmo", "pretraining"), make_processor())
    model.save_pretrained(tmp_path / "start")
    make_processor().save_pretrained(tmp_path / "start")
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        rows = []
        for index, name in enumerate(("red", "blue", "green", "blue")):
            picture(name).save(tmp_path / "data" / f"{index}.png")
            rows.append(json.dumps({"image": f"{index}.png", "category": name}))
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows))
    settings = make_settings(tmp_path / "run", "image_classification")
    settings["model"] = {"architecture": "vlmo", "model_name_or_path": str(tmp_path / "start")}
    settings["data"], settings["batches"] = {"source": str(tmp_path / "data")}, {"max_length": 16}
    metrics = train(settings, show=lambda text: None)
    assert metrics["validation_constant_accuracy"] == 0.5
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert model.config.id2label == {0: "blue", 1: "green", 2: "red"}


def test_adapters_train_with_a_new_head(tmp_path):
    settings = make_settings(
        tmp_path, "visual_question_answering", peft={"preset": "attention", "r": 2, "modules_to_save": ["classifier"]}
    )
    shown = []
    train(settings, show=shown.append)
    assert any("(adapters)" in text for text in shown)
    model = AutoModelForVisualQuestionAnswering.from_pretrained(tmp_path)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_beit_fills_the_image_side(tmp_path):
    config = BeitConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        use_relative_position_bias=True,
        use_absolute_position_embeddings=False,
    )
    torch.manual_seed(0)
    beit = BeitForImageClassification(config)
    for parameter in beit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    beit.save_pretrained(tmp_path / "beit")
    settings = make_settings(tmp_path / "run", "masked_language")
    settings["model"] |= {
        "beit_model_name_or_path": str(tmp_path / "beit"),
        "config": {"max_text_length": 24, "max_text_length_of_table": 32, "vl_expert_start_layer": 2},
        "freeze": ["for_language_stage"],
    }
    settings["evaluation"]["final_splits"] = []
    shown = []
    train(settings, show=shown.append)
    rows = {line.split()[0]: line.split()[1:] for line in shown[0].splitlines()[2:]}
    assert rows["vlmo.layers.*.experts.image"][1:] == ["0", "no"]
    assert rows["vlmo.layers.*.experts.text"][0] == "0"
    assert rows["mlm_head.decoder"][0] == "0"
    assert "Not used of the source: 2 tensors (pooler.layernorm.bias, pooler.layernorm.weight)" in shown[0]
    model = VlmoForMaskedLM.from_pretrained(tmp_path / "run")
    weight = beit.beit.layers[0].mlp.fc1.weight
    assert torch.equal(model.vlmo.layers[0].experts["image"].fc1.weight, weight)


def test_vl_beit_starts_from_a_vlmo_with_its_tokenizer(tmp_path):
    processor = make_processor()
    vlmo = make_model(get_model_class("vlmo", "masked_language"), processor)
    vlmo.save_pretrained(tmp_path / "vlmo")
    processor.save_pretrained(tmp_path / "vlmo")
    settings = ModelArguments(architecture="vl_beit", vlmo_model_name_or_path=str(tmp_path / "vlmo"))
    start = start_model(settings, (), task="masked_language")
    assert type(start.model).__name__ == "VlBeitForMaskedLM"
    theirs = vlmo.vlmo.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in start.model.vl_beit.state_dict().items())
    assert {name.split(".")[0] for name in start.fresh} == {"mlm_head"}
    assert start.processor.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_labels_come_from_data_file_or_checkpoint(tmp_path):
    run = parse_arguments(make_settings(tmp_path, "visual_question_answering", model={"min_answer_count": 2}))
    records = [{"question": "q", "answers": [answer]} for answer in ("No.", "two", "no", "2", "red")]
    assert find_labels(run, records) == ["no", "2"]
    AnswerVocabulary(["b", "a"]).save(tmp_path / "answers.json")
    run.model.answer_vocabulary = str(tmp_path / "answers.json")
    assert find_labels(run, records) == ["b", "a"]
    processor = make_processor()
    make_model(get_model_class("vlmo", run.task), processor, id2label={0: "x", 1: "y"}).save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    settings = ModelArguments(architecture="vlmo", model_name_or_path=str(tmp_path / "m"))
    start = start_model(settings, (), task=run.task, find_labels=lambda: pytest.fail("the checkpoint has its own"))
    assert start.model.config.id2label == {0: "x", 1: "y"}
    start = start_model(settings, (), task="image_classification", find_labels=lambda: ["p", "q", "r"])
    assert start.model.classifier.out_features == 3


def test_a_head_of_the_same_names_and_other_sizes_is_new(tmp_path):
    processor = make_processor()
    questions = make_model(get_model_class("vlmo", "visual_question_answering"), processor, num_labels=5)
    questions.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    settings = ModelArguments(architecture="vlmo", model_name_or_path=str(tmp_path))
    start = start_model(settings, (), task="images_and_text_classification")
    head = {name for name in start.model.state_dict() if name.startswith("classifier.")}
    assert {name for name in start.fresh if name in head and name.endswith("weight")}
    assert set(start.fresh) <= head
    assert torch.equal(start.model.vlmo.norm.weight, questions.vlmo.norm.weight)
    settings.config = {"intermediate_size": 8}
    with pytest.raises(ValueError, match=r"other sizes than .* has: leave sizes as they are"):
        start_model(settings, (), task="images_and_text_classification")


def test_class_names_come_from_the_data(tmp_path):
    run = parse_arguments(make_settings(tmp_path, "image_and_text_classification"))
    assert find_labels(run, [{"label": "b"}, {"label": "a"}, {"label": "b"}]) == ["a", "b"]
    assert find_labels(run, [{"label": True}]) == ["False", "True"]
    assert find_labels(run, [{"label": 2}, {"label": 0}]) == ["0", "1", "2"]
    assert find_labels(run, [{"label": 1}, {"label": None}]) == ["0", "1"]
    assert find_labels(run, [{"label": "a"}, {"label": None}]) == ["a"]
    assert find_labels(parse_arguments(make_settings(tmp_path, "images_and_text_classification")), ()) == [
        "False",
        "True",
    ]


@pytest.mark.parametrize("labels", [[-1, -1], [0, 1.7], ["a", 1], [None]])
def test_labels_that_are_no_classes_are_named_with_their_column(labels, tmp_path):
    run = parse_arguments(make_settings(tmp_path, "image_classification"))
    with pytest.raises(ValueError, match=r"data\.label_column"):
        find_labels(run, [{"label": label} for label in labels])


def test_the_original_groups_decay_other_parameters_than_ours():
    model = make_model(get_model_class("vlmo", "visual_question_answering"), make_processor(), num_labels=3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def decayed(no_decay: str) -> set[str]:
        arguments = VlpTrainingArguments("unused", weight_decay=0.1, no_decay=no_decay, use_cpu=True)
        groups = make_parameter_groups(model, arguments)
        return {names[id(parameter)] for group in groups if group["weight_decay"] for parameter in group["params"]}

    ours, theirs = decayed("model"), decayed("original")
    assert {"vlmo.layers.0.experts.text.norm.weight", "vlmo.image_embeddings.cls_token"} <= theirs - ours
    assert not any(name.endswith(("bias", "attention_norm.weight", "position_bias_table")) for name in theirs)


def test_the_head_has_a_rate_of_its_own():
    model = make_model(get_model_class("vlmo", "visual_question_answering"), make_processor(), num_labels=3)
    arguments = VlpTrainingArguments("unused", learning_rate=1e-3, head_learning_rate_multiplier=20, use_cpu=True)
    rates = {group["name"]: group["lr"] for group in make_parameter_groups(model, arguments)}
    assert rates == {"body": 1e-3, "head": pytest.approx(2e-2)}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "self_critical"}, "trains captioners"),
        ({"model": {"architecture": "vc_gpt", "config": {}}}, "vc_gpt has no head for the task 'masked_language'"),
        ({"batches": {"max_length": 40}}, r"batches\.max_length=40 .*32 positions.*max_text_length_of_table"),
        ({"batches": {"pad_to_multiple_of": 23}}, r"max_length padded to a multiple of 23=46 .*32 positions"),
        ({"model": {"freeze": ["vision"]}}, "has no vision"),
        ({"model": {"config": {**CONFIG, "hiden_size": 3}}}, "'hidden_size'"),
        ({"model": {"beit_model_name_or_path": "b", "model_name_or_path": "c"}}, "one starting point, not model"),
        ({"training": {"head_learning_rate_multiplier": 0.0}}, "must be positive"),
        ({"training": {"head_learning_rate_multiplier": 2.0}}, "needs a group 'head'"),
        ({"training": {"no_decay": "none"}}, "no_decay"),
        ({"training": {"matching_every": 2}}, "VlmoForMaskedLM does not take num_matching"),
        ({"training": {"contrastive_chunk_size": 2}}, "VlmoForMaskedLM does not take chunk_size"),
        ({"training": {"contrastive_chunk_size": 0}}, "contrastive_chunk_size=0"),
        ({"training": {"matching_fraction": 0.0}}, r"matching_fraction=0.0 in \(0, 1\]"),
    ],
)
def test_settings_that_do_not_fit_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(make_settings(tmp_path, "masked_language", **changes), show=lambda text: None)


def test_matching_can_be_left_out_of_some_updates_and_some_pairs(tmp_path, monkeypatch):
    rows = []
    forward = VlmoForPreTraining.forward

    @functools.wraps(forward)  # its signature is what the trainer looks at
    def record(self, *args, **kwargs):
        if self.training:
            rows.append(kwargs["num_matching"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(VlmoForPreTraining, "forward", record)
    training = {"max_steps": 4, "matching_every": 2, "matching_fraction": 0.5}
    train(make_settings(tmp_path, "pretraining", training=training), show=lambda text: None)
    assert rows == [2, 0, 2, 0]


def test_chunks_train_to_the_same_weights(tmp_path):
    weights = []
    for name, chunk_size in (("whole", None), ("chunks", 2)):
        # Plain gradient descent: Adam would blow up the rounding of gradients near zero.
        training = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 3, "per_device_train_batch_size": 5}
        training["contrastive_chunk_size"] = chunk_size
        settings = make_settings(tmp_path / name, "image_text_retrieval", training=training)
        train(settings, show=lambda text: None)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-5, rtol=1e-4)


def test_adapters_that_are_not_merged_cannot_be_followed_by_another_head(tmp_path):
    settings = make_settings(tmp_path, "pretraining", peft={"merge": False}, model={"model_name_or_path": "x"})
    settings["stages"] = [{"name": "a"}, {"name": "b", "task": "image_text_retrieval"}]
    with pytest.raises(ValueError, match="whose adapters are not merged"):
        parse_arguments(settings)


def test_pretraining_leaves_out_a_last_batch_of_one(tmp_path):
    settings = make_settings(
        tmp_path,
        "pretraining",
        data={"num_scenes": 9},
        training={"max_steps": -1, "num_train_epochs": 1},
        evaluation={"final_splits": []},
    )
    assert train(settings, show=lambda text: None)["train_steps"] == 2
    assert AutoModelForPreTraining.from_pretrained(tmp_path).config.vl_expert_start_layer == 1
