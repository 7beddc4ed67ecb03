"""What a stage takes from the one before, against the recorded reports of the original's loading.

Covers: frozen and trained parameters of the language stage, fresh ones when pairs follow it, what a question-answering
model at a larger picture leaves of a pre-trained one, and the table that is shown of it.
"""

import json

import pytest
from transformers import BertTokenizer

from hf_vlp import MomeImageProcessorPil, MomeProcessor, VlmoConfig
from hf_vlp.conversion.safe_load import load_checkpoint
from hf_vlp.conversion.vlmo import convert_state_dict, infer_config, model_class, original_name
from hf_vlp.data.tokenization import BERT_SPECIAL_TOKENS
from hf_vlp.pretraining.arguments import ModelArguments
from hf_vlp.pretraining.build import describe_start, freeze_towers, start_model
from tests.parity.vlmo_goldens import FOLDER, SETTINGS, known_sizes

pytestmark = pytest.mark.skipif(not (FOLDER / "load_reports.json").is_file(), reason=f"no goldens in {FOLDER}")


@pytest.fixture(scope="module")
def reports():
    return json.loads((FOLDER / "load_reports.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Repositories of `stage2.pt` and `pretrain.pt`."""
    root = tmp_path_factory.mktemp("converted")
    for name in ("stage2", "pretrain"):
        state_dict = load_checkpoint(FOLDER / f"{name}.pt").state_dict
        inferred = infer_config(state_dict, **known_sizes(name))
        config = VlmoConfig(**inferred.config)
        model = model_class(inferred.head)(config)
        model.load_state_dict(convert_state_dict(state_dict, config).state_dict, strict=True)
        model.save_pretrained(root / name)
        pieces = [*BERT_SPECIAL_TOKENS, *(f"piece{index}" for index in range(config.vocab_size))][: config.vocab_size]
        tokenizer = BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})
        size = {"height": config.image_size, "width": config.image_size}
        MomeProcessor(MomeImageProcessorPil(size=size), tokenizer).save_pretrained(root / name)
    return root


def start(path, task: str, **config):
    return start_model(ModelArguments(architecture="vlmo", model_name_or_path=str(path), config=config), (), task=task)


def originals(names, head: str) -> set[str]:
    return {original_name(name, head) for name in names}


def test_the_language_stage_trains_and_freezes_what_the_original_does(folder, reports):
    model = start(folder / "stage2", "masked_language").model
    freeze_towers(model, ["for_language_stage"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in model.named_parameters()} - trained
    assert originals(trained, "masked_lm") == set(reports["stage2_trainable"])
    assert originals(frozen, "masked_lm") == set(reports["stage2_frozen"])


def test_pairs_after_the_language_stage_start_with_the_recorded_parameters_fresh(folder, reports):
    first_vl = SETTINGS["relative_bias_model"]["vl_expert_start_layer"]
    length = SETTINGS["max_text_len"]
    begun = start(folder / "stage2", "pretraining", vl_expert_start_layer=first_vl, max_text_length=length)
    assert originals(begun.fresh, "pretraining") == set(reports["stage2_to_stage3"]["missing"])
    assert originals(begun.unused, "masked_lm") == set(reports["stage2_to_stage3"]["unexpected"])
    assert len(begun.model.vlmo.text_embeddings.position_embeddings.weight) == length


def test_questions_at_a_larger_picture_leave_the_recorded_heads(folder, reports):
    size = SETTINGS["interpolated_image_size"]
    begun = start(folder / "pretrain", "visual_question_answering", image_size=size)
    report = reports["pretrain_to_vqa_larger_image"]
    assert originals(begun.unused, "pretraining") == set(report["unexpected"])
    fresh = {name for name in begun.fresh if not name.startswith("classifier.")}  # the original makes it afterwards
    assert originals(fresh, "vqa") == set(report["missing"])
    assert begun.processor.image_processor.size["height"] == size


def test_the_table_tells_what_is_taken_fresh_and_frozen(folder):
    begun = start(folder / "pretrain", "masked_language")
    freeze_towers(begun.model, ["for_language_stage"])
    rows = {line.split()[0]: line.split()[1:] for line in describe_start(begun).splitlines()[2:-1]}
    assert rows["vlmo.layers.*.experts.text"][2] == "yes"
    assert rows["vlmo.layers.*.experts.image"][2] == "no"
    assert rows["total"][1] == "0"
    assert "Not used of the source" in describe_start(begun)
    begun = start(folder / "stage2", "visual_question_answering")
    rows = {line.split()[0]: line.split()[1:] for line in describe_start(begun).splitlines()[2:]}
    assert rows["classifier.dense"][0] == "0"
    assert rows["vlmo.pooler.dense"][1] == "0"
