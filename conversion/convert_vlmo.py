"""Convert an original VLMo checkpoint to a repository, or one of ours back; the same as `hf-vlp convert vlmo ...`.

python conversion/convert_vlmo.py vlmo_base_patch16_480_vqa.pt vlmo-base-vqa --vocab vocab.txt --labels answers.txt
python conversion/convert_vlmo.py vlmo-base-vqa vlmo_base_patch16_480_vqa.pt --reverse
"""

import sys

from hf_vlp.cli import app

if __name__ == "__main__":
    # `--push_to_hub` as in transformers' scripts is taken too.
    words = [word.replace("_", "-") if word.startswith("--") else word for word in sys.argv[1:]]
    app(["convert", "vlmo", *words])
