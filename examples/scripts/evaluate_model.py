"""Score a captioner on a data set, as `hf-vlp evaluate` does, and show its worst captions.

python examples/scripts/evaluate_model.py MODEL DATA [SPLIT]
"""

import sys

from hf_vlp.captioning import load_captioner
from hf_vlp.data.sources import DataArguments, load_records
from hf_vlp.evaluation import evaluate_captioning, generate_captions
from hf_vlp.metrics import cider_d


def main(model_id: str, data: str, split: str = "test") -> None:
    model, processor = load_captioner(model_id)
    records = load_records(DataArguments(source=data), split)
    print(evaluate_captioning(model, processor, records, generation={"num_beams": 5, "max_new_tokens": 20}))

    captions = generate_captions(model, processor, records, generation={"num_beams": 5, "max_new_tokens": 20})
    scored = [(caption, record["captions"]) for caption, record in zip(captions, records) if caption is not None]
    scores = cider_d([caption for caption, _ in scored], [references for _, references in scored], per_sample=True)
    for score, (caption, references) in sorted(zip(scores, scored), key=lambda row: row[0])[:5]:
        print(f"{score:.2f}  {caption!r}  (reference: {references[0]!r})")


if __name__ == "__main__":
    main(*sys.argv[1:])
