"""A home with a warm worker in it; no embedded one starts by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.runs.connection import Home
from luthier.runs.process import Process
from luthier.testing.forkserver import Forked, ForkServer


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A new home."""
    monkeypatch.setenv("LUTHIER_WORKER", "none")
    opened = Home(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Forks processes in which torch and optuna are loaded already."""
    with ForkServer(
        [
            *("luthier.testing.toy_engine", "luthier.worker.supervisor", "torch._dynamo"),
            *("luthier.search.conductor", "optuna"),
        ]
    ) as server:
        yield server


@pytest.fixture
def start(home: Home, forks: ForkServer, tmp_path: Path) -> Iterator[Callable[..., Forked]]:
    """Starts workers of the home, with the stand-in engine; ends them afterwards."""
    started: list[Forked] = []

    def go(*words: str, engine: str = "luthier.testing.toy_engine") -> Forked:
        command = ["--home", home.place, "--engine", engine, "--lean"]
        worker = forks.call(
            "luthier.worker.main:main", [*command, *words], output=tmp_path / "worker.log"
        )
        started.append(worker)
        return worker

    yield go
    for worker in started:
        worker.signal(signal.SIGTERM)
    for worker in started:
        worker.wait(20)
    for run in home.ledger.held():
        if run.holder:
            os.kill(Process.parse(run.holder).pid, signal.SIGKILL)
    if (tmp_path / "worker.log").exists():
        print((tmp_path / "worker.log").read_text())
