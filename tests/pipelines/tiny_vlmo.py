"""Models of VLMo and VL-BEiT of a few thousand random weights in complete repositories; see `tiny_captioners`."""

import torch

import hf_vlp
from hf_vlp import MomeImageProcessorPil, MomeProcessor, VlBeitConfig, VlmoConfig
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.hub.export import save_repository
from tests.pipelines.tiny_captioners import SIZE, TINY, WORDS, widen

LABELS = ["red", "green", "blue", "yes", "no", "two", "three"]
_LABELLED = ("ForVisualQuestionAnswering", "ForImageClassification")


def make_vlmo_processor() -> MomeProcessor:
    return MomeProcessor(MomeImageProcessorPil(size=SIZE), train_bert_tokenizer([" ".join(WORDS)] * 2, 200))


def make_vlmo(class_name: str, **options):
    """A model of one of the classes of VLMo or VL-BEiT; `options` go into its configuration."""
    torch.manual_seed(0)
    if class_name.endswith(_LABELLED):
        options |= {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    config_class = VlBeitConfig if class_name.startswith("VlBeit") else VlmoConfig
    config = config_class(
        **{**TINY, "num_hidden_layers": 2},
        **{"vocab_size": len(make_vlmo_processor().tokenizer), "image_size": 16, "patch_size": 8},
        **{"vl_expert_start_layer": 1, "max_text_length": 16, "max_text_length_of_table": 24},
        layer_scale_init_value=1.0,
        **options,
    )
    return widen(getattr(hf_vlp, class_name)(config), 0.4)


def save_vlmo(directory, class_name: str, **options) -> str:
    save_repository(directory, model=make_vlmo(class_name, **options), processor=make_vlmo_processor())
    return str(directory)
