"""What workers do: claim a run, keep its lease, end it. Everything is fenced by the epoch.

A claim raises the run's epoch by one. Every later word about the run names the epoch; who has
lost the lease names an old one and is refused by the database, however late it wakes up
(Gray & Cheriton, "Leases", SOSP 1989; the fence is the epoch, not the clock).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa

from luthier.errors import LeaseLost
from luthier.runs import process
from luthier.runs.database import Database
from luthier.runs.journal import as_json, told
from luthier.runs.records import Beat, Claim, RunRecord, run_record
from luthier.runs.tables import experiments, now, runs

#: A run that crashed this often in a row, without a new checkpoint, is quarantined.
MAX_CRASHES = 3
LEASE_S = 30.0

#: The reason of a trial that is CREATED and put aside.
PAUSED = "paused"


class Leases:
    """The verbs of workers. ``holder`` is the process that works on the run."""

    database: Database

    def waiting(self, devices: Collection[str], kind: str | None = None) -> int:
        """How many runs (of a kind: training or search) a worker with these devices could
        claim now."""
        query = sa.select(sa.func.count()).select_from(runs).where(*_claimable(devices, kind))
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def claim(
        self,
        holder: process.Process,
        *,
        devices: Collection[str] = ("cpu",),
        worker_id: str | None = None,
        lease_s: float = LEASE_S,
        run_id: str | None = None,
        kind: str | None = None,
    ) -> Claim | None:
        """Take the next run (of a kind, or that very one), if any: from now on it is ours.

        Runs that crashed wait behind the others, so that they hold nobody up.
        """
        oldest = (
            sa.select(runs.c.id)
            .where(*_claimable(devices, kind))
            .order_by(runs.c.crashes, runs.c.created_at, runs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        if run_id is not None:
            oldest = oldest.where(runs.c.id == run_id)
        take = (
            sa.update(runs)
            .where(runs.c.id == oldest.scalar_subquery(), runs.c.status == "CREATED")
            .values(
                status="STARTED",
                reason=None,
                details="",
                epoch=runs.c.epoch + 1,
                attempt=runs.c.attempt + 1,
                holder=str(holder),
                worker_id=worker_id,
                lease_expires_at=now() + lease_s,
                started_at=sa.func.coalesce(runs.c.started_at, now()),
                updated_at=now(),
            )
            .returning(runs.c.id)
        )
        if not self.waiting(devices, kind):  # a look that needs no write lock
            return None
        with self.database.write() as connection:
            taken = connection.execute(take).scalar_one_or_none()
            if taken is None:
                return None
            run = _read(connection, taken)
            told(connection, run.id, run.epoch, "STARTED", None, f"attempt {run.attempt}")
            return Claim(run, run.epoch)

    def heartbeat(self, run_id: str, epoch: int, lease_s: float = LEASE_S) -> Beat:
        """Keep the lease for another ``lease_s`` seconds."""
        query = (
            sa.update(runs)
            .where(*_mine(run_id, epoch))
            .values(lease_expires_at=now() + lease_s)
            .returning(runs.c.cancel_requested_at)
        )
        with self.database.write() as connection:
            row = connection.execute(query).one_or_none()
        return Beat(row is not None, row is not None and row.cancel_requested_at is not None)

    def asked(self, run_id: str, epoch: int) -> Beat:
        """The same question as a heartbeat, without keeping the lease: cheap enough to be
        asked several times a second."""
        query = sa.select(runs.c.cancel_requested_at).where(*_mine(run_id, epoch))
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
        return Beat(row is not None, row is not None and row.cancel_requested_at is not None)

    def progress(
        self,
        run_id: str,
        epoch: int,
        *,
        checkpoint_step: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Report a checkpoint or metrics. A checkpoint further than any before shows that the
        run gets somewhere: its crashes are forgiven. Raises LeaseLost."""
        values: dict[str, Any] = {"updated_at": now()}
        if metrics is not None:
            values["metrics"] = as_json(metrics)
        if checkpoint_step is not None:
            further = sa.func.coalesce(runs.c.checkpoint_step, -1) < checkpoint_step
            values["crashes"] = sa.case((further, 0), else_=runs.c.crashes)
            values["checkpoint_step"] = sa.case(
                (further, checkpoint_step), else_=runs.c.checkpoint_step
            )
        with self.database.write() as connection:
            done = connection.execute(
                sa.update(runs).where(*_mine(run_id, epoch)).values(values).returning(runs.c.id)
            )
            if done.one_or_none() is None:
                raise _lost(run_id)

    def finish(
        self, run_id: str, epoch: int, artifact_id: str, metrics: Mapping[str, Any] | None = None
    ) -> RunRecord:
        """End a run with its result; CANCELLED instead when that was asked for before.

        Raises LeaseLost.
        """
        result: dict[str, Any] = {"artifact_id": artifact_id}
        if metrics is not None:
            result["metrics"] = as_json(metrics)
        return self._end(run_id, epoch, "FINISHED", None, "", result)

    def fail(self, run_id: str, epoch: int, reason: str, details: str) -> RunRecord:
        """End a run without a result. reason: the error's code. Raises LeaseLost."""
        return self._end(run_id, epoch, "FAILED", reason, details, {})

    def confirm_cancel(self, run_id: str, epoch: int) -> RunRecord:
        """End a run that was asked to stop. Raises LeaseLost."""
        return self._end(run_id, epoch, "CANCELLED", "user", "", {})

    def release(
        self, run_id: str, epoch: int, reason: str = "interrupted", details: str = ""
    ) -> RunRecord:
        """Give a run back to the queue, unfinished and not to blame. Raises LeaseLost."""
        return self._end(run_id, epoch, "CREATED", reason, details, {})

    def pause(self, run_id: str, epoch: int) -> RunRecord:
        """Put a trial aside that has used what it was allowed (``pause_after``): nobody claims
        it until it is let go on. Raises LeaseLost."""
        return self._end(run_id, epoch, "CREATED", PAUSED, "", {})

    def crashed(
        self, run_id: str, epoch: int, details: str, max_crashes: int = MAX_CRASHES
    ) -> RunRecord:
        """Say that the process that held a run died. It goes back to the queue; after
        ``max_crashes`` in a row without a new checkpoint it is quarantined. Raises LeaseLost.
        """
        with self.database.write() as connection:
            run = _held(connection, run_id, epoch)
            self._crash(connection, run, details, max_crashes)
            return _read(connection, run_id)

    def overdue_cancels(self, after_s: float) -> list[tuple[str, int, str]]:
        """Runs that were asked to stop longer ago than that, and have not: (id, epoch, holder)."""
        query = sa.select(runs.c.id, runs.c.epoch, runs.c.holder).where(
            runs.c.status == "STARTED", runs.c.cancel_requested_at < now() - after_s
        )
        with self.database.read() as connection:
            return [(row.id, row.epoch, row.holder) for row in connection.execute(query)]

    def held(self) -> list[RunRecord]:
        """All runs that are STARTED."""
        with self.database.read() as connection:
            rows = connection.execute(_SELECT.where(runs.c.status == "STARTED")).all()
        return [run_record(row) for row in rows]

    def reap(
        self,
        max_crashes: int = MAX_CRASHES,
        causes: Mapping[int, str] | None = None,
        spare: Collection[int] = (),
    ) -> list[RunRecord]:
        """Take back the runs whose worker is gone: its process died on this machine, or its
        lease ended by the database's clock. causes: what is known of a pid's death. spare:
        pids whose death, if they are dead, somebody is about to explain.

        A process of this machine that lives and yet let its lease end is stopped, or as good
        as stopped; it is killed. It could do nothing any more but hold a lock of the database.
        """
        query = sa.select(
            runs.c.id, runs.c.epoch, runs.c.holder, runs.c.lease_expires_at, now().label("now")
        ).where(runs.c.status == "STARTED")
        with self.database.read() as connection:
            rows = connection.execute(query).all()
        taken = []
        for row in rows:
            cause = _gone(row, causes or {}, spare)
            if cause is None:
                continue
            if cause.by_clock:
                process.kill(process.Process.parse(row.holder))
            with self.database.write() as connection:
                try:
                    run = _held(connection, row.id, row.epoch)
                except LeaseLost:
                    continue  # somebody else was faster
                if cause.by_clock and run.lease_expires_at != row.lease_expires_at:
                    continue  # it lives: a heartbeat came in between
                if cause.is_crash:
                    self._crash(connection, run, cause.text, max_crashes)
                else:
                    self._leave(connection, run, "CREATED", "interrupted", cause.text)
                taken.append(_read(connection, row.id))
        return taken

    def _crash(
        self, connection: sa.Connection, run: RunRecord, details: str, max_crashes: int
    ) -> None:
        crashes = run.crashes + 1
        if crashes >= max_crashes:
            text = f"crashed {crashes} times in a row without progress; the last time: {details}"
            self._leave(connection, run, "FAILED", "quarantined", text, {"crashes": crashes})
        else:
            self._leave(connection, run, "CREATED", "crashed", details, {"crashes": crashes})

    def _end(
        self,
        run_id: str,
        epoch: int,
        status: str,
        reason: str | None,
        details: str,
        values: Mapping[str, Any],
    ) -> RunRecord:
        with self.database.write() as connection:
            run = _held(connection, run_id, epoch)
            self._leave(connection, run, status, reason, details, values)
            return _read(connection, run_id)

    def _leave(
        self,
        connection: sa.Connection,
        run: RunRecord,
        status: str,
        reason: str | None = None,
        details: str = "",
        values: Mapping[str, Any] | None = None,
    ) -> None:
        """Leave a status, within a transaction that holds the row. A run that was asked to
        stop becomes CANCELLED whatever else happened to it."""
        values = dict(values or {})
        if run.cancel_requested_at is not None:
            details = "" if status in ("FINISHED", "CANCELLED") else details
            status, reason = "CANCELLED", run.reason or "user"  # by whom, says the request
            values.pop("artifact_id", None)
        ended = status in ("FINISHED", "FAILED", "CANCELLED")
        connection.execute(
            sa.update(runs)
            .where(runs.c.id == run.id)
            .values(
                status=status,
                reason=reason,
                details=details,
                holder=None,
                worker_id=None,
                lease_expires_at=None,
                finished_at=now() if ended else None,
                updated_at=now(),
                **values,
            )
        )
        told(connection, run.id, run.epoch, status, reason, details)


class _Cause:
    """Why a run is taken back: in words, by the clock or by evidence, and whether it crashed."""

    def __init__(self, text: str, *, by_clock: bool = False, is_crash: bool = True) -> None:
        self.text, self.by_clock, self.is_crash = text, by_clock, is_crash


def _gone(row: Any, causes: Mapping[int, str], spare: Collection[int]) -> _Cause | None:
    holder = process.Process.parse(row.holder)
    if process.rebooted(holder):
        return _Cause("the machine was restarted", is_crash=False)
    if process.is_dead(holder):
        if holder.pid in spare:
            return None
        return _Cause(causes.get(holder.pid, "its process died"))
    if row.lease_expires_at <= row.now:
        return _Cause("its worker was not heard of until the lease ended", by_clock=True)
    return None


_SELECT = sa.select(runs, experiments.c.name.label("experiment")).select_from(
    runs.join(experiments)
)


def _read(connection: sa.Connection, run_id: str) -> RunRecord:
    return run_record(connection.execute(_SELECT.where(runs.c.id == run_id)).one())


def _mine(run_id: str, epoch: int) -> tuple[sa.ColumnElement[bool], ...]:
    """The fence."""
    return runs.c.id == run_id, runs.c.epoch == epoch, runs.c.status == "STARTED"


def _held(connection: sa.Connection, run_id: str, epoch: int) -> RunRecord:
    """The run, locked until the transaction ends, if it is still held with that epoch."""
    query = _SELECT.where(*_mine(run_id, epoch)).with_for_update(of=runs)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _lost(run_id)
    return run_record(row)


def _lost(run_id: str) -> LeaseLost:
    return LeaseLost(
        "another worker owns the run now, or it was ended",
        where=run_id,
        hint="nothing is to be done: what this worker did is ignored",
    )


def _claimable(
    devices: Collection[str], kind: str | None = None
) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        runs.c.status == "CREATED",
        runs.c.device.in_(["auto", *devices]),
        sa.func.coalesce(runs.c.reason, "") != PAUSED,
        *(() if kind is None else (runs.c.kind == kind,)),
    )
