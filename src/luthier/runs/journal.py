"""The events of a run: appended under the fence of the lease, followed and replayed by number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from luthier.errors import LeaseLost
from luthier.runs.database import Database
from luthier.runs.records import Event
from luthier.runs.tables import events, now, runs


class Journal:
    """Events are numbered from 1 without gaps, and only ever added.

    Kinds: ``status`` {status, reason, details}, written by the ledger itself with every
    transition; ``log`` {level, message}; ``stage`` {name}; ``step`` {step, steps, epoch, loss,
    learning_rate, samples_per_s, eta_s}; ``evaluation``, ``checkpoint`` {step}, ``report``.
    """

    database: Database

    def append(self, run_id: str, epoch: int, new: Iterable[tuple[str, Mapping[str, Any]]]) -> int:
        """Append (kind, data) pairs in one transaction; the number of the last one.

        Raises LeaseLost when the run is not mine any more: then none was written.
        """
        with self.database.write() as connection:
            held = (
                sa.select(runs.c.id)
                .where(runs.c.id == run_id, runs.c.epoch == epoch, runs.c.status == "STARTED")
                .with_for_update()
            )
            if connection.execute(held).one_or_none() is None:
                raise LeaseLost("another worker owns the run now", where=run_id)
            seq = 0
            for kind, data in new:
                seq = add_event(connection, run_id, epoch, kind, data)
            return seq

    def events(
        self,
        run_id: str,
        after: int = 0,
        limit: int = 1000,
        kinds: Iterable[str] | None = None,
    ) -> list[Event]:
        """The events with numbers above ``after``, in order, at most ``limit`` of them."""
        query = (
            sa.select(events)
            .where(events.c.run_id == run_id, events.c.seq > after)
            .order_by(events.c.seq)
            .limit(limit)
        )
        if kinds is not None:
            query = query.where(events.c.kind.in_(list(kinds)))
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        return [Event(row.seq, row.at, row.epoch, row.kind, json.loads(row.data)) for row in rows]

    def last_event(self, run_id: str, kind: str) -> Event | None:
        """The newest event of a kind."""
        query = (
            sa.select(events)
            .where(events.c.run_id == run_id, events.c.kind == kind)
            .order_by(events.c.seq.desc())
            .limit(1)
        )
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return Event(row.seq, row.at, row.epoch, row.kind, json.loads(row.data))


def add_event(
    connection: sa.Connection, run_id: str, epoch: int, kind: str, data: Mapping[str, Any]
) -> int:
    """Add an event within a transaction that holds the run's row."""
    last = sa.select(sa.func.coalesce(sa.func.max(events.c.seq), 0)).where(
        events.c.run_id == run_id
    )
    seq = int(connection.execute(last).scalar_one()) + 1
    connection.execute(
        sa.insert(events).values(
            run_id=run_id, seq=seq, at=now(), epoch=epoch, kind=kind, data=as_json(data)
        )
    )
    return seq


def told(
    connection: sa.Connection,
    run_id: str,
    epoch: int,
    status: str,
    reason: str | None,
    details: str,
) -> None:
    """Write a transition into the run's history, in the transaction that makes it."""
    add_event(
        connection,
        run_id,
        epoch,
        "status",
        {"status": status, "reason": reason, "details": details},
    )


def as_json(data: Mapping[str, Any]) -> str:
    """JSON that any reader accepts: infinities and NaN, which JSON lacks, become text; so does
    what is no JSON at all, because a run never dies of what it tells."""
    try:
        return json.dumps(data, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(_plain(data), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item") and getattr(value, "size", 0) == 1:
        return _plain(value.item())  # a NumPy scalar
    return str(value)
