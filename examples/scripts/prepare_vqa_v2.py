"""Turn the published files of VQA v2 into the records that `vlmo_base_vqa_v2.yaml` reads.

    python examples/scripts/prepare_vqa_v2.py FOLDER OUTPUT

FOLDER holds the questions and annotations (`v2_OpenEnded_mscoco_train2014_questions.json`,
`v2_mscoco_train2014_annotations.json`, ...) and the pictures in `train2014`, `val2014`, `test2015`. OUTPUT gets
`train.jsonl` (train and val but for 1,000 pictures of val, as the paper does), `validation.jsonl`, `test.jsonl` where
its questions are there, and `answers.json`, the 3,129 answers in the order of the labels.
"""

import json
import random
import sys
from pathlib import Path

from hf_vlp.data.answers import build_answer_vocabulary


def read_split(folder: Path, part: str) -> list[dict]:
    """One record a question; those of the test part have no answers."""
    questions = json.loads((folder / f"v2_OpenEnded_mscoco_{part}_questions.json").read_text())["questions"]
    file = folder / f"v2_mscoco_{part}_annotations.json"
    annotations = json.loads(file.read_text())["annotations"] if file.exists() else []
    answered = {annotation["question_id"]: annotation for annotation in annotations}
    records = []
    for question in questions:
        name = f"COCO_{part}_{question['image_id']:012d}.jpg"
        record = {"image": str((folder / part / name).absolute()), **question}
        if annotation := answered.get(question["question_id"]):
            record["answers"] = [answer["answer"] for answer in annotation["answers"]]
            record["multiple_choice_answer"] = annotation["multiple_choice_answer"]
        records.append(record)
    return records


def main(folder: str, output: str, held_out: str = "1000") -> None:
    source, target = Path(folder), Path(output)
    target.mkdir(parents=True, exist_ok=True)
    train, validation = read_split(source, "train2014"), read_split(source, "val2014")
    vocabulary = build_answer_vocabulary([*train, *validation], min_occurrences=9)
    vocabulary.save(target / "answers.json")
    pictures = sorted({record["image_id"] for record in validation})
    kept = set(random.Random(0).sample(pictures, min(int(held_out), len(pictures) - 1)))
    splits = {
        "train": train + [record for record in validation if record["image_id"] not in kept],
        "validation": [record for record in validation if record["image_id"] in kept],
    }
    if (source / "v2_OpenEnded_mscoco_test2015_questions.json").exists():
        splits["test"] = read_split(source, "test2015")
    for name, records in splits.items():
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(records):,} questions")
    print(f"{len(vocabulary):,} answers")


if __name__ == "__main__":
    main(*sys.argv[1:])
