"""Captioning evaluation: batches, metrics, shuffled pictures, the constant caption, bad pictures, files."""

import json

import pytest
import torch

from hf_vlp.data.collators import BadSampleError, BadSamplePolicy, CaptionCollator
from hf_vlp.evaluation import (
    best_constant_caption,
    evaluate_captioning,
    generate_captions,
    shuffled_order,
    write_json,
)
from hf_vlp.metrics.captioning import cider_d
from hf_vlp.pretraining.arguments import VlpTrainingArguments
from hf_vlp.pretraining.callbacks import EvaluationCallback
from hf_vlp.pretraining.trainer import VlpTrainer
from tests.training.tiny import make_model, make_processor, make_records


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def one_caption(records):
    return [{**record, "captions": record["captions"][:1]} for record in records]


@pytest.fixture(scope="module")
def trained(processor, tmp_path_factory):
    """A model that has learned one sentence for each of the six colours, and the metrics of its evaluations."""
    output_dir = tmp_path_factory.mktemp("run")
    model = make_model(processor, dropout=0.0)
    captioning = EvaluationCallback(
        processor,
        one_caption(make_records(6)),
        task="captioning",
        generation={"max_new_tokens": 8},
        predictions_dir=output_dir,
    )
    trainer = VlpTrainer(
        model=model,
        args=VlpTrainingArguments(
            str(output_dir),
            per_device_train_batch_size=12,
            max_steps=150,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=75,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=one_caption(make_records(12)),
        eval_dataset=one_caption(make_records(6)),
        data_collator=CaptionCollator(processor),
        callbacks=[captioning],
    )
    captioning.trainer = trainer
    trainer.train()
    return model, trainer, output_dir


def test_a_trained_model_beats_shuffled_pictures_and_the_constant_caption(processor, trained):
    records = one_caption(make_records(12))
    scores = evaluate_captioning(
        trained[0],
        processor,
        records,
        generation={"max_new_tokens": 8},
        shuffled_pictures=True,
        training_captions=[record["captions"][0] for record in records],
        progress=False,
    )
    assert scores["exact_match"] == 1.0
    assert scores["cider_d"] > 2 * max(scores["shuffled_cider_d"], scores["constant_cider_d"])
    assert scores["shuffled_exact_match"] < 0.5
    assert scores["constant_exact_match"] == pytest.approx(1 / 6)
    assert scores["constant_candidates"] == 6
    assert scores["pictures"] == 12


def test_captions_during_training_are_in_the_metrics_the_log_and_a_file(trained):
    _, trainer, output_dir = trained
    history = [entry for entry in trainer.state.log_history if "eval_cider_d" in entry]
    assert [entry["step"] for entry in history] == [75, 150]
    assert history[-1]["eval_exact_match"] == 1.0
    stored = json.loads((output_dir / "step-150.json").read_text())
    assert stored["predictions"][0]["caption"] == "a red square"
    assert trainer.evaluate()["eval_cider_d"] == pytest.approx(history[-1]["eval_cider_d"])


def test_captions_do_not_depend_on_the_batch_size_or_the_mode(processor, trained):
    model, records = trained[0], make_records(7)
    model.train()
    captions = generate_captions(model, processor, records, batch_size=3, progress=False)
    assert model.training
    model.eval()
    assert captions == generate_captions(model, processor, records, batch_size=7, progress=False)
    assert not model.training
    assert captions[1] == "a green square"


def test_several_sequences_per_picture_give_the_best(processor, trained):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 8}
    captions = generate_captions(trained[0], processor, make_records(3), generation=options, progress=False)
    assert captions == ["a red square", "a green square", "a blue square"]


def test_any_iterable_of_records_is_captioned(processor, trained):
    captions = generate_captions(trained[0], processor, iter(make_records(3)), progress=False)
    assert captions == ["a red square", "a green square", "a blue square"]


def test_bad_pictures_are_left_out_and_counted(processor, trained):
    records = make_records(4)
    records[2] = {**records[2], "image": b"no picture"}
    captions = generate_captions(trained[0], processor, records, progress=False)
    assert captions[2] is None
    assert None not in captions[:2] + captions[3:]
    scores = evaluate_captioning(trained[0], processor, records, progress=False)
    assert (scores["pictures"], scores["skipped_pictures"]) == (3, 1)


def test_bad_pictures_stop_the_evaluation_when_asked(processor, trained):
    with pytest.raises(BadSampleError, match="record 0"):
        generate_captions(
            trained[0], processor, [{"image": b"x"}], bad_samples=BadSamplePolicy("raise"), progress=False
        )


def test_records_without_references_cannot_be_evaluated(processor, trained):
    records = [{**record, "captions": [""]} for record in make_records(2)]
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_captioning(trained[0], processor, records, progress=False)


def test_predictions_are_written_with_their_ids(processor, trained, tmp_path):
    path = tmp_path / "deep" / "predictions.json"
    scores = evaluate_captioning(trained[0], processor, make_records(2), predictions_path=path, progress=False)
    content = json.loads(path.read_text())
    assert [row["id"] for row in content["predictions"]] == [0, 1]
    assert content["metrics"]["cider_d"] == scores["cider_d"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path / "metrics.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.json"]


def test_one_readable_picture_is_scored_without_shuffling(processor, trained):
    records = [*make_records(1), {"image": b"no picture", "captions": ["a red square"]}]
    scores = evaluate_captioning(trained[0], processor, records, shuffled_pictures=True, progress=False)
    assert (scores["pictures"], scores["skipped_pictures"]) == (1, 1)
    assert not any(name.startswith("shuffled") for name in scores)


@pytest.mark.parametrize("number", [2, 3, 10, 101])
def test_shuffling_moves_every_picture(number):
    order = shuffled_order(number, seed=3)
    assert sorted(order) == list(range(number))
    assert all(place != picture for place, picture in enumerate(order))
    assert order == shuffled_order(number, seed=3)


def test_best_constant_caption_is_the_best_by_brute_force():
    references = [["a dog runs", "the dog runs fast"], ["a dog sleeps"], ["a cat sleeps"], ["two birds in the sky"]]
    candidates = ["a dog runs", "a cat", "two birds", "a dog sleeps", "the sky", "a bus"]
    caption, score, number = best_constant_caption(candidates, references)
    brute_force = {text: cider_d([text] * len(references), references) for text in candidates}
    assert score == pytest.approx(max(brute_force.values()))
    assert brute_force[caption] == pytest.approx(score)
    assert number == len(candidates)


def test_the_search_keeps_good_candidates():
    references = [["a dog runs on grass"], ["a dog sits on grass"], ["a cat"], ["a dog runs on sand"]]
    noise = [f"word{index} thing{index}" for index in range(300)]
    caption, _, number = best_constant_caption([*noise, "a dog runs on grass"], references, candidates=3)
    assert caption == "a dog runs on grass"
    assert number == 3


def test_a_batch_size_of_zero_is_refused(processor, trained):
    with pytest.raises(ValueError, match="batch_size=0"):
        generate_captions(trained[0], processor, make_records(1), batch_size=0)


def test_half_precision_models_caption(processor):
    model = make_model(processor).to(torch.bfloat16)
    assert len(generate_captions(model, processor, make_records(2), progress=False)) == 2
