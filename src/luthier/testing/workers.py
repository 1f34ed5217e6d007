"""Workers of a home as forks: started when a test asks for one, ended when it is over."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from luthier.environment import MACHINE, WORKER
from luthier.runs.connection import Home
from luthier.runs.process import Process
from luthier.testing.forkserver import Forked, ForkServer

#: What every worker of the stand-in engine imports.
PRELOADED = ("luthier.testing.toy_engine", "luthier.worker.supervisor", "torch._dynamo")


@contextmanager
def quiet_home(folder: Path) -> Iterator[Home]:
    """A new home for which no worker starts by itself: neither here nor in processes of ours."""
    before = os.environ.get(WORKER)
    os.environ[WORKER] = "none"
    home = Home(folder)
    try:
        yield home
    finally:
        home.close()
        os.environ.pop(WORKER)
        if before is not None:
            os.environ[WORKER] = before


class Starter:
    """Starts workers of a home: ``start("--once")``."""

    def __init__(self, home: Home, forks: ForkServer, log: Path) -> None:
        self.home, self.forks, self.log = home, forks, log
        self._started: list[Forked] = []

    def __call__(
        self,
        *words: str,
        engine: str = "luthier.testing.toy_engine",
        env: Mapping[str, str] | None = None,
    ) -> Forked:
        """A worker with these words of ``luthier worker``, in an environment with ``env``. The
        name of the machine is told anew: the server of the forks is older than the test."""
        told = {MACHINE: os.environ[MACHINE]} if MACHINE in os.environ else {}
        worker = self.forks.call(
            "luthier.worker.main:main",
            ["--home", self.home.place, "--engine", engine, "--lean", *words],
            output=self.log,
            env=told | dict(env or {}),
        )
        self._started.append(worker)
        return worker

    def end(self) -> None:
        """End all of them, and what they left at work; print what they said."""
        for worker in self._started:
            worker.signal(signal.SIGTERM)
        for worker in self._started:
            worker.wait(20)
        for run in self.home.ledger.held():
            if run.holder:
                os.kill(Process.parse(run.holder).pid, signal.SIGKILL)
        if self.log.exists():
            print(self.log.read_text())


@contextmanager
def starting(home: Home, forks: ForkServer, folder: Path) -> Iterator[Starter]:
    """What starts workers, with their log in a folder; they end with the block."""
    starter = Starter(home, forks, folder / "worker.log")
    yield starter
    starter.end()
