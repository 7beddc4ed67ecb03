"""The common tests for every head of VL-BEiT; what only VL-BEiT promises is in `test_modeling_vl_beit.py`.

Heads that VLMo has too take their declarations from its tests, and are run once, without the variants and the saving
again that are the same code. One process without this package loads every class and gives equal results.
"""

import os
import subprocess
import sys

import torch

from hf_vlp import (
    VlBeitConfig,
    VlBeitForImageClassification,
    VlBeitForImagesAndTextClassification,
    VlBeitForImageTextRetrieval,
    VlBeitForMaskedImageModeling,
    VlBeitForMaskedLM,
    VlBeitForPreTraining,
    VlBeitForSemanticSegmentation,
    VlBeitForVisualQuestionAnswering,
    VlBeitModel,
)
from tests.common.adapters import AdapterTests
from tests.common.modeling import ModelingTests
from tests.common.training import TrainingTests
from tests.hub.tiny_vlmo import VL_BEIT_CLASS_NAMES
from tests.models import test_modeling_vlmo as vlmo
from tests.models.vl_beit_setup import joint_batch, masked_pictures


class VlBeitSetup(vlmo.VlmoSetup):
    config_class = VlBeitConfig
    base_model_class = VlBeitModel
    variants = {"relative": {}}
    presets = ("attention",)

    def make_config(self, **choices):
        small = {"decoder_hidden_size": 8, "auxiliary_channels": 8, "visual_vocab_size": 11}
        return super().make_config(**{**small, **choices})


# Same code as in VLMo, which runs these.
SHARED = {
    **vlmo.VlmoSetup.selected,
    "compiled|export|resumed|accumulated|shards|save_that_fails|device_map|adapter|merged": (),
}


class TestVlBeitForVisualQuestionAnswering(VlBeitSetup, vlmo.TestVlmoForVisualQuestionAnswering):
    model_class = VlBeitForVisualQuestionAnswering
    variants = {"relative": {}}
    selected = SHARED


class TestVlBeitForImagesAndTextClassification(VlBeitSetup, vlmo.TestVlmoForImagesAndTextClassification):
    model_class = VlBeitForImagesAndTextClassification
    selected = SHARED


class TestVlBeitForImageTextRetrieval(VlBeitSetup, vlmo.TestVlmoForImageTextRetrieval):
    """Its training draws negatives too, which evaluation does not."""

    model_class = VlBeitForImageTextRetrieval
    variants = {"relative": {}}
    selected = {**SHARED, "hidden_states": (), "resumed": ("relative",)}
    batch_outputs = (*vlmo.TestVlmoForImageTextRetrieval.batch_outputs, "losses")


class TestVlBeitForMaskedLM(VlBeitSetup, vlmo.TestVlmoForMaskedLM):
    model_class = VlBeitForMaskedLM
    variants = {"relative": {}, "tied": {"tie_word_embeddings": True}}
    selected = SHARED


class PictureSetup(VlBeitSetup):
    """Models of pictures alone."""

    mask_inputs = ()
    padding_values = {}
    idle_parameters = r"text_embeddings\.|experts\.(text|vl)\.|pooler\."

    def expected_shapes(self, config, inputs):
        return self.shapes_of(config, len(inputs["pixel_values"]), 0, tokens=5)


class TestVlBeitForImageClassification(PictureSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlBeitForImageClassification
    auto_class = "AutoModelForImageClassification"
    selected = {**VlBeitSetup.selected, "export|compiled": ()}  # heads of its own stand for all
    idle_parameters = PictureSetup.idle_parameters + r"|vl_beit\.norm\."

    def make_inputs(self, config, rows=2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            "pixel_values": self.make_pictures(config, rows, generator),
            "labels": torch.randint(0, 2, (rows,), generator=generator),
        }


class TestVlBeitForMaskedImageModeling(PictureSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlBeitForMaskedImageModeling
    auto_class = "AutoModelForMaskedImageModeling"
    selected = {**VlBeitSetup.selected, "export|compiled": ()}
    label_inputs = ("visual_token_ids",)

    def make_inputs(self, config, rows=2, seed=0):
        return masked_pictures(config, rows, torch.Generator().manual_seed(seed))


class TestVlBeitForSemanticSegmentation(PictureSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlBeitForSemanticSegmentation
    auto_class = "AutoModelForSemanticSegmentation"
    # Statistics of a batch: in training every row depends on the others, and a batch is not the sum of its parts.
    selected = {**VlBeitSetup.selected, "accumulated": ()}
    # The auxiliary head works in training only.
    idle_parameters = PictureSetup.idle_parameters + r"|vl_beit\.norm\.|auxiliary"

    def make_inputs(self, config, rows=2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 2, (rows, config.image_size, config.image_size), generator=generator)
        labels[:, :2] = config.semantic_loss_ignore_index
        return {"pixel_values": self.make_pictures(config, rows, generator), "labels": labels}


class TestVlBeitForPreTraining(VlBeitSetup, ModelingTests, AdapterTests, TrainingTests):
    model_class = VlBeitForPreTraining
    auto_class = "AutoModelForPreTraining"
    # A mean over hidden words and patches, whose number varies; states of which of its passes?
    selected = {**VlBeitSetup.selected, "accumulated|hidden_states_and|export": ()}
    label_inputs = ("labels", "text_labels", "visual_token_ids", "image_visual_token_ids")
    mask_inputs = ("attention_mask", "text_attention_mask")
    padding_values = {
        name: padding
        for prefix in ("", "text_")
        for name, padding in (
            *((f"{prefix}input_ids", 0), (f"{prefix}attention_mask", 0)),
            (f"{prefix}labels", -100),
        )
    }
    text_outputs = ("mlm_logits", "mvlm_text_logits")
    vocabulary_outputs = text_outputs
    idle_parameters = rf"{vlmo.UNREAD}|pooler\."

    def make_inputs(self, config, rows=2, seed=0):
        return joint_batch(config, rows, rows, rows, seed)


LOAD_ALL = """
import sys
sys.modules["hf_vlp"] = None  # any import of it fails
import torch, transformers

for name, (auto_class, inputs) in torch.load("calls").items():
    model = getattr(transformers, auto_class).from_pretrained("./" + name, trust_remote_code=True)
    assert type(model).__name__ == name, type(model)
    with torch.no_grad():
        torch.save(model(**inputs)[0], name + ".found")
"""


def test_every_class_gives_equal_results_without_the_package(tmp_path):
    setups = [(value(), value.model_class, value.auto_class) for name, value in globals().items() if "TestVl" in name]
    setups.append((setups[0][0], VlBeitModel, "AutoModel"))
    models, calls = {}, {}
    for setup, model_class, auto_class in setups:
        model = models[model_class.__name__] = setup.model_of(setup.main_variant, model_class=model_class)
        calls[model_class.__name__] = (auto_class, setup.inputs_without_labels(model.config))
    assert models.keys() == set(VL_BEIT_CLASS_NAMES)
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    torch.save(calls, tmp_path / "calls")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-c", LOAD_ALL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        with torch.no_grad():
            assert torch.equal(model(**calls[name][1])[0], torch.load(tmp_path / f"{name}.found")), name
