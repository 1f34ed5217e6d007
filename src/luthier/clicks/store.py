"""Where sessions and their events come in, one by one, and go out in batches.

One batch collects; a release closes it, and what comes then collects in the next. The functions
are those of Embedding Studio's routes, with their names of fields, for a server to mount. All of
them may be repeated: a session is kept as it came first, an event once, a release as it was.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from luthier.clicks.readers.json_records import BadRecord, inner, listed, name, number, text, when
from luthier.clicks.sessions import Sessions
from luthier.clicks.tables import LEGAL, batches, events, migrate, sessions
from luthier.errors import DataError, IllegalTransition, NotFound
from luthier.runs.database import Database

Record = dict[str, Any]


class ClickStore:
    """Sessions in a database: ``sqlite:///path`` or ``postgresql://…``, that of a home for one.

    Raises StoreError where it cannot be opened.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        migrate(self.database)

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.database.close()

    # Coming in

    def register_session(
        self, session_id: str, search_query: str, search_results: Sequence[Mapping[str, Any]],
        search_meta: Mapping[str, Any] | None = None, user_id: str | None = None,
        created_at: Any = None,
    ) -> Record:  # fmt: skip
        """Keep a search and what it showed: ``{object_id, rank?, meta?}`` each. Of a repeated id
        the first copy stays. Returns the session that is kept. Raises DataError."""
        fields = {
            "session_id": session_id, "search_query": search_query, "user_id": user_id,
            "search_results": list(search_results), "search_meta": search_meta,
            "created_at": created_at,
        }  # fmt: skip
        row = _checked(_session_row, fields)
        with self.database.write() as connection:
            row["batch_id"] = collecting(connection)
            connection.execute(once(self.database, sessions).values(row))
        return self.get_session(session_id)

    def push_events(self, session_id: str, new: Iterable[Mapping[str, Any]]) -> int:
        """Keep events ``{event_id, object_id, event_type?, created_at?, meta?}`` of a session; those
        that were kept before are passed over. Returns how many were new.

        All or none are kept. Raises NotFound for the session; DataError for an object that it
        did not show; IllegalTransition for new events once its batch was released, which would
        change what is learned from.
        """  # noqa: E501
        rows = [_checked(_event_row, dict(event)) for event in new]
        with self.database.write() as connection:
            kept = _find(connection, session_id)
            shown = {result["object_id"] for result in json.loads(kept.search_results)}
            for place, row in enumerate(rows):
                if row["object_id"] not in shown:
                    message = f"the session did not show {row['object_id']!r}"
                    raise DataError(message, row=place + 1, column="object_id")
            query = sa.select(events.c.event_id).where(events.c.session_number == kept.number)
            known = set(connection.scalars(query))
            fresh = {row["event_id"]: row for row in reversed(rows)}
            fresh = {event: row for event, row in fresh.items() if event not in known}
            if fresh and _state(connection, kept.batch_id) != "collecting":
                message = f"the batch of the session '{session_id}' was released"
                raise IllegalTransition(message, hint="its events came too late")
            statement = once(self.database, events)
            for row in reversed(fresh.values()):
                connection.execute(statement.values(session_number=kept.number, **row))
        return len(fresh)

    def mark_irrelevant(self, session_id: str) -> None:
        """Nothing of what it showed fitted. Raises NotFound, and IllegalTransition as above."""
        with self.database.write() as connection:
            kept = _find(connection, session_id)
            if kept.is_irrelevant:
                return
            if _state(connection, kept.batch_id) != "collecting":
                raise IllegalTransition(f"the batch of the session '{session_id}' was released")
            where = sessions.c.number == kept.number
            connection.execute(sa.update(sessions).where(where).values(is_irrelevant=True))

    # Looking

    def get_session(self, session_id: str) -> Record:
        """A session with ``is_irrelevant`` and ``events``. Raises NotFound."""
        with self.database.read() as connection:
            row = _find(connection, session_id)
            return _records(connection, [row])[0]

    def batch_sessions(self, batch_id: str, after_number: int = 0, limit: int = 10) -> Record:
        """A page of a released batch: ``batch_id, last_number, sessions``. Raises NotFound, and
        IllegalTransition while it collects: pages of what still grows would not be whole."""
        with self.database.read() as connection:
            if _state(connection, batch_id) == "collecting":
                raise IllegalTransition(f"the batch '{batch_id}' collects", hint="release it first")
            query = (
                sa.select(sessions)
                .where(sessions.c.batch_id == batch_id, sessions.c.number > after_number)
                .order_by(sessions.c.number)
                .limit(limit)
            )
            rows = connection.execute(query).all()
            last = rows[-1].number if rows else after_number
            found = _records(connection, rows)
        return {"batch_id": batch_id, "last_number": last, "sessions": found}

    def load_batch(self, batch_id: str) -> Sessions:
        """All sessions of a released batch, in columns. Raises as ``batch_sessions`` does."""
        rows: list[Record] = []
        after = 0
        while True:
            page = self.batch_sessions(batch_id, after, 1000)
            if not page["sessions"]:
                return Sessions.of(rows)
            rows += [_columns(record) for record in page["sessions"]]
            after = page["last_number"]

    def list_batches(self) -> list[Record]:
        """All batches, the oldest first: ``batch_id, state, sessions, release_id, released_at``."""
        count = sa.select(sessions.c.batch_id, sa.func.count().label("sessions"))
        counted = count.group_by(sessions.c.batch_id).subquery()
        query = sa.select(batches, sa.func.coalesce(counted.c.sessions, 0).label("sessions"))
        joined = query.outerjoin(counted, counted.c.batch_id == batches.c.id)
        with self.database.read() as connection:
            rows = connection.execute(joined.order_by(batches.c.created_at, batches.c.id)).all()
        return [
            {"batch_id": row.id, "state": row.state, "sessions": row.sessions,
             "release_id": row.release_id, "released_at": row.released_at}
            for row in rows
        ]  # fmt: skip

    # Batches

    def release_batch(self, release_id: str) -> Record:
        """Close the batch that collects: ``release_id, batch_id, released_at``. The same id again,
        at whatever time and from wherever, gives the same batch. Raises NotFound where no
        session has come since the last release."""
        with self.database.write() as connection:
            return release(connection, release_id)

    def set_batch_state(self, batch_id: str, state: str) -> None:
        """A released batch is trained with, given back, archived. Raises NotFound,
        IllegalTransition."""
        with self.database.write() as connection:
            before = _state(connection, batch_id, lock=True)
            if before == state:
                return
            if (before, state) not in LEGAL:
                raise IllegalTransition(f"a batch goes not from {before} to {state}")
            where = batches.c.id == batch_id
            connection.execute(sa.update(batches).where(where).values(state=state))


def release(connection: sa.Connection, release_id: str) -> Record:
    """``ClickStore.release_batch`` within a transaction."""
    where = batches.c.state == "collecting"
    open_batch = connection.scalar(sa.select(batches.c.id).where(where).with_for_update())
    query = sa.select(batches).where(batches.c.release_id == release_id)
    done = connection.execute(query).one_or_none()
    if done is not None:
        return _release(done)
    if open_batch is None:
        raise NotFound("no batch collects", hint="no session came since the last release")
    values = {"state": "released", "release_id": release_id, "released_at": time.time()}
    connection.execute(sa.update(batches).where(batches.c.id == open_batch).values(values))
    return _release(connection.execute(query).one())


# --- rows ---------------------------------------------------------------------------------------


def _session_row(fields: Record) -> Record:
    results = []
    for result in listed(fields, "search_results"):
        if not isinstance(result, Mapping):
            raise BadRecord("a result is no object", "search_results", repr(result)[:40])
        found = {"object_id": name(dict(result), "object_id")}
        rank, meta = number(dict(result), "rank"), result.get("meta")
        results.append(found | ({} if rank is None else {"rank": rank})
                       | ({} if meta is None else {"meta": meta}))  # fmt: skip
    if len({result["object_id"] for result in results}) < len(results):
        raise BadRecord("a result comes twice", "search_results")
    meta = inner(fields, "search_meta") or None
    return {
        "session_id": name(fields, "session_id"), "search_query": name(fields, "search_query"),
        "search_results": json.dumps(results), "search_meta": meta and json.dumps(meta),
        "user_id": text(fields, "user_id"), "created_at": _moment(fields), "is_irrelevant": False,
    }  # fmt: skip


def _event_row(fields: Record) -> Record:
    meta = inner(fields, "meta") or None
    return {
        "event_id": name(fields, "event_id"), "object_id": name(fields, "object_id"),
        "event_type": text(fields, "event_type") or "click", "created_at": _moment(fields),
        "meta": meta and json.dumps(meta),
    }  # fmt: skip


def _moment(fields: Record) -> float:
    found = when(fields, "created_at")
    return time.time() if math.isnan(found) else found


def _checked(make: Any, fields: Record) -> Record:
    try:
        found: Record = make(fields)
        return found
    except BadRecord as bad:
        reason = f"{bad.reason} ({bad.detail})" if bad.detail else bad.reason
        raise DataError(reason, column=bad.column) from None
    except TypeError as error:  # of JSON
        raise DataError(f"not JSON: {error}") from None


def once(database: Database, table: sa.Table) -> Any:
    """An insert that leaves a row with the same key as it is."""
    from sqlalchemy.dialects import postgresql, sqlite

    insert = sqlite.insert if database.is_sqlite else postgresql.insert
    return insert(table).on_conflict_do_nothing()


def collecting(connection: sa.Connection) -> str:
    """The batch that collects, made if there is none; it is not released before this transaction
    ends."""
    query = sa.select(batches.c.id).where(batches.c.state == "collecting")
    found = connection.scalar(query.with_for_update(read=True))
    if found is None:
        values = {"id": uuid.uuid4().hex, "state": "collecting", "created_at": time.time()}
        if connection.dialect.name == "postgresql":  # two may find none at the same time
            from sqlalchemy.dialects.postgresql import insert

            connection.execute(insert(batches).values(values).on_conflict_do_nothing())
        else:
            connection.execute(sa.insert(batches).values(values))
        found = connection.scalar(query.with_for_update(read=True))
    return str(found)


def _find(connection: sa.Connection, session_id: str) -> sa.Row[Any]:
    query = sa.select(sessions).where(sessions.c.session_id == session_id)
    found = connection.execute(query).one_or_none()
    if found is None:
        raise NotFound(f"no session is called '{session_id}'")
    return found


def _state(connection: sa.Connection, batch_id: str, *, lock: bool = False) -> str:
    query = sa.select(batches.c.state).where(batches.c.id == batch_id)
    found = connection.scalar(query.with_for_update(read=not lock))
    if found is None:
        raise NotFound(f"no batch is called '{batch_id}'")
    return str(found)


def _release(row: sa.Row[Any]) -> Record:
    return {"release_id": row.release_id, "batch_id": row.id, "released_at": row.released_at}


def _records(connection: sa.Connection, rows: Sequence[sa.Row[Any]]) -> list[Record]:
    """Sessions as the routes show them."""
    numbers = [row.number for row in rows]
    query = sa.select(events).where(events.c.session_number.in_(numbers)).order_by(events.c.number)
    by_session: dict[int, list[Record]] = {}
    for event in connection.execute(query):
        found = {"event_id": event.event_id, "object_id": event.object_id,
                 "event_type": event.event_type, "created_at": event.created_at,
                 "meta": event.meta and json.loads(event.meta)}  # fmt: skip
        by_session.setdefault(event.session_number, []).append(found)
    return [
        {
            "number": row.number, "session_id": row.session_id, "batch_id": row.batch_id,
            "search_query": row.search_query, "search_results": json.loads(row.search_results),
            "search_meta": row.search_meta and json.loads(row.search_meta),
            "user_id": row.user_id, "created_at": row.created_at,
            "is_irrelevant": row.is_irrelevant, "events": by_session.get(row.number, []),
        }
        for row in rows
    ]  # fmt: skip


def _columns(record: Record) -> Record:
    """A session as a row of ``sessions.SCHEMA``."""
    items = [result["object_id"] for result in record["search_results"]]
    place = {item: i for i, item in enumerate(items)}
    found = record["events"]
    metas = [event["meta"] or {} for event in found]
    return {
        "session": record["session_id"], "query": record["search_query"],
        "user": record["user_id"], "time": record["created_at"], "items": items,
        "irrelevant": record["is_irrelevant"],
        "scores": [result.get("rank") for result in record["search_results"]],
        "event_results": [place[event["object_id"]] for event in found],
        "event_types": [event["event_type"] for event in found],
        "event_grades": [_number(meta, "grade") for meta in metas],
        "event_dwells": [_number(meta, "dwell_time") for meta in metas],
        "event_times": [event["created_at"] for event in found],
        "event_ids": [event["event_id"] for event in found],
    }  # fmt: skip


def _number(meta: Record, field: str) -> float | None:
    """Meta holds whatever the sender likes: what is no number there says nothing here."""
    try:
        return number(meta, field)
    except BadRecord:
        return None
