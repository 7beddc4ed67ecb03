"""The package as a whole: what importing it costs and registers, and what the README and the CI run promise.

Covered: laziness of `import hf_vlp`, registration whatever was imported before, files under `hf_vlp/models` that a Hub
repository can carry, one test command in README and CI.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_loads_nothing_heavy():
    heavy = ["torch", "datasets", "evaluate", "peft", "numpy", "PIL", "hf_vlp.models.vc_gpt.modeling_vc_gpt"]
    assert run_python(f"import sys, hf_vlp; print([name for name in {heavy!r} if name in sys.modules])") == "[]"


@pytest.mark.parametrize(
    "before",
    [
        "import hf_vlp",
        "import hf_vlp; from transformers import CLIPModel",
        "import hf_vlp; from transformers import GPT2LMHeadModel",
        "from transformers import AutoModelForImageTextToText, AutoProcessor; import hf_vlp",
        "from transformers import pipeline; import hf_vlp",
        "from hf_vlp import VcGptProcessor",
    ],
)
def test_auto_classes_know_us_whatever_was_imported_before(before):
    code = f"""
{before}
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING
config = AutoConfig.for_model("vc_gpt")
mappings = [AutoModel._model_mapping, AutoModelForImageTextToText._model_mapping, PROCESSOR_MAPPING, TOKENIZER_MAPPING]
print(type(config).__name__, *(mapping[type(config)].__name__ for mapping in mappings))
print("pil" in IMAGE_PROCESSOR_MAPPING[type(config)])
"""
    assert run_python(code).splitlines() == [
        "VcGptConfig VcGptModel VcGptForConditionalGeneration VcGptProcessor GPT2Tokenizer",
        "True",
    ]


def test_public_names_can_be_imported():
    import hf_vlp

    for name in hf_vlp.__all__:
        assert getattr(hf_vlp, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        hf_vlp.no_such_name  # noqa: B018


def test_model_files_import_only_siblings():
    forbidden = re.compile(r"^\s*(from \.\.|from hf_vlp|import hf_vlp|from \.[a-z_]+\.)", re.MULTILINE)
    files = [file for file in (ROOT / "hf_vlp" / "models").rglob("*.py") if file.name != "__init__.py"]
    assert files
    assert [file.name for file in files if forbidden.search(file.read_text())] == []


def test_every_folder_of_models_holds_the_same_saving_code():
    """A checkpoint carries the files of one folder, so each has its own copy."""
    copies = list((ROOT / "hf_vlp" / "models").glob("*/saving.py"))
    assert len(copies) == len(
        [path for path in (ROOT / "hf_vlp" / "models").iterdir() if (path / "__init__.py").exists()]
    )
    assert len({file.read_bytes() for file in copies}) == 1


def test_auto_map_of_checkpoints_is_the_table_of_auto_classes():
    from hf_vlp.auto import ARCHITECTURES

    for entry in ARCHITECTURES.values():
        model_class = entry.get("modeling", entry.models["AutoModel"])
        assert model_class._exported_classes == entry.models


def test_ci_runs_the_test_command_of_the_readme():
    commands = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert "python -m pytest" in commands
    assert re.search(r"^(.* && )?python -m pytest$", (ROOT / "README.md").read_text(), re.MULTILINE)
