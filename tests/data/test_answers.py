"""Answer vocabularies and soft labels: numbering, thresholds, scores, the raw-answer option, files, configs, errors.

Equality with the original's vocabulary and labels is in `tests/parity/test_vlmo_answers.py`.
"""

import json
import logging

import pytest
import torch
from transformers import PretrainedConfig

from hf_vlp.data.answers import (
    AnswerVocabulary,
    build_answer_vocabulary,
    make_soft_labels,
    soft_score,
    soft_scores,
)


def questions(*answers: str) -> list[dict]:
    return [{"question_id": number, "multiple_choice_answer": answer} for number, answer in enumerate(answers)]


def test_answers_are_numbered_by_first_appearance():
    annotations = questions("no", "yes", "yes", "yes", "no", "maybe", "2")
    assert list(build_answer_vocabulary(annotations, 2)) == ["no", "yes"]
    assert list(build_answer_vocabulary(annotations, 1)) == ["no", "yes", "maybe", "2"]


def test_nine_occurrences_are_enough_and_eight_are_not():
    assert list(build_answer_vocabulary(questions(*["eight"] * 8, *["nine"] * 9))) == ["9"]


def test_answers_are_normalised_before_they_are_counted():
    assert list(build_answer_vocabulary(questions("A dog.", "the dog", "dog", "Two"), 3)) == ["dog"]


def test_content_of_a_vqa_file_is_understood():
    assert list(build_answer_vocabulary({"annotations": questions("yes")}, 1)) == ["yes"]


def test_a_single_answer_counts_where_there_is_no_multiple_choice_answer():
    annotations = [{"question_id": 1, "answers": ["red"]}, {"question_id": 2, "answer": "The blue"}]
    assert list(build_answer_vocabulary(annotations, 1)) == ["red", "blue"]


@pytest.mark.parametrize("count, score", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (5, 1.0), (10, 1.0)])
def test_soft_score(count, score):
    assert soft_score(count) == score


def test_labels_come_in_the_order_of_the_answers():
    vocabulary = AnswerVocabulary(["yes", "no", "maybe"])
    answers = ["maybe"] * 3 + ["unsure"] * 2 + ["yes"] * 5
    assert soft_scores(answers, vocabulary) == ([2, 0], [0.9, 1.0])


def test_raw_answers_are_normalised_unless_asked_not_to():
    vocabulary = AnswerVocabulary(["dog", "cat"])
    answers = ["a dog"] * 2 + ["dog"] + ["Dog."] + ["the cat"] * 6
    assert soft_scores(answers, vocabulary) == ([0, 1], [1.0, 1.0])
    assert soft_scores(answers, vocabulary, normalize_raw_answers=False) == ([0], [0.3])


def test_answers_that_the_vocabulary_has_are_taken_as_they_are():
    vocabulary = AnswerVocabulary(["t-shirt", "2"])
    assert soft_scores(["t-shirt", "two", "T-Shirt"], vocabulary) == ([0, 1], [0.3, 0.3])


def test_an_only_answer_is_certain():
    assert soft_scores(["yes"], AnswerVocabulary(["yes"])) == ([0], [1.0])


def test_questions_without_a_known_answer_are_dropped_and_counted(caplog):
    annotations = [
        {"question_id": 1, "answers": ["yes"] * 10},
        {"question_id": 2, "answers": [{"answer": "unknown"}] * 10},
        {"question_id": 3, "answers": [{"answer": "Yes"}] * 2 + [{"answer": "unknown"}] * 8},
    ]
    vocabulary = AnswerVocabulary(["yes"])
    logging.getLogger("hf_vlp").addHandler(caplog.handler)
    try:
        found = make_soft_labels(annotations, vocabulary)
        assert found.by_question == {1: ([0], [1.0]), 3: ([0], [0.6])}
        assert found.num_dropped == 1
        assert "1 of 3 questions were dropped" in caplog.text
    finally:
        logging.getLogger("hf_vlp").removeHandler(caplog.handler)
    assert make_soft_labels(annotations, vocabulary, normalize_raw_answers=False).num_dropped == 2


def test_a_vocabulary_maps_both_ways():
    vocabulary = AnswerVocabulary(["yes", "no", ""])
    assert vocabulary.id2label == {0: "yes", 1: "no", 2: ""}
    assert vocabulary.label2id == {"yes": 0, "no": 1, "": 2}
    assert len(vocabulary) == 3
    assert "no" in vocabulary
    assert "maybe" not in vocabulary
    assert vocabulary.decode(torch.tensor([1, 0, 1])) == ["no", "yes", "no"]


def test_labels_beyond_the_vocabulary_are_refused_or_named():
    vocabulary = AnswerVocabulary(["yes"])
    for label in (1, -1):
        with pytest.raises(ValueError, match=f"label {label} is none of the 1"):
            vocabulary.decode([label])
    assert vocabulary.decode([0, 5], unknown="unknown") == ["yes", "unknown"]


def test_a_config_carries_the_vocabulary(tmp_path):
    vocabulary = AnswerVocabulary(["yes", "no", "2"])
    PretrainedConfig(id2label=vocabulary.id2label, label2id=vocabulary.label2id).save_pretrained(tmp_path)
    config = PretrainedConfig.from_pretrained(tmp_path)
    assert config.num_labels == 3
    assert AnswerVocabulary.from_config(config) == vocabulary


def test_a_config_without_names_is_refused():
    with pytest.raises(ValueError, match="5 labels without names"):
        AnswerVocabulary.from_config(PretrainedConfig(num_labels=5))
    config = PretrainedConfig()
    config.id2label = {0: "yes", 2: "no"}
    with pytest.raises(ValueError, match="without gaps"):
        AnswerVocabulary.from_config(config)


def test_a_vocabulary_is_saved_and_loaded(tmp_path):
    vocabulary = AnswerVocabulary(["yes", "café", "left right"])
    path = vocabulary.save(tmp_path / "new" / "answers.json")
    assert AnswerVocabulary.load(path) == vocabulary
    assert AnswerVocabulary(["café", "yes", "left right"]) != vocabulary


def test_a_plain_list_of_answers_is_loaded(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["yes", "no"]))
    assert list(AnswerVocabulary.load(path)) == ["yes", "no"]


@pytest.mark.parametrize(
    "content, message",
    [
        ('["yes",', "not JSON or is cut short"),
        ('{"yes": 0}', "no answer vocabulary"),
        ('{"format": "hf_vlp.answer_vocabulary", "version": 2, "answers": ["yes"]}', "version 2"),
        ('{"format": "hf_vlp.answer_vocabulary", "version": 1}', "no answer vocabulary"),
        ("[]", "answers.json: an answer vocabulary needs at least one"),
        ('["yes", "yes"]', "answers.json: the answer 'yes' has several labels"),
        ('["yes", 3]', "answers.json: answers must be strings, got int"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        AnswerVocabulary.load(path)


def test_one_string_is_no_vocabulary():
    with pytest.raises(TypeError, match="got one string"):
        AnswerVocabulary("yes")


@pytest.mark.parametrize(
    "annotations, min_occurrences, error, message",
    [
        ([], 1, ValueError, "none of the 0 different answers"),
        (questions("yes", "no"), 2, ValueError, "none of the 2 different answers to 2 questions occurs 2 times"),
        (questions("yes"), 0, ValueError, "`min_occurrences`"),
        ([{"multiple_choice_answer": "yes"}], 1, ValueError, "question_id"),
        (
            [{"question_id": 4, "answers": ["a", "b"]}],
            1,
            ValueError,
            "4 has 2 answers and no `multiple_choice_answer`",
        ),
        ([{"question_id": 4}], 1, ValueError, "question 4 needs `answers`"),
        ("train.json", 1, TypeError, "read the JSON file first"),
    ],
)
def test_bad_annotations_make_no_vocabulary(annotations, min_occurrences, error, message):
    with pytest.raises(error, match=message):
        build_answer_vocabulary(annotations, min_occurrences)


@pytest.mark.parametrize(
    "annotations, message",
    [
        ([], "none of 0 questions"),
        ([{"question_id": 1, "answers": ["no"]}], "none of 1 questions has an answer that is among the 1"),
        ([{"question_id": 1, "answers": ["yes"]}] * 2, "question_id 1 occurs twice"),
        ([{"question_id": 1, "answers": []}], "question 1 needs `answers`"),
    ],
)
def test_bad_annotations_make_no_labels(annotations, message):
    with pytest.raises(ValueError, match=message):
        make_soft_labels(annotations, AnswerVocabulary(["yes"]))


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="-1"):
        soft_score(-1)
