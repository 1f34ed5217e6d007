"""The quick form of the durability harness; ``python -m luthier.testing.durability`` is the full.

Each test runs real processes and kills or stops them; what is asserted is what was promised.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.errors import DiskFull
from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.testing.durability import failures, guards, kills, scoreboard
from luthier.testing.durability.jobs import (
    Jobs,
    faults,
    illegal_history,
    real_jobs,
    toy_jobs,
    update_jobs,
)
from luthier.testing.forkserver import ForkServer
from luthier.testing.toy_engine import toy_spec
from luthier.testing.waiting import until


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def test_kills_at_random_instants(place: Path, storm_forks: ForkServer) -> None:
    jobs = toy_jobs(steps=20, step_ms=10)
    jobs = Jobs(jobs.engine, jobs.specs[:3])
    score, wrong = kills.kill_at_random(place, jobs, storm_forks, 15, pause_s=0.3)
    assert wrong == []
    assert score.trials >= 15


def test_every_point_dies_once(place: Path, storm_forks: ForkServer) -> None:
    jobs = toy_jobs(steps=2, step_ms=0)
    score, wrong = failures.fail_at_points(place, jobs, storm_forks, ("kill",), per_point=1)
    assert wrong == []
    assert score.trials >= 12


def test_stolen_leases(place: Path, storm_forks: ForkServer) -> None:
    jobs = toy_jobs(steps=20, step_ms=15)
    assert failures.steal_leases(place, jobs, storm_forks, 2)[1] == []


def test_cancels_at_random_instants(place: Path, storm_forks: ForkServer) -> None:
    assert failures.cancel_at_random(place, toy_jobs(), storm_forks, 6)[1] == []


def test_64_clients_with_one_key(place: Path, storm_forks: ForkServer) -> None:
    score, wrong = failures.submit_together(place, toy_spec(), storm_forks, 64, keys=1)
    assert wrong == []
    assert score.trials == 64


@pytest.mark.parametrize(
    "check", dict.fromkeys(m.check for m in guards.MUTANTS if not m.needs_torch)
)
def test_the_guards_hold(place: Path, check) -> None:
    assert check(place) == []


QUICK = ("epoch of the lease", "fsync of what was written", "UNIQUE idempotency key")


def test_a_deleted_guard_is_noticed(place: Path) -> None:
    """Three of them; the others in the full form."""
    mutants = tuple(m for m in guards.MUTANTS if m.guard in QUICK)
    assert len(mutants) == len(QUICK)
    assert guards.delete_guards(place, mutants)[1] == []


@pytest.mark.slow
def test_every_deleted_guard_is_noticed(place: Path) -> None:
    assert guards.delete_guards(place)[1] == []


def test_each_optimizer_of_the_stand_in_is_killed_once(
    place: Path, storm_forks: ForkServer
) -> None:
    assert failures.kill_each(place, toy_jobs(4, 0), storm_forks)[1] == []


def test_updates_are_killed_and_remember_the_same(place: Path) -> None:
    preload = ("luthier.worker.supervisor", "luthier.testing.durability.actors")
    data = place / "data"
    data.mkdir()
    with ForkServer(
        (*preload, "sentence_transformers", "luthier.engine.run", "torch._dynamo")
    ) as forks:
        jobs = update_jobs(data, ("DER",))
        score, wrong = failures.kill_each(place, jobs, forks, each="updater")
        assert wrong == []
        assert score.trials == 1


@pytest.mark.slow
def test_kills_with_the_real_engine(place: Path) -> None:
    preload = ("luthier.worker.supervisor", "luthier.testing.durability.actors")
    with ForkServer(
        (*preload, "sentence_transformers", "luthier.engine.run", "torch._dynamo")
    ) as forks:
        jobs = real_jobs(place)
        (place / "each").mkdir()
        assert failures.kill_each(place / "each", jobs, forks)[1] == []
        assert kills.kill_at_random(place, jobs, forks, 20, pause_s=1.5)[1] == []


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A real file system of six megabytes."""
    folder = place / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("room_kb", [400, 0])
def test_a_full_disk_is_a_clear_end_or_a_pause(
    place: Path, small_disk: Path, storm_forks: ForkServer, room_kb: int
) -> None:
    """With room for the ledger's words but not for a checkpoint, the run ends as disk_full and
    can be resumed. Without any room nothing can be said; the work waits and then goes on."""
    spec = toy_spec(4, padding_kb=600)
    home = Home(small_disk / "home")
    run = Run(home, home.ledger.submit(spec).id)
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        free = shutil.disk_usage(small_disk).free
        file.write(bytes(free - room_kb * 1000))
    words = (home.place, "luthier.testing.toy_engine", "--once")
    log = place / "log"
    log.touch()
    worker = storm_forks.call(failures.WORK, *words, output=log)
    if room_kb:
        assert worker.wait() == 0, log.read_text()
        assert (run.status()["status"], run.status()["reason"]) == ("FAILED", "disk_full")
        assert home.store.artifact_ids() == []
        ballast.unlink()
        run.resume()
        worker = storm_forks.call(failures.WORK, *words, output=log)
    else:
        until(lambda: worker.poll() is not None or "no space left" in log.read_text())
        ballast.unlink()
        if worker.wait() != 0:  # it could not even say that it is there
            worker = storm_forks.call(failures.WORK, *words, output=log)
    assert worker.wait() == 0
    jobs = Jobs("luthier.testing.toy_engine", (spec,))
    expected = kills.undisturbed(place / "calm", jobs, storm_forks)
    assert faults(home, run, expected[spec.id]) == []
    home.close()


def test_a_file_size_limit_is_a_full_disk(place: Path) -> None:
    """What a quota does, done with a limit of the process: EFBIG in the middle of a write."""
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from luthier.store.bundle import write_bundle; from luthier.errors import DiskFull\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
        "try:\n    write_bundle(Path(sys.argv[1]), "
        "lambda f: (f / 'w').write_bytes(bytes(20_000)), {})\n"
        "except DiskFull as error:\n    print(error.code)"
    )
    target = place / "home" / "step-1"
    done = subprocess.run(
        [sys.executable, "-c", code, target], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == DiskFull.code
    assert list(target.parent.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 10_000
    assert errno.EFBIG


def test_the_checks_of_a_history_find_what_cannot_have_been() -> None:
    from luthier.runs.records import Event

    def history(*statuses: str) -> list[Event]:
        return [Event(i + 1, 0.0, 0, "status", {"status": s}) for i, s in enumerate(statuses)]

    assert illegal_history(history("CREATED", "STARTED", "FINISHED")) == []
    assert illegal_history(history("CREATED", "STARTED", "FINISHED", "FINISHED")) != []
    assert illegal_history(history("CREATED", "FINISHED")) != []
    assert illegal_history(history("STARTED")) != []
    assert illegal_history(history("CREATED", "STARTED")[::-1]) != []


def test_the_scoreboard_keeps_what_was_not_tried_again(place: Path) -> None:
    board = place / "scoreboard.md"
    scoreboard.write(
        [scoreboard.Score("a", 1, 0, 1.0), scoreboard.Score("b", 2, 0, 1.0)], board, "c1"
    )
    scoreboard.write([scoreboard.Score("b", 3000, 1, 1.0, "facts")], board, "c2")
    known = json.loads(board.with_suffix(".json").read_text())
    assert {name: line["trials"] for name, line in known.items()} == {"a": 1, "b": 3000}
    assert "| b | 3,000 | 1 |" in board.read_text()
    assert {name: line["commit"] for name, line in known.items()} == {"a": "c1", "b": "c2"}
