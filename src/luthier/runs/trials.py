"""The children of searches: how they stand, and which may go on."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from luthier.errors import Conflict, LeaseLost
from luthier.runs.database import Database
from luthier.runs.journal import add_event
from luthier.runs.leases import PAUSED
from luthier.runs.tables import TERMINAL, now, runs

#: The reason of a trial that was cancelled because its search was.
WITH_SEARCH = "search"


@dataclass(frozen=True)
class TrialRecord:
    """How a trial stands. Its spec, which costs time to read, is left out."""

    id: str
    name: str
    key: str | None
    status: str
    reason: str | None
    details: str
    artifact_id: str | None
    metrics: dict[str, Any]
    pause_after: int | None
    started_at: float | None
    finished_at: float | None

    @property
    def ended(self) -> bool:
        """Whether it is FINISHED, FAILED or CANCELLED."""
        return self.status in TERMINAL

    @property
    def paused(self) -> bool:
        """Whether it waits to be let go on."""
        return self.status == "CREATED" and self.reason == PAUSED


class Trials:
    """What a search asks of its children."""

    database: Database

    def trials(self, search_id: str, ids: Collection[str] | None = None) -> list[TrialRecord]:
        """The trials of a search (those of ``ids`` only), in the order of their making."""
        names = list(TrialRecord.__dataclass_fields__)
        query = sa.select(*(runs.c[name] for name in names)).where(runs.c.parent_id == search_id)
        if ids is not None:
            query = query.where(runs.c.id.in_(list(ids)))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(runs.c.created_at, runs.c.id)).all()
        return [
            TrialRecord(
                **{**row._mapping, "metrics": json.loads(row.metrics) if row.metrics else {}}
            )
            for row in rows
        ]

    def let_go(self, run_id: str, pause_after: int | None) -> bool:
        """Let a paused trial go on until it has had so many evaluations (None: to its end);
        whether it was paused."""
        query = (
            sa.update(runs)
            .where(runs.c.id == run_id, runs.c.status == "CREATED", runs.c.reason == PAUSED)
            .values(reason="promoted", pause_after=pause_after, updated_at=now())
            .returning(runs.c.epoch)
        )
        with self.database.write() as connection:
            epoch = connection.execute(query).scalar_one_or_none()
            if epoch is None:
                return False
            until = "its end" if pause_after is None else f"evaluation {pause_after}"
            message = f"the trial is among the best: it goes on until {until}"
            add_event(connection, run_id, epoch, "log", {"level": "info", "message": message})
        return True

    def trials_to_run(self) -> int:
        """How many trials of all searches run or wait for a worker."""
        query = (
            sa.select(sa.func.count())
            .select_from(runs)
            .where(
                runs.c.parent_id.is_not(None),
                runs.c.status.in_(["CREATED", "STARTED"]),
                sa.func.coalesce(runs.c.reason, "") != PAUSED,
            )
        )
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def _open_trials(self, connection: sa.Connection, search_id: str) -> list[str]:
        query = sa.select(runs.c.id).where(
            runs.c.parent_id == search_id, runs.c.status.in_(["CREATED", "STARTED"])
        )
        return list(connection.execute(query).scalars())


def refuse_trial(connection: sa.Connection, search_id: str, epoch: int) -> None:
    """Within the transaction that would make a trial: raises LeaseLost where another leads the
    search now, and Conflict where it was asked to stop."""
    query = (
        sa.select(runs.c.cancel_requested_at)
        .where(runs.c.id == search_id, runs.c.epoch == epoch, runs.c.status == "STARTED")
        .with_for_update()
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise LeaseLost("another worker leads the search now, or it was ended", where=search_id)
    if row.cancel_requested_at is not None:
        raise Conflict("the search was asked to stop: it begins no trial any more", where=search_id)
