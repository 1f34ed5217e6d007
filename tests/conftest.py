"""What every test shares: one thread, no network, a home of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random text encoder without dropout, as a sentence-transformers folder."""
    from luthier.testing.models import tiny_text_model

    return tiny_text_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with dropout, so that random states matter."""
    from luthier.testing.models import tiny_text_model

    return tiny_text_model(tmp_path_factory.mktemp("tiny") / "dropout", dropout=0.2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, which is the faster where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
