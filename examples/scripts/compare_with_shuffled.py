"""Does a captioner look? Score it, the same captions on shuffled pictures, and the best caption that never changes.

    python examples/scripts/compare_with_shuffled.py MODEL DATA [SPLIT]

A model whose score is close to one of the two baselines has learnt the language of the captions and ignores pictures.
"""

import sys

from hf_vlp.captioning import load_captioner
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.evaluation import evaluate_captioning
from hf_vlp.pretraining.build import iterate_captions
from hf_vlp.pretraining.run import format_scores


def main(model_id: str, data: str, split: str = "test") -> None:
    model, processor = load_captioner(model_id)
    arguments = DataArguments(source=data)
    scores = evaluate_captioning(
        model,
        processor,
        load_records(arguments, split),
        shuffled_pictures=True,
        training_captions=iterate_captions(load_records(arguments, "train")),
    )
    print(format_scores(split, scores))


if __name__ == "__main__":
    main(*sys.argv[1:])
