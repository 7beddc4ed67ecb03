"""Check what the wheel carries: the whole package with its recipes and templates, and nothing else."""

import sys
import zipfile
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "hf_vlp"
# Data whose licence does not allow it in a wheel is kept out by kind: pictures, tables, archives, weights.
FORBIDDEN_SUFFIXES = {".parquet", ".jpg", ".jpeg", ".png", ".pt", ".safetensors", ".json", ".npy", ".gz", ".tar"}
MAX_BYTES = 1_000_000


def main(wheel: str) -> int:
    with zipfile.ZipFile(wheel) as archive:
        infos = {info.filename: info for info in archive.infolist()}
    problems = []
    for name, info in infos.items():
        if not name.startswith(("hf_vlp/", "hf_vlp-")):
            problems.append(f"{name}: outside the package (tests, examples and data are not shipped)")
        if Path(name).suffix in FORBIDDEN_SUFFIXES or info.file_size > MAX_BYTES:
            problems.append(f"{name}: data file of {info.file_size} bytes")
    for file in PACKAGE.rglob("*"):
        if file.suffix in {".py", ".md", ".yaml"} and f"hf_vlp/{file.relative_to(PACKAGE).as_posix()}" not in infos:
            problems.append(f"hf_vlp/{file.relative_to(PACKAGE).as_posix()}: missing from the wheel")
    if not any(name.endswith("/licenses/LICENSE") for name in infos):
        problems.append("LICENSE: missing from the wheel")
    print("\n".join(problems) or f"{Path(wheel).name}: {len(infos)} files, nothing missing, nothing that must not be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
