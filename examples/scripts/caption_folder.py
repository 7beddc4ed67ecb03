"""Caption a folder of pictures and write a JSON line for each, as `hf-vlp caption --json` does.

python examples/scripts/caption_folder.py MODEL FOLDER captions.jsonl
"""

import json
import sys
from pathlib import Path

import hf_vlp
from hf_vlp.captioning import caption_pictures, find_pictures


def main(model: str, folder: str, output: str) -> None:
    captioner = hf_vlp.pipeline("image-to-text", model=model)
    with Path(output).open("w", encoding="utf-8") as file:
        for result in caption_pictures(captioner, find_pictures([folder]), batch_size=16, num_beams=5):
            print(json.dumps(vars(result), ensure_ascii=False), file=file)


if __name__ == "__main__":
    main(*sys.argv[1:])
