"""The visual-question-answering pipeline class, on tiny native models: ViLT classifies, BLIP and BLIP-2 generate.

Covers: equality with the model's own forward and `generate`; the scores and their order; every form of input (both
arguments, dicts, lists, several questions, KeyDataset, datasets, generators; paths, URLs, bytes, base64) and the
order of the answers; a picture read once for several questions; batches with questions and pictures of unequal size;
top_k; long questions; half precision; adapters; the options of models that generate; what is refused and how the error
names it; saving and loading again.
"""

import base64
import io
import json
import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import datasets
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import ViTModel
from transformers.pipelines.pt_utils import KeyDataset

from hf_vlp import MomeImageProcessorPil
from hf_vlp.pipelines import VisualQuestionAnsweringPipeline, pipeline, visual_question_answering
from tests.pipelines.tiny_answerers import ANSWERERS, ANSWERS
from tests.pipelines.tiny_captioners import picture
from tests.pipelines.tiny_vlmo import make_vlmo

PICTURES = [picture(0), picture(1, 40), picture(2).resize((40, 20))]
QUESTIONS = ["red circle", "what is above the large cross", "a a a a"]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("answerers")
    return {name: save(str(root / name)) for name, save in ANSWERERS.items()}


@pytest.fixture(scope="module")
def answerers(directories):
    return {name: pipeline("visual-question-answering", path, device="cpu") for name, path in directories.items()}


@pytest.fixture
def vilt(answerers):
    return answerers["vilt"]


@pytest.fixture
def blip(answerers):
    return answerers["blip"]


def own_scores(pipe, image, question):
    """A sigmoid for each answer, from the processor and the model without the pipeline."""
    inputs = pipe.processor(images=image, text=question, return_tensors="pt")
    with torch.no_grad():
        return dict(zip(ANSWERS, pipe.model(**inputs).logits.sigmoid()[0].tolist()))


def assert_same(results, expected):
    """Equal but for the order of summation; ViLT shuffles its patches at each call."""
    assert len(results) == len(expected)
    for result, other in zip(results, expected):
        if isinstance(result, list):
            assert_same(result, other)
        else:
            assert result["answer"] == other["answer"]
            assert result.get("score") == pytest.approx(other.get("score"), abs=1e-5)


# --- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", PICTURES)
def test_scores_are_the_sigmoids_of_the_models_own_logits_best_first(vilt, image):
    expected = own_scores(vilt, image, QUESTIONS[0])
    result = vilt(image=image, question=QUESTIONS[0], top_k=len(ANSWERS))
    assert {row["answer"]: row["score"] for row in result} == pytest.approx(expected, abs=1e-5)
    scores = [row["score"] for row in result]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) > 1.5, "they are no distribution"
    assert {tuple(sorted(row)) for row in result} == {("answer", "score")}


def test_generated_answers_are_those_of_the_models_own_generate(blip):
    for image in PICTURES:
        for question in QUESTIONS:
            inputs = blip.processor(images=image, text=question, return_tensors="pt")
            ids = blip.model.generate(**inputs, max_new_tokens=6)
            expected = blip.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
            assert blip(image, question, max_new_tokens=6) == [{"answer": expected}]


def test_the_question_is_not_repeated_in_an_answer(answerers):
    blip2 = answerers["blip2"]
    inputs = blip2.processor(images=PICTURES[0], text=QUESTIONS[1], return_tensors="pt")
    ids = blip2.model.generate(**inputs, max_new_tokens=6)[0, inputs.input_ids.shape[1] :]
    expected = blip2.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert expected
    assert blip2(PICTURES[0], QUESTIONS[1], max_new_tokens=6) == [{"answer": expected}]


@pytest.mark.parametrize("batch_size", [2, 4, 9])
@pytest.mark.parametrize("name", ANSWERERS)
def test_batches_of_unequal_questions_and_pictures_change_nothing(answerers, name, batch_size):
    pipe = answerers[name]
    rows = [{"image": image, "question": question} for image in PICTURES for question in QUESTIONS]
    alone = [pipe(row) for row in rows]
    assert len({str(answer) for answer in alone}) > 5, "pictures and questions must change the answers"
    assert_same(pipe(rows, batch_size=batch_size), alone)


# --- inputs -------------------------------------------------------------------------------------------------------


def test_a_picture_and_a_question_give_a_list_of_answers(vilt):
    image, question = PICTURES[0], QUESTIONS[0]
    expected = vilt(image, question)
    assert len(expected) == 5
    assert_same(vilt({"image": image, "question": question, "label": 3}), expected)
    assert_same(vilt(image=image, question=question), expected)
    assert_same(vilt(image={"image": image}, question=question), expected)


def test_lists_give_lists_in_the_order_of_the_old_pipeline(vilt):
    image, question = PICTURES[0], QUESTIONS[0]
    alone = {(i, q): vilt(PICTURES[i], QUESTIONS[q]) for i in range(3) for q in range(3)}
    assert_same(vilt([{"image": image, "question": question}]), [alone[0, 0]])
    assert_same(vilt(image=[image], question=question), [alone[0, 0]])
    assert_same(vilt(image=image, question=[question]), [alone[0, 0]])
    assert_same(vilt(image=PICTURES, question=question), [alone[i, 0] for i in range(3)])
    assert_same(vilt(image=image, question=QUESTIONS), [alone[0, q] for q in range(3)])
    # All pictures with the first question, then all with the second.
    expected = [alone[i, q] for q in range(3) for i in range(3)]
    assert_same(vilt(image=PICTURES, question=QUESTIONS), expected)
    assert_same(vilt(image=tuple(PICTURES), question=tuple(QUESTIONS), batch_size=4), expected)
    assert vilt([]) == vilt([], question) == vilt(image, []) == []


def test_datasets_columns_and_generators_are_inputs(vilt):
    rows = [{"image": image, "question": question} for image in PICTURES for question in QUESTIONS[:2]]
    expected = [vilt(row) for row in rows]
    data = datasets.Dataset.from_list(
        rows, features=datasets.Features(image=datasets.Image(), question=datasets.Value("string"))
    )
    for stream in (data, (row for row in rows), iter(rows), data.to_iterable_dataset()):
        results = vilt(stream, batch_size=2)
        assert not isinstance(results, list)
        assert_same(list(results), expected)
    pictures = [rows[place]["image"] for place in (0, 2, 4)]
    asked = vilt(pictures, QUESTIONS[0])
    assert_same(vilt(KeyDataset(data.select([0, 2, 4]), "image"), question=QUESTIONS[0]), asked)
    assert_same(vilt(data.select([0, 2, 4])["image"], question=QUESTIONS[0]), asked)
    both = vilt(pictures, QUESTIONS)
    assert_same(vilt(KeyDataset(data.select([0, 2, 4]), "image"), question=QUESTIONS), both)
    assert_same(vilt((image for image in pictures), question=QUESTIONS), both)


def test_an_iterable_dataset_with_a_length_is_streamed(vilt):
    class Stream(torch.utils.data.IterableDataset):
        def __init__(self, items):
            self.items = items

        def __len__(self):
            return len(self.items)

        def __iter__(self):
            return iter(self.items)

    expected = vilt(PICTURES, QUESTIONS[0])
    assert_same(list(vilt(Stream(PICTURES), QUESTIONS[0])), expected)
    assert_same(vilt(Stream(PICTURES), QUESTIONS), vilt(PICTURES, QUESTIONS))
    rows = [{"image": image, "question": QUESTIONS[0]} for image in PICTURES]
    assert_same(list(vilt(Stream(rows))), expected)


def test_a_generator_of_pictures_is_read_as_it_goes(vilt):
    read = []

    def pictures():
        for place, image in enumerate(PICTURES):
            read.append(place)
            yield image

    answers = vilt(pictures(), QUESTIONS[0])
    next(iter(answers))
    assert len(read) < len(PICTURES)


def test_worker_processes_give_the_same(vilt):
    assert_same(vilt(PICTURES, QUESTIONS, num_workers=1, batch_size=2), vilt(PICTURES, QUESTIONS))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("server")
    PICTURES[0].save(directory / "picture.png")

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=directory))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_picture_may_come_in_every_form(vilt, tmp_path, server):
    path = tmp_path / "picture.png"
    PICTURES[0].save(path)
    content = path.read_bytes()
    text = base64.b64encode(content).decode()
    expected = vilt(PICTURES[0], QUESTIONS[0])
    forms = [str(path), path, content, text, f"data:image/png;base64,{text}", {"bytes": content, "path": None}]
    forms += [{"bytes": None, "path": str(path)}, f"{server}/picture.png"]
    for form in forms:
        assert_same(vilt(form, QUESTIONS[0]), expected)
        assert_same(vilt({"image": form, "question": QUESTIONS[0]}), expected)
        assert_same(vilt(form, QUESTIONS[:1]), [expected])
    assert_same(vilt(forms, QUESTIONS[0], timeout=20), [expected] * len(forms))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_picture_with_several_questions_is_read_once(vilt, monkeypatch, tmp_path, batch_size):
    paths = [str(tmp_path / f"{place}.png") for place in range(3)]
    for path, image in zip(paths, PICTURES):
        image.save(path)
    read = []

    def load(source, **options):
        read.append(source)
        return load_image(source, **options)

    load_image = visual_question_answering.load_image
    monkeypatch.setattr(visual_question_answering, "load_image", load)
    expected = [vilt(path, question) for question in QUESTIONS for path in paths]
    read.clear()
    assert_same(vilt(paths, QUESTIONS, batch_size=batch_size), expected)
    assert read == paths
    read.clear()
    assert_same(vilt(PICTURES[0], QUESTIONS, batch_size=batch_size), expected[::3])
    assert len(read) == 1
    read.clear()
    vilt([{"image": path, "question": question} for path in paths for question in QUESTIONS], batch_size=batch_size)
    assert read == paths


def test_a_picture_that_changes_between_calls_is_read_again(vilt, tmp_path):
    path = str(tmp_path / "picture.png")
    PICTURES[0].save(path)
    first = vilt(path, QUESTIONS)
    PICTURES[1].save(path)
    assert_same(vilt(path, QUESTIONS), vilt(PICTURES[1], QUESTIONS))
    assert abs(first[0][0]["score"] - vilt(path, QUESTIONS)[0][0]["score"]) > 1e-4


# --- options ------------------------------------------------------------------------------------------------------


def test_top_k_is_cut_to_the_number_of_labels(vilt, directories):
    row = {"image": PICTURES[0], "question": QUESTIONS[0]}
    answers = [len(vilt(row, top_k=top_k)) for top_k in (1, 3, 7, 8, 1000)]
    assert answers == [1, 3, 7, 7, 7]
    assert len(vilt(row)) == 5
    pipe = pipeline("vqa", directories["vilt"], device="cpu", top_k=2)
    assert len(pipe(row)) == 2
    assert len(pipe(row, top_k=3)) == 3


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "all", True])
def test_a_top_k_that_is_no_count_is_refused(vilt, top_k):
    with pytest.raises(ValueError, match=r"top_k=.*at least 1"):
        vilt(PICTURES[0], QUESTIONS[0], top_k=top_k)


def test_options_of_generate_reach_models_that_generate(blip):
    answers = blip(PICTURES[0], QUESTIONS[0], num_beams=3, num_return_sequences=3, max_new_tokens=4)
    assert len(answers) == 3
    assert all(len(row["answer"].split()) <= 4 for row in answers)
    assert blip(PICTURES[0], QUESTIONS[0], generate_kwargs={"max_new_tokens": 1}) != answers
    best = blip(PICTURES[0], QUESTIONS[0], num_beams=3, num_return_sequences=3, max_new_tokens=4, top_k=1)
    assert best == answers[:1]
    with pytest.raises(ValueError, match="given both"):
        blip(PICTURES[0], QUESTIONS[0], max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})
    with pytest.raises(TypeError, match=r"unknown arguments \['beams'\]"):
        blip(PICTURES[0], QUESTIONS[0], beams=3)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"max_new_tokens": 2}, {"generate_kwargs": {"x": 1}}])
def test_options_of_generate_are_refused_by_classifiers(vilt, options):
    with pytest.raises(TypeError, match=rf"unknown arguments \['{next(iter(options))}'\].*ViltForQuestionAnswering"):
        vilt(PICTURES[0], QUESTIONS[0], **options)


def test_a_long_question_is_cut_with_a_warning_or_left_to_fail(vilt, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    visual_question_answering.logger.warning_once.cache_clear()
    words = ["red"] * 40
    with caplog.at_level("WARNING"):
        answers = vilt(PICTURES[0], " ".join(words))
    assert "42 tokens was cut to the 12" in caplog.text
    assert_same(answers, vilt(PICTURES[0], " ".join(words[:10])))
    with pytest.raises(RuntimeError):
        vilt(PICTURES[0], " ".join(words), truncation=False)


def test_cutting_a_question_leaves_no_trace_in_a_saved_tokenizer(directories, tmp_path):
    pipe = pipeline("vqa", directories["vilt"], device="cpu")
    pipe(PICTURES[0], " ".join(["red"] * 40))
    pipe.tokenizer.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["truncation"] is None


def test_padding_changes_nothing(vilt):
    assert_same(vilt(PICTURES[0], QUESTIONS[0], padding="max_length"), vilt(PICTURES[0], QUESTIONS[0]))


@pytest.mark.parametrize("name", ["vilt", "blip"])
def test_half_precision_weights_get_half_precision_pictures(directories, name):
    pipe = pipeline("vqa", directories[name], device="cpu", dtype=torch.bfloat16)
    answers = pipe(PICTURES, QUESTIONS[0], batch_size=2)
    assert len(answers) == 3
    assert all(row["answer"] for rows in answers for row in rows[:1])


def test_adapters_answer_like_the_model_they_adapt(directories, tmp_path):
    base = pipeline("vqa", directories["vilt"], device="cpu")
    expected = base(PICTURES[0], QUESTIONS)
    adapted = get_peft_model(base.model, LoraConfig(target_modules=["query"], r=2))  # fresh ones change nothing
    pipe = pipeline("vqa", adapted, processor=base.processor, device="cpu")
    assert type(pipe) is VisualQuestionAnsweringPipeline
    assert_same(pipe(PICTURES[0], QUESTIONS), expected)


# --- what is refused ----------------------------------------------------------------------------------------------


def test_a_bad_picture_is_named_with_its_place(vilt, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture at all, whatever its name says")
    with pytest.raises(ValueError, match=r"The picture '.*bad\.png' is not a picture"):
        vilt(str(bad), QUESTIONS[0])
    with pytest.raises(ValueError, match=r"Input 1: The picture '.*bad\.png' is not a picture"):
        vilt([PICTURES[0], bad], QUESTIONS[0])
    with pytest.raises(ValueError, match=r"Input 2: The picture '.*none\.png' is neither an existing file"):
        vilt([*({"image": PICTURES[0], "question": "red"},) * 2, {"image": "none.png", "question": "red"}])
    with pytest.raises(ValueError, match=r"Input 1: The picture '.*bad\.png'"):
        list(vilt(({"image": image, "question": "red"} for image in (PICTURES[0], bad)), batch_size=2))
    file = io.BytesIO()
    picture(0, 200).save(file, "JPEG")
    with pytest.raises(ValueError, match="cannot be decoded"):
        vilt(file.getvalue()[:2000], QUESTIONS[0])


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((), ValueError, "without a picture"),
        ((PICTURES[0],), ValueError, "question="),
        (([PICTURES[0]],), ValueError, r"Input 0.*question="),
        (({"picture": PICTURES[0], "question": "red"},), ValueError, r"a dict with \['picture', 'question'\]"),
        (({"image": PICTURES[0]},), TypeError, "`question` must be a string, got None"),
        (({"image": PICTURES[0], "question": ["red", "blue"]},), TypeError, "question="),
        ((PICTURES[0], 3), TypeError, "`question` must be a string, got 3"),
        ((PICTURES[0], ["red", None]), TypeError, "Input 1: `question` must be a string"),
        (({"image": PICTURES[0], "question": "red"}, "blue"), ValueError, "Leave out one"),
        ((torch.zeros(3, 8, 8), "red"), TypeError, "no picture"),
    ],
)
def test_what_is_missing_or_of_a_wrong_kind_is_told(vilt, arguments, error, words):
    with pytest.raises(error, match=words):
        vilt(*arguments)


def test_a_model_without_answers_is_refused(vilt, directories):
    with pytest.raises(ValueError, match=r"ViTModel does not take a picture and a text.*AutoModelForVisual"):
        VisualQuestionAnsweringPipeline(
            ViTModel._from_config(vilt_vision()), tokenizer=vilt.tokenizer, image_processor=vilt.image_processor
        )
    from transformers import ViltModel

    headless = ViltModel.from_pretrained(directories["vilt"])
    pipe = pipeline("vqa", headless, processor=vilt.processor, device="cpu")
    with pytest.raises(ValueError, match=r"ViltModel gives no score for each of the 7 labels"):
        pipe(PICTURES[0], QUESTIONS[0])


def vilt_vision():
    from transformers import ViTConfig

    return ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)


# --- saving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vilt", "blip"])
def test_a_saved_pipeline_has_all_it_needs_and_answers_the_same(answerers, tmp_path, name):
    pipe = answerers[name]
    pipe.save_pretrained(str(tmp_path))
    assert {"visual_question_answering.py", "image_pipeline.py"} <= {file.name for file in tmp_path.iterdir()}
    loaded = pipeline("visual-question-answering", str(tmp_path), device="cpu")
    assert_same(loaded(PICTURES, QUESTIONS), pipe(PICTURES, QUESTIONS))


def test_repository_without_tokenizer_files_is_refused(tmp_path):
    """The library makes a tokenizer of special tokens alone of it, to which every question is the same."""
    make_vlmo("VlmoForVisualQuestionAnswering").save_pretrained(tmp_path)
    MomeImageProcessorPil(size=16).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows no words, only special tokens"):
        pipeline("visual-question-answering", model=str(tmp_path))
