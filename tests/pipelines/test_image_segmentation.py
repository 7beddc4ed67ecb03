"""The stock pipeline `image-segmentation` on a segmenter of VL-BEiT, as a repository holds it.

Covers: masks and labels against the model's own logits, pictures of several forms and sizes, batches, subtasks,
`hf_vlp.pipeline`; the classes that the Auto classes find; a process without hf_vlp. (That the pipeline logs "not
supported" is transformers': it lists its own classes, whatever is registered beside them.)
"""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import hf_vlp
from hf_vlp import MomeImageProcessorPil, MomeProcessor, VlBeitConfig, VlBeitForSemanticSegmentation
from hf_vlp.data.tokenization import train_bert_tokenizer
from hf_vlp.hub.export import save_repository
from tests.pipelines.test_doors import BLOCK, run
from tests.pipelines.tiny_captioners import SIZE, WORDS, picture, widen

CLASSES = ["background", "circle", "square", "star"]
PICTURES = [picture(0), picture(1, 40), picture(2).resize((40, 24))]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    torch.manual_seed(0)
    processor = MomeProcessor(MomeImageProcessorPil(size=SIZE), train_bert_tokenizer([" ".join(WORDS)] * 2, 200))
    config = VlBeitConfig(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
        **{"vocab_size": len(processor.tokenizer), "image_size": 16, "patch_size": 4, "vl_expert_start_layer": 2},
        **{"max_text_length": 16, "max_text_length_of_table": 24, "layer_scale_init_value": 1.0},
        **{"id2label": dict(enumerate(CLASSES)), "label2id": {name: number for number, name in enumerate(CLASSES)}},
    )
    path = tmp_path_factory.mktemp("segmenter")
    save_repository(path, model=widen(VlBeitForSemanticSegmentation(config), 0.4), processor=processor)
    return str(path)


@pytest.fixture(scope="module")
def pipe(directory):
    return transformers.pipeline("image-segmentation", directory, device="cpu")


@torch.no_grad()
def own_map(pipe, image: Image.Image) -> np.ndarray:
    outputs = pipe.model(**pipe.image_processor(image, return_tensors="pt"))
    resized = torch.nn.functional.interpolate(outputs.logits, (image.height, image.width), mode="bilinear")
    return resized[0].argmax(0).numpy()


def as_map(segments: list[dict]) -> np.ndarray:
    """Class numbers from masks that cover the picture, each pixel once."""
    masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
    assert set(np.unique(masks).tolist()) <= {0, 255}
    assert ((masks == 255).sum(0) == 1).all()
    numbers = np.array([CLASSES.index(segment["label"]) for segment in segments])
    return numbers[masks.argmax(0)]


def test_the_class_that_was_saved_is_found(pipe):
    assert type(pipe) is transformers.ImageSegmentationPipeline
    assert type(pipe.model) is VlBeitForSemanticSegmentation


def test_auto_classes_find_model_and_processor(directory):
    model = transformers.AutoModelForSemanticSegmentation.from_pretrained(directory)
    assert type(model) is VlBeitForSemanticSegmentation
    assert type(transformers.AutoImageProcessor.from_pretrained(directory)).__name__.startswith("MomeImageProcessor")


def test_masks_are_those_of_the_models_own_logits(pipe):
    maps = [own_map(pipe, image) for image in PICTURES]
    assert len(np.unique(np.concatenate([one.ravel() for one in maps]))) > 1, "several classes must be predicted"
    for image, expected in zip(PICTURES, maps):
        segments = pipe(image)
        assert {segment["mask"].size for segment in segments} == {image.size}
        assert np.array_equal(as_map(segments), expected)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_several_pictures_give_a_list_for_each(pipe, batch_size):
    results = pipe(PICTURES, batch_size=batch_size)
    for image, segments in zip(PICTURES, results, strict=True):
        assert np.array_equal(as_map(segments), own_map(pipe, image))


def test_a_path_is_as_good_as_a_picture(pipe, tmp_path):
    PICTURES[2].save(tmp_path / "picture.png")
    assert np.array_equal(as_map(pipe(str(tmp_path / "picture.png"))), own_map(pipe, PICTURES[2]))


def test_the_subtask_can_be_said(pipe):
    assert np.array_equal(as_map(pipe(PICTURES[0], subtask="semantic")), own_map(pipe, PICTURES[0]))
    with pytest.raises(ValueError, match="panoptic"):
        pipe(PICTURES[0], subtask="panoptic")


def test_the_pipeline_of_this_package_is_the_same(directory, pipe):
    other = hf_vlp.pipeline("image-segmentation", directory, device="cpu")
    assert np.array_equal(as_map(other(PICTURES[0])), own_map(pipe, PICTURES[0]))


WITHOUT_THE_PACKAGE = """
import json, sys
import numpy as np
from transformers import pipeline
pipe = pipeline("image-segmentation", sys.argv[2], trust_remote_code=True, device="cpu")
assert type(pipe.model).__module__.startswith("transformers_modules"), type(pipe.model)
segments = pipe(sys.argv[1])
assert not any(name.split(".")[0] == "hf_vlp" for name in sys.modules)
print()
print(json.dumps({segment["label"]: np.asarray(segment["mask"]).tolist() for segment in segments}))
"""


def test_it_works_without_the_package(pipe, directory, tmp_path):
    path = str(tmp_path / "picture.png")
    PICTURES[2].save(path)
    results = json.loads(run(BLOCK + WITHOUT_THE_PACKAGE, tmp_path, path, directory))
    assert results == {segment["label"]: np.asarray(segment["mask"]).tolist() for segment in pipe(path)}
