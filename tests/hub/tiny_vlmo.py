"""Models of a few thousand random weights on VLMo's block, one for each class, with their processor: no download."""

import torch

from hf_vlp.conversion.vqkd import make_image_processor
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.models.mome import modeling_vl_beit, modeling_vlmo
from hf_vlp.models.mome.configuration_vl_beit import VlBeitConfig
from hf_vlp.models.mome.configuration_vlmo import VlmoConfig
from hf_vlp.models.mome.processing_mome import MomeImageProcessorPil, MomeProcessor
from tests.models import tiny_vqkd


def list_classes(module, base: str) -> list[str]:
    """Names of the classes of a module that are models, its base class left out."""
    names = [name for name in module.__all__ if issubclass(getattr(module, name), getattr(module, base))]
    return [name for name in names if name != base]


CLASS_NAMES = list_classes(modeling_vlmo, "VlmoPreTrainedModel")
VL_BEIT_CLASS_NAMES = list_classes(modeling_vl_beit, "VlBeitPreTrainedModel")
VQKD_CLASSES = {
    model_class.__name__: model_class
    for model_class in (tiny_vqkd.VlBeitVqkdTokenizer, tiny_vqkd.VlBeitVqkdForTraining)
}
TEXTS = ["two dogs play on a beach", "What is on the table?", "a photo of a cat or a red bus"]


def make_processor() -> MomeProcessor:
    return MomeProcessor(MomeImageProcessorPil(size=32), train_bert_tokenizer(TEXTS, 120))


def make_processor_of(name: str):
    """The processor of a class: for visual tokenizers an image processor alone."""
    return make_image_processor(make_model(name).config) if name in VQKD_CLASSES else make_processor()


def make_model(name: str, seed: int = 0, **config_kwargs):
    """A model of any class of VLMo, VL-BEiT or its visual tokenizer, by its name."""
    if name in VQKD_CLASSES:
        return tiny_vqkd.make_tokenizer(seed=seed, model_class=VQKD_CLASSES[name], **config_kwargs)
    is_vl_beit = name.startswith("VlBeit")
    module, config_class = (modeling_vl_beit, VlBeitConfig) if is_vl_beit else (modeling_vlmo, VlmoConfig)
    config = config_class(
        **{
            "vocab_size": len(make_processor().tokenizer),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "vl_expert_start_layer": 1,
            "image_size": 32,
            **config_kwargs,
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(module, name)(config).eval()
