"""`hf_vlp.hub.cards`: generated model cards.

Covers: complete metadata that the Hub's own classes read back, measured numbers in `model-index` and in the table
beside those with shuffled pictures, "not measured" where nothing was, the paper's numbers marked as the paper's and
cut to the model's task, training table, usage examples that run for every model class and print one word for each that
is masked, a name for every score that a task measures, every registered architecture having card data, adapters, cards
of the published files (data, licence, origin, sizes, numbers), refused input, and the copies of template and data in
`model_cards/`.
"""

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from hf_vlp.auto import ARCHITECTURES
from hf_vlp.data.joint import JointRecords
from hf_vlp.evaluation import evaluate_model, is_score
from hf_vlp.hub.cards import (
    CARD_TASKS,
    Evaluation,
    find_card_task,
    format_count,
    load_card_data,
    load_checkpoint_data,
    make_card,
    make_published_card,
    metric_name,
    published_checkpoints,
)
from hf_vlp.hub.export import save_repository
from hf_vlp.tasks import TASKS
from tests.hub import tiny_vlmo
from tests.hub.tiny_vc_gpt import make_picture, make_tiny_model, make_tiny_processor

ROOT = Path(__file__).parent.parent.parent
CLASS_NAMES = [*tiny_vlmo.CLASS_NAMES, *tiny_vlmo.VL_BEIT_CLASS_NAMES, *tiny_vlmo.VQKD_CLASSES]
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
    with pytest.raises(ValueError, match=r"no card data for models of type 'gpt2', only for vc_gpt, .*vlmo"):
        load_card_data("gpt2")


@pytest.mark.parametrize("value", [float("nan"), None, "1.2", True])
def test_figure_that_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="no measured number"):
        Evaluation("scenes", "test", {"cider_d": value})


@pytest.mark.parametrize("count, text", [(0, "0"), (999, "999"), (1_234_567, "1.23 M"), (3.5e8, "350 M")])
def test_counts_are_readable(count, text):
    assert format_count(int(count)) == text


def test_files_in_model_cards_are_those_of_the_package():
    def read(folder):
        return {file.relative_to(folder): file.read_text() for file in folder.rglob("*") if file.is_file()}

    assert read(ROOT / "model_cards") == read(ROOT / "hf_vlp" / "hub" / "model_cards")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """A folder with two pictures and a repository of every class, whose cards name their place in it."""
    folder = tmp_path_factory.mktemp("repositories")
    for name in CLASS_NAMES:
        model = tiny_vlmo.make_model(name)
        card = make_card(model, model_id=f"./{name}")
        save_repository(folder / name, model=model, processor=tiny_vlmo.make_processor_of(name), card=card)
    for index, file in enumerate(("photo.jpg", "photo2.jpg")):
        make_picture(index).save(folder / file)
    return folder


def read_examples(repository: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_usage_examples_of_every_class_run(name, repositories, monkeypatch, capsys):
    monkeypatch.chdir(repositories)
    examples = read_examples(repositories / name)
    assert examples
    for example in examples:
        exec(compile(example, "card", "exec"), {})
        printed = capsys.readouterr().out.strip()
        assert printed
    if "[MASK]" in examples[-1]:  # other positions were not trained to say anything
        words = ast.literal_eval(printed.splitlines()[-1])
        assert [len(word.split()) for word in words] == [1]


def test_first_example_of_every_class_runs_without_the_package(repositories):
    examples = [read_examples(repositories / name)[0] for name in CLASS_NAMES]
    code = "import sys\nsys.modules['hf_vlp'] = None  # any import of it fails\n" + "\n".join(examples)
    environment = {**os.environ, "HF_MODULES_CACHE": str(repositories / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repositories, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(examples)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_metadata_of_every_class_are_those_of_its_task(name):
    model = tiny_vlmo.make_model(name)
    task = find_card_task(model)
    metadata = read_metadata(make_card(model))
    assert metadata.get("pipeline_tag") == task.pipeline_tag
    assert metadata.get("metrics", []) == list(task.metrics)
    assert {*task.tags, model.config.model_type} <= set(metadata["tags"])
    assert metadata["license"] == "apache-2.0"


def test_pipeline_tags_are_tasks_of_the_hub():
    """From the Hub's list of tasks; an unknown one would be ignored there."""
    tags = {
        *("fill-mask", "image-classification", "image-feature-extraction", "image-segmentation", "image-to-text"),
        *("visual-question-answering", "zero-shot-image-classification"),
    }
    assert {task.pipeline_tag for task in CARD_TASKS} - {None} <= tags


def test_class_of_a_user_has_the_task_of_the_one_it_extends():
    from hf_vlp.models.mome.modeling_vlmo import VlmoForVisualQuestionAnswering

    own_class = type("MyModel", (VlmoForVisualQuestionAnswering,), {})
    assert find_card_task(object.__new__(own_class)).usage == "visual-question-answering"


def test_base_models_show_what_they_can_do():
    from hf_vlp import VcGptModel

    assert find_card_task(tiny_vlmo.make_model("VlmoModel")).usage == "features"
    assert find_card_task(VcGptModel(make_tiny_model().config)).usage == "captioning"


def test_numbers_of_the_paper_are_those_of_the_task():
    questions = str(make_card(tiny_vlmo.make_model("VlmoForVisualQuestionAnswering")))
    assert "| large (paper) | 79.94 | 79.98 |" in questions
    assert "57.2" not in questions
    unsettled = str(make_card(tiny_vlmo.make_model("VlmoForPreTraining")))
    assert "| base (paper) | 76.64 | 76.89 | 82.77 | 83.34 | 74.8 | 57.2 | 92.3 | 79.3 | 85.5 |" in unsettled
    assert "and fine-tuning on each task" in unsettled


def test_cards_of_vl_beit_tell_that_nothing_of_the_paper_was_released_and_what_was_decided_here():
    for name in tiny_vlmo.VL_BEIT_CLASS_NAMES:
        text = " ".join(str(make_card(tiny_vlmo.make_model(name))).split())
        assert "The authors of the paper released neither code nor weights." in text
        assert all(f"* D{number}: " in text for number in range(1, 13))
        assert "hf-vlp convert vl_beit beitv2_base_patch16_224_pt1k.pth OUTPUT --head pretraining" in text
        assert "hf-vlp convert vl_beit vlmo_base_patch16_224.pt OUTPUT" in text
    assert "inferred) | 77.5 | 77.8 | 81.9 | 82.7 | 79.5 | 61.5 | 95.8 | 83.9 | - | - |" in str(
        make_card(tiny_vlmo.make_model("VlBeitForPreTraining"))
    )


def test_card_of_a_tokenizer_names_no_source_of_the_published_figure_but_its_file():
    text = str(make_card(tiny_vlmo.make_model("VlBeitVqkdTokenizer")))
    assert "| vqkd_encoder_base_decoder_3x768x12_clip (published) | 97 |" in text
    assert "the published figure (in per cent), on data the source does not name. **Not** measured on this" in text
    assert "paper (" not in text
    evaluation = Evaluation("imagenet", "validation", {"codes_used": 0.5})
    card = make_card(tiny_vlmo.make_model("VlBeitVqkdTokenizer"), evaluations=[evaluation])
    assert "| **this checkpoint** | not measured |" in str(card)


def test_weights_from_a_file_of_others_keep_its_licence():
    model = tiny_vlmo.make_model("VlBeitForPreTraining")
    text = str(make_card(model, converted_from="beit.pth"))
    assert ModelCard(text).data.license == "other"
    assert "* Licence: that of `beit.pth` for the weights taken from it; apache-2.0 for the code\n" in text


def test_pre_training_of_vl_beit_is_not_that_of_vlmo():
    assert find_card_task(tiny_vlmo.make_model("VlBeitForPreTraining")).usage == "joint-pre-training"
    assert find_card_task(tiny_vlmo.make_model("VlmoForPreTraining")).usage == "pre-training"


def test_own_recall_stands_in_its_column():
    scores = {"image_to_text_recall_at_1": 0.5, "text_to_image_recall_at_1": 0.25}
    evaluation = Evaluation("COCO captions", "test", scores, num_samples=5000)
    card = make_card(tiny_vlmo.make_model("VlmoForImageTextRetrieval"), evaluations=[evaluation])
    assert "| **this checkpoint** | 50.0 | 25.0 | not measured | not measured |" in str(card)
    assert "| COCO captions, test (5,000 pictures) | Image to text R@1 | 0.5000 | not measured |" in str(card)
    results = ModelCard(str(card)).data.eval_results
    assert {result.metric_type for result in results} == {"recall"}
    assert {result.task_type for result in results} == {"zero-shot-image-classification"}


def test_questions_of_another_data_set_do_not_count_as_vqa_v2():
    evaluation = Evaluation("easy_vqa", "test", {"vqa_accuracy": 0.9, "exact_match": 0.9})
    card = make_card(tiny_vlmo.make_model("VlmoForVisualQuestionAnswering"), evaluations=[evaluation])
    assert "| **this checkpoint** | not measured | not measured |" in str(card)


def test_results_without_a_task_of_the_hub_are_written_under_our_name():
    evaluation = Evaluation("NLVR2", "dev", {"accuracy": 0.75, "consistency": 0.25})
    card = make_card(tiny_vlmo.make_model("VlmoForImagesAndTextClassification"), evaluations=[evaluation])
    assert {result.task_type for result in ModelCard(str(card)).data.eval_results} == {"image-pairs"}
    assert "| **this checkpoint** | 75.0 | not measured |" in str(card)


@pytest.mark.parametrize("name", TASKS)
def test_every_score_of_every_task_has_a_name(name):
    task = TASKS[name]
    if name == "captioning":
        model, processor = make_tiny_model(), make_tiny_processor()
        options = {"metrics": ("bleu", "rouge_l", "cider", "cider_d", "exact_match")}
    else:
        class_name = next(one for one in CLASS_NAMES if one.startswith(task.family) and one.endswith(task.head))
        model = tiny_vlmo.make_model(class_name, **task.config)
        processor = tiny_vlmo.make_processor_of(class_name)
        options = {
            "image_text_retrieval": {"rerank": 2},
            "joint_pretraining": {"visual_tokenizer": lambda pixels: torch.zeros(len(pixels), 4, dtype=int)},
            "masked_image": {"visual_tokenizer": lambda pixels: torch.zeros(len(pixels), 4, dtype=int)},
        }.get(name, {})
    records = [
        {
            **{"image": make_picture(row), "captions": tiny_vlmo.TEXTS[:1], "statement": tiny_vlmo.TEXTS[0]},
            **{"question": tiny_vlmo.TEXTS[1], "answers": ["yes"] * 10},
            **{"label": row, "identifier": f"dev-0-{row}-0", "segmentation_map": np.full((20, 20), row, np.uint8)},
        }
        for row in range(2)
    ]
    if task.labels == "answers":
        model.config.id2label = {0: "yes", 1: "no"}
    if name == "images_and_text_classification":
        records = [{**record, "images": [record.pop("image")] * 2} for record in records]
    if name == "joint_pretraining":
        records = JointRecords({"pair": records, "text": records, "image": records})
    scores = evaluate_model(model, processor, records, name, progress=False, **options)
    assert task.score in scores
    assert [key for key in scores if is_score(key) and metric_name(key) == key] == []


def test_every_usage_example_belongs_to_a_task():
    files = {file.stem for file in (ROOT / "hf_vlp" / "hub" / "model_cards" / "usage").iterdir()}
    assert files == {task.usage for task in CARD_TASKS}


def test_every_published_file_of_vlmo_has_a_card():
    """Three sizes times stage 2, stage 3, VQA, NLVR2, COCO, Flickr30k."""
    endings = ("224_stage2", "224", "480_vqa", "384_nlvr2", "384_coco", "384_f30k")
    names = {f"vlmo_{size}_patch16_{end}" for size in ("base", "base_plus", "large") for end in endings}
    assert set(published_checkpoints()) == names


@pytest.mark.parametrize("name", published_checkpoints())
def test_card_of_a_published_file_is_complete(name):
    card = make_published_card(name, model_id=f"me/{name}")
    text = str(card)
    data = ModelCard(text).data
    assert data.license == "mit"
    assert data.library_name == "transformers"
    assert data.language == ["en"]
    assert "wikimedia/wikipedia" in data.datasets
    assert data.eval_results is None
    if not name.endswith("nlvr2"):
        assert data.pipeline_tag
    for words in (
        f"`{name}.pt`",
        "https://github.com/wenhui0924/vlmo_ckpts",
        f"hf-vlp convert vlmo {name}.pt OUTPUT --vocab vocab.txt",
        f"me/{name}",
        "Licence: MIT",
        "It was **not measured here**",
        "On any data set: **not measured**.",
        ", this variant) |",
        "By its authors, started from",
        "bao2022vlmo",
    ):
        assert words in text
    assert not re.search(r"\{\{ |\bNone\b(?!`)", text.replace("=None", ""))


@pytest.mark.parametrize(
    "name, size",
    # Parameters of the published models with all heads of their stage: section 1 of their README, and our count.
    [("vlmo_base_patch16_224", "202 M"), ("vlmo_base_plus_patch16_224", "185 M"), ("vlmo_large_patch16_224", "599 M")],
)
def test_sizes_of_published_models_are_counted(name, size):
    assert f"Size: {size} parameters" in str(make_published_card(name))


def test_card_of_a_published_file_shows_only_the_columns_of_its_data():
    text = str(make_published_card("vlmo_base_plus_patch16_384_coco"))
    assert "| base_plus (the original's README, this variant) | 76.3 | 58.6 |" in text
    assert "Flickr30k" not in text
    assert "76.64" not in text


def test_data_of_a_fine_tuned_file_include_those_of_the_stages_before():
    data = load_checkpoint_data("vlmo_large_patch16_480_vqa")
    assert data["saw"].startswith("ImageNet-22k (through BEiT)")
    assert data["datasets"][-1] == "HuggingFaceM4/VQAv2"
    assert "ranjaykrishna/visual_genome" in data["datasets"]
    assert "CC3M" not in load_checkpoint_data("vlmo_large_patch16_224_stage2")["saw"]


def test_answers_of_question_answering_files_are_given_to_the_conversion():
    command = "hf-vlp convert vlmo vlmo_base_patch16_480_vqa.pt OUTPUT --vocab vocab.txt --labels answers.txt\n"
    assert command in str(make_published_card("vlmo_base_patch16_480_vqa"))
    assert "--labels" not in str(make_published_card("vlmo_base_patch16_224"))


def test_options_of_the_conversion_exist():
    from hf_vlp.conversion.vlmo import convert

    accepted = inspect.signature(convert).parameters
    for name in published_checkpoints():
        assert set(re.findall(r"--(\w+)", load_checkpoint_data(name)["command"])) <= set(accepted)


def test_started_from_names_published_files():
    for name in published_checkpoints():
        named = re.findall(r"`(.*)\.pt`", load_checkpoint_data(name)["started_from"])
        assert set(named) <= set(published_checkpoints())
        assert bool(named) != name.endswith("stage2")


def test_unknown_checkpoint_is_refused():
    with pytest.raises(ValueError, match="'vlmo_huge' is no published checkpoint: choose from vlmo_base_patch16_224,"):
        load_checkpoint_data("vlmo_huge")


def test_checkpoint_of_another_task_is_refused():
    model = tiny_vlmo.make_model("VlmoForVisualQuestionAnswering")
    with pytest.raises(ValueError, match="holds a VlmoForPreTraining, not a VlmoForVisualQuestionAnswering"):
        make_card(model, checkpoint="vlmo_base_patch16_224")
