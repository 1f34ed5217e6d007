"""A command line in this process, with a home of its own and no worker unless one is started."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from luthier.cli.main import run
from luthier.runs import connection


@dataclass(frozen=True)
class Said:
    """What a command said: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self):
        return json.loads(self.out)


@pytest.fixture
def luthier(capsys, tmp_path, monkeypatch):
    """``luthier("runs", "list")`` → what it said. The home is a folder of this test."""
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LUTHIER_WORKER", "none")
    monkeypatch.delenv("LUTHIER_DEBUG", raising=False)
    before = connection._current

    def call(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    yield call
    if connection._current is not None:
        connection._current.close()
    connection._current = before


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A folder with a tiny random encoder."""
    import torch

    from luthier.testing.models import tiny_text_model

    torch.set_num_threads(1)
    return tiny_text_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> Path:
    """60 pairs in a CSV file."""
    file = tmp_path_factory.mktemp("data") / "pairs.csv"
    lines = [f"word {i},the meaning of number {i}" for i in range(60)]
    file.write_text("\n".join(["anchor,positive", *lines]) + "\n")
    return file


@pytest.fixture
def job(tiny, pairs):
    """The words of a job that can run."""
    loss = "MultipleNegativesRankingLoss"
    return ["--model", str(tiny), "--train-data", str(pairs), "--loss", loss, "--max-steps", "3"]
