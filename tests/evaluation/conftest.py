"""Datasets made from rows, through the same readers that users' files go through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.data import Dataset, load_dataset
from luthier.spec import CSVOptions


@pytest.fixture
def dataset(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Dataset]:
    """From a list of rows to a Dataset."""
    count = iter(range(100))

    def make(rows: list[dict[str, Any]]) -> Dataset:
        path = tmp_path / f"rows-{next(count)}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return load_dataset(path, CSVOptions(), tmp_path / "cache")

    return make
