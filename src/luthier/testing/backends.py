"""BackendCase: what whatever starts workers must do, to be subclassed in its test.

    class TestMyBackend(BackendCase):
        starts = "my_backend:ensure_worker"

``starts`` names a function ``(home, idle_exit_s) -> bool`` as ``module:function``: it starts a
worker of the home when none is alive, does not wait for it, and says whether it did. Workers
are real here and train a tiny model.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest

from luthier.environment import WORKER
from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.process import Process, kill
from luthier.spec import JobSpec, parse_spec
from luthier.testing.waiting import until

#: In a process of its own: make sure of a worker, say so, and wait to be killed.
_SUBMITTER = """
import sys
from luthier.runs.connection import Home
from luthier.testing.backends import ensure
place, starts, idle_exit_s = sys.argv[1:]
print(ensure(starts, Home(place), float(idle_exit_s)), flush=True)
sys.stdin.read()
"""


def ensure(starts: str, home: Home, idle_exit_s: float) -> bool:
    """Call a backend by ``module:function``."""
    module, _, name = starts.partition(":")
    return bool(getattr(import_module(module), name)(home, idle_exit_s))


class BackendCase:
    """Subclass with ``starts``."""

    starts: ClassVar[str]
    #: In how much time a worker is there, its libraries loaded, on a slow machine.
    deadline_s: ClassVar[float] = 120

    @pytest.fixture
    def home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
        """A home in which nothing but the backend starts workers."""
        monkeypatch.setenv(WORKER, "none")
        opened = Home(tmp_path / "home")
        yield opened
        for worker in opened.ledger.workers():
            kill(Process.parse(worker.process))
        opened.close()

    @pytest.fixture
    def job(self, tmp_path: Path) -> JobSpec:
        """A job of a second."""
        from luthier.testing.models import tiny_text_model

        rows = [f"thing number {i},what is called {i}" for i in range(16)]
        (tmp_path / "pairs.csv").write_text("\n".join(["anchor,positive", *rows]) + "\n")
        return parse_spec(
            {
                "model": {"name": str(tiny_text_model(tmp_path / "model"))},
                "data": {"train": {"uri": str(tmp_path / "pairs.csv")}},
                "training": {"max_steps": 2, "device": "cpu"},
            }
        )

    def ensure(self, home: Home, idle_exit_s: float = 60) -> bool:
        """Make sure of a worker; whether one was started."""
        return ensure(self.starts, home, idle_exit_s)

    def test_its_worker_outlives_who_submitted_and_leaves_when_idle(
        self, home: Home, job: JobSpec
    ) -> None:
        """The submitter and all that a closing terminal ends with it are killed at once."""
        run = home.submit(job)
        command = [sys.executable, "-c", _SUBMITTER, home.place, self.starts, "0.5"]
        submitter = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert submitter.stdout is not None
        said = submitter.stdout.readline().strip()
        for number in (signal.SIGHUP, signal.SIGKILL):
            os.killpg(submitter.pid, number)
        submitter.communicate(timeout=30)
        assert said == "True"
        until(lambda: run.record().ended, self.deadline_s)
        assert run.status()["status"] == "FINISHED", _told(home, run)
        assert home.store.artifact(run.artifact_id).is_dir()
        until(lambda: not home.ledger.workers(), self.deadline_s)
        until(lambda: self.ensure(home))  # its place is free again

    def test_many_submitters_start_one_worker(self, home: Home) -> None:
        begun = time.monotonic()
        with ThreadPoolExecutor(8) as threads:
            started = list(threads.map(lambda _: self.ensure(home), range(8)))
        assert time.monotonic() - begun < 5, "nobody waits until it is loaded"
        assert sum(started) == 1
        until(home.ledger.workers, self.deadline_s)
        assert not self.ensure(home)
        assert len(home.ledger.workers()) == 1

    def test_a_killed_worker_is_replaced(self, home: Home) -> None:
        assert self.ensure(home)
        until(home.ledger.workers, self.deadline_s)
        first = home.ledger.workers()[0].process
        assert kill(Process.parse(first))
        until(lambda: self.ensure(home))
        until(home.ledger.workers, self.deadline_s)
        assert [worker.process for worker in home.ledger.workers()] != [first]

    def test_it_starts_nothing_beside_a_standing_worker(self, home: Home) -> None:
        """Which somebody started by ``luthier worker``."""
        command = [sys.executable, "-m", "luthier.worker", "--home", home.place, "--lean"]
        with open(home.log, "ab") as log:
            standing = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            until(home.ledger.workers, self.deadline_s)
            assert not self.ensure(home)
        finally:
            standing.kill()
            standing.wait()


def _told(home: Home, run: Run) -> Any:
    """What helps to find out why a run did not finish."""
    log = home.log.read_text() if home.log.exists() else ""
    return f"{run.status()}\n{run.logs()}\n{log}"
