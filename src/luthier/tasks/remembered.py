"""Rows of a task that are remembered from one update to the next, and laid before new ones."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.rows import Places, Rows
from luthier.errors import DataError
from luthier.tasks.examples import Examples
from luthier.tasks.task import Task

#: Rows that are copied together: what a memory takes of RAM while it is written.
_TOGETHER = 1024


@dataclass(frozen=True)
class RememberedRows:
    """Rows of examples, raw. images: whether files are to be kept by their content."""

    examples: Examples | None
    rows: Places
    images: bool = False

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.arrow``, columns by role; nothing for none."""
        if self.examples is None or not len(self.rows):
            return
        writer = None
        with pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink:
            for start in range(0, len(self.rows), _TOGETHER):
                table = self._table(self.rows[start : start + _TOGETHER])
                if writer is None:
                    writer = pa.ipc.new_file(sink, table.schema)
                writer.write_table(table)
            assert writer is not None
            writer.close()

    def bytes(self) -> Places:
        """The bytes of each row (n,); of lists and structs the mean over the rows."""
        assert self.examples is not None
        found = np.zeros(len(self.rows), np.int64)
        for start in range(0, len(self.rows), _TOGETHER):
            table = self._table(self.rows[start : start + _TOGETHER])
            for column in table.columns:
                kind = column.type
                if pa.types.is_string(kind) or pa.types.is_binary(kind):
                    sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy()
                else:
                    sizes = np.full(len(column), -(-column.nbytes // max(1, len(column))))
                found[start : start + len(column)] += sizes
        return found

    def _table(self, rows: Places) -> pa.Table:
        assert self.examples is not None
        found = self.examples.rows
        taken = found.table.take(pa.array(rows))
        columns = {}
        for role, column in self.examples.columns.items():
            values = taken.column(column)
            if self.images and role == "image" and pa.types.is_string(values.type):
                content = [_content(text, found.folder) for text in values.to_pylist()]
                values = pa.chunked_array([pa.array(content, pa.binary())])
            columns[role] = values
        return pa.table(columns)


def _content(text: str, folder: Path | None) -> bytes:
    """The bytes of an image that a row names or holds as text."""
    if text.startswith("data:"):
        return base64.b64decode(text.partition(",")[2])
    file = Path(text) if folder is None else folder / text
    if len(text) < 1024 and file.is_file():
        return file.read_bytes()
    return base64.b64decode(text)


def joined_rows(task: Task, file: Path, new: Rows) -> tuple[Rows, int]:
    """Remembered rows before the new ones, under the names of the new columns; how many they are.

    Raises DataError where the columns are not of one kind.
    """
    old = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    names = task.columns(new, supervised=True)
    missing = set(names) ^ set(old.column_names)
    if missing:
        raise DataError(
            f"new rows and remembered ones differ in {', '.join(sorted(missing))}",
            file=new.file,
            hint="an update takes rows with the same columns as the updates before",
        )
    tables = [
        pa.table({names[role]: old.column(role) for role in names}),
        new.table.select(list(names.values())),
    ]
    tables[0] = _like(tables[0], tables[1], new.file)
    lines = np.concatenate([np.zeros(len(old), np.int64), np.arange(len(new), dtype=np.int64)])

    def line() -> list[int]:
        return [new.line(int(place)) for place in range(len(new))]

    joined = Rows(new.file, pa.concat_tables(tables), folder=new.folder, places=lines, lines=line)
    return joined, len(old)


def _like(old: pa.Table, new: pa.Table, file: str) -> pa.Table:
    for place, field in enumerate(new.schema):
        column = old.column(field.name)
        if column.type == field.type:
            continue
        if pa.types.is_binary(column.type) and pa.types.is_string(field.type):
            texts = ["data:;base64," + base64.b64encode(v).decode() for v in column.to_pylist()]
            column = pa.chunked_array([pa.array(texts, field.type)])
        else:
            try:
                column = column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"is {field.type}, and {column.type} in the rows that are remembered",
                    file=file, column=field.name,
                    hint="an update takes columns of the same types as the updates before",
                ) from error  # fmt: skip
        old = old.set_column(place, field.name, column)
    return old


def renumbered(examples: Examples, known: tuple[str, ...]) -> Examples:
    """Classes that are known keep their numbers, new ones follow in their order.

    >>> from types import SimpleNamespace
    >>> from luthier.tasks.examples import Examples
    >>> found = Examples(None, {}, {}, ("a", "b", "c"), np.array([0, 2, 1]))
    >>> renumbered(found, ("c", "a")).labels, renumbered(found, ("c", "a")).codes.tolist()
    (('c', 'a', 'b'), [1, 0, 2])
    """
    labels = (*known, *(name for name in examples.labels if name not in known))
    if not examples.labels or labels == examples.labels:
        return replace(examples, labels=labels)
    place: Mapping[str, int] = {name: code for code, name in enumerate(labels)}
    moved = np.array([place[name] for name in examples.labels], dtype=np.int64)
    codes: Any = examples.codes
    if codes is not None and codes.ndim == 1:
        codes = moved[codes]
    elif codes is not None:
        wide = np.zeros((len(codes), len(labels)), dtype=codes.dtype)
        wide[:, moved] = codes
        codes = wide
    return replace(examples, labels=labels, codes=codes)
