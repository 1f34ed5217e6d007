"""luthier search and luthier trials: from a file to the plain job of the best trial."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.cli.main import run as luthier
from luthier.runs import connection
from luthier.runs.connection import Home
from luthier.search.summary import read_summary
from luthier.spec import parse_spec
from luthier.testing.forkserver import Forked
from luthier.testing.waiting import until

CONFIG = """
model: {model}
train_data: pairs.csv
eval_data: held-out.csv
loss: MultipleNegativesRankingLoss
batch_size: 8
epochs: 1
device: cpu
search:
  learning_rate: loguniform(1e-4, 1e-2)
  loss_options.scale: [10.0, 20.0]
  max_trials: 9
"""


@pytest.fixture
def config(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, home: Home) -> Path:
    rows = [f"thing number {i},what is called by the name {i}" for i in range(40)]
    for name, part in (("pairs", rows[:24]), ("held-out", rows[24:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["anchor,positive", *part]) + "\n")
    file = tmp_path / "search.yaml"
    file.write_text(CONFIG.format(model=tiny_model))
    monkeypatch.setattr(connection, "_current", None)
    monkeypatch.setenv("LUTHIER_HOME", home.place)
    return file


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_a_file_is_searched_and_its_best_trial_exported(
    config: Path, home: Home, start: Callable[..., Forked], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--max-trials", "2", "--algorithm", "random", "--run-name", "s", "--json"]
    assert luthier(["search", str(config), *flags]) == 0
    assert said(capsys)["status"] == "CREATED"
    search = home.get_run("s")
    assert search.spec.search is not None
    assert (search.spec.search.max_trials, search.spec.search.algorithm) == (2, "random")
    start("--idle-exit-s", "100", engine="luthier.engine.run")
    until(lambda: search.record().ended, 280)
    plain, page = config.parent / "best.yaml", config.parent / "page.html"
    words = ["trials", "s", "--json", "--export", str(plain), "--page", str(page)]
    assert luthier(words) == 0
    found = said(capsys)
    assert [t["state"] for t in found["all"]] == ["complete", "complete"]
    best = read_summary(home, "s").best
    assert best is not None
    assert found["best"]["number"] == best.number
    exported = parse_spec(yaml.safe_load(plain.read_text()))
    assert best.run_id is not None
    assert exported.id == home.ledger.get(best.run_id).spec_id
    assert "<svg" in page.read_text()
    assert luthier(["trials", "s"]) == 0
    table = capsys.readouterr().out
    assert "learning_rate" in table.lower()
    assert "best" in table
    assert luthier(["runs", "logs", "s"]) == 0
    assert "trial 0 complete: ndcg_at_k" in capsys.readouterr().out
    assert luthier(["validate", str(plain)]) == 0


def test_ranges_by_flags_and_the_default_ranges(
    config: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    text = config.read_text()
    config.write_text(text.partition("search:")[0])
    words = ["--search", "learning_rate={uniform: [0.1, 0.2]}", "--run-name", "a", "--json"]
    assert luthier(["search", str(config), *words]) == 0
    assert luthier(["search", str(config), "--run-name", "b", "--n-workers", "2", "--json"]) == 0
    spaces = [home.get_run(name).spec.search for name in "ab"]
    assert spaces[0] is not None
    assert spaces[1] is not None
    assert list(spaces[0].space) == ["training.learning_rate"]
    assert spaces[0].space["training.learning_rate"]["lower"] == 0.1
    assert set(spaces[1].space) == {"training.learning_rate", "objective.loss_options.scale"}
    assert spaces[1].n_workers == 2


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("learning_rat=[0.1]", "did you mean 'learning_rate'"),
        ("learning_rate={logunifrom: [1, 2]}", "did you mean 'loguniform'"),
        ("max_trials=0", "max_trials"),
        ("constraints=[seconds]", "is none"),
    ],
)
def test_what_is_wrong_is_a_usage_error(
    config: Path, home: Home, flag: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert luthier(["search", str(config), "--search", flag]) == 2
    assert message in capsys.readouterr().err
    assert home.ledger.runs() == []
