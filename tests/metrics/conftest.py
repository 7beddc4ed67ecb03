"""Where the metric fixtures are."""

import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parent.parent / "fixtures" / "metrics"


@pytest.fixture(scope="session")
def fakecap() -> dict:
    """1,000 COCO candidates with tokenised references and the scores of the COCO tool."""
    return json.loads((FIXTURES / "coco_fakecap_1000.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def small_cases() -> list[dict]:
    return json.loads((FIXTURES / "caption_small.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tokeniser_pairs() -> list[tuple[str, str]]:
    return json.loads((FIXTURES / "ptb_tokeniser_pairs.json").read_text(encoding="utf-8"))["pairs"]


@pytest.fixture(scope="session")
def vqa_fixture() -> dict:
    """Facts, normalised answers and accuracies of the official VQA evaluator."""
    return json.loads((FIXTURES / "vqa_eval.json").read_text(encoding="utf-8"))
