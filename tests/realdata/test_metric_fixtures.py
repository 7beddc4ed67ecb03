"""Caption metrics on the fixtures of `$HF_VLP_DATA` or `../shared/data`: tokens, corpus scores and scores per image
come from the files, so that another folder of the same layout passes unchanged."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hf_vlp.metrics import caption_metrics, ptb_tokenize

ROOT = Path(os.environ.get("HF_VLP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
NAMES = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)} | {"rouge_l": "ROUGE_L", "cider_d": "CIDEr"}


def read(name):
    path = ROOT / "metric_fixtures" / name
    if not path.exists():
        pytest.skip(f"no {path}; set HF_VLP_DATA to the folder with the real data")
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_tokeniser_pair_is_reproduced():
    pairs = read("ptb_tokeniser_pairs.json")["pairs"]
    tokens = ptb_tokenize([caption for caption, _ in pairs])
    assert [(pair, got) for pair, got in zip(pairs, tokens) if got != pair[1]] == []


def test_corpus_and_image_scores_of_coco_are_reproduced():
    content = read("coco_fakecap_1000.json")
    items = content["items"]
    captions = [item["candidate"] for item in items], [item["references"] for item in items]
    corpus = caption_metrics(*captions, tokenize=False)
    single = caption_metrics(*captions, tokenize=False, per_sample=True)
    for name, theirs in NAMES.items():
        assert corpus[name] == pytest.approx(content["exact"][theirs], rel=1e-12), name
        assert round(corpus[name], 3) == content["published"][theirs], name
        expected = [item["expected"][theirs] for item in items]
        np.testing.assert_allclose(single[name], expected, rtol=0, atol=5.01e-10, err_msg=name)


def test_small_cases_are_reproduced():
    for case in read("caption_small.json"):
        scores = caption_metrics(case["candidates"], case["references"], tokenize=not case["tokenised"])
        for name, theirs in NAMES.items():
            assert scores[name] == pytest.approx(case["exact"][theirs], rel=1e-12, abs=1e-15), (case["name"], name)
