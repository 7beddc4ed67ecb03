"""Every YAML of VLMo in examples/configs trains a step of each of its stages, with a tiny model on drawn data."""

import pytest

from tests.training.tiny_recipes import CONFIGS, make_starts, train_a_step


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, str]:
    return make_starts(tmp_path_factory.mktemp("starts"))


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("vlmo_*.yaml")), ids=lambda path: path.stem)
def test_recipe_trains_a_step_of_each_stage(config, starts, tmp_path):
    metrics = train_a_step(config, starts, tmp_path)
    for own in (metrics, *metrics.get("stages", {}).values()):
        assert own["train_steps"] == 1
        assert own["train_loss"] == own["train_loss"]  # a number
    assert (tmp_path / "README.md").is_file()
