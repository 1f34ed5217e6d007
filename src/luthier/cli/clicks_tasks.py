"""``luthier clicks task`` and ``luthier clicks work``: tasks of fine-tuning, and who does them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.output import Home, Json, note, print_facts, print_json, print_table, show, when
from luthier.cli.words import read_options

if TYPE_CHECKING:
    from luthier.clicks.tasks import FineTuningTasks
    from luthier.runs.connection import Home as ConnectedHome

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Tasks of fine-tuning.")

Id = Annotated[str, typer.Argument(metavar="TASK", help="The id of a task.")]
#: Between two looks for new tasks.
_ASK_EVERY_S = 1.0
#: Of what ``work`` did: a task of it failed, as a run that failed.
FAILED = 11


@app.command("create")
def create(
    model: Annotated[
        str, typer.Option("--model", help="A run, an artifact, alias:NAME, a folder, a model.")
    ],
    batch: Annotated[
        str | None, typer.Option("--batch", help="A released batch; else the one that collects.")
    ] = None,
    method: Annotated[
        str | None, typer.Option("--method", help="The plugin, where there are several.")
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--metadata", metavar="NAME=VALUE", help="Kept with the task."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", help="The same again is the same task.")
    ] = None,
    deploy: Annotated[
        bool, typer.Option("--deploy-as-blue", help="alias:production, if it is better.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait-on-conflict", help="Wait for others on the same model.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Ask for a training on a batch of sessions. `luthier clicks work` does it."""
    words: dict[str, Any] = dict(read_options("metadata", metadata) or {})
    if method is not None:
        words["method"] = method
    board = _board(home)
    made = board.create_task(
        {
            "embedding_model_id": model, "batch_id": batch, "metadata": words or None,
            "idempotency_key": key, "deploy_as_blue": deploy, "wait_on_conflict": wait,
        }
    )  # fmt: skip
    show(made, as_json, lambda: print_facts(_facts(made)))


@app.command("list")
def list_(
    status: Annotated[
        str | None, typer.Option("--status", help="pending, processing, done, failed, …")
    ] = None,
    offset: Annotated[int, typer.Option("--offset", min=0)] = 0,
    limit: Annotated[int, typer.Option("--limit", min=1)] = 100,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Tasks, the newest first."""
    found = _board(home).list_tasks(offset=offset, limit=limit, status=status)
    rows = [
        [t["id"], t["status"], t["embedding_model_id"], t["batch_id"], when(t["created_at"]),
         t["detail"]]
        for t in found
    ]  # fmt: skip
    columns = ["task", "status", "model", "batch", "created", "detail"]
    show(found, as_json, lambda: print_table(columns, rows))


@app.command("show")
def show_(task: Id, home: Home = None, as_json: Json = False) -> None:
    """A task, and what came of it."""
    found = _board(home).get_task(task)
    show(found, as_json, lambda: print_facts(_facts(found)))


@app.command("restart")
def restart(task: Id, home: Home = None, as_json: Json = False) -> None:
    """Do a failed, canceled or refused task again."""
    found = _board(home).restart_task(task)
    show(found, as_json, lambda: print_facts(_facts(found)))


@app.command("cancel")
def cancel(task: Id, home: Home = None, as_json: Json = False) -> None:
    """Stop a task. One that is processed stops with its run."""
    found = _board(home).cancel_task(task)
    show(found, as_json, lambda: print_facts(_facts(found)))


def work(
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more when none is left.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Do the tasks that wait, the oldest first, until none is left.

    Each trains as its plugin says (entry point, or folders in $LUTHIER_PLUGINS). Ctrl-C or
    SIGTERM gives the task back; killed, it is taken up again by the next that works, and its run
    goes on where it is. With --json one task a line, as it ends.
    """
    from luthier.clicks.task_runs import worked

    board, failed = _board(home), 0
    stop = threading.Event()
    with _stopping():
        while True:
            for done in worked(board.home):
                failed += done["status"] == "failed"
                if as_json:
                    print_json(done, indent=None)
                else:
                    print(f"{done['id']}  {done['status']}  {_outcome(done)}".rstrip())
            if not follow:
                break
            stop.wait(_ASK_EVERY_S)
    if failed:
        note(f"{failed} of the tasks failed; `luthier clicks task restart TASK` does one again")
        raise typer.Exit(FAILED)


def collect(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="Sessions (.arrow), or a log of a known format.")
    ],
    format: Annotated[
        str | None, typer.Option("--format", help="studio, ubi, metarank or csv.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Put the sessions of a log into the batch that collects, for tasks to train on."""
    from luthier.clicks.bulk import import_sessions
    from luthier.clicks.reading import read_sessions
    from luthier.clicks.store import ClickStore

    sessions = read_sessions(log, format=format, say=note)
    store = ClickStore(_home(home).url)
    try:
        done = vars(import_sessions(store, sessions))
    finally:
        store.close()
    show(done, as_json, lambda: print_facts(done))


def _home(home: str | None) -> ConnectedHome:
    from luthier import api

    return api.connect(home)


def _board(home: str | None) -> FineTuningTasks:
    from luthier.clicks.tasks import FineTuningTasks

    return FineTuningTasks(_home(home))


def _outcome(task: dict[str, Any]) -> str:
    found = task["result"]
    if found is None:
        return str(task["detail"])
    promoted = ", promoted" if found["promoted"] else ""
    return f"{found['verdict']}{promoted}: {found['artifact_id']}"


def _facts(task: dict[str, Any]) -> dict[str, Any]:
    """A task as a person reads it."""
    found = {name: value for name, value in task.items() if name != "result"}
    for name in ("created_at", "started_at", "finished_at", "updated_at"):
        found[name] = when(found[name])
    result = task["result"] or {}
    return found | {name: result.get(name) for name in ("artifact_id", "verdict", "promoted")}


@contextmanager
def _stopping() -> Iterator[None]:
    """SIGTERM as Ctrl-C: the task is given back before this process ends."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
