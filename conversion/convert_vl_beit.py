"""Start VL-BEiT from BEiT, BEiT v2 or VLMo, or write one of ours as a file; the same as `hf-vlp convert vl_beit ...`.

python conversion/convert_vl_beit.py beitv2_base_patch16_224_pt1k.pth start --head pretraining --vocab vocab.txt
python conversion/convert_vl_beit.py start start.pt --reverse
"""

import sys

from hf_vlp.cli import app

if __name__ == "__main__":
    # `--push_to_hub` as in transformers' scripts is taken too.
    words = [word.replace("_", "-") if word.startswith("--") else word for word in sys.argv[1:]]
    app(["convert", "vl_beit", *words])
