"""What every test shares: one thread, no network, tiny models, a database of each kind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Which matrix product is the faster is measured once for all homes: beside other tests the
    next measurement may say otherwise, and what is compared would differ in its last bits."""
    with pytest.MonkeyPatch.context() as patch:
        file = tmp_path_factory.mktemp("figures") / "machine.json"
        patch.setenv("LUTHIER_FIGURES", str(file))
        yield


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random text encoder without dropout, as a sentence-transformers folder."""
    from luthier.testing.models import tiny_text_model

    return tiny_text_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_dropout_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with dropout, so that random states matter."""
    from luthier.testing.models import tiny_text_model

    return tiny_text_model(tmp_path_factory.mktemp("tiny") / "dropout", dropout=0.2)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, which is the faster where cores are shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a real server, started for these tests; skipped where there are no binaries.

    Its folder is not below pytest's: that is closed to all but its owner, and the server
    must run as somebody who is not root.
    """
    from luthier.testing.postgresql import server, server_binaries

    binaries = server_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed")
    pytest.importorskip("psycopg", reason="the PostgreSQL driver is not installed")
    with (
        tempfile.TemporaryDirectory(prefix="luthier-postgresql-") as folder,
        server(binaries, Path(folder)) as url,
    ):
        yield url


@pytest.fixture
def postgresql_url(postgresql: str) -> str:
    """A new, empty database of the server."""
    import psycopg

    name = f"t{next(_databases)}"
    with psycopg.connect(f"{postgresql}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return f"{postgresql}/{name}"


_databases = iter(range(10**6))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty database: SQLite always, PostgreSQL where a server can be started."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/luthier.db"
    found: str = request.getfixturevalue("postgresql_url")
    return found
