"""Turn ADE20K of the scene parsing challenge into the records that `vl_beit_base_ade20k.yaml` reads.

    python examples/scripts/prepare_ade20k.py ADEChallengeData2016 OUTPUT

The folder holds `images/` and `annotations/`, each with `training` and `validation`, and `objectInfo150.txt`, as
published. OUTPUT gets `train.jsonl`, `validation.jsonl` and `classes.txt`, the first name of each of the 150 classes.
"""

import json
import sys
from pathlib import Path

SPLITS = {"train": "training", "validation": "validation"}


def main(folder: str, output: str) -> None:
    root, target = Path(folder).absolute(), Path(output)
    target.mkdir(parents=True, exist_ok=True)
    for name, part in SPLITS.items():
        lines = []
        for picture in sorted((root / "images" / part).glob("*.jpg")):
            classes = root / "annotations" / part / f"{picture.stem}.png"
            lines.append(json.dumps({"image": str(picture), "segmentation_map": str(classes), "id": picture.stem}))
        if not lines:
            sys.exit(f"There are no pictures in {root / 'images' / part}: give the folder of ADEChallengeData2016.")
        (target / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines):,} pictures")
    rows = (root / "objectInfo150.txt").read_text(encoding="utf-8").splitlines()[1:]
    names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()]
    (target / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    print(f"{len(names)} classes")


if __name__ == "__main__":
    main(*sys.argv[1:])
