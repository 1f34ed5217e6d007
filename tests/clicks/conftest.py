"""A database of each kind: SQLite always, PostgreSQL where a server can be started."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.testing.postgresql import server, server_binaries


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real server, started for these tests; skipped where there are no binaries."""
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

    place = request.getfixturevalue("postgresql")
    name = f"clicks{next(_databases)}"
    with psycopg.connect(f"{place}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{place}/{name}"
