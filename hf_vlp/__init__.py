"""hf_vlp: vision-language pre-training systems for the Hugging Face ecosystem.

Importing this package registers its architectures with the Auto classes, and brings back `pipeline("image-to-text")`
and `pipeline("visual-question-answering")`. Nothing heavy is imported before it is used.
"""

from importlib import import_module

from . import auto
from .pipelines import doors

__version__ = "0.1.0"

# Public name -> module that defines it.
_EXPORTS = {
    "MomeImageProcessor": "hf_vlp.models.mome.processing_mome",
    "MomeImageProcessorPil": "hf_vlp.models.mome.processing_mome",
    "MomeProcessor": "hf_vlp.models.mome.processing_mome",
    "VcGptConfig": "hf_vlp.models.vc_gpt.configuration_vc_gpt",
    "VcGptForConditionalGeneration": "hf_vlp.models.vc_gpt.modeling_vc_gpt",
    "VcGptModel": "hf_vlp.models.vc_gpt.modeling_vc_gpt",
    "VcGptPreTrainedModel": "hf_vlp.models.vc_gpt.modeling_vc_gpt",
    "VcGptProcessor": "hf_vlp.models.vc_gpt.processing_vc_gpt",
    "VlBeitConfig": "hf_vlp.models.mome.configuration_vl_beit",
    "VlBeitForImageClassification": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForImageTextRetrieval": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForImagesAndTextClassification": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForMaskedImageModeling": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForMaskedLM": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForPreTraining": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForSemanticSegmentation": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitForVisualQuestionAnswering": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitModel": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitPreTrainedModel": "hf_vlp.models.mome.modeling_vl_beit",
    "VlBeitVqkdConfig": "hf_vlp.models.mome.configuration_vl_beit_vqkd",
    "VlBeitVqkdForTraining": "hf_vlp.models.mome.modeling_vl_beit_vqkd",
    "VlBeitVqkdTokenizer": "hf_vlp.models.mome.modeling_vl_beit_vqkd",
    "VlmoConfig": "hf_vlp.models.mome.configuration_vlmo",
    "VlmoForImageClassification": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoForImageTextRetrieval": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoForImagesAndTextClassification": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoForMaskedImageModeling": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoForMaskedLM": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoForPreTraining": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoForVisualQuestionAnswering": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoModel": "hf_vlp.models.mome.modeling_vlmo",
    "VlmoPreTrainedModel": "hf_vlp.models.mome.modeling_vlmo",
    "pipeline": "hf_vlp.pipelines",
    "predict_sliding": "hf_vlp.models.mome.mome_segmentation",
}


def __getattr__(name: str):
    if name in _EXPORTS:
        value = getattr(import_module(_EXPORTS[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_EXPORTS])


auto.register()
if doors.enabled():
    doors.install()

__all__ = ["__version__", *_EXPORTS]
