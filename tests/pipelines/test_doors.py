"""The doors into `transformers.pipeline`, and what an exported repository needs for them.

Covers: door 1 (after `import hf_vlp`, native models included, whatever is imported first), door 2 (a process where
hf_vlp cannot be imported, `trust_remote_code=True`), door 3 (an exported repository asks nothing when hf_vlp is
imported); other tasks, foreign repositories and foreign registrations untouched; switching off and on; laziness of the
import; `hf_vlp.pipeline`; the export of pipeline files.
"""

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import transformers
import transformers.pipelines as target
from transformers import AutoConfig, Pipeline

import hf_vlp
from hf_vlp.pipelines import ImageToTextPipeline, VisualQuestionAnsweringPipeline, doors
from hf_vlp.pipelines.export import custom_pipelines, export_pipeline_files
from tests.pipelines.tiny_answerers import save_vilt
from tests.pipelines.tiny_captioners import CAPTIONERS, picture, save_blip, save_vc_gpt, save_vision_encoder_decoder

ROOT = Path(hf_vlp.__file__).parent.parent
PICTURE = picture(0)
KNOWN = sorted(target.get_supported_tasks())

# For subprocesses: anything that tries to import the package fails.
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hf_vlp", "tests"):
            raise ModuleNotFoundError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
"""


def run(code, tmp_path, *arguments, **environment):
    """Run `code` in a fresh process outside the project, offline, with its own cache for remote code."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    command = [sys.executable, "-c", code, *map(str, arguments)]
    # Without an input there is nobody to answer whether to trust a repository: that is a refusal.
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip().splitlines()[-1]


@pytest.fixture(autouse=True)
def installed():
    """Doors as `import hf_vlp` leaves them, before and after each test."""
    doors.install()
    # The warning of the closed door has a stray argument, on which pytest's log capture (rightly) fails.
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(verbosity)
    doors.install()


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return save_blip(str(tmp_path_factory.mktemp("native") / "blip"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A VC-GPT, which exports its code and that of its pipeline with every save."""
    return save_vc_gpt(str(tmp_path_factory.mktemp("ours") / "vc_gpt"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A native model in a repository with pipeline code."""
    directory = tmp_path_factory.mktemp("exported")
    save_vision_encoder_decoder(str(directory))
    export(directory)
    return str(directory)


@pytest.fixture(scope="module")
def vilt(tmp_path_factory):
    return save_vilt(str(tmp_path_factory.mktemp("native") / "vilt"))


@pytest.fixture(scope="module")
def exported_vilt(tmp_path_factory, vilt):
    directory = tmp_path_factory.mktemp("exported") / "vilt"
    shutil.copytree(vilt, directory)
    export(directory, ["visual-question-answering"])
    return str(directory)


def export(directory, tasks=("image-to-text",)):
    config = json.loads((directory / "config.json").read_text())
    config["custom_pipelines"] = export_pipeline_files(directory, tasks)
    (directory / "config.json").write_text(json.dumps(config))


def state():
    """Everything in the module that `pipeline` reads, copied as deep as the doors reach."""
    functions = {name: vars(target)[name] for name in ("pipeline", "check_task", "get_task", "AutoConfig")}
    functions["resolve"] = target._resolve_deprecated_task
    registry = target.PIPELINE_REGISTRY
    tables = (registry.supported_tasks, registry.task_aliases, target.REMOVED_TASKS)
    return functions, [dict(table) for table in tables], [id(table) for table in tables]


def answers(task):
    """What transformers says about a task name: its entry, or the error."""
    try:
        return target._resolve_deprecated_task(task), target.check_task(task)
    except KeyError as error:
        return type(error), error.args


# --- door 1 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CAPTIONERS)
def test_image_to_text_works_without_trust_for_native_models_and_ours(tmp_path, name):
    directory = CAPTIONERS[name](str(tmp_path))
    pipe = transformers.pipeline("image-to-text", model=directory, device="cpu")
    assert type(pipe) is ImageToTextPipeline
    assert pipe.task == "image-to-text"
    assert list(pipe(PICTURE, max_new_tokens=3)[0]) == ["generated_text"]


@pytest.mark.parametrize("task", ["visual-question-answering", "vqa"])
def test_questions_are_answered_without_trust_by_native_models(vilt, task):
    pipe = transformers.pipeline(task, model=vilt, device="cpu")
    assert type(pipe) is VisualQuestionAnsweringPipeline
    (answer,) = pipe(image=PICTURE, question="red circle", top_k=1)
    assert set(answer) == {"score", "answer"}


def test_a_pathlib_path_is_a_model_too(blip):
    assert type(transformers.pipeline("image-to-text", model=Path(blip), device="cpu")) is ImageToTextPipeline


ORDERS = {
    "package first": "import hf_vlp, transformers; pipeline = transformers.pipeline",
    "pipeline first": "from transformers import pipeline; import hf_vlp",
    "class first": "from hf_vlp.pipelines.image_to_text import ImageToTextPipeline; from transformers import pipeline",
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_imports_does_not_matter(tmp_path, order):
    # The function that the user holds is asked, up to the point where it would load the model.
    code = """
class Stop(Exception):
    pass
def stop(impl):
    print(impl)
    raise Stop
pipeline.__globals__["_resolve_impl"] = stop
try:
    pipeline("image-to-text", model=object())
except Stop:
    pass
"""
    assert run(ORDERS[order] + code, tmp_path) == "hf_vlp.pipelines.image_to_text.ImageToTextPipeline"


def test_importing_the_package_imports_neither_torch_nor_pipelines(tmp_path):
    heavy = "('torch', 'transformers.pipelines', 'PIL')"
    code = f"import hf_vlp.pipelines, sys; print([name for name in {heavy} if name in sys.modules])"
    assert run(code, tmp_path) == "[]"


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A module with the parts of `transformers.pipelines`, not imported yet; a file `broken` makes its import fail."""
    (tmp_path / "stand_in.py").write_text(
        "from pathlib import Path\n"
        "if Path(__file__).with_name('broken').exists():\n    raise ImportError('broken')\n"
        "from transformers.pipelines import AutoConfig, PipelineRegistry\n"
        "PIPELINE_REGISTRY = PipelineRegistry({}, {})\n"
        "def _resolve_deprecated_task(task):\n    return 'rewritten'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    doors.uninstall()
    monkeypatch.setattr(doors, "TARGET", "stand_in")
    yield tmp_path
    doors.uninstall()
    sys.modules.pop("stand_in", None)


def test_doors_wait_for_the_import_and_open_at_its_end(stand_in):
    doors.install()
    doors.install()
    assert "stand_in" not in sys.modules
    module = importlib.import_module("stand_in")
    assert list(module.PIPELINE_REGISTRY.supported_tasks) == list(doors.DOORS)
    for task in ("image-to-text", "visual-question-answering", "vqa"):
        assert module._resolve_deprecated_task(task) == task
    assert module._resolve_deprecated_task("summarization") == "rewritten"


def test_a_failed_import_can_be_tried_again(stand_in):
    (stand_in / "broken").touch()
    doors.install()
    with pytest.raises(ImportError, match="broken"):
        importlib.import_module("stand_in")
    (stand_in / "broken").unlink()
    assert "image-to-text" in importlib.import_module("stand_in").PIPELINE_REGISTRY.supported_tasks


def test_uninstall_before_the_import_leaves_the_module_as_it_comes(stand_in):
    doors.install()
    doors.uninstall()
    module = importlib.import_module("stand_in")
    assert module.PIPELINE_REGISTRY.supported_tasks == {}
    assert module._resolve_deprecated_task("image-to-text") == "rewritten"
    doors.install()
    assert list(module.PIPELINE_REGISTRY.supported_tasks) == list(doors.DOORS)


def test_a_release_without_the_rewriting_needs_the_registry_only(stand_in):
    module = importlib.import_module("stand_in")
    del module._resolve_deprecated_task, module.AutoConfig
    doors.install()
    # Such releases understand classes only.
    assert module.PIPELINE_REGISTRY.supported_tasks["image-to-text"]["impl"] is ImageToTextPipeline
    doors.uninstall()
    assert module.PIPELINE_REGISTRY.supported_tasks == {}


# --- doors 2 and 3 ------------------------------------------------------------------------------------------------

DOOR_2 = """
import json, sys
from PIL import Image
from transformers import pipeline
picture = Image.open(sys.argv[1])
captions = []
for directory in sys.argv[2:]:
    try:
        pipeline("image-to-text", model=directory, device="cpu")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        raise SystemExit("was not asked")
    pipe = pipeline("image-to-text", model=directory, trust_remote_code=True, device="cpu")
    assert type(pipe).__module__.startswith("transformers_modules"), type(pipe)
    captions.append([pipe(picture, max_new_tokens=6), pipe([picture] * 3, max_new_tokens=6, batch_size=2)])
assert not any(name.split(".")[0] == "hf_vlp" for name in sys.modules)
print()  # ends the line of the unanswered question
print(json.dumps(captions))
"""


def test_door_2_repositories_caption_the_same_without_the_package(exported, blip, ours, tmp_path):
    """One exported by hand, one saved by the pipeline itself, one as VC-GPT saves itself."""
    saved = str(tmp_path / "saved")
    transformers.pipeline("image-to-text", blip, device="cpu").save_pretrained(saved)
    expected = []
    for directory in (exported, saved, ours):
        pipe = transformers.pipeline("image-to-text", directory, device="cpu")
        assert type(pipe) is ImageToTextPipeline
        expected.append([pipe(PICTURE, max_new_tokens=6), pipe([PICTURE] * 3, max_new_tokens=6, batch_size=2)])
    assert all(single[0]["generated_text"] for single, _ in expected)
    PICTURE.save(tmp_path / "picture.png")
    assert json.loads(run(BLOCK + DOOR_2, tmp_path, tmp_path / "picture.png", exported, saved, ours)) == expected


DOOR_2_ANSWERS = """
import json, sys
from transformers import pipeline
answers = []
for directory in sys.argv[2:]:
    try:
        pipeline("visual-question-answering", model=directory, device="cpu")
    except (ValueError, KeyError) as error:
        assert "trust_remote_code" in str(error) or "removed" in str(error), error
    else:
        raise SystemExit("was not asked")
    pipe = pipeline("visual-question-answering", model=directory, trust_remote_code=True, device="cpu")
    assert type(pipe).__module__.startswith("transformers_modules"), type(pipe)
    answers.append(pipe([sys.argv[1]] * 2, ["red circle", "what is the large cross"], batch_size=3))
assert not any(name.split(".")[0] == "hf_vlp" for name in sys.modules)
print()
print(json.dumps(answers))
"""


def test_door_2_repositories_answer_the_same_without_the_package(exported_vilt, vilt, tmp_path):
    """One exported by hand, one saved by the pipeline itself."""
    saved, picture = str(tmp_path / "saved"), str(tmp_path / "picture.png")
    transformers.pipeline("vqa", vilt, device="cpu").save_pretrained(saved)
    PICTURE.save(picture)
    pipe = transformers.pipeline("vqa", vilt, device="cpu")
    expected = pipe([picture] * 2, ["red circle", "what is the large cross"])
    for answers in json.loads(run(BLOCK + DOOR_2_ANSWERS, tmp_path, picture, exported_vilt, saved)):
        assert [[row["answer"] for row in rows] for rows in answers] == [[a["answer"] for a in r] for r in expected]
        for rows, others in zip(answers, expected):
            assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in others], abs=1e-5)


@pytest.mark.parametrize("trust", [None, False, True])
@pytest.mark.parametrize("task", ["visual-question-answering", "vqa"])
def test_door_3_a_repository_that_answers_uses_the_installed_class(exported_vilt, trust, task):
    pipe = transformers.pipeline(task, exported_vilt, trust_remote_code=trust, device="cpu")
    assert type(pipe) is VisualQuestionAnsweringPipeline
    assert pipe.model.config.custom_pipelines == custom_pipelines(["visual-question-answering"])
    assert pipe(PICTURE, "red circle", top_k=1)[0]["answer"]


@pytest.mark.parametrize("trust", [None, False, True])
def test_door_3_exported_repositories_use_the_installed_class_whatever_is_trusted(exported, ours, trust):
    for directory in (exported, ours):
        pipe = transformers.pipeline("image-to-text", directory, trust_remote_code=trust, device="cpu")
        assert type(pipe) is ImageToTextPipeline
        assert not type(pipe.model).__module__.startswith("transformers_modules")
        assert pipe(PICTURE, max_new_tokens=3)[0]["generated_text"]


def test_door_3_the_task_of_an_exported_repository_is_found_without_the_network(exported):
    pipe = transformers.pipeline(model=exported, device="cpu")
    assert type(pipe) is ImageToTextPipeline
    assert pipe.task == "image-to-text"


def test_door_3_holds_for_names_that_carry_the_repository_as_on_the_hub(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "copy")
    config = json.loads((tmp_path / "copy/config.json").read_text())
    config["custom_pipelines"]["image-to-text"]["impl"] = "someone/model--image_to_text.ImageToTextPipeline"
    (tmp_path / "copy/config.json").write_text(json.dumps(config))
    pipe = transformers.pipeline("image-to-text", str(tmp_path / "copy"), device="cpu")
    assert type(pipe) is ImageToTextPipeline


def test_the_config_that_the_model_keeps_still_lists_its_pipelines(exported, tmp_path):
    pipe = transformers.pipeline("image-to-text", exported, device="cpu")
    assert pipe.model.config.custom_pipelines == custom_pipelines()
    assert "image-to-text" in pipe.model.config.custom_pipelines
    pipe.model.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"] == custom_pipelines()


def test_a_config_read_through_the_door_copies_pickles_and_saves_as_a_plain_one(exported, tmp_path):
    config = target.AutoConfig.from_pretrained(exported)
    assert "image-to-text" not in config.custom_pipelines
    assert list(config.custom_pipelines) == ["image-to-text"]
    assert type(copy.deepcopy(config).custom_pipelines) is dict
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"] == custom_pipelines()


def foreign_repository(directory, task):
    """A repository with pipeline code of somebody else."""
    save_blip(str(directory))
    (directory / "their_pipeline.py").write_text(
        "from transformers.pipelines import Pipeline\n"
        "class TheirPipeline(Pipeline):\n"
        "    def _sanitize_parameters(self, **kwargs):\n        return {}, {}, {}\n"
        "    def preprocess(self, x):\n        return x\n"
        "    def _forward(self, x):\n        return x\n"
        "    def postprocess(self, x):\n        return 'theirs'\n"
    )
    config = json.loads((directory / "config.json").read_text())
    entry = {"impl": "their_pipeline.TheirPipeline", "pt": ["AutoModelForImageTextToText"]}
    config["custom_pipelines"] = {task: entry}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize("task", ["image-to-text", "image-haiku"])
def test_pipelines_of_other_repositories_still_ask_and_still_win(tmp_path, monkeypatch, task):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    directory = foreign_repository(tmp_path / "theirs", task)
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.pipeline(task, directory, device="cpu")
    pipe = transformers.pipeline(task, directory, device="cpu", trust_remote_code=True)
    assert type(pipe).__name__ == "TheirPipeline"


# --- everything else stays ----------------------------------------------------------------------------------------


def test_all_other_tasks_are_answered_as_before():
    names = [
        *target.SUPPORTED_TASKS,
        *target.TASK_ALIASES,
        *target.REMOVED_TASKS,
        "translation_en_to_de",
        "image-text-to-text",
        "no-such-task",
    ]
    names = [name for name in dict.fromkeys(names) if doors.find_door(name) is None]
    assert len(names) > 30
    doors.uninstall()
    before = {name: answers(name) for name in names}
    doors.install()
    after = {name: answers(name) for name in names}
    added = [task for door in doors.DOORS.values() for task in (door.task, *door.aliases)]
    for name in names:
        if before[name][0] is KeyError and "available tasks are" in str(before[name][1]):
            # This message lists all tasks, and now there are more.
            assert after[name][0] is KeyError
            message = str(after[name][1])
            for task in added:
                message = message.replace(f"'{task}', ", "")
            assert message == str(before[name][1])
        else:
            assert after[name] == before[name], name
    assert sorted(set(target.get_supported_tasks()) - set(doors.DOORS)) == [t for t in KNOWN if t not in doors.DOORS]


def test_uninstall_puts_everything_back_and_install_opens_again(blip):
    doors.uninstall()
    closed = state()
    assert "image-to-text" not in target.SUPPORTED_TASKS
    assert target.AutoConfig is AutoConfig
    assert target._resolve_deprecated_task("image-to-text") == "image-text-to-text"
    doors.install()
    opened = state()
    doors.install()
    assert state() == opened, "twice is once"
    assert target.pipeline is closed[0]["pipeline"] is transformers.pipeline, "the function itself is never replaced"
    changed = {name for name in closed[0] if closed[0][name] is not opened[0][name]}
    assert changed == {"resolve", "AutoConfig"}
    doors.uninstall()
    assert state() == closed
    doors.uninstall()
    assert state() == closed
    # What the closed door leads to is stock behaviour.
    assert type(transformers.pipeline("image-to-text", blip, device="cpu")).__name__ == "ImageTextToTextPipeline"
    doors.install()
    assert type(transformers.pipeline("image-to-text", blip, device="cpu")) is ImageToTextPipeline


def test_closed_doors_leave_the_trust_question_of_exported_repositories(exported):
    doors.uninstall()
    with pytest.raises(ValueError, match="trust_remote_code"):
        transformers.pipeline("image-to-text", exported, device="cpu")


def test_a_task_that_transformers_knows_is_not_touched(monkeypatch):
    doors.uninstall()
    native = {"impl": Pipeline, "pt": (), "default": {}, "type": "multimodal"}
    monkeypatch.setitem(target.SUPPORTED_TASKS, "image-to-text", native)
    registered = state()[1]
    doors.install()
    assert target.SUPPORTED_TASKS["image-to-text"] is native
    assert target._resolve_deprecated_task("image-to-text") == "image-text-to-text", "as transformers has it"
    assert target.check_task("vqa")[1]["impl"] == doors.DOORS["visual-question-answering"].pipeline, "others are open"
    doors.uninstall()
    assert state()[1] == registered


def test_a_later_registration_by_somebody_else_survives_uninstall():
    theirs = type("Theirs", (Pipeline,), {})
    target.PIPELINE_REGISTRY.register_pipeline("image-to-text", theirs)
    assert target.check_task("image-to-text")[1]["impl"] is theirs
    doors.uninstall()
    assert target.SUPPORTED_TASKS.pop("image-to-text")["impl"] is theirs


def test_a_wrapper_around_ours_stays_and_ours_becomes_transparent():
    doors.uninstall()
    stock = target._resolve_deprecated_task
    doors.install()
    ours = target._resolve_deprecated_task

    def theirs(task):
        return ours(task)

    target._resolve_deprecated_task = theirs
    try:
        assert theirs("image-to-text") == "image-to-text"
        doors.uninstall()
        assert target._resolve_deprecated_task is theirs
        assert theirs("image-to-text") == "image-text-to-text"
        doors.install()
        assert target._resolve_deprecated_task("image-to-text") == "image-to-text"
    finally:
        doors.uninstall()
        target._resolve_deprecated_task = stock


def test_closed_doors_leave_the_removed_task_removed(vilt):
    doors.uninstall()
    for name in ("visual-question-answering", "vqa"):
        with pytest.raises(KeyError, match="removed"):
            transformers.pipeline(name, vilt, device="cpu")
        assert type(hf_vlp.pipeline(name, vilt, device="cpu")) is VisualQuestionAnsweringPipeline


# --- the switch ---------------------------------------------------------------------------------------------------


def test_the_environment_keeps_the_doors_closed(tmp_path, blip):
    code = """
import sys, hf_vlp, transformers
before = transformers.pipelines.AutoConfig is transformers.AutoConfig
stock = type(transformers.pipeline("image-to-text", sys.argv[1], device="cpu")).__name__
ours = type(hf_vlp.pipeline("image-to-text", sys.argv[1], device="cpu")).__name__
print(before, stock, ours, "image-to-text" in transformers.pipelines.SUPPORTED_TASKS)
"""
    expected = "True ImageTextToTextPipeline ImageToTextPipeline False"
    assert run(code, tmp_path, blip, HF_VLP_PIPELINES="0") == expected


def test_the_switch_takes_the_usual_words_and_no_others(monkeypatch):
    for value, expected in (("0", False), ("False", False), (" off ", False), ("1", True), ("yes", True), ("", True)):
        monkeypatch.setenv("HF_VLP_PIPELINES", value)
        assert doors.enabled() is expected, value
    monkeypatch.delenv("HF_VLP_PIPELINES")
    assert doors.enabled() is True
    monkeypatch.setenv("HF_VLP_PIPELINES", "image-to-text")
    with pytest.raises(ValueError, match=r"HF_VLP_PIPELINES='image-to-text'.*expected 1 or 0"):
        doors.enabled()


# --- hf_vlp.pipeline ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("installed", [True, False])
def test_our_pipeline_function_does_not_need_the_doors(blip, exported, installed):
    (doors.install if installed else doors.uninstall)()
    before = state()
    for directory in (blip, exported):
        pipe = hf_vlp.pipeline("image-to-text", directory, device="cpu")
        assert type(pipe) is ImageToTextPipeline
        assert pipe.task == "image-to-text"
        assert pipe(PICTURE, max_new_tokens=3)[0]["generated_text"]
    assert type(hf_vlp.pipeline("image-text-to-text", blip, device="cpu")).__name__ == "ImageTextToTextPipeline"
    with pytest.raises(KeyError):
        hf_vlp.pipeline("summarization", blip)
    assert state() == before, "the doors are as before, after errors too"


def test_another_class_may_be_given(blip):
    theirs = type("Theirs", (ImageToTextPipeline,), {})
    assert type(hf_vlp.pipeline("image-to-text", blip, device="cpu", pipeline_class=theirs)) is theirs


def test_our_pipeline_function_works_from_several_threads_with_closed_doors(blip):
    # Loading models in threads is not safe in transformers itself, hence objects.
    pipe = hf_vlp.pipeline("image-to-text", blip, device="cpu")
    doors.uninstall()
    closed, kinds = state(), []

    def build():
        for _ in range(20):
            kinds.append(type(hf_vlp.pipeline("image-to-text", pipe.model, processor=pipe.processor, device="cpu")))

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kinds == [ImageToTextPipeline] * 80
    assert state() == closed


# --- export -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", doors.DOORS)
def test_the_exported_entry_names_a_class_in_a_file_beside_it(tmp_path, task):
    entries = export_pipeline_files(tmp_path / "new" / "folder", tasks=[task])
    assert entries == custom_pipelines([task])
    assert list(entries) == [task]
    file, name = entries[task]["impl"].split(".")
    names = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    assert names == {f"{file}.py", "image_pipeline.py"}, "the file, and what it imports"
    assert f"class {name}(" in (tmp_path / "new" / "folder" / f"{file}.py").read_text()
    assert all(hasattr(transformers, auto_class) for auto_class in entries[task]["pt"])
    assert json.loads(json.dumps(entries)) == entries


def test_the_task_exported_when_none_is_named_is_captioning(tmp_path):
    assert export_pipeline_files(tmp_path) == custom_pipelines() == custom_pipelines(["image-to-text"])


def test_both_tasks_share_a_folder(tmp_path):
    entries = export_pipeline_files(tmp_path, tasks=doors.DOORS)
    assert list(entries) == list(doors.DOORS)
    files = {"image_to_text.py", "visual_question_answering.py", "image_pipeline.py"}
    assert {path.name for path in tmp_path.iterdir()} == files


def test_exporting_an_unknown_task_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"fill-mask.*image-to-text.*visual-question-answering"):
        export_pipeline_files(tmp_path, tasks=["fill-mask"])
