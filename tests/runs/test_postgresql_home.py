"""A home whose ledger is a PostgreSQL server: several machines could share it."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.runs.connection import Home
from luthier.testing.forkserver import ForkServer
from luthier.testing.toy_engine import result, toy_spec


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_a_worker_serves_a_shared_ledger(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines by name, one database: each run is done once, and both machines work."""
    monkeypatch.setenv("LUTHIER_WORKER", "none")
    home = Home(url, store=str(tmp_path / "store"))
    assert home.place == url
    runs = [home.submit(toy_spec(20, seed=i % 2, step_ms=20)) for i in range(4)]
    words = ["--home", url, "--store", str(home.path), "--lean", "--once"]
    words += ["--engine", "luthier.testing.toy_engine"]
    with ForkServer() as forks:
        workers = [
            forks.call("luthier.worker.main:main", words, env={"LUTHIER_MACHINE": name})
            for name in ("first", "second")
        ]
        assert [worker.wait(120) for worker in workers] == [0, 0]
    assert {run.status()["status"] for run in runs} == {"FINISHED"}
    assert {run.record().attempt for run in runs} == {1}
    results = [result(home.store.artifact(run.artifact_id)) for run in runs]
    assert results[0] == results[2] != results[1] == results[3]
    home.close()
