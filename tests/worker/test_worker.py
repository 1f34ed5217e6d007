"""A real worker process, real signals, and the stand-in engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.process import Process
from luthier.testing.durability.failures import stop_between_writes
from luthier.testing.forkserver import Forked, ForkServer
from luthier.testing.toy_engine import result, toy_spec
from luthier.testing.waiting import until

Start = Callable[..., Forked]


def holder_pid(run: Run) -> int:
    holder = run.record().holder
    assert holder is not None
    return Process.parse(holder).pid


def has_trained(run: Run, steps: int = 1) -> bool:
    return any(e.kind == "step" and e.data["step"] >= steps for e in run.events())


def saved(run: Run, step: int) -> bool:
    """Whether that checkpoint is there: what shows where a run is that cannot speak."""
    folder = run.home.run_folder(run.record())
    return (folder / "checkpoints" / f"step-{step:08d}").exists()


def uninterrupted(home: Home, spec: object, start: Start) -> tuple[str, list[float]]:
    """What a run of that spec gives when nothing disturbs it."""
    run = home.submit(spec, run_name="undisturbed")  # type: ignore[arg-type]
    until(lambda: run.record().ended)
    return result(home.store.artifact(run.artifact_id))


def test_runs_end_as_they_should(home: Home, start: Start) -> None:
    """Several endings in one worker: a failing run disturbs no other."""
    expected = {
        "none": ("FINISHED", None),
        "raise": ("FAILED", "training_failed"),
        "fault": ("FAILED", "fault"),
        "oom": ("FAILED", "out_of_memory"),
        "full_disk": ("FAILED", "disk_full"),
        "broken_disk": ("FAILED", "store_error"),
        "exit": ("FAILED", "quarantined"),
        "segfault": ("FAILED", "quarantined"),
    }
    runs = {how: home.submit(toy_spec(3, at=1, do=how), run_name=how) for how in expected}
    worker = start("--once")
    assert worker.wait(60) == 0
    found = {how: (run.status()["status"], run.status()["reason"]) for how, run in runs.items()}
    assert found == expected
    assert "lower the learning rate" in runs["raise"].logs()
    assert "Traceback" in runs["fault"].logs()
    assert "SIGSEGV" in runs["segfault"].status()["details"]
    assert [e.data["status"] for e in runs["exit"].events() if e.kind == "status"] == [
        *["CREATED", "STARTED"] * 3,
        "FAILED",
    ]
    finished = runs["none"]
    assert finished.metrics() == {"loss": result(home.store.artifact(finished.artifact_id))[1][-1]}
    steps = [e.data["step"] for e in finished.events() if e.kind == "step"]
    assert steps[-1] == 3  # the last is always written
    assert os.listdir(home.run_folder(finished.record())) == ["console.log"]
    assert home.ledger.workers() == []


def test_a_killed_run_goes_on_bit_for_bit(home: Home, start: Start) -> None:
    start()
    spec = toy_spec(160, step_ms=10, save_steps=3)
    whole = uninterrupted(home, spec, start)
    run = home.submit(spec)

    killed: set[str] = set()

    def goes_on(steps: int) -> bool:
        """So far, and further than where it was last taken up: three kills without a checkpoint
        between them put a run aside. Where the machine is slow more steps are done by now."""
        record = run.record()
        new = record.holder and record.holder not in killed
        return has_trained(run, steps) and bool(new) and record.crashes == 0

    for steps in (5, 15, 25):
        until(lambda n=steps: goes_on(n))  # type: ignore[misc]
        killed.add(str(run.record().holder))
        os.kill(holder_pid(run), signal.SIGKILL)
    until(lambda: run.record().ended)
    assert run.status()["status"] == "FINISHED"
    assert run.record().attempt >= 3
    assert result(home.store.artifact(run.artifact_id)) == whole


def test_a_killed_worker_is_replaced_and_its_child_goes_on(home: Home, start: Start) -> None:
    first = start()
    run = home.submit(toy_spec(100, step_ms=10))
    until(lambda: has_trained(run))
    first.signal(signal.SIGKILL)
    first.wait()
    pid = holder_pid(run)
    start()
    until(lambda: run.record().ended)
    assert run.status()["status"] == "FINISHED"
    assert run.record().attempt == 1, f"process {pid} needed no second attempt"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_saves_and_gives_back(
    home: Home, start: Start, number: signal.Signals
) -> None:
    worker = start()
    spec = toy_spec(60, step_ms=20, save_steps=1000)
    run = home.submit(spec)
    until(lambda: has_trained(run, 3))
    begun = time.monotonic()
    worker.signal(number)
    assert worker.wait(20) == 0
    assert time.monotonic() - begun < 5
    record = run.record()
    assert (record.status, record.reason, record.crashes) == ("CREATED", "interrupted", 0)
    assert os.listdir(home.run_folder(record) / "checkpoints") != []
    start("--once")
    until(lambda: run.record().ended)
    assert "resuming after step" in run.logs()
    assert run.status()["status"] == "FINISHED"


def test_a_stop_does_not_wait_for_a_stuck_run(home: Home, start: Start) -> None:
    worker = start()
    run = home.submit(toy_spec(at=2, do="hold"))
    until(lambda: saved(run, 2))
    begun = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait(20) == 0
    assert time.monotonic() - begun < 5.5
    assert run.status()["reason"] == "interrupted"


@pytest.mark.parametrize("how", ["none", "hang", "hold"])
def test_cancelling_is_prompt_even_when_the_run_is_stuck(
    home: Home, start: Start, how: str
) -> None:
    """hang: in C without the interpreter's lock; hold: with it, so even its heart stands still."""
    start()
    run = home.submit(toy_spec(10_000, step_ms=20, at=2, do=how))
    if how == "hold":
        until(lambda: saved(run, 2))
    else:
        until(lambda: has_trained(run, 2))
    begun = time.monotonic()
    run.cancel()
    until(lambda: run.record().ended, 10)
    # A stuck main thread is given its second of grace; one with the lock held is found
    # by the supervisor's next look.
    assert time.monotonic() - begun < (3.2 if how == "hold" else 2)
    assert run.status()["status"] == "CANCELLED"
    following = home.submit(toy_spec(2))
    until(lambda: following.record().ended)
    assert following.status()["status"] == "FINISHED"


def test_a_cancelled_run_can_be_resumed_and_retried(home: Home, start: Start) -> None:
    start()
    spec = toy_spec(200, step_ms=10)
    whole = uninterrupted(home, spec, start)
    run = home.submit(spec)
    until(lambda: has_trained(run, 3))
    run.cancel()
    until(lambda: run.record().ended)
    run.resume()
    until(lambda: "resuming after step" in run.logs())
    run.cancel()
    until(lambda: run.record().ended)
    assert run.logs().count("resuming after step") == 1
    run.retry()
    until(lambda: run.record().ended)
    assert run.logs().count("resuming after step") == 1
    assert result(home.store.artifact(run.artifact_id)) == whole
    assert not (home.path / "runs" / run.id / "checkpoints").exists()


def test_a_process_stopped_with_the_database_locked_is_ended(home: Home, forks: ForkServer) -> None:
    """The worst moment to be stopped: in the middle of a write, the lease in hand."""
    run = home.submit(toy_spec())
    stopped = forks.call("luthier.testing.durability.actors:claim_and_stop_locked", home.place)
    until(lambda: run.record().status == "STARTED" and is_in_state(stopped.pid, "T"))
    until(lambda: [r.id for r in home.ledger.reap()] == [run.id])
    assert stopped.wait() == -signal.SIGKILL
    assert run.record().status == "CREATED"


def test_a_stopped_worker_that_wakes_up_publishes_nothing(
    home: Home, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP until the lease is over and another has finished the run; then SIGCONT."""
    monkeypatch.setenv("LUTHIER_MACHINE", "first")
    first = start("--lease-s", "1")
    spec = toy_spec(60, step_ms=20, save_steps=3)
    whole = uninterrupted(home, spec, start)
    run = home.submit(spec)
    until(lambda: has_trained(run, 5))
    zombie = holder_pid(run)
    first.signal(signal.SIGKILL)
    stop_between_writes(zombie, home.path / "luthier.db")
    # On the same machine it would be killed; another cannot know that it is only stopped.
    monkeypatch.setenv("LUTHIER_MACHINE", "second")
    start("--lease-s", "1")
    until(lambda: run.record().ended)
    record = run.record()
    assert (record.status, record.attempt) == ("FINISHED", 2)
    events = run.events()
    os.kill(zombie, signal.SIGCONT)
    until(lambda: is_in_state(zombie, "Z") or not os.path.exists(f"/proc/{zombie}"))
    assert (run.record(), run.events()) == (record, events)
    assert result(home.store.artifact(run.artifact_id)) == whole


def is_in_state(pid: int, state: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == state
    except FileNotFoundError:
        return False


def test_runs_in_cold_processes_too(home: Home, start: Start) -> None:
    run = home.submit(toy_spec(3))
    assert start("--spawn", "--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED"


def test_several_at_a_time(home: Home, start: Start) -> None:
    runs = [home.submit(toy_spec(30, seed=i, step_ms=20)) for i in range(3)]
    start("--once", "--concurrency", "3")
    until(lambda: all(run.record().status == "STARTED" for run in runs))
    until(lambda: all(run.record().ended for run in runs))
    assert {run.status()["status"] for run in runs} == {"FINISHED"}


def test_the_command_line_names_what_is_wrong(home: Home) -> None:
    def call(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "luthier.worker", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert "must be one or more" in call("--concurrency", "0").stderr
    assert "must be zero or more" in call("--idle-exit-s", "nan").stderr
    failed = call("--home", "/proc/no/such")
    assert (failed.returncode, "Traceback" in failed.stderr) == (9, False)


def test_a_worker_speaks_json_when_asked(home: Home) -> None:
    run = home.submit(toy_spec(2))
    command = [sys.executable, "-m", "luthier.worker", "--home", home.place, "--once", "--json"]
    done = subprocess.run(
        [*command, "--engine", "luthier.testing.toy_engine"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.status()["status"] == "FINISHED"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert any(line["message"].startswith("ready") for line in lines)
    wrong = [sys.executable, "-m", "luthier.worker", "--home", "/proc/no/such", "--json"]
    failed = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert json.loads(failed.stdout)["code"]
