"""The workers that are alive, and what they can do."""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from luthier.runs import process
from luthier.runs.database import Database
from luthier.runs.records import WorkerRecord
from luthier.runs.tables import now, workers

#: A worker on another machine that was silent for this long is taken for dead.
SILENT_S = 15.0


class Workers:
    """Who is there to work. A dead process of this machine does not count, at once."""

    database: Database

    def register_worker(
        self, me: process.Process, *, kind: str = "standing", devices: Collection[str] = ("cpu",)
    ) -> str:
        """Make a worker known; its id. It must refresh before SILENT_S have passed."""
        worker_id = secrets.token_hex(8)
        with self.database.write() as connection:
            connection.execute(
                sa.insert(workers).values(
                    id=worker_id,
                    process=str(me),
                    kind=kind,
                    devices=json.dumps(list(devices)),
                    registered_at=now(),
                    expires_at=now() + SILENT_S,
                )
            )
        return worker_id

    def refresh_worker(self, worker_id: str, devices: Collection[str] | None = None) -> bool:
        """Say that a worker is alive, and what it has, where that became clearer; False when
        it was forgotten and must register anew."""
        values: dict[str, Any] = {"expires_at": now() + SILENT_S}
        if devices is not None:
            values["devices"] = json.dumps(list(devices))
        query = (
            sa.update(workers)
            .where(workers.c.id == worker_id)
            .values(values)
            .returning(workers.c.id)
        )
        with self.database.write() as connection:
            return connection.execute(query).one_or_none() is not None

    def forget_worker(self, worker_id: str) -> None:
        """Remove a worker, which is about to end."""
        with self.database.write() as connection:
            connection.execute(sa.delete(workers).where(workers.c.id == worker_id))

    def forget_dead_workers(self) -> int:
        """Remove the workers that are gone; how many there were."""
        with self.database.read() as connection:
            gone = [row.id for row in _all(connection) if not _alive(row)]
        if gone:
            with self.database.write() as connection:
                connection.execute(sa.delete(workers).where(workers.c.id.in_(gone)))
        return len(gone)

    def workers(self) -> list[WorkerRecord]:
        """The workers that are alive."""
        with self.database.read() as connection:
            rows = [row for row in _all(connection) if _alive(row)]
        return [
            WorkerRecord(
                row.id, row.process, row.kind, tuple(json.loads(row.devices)), row.registered_at
            )
            for row in rows
        ]

    def devices(self) -> set[str]:
        """The devices that any living worker has."""
        return {device for worker in self.workers() for device in worker.devices}


def _all(connection: sa.Connection) -> list[Any]:
    query = sa.select(workers, now().label("now")).order_by(workers.c.registered_at)
    return list(connection.execute(query).all())


def _alive(row: Any) -> bool:
    """By its pid on this machine, where a busy or stopped one still counts; else by the clock."""
    dead = process.is_dead(process.Process.parse(row.process))
    return bool(row.expires_at > row.now) if dead is None else not dead
