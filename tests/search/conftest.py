"""A home with a warm worker in it; no embedded one starts by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.runs.connection import Home
from luthier.testing.forkserver import ForkServer
from luthier.testing.workers import PRELOADED, Starter, quiet_home, starting


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A new home."""
    with quiet_home(tmp_path / "home") as opened:
        yield opened


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Forks processes in which torch and optuna are loaded already."""
    with ForkServer([*PRELOADED, "luthier.search.conductor", "optuna"]) as server:
        yield server


@pytest.fixture
def start(home: Home, forks: ForkServer, tmp_path: Path) -> Iterator[Starter]:
    """Starts workers of the home, by default with the stand-in engine; ends them afterwards."""
    with starting(home, forks, tmp_path) as starter:
        yield starter
