"""VQA accuracy against the numbers of the official evaluator, its breakdowns, submission files, bad input."""

import json
import os

import numpy as np
import pytest
import torch

from hf_vlp.metrics.vqa import (
    check_vqa_submission,
    evaluate_vqa,
    human_answers,
    normalize_answer,
    vqa_accuracy,
    vqa_exact_match,
    vqa_metrics,
    write_vqa_submission,
)


@pytest.fixture(scope="module")
def items(vqa_fixture):
    return vqa_fixture["accuracy"]["items"]


def results_of(items):
    return [{"question_id": item["question_id"], "answer": item["prediction"]} for item in items]


def test_every_normalisation_of_the_evaluator_is_reproduced(vqa_fixture):
    wrong = [(raw, want, normalize_answer(raw)) for raw, want in vqa_fixture["normalisation"]]
    assert [case for case in wrong if case[1] != case[2]] == []


def test_the_evaluators_contractions_and_numbers_are_all_known(vqa_fixture):
    facts = vqa_fixture["facts"]
    table = {key: value for key, value in facts["contractions"].items() if key == key.lower()}
    table |= facts["number_words"] | dict.fromkeys(facts["articles"], "")
    assert {key: normalize_answer(key) for key in table} == table


def test_the_evaluators_punctuation_is_all_known(vqa_fixture):
    for mark in vqa_fixture["facts"]["punctuation"]:
        assert normalize_answer(f"x{mark}y") == "x y", mark
        assert normalize_answer(f"x {mark}y") == "x y", mark
        assert normalize_answer(f"x{mark}y {mark}z") == "xy z", mark
        assert normalize_answer(f"1,5 x{mark}y") == "15 xy", mark


def test_no_more_than_32_periods_are_removed():
    assert normalize_answer("." * 40) == "." * 8


def test_every_accuracy_of_the_evaluator_is_reproduced(vqa_fixture, items):
    scores = evaluate_vqa(items, results_of(items))
    assert scores.pop("perQuestion") == {item["question_id"]: item["expected_accuracy"] for item in items}
    assert scores == vqa_fixture["accuracy"]["expected"]


def test_functions_on_lists_give_the_same_as_fractions(vqa_fixture, items):
    predictions, references = [item["prediction"] for item in items], [item["answers"] for item in items]
    types = {f"{name}s": [item[name] for item in items] for name in ("question_type", "answer_type")}
    metrics = vqa_metrics(predictions, references, **types)
    expected = vqa_fixture["accuracy"]["expected"]
    assert round(100 * metrics["vqa_accuracy"], 2) == expected["overall"]
    for name, theirs in (("per_question_type", "perQuestionType"), ("per_answer_type", "perAnswerType")):
        assert {group: round(100 * value, 2) for group, value in metrics[name].items()} == expected[theirs]
    assert vqa_accuracy(predictions, references) == metrics["vqa_accuracy"]
    single = vqa_accuracy(predictions, references, per_sample=True)
    assert np.round(100 * single, 2).tolist() == [item["expected_accuracy"] for item in items]


@pytest.mark.parametrize("count, accuracy", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_by_number_of_equal_answers(count, accuracy):
    answers = ["red"] * count + [f"blue {number}" for number in range(10 - count)]
    assert vqa_accuracy(["red"], [answers]) == pytest.approx(accuracy, abs=1e-15)


def test_answers_are_compared_as_written_when_all_annotators_agree():
    assert vqa_accuracy(["the dog"], [["dog"] * 10]) == 0.0
    assert vqa_accuracy(["the dog"], [["dog"] * 9 + ["cat"]]) == 1.0
    assert vqa_accuracy([" dog\n"], [["dog"] * 10]) == 1.0  # blanks at the ends never count


def test_types_are_optional(items):
    assert set(vqa_metrics(["a"], [["b"] * 10])) == {"vqa_accuracy"}
    bare = [{key: item[key] for key in ("question_id", "answers")} for item in items]
    assert set(evaluate_vqa(bare, results_of(items))) == {"overall", "perQuestion"}


def test_annotation_files_of_vqa_are_understood(items, vqa_fixture):
    annotations = [item | {"answers": [{"answer": text} for text in item["answers"]]} for item in items]
    scores = evaluate_vqa({"annotations": annotations, "info": {}}, results_of(items))
    assert scores["overall"] == vqa_fixture["accuracy"]["expected"]["overall"]


def test_the_order_of_results_does_not_matter(items):
    assert evaluate_vqa(items, results_of(items)[::-1]) == evaluate_vqa(items, results_of(items))


def test_exact_match_normalises_and_takes_any_number_of_answers():
    predictions, references = ["The dog", "2", "red"], [["dog"], ["three", "two"], ["blue"]]
    assert vqa_exact_match(predictions, references) == pytest.approx(2 / 3)
    assert vqa_exact_match(predictions, references, per_sample=True).tolist() == [True, True, False]


@pytest.mark.parametrize(
    "predictions, references, error, message",
    [
        ([], [], ValueError, "no predictions"),
        (["a"], [], ValueError, "1 predictions and 0 reference lists"),
        ("a", [["a"] * 10], TypeError, "put it in a list"),
        (["a"], ["a"], TypeError, r"references\[0\]"),
        ([1], [["a"] * 10], TypeError, r"predictions\[0\]"),
        (["a"], [["a"] * 9 + [None]], TypeError, r"references\[0\]\[9\]"),
        (["a"], [["a"]], ValueError, "has 1 answers.*vqa_exact_match"),
    ],
)
def test_bad_answers_are_refused(predictions, references, error, message):
    for metric in (vqa_accuracy, vqa_metrics):
        with pytest.raises(error, match=message):
            metric(predictions, references)


def test_types_of_another_number_are_refused():
    with pytest.raises(ValueError, match="1 predictions and 2 `answer_types`"):
        vqa_metrics(["a"], [["a"] * 10], answer_types=["other", "number"])


ANNOTATIONS = [{"question_id": number, "answers": ["yes"] * 10} for number in (7, 8)]


@pytest.mark.parametrize(
    "annotations, results, error, message",
    [
        (ANNOTATIONS, [{"question_id": 7, "answer": "yes"}], ValueError, "1 of 2 questions have no answer.* 8"),
        (ANNOTATIONS, [{"question_id": n, "answer": ""} for n in (7, 8, 9)], ValueError, "belong to no question.* 9"),
        (ANNOTATIONS, [{"question_id": str(n), "answer": ""} for n in (7, 8)], ValueError, "'7'.*a text for a number"),
        (
            ANNOTATIONS * 2,
            [{"question_id": n, "answer": ""} for n in (7, 8)],
            ValueError,
            "7 occurs twice in the anno",
        ),
        (ANNOTATIONS, [{"question_id": 7, "answer": ""}] * 2, ValueError, "7 occurs twice in the answers"),
        ([], [{"question_id": 7, "answer": ""}], ValueError, "belong to no question"),
        ({"questions": []}, [], ValueError, "key 'annotations'"),
        ("annotations.json", [], TypeError, "read the JSON file first"),
        ([{"answers": []}], [], ValueError, r"annotations\[0\].*question_id"),
        ([{"question_id": 7, "answers": []}], [{"question_id": 7, "answer": ""}], ValueError, "7 needs `answers`"),
    ],
)
def test_bad_annotations_and_results_are_refused(annotations, results, error, message):
    with pytest.raises(error, match=message):
        evaluate_vqa(annotations, results)


def test_human_answers_in_all_their_forms():
    assert human_answers({"answers": ["a", "b"]}) == ["a", "b"]
    assert human_answers({"answers": [{"answer": "a", "answer_id": 1}]}) == ["a"]
    assert human_answers({"answer": "a"}) == ["a"]
    for wrong in ({}, {"answers": [3]}, {"answers": [{"text": "a"}]}):
        with pytest.raises(ValueError, match="needs `answers`"):
            human_answers(wrong)
    with pytest.raises(TypeError, match="must be a list"):
        human_answers({"answers": "yes"})


def test_a_submission_is_a_json_list_and_scores_as_its_answers(tmp_path, items, vqa_fixture):
    ids, answers = [item["question_id"] for item in items], [item["prediction"] for item in items]
    path = write_vqa_submission(tmp_path / "new" / "results.json", ids, answers, expected_ids=ids)
    assert json.loads(path.read_text(encoding="utf-8")) == results_of(items)
    assert check_vqa_submission(path, question_ids=ids) == results_of(items)
    assert evaluate_vqa(items, path)["overall"] == vqa_fixture["accuracy"]["expected"]["overall"]


@pytest.mark.parametrize("ids", [np.array([1, 2]), torch.tensor([1, 2]), [1, 2], ["a", "b"]])
def test_ids_of_a_submission_may_be_of_any_library(tmp_path, ids):
    path = write_vqa_submission(tmp_path / "results.json", ids, ["yes", "café"])
    found = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["answer"] for entry in found] == ["yes", "café"]
    assert [entry["question_id"] for entry in found] == list(np.asarray(ids).tolist())


@pytest.mark.parametrize(
    "ids, answers, expected, error, message",
    [
        ([1], ["a", "b"], None, ValueError, "1 question ids and 2 answers"),
        ([], [], None, ValueError, "no answers"),
        ([1, 1], ["a", "b"], None, ValueError, "1 occurs twice"),
        ([1], [None], None, ValueError, "must be a string, got None"),
        ([1.5], ["a"], None, TypeError, "whole number or a string, got 1.5"),
        ([True], ["a"], None, TypeError, "got True"),
        ([1], ["a"], [1, 2], ValueError, "1 of 2 questions have no answer"),
        ([1, 3], ["a", "b"], [1], ValueError, "1 of 2 answers belong to no question"),
    ],
)
def test_a_bad_submission_is_not_written(tmp_path, ids, answers, expected, error, message):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(error, match=message):
        write_vqa_submission(path, ids, answers, expected_ids=expected)
    assert path.read_text() == "[]"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize(
    "content, message",
    [
        ("[{", "not JSON or is cut short"),
        ('{"question_id": 1, "answer": "a"}', "must be a list"),
        ('[{"question_id": 1}]', "entry 0 of .*results.json must be"),
        ("[[1, 2]]", "entry 0"),
        ('[{"question_id": null, "answer": "a"}]', "question_id must be"),
        ("[]", "no answers"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content, message):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        check_vqa_submission(path)
