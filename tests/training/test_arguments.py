"""Settings: YAML with sections, flags, unknown keys with their neighbour, types, renamed arguments, stages, and what
an evaluation takes of them."""

import dataclasses

import pytest
from transformers import TrainingArguments

from hf_vlp.pretraining.arguments import SECTIONS, describe_arguments, parse_arguments, parse_protocol, read_yaml


def write(path, text: str):
    path.write_text(text)
    return path


def test_sections_of_a_yaml_reach_their_dataclasses(tmp_path):
    path = write(
        tmp_path / "run.yaml",
        """
        # a comment with the exact command
        model: {architecture: vc_gpt, freeze: [vision], config: {num_fusion_layers: 2}}
        data:
          source: scenes
          num_scenes: 50
        batches: {captions_per_image: all}
        training: {output_dir: out, learning_rate: 1e-4, warmup_steps: 0.1, lr_scheduler_type: cosine, max_steps: 5}
        evaluation: {metrics: [cider_d], generation: {num_beams: 5}}
        """,
    )
    run = parse_arguments(path)
    assert run.model.freeze == ["vision"]
    assert run.model.config == {"num_fusion_layers": 2}
    assert run.data.num_scenes == 50
    assert run.batches.captions_per_image == "all"
    assert isinstance(run.training, TrainingArguments)
    assert run.training.learning_rate == 1e-4
    assert run.training.warmup_steps == 0.1
    assert run.training.lr_scheduler_type == "cosine"
    assert run.evaluation.generation == {"num_beams": 5}
    assert run.peft is None
    assert run.stages() == [run]


def test_an_empty_peft_section_means_default_adapters():
    assert parse_arguments({"peft": {}}).peft.preset == "attention"


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {"architekture": "vc_gpt"}}, r"model\.architekture.*'architecture'"),
        ({"training": {"learning_rat": 1}}, r"training\.learning_rat\..*'learning_rate'"),
        ({"traning": {}}, r"section 'traning'.*'training'"),
        ({"data": {"learning_rate": 1}}, r"belongs to the section 'training'"),
        ({"learning_rate": 1}, r"belongs to the section 'training'"),
        ({"training": {"warmup_ratio": 0.1}}, r"warmup_steps"),
        ({"training": {"evaluation_strategy": "steps"}}, r"eval_strategy"),
        ({"model": {"xyzzy": 1}}, r"Valid are .*architecture"),
        ({"model": "vc_gpt"}, r"must hold keys and values"),
    ],
)
def test_unknown_keys_name_the_nearest_one(content, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(content)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"training": {"learning_rate": "fast"}}, r"training\.learning_rate must be float, not 'fast'"),
        ({"training": {"max_steps": 1.5}}, r"training\.max_steps must be int"),
        ({"training": {"max_steps": True}}, r"training\.max_steps must be int"),
        ({"training": {"lr_scheduler_type": "sinus"}}, r"sinus"),
        ({"peft": {"bias": "some"}}, r"peft\.bias"),
        ({"model": {"config": 3}}, r"model\.config"),
        ({"model": {"architecture": "blip"}}, r"'blip'.*vc_gpt"),
        ({"model": {"freeze": ["everything"]}}, r"everything"),
        ({"model": {"vision_model_name_or_path": "clip"}}, r"needs both"),
        ({"data": {"streaming": True}}, r"max_steps"),
        ({"data": {"streaming": True}, "training": {"max_steps": 3, "save_strategy": "epoch"}}, r"save_strategy"),
        ({"objective": "reinforce"}, r"objective='reinforce'"),
        ({"self_critical": {"num_samples": 1, "baseline": "mean_of_others"}}, r"num_samples=1"),
        ({"objective": "self_critical", "batches": {"captions_per_image": 2}}, r"captions_per_image"),
        ({"peft": {}, "model": {"freeze": ["vision"]}}, r"peft freezes"),
        ({"evaluation": {"num_samples": 0}, "training": {"metric_for_best_model": "eval_cider_d"}}, r"num_samples"),
    ],
)
def test_wrong_values_are_named(content, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(content)


def test_flags_win_over_the_yaml():
    content = {"training": {"learning_rate": 1e-4, "max_steps": 5}, "model": {"config": {"num_fusion_layers": 2}}}
    flags = (
        "--learning_rate 2e-3 --training.max_steps=7 --model.config.fusion_dropout 0 --freeze vision language".split()
    )
    run = parse_arguments(
        content, [*flags, "--no-logging-first-step", "--save-only-model", "--objective", "model_loss"]
    )
    assert run.training.learning_rate == 2e-3
    assert run.training.max_steps == 7
    assert run.training.save_only_model is True
    assert run.training.logging_first_step is False
    assert run.model.config == {"num_fusion_layers": 2, "fusion_dropout": 0}
    assert run.model.freeze == ["vision", "language"]


def test_one_value_stands_for_a_list_of_one():
    assert parse_arguments({}, ["--freeze", "vision"]).model.freeze == ["vision"]


def test_negative_numbers_are_values_and_no_flags():
    assert parse_arguments({}, ["--max_steps", "-1"]).training.max_steps == -1


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning_rat", "1"], r"--learning_rat.*'learning_rate'"),
        (["--training.learning_rat", "1"], r"training\.learning_rat.*'learning_rate'"),
        (["--warmup_ratio", "0.1"], r"warmup_steps"),
        (["--max_new_tokens", "3", "stray", "--x", "1"], r"max_new_tokens"),
        (["stray"], r"Unexpected argument 'stray'"),
        (["--num_samples", "3"], r"--self_critical\.num_samples or --evaluation\.num_samples"),
    ],
)
def test_wrong_flags_are_named(flags, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments({}, flags)


def test_stages_take_the_settings_around_them():
    content = {
        "training": {"output_dir": "out", "learning_rate": 1e-3},
        "stages": [
            {"name": "cross_entropy"},
            {"name": "scst", "objective": "self_critical", "training": {"learning_rate": 1e-6}},
        ],
    }
    run = parse_arguments(content, ["--max_steps", "3"])
    first, second = run.stages()
    assert (first.stage, second.stage) == ("cross_entropy", "scst")
    assert (first.objective, second.objective) == ("model_loss", "self_critical")
    assert (first.training.learning_rate, second.training.learning_rate) == (1e-3, 1e-6)
    assert first.training.max_steps == second.training.max_steps == 3
    assert second.training.output_dir.replace("\\", "/") == "out/scst"


@pytest.mark.parametrize(
    "stages, message",
    [
        ([{"training": {}}], "name"),
        ([{"name": "a"}, {"name": "a"}], "different names"),
        ([{"name": "a", "trainin": {}}], "Stage 'a'.*'training'"),
        ("two", "must be a list"),
    ],
)
def test_wrong_stages_are_named(stages, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments({"stages": stages})


@pytest.mark.parametrize(
    "task, augment", [("image_classification", "segmentation"), ("semantic_segmentation", "vlmo_training")]
)
def test_an_augmentation_of_pictures_with_or_without_maps_must_fit_the_task(task, augment):
    with pytest.raises(ValueError, match=f"augment: {augment} does not fit task='{task}'"):
        parse_arguments({"task": task, "batches": {"augment": {augment: {}}}})


def test_settings_tell_where_their_default_is_a_decision_of_this_package():
    told = {entry.name: entry for section in SECTIONS.values() for entry in dataclasses.fields(section)}
    for name in ("whole_word", "mask_pair_sides", "exact_mask_count", "rerank"):
        assert "decision of this package" in told[name].metadata["help"], name


def test_settings_read_again_are_the_same():
    content = {"training": {"learning_rate": 1e-3}, "stages": [{"name": "a"}, {"name": "b", "task": "captioning"}]}
    run = parse_arguments(content, ["--max_steps", "3"])
    again = parse_arguments(run.settings)
    assert [stage.settings for stage in again.stages()] == [stage.settings for stage in run.stages()]


@pytest.mark.parametrize(
    "text, message",
    [
        ("training: [", "not valid YAML"),
        ("- a\n- b", "must hold sections"),
        ("training: {max_steps: 1}\ntraining: {max_steps: 2}", "stands twice"),
    ],
)
def test_a_broken_yaml_is_an_error_with_its_place(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_yaml(write(tmp_path / "run.yaml", text))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no settings file"):
        parse_arguments(tmp_path / "none.yaml")


@pytest.mark.parametrize("text, value", [("1e-4", 1e-4), ("1.5E+3", 1500.0), (".5", 0.5), ("3", 3), ("no", False)])
def test_numbers_are_numbers(tmp_path, text, value):
    read = read_yaml(write(tmp_path / "run.yaml", f"key: {text}"))["key"]
    assert read == value
    assert type(read) is type(value)


def test_every_setting_has_a_help_text():
    text = describe_arguments()
    for name in SECTIONS:
        assert f"{name}:" in text
    assert ": \n" not in text + "\n"


def test_an_evaluation_takes_data_batches_and_what_is_said_of_measuring():
    content = {
        "task": "semantic_segmentation",
        "data": {"source": "scenes", "streaming": True},  # could not be trained without max_steps
        "evaluation": {"sliding_window": {"shortest_edge": 64}, "batch_size": 4},
        "training": {"seed": 3},
        "stages": [{"name": "a", "task": "joint_pretraining", "batches": {"mask_probability": 0.3}}],
    }
    protocol = parse_protocol(content, ["--evaluation.batch_size", "8"], task="semantic_segmentation")
    assert protocol.evaluation == {"sliding_window": {"shortest_edge": 64}, "batch_size": 8}
    assert (protocol.data.record_type, protocol.data.streaming, protocol.seed) == ("segmentation", True, 3)
    protocol = parse_protocol(content, task="joint_pretraining")
    assert (protocol.batches.mask_probability, protocol.batches.whole_word) == (0.3, False)
    assert parse_protocol({"data": {}}, task="captioning").seed is None
    with pytest.raises(ValueError, match=r"joint_pretraining alone, not by captioning"):
        parse_protocol({"data": {"images": {"source": "scenes"}}}, task="captioning")
