"""The texts of a file, for ``luthier encode``: lines, or one column of CSV, JSONL or Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import DataError, nearest

#: The column that is meant where none is named and there are several.
_USUAL = "text"

#: csv refuses longer cells by default; a text may well be a book.
_LONGEST_CELL = 2**31 - 1


def read_texts(place: str, column: str | None) -> list[str]:
    """The texts of a file, or of stdin (``-``, one a line), in order.

    Raises DataError that names the file, the row and the column.
    """
    if place == "-":
        return [line.rstrip("\n") for line in sys.stdin]
    path = Path(place).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(f"'{path.suffix}' is no file of texts", file=place, hint=f"known: {known}")
    try:
        return list(reader(path, column))
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, names)
        raise DataError("there is no such file", file=place, hint=hint) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=place) from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error.reason} at byte {error.start}", file=place) from None


def _lines(path: Path, column: str | None) -> Iterator[str]:
    if column is not None:
        raise DataError("lines have no columns", file=str(path), hint="leave --column away")
    with path.open(encoding="utf-8") as file:
        yield from (line.rstrip("\n") for line in file)


def _csv(path: Path, column: str | None) -> Iterator[str]:
    csv.field_size_limit(_LONGEST_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
        rows = csv.reader(file, dialect, strict=True)
        row = 1
        try:
            header = next(rows, None)
            if header is None:
                raise DataError("is empty", file=str(path))
            name = _choose(header, column, str(path))
            at = header.index(name)
            for row, cells in enumerate(rows, start=2):
                if not cells:
                    continue
                if len(cells) != len(header):
                    message = f"has {len(cells)} cells, the header has {len(header)}"
                    raise DataError(message, file=str(path), row=row)
                yield cells[at]
        except csv.Error as error:
            raise DataError(str(error), file=str(path), row=row + 1) from None


def _jsonl(path: Path, column: str | None) -> Iterator[str]:
    name = column
    with path.open(encoding="utf-8") as file:
        for row, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                item = json.loads(line)
            except ValueError as error:
                raise DataError(f"is no JSON: {error}", file=str(path), row=row) from None
            if isinstance(item, dict):
                if name is None or name not in item:
                    name = _choose(list(item), column, str(path), row)
                item = item[name]
            yield _text(item, str(path), row, name)


def _parquet(path: Path, column: str | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            name = _choose(file.schema_arrow.names, column, str(path))
            row = 0
            for batch in file.iter_batches(columns=[name]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _text(value, str(path), row, name)
    except pa.ArrowInvalid as error:
        raise DataError(f"is no Parquet: {error}", file=str(path)) from None


_READERS: dict[str, Callable[[Path, str | None], Iterator[str]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".tsv": _csv,
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".parquet": _parquet,
}


def _choose(names: Sequence[str], asked: str | None, file: str, row: int | None = None) -> str:
    """The column that holds the texts: the one asked for, the only one, or ``text``."""
    if asked is not None:
        if asked in names:
            return asked
        hint = nearest(asked, names) or f"there are: {', '.join(names)}"
        raise DataError(f"there is no column '{asked}'", file=file, row=row, hint=hint)
    if len(names) == 1:
        return names[0]
    if _USUAL in names:
        return _USUAL
    listed = ", ".join(names)
    raise DataError("which column?", file=file, row=row, hint=f"--column with one of: {listed}")


def _text(value: Any, file: str, row: int, column: str | None) -> str:
    if isinstance(value, str):
        return value
    raise DataError(f"is no text: {value!r:.80}", file=file, row=row, column=column)
