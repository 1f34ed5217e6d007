"""A ledger of each kind: SQLite always, PostgreSQL where a server can be started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.runs.ledger import Ledger
from luthier.testing.postgresql import server, server_binaries


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real server, started for these tests; skipped where there are no binaries.

    Its folder is not below pytest's: that is closed to all but its owner, and the server
    must run as somebody who is not root.
    """
    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="luthier-postgresql-") as folder,
        server(binaries, Path(folder)) as url,
    ):
        yield url


_databases = iter(range(10**6))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/luthier.db"
    import psycopg

    server = request.getfixturevalue("postgresql")
    name = f"t{next(_databases)}"
    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{server}/{name}"


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger in a new database."""
    opened = Ledger(url)
    yield opened
    opened.close()
