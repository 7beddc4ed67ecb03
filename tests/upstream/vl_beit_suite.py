"""VL-BEiT under the common tests of transformers: models and configuration; see `run.py` and `vlmo_suite.py`.

Covers the base model and every head, each with the inputs that it takes: saving and loading, initialisation, resized
embeddings, recorded outputs, attention backends, gradient checkpointing, batching, the configuration.
"""

import copy

import torch
from tests.models.vlmo import test_modeling_vlmo as vlmo  # vlmo_suite.py, where run.py puts it
from transformers.testing_utils import torch_device

from hf_vlp.models.mome.configuration_vl_beit import VlBeitConfig
from hf_vlp.models.mome.modeling_vl_beit import (
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
from tests import test_modeling_common

# By this table the suite knows which class has no loss.
test_modeling_common.MODEL_MAPPING_NAMES = {**test_modeling_common.MODEL_MAPPING_NAMES, "vl_beit": "VlBeitModel"}


class VlBeitModelTester(vlmo.VlmoModelTester):
    config_class = VlBeitConfig
    more_fields = {
        "visual_vocab_size": 17,
        "out_indices": [0, 0, 1, 1],
        "decoder_hidden_size": 8,
        "auxiliary_channels": 8,
    }


class VlBeitModelTest(vlmo.VlmoModelTest):
    """The base model and the heads that read pairs."""

    all_model_classes = (
        VlBeitModel,
        VlBeitForImagesAndTextClassification,
        VlBeitForMaskedLM,
        VlBeitForVisualQuestionAnswering,
    )
    model_tester_class = VlBeitModelTester

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        rows, patches = len(inputs["pixel_values"]), self.model_tester.num_patches
        if model_class is VlBeitForImagesAndTextClassification:
            inputs["pixel_values"] = torch.stack([inputs["pixel_values"]] * 2, dim=1)
        if return_labels:
            hidden = (torch.arange(rows * patches, device=torch_device) % 2 == 0).view(rows, patches)
            tokens = {"bool_masked_pos": hidden, "visual_token_ids": hidden.long()}
            if model_class is VlBeitForMaskedImageModeling:
                inputs |= tokens
            elif model_class in (VlBeitForMaskedLM, VlBeitForPreTraining):
                inputs["labels"] = inputs["input_ids"].clone()
                inputs |= tokens if model_class is VlBeitForPreTraining else {}
            elif model_class is VlBeitForSemanticSegmentation:
                size = self.model_tester.image_size
                inputs["labels"] = torch.ones(rows, size, size, dtype=torch.long, device=torch_device)
            elif model_class not in (VlBeitModel, VlBeitForImageTextRetrieval):
                inputs["labels"] = torch.ones(rows, dtype=torch.long, device=torch_device)
        return inputs


class VlBeitImageModelTester(VlBeitModelTester, vlmo.VlmoImageModelTester):
    def __init__(self, parent):
        super().__init__(parent)
        self.num_masks, self.mask_length = 2, self.num_patches


class VlBeitForImagesTest(VlBeitModelTest):
    """Pictures alone."""

    all_model_classes = (VlBeitForImageClassification,)
    additional_model_inputs = ()
    test_resize_embeddings = False
    model_tester_class = VlBeitImageModelTester


class VlBeitForMaskedImageModelingTest(VlBeitForImagesTest):
    """Pictures with hidden patches."""

    all_model_classes = (VlBeitForMaskedImageModeling,)


class VlBeitForSemanticSegmentationTest(VlBeitForImagesTest):
    """A class for every pixel, from the states of several blocks."""

    all_model_classes = (VlBeitForSemanticSegmentation,)


class VlBeitPairModelTest(vlmo.SeveralPasses, VlBeitModelTest):
    all_model_classes = (VlBeitForImageTextRetrieval, VlBeitForPreTraining)
