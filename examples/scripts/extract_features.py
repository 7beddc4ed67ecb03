"""Features of pictures without any training framework: one row per picture, as safetensors.

    python examples/scripts/extract_features.py MODEL FOLDER features.safetensors

`image_embeds` are the unit-norm features of a dual encoder where the model has projections, else `pooler_output`.
"""

import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor

import hf_vlp  # noqa: F401 - registers the models
from hf_vlp.captioning import find_pictures
from hf_vlp.data.image_io import load_image


@torch.no_grad()
def main(model_id: str, folder: str, output: str) -> None:
    processor = AutoProcessor.from_pretrained(model_id)
    model, report = AutoModelForZeroShotImageClassification.from_pretrained(model_id, output_loading_info=True)
    name, encode = "image_embeds", model.get_image_features
    if report["missing_keys"]:  # no projections of its own
        name, encode = "pooler_output", AutoModel.from_pretrained(model_id)
    pictures = find_pictures([folder])
    rows = []
    for start in range(0, len(pictures), 16):
        images = [load_image(picture) for picture in pictures[start : start + 16]]
        rows.append(encode(pixel_values=processor(images=images, return_tensors="pt")["pixel_values"]).pooler_output)
    save_file({name: torch.cat(rows)}, output, metadata={"pictures": json.dumps(list(map(str, pictures)))})


if __name__ == "__main__":
    main(*sys.argv[1:])
