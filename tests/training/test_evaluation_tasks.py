"""Evaluation of every task but captioning: scores and baselines of models whose answers are known, counts, files.

Covers: questions (soft and exact scores, constant, question-only, other pictures), statements over two pictures,
retrieval with chance and re-ranking, masked words, pre-training, labels, bad pictures, labels and texts, a single
record, files, unknown options.
"""

import json
import math
from itertools import permutations

import pytest
import torch
from torch import nn

from hf_vlp import (
    VlmoForImageClassification,
    VlmoForImagesAndTextClassification,
    VlmoForImageTextRetrieval,
    VlmoForMaskedLM,
    VlmoForPreTraining,
    VlmoForVisualQuestionAnswering,
)
from hf_vlp.data.collators import BadSampleError, BadSamplePolicy
from hf_vlp.evaluation import evaluate_model, format_scores, is_score
from hf_vlp.evaluation_tasks import chance_recalls, predict_records
from hf_vlp.tasks import TASKS, get_task
from tests.training.tiny import COLOURS, make_records
from tests.training.tiny_vlmo import make_model, make_processor, make_questions, make_statements, picture

ANSWERS = [*COLOURS, "yes", "no"]
LABELS = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: label for label, name in enumerate(ANSWERS)}}


@pytest.fixture(scope="module")
def processor():
    return make_processor()


def colour_numbers(pixel_values) -> torch.Tensor:
    """Number of the colour of each picture, from its first pixel."""
    palette = torch.tensor(list(COLOURS.values())) / 127.5 - 1  # (colours, 3)
    return torch.cdist(pixel_values[..., 0, 0], palette).argmin(-1)


class Looking(nn.Module):
    """Stands for a perfect model: `answer` gets the colour of the picture (or both) and the text, returns a label."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, model, processor, answer):
        super().__init__()
        self.config, self.processor, self.answer = model.config, processor, answer

    def forward(self, pixel_values=None, input_ids=None, attention_mask=None):
        texts = [None] * len(pixel_values)
        if input_ids is not None:
            texts = self.processor.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        guesses = torch.tensor([self.answer(*pair) for pair in zip(colour_numbers(pixel_values), texts)])
        logits = nn.functional.one_hot(guesses, self.config.num_labels).float()
        return type("Output", (), {"logits": logits})


def answer_questions(colour, question: str) -> int:
    if question.startswith("what"):
        return int(colour)
    return ANSWERS.index("yes" if question.split()[-1] == list(COLOURS)[colour] else "no")


@pytest.fixture(scope="module")
def looking(processor):
    return Looking(make_model(VlmoForVisualQuestionAnswering, processor, **LABELS), processor, answer_questions)


def test_answers_are_scored_beside_constant_question_and_other_pictures(processor, looking, tmp_path):
    records = make_questions(24)
    path = tmp_path / "answers.json"
    scores = evaluate_model(
        looking,
        processor,
        records,
        "visual_question_answering",
        training_records=make_questions(60),
        shuffled_pictures=True,
        predictions_path=path,
        progress=False,
    )
    assert scores["exact_match"] == 1.0
    assert scores["shuffled_exact_match"] < 0.6
    assert scores["constant_answer"] in ANSWERS
    assert scores["constant_exact_match"] == pytest.approx(
        sum(record["answer"] == scores["constant_answer"] for record in records) / 24
    )
    assert scores["constant_exact_match"] <= scores["question_only_exact_match"] < 0.7
    assert "vqa_accuracy" not in scores  # one annotator
    content = json.loads(path.read_text())
    assert [row["question_id"] for row in content["predictions"]] == list(range(24))
    assert content["predictions"][0]["answer"] == "red"


def test_several_annotators_give_the_soft_score(processor, looking):
    record = {**make_questions(1)[0], "answers": ["red", "red", "crimson"] + ["rose"] * 7}
    scores = evaluate_model(looking, processor, [record], "visual_question_answering", progress=False)
    assert scores["vqa_accuracy"] == pytest.approx(0.6)
    assert scores["exact_match"] == 1.0
    assert "constant_exact_match" not in scores


def test_a_question_that_training_never_asked_gets_the_constant(processor, looking):
    records = [{"image": picture("red"), "question": "is it black", "answer": "no"}]
    task, options = "visual_question_answering", {"progress": False}
    training = [{"question": "what", "answer": "green"}] * 3 + [{"question": "is it red", "answer": "no"}]
    scores = evaluate_model(looking, processor, records, task, training_records=training, **options)
    assert (scores["question_only_exact_match"], scores["constant_exact_match"]) == (0.0, 0.0)
    training.append({"question": "Is it  BLACK", "answer": "no"})  # case and spaces do not make another question
    scores = evaluate_model(looking, processor, records, task, training_records=training, **options)
    assert (scores["question_only_exact_match"], scores["constant_exact_match"]) == (1.0, 0.0)


def test_bad_pictures_are_left_out_and_counted(processor, looking):
    records = make_questions(6)
    records[1]["image"] = b"no picture"
    scores = evaluate_model(
        looking, processor, records, "visual_question_answering", shuffled_pictures=True, progress=False
    )
    assert (scores["samples"], scores["skipped_samples"], scores["exact_match"]) == (5, 1, 1.0)


def test_an_unnamed_vocabulary_is_refused(processor):
    model = make_model(VlmoForVisualQuestionAnswering, processor, num_labels=3)
    with pytest.raises(ValueError, match="without names"):
        evaluate_model(model, processor, make_questions(2), "visual_question_answering", progress=False)


def test_statements_are_scored_with_consistency_and_baselines(processor):
    model = make_model(VlmoForImagesAndTextClassification, processor)

    def judge(colours, statement):
        return int(statement.split()[-1] == list(COLOURS)[colours[0]])

    records = make_statements(24)
    scores = evaluate_model(
        Looking(model, processor, judge),
        processor,
        records,
        "images_and_text_classification",
        training_records=[{**record, "label": bool(record["label"])} for record in records[:9]],
        shuffled_pictures=True,
        progress=False,
    )
    assert (scores["accuracy"], scores["consistency"]) == (1.0, 1.0)
    assert scores["shuffled_accuracy"] < 0.8
    assert scores["constant_accuracy"] == 0.5
    assert scores["question_only_accuracy"] >= 0.5


def test_labels_may_be_names(processor):
    model = make_model(VlmoForImageClassification, processor, **LABELS)
    looking = Looking(model, processor, lambda colour, _: int(colour))
    records = [{"image": picture(name), "label": name.upper()} for name in ("red", "blue", "blue")]
    scores = evaluate_model(
        looking, processor, records, "image_classification", training_records=records, progress=False
    )
    assert (scores["accuracy"], scores["constant_accuracy"], scores["constant_answer"]) == (1.0, 2 / 3, "blue")


def test_names_that_differ_in_case_alone_are_classes_of_their_own(processor):
    names = ["May", "may"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: label for label, name in enumerate(names)}}
    model = make_model(VlmoForImageClassification, processor, **labels)
    looking = Looking(model, processor, lambda colour, _: int(colour))
    records = [{"image": picture(name), "label": label} for name, label in zip(("red", "green"), names)]
    records.append({"image": picture("red"), "label": "MAY"})  # one of the two
    scores = evaluate_model(looking, processor, records, "image_classification", progress=False)
    assert (scores["accuracy"], scores["samples"], scores["skipped_samples"]) == (1.0, 2, 1)


def test_labels_that_are_none_of_the_models_are_bad_samples(processor):
    model = make_model(VlmoForImageClassification, processor, **LABELS)
    looking = Looking(model, processor, lambda colour, _: int(colour))
    good = {"image": picture("blue"), "label": 2}
    records = [{**good, "label": label} for label in ("purple", None, -1, 99, 1.7, float("nan"))]
    policy = BadSamplePolicy()
    options = {"progress": False, "bad_samples": policy}
    training = [*records, good]
    scores = evaluate_model(
        looking, processor, [*records, good], "image_classification", training_records=training, **options
    )
    assert (scores["accuracy"], scores["samples"], scores["skipped_samples"]) == (1.0, 1, 6)
    assert scores["constant_answer"] == "blue"
    assert (policy.counts["other"], policy.counts["seen"]) == (6, 7)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate_model(looking, processor, records, "image_classification", **options)
    with pytest.raises(BadSampleError, match="'purple'"):
        evaluate_model(
            looking, processor, records, "image_classification", bad_samples=BadSamplePolicy("raise"), progress=False
        )
    with pytest.raises(ValueError, match="no 'label'"):
        evaluate_model(looking, processor, [{"image": picture("red")}], "image_classification", progress=False)


def test_questions_without_a_question_or_an_answer_are_bad_samples(processor, looking):
    records = make_questions(4)
    records[1]["question"], records[2]["answer"] = None, None
    scores = evaluate_model(
        looking,
        processor,
        records,
        "visual_question_answering",
        training_records=records,
        shuffled_pictures=True,
        progress=False,
    )
    assert (scores["samples"], scores["skipped_samples"], scores["exact_match"]) == (2, 2, 1.0)


def test_a_single_record_is_measured_without_other_pictures(processor, looking):
    scores = evaluate_model(
        looking, processor, make_questions(1), "visual_question_answering", shuffled_pictures=True, progress=False
    )
    assert scores["exact_match"] == 1.0
    assert not any(name.startswith("shuffled") for name in scores)


def test_retrieval_counts_both_directions_beside_chance(processor):
    model = make_model(VlmoForImageTextRetrieval, processor)
    records = make_records(5)
    records[3] = {**records[3], "image": b"bad"}
    records.append({**make_records(6)[5], "captions": []})
    scores = evaluate_model(model, processor, records, "image_text_retrieval", rerank=2, progress=False)
    assert (scores["samples"], scores["skipped_samples"], scores["texts"]) == (4, 2, 16)
    assert scores["chance_text_to_image_recall_at_1"] == 0.25
    assert scores["image_to_text_recall_at_10"] >= scores["image_to_text_recall_at_1"]
    assert 0 <= scores["reranked_text_to_image_recall_at_1"] <= 1
    assert not model.training


def test_retrieval_without_matching_head_cannot_rerank(processor):
    model = make_model(VlmoForImageTextRetrieval, processor, use_matching_head=False)
    with pytest.raises(ValueError, match="no matching head"):
        evaluate_model(model, processor, make_records(3), "image_text_retrieval", rerank=2, progress=False)


@pytest.mark.parametrize("num_texts", [(1, 1, 1), (2, 1), (1, 3)])
def test_chance_is_the_mean_over_all_rankings(num_texts):
    owners = [image for image, number in enumerate(num_texts) for _ in range(number)]
    for k in (1, 2):
        hits = [
            sum(image in order[:k] for image in range(len(num_texts))) / len(num_texts)
            for order in permutations(owners)
        ]
        assert chance_recalls(num_texts, (k,))[f"image_to_text_recall_at_{k}"] == pytest.approx(sum(hits) / len(hits))
        assert chance_recalls(num_texts, (k,))[f"text_to_image_recall_at_{k}"] == min(1, k / len(num_texts))


def test_masked_words_are_the_same_at_every_evaluation(processor):
    model = make_model(VlmoForMaskedLM, processor)
    first, second = (
        evaluate_model(model, processor, make_records(12), "masked_language", batch_size=5, progress=False)
        for _ in range(2)
    )
    rates = ("samples_per_second",)
    assert {k: v for k, v in first.items() if k not in rates} == {k: v for k, v in second.items() if k not in rates}
    assert 0 <= first["mlm_accuracy"] <= 1
    assert 0 < first["constant_mlm_accuracy"] < 1


def test_texts_in_which_no_word_can_be_hidden_are_not_measured(processor):
    model = make_model(VlmoForMaskedLM, processor)
    unknown = [{"captions": ["\u2603"]}] * 3  # nothing but the unknown piece
    scores = evaluate_model(model, processor, [*unknown, *make_records(4)], "masked_language", progress=False)
    assert (scores["samples"], scores["skipped_samples"]) == (4, 3)
    with pytest.raises(ValueError, match="word that can be hidden: nothing to evaluate"):
        evaluate_model(model, processor, unknown, "masked_language", progress=False)
    pairs = [{**record, "captions": ["\u2603"]} for record in make_records(3)]
    model = make_model(VlmoForPreTraining, processor)
    scores = evaluate_model(model, processor, pairs, "pretraining", shuffled_pictures=True, progress=False)
    assert not any("mlm_accuracy" in name for name in scores)
    assert "not measured: mlm" in format_scores("test", scores)


def test_pretraining_is_measured_by_each_objective(processor, tmp_path):
    model = make_model(VlmoForPreTraining, processor)
    state = torch.random.get_rng_state()
    scores = evaluate_model(
        model,
        processor,
        make_records(7),
        "pretraining",
        batch_size=3,
        shuffled_pictures=True,
        predictions_path=tmp_path / "p.json",
        progress=False,
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert (scores["samples"], scores["skipped_samples"]) == (6, 1)  # the last one is alone in its batch
    assert scores["constant_itm_accuracy"] == 2 / 3
    assert {"mlm_accuracy", "shuffled_mlm_accuracy", "itm_accuracy", "mean_recall"} <= scores.keys()
    assert scores["chance_image_to_text_recall_at_1"] == pytest.approx(1 / 6)
    assert all(math.isfinite(value) for name, value in scores.items() if is_score(name))


def test_tables_put_baselines_beside_the_model(processor, looking):
    scores = evaluate_model(
        looking,
        processor,
        make_questions(6),
        "visual_question_answering",
        training_records=make_questions(6),
        progress=False,
    )
    table = format_scores("test", scores)
    assert "question only" in table.splitlines()[0]
    assert "exact_match" in table
    assert "6 samples, 0 skipped" in table
    assert f"constant: {scores['constant_answer']!r}" in table


def test_unknown_options_and_tasks_are_named(processor, looking):
    with pytest.raises(ValueError, match=r"no option \['rerank'\].*batch_size"):
        evaluate_model(looking, processor, make_questions(2), "visual_question_answering", rerank=3)
    with pytest.raises(ValueError, match="task='vqa' is not one of captioning"):
        evaluate_model(looking, processor, make_questions(2), "vqa")
    with pytest.raises(ValueError, match="no 'image'"):
        predict_records(looking, [{"picture": 1}], lambda images, rows: rows, progress=False)


@pytest.mark.parametrize("name", TASKS)
def test_every_entry_of_the_table_exists(name):
    task = get_task(name)
    assert callable(task.load("collator"))
    assert callable(task.load("evaluate"))
