"""A file as a table of raw columns of any type, without roles: what tasks read from.

The files and formats are those of ``load_dataset``, and so are the readers; what differs is
that nothing is asked of a column here. Text, numbers, truth values, lists, structs and bytes
stay what they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from luthier.data.arrow_reader import ArrowReader
from luthier.data.blocks import Block, Reader
from luthier.data.columns_of_any import joined, typed
from luthier.data.csv_reader import CSVReader
from luthier.data.dataset import chunk_ends, gather
from luthier.data.entry import ColumnHash
from luthier.data.json_reader import JSONReader
from luthier.data.problems import Problems
from luthier.data.reading import Format, first_rows, kind_of, sample_mask
from luthier.errors import DataError
from luthier.spec import CSVOptions

Places = npt.NDArray[np.int64]


class Rows:
    """Rows of a file.

    file: what the user calls it, for messages. table: the columns, each as the file types it.
    folder: where the file lies, from which relative paths in it are understood.
    """

    def __init__(
        self, file: str, table: pa.Table, *, folder: Path | None = None,
        places: Places | None = None, lines: Callable[[], Sequence[int]] | None = None,
    ) -> None:  # fmt: skip
        self.file, self.table, self.folder = file, table, folder
        self._places, self._lines = places, lines
        self._id: str | None = None
        self._ends: dict[str, Places] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns' names, in the order of the file."""
        return tuple(self.table.column_names)

    @property
    def id(self) -> str:
        """sha256 of names, types and values: the same for the same content in any format whose
        types agree (CSV has only text), in any order of the columns."""
        if self._id is None:
            parts = sorted((name, _digest(self.table.column(name))) for name in self.columns)
            self._id = hashlib.sha256(json.dumps([len(self), parts]).encode()).hexdigest()
        return self._id

    def column(self, name: str) -> pa.ChunkedArray:
        """A column. Raises KeyError when there is none of that name."""
        return self.table.column(name)

    def values(self, name: str, rows: Sequence[int] | Places) -> list[Any]:
        """The values of some rows, in the order asked for, as plain Python values."""
        column = self.table.column(name)
        ends = self._ends.get(name)
        if ends is None:
            ends = self._ends[name] = chunk_ends(column)
        wanted = np.asarray(rows, dtype=np.int64)
        chunks = np.searchsorted(ends, wanted, side="right")
        return gather(column, chunks, wanted - np.r_[0, ends][chunks])

    def row(self, i: int) -> dict[str, Any]:
        """One row as plain Python values."""
        found: dict[str, Any] = self.table.slice(i, 1).to_pylist()[0]
        return found

    def take(self, rows: Sequence[int] | Places) -> Rows:
        """Some of the rows, in the order asked for."""
        wanted = np.asarray(rows, dtype=np.int64)
        places = wanted if self._places is None else self._places[wanted]
        table = self.table.take(pa.array(wanted))
        return Rows(self.file, table, folder=self.folder, places=places, lines=self._lines)

    def line(self, i: int) -> int:
        """The line at which an editor shows row ``i`` (Parquet and Arrow: its number, from 1)."""
        place = int(i if self._places is None else self._places[i])
        lines = self._lines() if self._lines is not None else ()
        return int(lines[place]) if place < len(lines) else place + 1


def read_rows(
    path: Path, csv: CSVOptions, *, name: str | None = None, format: Format | None = None,
    only: Iterable[str] | None = None,
) -> Rows:  # fmt: skip
    """Read a file whole.

    csv: ``size`` and ``sampling_rate`` hold for every format; ``dialect``, ``delimiter`` and
    ``header`` for CSV, whose first row holds names unless ``header`` is False (columns are then
    called "1", "2", …); ``encoding`` for CSV and JSON.
    name: what the user calls the file, for messages and, by its ending, the format.
    only: read these columns and overlook others, which rows of JSON then may or may not have.
    Raises DataError with file, row (as an editor counts lines) and column.
    """
    path = Path(path)
    file = name or str(path)
    _refuse_roles(csv, file)
    _check_readable(path, file)
    kind = kind_of(path, file, format)
    keep = None if only is None else set(only)
    reader = _open(path, kind, csv, file, keep)
    names = _names(reader, file)
    wanted = [i for i, column in enumerate(names) if keep is None or column in keep]
    found = Problems(file)
    pieces: list[list[pa.Array]] = [[] for _ in wanted]
    places = _gather(reader, csv, found, wanted, [names[i] for i in wanted], pieces)
    found.check()
    if not len(places):
        raise DataError("no rows in the file", file=file)
    columns = [
        joined(parts, names[i], file, lambda: _lines(path, kind, csv, file, keep), places)
        for i, parts in zip(wanted, pieces, strict=True)
    ]
    table = pa.table(columns, names=[names[i] for i in wanted])
    lines = _Lines(lambda: _lines(path, kind, csv, file, keep))
    return Rows(file, table, folder=path.parent, places=places, lines=lines)


def stream(
    path: Path, csv: CSVOptions, found: Problems, *, format: Format | None = None,
    only: Iterable[str] | None = None,
) -> tuple[tuple[str, ...], Iterator[Block]]:  # fmt: skip
    """A file's columns by name, and its rows block by block, with memory that does not grow.

    only: these columns, in the order of the file. Bad rows go to ``found`` and are left out.
    Raises DataError as ``read_rows`` does.
    """
    path, file = Path(path), found.file
    _check_readable(path, file)
    keep = None if only is None else set(only)
    reader = _open(path, kind_of(path, file, format), csv, file, keep)
    names = _names(reader, file)
    wanted = [i for i, column in enumerate(names) if keep is None or column in keep]
    blocks = (
        Block([block.columns[i] for i in wanted], block.lines) for block in reader.blocks(found)
    )
    return tuple(names[i] for i in wanted), blocks


def _gather(
    reader: Reader, csv: CSVOptions, found: Problems, wanted: list[int], names: list[str],
    pieces: list[list[pa.Array]],
) -> Places:  # fmt: skip
    """Append the typed columns of every block; the numbers of the rows that were kept."""
    start, kept = 0, []
    for block in first_rows(reader.blocks(found), csv.size, found):
        places = np.arange(start, start + len(block), dtype=np.int64)
        arrays = [
            typed(block.columns[i], name, block.lines, found)
            for i, name in zip(wanted, names, strict=True)
        ]
        start += len(block)
        if found.full:
            break
        if found.found:
            continue
        if csv.sampling_rate is not None:
            mask = sample_mask(int(places[0]), len(places), csv.sampling_rate)
            places, arrays = places[mask], [a.filter(pa.array(mask)) for a in arrays]
        kept.append(places)
        for part, array in zip(pieces, arrays, strict=True):
            part.append(array)
    return np.concatenate(kept) if kept else np.empty(0, dtype=np.int64)


class _Lines:
    """The line of every row of a file; the file is read again at the first question."""

    def __init__(self, find: Callable[[], Sequence[int]]) -> None:
        self._find = find
        self._found: Sequence[int] | None = None

    def __call__(self) -> Sequence[int]:
        if self._found is None:
            self._found = self._find()
        return self._found


def _lines(
    path: Path, kind: Format, csv: CSVOptions, file: str, keep: set[str] | None
) -> Sequence[int]:
    if kind in ("parquet", "arrow"):
        return ()  # the number of the row is its line
    try:
        blocks: Iterable[Block] = _open(path, kind, csv, file, keep).blocks(Problems(file))
        return [line for block in blocks for line in block.lines()]
    except (DataError, OSError):  # the file is gone: the number of the row has to do
        return ()


def _open(path: Path, kind: Format, csv: CSVOptions, file: str, keep: set[str] | None) -> Reader:
    if kind in ("parquet", "arrow"):
        return ArrowReader(path, kind, file)
    if kind in ("json", "jsonl"):
        return JSONReader(path, csv.encoding, file, array=kind == "json", keep=keep)
    options = csv if csv.header is not None else csv.model_copy(update={"header": True})
    try:
        return CSVReader(path, options, file, is_header=lambda _: True)
    except DataError:
        if options.delimiter is not None or options.dialect != "auto":
            raise
        alone = options.model_copy(update={"delimiter": ","})
        reader = CSVReader(path, alone, file, is_header=lambda _: True)
        if reader.width != 1:
            raise
        return reader  # one column, where no separator can be found


def _names(reader: Reader, file: str) -> list[str]:
    if reader.names is None:
        return [str(i + 1) for i in range(reader.width)]
    names = [name or f"column {i}" for i, name in enumerate(reader.names, 1)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError("two columns have this name", file=file, column=twice)
    return names


def _refuse_roles(csv: CSVOptions, file: str) -> None:
    defaults = CSVOptions()
    for option in ("columns", "is_labeled"):
        if getattr(csv, option) != getattr(defaults, option):
            raise DataError(
                f"csv_options.{option} is for embeddings",
                file=file,
                hint="processing.columns = {role: column} names the columns of a task",
            )


def _check_readable(path: Path, file: str) -> None:
    try:
        with open(path, "rb") as opened:
            empty = not opened.read(1)
    except FileNotFoundError:
        raise DataError("there is no such file", file=file) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot be read: {reason}", file=file) from None
    if empty:
        raise DataError("the file is empty", file=file)


def _digest(column: pa.ChunkedArray) -> str:
    """sha256 of a column's values, however they are cut into chunks and how wide its type is."""
    hashed = hashlib.sha256()
    whole, real = pa.types.is_integer(column.type), pa.types.is_floating(column.type)
    if (whole or real) and not column.null_count:
        kind, wide, code = ("int", pa.int64(), "<i8") if whole else ("float", pa.float64(), "<f8")
        for chunk in column.chunks:
            hashed.update(chunk.cast(wide, safe=False).to_numpy().astype(code).tobytes())
        return f"{kind} {hashed.hexdigest()}"
    if pa.types.is_string(column.type) and not column.null_count:
        texts = ColumnHash()
        for chunk in column.chunks:
            texts.add(chunk)
        return f"text {texts.hexdigest()}"
    for chunk in column.chunks:
        for value in chunk.to_pylist():
            text = json.dumps(_canonical(value), sort_keys=True, ensure_ascii=False)
            hashed.update(text.encode("utf-8") + b"\n")
    return f"json {hashed.hexdigest()}"


def _canonical(value: Any) -> Any:
    """JSON data for a value; a struct's empty fields are as if they were not there."""
    if isinstance(value, Mapping):
        return {k: _canonical(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_canonical(v) for v in value]
    if isinstance(value, bytes):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)
