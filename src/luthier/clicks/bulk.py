"""Sessions into a ``ClickStore`` many at a time, as of a log that was imported."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from luthier.clicks.sessions import Sessions
from luthier.clicks.store import ClickStore, collecting, once
from luthier.clicks.tables import events, sessions

#: Sessions that are kept together, or not at all.
_CHUNK = 1000
#: Names that one statement may ask for; SQLite of old takes 999.
_ASKED = 500


@dataclass(frozen=True)
class Imported:
    """What was kept. known: sessions that were there before, and stay as they are."""

    sessions: int
    events: int
    known: int


def import_sessions(
    store: ClickStore, new: Sessions, progress: Callable[[int, int], None] | None = None
) -> Imported:
    """Keep sessions with their events in the batch that collects, of any age.

    A session that is known, of whatever batch, stays as it was, with its events. May be killed
    and called again: what is kept is kept whole. progress: told (sessions done, sessions).
    """
    kept = told = 0
    for start in range(0, len(new), _CHUNK):
        rows = new.table.slice(start, _CHUNK).to_pylist()
        some, some_events = _keep(store, rows)
        kept, told = kept + some, told + some_events
        if progress is not None:
            progress(start + len(rows), len(new))
    return Imported(kept, told, len(new) - kept)


def _keep(store: ClickStore, rows: list[dict[str, Any]]) -> tuple[int, int]:
    """One transaction; how many sessions and events were new."""
    first = {row["session"]: row for row in reversed(rows)}  # of a repeated id the first
    with store.database.write() as connection:
        batch = collecting(connection)
        known = _known(connection, list(first))
        fresh = {name: row for name, row in first.items() if name not in known}
        if not fresh:
            return 0, 0
        listed = [_session(row, batch) for row in reversed(fresh.values())]
        insert = once(store.database, sessions).returning(sessions.c.session_id, sessions.c.number)
        numbers = {row.session_id: row.number for row in connection.execute(insert, listed)}
        found = [
            {"session_number": numbers[name], **event}
            for name, row in reversed(fresh.items())
            if name in numbers  # else another was faster
            for event in _events(row)
        ]
        if found:
            connection.execute(once(store.database, events), found)
        return len(numbers), len(found)


def _known(connection: sa.Connection, names: list[str]) -> set[str]:
    found: set[str] = set()
    for at in range(0, len(names), _ASKED):
        asked = sessions.c.session_id.in_(names[at : at + _ASKED])
        found |= set(connection.scalars(sa.select(sessions.c.session_id).where(asked)))
    return found


def _session(row: dict[str, Any], batch: str) -> dict[str, Any]:
    """A row of the table. Results stand in the order of their positions."""
    results = [
        {"object_id": row["items"][i]}
        | ({} if not _is_number(score := row["scores"][i]) else {"rank": score})
        for i in _order(row)
    ]
    return {
        "session_id": row["session"], "batch_id": batch, "search_query": row["query"],
        "search_results": json.dumps(results), "search_meta": None, "user_id": row["user"],
        "created_at": row["time"] if _is_number(row["time"]) else time.time(),
        "is_irrelevant": row["irrelevant"],
    }  # fmt: skip


def _order(row: dict[str, Any]) -> list[int]:
    return sorted(range(len(row["items"])), key=lambda i: row["positions"][i])


def _events(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table. An event without an id has its number within the session."""
    found: dict[str, dict[str, Any]] = {}
    for i, place in enumerate(row["event_results"]):
        meta = {
            name: value
            for name, value in (
                ("grade", row["event_grades"][i]), ("dwell_time", row["event_dwells"][i])
            )
            if _is_number(value)
        }  # fmt: skip
        at = row["event_times"][i]
        name = row["event_ids"][i] or f"{i}"
        at = at if _is_number(at) else row["time"] if _is_number(row["time"]) else time.time()
        event = {
            "event_id": name, "object_id": row["items"][place],
            "event_type": row["event_types"][i] or "click", "created_at": at,
            "meta": json.dumps(meta) if meta else None,
        }  # fmt: skip
        found.setdefault(name, event)
    return list(found.values())


def _is_number(value: Any) -> bool:
    return value is not None and not math.isnan(value)
