"""Settings of every test: nothing is fetched, one thread, a fixed seed, a private folder for code of repositories."""

import os
import tempfile

# Read by huggingface_hub and transformers when they are imported. Setting them from outside wins.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_MODULES_CACHE", tempfile.mkdtemp(prefix="hf-modules-"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

pytest.register_assert_rewrite("tests.common")  # explain assertions that fail in the mixins


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)
