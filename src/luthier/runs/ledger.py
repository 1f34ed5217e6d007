"""The ledger: experiments, runs and their events. The runs table is the queue."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from luthier.errors import Conflict, IllegalTransition, NotFound, nearest
from luthier.runs import process
from luthier.runs.database import Database, refused
from luthier.runs.journal import Journal, add_event, told
from luthier.runs.leases import Leases
from luthier.runs.names import new_name
from luthier.runs.records import ExperimentRecord, RunRecord, run_record
from luthier.runs.tables import aliases, experiments, now, runs
from luthier.runs.trials import WITH_SEARCH, Trials, refuse_trial
from luthier.runs.workers import Workers
from luthier.spec import JobSpec

__all__ = ["Ledger"]

#: Names that are drawn before giving up; the later ones carry ever longer numbers.
_NAME_ATTEMPTS = 12


class Ledger(Leases, Journal, Workers, Trials):
    """All that is known about runs, in SQLite or PostgreSQL.

    What users ask for is here; what workers do is in Leases, the events are in Journal,
    the workers themselves in Workers, the children of searches in Trials. Everything raises
    StoreError or DiskFull when the database fails.
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)

    def close(self) -> None:
        """Close all connections; the next use opens new ones. To be called before a fork."""
        self.database.close()

    # Experiments

    def create_experiment(
        self, name: str = "default", description: str | None = None
    ) -> ExperimentRecord:
        """Get or create the experiment of that name."""
        with self.database.write() as connection:
            _experiment_id(connection, name, description or "")
        return self.experiment(name)

    def experiment(self, name: str) -> ExperimentRecord:
        """The experiment of that name. Raises NotFound."""
        query = sa.select(experiments).where(experiments.c.name == name)
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                names = connection.execute(sa.select(experiments.c.name)).scalars().all()
                raise NotFound(f"there is no experiment '{name}'", hint=nearest(name, names))
        return ExperimentRecord(**row._mapping)

    def experiments(self, page: int = 1, size: int = 50) -> list[ExperimentRecord]:
        """One page of the experiments, the newest first. Pages count from 1."""
        query = sa.select(experiments).order_by(
            experiments.c.created_at.desc(), experiments.c.id.desc()
        )
        with self.database.read() as connection:
            rows = connection.execute(_page(query, page, size)).all()
        return [ExperimentRecord(**row._mapping) for row in rows]

    def delete_experiment(self, name: str) -> list[RunRecord]:
        """Delete an experiment and its runs; returns those. Raises NotFound, and
        IllegalTransition while one of them is at work."""
        experiment = self.experiment(name)
        with self.database.write() as connection:
            mine = runs.c.experiment_id == experiment.id
            found = [run_record(row) for row in connection.execute(_SELECT.where(mine))]
            for run in found:
                _refuse_if_at_work(run)
            connection.execute(sa.delete(runs).where(mine))
            connection.execute(sa.delete(experiments).where(experiments.c.id == experiment.id))
        return found

    # Runs

    def submit(
        self,
        spec: JobSpec,
        *,
        experiment: str = "default",
        name: str | None = None,
        description: str | None = None,
        idempotency_key: str | None = None,
        parent_id: str | None = None,
        parent_epoch: int | None = None,
        pause_after: int | None = None,
    ) -> RunRecord:
        """Put a run in the queue. When this returns, the run is on the disk.

        idempotency_key: submitting the same key again gives the same run; with another spec it
        raises Conflict. name: unique within the experiment, drawn when None; a name that is taken
        raises Conflict. parent_epoch: of the lease of the search that has this as a trial; raises
        LeaseLost, and Conflict when the search was asked to stop. pause_after: evaluations.
        """
        search = (parent_id, parent_epoch, pause_after)
        for attempt in range(_NAME_ATTEMPTS):
            run = self._try_submit(
                spec,
                experiment,
                name or new_name(attempt),
                description or "",
                idempotency_key,
                search,
            )
            if run is not None:
                return run
            if name is not None:
                raise Conflict(
                    f"experiment '{experiment}' has a run '{name}' already",
                    where="run_name",
                    hint="choose another name, or leave it out to have one drawn",
                )
        raise Conflict(f"no free name was found in experiment '{experiment}'")

    def _try_submit(
        self,
        spec: JobSpec,
        experiment: str,
        name: str,
        description: str,
        key: str | None,
        search: tuple[str | None, int | None, int | None],
    ) -> RunRecord | None:
        """The new run, or the one that has the key; None when the name is taken."""
        # Sorts by time: SQLite's clock has milliseconds only, and the queue keeps its order.
        run_id = f"{time.time_ns():016x}{secrets.token_hex(3)}"
        parent_id, parent_epoch, pause_after = search
        with self.database.write() as connection:
            if parent_id is not None and parent_epoch is not None:
                refuse_trial(connection, parent_id, parent_epoch)
            values = {
                "id": run_id,
                "experiment_id": _experiment_id(connection, experiment, ""),
                "name": name,
                "description": description,
                "spec": spec.model_dump_json(),  # in full: defaults may change
                "spec_id": spec.id,
                "key": key,
                "device": spec.training.device.partition(":")[0],
                "public": spec.output.public,
                "parent_id": parent_id,
                "kind": "search" if spec.search is not None else "training",
                "pause_after": pause_after,
                "status": "CREATED",
                "details": "",
                "epoch": 0,
                "attempt": 0,
                "crashes": 0,
                "generation": 0,
                "created_at": now(),
                "updated_at": now(),
            }
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(runs).values(values))
            except sa.exc.IntegrityError as error:
                # The UNIQUE constraint has spoken; a look-up before it would be a race.
                if refusal := refused(error):
                    raise refusal from error
                return _of_key(connection, key, spec) if key else None
            told(connection, run_id, 0, "CREATED", None, "")
            return run_record(connection.execute(_SELECT.where(runs.c.id == run_id)).one())

    def get(self, run_id: str) -> RunRecord:
        """The run of that id. Raises NotFound."""
        with self.database.read() as connection:
            row = connection.execute(_SELECT.where(runs.c.id == run_id)).one_or_none()
        if row is None:
            raise NotFound(f"there is no run with id '{run_id}'")
        return run_record(row)

    def find(self, name_or_id: str, experiment: str | None = None) -> RunRecord:
        """The run of that name or id; without an experiment, the newest of that name.

        Raises NotFound with the nearest name as a hint.
        """
        query = _SELECT.where(sa.or_(runs.c.name == name_or_id, runs.c.id == name_or_id))
        query = query.order_by(runs.c.created_at.desc(), runs.c.id.desc()).limit(1)
        names = sa.select(runs.c.name).select_from(runs.join(experiments))
        if experiment is not None:
            query = query.where(experiments.c.name == experiment)
            names = names.where(experiments.c.name == experiment)
        with self.database.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is not None:
                return run_record(row)
            known = connection.execute(names).scalars().all()
        where = f" in experiment '{experiment}'" if experiment is not None else ""
        raise NotFound(f"there is no run '{name_or_id}'{where}", hint=nearest(name_or_id, known))

    def runs(
        self,
        experiment: str | None = None,
        *,
        page: int = 1,
        size: int = 50,
        status: str | None = None,
        parent_id: str | None = None,
    ) -> list[RunRecord]:
        """One page of the runs, the newest first. Raises NotFound for an unknown experiment."""
        query = _SELECT.order_by(runs.c.created_at.desc(), runs.c.id.desc())
        if experiment is not None:
            query = query.where(runs.c.experiment_id == self.experiment(experiment).id)
        if status is not None:
            query = query.where(runs.c.status == status)
        if parent_id is not None:
            query = query.where(runs.c.parent_id == parent_id)
        with self.database.read() as connection:
            return [run_record(row) for row in connection.execute(_page(query, page, size))]

    def artifact_users(self, artifact_id: str) -> int:
        """How many runs have that artifact as their result, and how many aliases stand for it."""
        with self.database.read() as connection:
            return sum(
                connection.execute(
                    sa.select(sa.func.count()).where(table.c.artifact_id == artifact_id)
                ).scalar_one()
                for table in (runs, aliases)
            )

    # What users do to a run

    def cancel(self, run_id: str, reason: str = "user") -> RunRecord:
        """Stop a run for good, and the trials of a search with it. One that waits is CANCELLED at
        once; one at work is asked to stop, and from then on it cannot finish. Cancelling twice is
        the same as once.

        Raises IllegalTransition for one that is FINISHED or FAILED.
        """
        with self.database.write() as connection:
            run = _locked(connection, run_id)
            if run.status in ("FINISHED", "FAILED"):
                raise IllegalTransition(f"the run is {run.status}; it cannot be cancelled any more")
            self._cancel(connection, run, reason)
            for trial_id in self._open_trials(connection, run_id):
                self._cancel(connection, _locked(connection, trial_id), WITH_SEARCH)
            return _locked(connection, run_id)

    def _cancel(self, connection: sa.Connection, run: RunRecord, reason: str) -> None:
        idle = run.status == "CREATED"
        if idle or (run.status == "STARTED" and self._abandoned(connection, run)):
            self._leave(connection, run, "CANCELLED", reason=reason)
        elif run.status == "STARTED":
            connection.execute(
                sa.update(runs)
                .where(runs.c.id == run.id, runs.c.cancel_requested_at.is_(None))
                .values(cancel_requested_at=now(), reason=reason, updated_at=now())
            )

    def resume(self, run_id: str) -> RunRecord:
        """Queue a FAILED or CANCELLED run again; it goes on from its last checkpoint."""
        return self._again(run_id, "resumed", {})

    def retry(self, run_id: str) -> RunRecord:
        """Queue a FAILED or CANCELLED run again, from the start: its checkpoints are dropped."""
        changes = {"generation": runs.c.generation + 1, "checkpoint_step": None, "metrics": None}
        return self._again(run_id, "retried", changes)

    def _again(self, run_id: str, verb: str, changes: Mapping[str, Any]) -> RunRecord:
        with self.database.write() as connection:
            run = _locked(connection, run_id)
            if run.status not in ("FAILED", "CANCELLED"):
                hint = "clone it to run it anew" if run.status == "FINISHED" else None
                raise IllegalTransition(
                    f"the run is {run.status}; only a FAILED or CANCELLED run can be {verb}",
                    hint=hint,
                )
            fresh = {"cancel_requested_at": None, "finished_at": None, "crashes": 0}
            connection.execute(
                sa.update(runs)
                .where(runs.c.id == run_id)
                .values(
                    status="CREATED", reason=verb, details="", updated_at=now(), **fresh, **changes
                )
            )
            told(connection, run_id, run.epoch, "CREATED", verb, "")
            return _locked(connection, run_id)

    def delete(self, run_id: str) -> RunRecord:
        """Delete a run and its events; returns what it was. Raises IllegalTransition while it
        is at work, NotFound."""
        with self.database.write() as connection:
            run = _locked(connection, run_id)
            _refuse_if_at_work(run)
            for trial_id in self._open_trials(connection, run_id):
                _refuse_if_at_work(_locked(connection, trial_id))
            connection.execute(sa.delete(runs).where(runs.c.parent_id == run_id))
            connection.execute(sa.delete(runs).where(runs.c.id == run_id))
        return run

    def describe(self, run_id: str, description: str) -> None:
        """Change the description of a run. Raises NotFound."""
        with self.database.write() as connection:
            _locked(connection, run_id)
            connection.execute(
                sa.update(runs).where(runs.c.id == run_id).values(description=description)
            )

    def note(self, run_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Add an event that comes from a user or a supervisor, not from the run's own attempt."""
        with self.database.write() as connection:
            run = _locked(connection, run_id)
            add_event(connection, run_id, run.epoch, kind, data)

    def _abandoned(self, connection: sa.Connection, run: RunRecord) -> bool:
        """Whether nobody works on a STARTED run any more."""
        assert run.holder is not None
        assert run.lease_expires_at is not None
        if process.is_dead(process.Process.parse(run.holder)):
            return True
        return bool(run.lease_expires_at <= connection.execute(sa.select(now())).scalar_one())


_SELECT = sa.select(runs, experiments.c.name.label("experiment")).select_from(
    runs.join(experiments)
)


def _locked(connection: sa.Connection, run_id: str) -> RunRecord:
    """The run, which nobody else can change until the transaction ends. Raises NotFound."""
    query = _SELECT.where(runs.c.id == run_id).with_for_update(of=runs)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(f"there is no run with id '{run_id}'")
    return run_record(row)


def _of_key(connection: sa.Connection, key: str, spec: JobSpec) -> RunRecord | None:
    row = connection.execute(_SELECT.where(runs.c.key == key)).one_or_none()
    if row is None:
        return None  # it was the name that is taken
    run = run_record(row)
    if run.spec_id != spec.id:
        raise Conflict(
            f"the key '{key}' belongs to run '{run.name}', which has another spec",
            where="idempotency_key",
            hint="use a new key for a new job",
        )
    return run


def _experiment_id(connection: sa.Connection, name: str, description: str) -> str:
    query = sa.select(experiments.c.id).where(experiments.c.name == name)
    found = connection.execute(query).scalar_one_or_none()
    if found is not None:
        return str(found)
    values = {
        "id": secrets.token_hex(10),
        "name": name,
        "description": description,
        "status": "ACTIVE",
        "created_at": now(),
    }
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(experiments).values(values))
    except sa.exc.IntegrityError:  # somebody else made it in this very moment
        return str(connection.execute(query).scalar_one())
    return str(values["id"])


def _refuse_if_at_work(run: RunRecord) -> None:
    if run.status == "STARTED":
        raise IllegalTransition(f"the run '{run.name}' is at work", hint="cancel it first")


def _page(query: sa.Select[Any], page: int, size: int) -> sa.Select[Any]:
    if page < 1 or size < 1:
        raise ValueError("pages count from 1, and hold at least one entry")
    return query.limit(size).offset((page - 1) * size)
