"""Every YAML in examples/configs passes the real parser, and opens with a comment on how it is run."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_vlp.auto import ARCHITECTURES
from hf_vlp.pretraining.arguments import parse_arguments
from hf_vlp.pretraining.build import check_config_keys, check_lengths, make_config

CONFIGS = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("**/*.yaml"))

pytestmark = pytest.mark.skipif(not CONFIGS, reason="examples/configs holds no YAML")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_passes_the_parser(path, tmp_path):
    run = parse_arguments(path, {"output_dir": str(tmp_path), "use_cpu": True})  # bf16 needs either that or a GPU
    for stage in run.stages():
        config_class = ARCHITECTURES[stage.model.architecture].get_config()
        check_config_keys(config_class, stage.model.config)
        from_nothing = not (stage.model.model_name_or_path or stage.model.vision_model_name_or_path)
        if from_nothing:  # the sizes fit together, and the texts into them
            config = make_config(stage.model.architecture, stage.model.config)
            check_lengths(stage, SimpleNamespace(config=config))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_opens_with_its_command(path):
    head = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert any("hf-vlp train" in line or "hf_vlp.cli" in line for line in head), "no command in the opening comment"
