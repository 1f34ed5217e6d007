"""Rankings: a query a row, and lists of the items that it was shown with.

Items come again and again. The texts of a data set are kept once, as its *catalogue*, and rows
hold their numbers: a text is tokenized once, and embedded once a batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from luthier.data.dataset import Dataset, Rows
from luthier.errors import DataError

#: The lists of a row, in this order; those after relevance need not be there.
LIST_ROLES = ("items", "relevance", "weight", "score", "irrelevant")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Shown:
    """The lists of some rows, laid flat: m impressions.

    queries: int64 [n], texts of the catalogue. rows: int64 [m], which of the n it belongs to.
    items: int64 [m], texts of the catalogue, none twice in a row. relevance, weight: [m].
    score: [m], if known. irrelevant: bool [m], of searches without a click, if known.
    """

    queries: Rows
    rows: Rows
    items: Rows
    relevance: Floats
    weight: Floats
    score: Floats | None
    irrelevant: npt.NDArray[np.bool_] | None

    def __len__(self) -> int:
        return len(self.rows)


class Rankings(Dataset):
    """Searches. ``table`` has the columns as they were read, lists of one length a row.

    catalogue: all different texts of the whole, queries and items, as rows of role "text".
    codes: for the whole, the query of each row and its items as numbers of the catalogue.
    """

    def __init__(
        self, table: pa.Table, id: str, mapping: dict[str, str], *, texts: pa.Table,
        codes: pa.Table, selection: Rows | None = None, notes: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__("rankings", table, id, mapping, selection=selection, notes=notes)
        self._texts, self._codes = texts, codes
        digest = hashlib.sha256(b"catalogue " + id.encode()).hexdigest()
        self.catalogue = Dataset("rankings", texts, digest, {"text": "query and items"})
        self._queries = codes.column("query").to_numpy().astype(np.int64)
        self._items = flat(codes.column("items"))
        lengths = pa.compute.list_value_length(codes.column("items")).to_numpy()
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._values: dict[str, Floats] = {}

    @property
    def roles(self) -> tuple[str, ...]:
        return ("query", "items")

    @property
    def queries(self) -> Rows:
        """The query of each row, as a number of the catalogue, int64 [n]."""
        found: Rows = self._queries[self._rows()]
        return found

    @property
    def sizes(self) -> Rows:
        """How many items each row has, int64 [n]."""
        rows = self._rows()
        found: Rows = self._starts[rows + 1] - self._starts[rows]
        return found

    def has(self, role: str) -> bool:
        """Whether the data has such a list."""
        return role in self.mapping

    def shown(self, rows: npt.NDArray[np.integer[Any]] | Sequence[int]) -> Shown:
        """The lists of some rows. An item that a row has twice is one, as relevant as it was at
        its best."""
        places = self._places(np.asarray(rows, dtype=np.int64))
        sizes = self._starts[places + 1] - self._starts[places]
        owner = np.repeat(np.arange(len(places)), sizes)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        at = np.repeat(self._starts[places], sizes) + within
        items, relevance = self._items[at], self._flat("relevance")[at]
        order = np.lexsort((-relevance, items, owner))
        first = np.ones(len(order), dtype=bool)
        first[1:] = (np.diff(items[order]) != 0) | (np.diff(owner[order]) != 0)
        kept = np.sort(order[first])
        at, owner = at[kept], owner[kept]
        weight = self._flat("weight")[at] if self.has("weight") else np.ones(len(at))
        score = self._flat("score")[at] if self.has("score") else None
        apart = self._flat("irrelevant")[at] > 0 if self.has("irrelevant") else None
        return Shown(
            self._queries[places], owner, self._items[at], self._flat("relevance")[at], weight,
            score, apart,
        )  # fmt: skip

    def take(self, rows: npt.NDArray[np.integer[Any]] | Sequence[int]) -> Rankings:
        wanted = np.asarray(rows, dtype=np.int64)
        places = self._places(wanted)
        digest = hashlib.sha256(self.id.encode() + wanted.tobytes()).hexdigest()
        return Rankings(
            self._base, digest, self.mapping, texts=self._texts, codes=self._codes,
            selection=places, notes=self.notes,
        )  # fmt: skip

    def texts(self, role: str, rows: npt.NDArray[np.integer[Any]] | Sequence[int]) -> list[str]:
        """The queries of some rows; of role "items" all items of those rows, one row after
        the other."""
        if role == "query":
            return super().texts(role, rows)
        self._column(role)
        return self.catalogue.texts("text", self._item_codes(np.asarray(rows, dtype=np.int64)))

    def array(self, role: str) -> npt.NDArray[Any]:
        """A list of values, laid flat, one an impression."""
        if role not in self.mapping or role in self.roles:
            raise DataError(f"the data has no '{role}' of items")
        return self._flat(role)[self._flat_places(self._rows())]

    def chunks(self, role: str) -> Sequence[pa.Array]:
        if role == "query":
            return super().chunks(role)
        texts = self.catalogue.chunks("text")
        whole = pa.chunked_array(list(texts), pa.string())
        codes = self._item_codes(np.arange(len(self)))
        chunks: Sequence[pa.Array] = whole.take(pa.array(codes)).chunks
        return chunks

    def used(self) -> Rows:
        """The texts of the catalogue that these rows have, sorted."""
        return np.unique(np.concatenate([self.queries, self._item_codes(np.arange(len(self)))]))

    def _rows(self) -> Rows:
        return np.arange(self._base.num_rows) if self._selection is None else self._selection

    def _item_codes(self, rows: Rows) -> Rows:
        return self._items[self._flat_places(self._places(rows))]

    def _flat_places(self, places: Rows) -> Rows:
        sizes = self._starts[places + 1] - self._starts[places]
        within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        found: Rows = np.repeat(self._starts[places], sizes) + within
        return found

    def _flat(self, role: str) -> Floats:
        if role not in self._values:
            self._values[role] = flat(self._base.column(role)).astype(np.float64, copy=False)
        return self._values[role]

    def _picked(self, name: str) -> pa.ChunkedArray:
        column = self._base.column(name)
        return column.take(pa.array(self._rows()))


def flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """All values of a column of lists, one after another; without a copy where it is one
    chunk."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    found = parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.int64), *parts])
    return found.astype(np.int64) if found.dtype.kind in "iu" else found


def encode(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The catalogue of a table, and its texts as numbers: tables ``text`` and ``query, items``.
    Only the different texts are held in memory."""
    import pyarrow.compute as pc

    queries, items = table.column("query"), table.column("items")
    flattened = [chunk.flatten() for chunk in items.chunks]
    everything = pa.chunked_array([*queries.chunks, *flattened], pa.string())
    found = pc.dictionary_encode(everything)
    texts = found.chunk(found.num_chunks - 1).dictionary
    codes = [chunk.indices.cast(pa.int32()) for chunk in found.chunks]
    cut = queries.num_chunks
    lists = [
        pa.ListArray.from_arrays(_offsets(chunk), code)
        for chunk, code in zip(items.chunks, codes[cut:], strict=True)
    ]
    kind = pa.list_(pa.int32())
    numbered = {
        "query": pa.chunked_array(codes[:cut], pa.int32()),
        "items": pa.chunked_array(lists, kind),
    }
    pieces = [texts.slice(i, 65_536) for i in range(0, len(texts), 65_536)]
    return pa.table({"text": pa.chunked_array(pieces, pa.string())}), pa.table(numbered)


def _offsets(lists: pa.Array) -> pa.Array:
    offsets = lists.offsets.to_numpy()
    return pa.array((offsets - offsets[0]).astype(np.int32))
