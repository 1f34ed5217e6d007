"""Metarank's events: ``ranking`` says what was shown (``id, items: [{id, relevancy?}], fields``
with the query), ``interaction`` what was done (``ranking, item, type``). Other events (``item``,
``user``) describe things and are passed over."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.clicks.fragments import Fragments, event
from luthier.clicks.readers.json_records import BadRecord, batches, listed, name, number, text, when
from luthier.clicks.rejected import Rejected

#: A ranking is a whole search.
WHOLE = True
_PASSED_OVER = ("item", "user")


def read(path: Path, rejected: Rejected) -> Iterator[pa.RecordBatch]:
    """Fragments of a file of events."""
    return batches(path, rejected, _take)


def _take(record: dict[str, Any], row: int, fragments: Fragments, rejected: Rejected) -> None:
    kind = record.get("event")
    if kind == "ranking":
        _ranking(record, row, fragments)
    elif kind == "interaction":
        _interaction(record, row, fragments)
    elif kind not in _PASSED_OVER:
        raise BadRecord("an event of no known kind", "event", repr(kind)[:40])


def _ranking(record: dict[str, Any], row: int, fragments: Fragments) -> None:
    key = name(record, "id")
    query = name(_fields(record), "query")
    items: list[str] = []
    scores: list[float | None] = []
    for shown in listed(record, "items"):
        if not isinstance(shown, dict):
            raise BadRecord("an item is no object", "items", repr(shown)[:40])
        item = name(shown, "id")
        items.append(item)
        inner = _fields(shown)
        scores.append(number(shown if "relevancy" in shown else inner, "relevancy"))
    fragments.shown(
        key=key, row=row, query=query, items=items, positions=[None] * len(items), scores=scores,
        user=text(record, "user"), time=when(record, "timestamp"), events=[],
    )  # fmt: skip


def _interaction(record: dict[str, Any], row: int, fragments: Fragments) -> None:
    key, item = name(record, "ranking"), name(record, "item")
    fields = _fields(record)
    fragments.happened(
        key=key, row=row, user=text(record, "user"),
        event=event(
            item, text(record, "type") or "click", row,
            grade=number(fields, "grade"), dwell_s=number(fields, "dwell_time"),
            time=when(record, "timestamp"), name=text(record, "id"),
        ),
    )  # fmt: skip


def _fields(record: dict[str, Any]) -> dict[str, Any]:
    """``fields: [{name, value}]`` as a dict."""
    found = {}
    for field in listed(record, "fields"):
        if not isinstance(field, dict) or not isinstance(field.get("name"), str):
            raise BadRecord("a field without a name", "fields", repr(field)[:40])
        found[field["name"]] = field.get("value")
    return found
