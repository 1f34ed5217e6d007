"""Who works on tasks: claim one, train as its plugin says, and promote what is better.

A claim is a lease with an epoch, kept by a heartbeat. Whoever lost it can end nothing any more,
and a task whose worker died is taken up again: its training is a run of the queue with a key of
the task's own, so it is found again, at work or finished, and not begun twice. The end of a task,
the state of its batch and the promotion are one transaction.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from luthier.clicks.store import ClickStore, release
from luthier.clicks.tables import batches, tasks
from luthier.clicks.tasks import (
    FineTuningTasks,
    Record,
    abandoned,
    cancel_run,
    change,
    end,
    find,
    hand_on,
    model_key,
    one_at_a_time,
    rival,
    run_key,
)
from luthier.errors import (
    Conflict,
    IllegalTransition,
    LeaseLost,
    LuthierError,
    NotFound,
)
from luthier.runs import process
from luthier.runs.aliases import promote, standing
from luthier.runs.tables import now

if TYPE_CHECKING:
    from luthier.runs.connection import Home

#: A worker that is not heard of for so long has lost its task.
LEASE_S = 60.0
_ASK_EVERY_S = 0.5

#: The name that ``deploy_as_blue`` moves, and the one for what stood there before.
BLUE, BEFORE = "production", "previous"


@dataclass(frozen=True)
class Order:
    """What is to be trained. start: the artifact or model to start from. key: of the run, the
    same whenever the task is taken up again."""

    task_id: str
    start: str
    batch_id: str
    key: str
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tuned:
    """What came of it. verdict: against the starting model on held-out sessions."""

    artifact_id: str
    verdict: str
    metrics: dict[str, Any] = field(default_factory=dict)


Tune = Callable[["Home", Order], Tuned]


def run_task(
    home: Home, task_id: str, tune: Tune | None = None, *, lease_s: float = LEASE_S
) -> Record:
    """Work on a task until it has ended; the task.

    tune: what trains; by default the plugin that the task's metadata names as its ``method``
    (``luthier.clicks.methods``), through ``luthier.clicks.tuning``. What it raises fails the
    task with that message. Raises NotFound; IllegalTransition for a task that has ended; Conflict
    while another works on it, its model or its batch; LeaseLost when another took it up.
    """
    board = FineTuningTasks(home)
    order, epoch = _claim(board, task_id, lease_s)
    if order is None:
        return board.get_task(task_id)
    heart = _Heart(board, order, epoch, lease_s)
    try:
        tuned = (tune or by_method)(home, order)
    except LuthierError as error:
        if isinstance(error, LeaseLost):
            raise
        _end(board, task_id, epoch, "failed", str(error))
    except Exception as error:  # a plugin is somebody else's program
        _end(board, task_id, epoch, "failed", f"{type(error).__name__}: {error}")
    except BaseException:  # Ctrl-C, and what ends this process: another goes on
        _give_back(board, task_id, epoch)
        raise
    else:
        _done(board, order, epoch, tuned)
    finally:
        heart.stop()
    return board.get_task(task_id)


def work(home: Home, tune: Tune | None = None, *, lease_s: float = LEASE_S) -> list[Record]:
    """Work on tasks, the oldest first, until none is left that can be begun; those it ended."""
    return list(worked(home, tune, lease_s=lease_s))


def worked(home: Home, tune: Tune | None = None, *, lease_s: float = LEASE_S) -> Iterator[Record]:
    """The same, each task as it ends."""
    board = FineTuningTasks(home)
    while (task_id := next_task(board)) is not None:
        try:
            yield run_task(home, task_id, tune, lease_s=lease_s)
        except (Conflict, IllegalTransition, LeaseLost):
            continue  # another was faster


def next_task(board: FineTuningTasks) -> str | None:
    """The oldest task that can be begun or taken up again; one on the same model or batch as an
    older one waits for it."""
    query = sa.select(tasks).where(tasks.c.status.in_(("pending", "processing")))
    with board.database.read() as connection:
        seen: set[str] = set()
        for row in connection.execute(query.order_by(tasks.c.id)).all():
            holds = {f"model {row.model_key}"} | ({f"batch {row.batch_id}"} - {"batch None"})
            if row.status == "processing" and abandoned(connection, row):
                return str(row.id)
            if row.status == "pending" and not holds & seen:
                wanted = {"id": row.id, "model_key": row.model_key, "batch_id": row.batch_id}
                if rival(connection, wanted, ("processing",)) is None:
                    return str(row.id)
            seen |= holds
    return None


# --- claiming -------------------------------------------------------------------------------------


def _claim(board: FineTuningTasks, task_id: str, lease_s: float) -> tuple[Order | None, int]:
    """Take a task; no order where it ended instead: canceled, refused, without its model."""
    name = board.get_task(task_id)["embedding_model_id"]
    try:
        key = model_key(board.home, name)  # an alias may stand for another model by now
    except LuthierError as error:
        key, gone = "", str(error)
    with board.database.write() as connection:
        one_at_a_time(connection)
        row = find(connection, task_id, lock=True)
        if row.status == "processing":
            if not abandoned(connection, row):
                raise Conflict("another works on the task", where=task_id)
            if row.cancel_requested_at is not None:
                end(connection, row, "canceled", "")
                return None, 0
            key = row.model_key  # what it began with
        elif row.status != "pending":
            raise IllegalTransition(f"the task is {row.status}", where=task_id)
        elif not key:
            end(connection, row, "failed", gone)
            return None, 0
        wanted = {"id": task_id, "model_key": key, "batch_id": row.batch_id}
        other = rival(connection, wanted, ("processing",))
        if other is not None:
            raise Conflict(f"it waits for task {other.id}", where=task_id)
        batch_id, reason = _batch(connection, row)
        if reason:
            end(connection, row, "refused", reason)
            return None, 0
        change(
            connection, task_id, status="processing", model_key=key, batch_id=batch_id,
            epoch=row.epoch + 1, holder=str(process.this_process()),
            lease_expires_at=now() + lease_s,
            started_at=sa.func.coalesce(tasks.c.started_at, now()),
        )  # fmt: skip
        metadata = json.loads(row.request)["metadata"] or {}
        order = Order(task_id, key, batch_id, run_key(row), metadata)
        return order, row.epoch + 1


def _batch(connection: sa.Connection, row: Any) -> tuple[str, str]:
    """The batch of a task, which from now on is trained with; or why there is none."""
    batch_id = row.batch_id
    if batch_id is None:
        try:
            batch_id = release(connection, f"task-{row.id}")["batch_id"]
        except NotFound as error:
            return "", str(error)
    where = batches.c.id == batch_id
    state = connection.scalar(sa.select(batches.c.state).where(where).with_for_update())
    if state == "released":
        connection.execute(sa.update(batches).where(where).values(state="fine_tuning"))
    elif row.status == "pending":
        return "", f"the batch {batch_id} is {state}"
    return str(batch_id), ""


class _Heart:
    """Keeps the lease, and cancels the run of a task that shall stop."""

    def __init__(self, board: FineTuningTasks, order: Order, epoch: int, lease_s: float) -> None:
        self._board, self._order, self._epoch, self._lease_s = board, order, epoch, lease_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="task", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _beat_on(self) -> None:
        beaten = time.monotonic()
        while not self._stopping.wait(min(_ASK_EVERY_S, self._lease_s / 3)):
            with suppress(LuthierError):  # the fence holds whether we beat or not
                if time.monotonic() - beaten >= self._lease_s / 3:
                    self._beat()
                    beaten = time.monotonic()
                if self._shall_stop():
                    cancel_run(self._board.home, self._order.key)

    def _beat(self) -> None:
        mine = _mine(self._order.task_id, self._epoch)
        with self._board.database.write() as connection:
            expires = now() + self._lease_s
            connection.execute(sa.update(tasks).where(*mine).values(lease_expires_at=expires))

    def _shall_stop(self) -> bool:
        mine = _mine(self._order.task_id, self._epoch)
        with self._board.database.read() as connection:
            return (
                connection.scalar(sa.select(tasks.c.cancel_requested_at).where(*mine)) is not None
            )


# --- ending ---------------------------------------------------------------------------------------


def _mine(task_id: str, epoch: int) -> tuple[sa.ColumnElement[bool], ...]:
    """The fence."""
    return tasks.c.id == task_id, tasks.c.epoch == epoch, tasks.c.status == "processing"


def _held(connection: sa.Connection, task_id: str, epoch: int) -> Any:
    query = sa.select(tasks).where(*_mine(task_id, epoch)).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        message = "another works on the task now, or it was ended"
        raise LeaseLost(message, where=task_id, hint="what this worker did is ignored")
    return row


def _end(board: FineTuningTasks, task_id: str, epoch: int, status: str, detail: str) -> None:
    """End a task without a result. One that was asked to stop is canceled, whatever happened."""
    with board.database.write() as connection:
        row = _held(connection, task_id, epoch)
        if row.cancel_requested_at is not None:
            status, detail = "canceled", ""
        end(connection, row, status, detail)


def _give_back(board: FineTuningTasks, task_id: str, epoch: int) -> None:
    with suppress(LeaseLost), board.database.write() as connection:
        row = _held(connection, task_id, epoch)
        hand_on(connection, row.batch_id, "released")
        change(connection, task_id, status="pending", holder=None, lease_expires_at=None)


def _done(board: FineTuningTasks, order: Order, epoch: int, tuned: Tuned) -> None:
    """End a task with its result, and promote that where it was asked for and is better."""
    with board.database.write() as connection:
        row = _held(connection, order.task_id, epoch)
        if row.cancel_requested_at is not None:
            end(connection, row, "canceled", "")
            return
        result: dict[str, Any] = {
            "artifact_id": tuned.artifact_id, "verdict": tuned.verdict, "metrics": tuned.metrics,
            "start": order.start, "promoted": False, "reason": None,
        }  # fmt: skip
        if json.loads(row.request)["deploy_as_blue"]:
            result["reason"] = _why_not(connection, order, tuned)
            if result["reason"] is None:
                note = f"task {order.task_id}, {tuned.verdict} than {order.start[:12]}"
                promote(connection, tuned.artifact_id, name=BLUE, keep=BEFORE, note=note)
                result["promoted"] = True
        end(connection, row, "done", result["reason"] or "", result)


def _why_not(connection: sa.Connection, order: Order, tuned: Tuned) -> str | None:
    """Why the result is not put into production; None where it is."""
    if tuned.verdict != "better":
        return f"not promoted: the verdict is '{tuned.verdict}'"
    current = standing(connection, BLUE)
    if current not in (None, order.start, tuned.artifact_id):
        return f"not promoted: it was not compared with {current[:12]}, which is in production"
    return None


# --- training -------------------------------------------------------------------------------------


def by_method(home: Home, order: Order) -> Tuned:
    """Train as the plugin says that the task's metadata names. Raises what the training raises."""
    from luthier.clicks.experiments import FineTuningIteration
    from luthier.clicks.methods import find_method, find_methods
    from luthier.clicks.recording import iterate
    from luthier.clicks.tuning import run
    from luthier.runs.connection import using

    name = order.metadata.get("method")
    if name is None:
        known = sorted(find_methods())
        if len(known) != 1:
            hint = f"known: {', '.join(known)}" if known else "no plugin is installed"
            message = 'which method? metadata={"method": NAME} says so'
            raise NotFound(message, where="metadata", hint=hint)
        name = known[0]
    with using(home):
        method = find_method(str(name))
        method.upload_initial_model()
        store = ClickStore(home.url)
        try:
            sessions = store.load_batch(order.batch_id)
        finally:
            store.close()
        builder = method.get_fine_tuning_builder(sessions)
        iteration = FineTuningIteration(order.batch_id, order.start, str(name))

        def train() -> Any:
            return run(builder, model=order.start, idempotency_key=order.key)

        return _tuned(iterate(builder, iteration, train, home))


def _tuned(done: Any) -> Tuned:
    metrics = {k: v for k, v in done.metrics.items() if k != "accumulated"}  # as long as training
    return Tuned(done.artifact_id, done.verdict, metrics)
