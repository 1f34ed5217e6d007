"""What the tests of data share: a desk on which bytes become files and files become data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luthier.data import Dataset, load_dataset
from luthier.errors import DataError
from luthier.spec import CSVOptions


class Desk:
    """A folder and a cache."""

    as_rows = staticmethod(lambda dataset: as_rows(dataset))  # noqa: PLW0108 (defined below)

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"

    def file(self, content: bytes | str, name: str = "data.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def load(self, content: bytes | str, name: str = "data.csv", **options: Any) -> Dataset:
        return load_dataset(self.file(content, name), CSVOptions(**options), self.cache, name=name)

    def rows(
        self, content: bytes | str, name: str = "data.csv", **options: Any
    ) -> list[tuple[Any, ...]]:
        """The rows by role, labels as words."""
        return as_rows(self.load(content, name, **options))

    def error(self, content: bytes | str, name: str = "data.csv", **options: Any) -> DataError:
        before = sorted(self.cache.glob("*"))
        with pytest.raises(DataError) as caught:
            self.load(content, name, **options)
        assert sorted(self.cache.glob("*")) == before, "a refused file left something behind"
        return caught.value


def as_rows(dataset: Dataset) -> list[tuple[Any, ...]]:
    columns = dataset.table.to_pydict()
    if "label" in columns:
        columns["label"] = [dataset.class_name(code) for code in columns["label"]]
    return list(zip(*columns.values(), strict=True))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder of its own, and a cache."""
    return Desk(tmp_path)
