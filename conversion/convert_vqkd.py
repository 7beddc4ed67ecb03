"""Convert a visual tokenizer of BEiT v2 to a repository, or back; the same as `hf-vlp convert vl_beit_vqkd ...`.

python conversion/convert_vqkd.py vqkd_encoder_base_decoder_3x768x12_clip-d5036aa7.pth vqkd
python conversion/convert_vqkd.py vqkd vqkd.pth --reverse
"""

import sys

from hf_vlp.cli import app

if __name__ == "__main__":
    # `--push_to_hub` as in transformers' scripts is taken too.
    words = [word.replace("_", "-") if word.startswith("--") else word for word in sys.argv[1:]]
    app(["convert", "vl_beit_vqkd", *words])
