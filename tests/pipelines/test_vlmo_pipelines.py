"""VLMo and VL-BEiT in pipelines, each on a repository as it is saved: ours for questions, and the stock ones.

Covers: `visual-question-answering` through the three doors (without trust, in a process without hf_vlp, from a
repository with code); its scores against the model's own; questions padded and cut; `zero-shot-image-classification`,
`image-classification`, `image-feature-extraction` (tokens and pooled) and `fill-mask` against the model's own numbers,
alone and in batches; the stock pipelines in a process without hf_vlp.
"""

import json

import pytest
import torch
import transformers

import hf_vlp
from hf_vlp.pipelines import VisualQuestionAnsweringPipeline
from tests.pipelines.test_doors import BLOCK, run
from tests.pipelines.tiny_captioners import picture
from tests.pipelines.tiny_vlmo import LABELS, save_vlmo

PICTURES = [picture(0), picture(1, 40), picture(2).resize((40, 20))]
QUESTIONS = ["the red circle", "what is above the large cross", "small"]
CLASSES = {
    "visual-question-answering": "ForVisualQuestionAnswering",
    "zero-shot-image-classification": "ForImageTextRetrieval",
    "image-classification": "ForImageClassification",
    "image-feature-extraction": "Model",
    "fill-mask": "ForMaskedLM",
}


@pytest.fixture(scope="module", params=["Vlmo", "VlBeit"])
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def directories(family, tmp_path_factory):
    root = tmp_path_factory.mktemp(family)
    return {task: save_vlmo(root / name, family + name) for task, name in CLASSES.items()}


@pytest.fixture(scope="module")
def pipes(directories):
    return {task: transformers.pipeline(task, directory, device="cpu") for task, directory in directories.items()}


@pytest.fixture(scope="module")
def processor(directories):
    return transformers.AutoProcessor.from_pretrained(directories["fill-mask"])


@pytest.mark.parametrize("task", CLASSES)
def test_each_task_loads_the_class_that_was_saved(pipes, family, task):
    assert type(pipes[task].model) is getattr(hf_vlp, family + CLASSES[task])


# --- questions ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def own_scores(pipe, processor, image, question):
    logits = pipe.model(**processor(images=image, text=question)).logits
    return dict(zip(LABELS, logits.sigmoid()[0].tolist()))


def by_answer(rows):
    return {row["answer"]: row["score"] for row in rows}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_answers_are_scored_with_the_models_own_sigmoids(pipes, processor, batch_size):
    pipe = pipes["visual-question-answering"]
    assert type(pipe) is VisualQuestionAnsweringPipeline
    results = pipe(image=PICTURES, question=QUESTIONS, top_k=100, batch_size=batch_size)
    expected = [own_scores(pipe, processor, image, question) for question in QUESTIONS for image in PICTURES]
    assert len({tuple(round(score, 3) for score in scores.values()) for scores in expected}) == 9, "all must differ"
    for rows, scores in zip(results, expected, strict=True):
        assert by_answer(rows) == pytest.approx(scores, abs=1e-5)


def test_a_question_longer_than_the_positions_is_cut_as_the_processor_does(pipes, processor):
    pipe = pipes["visual-question-answering"]
    question = " ".join(["red circle"] * 30)
    batch = processor(images=PICTURES[0], text=question, max_length=16)
    with torch.no_grad():
        expected = pipe.model(**batch).logits.sigmoid()[0].tolist()
    assert by_answer(pipe(PICTURES[0], question, top_k=7)) == pytest.approx(dict(zip(LABELS, expected)), abs=1e-5)


@pytest.mark.parametrize("task", ["visual-question-answering", "vqa"])
@pytest.mark.parametrize("trust", [None, True])
def test_doors_1_and_3_the_installed_class_answers_whatever_is_trusted(directories, task, trust):
    directory = directories["visual-question-answering"]
    pipe = transformers.pipeline(task, directory, trust_remote_code=trust, device="cpu")
    assert type(pipe) is VisualQuestionAnsweringPipeline
    assert not type(pipe.model).__module__.startswith("transformers_modules")
    assert len(pipe(PICTURES[0], QUESTIONS[0])) == 5


WITHOUT_THE_PACKAGE = """
import json, sys
from transformers import pipeline
picture, directories = sys.argv[1], json.loads(sys.argv[2])
calls = {
    "visual-question-answering": {"image": picture, "question": ["the red circle", "small"]},
    "zero-shot-image-classification": {"inputs": picture, "candidate_labels": ["red", "small"]},
    "image-feature-extraction": {"inputs": picture, "pool": True},
}
results = {}
for task, arguments in calls.items():
    pipe = pipeline(task, directories[task], trust_remote_code=True, device="cpu")
    assert type(pipe.model).__module__.startswith("transformers_modules"), type(pipe.model)
    results[task] = pipe(*[arguments.pop("inputs")] if "inputs" in arguments else [], **arguments)
assert not any(name.split(".")[0] == "hf_vlp" for name in sys.modules)
print()
print(json.dumps(results))
"""


def numbers(value):
    """All numbers in nested results, in order of the names beside them."""
    if isinstance(value, dict):
        return [number for key in sorted(value) for number in numbers(value[key])]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float) else []


def test_door_2_questions_and_stock_tasks_work_without_the_package(pipes, directories, tmp_path):
    path = str(tmp_path / "picture.png")
    PICTURES[0].save(path)
    results = json.loads(run(BLOCK + WITHOUT_THE_PACKAGE, tmp_path, path, json.dumps(directories)))
    expected = {
        "visual-question-answering": pipes["visual-question-answering"](path, ["the red circle", "small"]),
        "zero-shot-image-classification": pipes["zero-shot-image-classification"](
            path, candidate_labels=["red", "small"]
        ),
        "image-feature-extraction": pipes["image-feature-extraction"](path, pool=True),
    }
    for task in expected:
        assert numbers(results[task]) == pytest.approx(numbers(expected[task]), abs=1e-5), task
    answers = [[row["answer"] for row in rows] for rows in expected["visual-question-answering"]]
    assert [[row["answer"] for row in rows] for rows in results["visual-question-answering"]] == answers


# --- stock pipelines ----------------------------------------------------------------------------------------------


def test_zero_shot_labels_have_the_softmax_of_the_models_similarities(pipes, processor):
    labels = ["red circle", "blue", "large green square above"]
    pipe = pipes["zero-shot-image-classification"]
    batch = processor(images=PICTURES, text=[f"a photo of {label}" for label in labels])
    with torch.no_grad():
        expected = pipe.model(**batch).logits_per_image.softmax(-1).tolist()
    for images, rows in ((PICTURES[0], expected[:1]), (PICTURES, expected)):
        results = pipe(images, candidate_labels=labels, hypothesis_template="a photo of {}")
        results = results if isinstance(images, list) else [results]
        for result, row in zip(results, rows, strict=True):
            scores = {item["label"]: item["score"] for item in result}
            assert scores == pytest.approx(dict(zip(labels, row)), abs=1e-5)


def test_pictures_are_classified_with_the_models_softmax(pipes, processor):
    pipe = pipes["image-classification"]
    with torch.no_grad():
        expected = pipe.model(**processor(images=PICTURES)).logits.softmax(-1).tolist()
    for result, row in zip(pipe(PICTURES, top_k=7, batch_size=2), expected, strict=True):
        assert {item["label"]: item["score"] for item in result} == pytest.approx(dict(zip(LABELS, row)), abs=1e-5)


def test_features_of_pictures_are_the_models_tokens_or_its_pooled_vector(pipes, processor):
    pipe = pipes["image-feature-extraction"]
    with torch.no_grad():
        expected = pipe.model(**processor(images=PICTURES[1]))
    tokens = torch.tensor(pipe(PICTURES[1]))
    assert tokens.shape == (1, 5, 32)
    torch.testing.assert_close(tokens, expected.last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(pipe(PICTURES[1], pool=True)), expected.pooler_output, atol=1e-5, rtol=0)
    assert len(pipe(PICTURES, batch_size=2)) == 3


def test_masks_are_filled_with_the_models_softmax(pipes, processor):
    pipe = pipes["fill-mask"]
    texts = ["the red [MASK]", "a large [MASK] above the small cross"]
    for text, result in zip(texts, pipe(texts, top_k=3, batch_size=2), strict=True):
        batch = processor(text=text)
        with torch.no_grad():
            logits = pipe.model(**batch).logits[0]
        place = batch.input_ids[0].tolist().index(processor.tokenizer.mask_token_id)
        best = logits[place].softmax(-1).topk(3)
        assert [row["token"] for row in result] == best.indices.tolist()
        assert [row["score"] for row in result] == pytest.approx(best.values.tolist(), abs=1e-5)
