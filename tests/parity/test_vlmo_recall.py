"""Recall of the original's retrieval evaluation, from `retrieval_*.safetensors` alone.

Covered: `recall_scores` with its ids -> the six recalls of `recall_ir_r1_r5_r10_tr_r1_r5_r10`, which are fractions of
a few queries and so must agree but for the last digit of a float32. `$HF_VLP_GOLDENS` names another folder.
"""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_vlp.metrics.retrieval import ranks_of_scores, recall_metrics

FOLDER = Path(os.environ.get("HF_VLP_GOLDENS", Path(__file__).parents[1] / "goldens")) / "vlmo"
FILES = [FOLDER / f"retrieval_{part}.safetensors" for part in ("inputs", "expected")]

pytestmark = pytest.mark.skipif(not all(file.is_file() for file in FILES), reason=f"no goldens in {FOLDER}")


def test_recall_in_both_directions():
    inputs, expected = map(load_file, FILES)
    ranks = ranks_of_scores(
        expected["recall_scores"], inputs["recall_text_image_ids"], inputs["recall_image_ids"], chunk_size=5
    )
    metrics = recall_metrics(ranks)
    ours = [
        metrics[f"{direction}_recall_at_{k}"] for direction in ("text_to_image", "image_to_text") for k in (1, 5, 10)
    ]
    torch.testing.assert_close(torch.tensor(ours), expected["recall_ir_r1_r5_r10_tr_r1_r5_r10"], atol=1e-6, rtol=0)
