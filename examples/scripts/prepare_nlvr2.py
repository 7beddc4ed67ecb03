"""Turn the published files of NLVR2 into the records that `vlmo_base_nlvr2.yaml` reads.

    python examples/scripts/prepare_nlvr2.py FOLDER OUTPUT

FOLDER holds `train.json`, `dev.json`, `test1.json` (a JSON object a line) and the pictures as they are published, in
`images/train/<directory>`, `dev` and `test1`. OUTPUT gets `train.jsonl`, `validation.jsonl` and `test.jsonl`.
"""

import json
import sys
from pathlib import Path

SPLITS = {"train": ("train.json", "images/train"), "validation": ("dev.json", "dev"), "test": ("test1.json", "test1")}


def read_split(folder: Path, file: str, pictures: str) -> list[dict]:
    """One record a statement: `dev-850-0-0` is the statement 0 about the pair `dev-850-0`."""
    records = []
    for line in (folder / file).read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        root = (folder / pictures / str(example.get("directory", ""))).absolute()
        pair = example["identifier"].rsplit("-", 1)[0]
        records.append(
            {
                "image_left": str(root / f"{pair}-img0.png"),
                "image_right": str(root / f"{pair}-img1.png"),
                "sentence": example["sentence"],
                "label": str(example["label"]) == "True",
                "identifier": example["identifier"],
            }
        )
    return records


def main(folder: str, output: str) -> None:
    target = Path(output)
    target.mkdir(parents=True, exist_ok=True)
    for name, (file, pictures) in SPLITS.items():
        records = read_split(Path(folder), file, pictures)
        lines = (json.dumps(record, ensure_ascii=False) for record in records)
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(records):,} statements")


if __name__ == "__main__":
    main(*sys.argv[1:])
