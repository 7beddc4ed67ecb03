"""VC-GPT under the common tests of transformers: models, generation and configuration; see `run.py`.

`run.py` copies this file into upstream's `tests` package, which is why it imports from there and why its name does
not begin with `test_`: collected from here, these imports would find this project's own `tests`.

Covers both variants, `VcGptModel` and `VcGptForConditionalGeneration`: saving and loading, initialisation, ties,
resized embeddings, recorded outputs, attention backends, gradient checkpointing, batching, the configuration with its
two parts; and generation, where the source that `run.py` is given holds the tests of it.
"""

import unittest

from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor
from transformers.testing_utils import torch_device

from hf_vlp.models.vc_gpt.configuration_vc_gpt import VcGptConfig
from hf_vlp.models.vc_gpt.modeling_vc_gpt import VcGptForConditionalGeneration, VcGptModel
from tests import test_modeling_common

# Names by which the suite decides which classes have a loss, and what their labels look like.
test_modeling_common.MODEL_MAPPING_NAMES = {**test_modeling_common.MODEL_MAPPING_NAMES, "vc_gpt": "VcGptModel"}
test_modeling_common.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES = {
    **test_modeling_common.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    "vc_gpt": "VcGptForConditionalGeneration",
}


class VcGptModelTester:
    """A tiny model and inputs for it; upstream's tests read the attributes by these names."""

    variant = "vc_gpt"

    def __init__(self, parent):
        self.parent = parent
        self.is_training = True
        self.batch_size = 3
        self.seq_length = 7
        self.num_attention_heads = 2
        self.hidden_size = 32
        self.vocab_size = 99
        self.image_size = 16
        self.patch_size = 8
        self.vision_config = {
            "hidden_size": 24,  # other than the text width, so that the projection between them is there
            "intermediate_size": 37,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
        }
        self.text_config = {
            "n_embd": self.hidden_size,
            "n_layer": 1,
            "n_head": self.num_attention_heads,
            "n_positions": 64,
            "vocab_size": self.vocab_size,
            # One token for all three, as with GPT-2's own vocabulary.
            "bos_token_id": self.vocab_size - 1,
            "eos_token_id": self.vocab_size - 1,
            "pad_token_id": self.vocab_size - 1,
        }
        self.num_fusion_layers = 1
        # The text path, whose states and weights are recorded as one: GPT-2's layers, then the fusion module's.
        self.num_hidden_layers = self.text_config["n_layer"] + self.num_fusion_layers
        self.num_hidden_states_types = 2  # of the text path and of the visual stream

    def get_config(self):
        return VcGptConfig(
            vision_config=self.vision_config,
            text_config=self.text_config,
            variant=self.variant,
            num_fusion_layers=self.num_fusion_layers,
            fusion_num_heads=self.num_attention_heads,
        )

    def prepare_config_and_inputs_for_common(self):
        # The last token begins and ends a text and is padding; generation tests must not meet it by chance.
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 1)
        inputs = {
            "pixel_values": floats_tensor([self.batch_size, 3, self.image_size, self.image_size]),
            "input_ids": input_ids,
            "attention_mask": input_ids.new_ones(input_ids.shape).to(torch_device),
        }
        return self.get_config(), inputs


class VcGptModelTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):
    """The paper's model, with the fusion module."""

    all_model_classes = (VcGptModel, VcGptForConditionalGeneration)
    model_tester_class = VcGptModelTester
    additional_model_inputs = ("pixel_values",)  # of tests that give a model its main input alone
    _is_composite = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(self, config_class=VcGptConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()


class VcGptVanillaModelTester(VcGptModelTester):
    variant = "vanilla"

    def __init__(self, parent):
        super().__init__(parent)
        self.text_config["n_layer"] = self.num_hidden_layers = 2  # there are no fusion layers
        self.num_hidden_states_types = 1  # and no visual stream


class VcGptVanillaModelTest(VcGptModelTest):
    """The paper's baseline, with cross-attention inside GPT-2."""

    model_tester_class = VcGptVanillaModelTester
