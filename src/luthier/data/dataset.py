"""Checked data, memory-mapped: columns named by role, typed, the same for every source."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.columns import VALUE_ROLES
from luthier.errors import NotFound, nearest
from luthier.spec import Form

Rows = npt.NDArray[np.int64]

#: Up to so many rows are fetched one by one; more are fetched a chunk of the table at a time.
_FEW = 256


class Dataset:
    """Rows to learn from. Not to be changed once made.

    form: what a row is; see ``luthier.spec.Form``.
    id: sha256 of the content, whatever file it came from: the same rows in CSV and in Parquet
    have the same id.
    mapping: role → the column that it was found in.
    notes: what was decided in reading, for people to see.

    A part of a dataset (``take``) shares its memory and holds only the numbers of its rows.
    """

    def __init__(
        self, form: Form, table: pa.Table, id: str, mapping: Mapping[str, str], *,
        selection: Rows | None = None, classes: pa.Array | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        self.form: Form = form
        self.id = id
        self.mapping = dict(mapping)
        self.notes = notes
        self._base = table
        self._selection = selection
        self._classes = classes
        self._ends = {name: chunk_ends(table.column(name)) for name in table.column_names}
        self._taken: pa.Table | None = None if selection is not None else table

    def __len__(self) -> int:
        return self._base.num_rows if self._selection is None else len(self._selection)

    def __repr__(self) -> str:
        columns = ", ".join(f"{role} ← {column}" for role, column in self.mapping.items())
        return f"Dataset({len(self):,} rows, {self.form}: {columns}, id={self.id[:12]})"

    @property
    def roles(self) -> tuple[str, ...]:
        """The text roles, in order: ("anchor", "positive", "negative_1")."""
        return tuple(name for name in self._base.column_names if name not in VALUE_ROLES)

    @property
    def table(self) -> pa.Table:
        """The rows as a table: memory-mapped for a whole file. For a part, the rows are copied
        at the first use; ``texts``, ``array`` and ``chunks`` do without."""
        if self._taken is None:
            columns = {name: self._picked(name) for name in self._base.column_names}
            self._taken = pa.table(columns)
        return self._taken

    @property
    def num_classes(self) -> int:
        """How many classes the labels count; a part counts those of its whole."""
        if self._classes is not None:
            return len(self._classes)
        highest = pc.max(self._base.column("label")).as_py()
        return 0 if highest is None else int(highest) + 1

    def class_name(self, code: int) -> str:
        """The label that a class had in the file; ``component 7`` for one made from pairs."""
        if self._classes is None:
            return f"component {code}"
        return cast(str, self._classes[code].as_py())

    def texts(self, role: str, rows: npt.NDArray[np.integer[Any]] | Sequence[int]) -> list[str]:
        """The texts of some rows, in their order. Raises IndexError outside the dataset."""
        wanted = self._places(np.asarray(rows, dtype=np.int64))
        column = self._column(role)
        chunks, within = self._in_chunks(role, wanted)
        if len(wanted) <= _FEW:
            places = zip(chunks.tolist(), within.tolist(), strict=True)
            return [column.chunk(c)[i].as_py() for c, i in places]
        return gather(column, chunks, within)

    def array(self, role: str) -> npt.NDArray[Any]:
        """score and margin as float64, label as int64 class codes: a copy, one a row."""
        values = self._column(role).to_numpy()
        return values[self._selection] if self._selection is not None else np.array(values)

    def take(self, rows: npt.NDArray[np.integer[Any]] | Sequence[int]) -> Dataset:
        """Some rows, in the order given, as a dataset of its own."""
        wanted = np.asarray(rows, dtype=np.int64)
        places = self._places(wanted)
        digest = hashlib.sha256(self.id.encode() + wanted.tobytes()).hexdigest()
        return Dataset(
            self.form, self._base, digest, self.mapping,
            selection=places, classes=self._classes, notes=self.notes,
        )  # fmt: skip

    def as_labelled(self) -> Dataset:
        """Pairs as classes: every text one item, its label the connected component that it
        belongs to. Labelled data is returned as it is. Raises DataError for other forms."""
        from luthier.data.components import labelled

        return labelled(self)

    def chunks(self, role: str) -> Sequence[pa.Array]:
        """The role's texts in order, as Arrow arrays of bounded size: for whole passes."""
        column = self._column(role)
        if self._selection is None:
            return cast(Sequence[pa.Array], column.chunks)
        return _Picked(self, role)

    def slice_of(self, role: str, start: int, stop: int) -> pa.Array:
        """The texts of consecutive rows as one Arrow array."""
        rows = np.arange(start, min(stop, len(self)))
        column = self._column(role)
        chunks, within = self._in_chunks(role, self._places(rows))
        if (np.diff(chunks) < 0).any():
            return pa.array(self.texts(role, rows), pa.string())
        parts = np.split(np.arange(len(chunks)), np.flatnonzero(np.diff(chunks)) + 1)
        return pa.concat_arrays(
            [column.chunk(int(chunks[p[0]])).take(pa.array(within[p])) for p in parts if len(p)]
        )

    def _in_chunks(self, role: str, places: Rows) -> tuple[Rows, Rows]:
        """For places in the table: the number of the chunk, and the place within it."""
        ends = self._ends[role]
        chunks = np.searchsorted(ends, places, side="right")
        return chunks, places - np.concatenate([[0], ends])[chunks]

    def _column(self, role: str) -> pa.ChunkedArray:
        if role not in self._ends:
            known = self._base.column_names
            hint = nearest(role, known) or f"roles: {', '.join(known)}"
            raise NotFound(f"the data has no role '{role}'", hint=hint)
        return self._base.column(role)

    def _places(self, rows: Rows) -> Rows:
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows {rows.min()}…{rows.max()} of a dataset of {len(self)}")
        return rows if self._selection is None else self._selection[rows]

    def _picked(self, name: str) -> pa.ChunkedArray:
        if name in VALUE_ROLES:
            return pa.chunked_array([pa.array(self.array(name))])
        return pa.chunked_array(list(_Picked(self, name)), pa.string())


class _Picked(Sequence[pa.Array]):
    """The chunks of a part, each made when it is asked for."""

    _ROWS = 65_536

    def __init__(self, dataset: Dataset, role: str) -> None:
        self._dataset, self._role = dataset, role

    def __len__(self) -> int:
        return math.ceil(len(self._dataset) / self._ROWS)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self._ROWS
        return self._dataset.slice_of(self._role, start, start + self._ROWS)


def chunk_ends(column: pa.ChunkedArray) -> Rows:
    """Where each chunk of a column ends, in rows, int64 [chunks]."""
    return np.cumsum([len(chunk) for chunk in column.chunks], dtype=np.int64)


def gather(column: pa.ChunkedArray, chunks: Rows, within: Rows) -> list[Any]:
    """The values at places within chunks. pyarrow's own ``take`` first copies the column."""
    order = np.argsort(chunks, kind="stable")
    found: list[Any] = [None] * len(order)
    bounds = np.flatnonzero(np.diff(chunks[order])) + 1
    for part in np.split(order, bounds):
        if len(part):
            chunk = column.chunk(int(chunks[part[0]]))
            for place, text in zip(
                part.tolist(), chunk.take(pa.array(within[part])).to_pylist(), strict=True
            ):
                found[place] = text
    return found
