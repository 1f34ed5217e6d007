"""Tasks of fine-tuning: the reference's routes as functions, for a server to mount.

A task is a request to tune a model on a batch of sessions. It holds its model and its batch while
it is pending or processing; another that wants the same is refused, or waits. Who works on it
holds a lease (``luthier.clicks.task_runs``), so one whose worker died is taken up again.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic import Field

from luthier.clicks.parameters import Strict
from luthier.clicks.tables import OPEN, TASK_STATUSES, batches, migrate, tasks
from luthier.errors import Conflict, IllegalTransition, NotFound, Problem, SpecError, nearest
from luthier.runs import process
from luthier.runs.aliases import PREFIX
from luthier.runs.tables import now, runs

if TYPE_CHECKING:
    from luthier.runs.connection import Home

Record = dict[str, Any]

#: Requests that come at the same time are looked at one after another.
_LOCK = 7262083


class FineTuningTaskRunRequest(Strict):
    """What a task shall do. Unknown names are errors.

    embedding_model_id: a run, an artifact, ``alias:NAME``, a folder, or a model of
    ``luthier models``. batch_id: a released batch; None releases the one that collects when the
    task begins. metadata: kept with the task; ``{"method": NAME}`` names the plugin.
    idempotency_key: the same request again is the same task. deploy_as_blue: what comes out
    becomes ``alias:production`` if it is better than the model it started from.
    wait_on_conflict: wait for another task on the same model or batch, rather than be refused.
    """

    embedding_model_id: str = Field(min_length=1, max_length=500)
    batch_id: str | None = None
    metadata: dict[str, Any] | None = None
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=200)
    deploy_as_blue: bool = False
    wait_on_conflict: bool = False


class FineTuningTasks:
    """The tasks of a home, in its database."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.database = home.ledger.database
        migrate(self.database)

    def create_task(self, request: FineTuningTaskRunRequest | Mapping[str, Any]) -> Record:
        """Keep a request; the task, which is pending, or refused with the reason in ``detail``.

        A request with the same idempotency key gives the same task, however many come at once.
        Raises SpecError for bad fields, NotFound for an unknown model or batch, Conflict where
        the key belongs to another request.
        """
        if not isinstance(request, FineTuningTaskRunRequest):
            request = FineTuningTaskRunRequest(**request)
        text = _json(request)
        row: dict[str, Any] = {
            "id": f"{time.time_ns():016x}{secrets.token_hex(4)}",  # sorts by time
            "request": text, "idempotency_key": request.idempotency_key,
            "embedding_model_id": request.embedding_model_id, "batch_id": request.batch_id,
            "generation": 0, "epoch": 0, "created_at": now(), "updated_at": now(),
        }  # fmt: skip
        known = self._of_key(request, text)
        if known is not None:
            return known
        row["model_key"] = model_key(self.home, request.embedding_model_id)
        with self.database.write() as connection:
            one_at_a_time(connection)
            row["status"], row["detail"] = _admitted(connection, row, request.wait_on_conflict)
            try:
                with connection.begin_nested():
                    connection.execute(sa.insert(tasks).values(row))
            except sa.exc.IntegrityError:  # the key's UNIQUE constraint has spoken
                if request.idempotency_key is None:
                    raise
                row["id"] = None
            if row["id"] is not None:
                return _record(find(connection, row["id"]))
        known = self._of_key(request, text)
        assert known is not None
        return known

    def get_task(self, task_id: str) -> Record:
        """Raises NotFound."""
        with self.database.read() as connection:
            return _record(find(connection, task_id))

    def list_tasks(
        self, offset: int = 0, limit: int = 100, status: str | None = None
    ) -> list[Record]:
        """Tasks, the newest first. Raises SpecError for a status that there is not."""
        problems = []
        if offset < 0:
            problems.append(Problem("offset", "is not negative"))
        if limit < 1:
            problems.append(Problem("limit", "is at least 1"))
        if status is not None and status not in TASK_STATUSES:
            hint = nearest(status, TASK_STATUSES) or ", ".join(TASK_STATUSES)
            problems.append(Problem("status", f"no status is called '{status}'", hint))
        if problems:
            raise SpecError(problems)
        query = sa.select(tasks).order_by(tasks.c.id.desc())
        if status is not None:
            query = query.where(tasks.c.status == status)
        with self.database.read() as connection:
            rows = connection.execute(query.offset(offset).limit(limit)).all()
        return [_record(row) for row in rows]

    def restart_task(self, task_id: str) -> Record:
        """Do a failed, canceled or refused task again, from the start. It is refused as a new
        one would be. Raises NotFound, IllegalTransition."""
        with self.database.read() as connection:
            name = find(connection, task_id).embedding_model_id
        key = model_key(self.home, name)
        with self.database.write() as connection:
            one_at_a_time(connection)
            row = find(connection, task_id, lock=True)
            if row.status not in ("failed", "canceled", "refused"):
                hint = "make a new one" if row.status == "done" else None
                raise IllegalTransition(f"the task is {row.status}; it cannot be restarted",
                                        where=task_id, hint=hint)  # fmt: skip
            wanted = {"id": task_id, "model_key": key, "batch_id": row.batch_id}
            wait = json.loads(row.request)["wait_on_conflict"]
            status, detail = _admitted(connection, wanted, wait)
            change(
                connection, task_id, status=status, detail=detail, model_key=key, result=None,
                generation=row.generation + 1, cancel_requested_at=None, started_at=None,
                finished_at=None,
            )  # fmt: skip
            return _record(find(connection, task_id))

    def cancel_task(self, task_id: str) -> Record:
        """Stop a task. One that is processed is asked to stop, and from then on it cannot be
        done any more. Raises NotFound, IllegalTransition for one that has ended."""
        with self.database.write() as connection:
            row = find(connection, task_id, lock=True)
            if row.status == "canceled":
                return _record(row)
            if row.status not in OPEN:
                message = f"the task is {row.status}; it cannot be canceled any more"
                raise IllegalTransition(message, where=task_id)
            nobody = row.status == "pending" or abandoned(connection, row)
            if nobody:
                end(connection, row, "canceled", "")
            elif row.cancel_requested_at is None:
                change(connection, task_id, cancel_requested_at=now())
            found = _record(find(connection, task_id))
        if nobody:
            cancel_run(self.home, run_key(row))  # what a worker that died had begun
        return found

    def _of_key(self, request: FineTuningTaskRunRequest, text: str) -> Record | None:
        key = request.idempotency_key
        if key is None:
            return None
        with self.database.read() as connection:
            query = sa.select(tasks).where(tasks.c.idempotency_key == key)
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        if row.request != text:
            raise Conflict(
                f"the key '{key}' belongs to task '{row.id}', which was asked for otherwise",
                where="idempotency_key",
                hint="use a new key for a new task",
            )
        return _record(row)


def run_key(row: Any) -> str:
    """The idempotency key of a task's run: the same whenever the task is taken up again."""
    return f"task-{row.id}-{row.generation}"


def cancel_run(home: Home, key: str) -> None:
    """Stop the run of a task, if there is one that has not ended."""
    with home.ledger.database.read() as connection:
        run_id = connection.scalar(sa.select(runs.c.id).where(runs.c.key == key))
    if run_id is not None:
        with suppress(IllegalTransition, NotFound):  # it has ended meanwhile
            home.ledger.cancel(run_id, "task")


# --- within a transaction -------------------------------------------------------------------------


def one_at_a_time(connection: sa.Connection) -> None:
    """Wait until no other transaction admits or claims tasks. SQLite has one writer anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def find(connection: sa.Connection, task_id: str, *, lock: bool = False) -> Any:
    """The row of a task. Raises NotFound."""
    query = sa.select(tasks).where(tasks.c.id == task_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"no task is called '{task_id}'")
    return row


def change(connection: sa.Connection, task_id: str, **values: Any) -> None:
    """Set columns of a task."""
    values = {"updated_at": now(), **values}
    connection.execute(sa.update(tasks).where(tasks.c.id == task_id).values(values))


def end(connection: sa.Connection, row: Any, status: str, detail: str, result: Any = None) -> None:
    """End a task: with a result its batch is archived, without one it is given back."""
    change(
        connection, row.id, status=status, detail=detail, holder=None, lease_expires_at=None,
        finished_at=now(), result=None if result is None else json.dumps(result),
    )  # fmt: skip
    if row.status == "processing":
        hand_on(connection, row.batch_id, "archived" if status == "done" else "released")


def hand_on(connection: sa.Connection, batch_id: str | None, state: str) -> None:
    """The next state of a batch that a task had."""
    where = (batches.c.id == batch_id, batches.c.state == "fine_tuning")
    connection.execute(sa.update(batches).where(*where).values(state=state))


def abandoned(connection: sa.Connection, row: Any) -> bool:
    """Whether nobody works on a processing task any more."""
    if process.is_dead(process.Process.parse(row.holder)):
        return True
    return bool(row.lease_expires_at <= connection.execute(sa.select(now())).scalar_one())


def rival(connection: sa.Connection, wanted: Mapping[str, Any], statuses: tuple[str, ...]) -> Any:
    """Another task of those statuses that has the same model or batch; None without."""
    same = tasks.c.model_key == wanted["model_key"]
    if wanted["batch_id"] is not None:
        same = sa.or_(same, tasks.c.batch_id == wanted["batch_id"])
    query = sa.select(tasks).where(same, tasks.c.status.in_(statuses), tasks.c.id != wanted["id"])
    return connection.execute(query.order_by(tasks.c.id).limit(1)).one_or_none()


def _admitted(connection: sa.Connection, wanted: Mapping[str, Any], wait: bool) -> tuple[str, str]:
    """Pending, or refused with the reason. Raises NotFound for a batch that never was."""
    other = rival(connection, wanted, OPEN)
    if other is not None and not wait:
        what = "model" if other.model_key == wanted["model_key"] else "batch"
        return "refused", f"task {other.id} on the same {what} is {other.status}"
    if wanted["batch_id"] is None:
        return "pending", ""
    query = sa.select(batches.c.state).where(batches.c.id == wanted["batch_id"])
    state = connection.scalar(query)
    if state is None:
        raise NotFound(f"no batch is called '{wanted['batch_id']}'")
    if state == "collecting":
        return "refused", "the batch still collects: release it first, or leave batch_id out"
    if state == "archived":
        return "refused", "the batch is archived: it was trained with before"
    if state == "fine_tuning" and other is None:
        return "refused", "the batch is being trained with"
    return "pending", ""


def model_key(home: Home, name: str) -> str:
    """What a name of a model stands for now. Raises NotFound, ModelError, IllegalTransition."""
    from luthier.inference import find_model

    if name.startswith(PREFIX):
        return home.find_artifact(name)
    return find_model(name, home).name


def _json(request: FineTuningTaskRunRequest) -> str:
    try:
        return json.dumps(request.model_dump(), sort_keys=True, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise SpecError([Problem("metadata", f"is not JSON: {error}")]) from None


def _record(row: Any) -> Record:
    """A task as the routes show it."""
    request = json.loads(row.request)
    return {
        "id": row.id, "status": row.status, "detail": row.detail, **request,
        "batch_id": row.batch_id, "result": row.result and json.loads(row.result),
        "attempts": row.epoch, "created_at": row.created_at, "started_at": row.started_at,
        "finished_at": row.finished_at, "updated_at": row.updated_at,
    }  # fmt: skip
