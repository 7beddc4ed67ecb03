"""METEOR and SPICE: clear messages when the package, Java or the download is missing (always tested, with stand-ins);
the recorded METEOR numbers where pycocoevalcap and Java are present (skipped with the reason elsewhere)."""

import importlib.machinery
import importlib.util
import shutil
import sys
import types
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from hf_vlp.metrics import caption_metrics, meteor, spice

METRICS = {"meteor": meteor, "spice": spice}
needs_java = pytest.mark.skipif(
    importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None,
    reason="needs the extra `metrics` (pycocoevalcap) and a Java runtime",
)


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """A pycocoevalcap whose SPICE has to download and cannot, and a java on the PATH."""

    class Spice:
        def __init__(self):
            raise URLError("no route to host")

    names = {"pycocoevalcap": {}, "pycocoevalcap.spice": {}, "pycocoevalcap.spice.spice": {"Spice": Spice}}
    for name, content in names.items():
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / "__init__.py")
        module.__path__ = []
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["pycocoevalcap"].spice = sys.modules["pycocoevalcap.spice"]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize("name", METRICS)
def test_without_the_package_the_error_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(ImportError, match=rf"{name.upper()} needs .*pip install 'hf_vlp\[metrics\]'"):
        METRICS[name](["a dog"], [["a dog"]])
    with pytest.raises(ImportError, match="pycocoevalcap"):
        caption_metrics(["a dog"], [["a dog"]], ("bleu", name))


@pytest.mark.parametrize("name", METRICS)
def test_without_java_the_error_says_what_to_install(name, stand_in, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=rf"{name.upper()} .*no `java` .*install a Java runtime"):
        METRICS[name](["a dog"], [["a dog"]])


def test_spice_that_cannot_download_says_so(stand_in, tmp_path, caplog):
    with pytest.raises(RuntimeError, match=r"downloads the Stanford parser.*no route to host.*models\.jar"):
        spice(["a dog"], [["a dog"]])
    assert "downloading" in caplog.text
    assert str(tmp_path) in caplog.text


@pytest.mark.parametrize("name", METRICS)
def test_bad_input_is_refused_before_java_is_looked_for(name):
    with pytest.raises(ValueError, match="2 predictions and 1 reference"):
        METRICS[name](["a", "b"], [["a"]])


@needs_java
@pytest.mark.slow  # the Java program takes ten seconds to start on a busy machine
def test_meteor_of_the_small_cases_is_the_recorded_one(small_cases):
    for case in small_cases:
        score = meteor(case["candidates"], case["references"], tokenize=not case["tokenised"])
        assert score == pytest.approx(case["exact"]["METEOR"], abs=1e-12), case["name"]


@needs_java
@pytest.mark.slow  # the Java program takes ten seconds to start on a busy machine
def test_meteor_of_coco_is_the_recorded_one(fakecap):
    items = fakecap["items"]
    predictions, references = [item["candidate"] for item in items], [item["references"] for item in items]
    values = caption_metrics(predictions, references, ("meteor",), tokenize=False)
    assert values["meteor"] == pytest.approx(fakecap["exact"]["METEOR"], abs=1e-12)


@needs_java
def test_an_empty_prediction_has_a_meteor_of_zero_and_shifts_no_other(fakecap):
    items = fakecap["items"][:5]
    predictions, references = [item["candidate"] for item in items], [item["references"] for item in items]
    scores = meteor(["", *predictions], [["a dog"], *references], tokenize=False, per_sample=True)
    assert scores[0] == 0.0
    np.testing.assert_allclose(scores[1:], [item["expected"]["METEOR"] for item in items], atol=5.01e-10)


@needs_java
def test_spice_runs_or_says_what_it_lacks(fakecap):
    import pycocoevalcap.spice

    if not (Path(pycocoevalcap.spice.__file__).parent / "lib" / "stanford-corenlp-3.6.0.jar").exists():
        pytest.skip("SPICE would download its parser (several hundred MB)")
    items = fakecap["items"][:20]
    predictions, references = [item["candidate"] for item in items], [item["references"] for item in items]
    scores = spice(predictions, references, tokenize=False, per_sample=True)
    np.testing.assert_allclose(scores, [item["spice_f"] for item in items], atol=1e-6)
