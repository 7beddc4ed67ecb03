"""`hf_vlp.hub.cards`: generated model cards.

Covers: complete metadata that the Hub's own classes read back, measured numbers in `model-index` and in the table
beside those with shuffled pictures, "not measured" where nothing was, the paper's numbers marked as the paper's,
training table, usage examples that run, every registered architecture having card data, adapters, refused input, and
the copies of template and data in `model_cards/`.
"""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_vlp.auto import ARCHITECTURES
from hf_vlp.hub.cards import Evaluation, format_count, load_card_data, make_card
from hf_vlp.hub.export import save_repository
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor

ROOT = Path(__file__).parent.parent.parent
EVALUATION = Evaluation(
    dataset="scenes",
    split="compositional",
    metrics={"cider_d": 1.23456, "exact_match": 0.75},
    shuffled={"cider_d": 0.1},
    num_samples=1000,
    protocol="greedy",
)


def read_metadata(card: ModelCard) -> dict:
    return yaml.safe_load(str(card).split("---")[1])


@pytest.fixture(scope="module")
def model():
    return make_tiny_model()


def test_metadata_is_complete_and_is_read_back_by_the_hub_client(model):
    card = make_card(
        model,
        model_id="me/tiny-vc-gpt",
        evaluations=[EVALUATION],
        base_models=["openai/clip-vit-base-patch16", "openai-community/gpt2"],
        datasets=["nlphuji/flickr30k"],
    )
    data = ModelCard(str(card)).data
    assert data.license == "apache-2.0"
    assert data.language == ["en"]
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-to-text"
    assert data.base_model == ["openai/clip-vit-base-patch16", "openai-community/gpt2"]
    assert data.datasets == ["nlphuji/flickr30k"]
    assert data.metrics == ["cider", "exact_match"]
    assert "vc_gpt" in data.tags
    assert data.model_name == "tiny-vc-gpt"
    results = {result.metric_name: result for result in data.eval_results}
    assert results["CIDEr-D"].metric_value == 1.2346
    assert results["CIDEr-D"].dataset_split == "compositional"
    assert results["Exact match"].metric_type == "exact_match"


def test_measured_numbers_stand_beside_those_with_shuffled_pictures(model):
    text = str(make_card(model, evaluations=[EVALUATION]))
    assert "| scenes, compositional (1,000 pictures) | CIDEr-D | 1.2346 | 0.1000 |" in text
    assert "| scenes, compositional (1,000 pictures) | Exact match | 0.7500 | not measured |" in text
    assert "Protocol: greedy." in text


def test_nothing_measured_is_said_and_not_in_the_metadata(model):
    card = make_card(model)
    assert "On any data set: **not measured**." in str(card)
    assert "How it was trained was not recorded." in str(card)
    assert "model-index" not in read_metadata(card)


def test_numbers_of_the_paper_are_marked_as_its_own_and_never_enter_the_metadata(model):
    text = str(make_card(model, evaluations=[EVALUATION]))
    lines = [line for line in text.splitlines() if "127.7" in line]
    assert lines == ["| VC-GPT (paper, this variant) | 127.7 | 37.3 | 30.1 | 23.8 |"]
    assert "| **this checkpoint** | not measured | not measured | not measured | not measured |" in text
    assert "127.7" not in text.split("---")[1]


def test_own_number_on_coco_stands_below_those_of_the_paper(model):
    evaluation = Evaluation("COCO (Karpathy)", "test", {"cider_d": 0.5, "bleu_4": 0.1})
    text = str(make_card(model, evaluations=[evaluation]))
    assert "| **this checkpoint** | 50.0 | 10.0 | not measured | not measured |" in text


@pytest.mark.parametrize(
    "config, row", [({"self_ensemble": False}, "VC-GPT w/o SE"), ({"variant": "vanilla"}, "Vanilla")]
)
def test_row_of_the_paper_is_that_of_the_variant(config, row):
    assert f"| {row} (paper, this variant) |" in str(make_card(make_tiny_model(**config)))


def test_training_settings_become_a_table(model):
    settings = {"training": {"learning_rate": 1e-4, "max_steps": 10}, "note": "a | b"}
    text = str(make_card(model, training=settings))
    assert "| `training.learning_rate` | 0.0001 |\n| `training.max_steps` | 10 |\n| `note` | a \\| b |" in text


def test_card_names_differences_limits_biases_and_sizes(model):
    text = str(make_card(model, description="Trained on drawings."))
    for words in ("## Differences from the paper", "hallucination", "stereotypes", "Trained on drawings.", "bibtex"):
        assert words in text
    assert f"{format_count(model.num_parameters())} parameters (vision " in text


def test_card_names_the_choices_of_the_configuration():
    text = str(make_card(make_tiny_model(visual_pairing="final")))
    assert "`visual_pairing='final'`" in text
    assert "`num_fusion_layers=1`" in text


def test_usage_examples_run(model, tmp_path, monkeypatch, capsys):
    directory = tmp_path / "tiny"
    card = make_card(model, model_id=str(directory))
    save_repository(directory, model=model, processor=make_tiny_processor(), card=card)
    make_picture().save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "card", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("[{'generated_text': ")
    assert printed[1].startswith("['") or printed[1].startswith('["')


def test_card_of_adapters_names_their_base(model):
    from hf_vlp.adapters import apply_lora

    model = apply_lora(make_tiny_model(), r=2)
    model.peft_config["default"].base_model_name_or_path = "me/base"
    card = make_card(model)
    assert read_metadata(card)["base_model"] == ["me/base"]
    assert read_metadata(card)["library_name"] == "peft"
    assert "Adapters only: they go on top of `me/base`" in str(card)
    assert " in adapters" in str(card)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_has_card_data_with_all_fields(model_type):
    assert load_card_data(model_type).keys() == load_card_data("vc_gpt").keys()


def test_model_without_card_data_is_refused():
    with pytest.raises(ValueError, match="no card data for models of type 'gpt2', only for vc_gpt"):
        load_card_data("gpt2")


@pytest.mark.parametrize("value", [float("nan"), None, "1.2", True])
def test_figure_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="no measured number"):
        Evaluation("scenes", "test", {"cider_d": value})


@pytest.mark.parametrize("count, text", [(0, "0"), (999, "999"), (1_234_567, "1.23 M"), (3.5e8, "350 M")])
def test_counts_are_readable(count, text):
    assert format_count(int(count)) == text


def test_files_in_model_cards_are_those_of_the_package():
    package = ROOT / "hf_vlp" / "hub" / "model_cards"
    copies = {file.name: file.read_text() for file in (ROOT / "model_cards").iterdir()}
    assert copies == {file.name: file.read_text() for file in package.iterdir()}
