"""Embedding Studio's sessions: ``session_id, search_query, search_results: [{object_id, rank?,
meta?}], user_id?, created_at?, is_irrelevant?, events: [{event_id?, object_id, event_type?,
created_at?, meta?}]``, a session a record. ``rank`` is the score that the search gave, the place
in the list is the position. ``grade`` and ``dwell_time`` (seconds) may stand in an event or in its
meta. Of a repeated id the first record counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.clicks.fragments import Event, Fragments, event
from luthier.clicks.readers.json_records import (
    BadRecord,
    batches,
    inner,
    listed,
    name,
    number,
    text,
    when,
)
from luthier.clicks.rejected import Rejected

#: A record is a whole search: of several with one id the first counts.
WHOLE = True


def read(path: Path, rejected: Rejected) -> Iterator[pa.RecordBatch]:
    """Fragments of a file of sessions."""
    return batches(path, rejected, _take)


def _take(record: dict[str, Any], row: int, fragments: Fragments, rejected: Rejected) -> None:
    key, query = name(record, "session_id"), name(record, "search_query")
    items, scores = _results(record)
    fragments.shown(
        key=key, row=row, query=query, items=items, positions=[None] * len(items),
        scores=scores, user=text(record, "user_id"),
        time=when(record, "created_at"), irrelevant=bool(record.get("is_irrelevant")),
        events=_events(record, row, rejected),
    )  # fmt: skip


def _results(record: dict[str, Any]) -> tuple[list[str], list[float | None]]:
    items: list[str] = []
    scores: list[float | None] = []
    for result in listed(record, "search_results"):
        if not isinstance(result, dict):
            raise BadRecord("a result is no object", "search_results", repr(result)[:40])
        item = name(result, "object_id")
        items.append(item)
        scores.append(number(result, "rank"))
    return items, scores


def _events(record: dict[str, Any], row: int, rejected: Rejected) -> list[Event]:
    """A bad event costs that event, not its session."""
    found = []
    for raw in listed(record, "events"):
        try:
            if not isinstance(raw, dict):
                raise BadRecord("an event is no object", "events", repr(raw)[:40])
            found.append(_event(raw, row))
        except BadRecord as bad:
            rejected.add(bad.reason, row=row, column=f"events.{bad.column}", detail=bad.detail)
    return found


def _event(raw: dict[str, Any], row: int) -> Event:
    item, meta = name(raw, "object_id"), inner(raw, "meta")
    return event(
        item,
        text(raw, "event_type") or "click",
        row,
        grade=number(raw if "grade" in raw else meta, "grade"),
        dwell_s=number(raw if "dwell_time" in raw else meta, "dwell_time"),
        time=when(raw, "created_at"),
        name=text(raw, "event_id"),
    )
