"""One fork server for all durability tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from luthier.testing.forkserver import ForkServer


@pytest.fixture(scope="session")
def storm_forks() -> Iterator[ForkServer]:
    """Forks processes in which torch and the stand-in engine are loaded already."""
    preload = ["luthier.worker.supervisor", "luthier.testing.durability.actors"]
    with ForkServer([*preload, "luthier.testing.toy_engine", "torch._dynamo"]) as server:
        yield server
