"""The ledger's promises, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from luthier.errors import Conflict, IllegalTransition, LeaseLost, NotFound, StoreError
from luthier.runs import tables
from luthier.runs.database import Database
from luthier.runs.ledger import Ledger
from luthier.runs.process import Process, this_process
from luthier.spec import JobSpec, parse_spec


def spec(seed: int = 1, device: str = "auto") -> JobSpec:
    return parse_spec(
        {
            "model": {"name": "m"},
            "data": {"train": {"uri": "x"}},
            "training": {"seed": seed, "device": device},
        }
    )


ME = this_process()
ARTIFACT = "a" * 64


def test_a_run_lives_from_submit_to_finish(ledger: Ledger) -> None:
    run = ledger.submit(spec(), name="first", description="d", experiment="e")
    assert (run.status, run.experiment, run.name, run.epoch) == ("CREATED", "e", "first", 0)
    assert run.spec == spec()
    claim = ledger.claim(ME)
    assert claim is not None
    assert (claim.run.id, claim.epoch, claim.run.status) == (run.id, 1, "STARTED")
    assert ledger.claim(ME) is None
    beat = ledger.heartbeat(run.id, 1)
    assert (beat.mine, beat.cancel) == (True, False)
    ledger.append(run.id, 1, [("log", {"message": "hello"}), ("step", {"loss": float("nan")})])
    done = ledger.finish(run.id, 1, ARTIFACT, {"after": 0.9})
    assert (done.status, done.artifact_id, done.metrics) == ("FINISHED", ARTIFACT, {"after": 0.9})
    assert done.created_at <= (done.started_at or 0) <= (done.finished_at or 0)
    events = ledger.events(run.id)
    assert [e.seq for e in events] == [1, 2, 3, 4, 5]
    assert [e.data.get("status") for e in events] == ["CREATED", "STARTED", None, None, "FINISHED"]
    assert events[3].data == {"loss": "nan"}
    assert ledger.events(run.id, after=3) == events[3:]
    last = ledger.last_event(run.id, "log")
    assert last is not None
    assert last.data == {"message": "hello"}


def test_the_same_key_is_the_same_run_and_another_spec_a_conflict(ledger: Ledger) -> None:
    first = ledger.submit(spec(), idempotency_key="k")
    assert ledger.submit(spec(), idempotency_key="k").id == first.id
    with pytest.raises(Conflict, match="another spec"):
        ledger.submit(spec(2), idempotency_key="k")
    assert len(ledger.runs()) == 1


def test_many_clients_with_one_key_make_one_run(url: str) -> None:
    """16 ledgers in threads, as many connections: all submit the same eight keys at once."""
    Ledger(url).close()
    barrier = threading.Barrier(16)

    def client(number: int) -> list[str]:
        mine = Ledger(url)
        barrier.wait()
        ids = [mine.submit(spec(), idempotency_key=f"k{i}").id for i in range(8)]
        mine.close()
        return ids

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(client, range(16)))
    assert len({tuple(ids) for ids in answers}) == 1
    assert len(Ledger(url).runs()) == 8


def test_names_are_unique_in_an_experiment(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.runs import ledger as module

    ledger.submit(spec(), name="n")
    with pytest.raises(Conflict, match="'n' already"):
        ledger.submit(spec(), name="n")
    ledger.submit(spec(), name="n", experiment="other")
    real = module.new_name
    monkeypatch.setattr(module, "new_name", lambda attempt: "n" if attempt < 4 else real(attempt))
    assert ledger.submit(spec()).name.count("-") == 2


def test_a_thousand_drawn_names_never_collide(tmp_path_factory: pytest.TempPathFactory) -> None:
    from luthier.runs.names import new_name

    drawn = Counter(new_name() for _ in range(1000))
    assert max(drawn.values()) > 0
    assert all(name == name.lower() and name.count("-") == 1 for name in drawn)


def test_claims_are_exclusive_among_many_workers(url: str) -> None:
    first = Ledger(url)
    ids = [first.submit(spec(i)).id for i in range(60)]

    def worker(_: int) -> list[str]:
        mine = Ledger(url)
        taken = []
        while claim := mine.claim(ME):
            taken.append(claim.run.id)
        mine.close()
        return taken

    with ThreadPoolExecutor(8) as threads:
        taken = list(itertools.chain(*threads.map(worker, range(8))))
    assert sorted(taken) == sorted(ids)


def test_the_oldest_is_claimed_first_and_devices_must_fit(ledger: Ledger) -> None:
    gpu = ledger.submit(spec(1, device="cuda:0"))
    cpu = ledger.submit(spec(2, device="cpu"))
    either = ledger.submit(spec(3))
    assert ledger.waiting(("cpu",)) == 2
    claims = [ledger.claim(ME, devices=("cpu",)) for _ in range(3)]
    assert [c.run.id if c else None for c in claims] == [cpu.id, either.id, None]
    claim = ledger.claim(ME, devices=("cpu", "cuda"))
    assert claim is not None
    assert claim.run.id == gpu.id


def lose(ledger: Ledger, url: str, run_id: str) -> None:
    """Let the lease of a run be over, as if its worker had been silent."""
    with ledger.database.write() as connection:
        connection.execute(
            sa.update(tables.runs).where(tables.runs.c.id == run_id).values(lease_expires_at=1.0)
        )


def test_who_lost_the_lease_can_do_nothing(ledger: Ledger, url: str) -> None:
    run = ledger.submit(spec())
    assert ledger.claim(ME)
    lose(ledger, url, run.id)
    taken = ledger.reap()
    assert [(r.id, r.status, r.reason, r.crashes) for r in taken] == [
        (run.id, "CREATED", "crashed", 1)
    ]
    second = ledger.claim(ME)
    assert second is not None
    assert second.epoch == 2
    before = ledger.get(run.id), ledger.events(run.id)
    assert not ledger.heartbeat(run.id, 1).mine
    assert not ledger.asked(run.id, 1).mine
    for late in (
        lambda: ledger.finish(run.id, 1, ARTIFACT),
        lambda: ledger.fail(run.id, 1, "r", "d"),
        lambda: ledger.release(run.id, 1),
        lambda: ledger.confirm_cancel(run.id, 1),
        lambda: ledger.crashed(run.id, 1, "d"),
        lambda: ledger.progress(run.id, 1, checkpoint_step=5),
        lambda: ledger.append(run.id, 1, [("log", {})]),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert (ledger.get(run.id), ledger.events(run.id)) == before
    assert ledger.finish(run.id, 2, ARTIFACT).status == "FINISHED"


def test_a_heartbeat_keeps_the_lease(ledger: Ledger, url: str) -> None:
    run = ledger.submit(spec())
    assert ledger.claim(ME)
    lose(ledger, url, run.id)
    assert ledger.heartbeat(run.id, 1).mine  # late, but nobody was faster
    assert ledger.reap() == []
    assert ledger.get(run.id).status == "STARTED"


def test_a_dead_process_loses_its_lease_at_once(ledger: Ledger) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    from luthier.runs import process

    start = process._start(child.pid)
    assert start is not None
    holder = Process(ME.host, ME.boot, child.pid, start)
    run = ledger.submit(spec())
    assert ledger.claim(holder)
    assert ledger.reap() == []
    child.kill()
    child.communicate()
    assert [r.id for r in ledger.reap(causes={child.pid: "was killed"})] == [run.id]
    assert ledger.get(run.id).details == "was killed"
    for gone, crashes in (
        (Process(ME.host, ME.boot, ME.pid, "1"), 2),  # another process has that pid now
        (Process(ME.host, "another boot", ME.pid, ME.start), 2),  # no crash of the run's
    ):
        assert ledger.claim(gone)
        assert [r.crashes for r in ledger.reap()] == [crashes]
    elsewhere = Process("another host", ME.boot, 1, "1")
    assert ledger.claim(elsewhere)
    assert ledger.reap() == []


def test_three_crashes_without_progress_are_quarantine(ledger: Ledger) -> None:
    run = ledger.submit(spec())
    other = ledger.submit(spec(2))
    epochs = itertools.count(1)

    def crash(step: int | None = None) -> str:
        claim = ledger.claim(ME, run_id=run.id)
        assert claim is not None
        if step is not None:
            ledger.progress(run.id, claim.epoch, checkpoint_step=step)
        assert claim.epoch == next(epochs)
        return ledger.crashed(run.id, claim.epoch, "SIGSEGV").status

    assert [crash(), crash()] == ["CREATED", "CREATED"]
    claim = ledger.claim(ME)
    assert claim is not None
    assert claim.run.id == other.id  # who crashed waits behind the others
    assert [crash(10), crash()] == ["CREATED", "CREATED"]  # a new checkpoint forgives
    assert crash(10) == "FAILED"  # the same checkpoint again is no progress
    found = ledger.get(run.id)
    assert (found.reason, found.crashes) == ("quarantined", 3)
    assert "3 times in a row" in found.details


def test_interruptions_are_no_crashes(ledger: Ledger) -> None:
    run = ledger.submit(spec())
    for _ in range(5):
        claim = ledger.claim(ME)
        assert claim is not None
        released = ledger.release(run.id, claim.epoch, "interrupted")
        assert (released.status, released.crashes) == ("CREATED", 0)
    assert ledger.get(run.id).attempt == 5


def test_cancel_is_final(ledger: Ledger) -> None:
    waiting, working, ended = (ledger.submit(spec(i)) for i in range(3))
    assert ledger.cancel(waiting.id).status == "CANCELLED"
    assert ledger.cancel(waiting.id).status == "CANCELLED"
    claim = ledger.claim(ME)
    assert claim is not None
    assert claim.run.id == working.id
    assert ledger.cancel(working.id).status == "STARTED"
    assert ledger.asked(working.id, 1).cancel
    assert ledger.overdue_cancels(-1) == [(working.id, 1, str(ME))]
    assert ledger.overdue_cancels(60) == []
    late = ledger.finish(working.id, 1, ARTIFACT)  # it had asked before: this comes too late
    assert (late.status, late.artifact_id, late.reason) == ("CANCELLED", None, "user")
    assert ledger.claim(ME)
    ledger.finish(ended.id, 1, ARTIFACT)
    with pytest.raises(IllegalTransition, match="FINISHED"):
        ledger.cancel(ended.id)


@pytest.mark.parametrize("verb", ["fail", "release", "crashed"])
def test_however_a_cancelled_run_ends_it_is_cancelled(ledger: Ledger, verb: str) -> None:
    run = ledger.submit(spec())
    ledger.claim(ME)
    ledger.cancel(run.id)
    getattr(ledger, verb)(run.id, 1, *{"fail": ("r", "d"), "crashed": ("d",)}.get(verb, ()))
    assert ledger.get(run.id).status == "CANCELLED"


def test_a_cancel_does_not_wait_for_the_dead(ledger: Ledger) -> None:
    run = ledger.submit(spec())
    ledger.claim(Process(ME.host, ME.boot, ME.pid, "1"))
    assert ledger.cancel(run.id).status == "CANCELLED"


def test_resume_and_retry(ledger: Ledger) -> None:
    run = ledger.submit(spec())
    for verb, generation in (("resume", 0), ("retry", 1), ("retry", 2)):
        with pytest.raises(IllegalTransition, match="CREATED"):
            getattr(ledger, verb)(run.id)
        claim = ledger.claim(ME)
        assert claim is not None
        ledger.progress(run.id, claim.epoch, checkpoint_step=7)
        ledger.fail(run.id, claim.epoch, "training_failed", "nan")
        again = getattr(ledger, verb)(run.id)
        assert (again.status, again.generation, again.crashes) == ("CREATED", generation, 0)
        assert again.checkpoint_step == (7 if verb == "resume" else None)
    ledger.cancel(run.id)
    assert ledger.resume(run.id).cancel_requested_at is None


def test_deleting(ledger: Ledger) -> None:
    run = ledger.submit(spec(), experiment="e", name="n")
    child = ledger.submit(spec(2), experiment="e", parent_id=run.id)
    ledger.claim(ME, run_id=run.id)
    for verb in (lambda: ledger.delete(run.id), lambda: ledger.delete_experiment("e")):
        with pytest.raises(IllegalTransition, match="at work"):
            verb()
    ledger.fail(run.id, 1, "r", "d")
    assert [r.id for r in ledger.runs(parent_id=run.id)] == [child.id]
    ledger.delete(run.id)
    for missing in (run.id, child.id):
        with pytest.raises(NotFound):
            ledger.get(missing)
    assert ledger.events(run.id) == []
    ledger.delete_experiment("e")
    with pytest.raises(NotFound):
        ledger.experiment("e")


def test_finding_and_paging(ledger: Ledger) -> None:
    assert ledger.create_experiment("e", "about").description == "about"
    assert ledger.create_experiment("e", "other").description == "about"
    made = [ledger.submit(spec(i), name=f"n{i}", experiment="e") for i in range(7)]
    newest = [r.id for r in reversed(made)]
    made.append(ledger.submit(spec(8), name="second-run", experiment="other"))
    assert [r.id for page in (1, 2, 3, 4) for r in ledger.runs("e", page=page, size=3)] == newest
    assert ledger.find("n3").id == ledger.find(made[3].id, "e").id == made[3].id
    with pytest.raises(NotFound, match="did you mean 'second-run'"):
        ledger.find("secondrun", "other")
    with pytest.raises(NotFound, match="did you mean"):
        ledger.experiment("E")
    assert sorted(e.name for e in ledger.experiments()) == ["e", "other"]
    assert len(ledger.runs(status="CREATED")) == 8
    with pytest.raises(ValueError, match="count from 1"):
        ledger.runs(page=0)


def test_workers_are_known_while_they_live(ledger: Ledger) -> None:
    assert ledger.devices() == set()
    mine = ledger.register_worker(ME, devices=["cpu"])
    ledger.register_worker(Process(ME.host, ME.boot, ME.pid, "1"), devices=["cuda"])
    ledger.register_worker(Process("elsewhere", "b", 1, "1"), devices=["mps"])
    assert ledger.devices() == {"cpu", "mps"}
    assert ledger.forget_dead_workers() == 1
    assert ledger.refresh_worker(mine, ["cpu", "cuda"])
    assert ledger.devices() == {"cpu", "cuda", "mps"}
    ledger.forget_worker(mine)
    assert not ledger.refresh_worker(mine)


# What the database itself refuses


COLUMNS = {
    "CREATED": "lease_expires_at=NULL, holder=NULL, finished_at=NULL, cancel_requested_at=NULL",
    "STARTED": "lease_expires_at=9e9, holder='h', finished_at=NULL",
    "FINISHED": "lease_expires_at=NULL, holder=NULL, finished_at=1, artifact_id='a'",
    "FAILED": "lease_expires_at=NULL, holder=NULL, finished_at=1",
    "CANCELLED": "lease_expires_at=NULL, holder=NULL, finished_at=1",
}


def put(ledger: Ledger, status: str) -> str:
    """A run that came to a status by the legal way."""
    run_id = ledger.submit(spec()).id
    if status == "CANCELLED":
        ledger.cancel(run_id)
    elif status != "CREATED":
        ledger.claim(ME, run_id=run_id)
        if status == "FINISHED":
            ledger.finish(run_id, 1, ARTIFACT)
        elif status == "FAILED":
            ledger.fail(run_id, 1, "r", "d")
    return run_id


@pytest.mark.parametrize("old", tables.STATUSES)
@pytest.mark.parametrize("new", tables.STATUSES)
def test_raw_sql_can_only_do_what_is_legal(ledger: Ledger, old: str, new: str) -> None:
    run_id = put(ledger, old)
    epoch = "epoch + 1" if (old, new) == ("CREATED", "STARTED") else "epoch"
    statement = f"UPDATE runs SET status='{new}', epoch={epoch}, {COLUMNS[new]} WHERE id='{run_id}'"
    if (old, new) in tables.LEGAL or old == new != "FINISHED":
        raw(ledger, statement)
        assert ledger.get(run_id).status == new
    else:
        with pytest.raises((IllegalTransition, sa.exc.IntegrityError)):
            raw(ledger, statement)
        assert ledger.get(run_id).status == old


def raw(ledger: Ledger, statement: str) -> None:
    with ledger.database.write() as connection:
        connection.execute(sa.text(statement))


@pytest.mark.parametrize(
    ("status", "change"),
    [
        ("CREATED", "epoch = epoch + 1"),
        ("STARTED", "epoch = epoch + 1"),
        ("STARTED", "epoch = epoch - 1"),
        ("STARTED", "lease_expires_at = NULL"),
        ("STARTED", "holder = NULL"),
        ("CREATED", "status = 'STARTED', lease_expires_at = 1, holder = 'h'"),  # epoch stays
        ("CREATED", "status = 'BORED'"),
        ("CREATED", "spec = '{}'"),
        ("CREATED", "spec_id = 'x'"),
        ("CREATED", "\"key\" = 'x'"),
        ("CREATED", "finished_at = 1"),
        ("CREATED", "cancel_requested_at = 1"),
        ("FINISHED", "artifact_id = 'other'"),
        ("FINISHED", "artifact_id = NULL"),
        ("FINISHED", "finished_at = NULL"),
        ("FINISHED", "cancel_requested_at = 1"),
        ("FAILED", "name = NULL"),
    ],
)
def test_raw_sql_cannot_break_an_invariant(ledger: Ledger, status: str, change: str) -> None:
    run_id = put(ledger, status)
    before = ledger.get(run_id)
    with pytest.raises((IllegalTransition, sa.exc.IntegrityError)):
        raw(ledger, f"UPDATE runs SET {change} WHERE id='{run_id}'")
    assert ledger.get(run_id) == before


def test_raw_sql_cannot_rewrite_history(ledger: Ledger) -> None:
    run_id = put(ledger, "STARTED")
    ledger.cancel(run_id)
    for statement in (
        "UPDATE events SET data = '{}'",
        f"UPDATE runs SET cancel_requested_at = NULL WHERE id='{run_id}'",
        f"DELETE FROM runs WHERE id='{run_id}'",
    ):
        with pytest.raises((IllegalTransition, sa.exc.IntegrityError, StoreError)):
            raw(ledger, statement)
    copied = (
        "INSERT INTO runs SELECT 'new', experiment_id, 'new', description, spec, spec_id, NULL, "
        "device, public, NULL, status, reason, details, epoch, attempt, crashes, generation, "
        "checkpoint_step, worker_id, holder, lease_expires_at, NULL, artifact_id, metrics, "
        "created_at, started_at, finished_at, updated_at, kind, pause_after FROM runs"
    )
    with pytest.raises((IllegalTransition, sa.exc.IntegrityError)):
        raw(ledger, copied)


# The database


def test_the_tables_are_those_of_the_newest_migration(ledger: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with ledger.database.read() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == tables.HEAD
        assert compare_metadata(context, tables.metadata) == []


def test_opening_again_loads_no_alembic(url: str) -> None:
    Ledger(url).close()
    code = (
        "import sys; from luthier.runs.ledger import Ledger; "
        f"Ledger({url!r}).runs(); print([m for m in ('alembic', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_many_open_a_new_database_at_once(url: str) -> None:
    barrier = threading.Barrier(8)

    def open_it(_: int) -> int:
        barrier.wait()
        mine = Ledger(url)
        mine.submit(spec())
        mine.close()
        return 1

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(open_it, range(8))) == 8
    assert len(Ledger(url).runs()) == 8


def test_sqlite_promises_durability(tmp_path: object) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/a.db")
    with ledger.database.read() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    with pytest.raises(StoreError, match="cannot promise durability"):
        Ledger("sqlite:///:memory:")  # as any file system where a write-ahead log cannot be


def test_bad_databases_are_named(tmp_path: object) -> None:
    from pathlib import Path

    damaged = Path(str(tmp_path)) / "damaged.db"
    damaged.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        Ledger(f"sqlite:///{damaged}")
    with pytest.raises(StoreError):
        Ledger("nonsense")
    with pytest.raises(StoreError):
        Ledger("nosuch://host/db")
    newer = f"sqlite:///{tmp_path}/newer.db"
    ledger = Ledger(newer)
    raw(ledger, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="upgrade luthier"):
        Database(newer)


def test_no_password_is_shown() -> None:
    with pytest.raises(StoreError) as caught:
        Ledger("postgresql://user:secret@127.0.0.1:1/db?connect_timeout=1")
    assert "secret" not in str(caught.value)
