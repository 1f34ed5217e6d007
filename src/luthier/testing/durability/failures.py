"""Failures at named points, stolen leases, cancellations, and many clients with one key."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import time
from pathlib import Path

from luthier import environment
from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.process import Process
from luthier.spec import JobSpec
from luthier.testing.durability.jobs import Jobs, faults, illegal_history
from luthier.testing.durability.kills import home_beside, undisturbed
from luthier.testing.durability.scoreboard import Score
from luthier.testing.forkserver import Forked, ForkServer
from luthier.testing.waiting import until

WORK = "luthier.testing.durability.actors:work"
#: What a run may come to when its disk failed: nothing that looks like success.
_CLEAR_ENDS = {"disk_full", "store_error", None, "crashed", "quarantined"}


def points_of(folder: Path, jobs: Jobs, spec: JobSpec, forks: ForkServer) -> dict[str, int]:
    """The points that a run passes, and how often, as the run itself tells."""
    folder.mkdir(parents=True)
    home = Home(folder / "home")
    home.ledger.submit(spec)
    trace = folder / "trace"
    words = (home.place, jobs.engine, "--once")
    assert forks.call(WORK, *words, env={environment.FAILPOINT_TRACE: str(trace)}).wait(120) == 0
    passed = trace.read_text().split()
    return {name: passed.count(name) for name in dict.fromkeys(passed)}


def fail_at_points(
    folder: Path,
    jobs: Jobs,
    forks: ForkServer,
    actions: tuple[str, ...] = ("kill", "enospc", "eio"),
    per_point: int = 2,
) -> tuple[Score, list[str]]:
    """At every point, at its first and at a later passage: die, or meet a full or broken disk.
    Then, with the disk mended, the run must come to the same result."""
    begun = time.monotonic()
    spec = jobs.specs[0]
    expected = undisturbed(folder / "calm", Jobs(jobs.engine, (spec,)), forks)[spec.id]
    points = points_of(folder / "points", jobs, spec, forks)
    wrong: list[str] = []
    trials = 0
    for name, passages in points.items():
        for passage in sorted({1, 1 + passages // 2} if per_point > 1 else {1}):
            for action in actions:
                where = f"{name}@{passage}={action}"
                home = home_beside(folder / "calm", folder / f"{trials}")
                trials += 1
                run = Run(home, home.ledger.submit(spec).id)
                words = (home.place, jobs.engine, "--once")
                once = folder / f"{trials}.acted"
                env = {environment.FAILPOINT: where, environment.FAILPOINT_ONCE: str(once)}
                worker = forks.call(WORK, *words, env=env)
                worker.wait(120)
                if not once.exists():
                    wrong.append(f"{where}: the point was not passed")
                ended = run.record()
                if ended.status == "FAILED" and ended.reason not in _CLEAR_ENDS:
                    wrong.append(f"{where}: {ended.reason} {ended.details}")
                if ended.status == "FAILED":
                    run.resume()
                if not run.record().ended:
                    forks.call(WORK, *words).wait(120)
                wrong += [f"{where}: {fault}" for fault in faults(home, run, expected)]
                home.close()
    facts = f"{len(points)} points, {', '.join(actions)}"
    promise = "a failure at every named point: a clear end, then the same result"
    return Score(promise, trials, len(wrong), time.monotonic() - begun, facts), wrong


def kill_each(
    folder: Path,
    jobs: Jobs,
    forks: ForkServer,
    seed: int = 0,
    each: str = "optimizer and scheduler",
) -> tuple[Score, list[str]]:
    """Kill every job once, at a point drawn at random: each goes on bit for bit."""
    begun = time.monotonic()
    expected = undisturbed(folder / "calm", jobs, forks)
    passages = sum(points_of(folder / "points", jobs, jobs.specs[0], forks).values())
    drawn = random.Random(seed)
    home = home_beside(folder / "calm", folder / "home")
    wrong: list[str] = []
    for number, spec in enumerate(jobs.specs):
        run = Run(home, home.ledger.submit(spec).id)
        # The last points belong to the result: a kill there leaves nothing to be resumed.
        where = f"*@{drawn.randrange(passages // 4, 3 * passages // 4)}=kill"
        acted = str(folder / f"{number}.acted")
        env = {environment.FAILPOINT: where, environment.FAILPOINT_ONCE: acted}
        forks.call(WORK, home.place, jobs.engine, "--once", env=env).wait(120)
        if run.record().attempt != 2:
            wrong.append(f"{where}: {run.record().attempt} attempts")
        wrong += [f"job {number}, {where}: {f}" for f in faults(home, run, expected[spec.id])]
    engine = "the real engine" if "toy" not in jobs.engine else "a stand-in engine"
    promise = f"each {each} killed once, {engine}: equal bit for bit"
    return Score(promise, len(jobs.specs), len(wrong), time.monotonic() - begun), wrong


def steal_leases(
    folder: Path, jobs: Jobs, forks: ForkServer, thefts: int, seed: int = 0
) -> tuple[Score, list[str]]:
    """Stop a run's process (SIGSTOP) until another machine has taken and finished its run;
    then let it wake up. It may commit nothing."""
    begun = time.monotonic()
    spec = jobs.specs[0]
    expected = undisturbed(folder / "calm", Jobs(jobs.engine, (spec,)), forks)[spec.id]
    drawn = random.Random(seed)
    wrong: list[str] = []
    for theft in range(thefts):
        home = home_beside(folder / "calm", folder / f"{theft}")
        run = Run(home, home.ledger.submit(spec).id)
        words = (home.place, jobs.engine, "--lease-s", "0.5")
        first = forks.call(WORK, *words, env={environment.MACHINE: "first"})
        until(lambda run=run: run.record().status != "CREATED")  # type: ignore[misc]
        time.sleep(drawn.random() * 0.3)  # the instant is random, that is the point
        holder = run.record().holder
        if holder is None:
            first.signal(signal.SIGTERM)
            first.wait()
            continue  # it was finished before it could be stopped
        zombie = Process.parse(holder).pid
        first.signal(signal.SIGKILL)
        stop_between_writes(zombie, home.path / "luthier.db")
        second = forks.call(WORK, *words, env={environment.MACHINE: "second"})
        until(lambda run=run: run.record().ended)  # type: ignore[misc]
        second.signal(signal.SIGTERM)
        second.wait()
        before = run.record(), run.events()
        resume_and_wait(zombie)
        if (run.record(), run.events()) != before:
            wrong.append(f"theft {theft}: a process that had lost its lease wrote")
        wrong += [f"theft {theft}: {fault}" for fault in faults(home, run, expected)]
        home.close()
    promise = "a lease is stolen from a stopped process, which wakes up: it commits nothing"
    return Score(promise, thefts, len(wrong), time.monotonic() - begun), wrong


def cancel_at_random(
    folder: Path, jobs: Jobs, forks: ForkServer, cancels: int, seed: int = 0
) -> tuple[Score, list[str]]:
    """Cancel runs at random instants: quickly over, and never both cancelled and finished."""
    begun = time.monotonic()
    drawn = random.Random(seed)
    home = Home(folder / "home")
    worker = forks.call(WORK, home.place, jobs.engine)
    wrong: list[str] = []
    took: list[float] = []
    for number in range(cancels):
        spec = jobs.specs[number % len(jobs.specs)]
        run = Run(home, home.ledger.submit(spec).id)
        time.sleep(drawn.random() * 0.6)
        asked = time.monotonic()
        try:
            run.cancel()
        except Exception:
            until(lambda run=run: run.record().ended)  # type: ignore[misc]
            if run.record().status != "FINISHED":
                raise
            continue
        until(lambda run=run: run.record().ended)  # type: ignore[misc]
        took.append(time.monotonic() - asked)
        record = run.record()
        if (record.status, record.artifact_id) != ("CANCELLED", None):
            wrong.append(f"cancel {number}: {record.status} {record.artifact_id}")
        wrong += [f"cancel {number}: {fault}" for fault in illegal_history(run.events())]
    worker.signal(signal.SIGTERM)
    worker.wait()
    took.sort()
    p99 = took[min(len(took) - 1, int(len(took) * 0.99))]
    if p99 > 2:
        wrong.append(f"the 99th percentile of a cancellation is {p99:.2f} s")
    facts = f"{len(took)} came in time; median {took[len(took) // 2]:.2f} s, p99 {p99:.2f} s"
    promise = "cancelled at a random instant: within 2 s (p99), and never finished as well"
    return Score(promise, cancels, len(wrong), time.monotonic() - begun, facts), wrong


def submit_together(
    folder: Path, spec: JobSpec, forks: ForkServer, clients: int = 64, keys: int = 5
) -> tuple[Score, list[str]]:
    """Many processes submit the same keys at the same moment: one run a key."""
    begun = time.monotonic()
    home = Home(folder / "home")
    go = folder / "go"
    names = [f"key-{number}" for number in range(keys)]
    actor = "luthier.testing.durability.actors:submit_many"
    answers = [folder / f"answer-{number}" for number in range(clients)]
    words = (home.place, names, spec.canonical())
    waiting: list[Forked] = [
        forks.call(actor, *words, str(answer), str(go), output=folder / "log") for answer in answers
    ]
    go.touch()
    wrong = [f"client {i} failed" for i, client in enumerate(waiting) if client.wait(300) != 0]
    told = {answer.read_text() for answer in answers if answer.exists()}
    count = len(home.ledger.runs(size=1000))
    if len(told) != 1:
        wrong.append(f"the clients were told {len(told)} different things")
    if count != keys:
        wrong.append(f"{keys} keys became {count} runs")
    promise = f"{clients} clients submit the same key at once: one run"
    return Score(promise, clients * keys, len(wrong), time.monotonic() - begun), wrong


def stop_between_writes(pid: int, database: Path) -> None:
    """SIGSTOP, but not while it holds the database's lock, when nobody could go on."""
    for _ in range(200):
        try:
            os.kill(pid, signal.SIGSTOP)
        except ProcessLookupError:
            return  # it ended by itself
        # A signal takes its time, and a thread that still runs may take the lock meanwhile.
        until(lambda: all_stopped(pid))
        connection = sqlite3.connect(database, timeout=0.2)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
        else:
            return
        finally:
            connection.close()
    raise AssertionError("it never let go of the lock")


def all_stopped(pid: int) -> bool:
    """Whether no thread of a process runs any more."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return False  # a thread ended while it was looked at
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in stats)


def resume_and_wait(pid: int) -> None:
    """SIGCONT, and wait until it has ended."""
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return
    until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
