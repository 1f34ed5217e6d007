"""The children of searches: how they stand, and which may go on."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from luthier.errors import Conflict, LeaseLost
from luthier.runs.database import Database
from luthier.runs.journal import add_event
from luthier.runs.leases import PAUSED
from luthier.runs.tables import TERMINAL, alias_changes, now, runs

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

    @contextmanager
    def giving_up(
        self, search_id: str, epoch: int, trial_id: str, others: Collection[str]
    ) -> Iterator[str | None]:
        """Hold a trial that has ended for as long as the block lasts: nobody resumes it, and no
        alias is set. Yields the id of its artifact where nothing refers to that: no run but
        ``others`` has the same, none that was submitted since names it in its spec, and no alias
        stands for it or stood for it, and could be rolled back to it. None otherwise.

        Raises LeaseLost where another leads the search, Conflict where the trial is at work.
        """
        with self.database.write() as connection:
            leads = (runs.c.id == search_id, runs.c.epoch == epoch, runs.c.status == "STARTED")
            if connection.execute(sa.select(runs.c.id).where(*leads)).one_or_none() is None:
                raise LeaseLost("another worker leads the search now", where=search_id)
            query = sa.select(runs).where(runs.c.id == trial_id).with_for_update()
            trial = connection.execute(query).one_or_none()
            if trial is not None and trial.status not in TERMINAL:
                raise Conflict("the trial is at work again", where=trial_id)
            found = trial.artifact_id if trial is not None else None
            if found is not None and _is_referred_to(connection, trial, others):
                found = None
            yield found

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


def _is_referred_to(connection: sa.Connection, trial: Any, others: Collection[str]) -> bool:
    """Whether anybody but ``others`` refers to the artifact of a trial."""
    if connection.dialect.name == "postgresql":  # SQLite has one writer at a time anyway
        connection.execute(sa.text(f"LOCK TABLE {alias_changes.name} IN SHARE MODE"))
    artifact_id = trial.artifact_id
    same = sa.select(runs.c.id).where(runs.c.artifact_id == artifact_id, runs.c.id != trial.id)
    if not set(connection.execute(same).scalars()) <= set(others):
        return True
    # Who names it was submitted after it was there: few of many runs have to be read.
    names = (runs.c.created_at >= trial.started_at, runs.c.spec.contains(artifact_id))
    aliased = sa.select(alias_changes.c.name).where(alias_changes.c.artifact_id == artifact_id)
    queries = (sa.select(runs.c.id).where(*names), aliased)
    return any(connection.execute(query.limit(1)).first() is not None for query in queries)
