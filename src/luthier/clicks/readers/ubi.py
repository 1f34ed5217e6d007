"""OpenSearch User Behavior Insights: ``ubi_queries`` with what was found, and ``ubi_events``.

A query record has ``query_id, user_query, query_response_hit_ids, timestamp, client_id``; an event
``action_name, query_id, timestamp, client_id, event_attributes: {object: {object_id},
position: {ordinal}, dwell_time?}``. They are one file, or two, as they are two indexes. Actions
without an object (``on_search``, …) are no events on an item and are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.clicks.fragments import Fragments, event
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

#: A record of ``ubi_queries`` is a whole search.
WHOLE = True


def read(
    path: Path, rejected: Rejected, events: Path | None = None
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    """Fragments of the searches, and of the events in a file of their own if there is one."""
    yield from batches(path, rejected, _take)
    if events is not None:
        yield from batches(events, rejected, _take)


def _take(record: dict[str, Any], row: int, fragments: Fragments, rejected: Rejected) -> None:
    if "action_name" in record:
        _event(record, row, fragments)
    else:
        _query(record, row, fragments)


def _query(record: dict[str, Any], row: int, fragments: Fragments) -> None:
    key = name(record, "query_id")
    query = name(record, "user_query")
    items = []
    for hit in listed(record, "query_response_hit_ids"):
        if not isinstance(hit, str | int) or hit == "":
            raise BadRecord("a hit is no id", "query_response_hit_ids", repr(hit)[:40])
        items.append(str(hit))
    fragments.shown(
        key=key, row=row, query=query, items=items, positions=[None] * len(items),
        scores=[None] * len(items), user=text(record, "client_id"),
        time=when(record, "timestamp"), events=[],
    )  # fmt: skip


def _event(record: dict[str, Any], row: int, fragments: Fragments) -> None:
    key, action = name(record, "query_id"), name(record, "action_name")
    attributes = inner(record, "event_attributes")
    item = text(inner(attributes, "object"), "object_id")
    if item is None:
        return
    fragments.happened(
        key=key, row=row, user=text(record, "client_id"),
        event=event(
            item, action, row, grade=number(attributes, "grade"),
            dwell_s=number(attributes, "dwell_time"), time=when(record, "timestamp"),
            name=text(record, "event_id"),
        ),
    )  # fmt: skip
