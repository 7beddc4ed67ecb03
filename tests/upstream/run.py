"""Run the common test suite of transformers on the models of this package.

    python tests/upstream/run.py [--sdist FILE_OR_FOLDER] [--cache-dir FOLDER] [-k EXPRESSION]

The suite (`ModelTesterMixin`, `ConfigTester`, `GenerationTesterMixin`) is not installed with transformers. Its source
distribution of the installed version is downloaded from PyPI, without dependencies, and its `tests` folder unpacked to
a temporary folder, together with the `*_suite.py` files of this folder. Nothing of it stays behind or is imported by
the default run.

The distribution holds the files directly under `tests` only. Its sub-packages (`tests/generation` with
`GenerationTesterMixin`, `tests/exporters`) are part of the repository alone: without them an empty class stands in,
and the summary says so. `--sdist` also takes a checkout or an archive of the repository, where all of it is found.

Prints failures, every skip with its reason, and counts. Exit status 1 when a test fails or none ran.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]

# Names that the files under `tests` import from sub-packages which the distribution leaves out.
STAND_INS = {
    "exporters/test_export.py": ("ExportTesterMixin", "class ExportTesterMixin:\n    pass\n"),
    "generation/test_utils.py": ("GenerationTesterMixin", "class GenerationTesterMixin:\n    pass\n"),
    "utils/test_configuration_utils.py": ("config_common_kwargs", "config_common_kwargs = {}\n"),
}


def download(version: str, folder: Path) -> Path:
    """The source distribution of transformers, from the folder if it is there, else from PyPI."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"transformers-{version}.tar.gz"
    if not file.exists():
        # No dependencies (torch is one of the tests' own) and no isolated build for reading the metadata.
        options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--quiet", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, f"transformers=={version}"]
        if subprocess.run(command).returncode or not file.exists():
            raise SystemExit(
                f"The source distribution of transformers {version} could not be downloaded. Get {file.name} by hand "
                "and give its path with --sdist."
            )
    return file


def unpack(source: Path, folder: Path) -> None:
    """Put the `tests` folder of an archive or a checkout into `folder`; paths leading out of it are refused."""
    if source.is_dir():
        members = {
            str(file.relative_to(source)): file.read_bytes()
            for file in [*source.glob("tests/*.py"), *source.glob("tests/*/*.py"), *source.glob("tests/fixtures/**/*")]
            if file.is_file()
        }
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist() if "/tests/" in name}
    else:
        with tarfile.open(source) as archive:
            files = [member for member in archive.getmembers() if member.isfile() and "/tests/" in member.name]
            members = {file.name.partition("/")[2]: archive.extractfile(file).read() for file in files}
    for name, content in members.items():
        target = folder / name
        if not name.startswith("tests/") or name.endswith("/") or ".." in target.parts:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if not (folder / "tests" / "test_modeling_common.py").exists():
        raise SystemExit(
            f"{source} has no tests/test_modeling_common.py: it is no source distribution of transformers."
        )


def complete(tests: Path) -> list[str]:
    """Make the folder a package in which everything can be imported; returns the names that had to be stood in for."""
    missing = []
    for name, (symbol, content) in STAND_INS.items():
        file = tests / name
        file.parent.mkdir(exist_ok=True)
        if not file.exists():
            file.write_text(content)
            missing.append(f"{symbol} (tests/{name})")
    for suite in sorted(HERE.glob("*_suite.py")):
        folder = tests / "models" / suite.stem.removesuffix("_suite")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"test_modeling_{folder.name}.py").write_text(suite.read_text())
    for folder in [tests, *(path for path in tests.rglob("*") if path.is_dir())]:
        (folder / "__init__.py").touch()
    return missing


def install_parameterized(folder: Path) -> None:
    """The suite needs this one package beyond those of hf_vlp; it goes into the temporary folder."""
    if importlib.util.find_spec("parameterized") is None:
        options = ["--no-deps", "--quiet", "--target", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "parameterized"], check=True)


def run_suite(folder: Path, extra: list[str]) -> tuple[Path, int]:
    """Run pytest in a process of its own; returns its report and its exit status."""
    report = folder / "report.xml"
    (folder / "pytest.ini").write_text("[pytest]\naddopts =\nfilterwarnings = ignore\ntimeout = 600\n")
    # PYTHONPATH: the unpacked `tests` stands before this repository's package of the same name.
    paths = [str(folder), str(folder / "packages"), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    suites = [f"tests/models/{file.stem.removesuffix('_suite')}" for file in sorted(HERE.glob("*_suite.py"))]
    command = [sys.executable, "-m", "pytest", *suites, "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *extra]
    return report, subprocess.run(command, cwd=folder, env=environment).returncode


def summarise(report: Path, status: int, missing: list[str]) -> int:
    """Print what failed and what was skipped; returns the exit status."""
    if not report.exists():
        print("The suite did not run.")
        return 1
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed, skipped, num_skipped = [], defaultdict(list), 0
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(name)
        elif case.find("skipped") is not None:
            num_skipped += 1
            for skip in case.findall("skipped"):  # several where a test goes over the classes one by one
                skipped[skip.get("message", "no reason given")].append(name.partition(".")[2])
    print(f"\nSkipped: {num_skipped}, by reason")
    for reason, names in sorted(skipped.items(), key=lambda item: -len(item[1])):
        print(f"{len(names):5}  {reason}")
        print("       " + ", ".join(sorted(set(names))))
    if missing:
        print("\nNot in this distribution, hence not run: " + "; ".join(missing))
    if failed:
        print("\nFailed:\n  " + "\n  ".join(failed))
    num_passed = len(cases) - num_skipped - len(failed)
    print(f"\n{num_passed} passed, {num_skipped} skipped, {len(failed)} failed")
    return status or (1 if failed or not num_passed else 0)


def main() -> int:
    from transformers import __version__

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="archive or folder to take the suite from, instead of PyPI")
    parser.add_argument("--cache-dir", type=Path, help="where the download is kept (default: a temporary folder)")
    arguments, extra = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(arguments.sdist or download(__version__, arguments.cache_dir or folder / "download"), folder)
        missing = complete(folder / "tests")
        install_parameterized(folder / "packages")
        return summarise(*run_suite(folder, extra), missing)


if __name__ == "__main__":
    sys.exit(main())
