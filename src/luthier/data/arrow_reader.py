"""Reads Parquet and Arrow IPC files, a record batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from luthier.data.blocks import Block, Column
from luthier.data.problems import Problems
from luthier.errors import DataError

ROWS_PER_BLOCK = 65_536


class ArrowReader:
    """One Parquet or Arrow file. Rows count from 1; there is no header to count."""

    def __init__(self, path: Path, kind: str, file: str, keep: set[str] | None = None) -> None:
        self._file, self._kind, self._path, self._keep = file, kind, path, keep
        with self._readable():
            opened = _open(path, kind)
            # a Parquet file's own schema counts the leaves of nested columns
            schema = opened.schema_arrow if kind == "parquet" else opened.schema
            self.names: tuple[str, ...] | None = tuple(schema.names)
            first = next(self._batches(1000), None)
        self.width = len(schema)
        self.notes: tuple[str, ...] = ("Parquet" if kind == "parquet" else "Arrow",)
        if first is None or not self.width:
            raise DataError("no rows in the file", file=file)
        self._sample: list[Column] = list(first.slice(0, 1000).columns)

    def sample(self) -> Block:
        """The first rows."""
        return Block(self._sample, lambda: range(1, len(self._sample[0]) + 1))

    def blocks(self, problems: Problems) -> Iterator[Block]:
        """All rows in order."""
        start = 1
        with self._readable():
            for batch in self._batches(ROWS_PER_BLOCK):
                lines = range(start, start + len(batch))
                start += len(batch)
                yield Block(list(batch.columns), lambda lines=lines: lines)  # type: ignore[misc]
                if problems.full:
                    return

    def _batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches without empty ones, their bytes checked: offsets in bounds, text in UTF-8."""
        opened = _open(self._path, self._kind)
        if self._kind == "parquet":
            batches: Any = opened.iter_batches(batch_size=rows)
        elif isinstance(opened, pa.ipc.RecordBatchFileReader):
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            batches = opened
        for batch in batches:
            batch.validate(full=True)
            for start in range(0, len(batch), rows):
                yield batch.slice(start, rows)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeError) as error:
            kind = "Parquet" if self._kind == "parquet" else "Arrow IPC"
            reason = str(error).partition("\n")[0]
            raise DataError(f"not a readable {kind} file: {reason}", file=self._file) from None


def _open(path: Path, kind: str) -> Any:
    if kind == "parquet":
        return parquet.ParquetFile(path, memory_map=True)
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)  # what the datasets library writes
