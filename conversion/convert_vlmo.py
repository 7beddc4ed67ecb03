"""Convert an original VLMo checkpoint, or one of ours back.

python conversion/convert_vlmo.py vlmo_base_patch16_480_vqa.pt vlmo-base-vqa --vocab vocab.txt --labels answers.txt
python conversion/convert_vlmo.py --reverse vlmo-base-vqa vlmo_base_patch16_480_vqa.pt
"""

from hf_vlp.conversion import main

if __name__ == "__main__":
    main("vlmo")
