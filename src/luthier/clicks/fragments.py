"""Fragments: what one record of a log says about a search. Many of them make a session.

Log formats differ in how they cut a search up: one record with everything (the reference's
sessions), a record of the search and one an event (UBI, Metarank), a row an impression (CSV).
All readers give batches of fragments; ``grouping`` puts those of a search together.
"""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

#: ``key``: fragments with the same key are of one search. ``shown``: it says what was shown;
#: otherwise it only brings events. Events name their item, which may be in another fragment.
FRAGMENT = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int64()),
        ("shown", pa.bool_()),
        ("session", pa.string()),
        ("query", pa.string()),
        ("user", pa.string()),
        ("time", pa.float64()),
        ("irrelevant", pa.bool_()),
        ("items", pa.list_(pa.string())),
        ("positions", pa.list_(pa.int32())),
        ("scores", pa.list_(pa.float64())),
        ("event_items", pa.list_(pa.string())),
        ("event_types", pa.list_(pa.string())),
        ("event_grades", pa.list_(pa.float64())),
        ("event_dwells", pa.list_(pa.float64())),
        ("event_times", pa.list_(pa.float64())),
        ("event_ids", pa.list_(pa.string())),
        ("event_rows", pa.list_(pa.int64())),
    ]
)
RESULTS = ("items", "positions", "scores")
EVENTS = tuple(name for name in FRAGMENT.names if name.startswith("event_"))

#: So many fragments go into one batch: a few MB.
BATCH = 20_000


class Fragments:
    """Gathers fragments from Python values, for formats of JSON."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {name: [] for name in FRAGMENT.names}

    def __len__(self) -> int:
        return len(self._columns["key"])

    def shown(
        self, *, key: str, row: int, query: str, items: list[str], positions: list[int | None],
        scores: list[float | None], user: str | None, time: float, irrelevant: bool = False,
        events: list[Event],
    ) -> None:  # fmt: skip
        """A search: what was shown, and events if the record has them."""
        self._add(key, row, True, key, query, user, _known(time), irrelevant)
        columns = self._columns
        columns["items"].append(items)
        columns["positions"].append(positions)
        columns["scores"].append(scores)
        self._events(events)

    def happened(self, *, key: str, row: int, user: str | None, event: Event) -> None:
        """An event whose search is another record."""
        self._add(key, row, False, key, None, user, None, False)
        for name in RESULTS:
            self._columns[name].append([])
        self._events([event])

    def _add(self, *values: Any) -> None:
        for name, value in zip(FRAGMENT.names[:8], values, strict=True):
            self._columns[name].append(value)

    def _events(self, events: list[Event]) -> None:
        columns = self._columns
        if not events:
            for name in EVENTS:
                columns[name].append(())
            return
        for name, values in zip(EVENTS, zip(*events, strict=True), strict=True):
            columns[name].append(values)

    def take(self) -> pa.RecordBatch:
        """The batch so far; gathering begins anew."""
        arrays = [pa.array(self._columns[f.name], f.type) for f in FRAGMENT]
        self._columns = {name: [] for name in FRAGMENT.names}
        return pa.RecordBatch.from_arrays(arrays, schema=FRAGMENT)


#: item, type, grade, dwell in seconds, time, id, row: in the order of ``EVENTS``.
Event = tuple[str, str, float | None, float | None, float | None, str | None, int]


def event(
    item: str, kind: str, row: int, *, grade: float | None = None, dwell_s: float | None = None,
    time: float = math.nan, name: str | None = None,
) -> Event:  # fmt: skip
    """One event."""
    return item, kind, grade, dwell_s, _known(time), name, row


def _known(time: float) -> float | None:
    return None if math.isnan(time) else time
