"""Every YAML of VL-BEiT in examples/configs trains a step of each of its stages, with a tiny model on drawn data.

And says in its opening comment how it is run, on what, in what time and with what score. Those of the five families on
drawn scenes also train from nothing, in the way that their opening comment tells.
"""

import pytest
import yaml

from hf_vlp.pretraining.arguments import read_yaml
from tests.training.tiny_recipes import CONFIGS, make_starts, train_a_step

RECIPES = sorted(CONFIGS.glob("vl_beit_*.yaml"))


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, str]:
    return make_starts(tmp_path_factory.mktemp("starts"))


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains_a_step_of_each_stage(config, starts, tmp_path):
    metrics = train_a_step(config, starts, tmp_path)
    for own in (metrics, *metrics.get("stages", {}).values()):
        assert own["train_steps"] == 1
        assert own["train_loss"] == own["train_loss"]  # a number
    assert (tmp_path / "README.md").is_file()


@pytest.mark.parametrize("family", ("questions", "statements", "retrieval", "classification", "segmentation"))
def test_recipe_of_scenes_trains_from_nothing(family, starts, tmp_path):
    content = read_yaml(CONFIGS / f"vl_beit_scenes_{family}.yaml")
    pretraining = read_yaml(CONFIGS / "vl_beit_scenes.yaml")["model"]
    model = content["model"]
    model["tokenizer_name_or_path"] = model.pop("model_name_or_path")
    model["config"] = {**pretraining["config"], **model.get("config", {})}
    config = tmp_path / "from_nothing.yaml"
    config.write_text(yaml.safe_dump(content))
    metrics = train_a_step(config, starts, tmp_path / "output")
    assert metrics["train_steps"] == 1
    assert metrics["train_loss"] == metrics["train_loss"]  # a number


@pytest.mark.parametrize("config", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_command_data_hardware_time_and_score(config):
    head = [line for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for what in ("command:", "data:", "hardware:", "time:", "score:"):
        assert any(line.startswith(f"# {what}") for line in head), what
    assert any(f"examples/configs/{config.name}" in line for line in head if line.startswith("# command:"))
