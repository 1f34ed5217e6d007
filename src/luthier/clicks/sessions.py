"""Sessions: searches with what was shown and what was done, in columns.

A session is one search: a query, the items shown with their positions, and events on them. A
row of the table is a session; what was shown and what happened are lists. The properties of
``Sessions`` lay those lists flat: *impressions* [m] and *events* [k], numbered through, which is
what all arithmetic works with.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from luthier.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

#: One row a session. ``scores`` is what the search gave (the reference's "rank"), ``positions``
#: the place in the list from 1 on; ``event_results`` counts the session's results from 0.
SCHEMA = pa.schema(
    [
        pa.field("session", pa.string(), nullable=False),
        pa.field("query", pa.string(), nullable=False),
        ("user", pa.string()),
        ("time", pa.float64()),  # seconds since 1970
        pa.field("irrelevant", pa.bool_(), nullable=False),
        ("items", pa.list_(pa.string())),
        ("positions", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float64())),
        ("event_results", pa.list_(pa.int32())),
        ("event_types", pa.list_(pa.string())),
        ("event_grades", pa.list_(pa.float64())),
        ("event_dwells", pa.list_(pa.float64())),  # seconds
        ("event_times", pa.list_(pa.float64())),
        ("event_ids", pa.list_(pa.string())),
    ]
)

#: What an event is worth where the log gives no grade: more commitment, more relevance.
GRADES: Mapping[str, float] = {
    "click": 1.0,
    "view": 1.0,
    "like": 1.0,
    "favorite": 2.0,
    "add_to_cart": 2.0,
    "purchase": 3.0,
}
#: Such events say that something was seen, not that it was wanted.
SEEN = ("impression", "hover", "on_search", "scroll")


class Sessions:
    """Searches in columns.

    table: an Arrow table of ``SCHEMA``; a memory-mapped one stays on disk until looked at.
    """

    def __init__(self, table: pa.Table) -> None:
        if not table.schema.equals(SCHEMA):
            table = table.cast(SCHEMA)
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __repr__(self) -> str:
        return f"Sessions({len(self):,} sessions)"

    @classmethod
    def open(cls, path: Path) -> Sessions:
        """Sessions of an Arrow file that ``save`` or an import wrote, memory-mapped."""
        try:
            with pa.memory_map(str(path)) as source:
                return cls(pa.ipc.open_file(source).read_all())
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise DataError(f"no file of sessions ({error})", file=str(path)) from error

    def save(self, path: Path) -> None:
        """Write an Arrow file, complete or not at all."""
        from luthier.store.atomic import cached_file

        with (
            cached_file(path) as aside,
            pa.OSFile(str(aside), "wb") as sink,
            pa.ipc.new_file(sink, SCHEMA) as writer,
        ):
            writer.write_table(self.table)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Sessions:
        """Sessions of dicts, for tests and small things: session, query, items, and what else
        of the schema there is; ``clicks`` (positions in the list from 0) makes click events.

        >>> s = Sessions.of([{"session": "1", "query": "q", "items": ["a", "b"], "clicks": [1]}])
        >>> s.grades().tolist()
        [0.0, 1.0]
        """
        return cls(pa.Table.from_pylist([_filled(row) for row in rows], schema=SCHEMA))

    @classmethod
    def join(cls, parts: Iterable[Sessions]) -> Sessions:
        """All sessions of all parts."""
        return cls(pa.concat_tables([part.table for part in parts]))

    def take(self, rows: Ints | Bools) -> Sessions:
        """These sessions (by number, or by mask) in this order."""
        rows = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Sessions(self.table.take(pa.array(rows)))

    # A session each, [n]

    @cached_property
    def ids(self) -> list[str]:
        """Their names."""
        return list(self.table["session"].to_pylist())

    @cached_property
    def times(self) -> Floats:
        """Seconds since 1970, NaN where unknown."""
        return _floats(self.table["time"])

    @cached_property
    def irrelevant(self) -> Bools:
        """Somebody said that nothing fitted. See also ``is_irrelevant``."""
        found: Bools = self.table["irrelevant"].to_numpy()
        return found

    @cached_property
    def query_codes(self) -> Ints:
        """The number of the query: equal for equal queries; ``query_texts`` has them."""
        return self._queries[0]

    @property
    def query_texts(self) -> list[str]:
        """The different queries."""
        return self._queries[1]

    @cached_property
    def _queries(self) -> tuple[Ints, list[str]]:
        return encoded(self.table["query"])

    @cached_property
    def user_codes(self) -> Ints:
        """The number of the user, -1 where unknown."""
        return encoded(self.table["user"])[0]

    @cached_property
    def starts(self) -> Ints:
        """Where each session's impressions begin, int64 [n + 1]."""
        return _offsets(self.table["items"])

    @cached_property
    def event_starts(self) -> Ints:
        """Where each session's events begin, int64 [n + 1]."""
        return _offsets(self.table["event_results"])

    @cached_property
    def is_irrelevant(self) -> Bools:
        """The flag, or no event that says that something was wanted."""
        wanted = np.zeros(len(self), bool)
        wanted[self.owner[self.grades() > 0]] = True
        return self.irrelevant | ~wanted

    # An impression each, [m]

    @cached_property
    def owner(self) -> Ints:
        """Its session."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    @cached_property
    def item_codes(self) -> Ints:
        """The number of the item; ``item_names`` has them."""
        return self._items[0]

    @property
    def item_names(self) -> list[str]:
        """The different items."""
        return self._items[1]

    def items_of(self, catalogue: Container[str]) -> Bools:
        """Which of the different items a catalogue has; one False where there are none at all."""
        return np.array([name in catalogue for name in self.item_names] or [False])

    @cached_property
    def _items(self) -> tuple[Ints, list[str]]:
        return encoded(_flat(self.table["items"]))

    @cached_property
    def positions(self) -> Ints:
        """Its place in the list, from 1 on."""
        found: Ints = _flat(self.table["positions"]).to_numpy().astype(np.int64)
        return found

    @cached_property
    def scores(self) -> Floats:
        """What the search gave it, NaN where unknown."""
        return _floats(_flat(self.table["scores"]))

    # An event each, [k]

    @cached_property
    def event_impressions(self) -> Ints:
        """The impression that it is on."""
        within = _flat(self.table["event_results"]).to_numpy().astype(np.int64)
        found: Ints = within + np.repeat(self.starts[:-1], np.diff(self.event_starts))
        return found

    @cached_property
    def event_types(self) -> tuple[Ints, list[str]]:
        """The number of the type, and the types."""
        return encoded(_flat(self.table["event_types"]))

    @cached_property
    def event_dwells(self) -> Floats:
        """Seconds that were spent, NaN where unknown."""
        return _floats(_flat(self.table["event_dwells"]))

    @cached_property
    def event_times(self) -> Floats:
        """Seconds since 1970, NaN where unknown."""
        return _floats(_flat(self.table["event_times"]))

    def grades(
        self, by_type: Mapping[str, float] | None = None, *, short_dwell_s: float = 0.0,
        short_grade: float = 0.0,
    ) -> Floats:  # fmt: skip
        """How much each impression was wanted, float64 [m]: its best event, 0 without one.

        An event is worth the grade that the log gives, else that of its type (``by_type`` over
        ``GRADES``; 1 for others, 0 for what merely saw). One whose dwell time is known and
        under ``short_dwell_s`` is worth at most ``short_grade``: 30 s is usual for a
        satisfied click (Fox et al., TOIS 2005).
        """
        codes, types = self.event_types
        table = {**dict.fromkeys(SEEN, 0.0), **GRADES, **(by_type or {})}
        worth = np.array([table.get(name, 1.0) for name in types] or [0.0])[codes]
        given = _floats(_flat(self.table["event_grades"]))
        worth = np.where(np.isnan(given), worth, given)
        with np.errstate(invalid="ignore"):
            short = self.event_dwells < short_dwell_s
        worth = np.where(short, np.minimum(worth, short_grade), worth)
        best = np.zeros(int(self.starts[-1]))
        np.maximum.at(best, self.event_impressions, worth)
        return best

    def describe(self) -> dict[str, Any]:
        """Sizes, for people."""
        known = self.times[~np.isnan(self.times)]
        return {
            "sessions": len(self),
            "queries": len(self.query_texts),
            "items": len(self.item_names),
            "impressions": int(self.starts[-1]),
            "events": int(self.event_starts[-1]),
            "sessions with a click": int((~self.is_irrelevant).sum()),
            "first": float(known.min()) if len(known) else None,
            "last": float(known.max()) if len(known) else None,
        }


def encoded(values: pa.ChunkedArray | pa.Array) -> tuple[Ints, list[str]]:
    """A number for each value (-1 for null) by first occurrence, and the different values."""
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if isinstance(whole, pa.ChunkedArray):  # nothing in it
        return np.zeros(0, np.int64), []
    found = whole.dictionary_encode()
    codes = pc.fill_null(found.indices, -1).to_numpy(zero_copy_only=False)
    return codes.astype(np.int64), found.dictionary.to_pylist()


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.list_flatten(column)


def _offsets(column: pa.ChunkedArray) -> Ints:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _floats(column: pa.ChunkedArray) -> Floats:
    found: Floats = pc.fill_null(column, np.nan).to_numpy()
    return found


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    known = {*SCHEMA.names, "clicks"}
    if unknown := set(row) - known:
        raise DataError(f"a session has no '{min(unknown)}'", column=min(unknown))
    items = list(row.get("items", ()))
    clicks = list(row.get("event_results", row.get("clicks", ())))
    events = len(clicks)
    filled: dict[str, Any] = {
        "user": None, "time": None, "irrelevant": False, "items": items,
        "positions": list(range(1, len(items) + 1)), "scores": [None] * len(items),
        "event_results": clicks, "event_types": ["click"] * events,
        "event_grades": [None] * events, "event_dwells": [None] * events,
        "event_times": [None] * events, "event_ids": [None] * events,
    }  # fmt: skip
    return filled | {name: value for name, value in row.items() if name != "clicks"}
