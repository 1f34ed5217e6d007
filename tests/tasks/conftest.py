"""What the tests of tasks share: rows in memory or as files, and a small world of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.data.rows import Rows, read_rows
from luthier.spec import CSVOptions
from luthier.testing.models import tiny_text_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def rows(tmp_path: Path):
    """From a list of dicts, or the text of a file, to rows."""

    def make(content: list[dict[str, Any]] | str, name: str = "data.jsonl", **options: Any) -> Rows:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
        path.write_text(content, encoding="utf-8")
        return read_rows(path, CSVOptions(**options), name=name)

    return make


@pytest.fixture(scope="session")
def plain_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without any head."""
    return tiny_text_model(tmp_path_factory.mktemp("task") / "bert", pooling=None)


@pytest.fixture
def learn():
    """A few steps over all rows at once: the least that learning is."""

    def train(task: Any, model: Any, processor: Any, examples: Any, steps: int) -> None:
        features = task.features(examples, np.arange(len(examples)), processor)
        batch = task.collator(processor, model)(features)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        model.train()
        for _ in range(steps):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train
