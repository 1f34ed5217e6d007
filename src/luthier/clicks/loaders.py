"""Where items come from: files of a catalogue, here or at a URL, and rows in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import DataError

#: What an item's id and its text are called where nobody says.
ID_FIELDS = ("item_id", "id", "object_id", "sku", "doc_id", "_id")
ITEM_FIELDS = ("item", "text", "title", "name", "description", "document", "content", "body")


@dataclass(frozen=True)
class ItemMeta:
    """What a log says of an item: its id, and what the search said beside it."""

    object_id: str
    meta: Mapping[str, Any] = field(default_factory=dict)


class DataLoader:
    """Loads items. Subclasses override ``rows``."""

    #: What messages call it.
    file = "catalogue"

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """All rows, each a mapping of fields."""
        raise NotImplementedError

    def load(self, items: Iterable[ItemMeta] | None = None) -> list[dict[str, Any]]:
        """Rows as dicts; of these items only where they are given and ids can be told."""
        rows = [dict(row) for row in self.rows()]
        if items is None or not rows:
            return rows
        id_field = guess(rows[0], ID_FIELDS)
        if id_field is None:
            return rows
        wanted = {item.object_id for item in items}
        return [row for row in rows if str(row.get(id_field)) in wanted]


class InMemoryDataLoader(DataLoader):
    """Rows that are there already: dicts, a ``datasets.Dataset``, or id → item."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        if isinstance(rows, Mapping):
            rows = [{"item_id": name, "item": item} for name, item in rows.items()]
        self._rows: Sequence[Mapping[str, Any]] = list(rows)
        for number, row in enumerate(self._rows, start=1):
            if not isinstance(row, Mapping):
                raise DataError(f"an item is a mapping, not {row!r:.60}", row=number)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        return iter(self._rows)


class FileDataLoader(DataLoader):
    """A catalogue in a file: JSONL, CSV, Parquet or Arrow, by its name, failing that its content.

    uri: a path, ``file://``, ``https://``, ``s3://bucket/key`` or another object store. cache:
    where a remote file is kept; the home's, where it is not said. Raises DataError, UnsafeLocation
    or StoreError when it is read.
    """

    def __init__(self, uri: str | Path, cache: Path | None = None) -> None:
        self.uri, self._cache = str(uri), cache
        self.file = self.uri

    @property
    def path(self) -> Path:
        """The local file, fetched where it is remote."""
        from luthier.runs.connection import current
        from luthier.store.urls import local_file

        remote = "://" in self.uri and not self.uri.startswith("file://")
        cache = self._cache or (current().cache if remote else Path())
        return local_file(self.uri, cache)

    def rows(self) -> Iterator[Mapping[str, Any]]:
        from luthier.data.rows import read_rows
        from luthier.spec import CSVOptions

        found = read_rows(self.path, CSVOptions(header=True), name=self.uri)
        for batch in found.table.to_batches(max_chunksize=10_000):
            yield from batch.to_pylist()


class JSONLDataLoader(FileDataLoader):
    """A catalogue of one JSON object a line."""


class CSVDataLoader(FileDataLoader):
    """A catalogue in CSV whose first row holds names."""


class ParquetDataLoader(FileDataLoader):
    """A catalogue in Parquet."""


class AwsS3DataLoader(FileDataLoader):
    """A catalogue in S3: ``AwsS3DataLoader(bucket="shop", key="items.jsonl")``. Who may read is
    told by the variables of AWS."""

    def __init__(self, bucket: str, key: str, cache: Path | None = None) -> None:
        if not bucket or not key or "/" in bucket:
            raise DataError(f"no place in S3: bucket {bucket!r}, key {key!r}")
        super().__init__(f"s3://{bucket}/{key.lstrip('/')}", cache)


def guess(row: Mapping[str, Any], known: Sequence[str]) -> str | None:
    """The first of the known names that a row has."""
    return next((name for name in known if name in row), None)


def as_loader(items: Any) -> DataLoader:
    """A loader of what was given: one, a path or URL, rows, or id → item."""
    if isinstance(items, DataLoader):
        return items
    if isinstance(items, str | Path):
        return FileDataLoader(items)
    if isinstance(items, Mapping) or hasattr(items, "__iter__"):
        return InMemoryDataLoader(items)
    raise DataError(f"items are a file, a URL or rows, not {type(items).__name__}")
