"""The command line, on a tiny random repository built for the occasion.

Covers: help with an example for every command, answered without heavy imports; `caption` with files, folders,
patterns and URLs, text and JSON lines, batches, prompts, and bad pictures; `ask` and `match` likewise; `convert` there
and back; `info` for models and adapters, native models and all heads of VLMo; `evaluate` with its table, JSON,
submission and report, for captions and for every head of VLMo, its constant baseline, and the YAML of a run that says
how it measures; `document-frequencies`; `train` and its settings;
errors in one line with exit code 2, from each command, with the traceback on request; the exit when the reader of the
output goes away.
"""

import json
import shlex
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from hf_vlp.captioning import find_pictures, to_coco_results
from hf_vlp.cli import app
from hf_vlp.hub.export import save_repository
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor
from tests.hub.tiny_vlmo import make_model
from tests.hub.tiny_vlmo import make_processor as make_vlmo_processor
from tests.pipelines.tiny_vlmo import make_vlmo, save_vlmo

ROOT = Path(__file__).parent.parent
COMMANDS = (
    *("quickstart", "train", "evaluate", "caption", "ask", "match", "convert", "info", "push"),
    "document-frequencies",
)


def run(*arguments, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def error_of(*arguments) -> str:
    """The one line that a command ends with when its input is wrong."""
    *before, line = run(*arguments, code=2).stderr.strip().splitlines()
    assert line.startswith("Error: ")
    assert not any("Error" in other or "Traceback" in other for other in before)  # progress bars at most
    return line


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "tiny"
    return save_repository(directory, model=make_tiny_model(), processor=make_tiny_processor())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pictures")
    for seed in range(3):
        make_picture(seed).save(directory / f"{seed}.png")
    (directory / "notes.txt").write_text("no picture")
    (directory / ".hidden").mkdir()
    make_picture().save(directory / ".hidden" / "x.png")
    return directory


@pytest.fixture
def bad_picture(tmp_path):
    file = tmp_path / "bad.jpg"
    file.write_bytes(b"no picture at all")
    return file


# Help


def test_help_names_all_commands_and_imports_nothing_heavy():
    heavy = ["torch", "transformers", "datasets", "numpy", "PIL", "yaml", "tqdm", "hf_vlp.metrics"]
    code = f"""
import sys
from hf_vlp.cli import app
app(["--help"], standalone_mode=False)
print([name for name in {heavy} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert all(f"\n  {command} " in result.stdout for command in COMMANDS)
    assert result.stdout.strip().splitlines()[-1] == "[]"


def test_there_are_no_other_commands():
    assert tuple(typer.main.get_command(app).commands) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example_that_it_understands(command):
    lines = run(command, "--help").output.splitlines()
    (example,) = [line for line in lines if "Example: " in line]
    name, *arguments = shlex.split(example.split("Example: hf-vlp ")[1])
    assert name == command
    # Parses without calling: unknown options and missing arguments raise.
    typer.main.get_command(app).commands[name].make_context(name, arguments)


def test_version_is_that_of_the_package_also_as_a_module():
    import hf_vlp

    command = [sys.executable, "-m", "hf_vlp.cli", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert run("--version").output == result.stdout == f"{hf_vlp.__version__}\n"


# caption


def test_one_picture_gives_its_caption_alone(model, pictures):
    from hf_vlp.pipelines import pipeline

    expected = pipeline("image-to-text", model=str(model))(str(pictures / "0.png"), max_new_tokens=5)
    output = run("caption", model, pictures / "0.png", "--max-new-tokens", 5).stdout
    assert output == " ".join(expected[0]["generated_text"].split()) + "\n"


def test_folder_gives_a_line_per_picture_with_its_name(model, pictures):
    lines = run("caption", model, pictures).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(pictures / f"{seed}.png") for seed in range(3)]
    assert len({line.split("\t")[1] for line in lines}) == 3


def test_captions_do_not_depend_on_the_batch_size(model, pictures):
    outputs = {run("caption", model, pictures, "--batch-size", size, "--num-beams", 2).stdout for size in (1, 2, 8)}
    assert len(outputs) == 1


def test_pattern_as_json_lines_with_a_prompt(model, pictures):
    lines = run("caption", model, pictures / "[01].png", "--json", "--prompt", "a red").stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["image"] for row in rows] == [str(pictures / "0.png"), str(pictures / "1.png")]
    assert all(row["caption"].startswith("a red") for row in rows)


def test_url_is_captioned_like_the_file(model, pictures):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=pictures))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/1.png"
        assert run("caption", model, url).stdout == run("caption", model, pictures / "1.png").stdout
    finally:
        server.shutdown()
        server.server_close()


def test_bad_picture_is_told_counted_and_not_fatal(model, pictures, bad_picture):
    result = run("caption", model, bad_picture, pictures / "0.png", "--json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["image"] == str(bad_picture)
    assert "not an image" in first["error"]
    assert "caption" not in first
    assert "caption" in second
    assert "1 of 2 pictures could not be read." in result.stderr


def test_bad_picture_is_fatal_when_strict(model, pictures, bad_picture):
    result = run("caption", model, bad_picture, pictures / "0.png", "--strict", code=1)
    assert str(pictures / "0.png") in result.stdout


def test_nothing_but_bad_pictures_fails(model, bad_picture):
    result = run("caption", model, bad_picture, code=1)
    assert result.stdout == ""
    assert "not an image" in result.stderr


def test_truncated_picture_is_bad(model, pictures, tmp_path):
    make_picture(size=200).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    assert "incomplete" in run("caption", model, tmp_path / "cut.jpg", code=1).stderr


def test_empty_folder_missing_file_and_pattern_without_match_are_told(model, tmp_path):
    assert "holds no pictures" in error_of("caption", model, tmp_path)
    assert "no file or folder" in error_of("caption", model, tmp_path / "none.jpg")
    assert "No file matches" in error_of("caption", model, tmp_path / "*.jpg")


def test_pictures_are_found_once_in_order_and_not_in_hidden_folders(pictures):
    names = [Path(name).name for name in find_pictures([pictures / "2.png", pictures, str(pictures / "*.png")])]
    assert names == ["2.png", "0.png", "1.png"]


def test_file_with_a_pattern_in_its_name_is_that_file(tmp_path):
    make_picture().save(tmp_path / "a[1].png")
    make_picture().save(tmp_path / "a1.png")
    assert find_pictures([tmp_path / "a[1].png"]) == [str(tmp_path / "a[1].png")]


def test_reader_that_goes_away_ends_the_command_quietly():
    code = """
import typer
from hf_vlp.cli import app

@app.command()
def talk():
    for _ in range(100_000):
        typer.echo("a caption")

app(["talk"])
"""
    command = f"{sys.executable} -c '{code}' | head -n 1"
    result = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "a caption\n"
    assert result.stderr == ""


# ask


@pytest.fixture(scope="module")
def vlmo(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlmo")
    names = ("VlmoForVisualQuestionAnswering", "VlmoForImageTextRetrieval", "VlmoModel", "VlmoForMaskedLM")
    return {name: save_vlmo(root / name, name) for name in names}


@pytest.fixture
def answering(vlmo):
    return vlmo["VlmoForVisualQuestionAnswering"]


def test_one_picture_and_one_question_give_the_answer_alone(answering, pictures):
    from hf_vlp.pipelines import pipeline

    expected = pipeline("vqa", model=answering)(str(pictures / "0.png"), "red circle", top_k=1)[0]
    output = run("ask", answering, pictures / "0.png", "--question", "red circle").stdout
    assert output == f"{expected['answer']} ({expected['score']:.2f})\n"


def test_several_pictures_and_questions_give_a_line_each_with_both_before_it(answering, pictures):
    questions = ["red circle", "what is above"]
    output = run("ask", answering, pictures, "-q", questions[0], "-q", questions[1], "--top-k", 2).stdout
    lines = [line.split("\t") for line in output.splitlines()]
    names = [str(pictures / f"{seed}.png") for seed in range(3)]
    assert [line[:2] for line in lines] == [[name, question] for name in names for question in questions]
    assert all(line[2].count(")") == 2 for line in lines)
    lone = run("ask", answering, pictures, "-q", questions[0]).stdout.splitlines()
    assert [line.split("\t")[0] for line in lone] == names
    lone = run("ask", answering, pictures / "0.png", "-q", questions[0], "-q", questions[1]).stdout.splitlines()
    assert [line.split("\t")[0] for line in lone] == questions


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_answers_as_json_lines_are_those_of_the_pipeline_in_every_batch(answering, pictures, batch_size):
    from hf_vlp.pipelines import pipeline

    arguments = ("-q", "red circle", "-q", "what is above", "--json", "--top-k", 3, "--batch-size", batch_size)
    rows = [json.loads(line) for line in run("ask", answering, pictures, *arguments).stdout.splitlines()]
    pipe = pipeline("vqa", model=answering)
    for row in rows:
        expected = pipe(row["image"], row["question"], top_k=3)
        assert [answer["answer"] for answer in row["answers"]] == [answer["answer"] for answer in expected]
        scores = [answer["score"] for answer in row["answers"]]
        assert scores == pytest.approx([answer["score"] for answer in expected], abs=1e-5)
    assert len(rows) == 6
    assert len({row["answers"][0]["score"] for row in rows}) == 6


def test_models_that_generate_answer_without_a_score(pictures, tmp_path):
    from tests.pipelines.tiny_answerers import save_blip_vqa

    directory = save_blip_vqa(str(tmp_path))
    (row,) = map(json.loads, run("ask", directory, pictures / "0.png", "-q", "red", "--json").stdout.splitlines())
    assert list(row["answers"][0]) == ["answer"]
    assert run("ask", directory, pictures / "0.png", "-q", "red").stdout == row["answers"][0]["answer"] + "\n"


@pytest.mark.parametrize("parts", ["processor", "image processor and tokenizer"])
def test_native_classifiers_answer(pictures, tmp_path, parts):
    from transformers import AutoProcessor

    from tests.pipelines.tiny_answerers import ANSWERS, save_vilt

    directory = save_vilt(str(tmp_path))
    if parts != "processor":
        processor = AutoProcessor.from_pretrained(directory)
        (tmp_path / "processor_config.json").unlink()
        processor.image_processor.save_pretrained(directory)
        processor.tokenizer.save_pretrained(directory)
    output = run("ask", directory, pictures / "0.png", "-q", "red", "--json", "--top-k", 7).stdout
    assert {answer["answer"] for answer in json.loads(output)["answers"]} == set(ANSWERS)


def test_adapters_answer_like_the_merged_model(answering, pictures, tmp_path):
    import torch
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

    from hf_vlp.adapters import apply_lora

    adapted = apply_lora(AutoModelForVisualQuestionAnswering.from_pretrained(answering), preset="attention", r=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.5, generator=generator)
    processor = AutoProcessor.from_pretrained(answering)
    save_repository(tmp_path / "adapters", model=adapted, processor=processor)
    save_repository(tmp_path / "merged", model=adapted.merge_and_unload(), processor=processor)
    plain, adapters, merged = (
        json.loads(run("ask", model, pictures / "0.png", "-q", "red", "--json").stdout)["answers"][0]["score"]
        for model in (answering, tmp_path / "adapters", tmp_path / "merged")
    )
    assert adapters == pytest.approx(merged, abs=1e-5)
    assert abs(adapters - plain) > 1e-4


def test_ask_tells_bad_pictures_once_and_goes_on(answering, pictures, bad_picture):
    arguments = ("ask", answering, bad_picture, pictures / "0.png", "-q", "red", "-q", "blue")
    result = run(*arguments, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert ["error" in row for row in rows] == [True, True, False, False]
    assert "1 of 2 pictures could not be read." in result.stderr
    assert result.stderr.count("not an image") == 1
    assert len(run(*arguments, "--strict", code=1).stdout.splitlines()) == 2
    assert run("ask", answering, bad_picture, "-q", "red", code=1).stdout == ""


# match


@pytest.fixture
def matching(vlmo):
    return vlmo["VlmoForImageTextRetrieval"]


def test_pictures_are_ranked_for_each_text(matching, pictures):
    output = run("match", matching, "--images", pictures, "--texts", "red circle", "--texts", "a cross").stdout
    lines = [line.split("\t") for line in output.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        (t, str(r)) for t in ("red circle", "a cross") for r in (1, 2, 3)
    ]
    for text in ("red circle", "a cross"):
        scores = [float(line[2]) for line in lines if line[0] == text]
        assert scores == sorted(scores, reverse=True)
        assert {line[3] for line in lines if line[0] == text} == {str(pictures / f"{seed}.png") for seed in range(3)}


def test_texts_of_a_file_are_ranked_for_each_picture_as_json(matching, pictures, tmp_path):
    (tmp_path / "texts.txt").write_text("red circle\n\na cross\nsmall\nred circle\n")
    arguments = ("--texts", tmp_path / "texts.txt", "--query", "images", "--top-k", 2, "--rerank", 3, "--json")
    lines = run("match", matching, "--images", pictures / "[01].png", *arguments).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [(Path(row["image"]).name, row["rank"]) for row in rows] == [
        (f"{i}.png", r) for i in (0, 1) for r in (1, 2)
    ]
    assert {row["text"] for row in rows} <= {"red circle", "a cross", "small"}
    assert all(row.keys() == {"image", "text", "rank", "similarity", "match"} for row in rows)


def test_match_leaves_bad_pictures_out_and_tells_them(matching, pictures, bad_picture):
    arguments = ("match", matching, "--images", bad_picture, "--images", pictures / "0.png", "--texts", "red")
    result = run(*arguments)
    assert len(result.stdout.splitlines()) == 1
    assert "not an image" in result.stderr
    assert "1 of 2 pictures could not be read." in result.stderr
    run(*arguments, "--strict", code=1)
    assert run("match", matching, "--images", bad_picture, "--texts", "red", code=1).stdout == ""


def test_scores_of_one_kind_stand_in_order_when_the_first_candidates_are_ranked_again(matching, pictures):
    output = run("match", matching, "--images", pictures, "--texts", "red circle", "--rerank", 2).stdout
    *scores, last = [line.split("\t")[2] for line in output.splitlines()]
    assert last == "-"  # a cosine would not compare with the others
    assert [float(score) for score in scores] == sorted(map(float, scores), reverse=True)


# convert


def test_a_checkpoint_is_converted_there_and_back(tmp_path, pictures):
    import torch

    from hf_vlp import VlmoConfig
    from hf_vlp.conversion.vlmo import empty_model, revert_state_dict

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = VlmoConfig(
        **sizes, vocab_size=8, vl_expert_start_layer=1, image_size=32, patch_size=16, max_text_length=6, num_labels=3
    )
    generator = torch.Generator().manual_seed(0)
    shapes = {name: value.shape for name, value in empty_model(config, "vqa").state_dict().items()}
    ours = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    original = revert_state_dict(ours, config, "vqa", index_tables=True)
    torch.save(original, tmp_path / "original.pt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\ndog\nwhat\n")
    (tmp_path / "labels.txt").write_text("yes\nno\nred\n")
    options = ("--vocab", tmp_path / "vocab.txt", "--labels", tmp_path / "labels.txt")
    text = run("convert", "vlmo", tmp_path / "original.pt", tmp_path / "ours", *options).stdout
    assert "VlmoForVisualQuestionAnswering" in text
    assert "SHA-256" in text
    answer = run("ask", tmp_path / "ours", pictures / "0.png", "--question", "what red", "--json", "--top-k", 9).stdout
    assert {row["answer"] for row in json.loads(answer)["answers"]} == {"yes", "no", "red"}
    run("convert", "vlmo", tmp_path / "ours", tmp_path / "back.pt", "--reverse")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    back = back.get("state_dict", back)
    assert all(torch.equal(back[name], value) for name, value in original.items() if "index" not in name)


def test_options_of_convert_reach_the_function(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("hf_vlp.conversion.vlmo.convert", lambda *arguments, **options: calls.append(options))
    (tmp_path / "x.pt").touch()
    flags = {"head": "vqa", "config": Path("c.json"), "size": "base", "labels": Path("l.txt"), "push_to_hub": "a/b"}
    words = [word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    run("convert", "vlmo", tmp_path / "x.pt", tmp_path / "out", *words, "--parity", "i.st", "e.st", "--tolerance", 0.1)
    parity = (Path("i.st"), Path("e.st"))
    assert calls == [{**flags, "vocab": None, "parity": parity, "tolerance": 0.1, "reverse": False}]


# info


@pytest.mark.parametrize(
    "name, task",
    [
        ("VlmoForVisualQuestionAnswering", "visual-question-answering"),
        ("VlmoForImageTextRetrieval", "zero-shot-image-classification"),
        ("VlmoForMaskedLM", "fill-mask"),
        ("VlmoModel", "image-feature-extraction"),
    ],
)
def test_info_of_a_flat_configuration_counts_the_class_that_was_saved(vlmo, name, task):
    facts = json.loads(run("info", vlmo[name], "--json").stdout)
    assert facts["model_class"] == name
    assert facts["pipelines"] == [task]
    assert sum(part["total"] for part in facts["parameters"].values()) == make_vlmo(name).num_parameters()
    assert (facts["settings"]["hidden_size"], facts["settings"]["vl_expert_start_layer"]) == (32, 1)
    assert facts["settings"].get("num_labels") == (7 if name == "VlmoForVisualQuestionAnswering" else None)
    assert {"attention", "experts"} <= facts["lora_presets"].keys()


def test_info_tells_the_class_and_pipeline_of_native_models(tmp_path):
    from tests.pipelines.tiny_answerers import save_vilt

    text = run("info", save_vilt(str(tmp_path))).stdout
    assert "a vilt model, ViltForQuestionAnswering" in text
    assert "AutoModelForVisualQuestionAnswering -> ViltForQuestionAnswering" in text
    assert 'pipeline("visual-question-answering")' in text
    assert "num_labels = 7" in text


def test_info_tells_sizes_classes_and_lora_targets(model):
    text = run("info", model).stdout
    assert "a vc_gpt model" in text
    assert "AutoModelForImageTextToText -> VcGptForConditionalGeneration" in text
    assert f"{make_tiny_model().num_parameters():,}" in text
    assert "all-linear" in text


def test_info_as_json_counts_as_the_loaded_model_does(model):
    from hf_vlp.adapters import apply_lora

    facts = json.loads(run("info", model, "--json", "--lora-rank", 4).stdout)
    assert sum(part["total"] for part in facts["parameters"].values()) == make_tiny_model().num_parameters()
    for name, preset in facts["lora_presets"].items():
        adapted = apply_lora(make_tiny_model(), preset=name, r=4)
        assert adapted.get_nb_trainable_parameters()[0] == preset["parameters"]


def test_info_of_adapters_names_their_base_and_what_trains(model, tmp_path):
    from transformers import AutoModelForImageTextToText

    from hf_vlp.adapters import apply_lora

    adapted = apply_lora(AutoModelForImageTextToText.from_pretrained(model), preset="fusion", r=2)
    save_repository(tmp_path, model=adapted, processor=make_tiny_processor())
    facts = json.loads(run("info", tmp_path, "--json").stdout)
    assert (facts["adapters"]["r"], facts["adapters"]["base_model"]) == (2, str(model))
    trainable = sum(part["trainable"] for part in facts["parameters"].values())
    assert trainable == adapted.get_nb_trainable_parameters()[0]


# evaluate and document-frequencies


def test_evaluate_prints_a_table_and_writes_submission_and_report(model, tmp_path):
    files = [tmp_path / "submission.json", tmp_path / "report.json"]
    result = run(
        *("evaluate", model, "--data", "scenes", "--data.num_eval_scenes", 20, "--max-records", 6, "--no-constant"),
        *("--metrics", "bleu,cider_d", "--output", files[0], "--report", files[1], "--max-new-tokens", 5),
    )
    assert "cider_d" in result.stdout
    assert "pictures shuffled" in result.stdout
    assert "6 pictures, 0 skipped" in result.stdout
    submission, report = (json.loads(file.read_text()) for file in files)
    assert [row["image_id"] for row in submission] == [f"test-0-{index}" for index in range(6)]
    assert {tuple(row) for row in submission} == {("image_id", "caption")}
    assert [row["caption"] for row in report["predictions"]] == [row["caption"] for row in submission]


@pytest.mark.parametrize(
    ("name", "metric"),
    (
        ("VlmoForVisualQuestionAnswering", "exact_match"),
        ("VlmoForImagesAndTextClassification", "accuracy"),
        ("VlmoForImageTextRetrieval", "text_to_image_recall_at_1"),
        ("VlmoForMaskedLM", "mlm_accuracy"),
        ("VlmoForPreTraining", "itm_accuracy"),
    ),
)
def test_evaluate_measures_what_the_head_of_a_model_does(name, metric, tmp_path):
    labels = ["False", "True"] if "Images" in name else ["yes", "no", "red"]
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    model = make_model(name, **({"type_vocab_size": 3} if "Images" in name else {}), **names)
    save_repository(tmp_path / "model", model=model, processor=make_vlmo_processor())
    options = ("--data.num_scenes", 8, "--data.num_eval_scenes", 8, "--json", "--report", tmp_path / "report.json")
    scores = json.loads(run("evaluate", tmp_path / "model", *options).stdout)
    assert 0 <= scores[metric] <= 1
    assert json.loads((tmp_path / "report.json").read_text())["metrics"] == scores
    submission = tmp_path / "submission.json"
    if "Question" in name:
        run("evaluate", tmp_path / "model", *options, "--output", submission)
        assert {row["answer"] for row in json.loads(submission.read_text())} <= set(labels)
    else:
        assert "no submission format" in error_of("evaluate", tmp_path / "model", *options, "--output", submission)


def test_evaluate_refuses_a_model_without_the_head(tmp_path):
    save_repository(tmp_path, model=make_model("VlmoModel"), processor=make_vlmo_processor())
    assert "has no head to measure" in error_of("evaluate", tmp_path)
    assert "has no weights for classifier" in error_of("evaluate", tmp_path, "--task", "visual_question_answering")


@pytest.fixture
def labelled(tmp_path):
    """A model for three classes and pictures of these, in two splits."""
    names = ["red", "blue", "green"]
    numbers = {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}
    model = make_model("VlmoForImageClassification", **numbers)
    save_repository(tmp_path / "model", model=model, processor=make_vlmo_processor())
    make_picture().save(tmp_path / "a.png")
    for split, labels in (("train", ["blue", "blue", "red"]), ("test", ["blue", "green", "red", "blue", "pink"])):
        rows = [json.dumps({"image": "a.png", "label": label}) for label in labels]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    return tmp_path


def test_evaluate_learns_the_constant_from_the_training_split(labelled):
    (labelled / "data").mkdir()
    for name in ("a.png", "train.jsonl", "test.jsonl"):
        (labelled / name).rename(labelled / "data" / name)
    command = ("evaluate", labelled / "model", "--data", labelled / "data", "--data.dataset_cache", labelled / "cache")
    title, accuracy, counts, answer = run(*command).stdout.splitlines()
    assert title.split() == ["test", "model", "constant"]
    assert accuracy.split()[2] == "0.5000"
    assert counts == "4 samples, 1 skipped"
    assert "'blue'" in answer
    assert "constant" not in run(*command, "--no-constant").output
    afar = run(*command, "--data.train_files", "https://host.invalid/train.jsonl")
    assert "constant" not in afar.stdout
    assert "--constant downloads the training split" in afar.stderr
    (labelled / "data" / "train.jsonl").unlink()
    result = run(*command)
    assert "constant" not in result.stdout
    assert "No constant baseline: There is no split 'train'" in result.stderr


def test_evaluate_measures_the_data_of_a_stream_as_its_run_does(labelled):
    (labelled / "run.yaml").write_text(
        f"""
task: visual_question_answering
data: {{source: {labelled}, streaming: true, test_files: ["{labelled}/test.jsonl"], train_files: none.jsonl}}
stages:
- name: first
- name: second
  task: image_classification
  data: {{train_files: "{labelled}/train.jsonl"}}
  evaluation: {{final_max_records: 3}}
"""
    )
    command = ("evaluate", labelled / "model", "--data", labelled / "run.yaml", "--json")
    scores = json.loads(run(*command).stdout)
    assert (scores["samples"], scores["constant_accuracy"]) == (3, 1 / 3)
    assert json.loads(run(*command, "--max-records", 2).stdout)["samples"] == 2
    assert "not of training" in error_of(*command, "--training.max_steps", 3)


def test_evaluate_takes_the_data_of_a_yaml_and_prints_json(model, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "data:\n  source: scenes\n  num_eval_scenes: 4\n  num_scenes: 4\ntraining:\n  bf16: true\n"
    )
    arguments = ("--data", tmp_path / "run.yaml", "--split", "compositional", "--json")
    scores = json.loads(run("evaluate", model, *arguments, "--no-shuffled", "--max-new-tokens", 4).stdout)
    assert scores["pictures"] == 4
    assert {"bleu_4", "exact_match"} <= scores.keys()
    assert not any(name.startswith("shuffled_") for name in scores)


def test_evaluate_follows_the_protocol_of_a_run_unless_options_say_otherwise(model, tmp_path, monkeypatch):
    calls = []

    def measure(model, processor, records, task, **options):
        calls.append(options)
        return {"exact_match": 1.0, "pictures": 1, "skipped_pictures": 0}

    monkeypatch.setattr("hf_vlp.evaluation.evaluate_model", measure)
    (tmp_path / "run.yaml").write_text(
        """
data: {num_eval_scenes: 1}
training: {seed: 7}
batches: {max_length: 12}
evaluation: {metrics: [exact_match], generation: {num_beams: 3, max_new_tokens: 5}, shuffled_pictures: false,
  batch_size: 2, constant_candidates: 0}
"""
    )
    command = ("evaluate", model, "--data", tmp_path / "run.yaml")
    run(*command)
    run(*command, "--num-beams", 1, "--shuffled", "--metrics", "bleu", "--evaluation.batch_size", 4)
    first, second = calls
    assert (first["metrics"], first["generation"]) == (["exact_match"], {"num_beams": 3, "max_new_tokens": 5})
    assert (first["shuffled_pictures"], first["batch_size"], first["seed"]) == (False, 2, 7)
    assert first["training_records"] is None
    assert (second["metrics"], second["generation"]) == (["bleu"], {"num_beams": 1, "max_new_tokens": 5})
    assert (second["shuffled_pictures"], second["batch_size"]) == (True, 4)


def test_ids_of_coco_become_numbers_in_a_submission():
    ids = ["COCO_val2014_000000391895.jpg", "000000000042.jpg", "17", 5, "photo-17.jpg"]
    results = to_coco_results([{"id": name, "caption": "a", "references": ["b"]} for name in ids])
    assert [row["image_id"] for row in results] == [391895, 42, 17, 5, "photo-17.jpg"]


def test_document_frequencies_are_those_of_the_captions(tmp_path):
    from hf_vlp.metrics import DocumentFrequencies

    make_picture().save(tmp_path / "a.jpg")
    lines = [{"image": "a.jpg", "captions": ["a dog", "the dog"]}, {"image": "a.jpg", "captions": ["a cat"]}]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    arguments = ("--data", tmp_path / "train.jsonl", "--data.dataset_cache", tmp_path / "cache")
    result = run("document-frequencies", tmp_path / "frequencies.json", *arguments)
    assert "of 2 records" in result.stdout
    frequencies = DocumentFrequencies.load(tmp_path / "frequencies.json")
    assert frequencies.num_images == 2
    assert frequencies.counts["a"] == 2
    assert "cat" not in frequencies.counts  # an n-gram of one record weighs as much as one of none


# train


def test_train_lists_its_settings():
    output = run("train", "--list-settings").stdout
    assert "captions_per_image" in output
    assert "vision_model_name_or_path" in output


def test_train_hands_yaml_and_flags_to_the_run(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("hf_vlp.pretraining.run.train", lambda *arguments, **options: calls.append(arguments))
    run("train", tmp_path / "run.yaml", "--training.max_steps", 3, "--data.source=scenes")
    assert calls == [(tmp_path / "run.yaml", ["--training.max_steps", "3", "--data.source=scenes"])]


def test_yaml_is_trained_evaluated_and_captions_a_picture(tmp_path):
    output = tmp_path / "run"
    settings = {
        "training.output_dir": output,
        "training.max_steps": 2,
        "training.per_device_train_batch_size": 4,
        "data.num_scenes": 16,
        "data.num_eval_scenes": 4,
        "evaluation.constant_candidates": 2,
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    text = run("train", ROOT / "examples" / "configs" / "vc_gpt_quick.yaml", *flags).stdout
    assert "learning rate" in text  # the table of what trains
    assert "compositional" in text
    assert "cider_d" in run("evaluate", output, "--data.num_eval_scenes", 4, "--data.num_scenes", 4).stdout
    make_picture(size=64).save(tmp_path / "photo.png")
    assert run("caption", output, tmp_path / "photo.png", "--json").stdout.startswith('{"image": ')


def test_metrics_that_cannot_be_computed_are_told_before_captioning(model, monkeypatch):
    def no_captioning(*arguments, **options):
        raise AssertionError("captions were generated first")

    def no_java(*arguments, **options):
        raise RuntimeError("METEOR runs a Java program and no `java` is on the PATH")

    monkeypatch.setattr("hf_vlp.evaluation.evaluate_captioning", no_captioning)
    assert "ciderr" in error_of("evaluate", model, "--metrics", "ciderr")
    monkeypatch.setattr("hf_vlp.metrics.caption_metrics", no_java)
    assert "no `java`" in error_of("evaluate", model, "--metrics", "meteor")


# Errors


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "no.yaml"], "no settings file"),
        (["train"], "Name the YAML"),
        (["train", "{yaml}", "--training.learning_rat", "1"], "learning_rate"),
        (["train", "{yaml}", "--model.config.num_fusion_layers", "0"], "num_fusion_layers=0"),
        (["train", "{yaml}", "--data.source", "{empty}"], "empty"),
        (["quickstart", "--architecture", "blip"], "no quick start for 'blip'"),
        (["info", "{empty}"], "no config.json"),
        (["info", "./nowhere"], "neither a folder"),
        (["caption", "{empty}", "{picture}"], "no config.json"),
        (["caption", "{other}", "{picture}"], "Unrecognized configuration class"),
        (["ask", "{empty}", "{picture}", "-q", "red"], "no config.json"),
        (["ask", "{model}", "{picture}", "-q", "red"], "Unrecognized configuration class"),
        (["ask", "{model}", "{picture}", "-q", " "], "question is empty"),
        (["ask", "{model}", "{empty}", "-q", "red"], "holds no pictures"),
        (["ask", "{matcher}", "{picture}", "-q", "red"], "no weights for classifier.dense"),
        (
            ["match", "{answerer}", "--images", "{picture}", "--texts", "red"],
            "It holds VlmoForVisualQuestionAnswering",
        ),
        (["match", "{empty}", "--images", "{picture}", "--texts", "red"], "no config.json"),
        (["match", "{model}", "--images", "{picture}", "--texts", "red"], "Unrecognized configuration class"),
        (["match", "{model}", "--images", "{picture}", "--texts", "no.txt"], "no file no.txt"),
        (["match", "{model}", "--images", "{picture}", "--texts", "{picture}"], "not a text file"),
        (["match", "{model}", "--images", "{empty}", "--texts", "red"], "holds no pictures"),
        (["convert", "blip", "x.pt", "out"], "no conversion for 'blip', only for vlmo"),
        (["convert", "vlmo", "x.pt", "out"], "no file or folder x.pt"),
        (["convert", "vlmo", "{picture}", "{yaml}/../out"], "0.png"),
        (["evaluate", "{empty}"], "no config.json"),
        (["evaluate", "{model}", "--data", "{empty}"], "is empty"),
        (["evaluate", "{model}", "--split", "tset"], "tset"),
        (["evaluate", "{model}", "--data.num_eval_scene", "2"], "num_eval_scenes"),
        (["evaluate", "{model}", "--data", "{captionless}"], "column"),
        (["document-frequencies", "x.json", "--data", "{yaml}/../no.yaml"], "no settings file"),
        (["document-frequencies", "x.json", "--data", "{captionless}"], "column"),
        (["document-frequencies", "x.json", "--data", "{blank}"], "empty"),
    ],
)
def test_wrong_input_is_told_in_one_line(arguments, words, model, vlmo, pictures, tmp_path):
    from transformers import ViTConfig

    places = {name: tmp_path / name for name in ("yaml", "empty", "other", "captionless", "blank")}
    places |= {"model": model, "picture": pictures / "0.png"}
    places |= {"matcher": vlmo["VlmoForImageTextRetrieval"], "answerer": vlmo["VlmoForVisualQuestionAnswering"]}
    places["yaml"].mkdir()
    places["yaml"] /= "run.yaml"
    output_dir = tmp_path / "output"
    places["yaml"].write_text(f"data: {{source: scenes, num_scenes: 4}}\ntraining: {{output_dir: {output_dir}}}\n")
    places["empty"].mkdir()
    ViTConfig(hidden_size=8, num_attention_heads=2).save_pretrained(places["other"])
    for name, record in (
        ("captionless", {"image": "a.jpg", "x": 1}),
        ("blank", {"image": "a.jpg", "captions": [" "]}),
    ):
        places[name].mkdir()
        file = places[name] / "test.jsonl"
        file.write_text(json.dumps(record))
        (places[name] / "train.jsonl").write_text(json.dumps(record))
    assert words in error_of(*(argument.format(**places) for argument in arguments))


def test_debug_shows_the_traceback(tmp_path):
    result = CliRunner().invoke(app, ["--debug", "info", str(tmp_path)])
    assert isinstance(result.exception, ValueError)


def test_wrong_option_is_told_with_the_usage(model):
    assert "No such option" in run("info", model, "--no-such-option", code=2).stderr
