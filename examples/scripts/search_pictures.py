"""Search a folder of pictures by text, best first, as `hf-vlp match` does.

    python examples/scripts/search_pictures.py MODEL FOLDER "a dog on a beach" "two red circles"

A model with a matching head scores the ten nearest pictures of each text again, picture and text read together.
"""

import sys

from hf_vlp.captioning import find_pictures
from hf_vlp.matching import can_rerank, load_matcher, match_pictures_and_texts


def main(model_id: str, folder: str, *texts: str) -> None:
    model, processor = load_matcher(model_id)
    rerank = 10 if can_rerank(model) else 0
    found = match_pictures_and_texts(model, processor, find_pictures([folder]), list(texts), top_k=3, rerank=rerank)
    for text, matches in found.items():
        print(text)
        for match in matches:
            print(f"  {match.similarity:+.3f}  {match.candidate}")


if __name__ == "__main__":
    main(*sys.argv[1:])
