"""Searches with the real engine and a tiny model: through fit(), and rung by rung."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.errors import SpecError
from luthier.runs.client import Run
from luthier.runs.connection import Home, using
from luthier.search import choice, conditional, loguniform, uniform
from luthier.search.summary import read_summary
from luthier.spec import parse_spec
from luthier.testing.durability.jobs import fingerprint
from luthier.testing.forkserver import Forked
from luthier.testing.waiting import until

Start = Callable[..., Forked]
ENGINE = "luthier.engine.run"


@pytest.fixture
def words(tmp_path: Path, tiny_dropout_model: Path) -> dict[str, Any]:
    rows = [f"thing number {i},what is called by the name {i}" for i in range(64)]
    for name, part in (("pairs", rows[:40]), ("held-out", rows[40:])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["anchor,positive", *part]) + "\n")
    return {
        "model": str(tiny_dropout_model),
        "train_data": str(tmp_path / "pairs.csv"),
        "eval_data": str(tmp_path / "held-out.csv"),
        "loss": "MultipleNegativesRankingLoss",
        "batch_size": 8,
        "epochs": 4,
        "device": "cpu",
        "num_workers": 0,
    }


def ended(run: Run) -> Run:
    until(lambda: run.record().ended, 280)
    assert run.status()["status"] == "FINISHED", run.logs()
    return run


def test_a_search_by_rungs_gives_the_model_of_an_uninterrupted_run(
    home: Home, start: Start, words: dict[str, Any], tmp_path: Path
) -> None:
    """Four trials, two go on after the first epoch, one after the second to the end: each from its
    own checkpoint. Its plain spec, run alone, gives the same weights bit for bit."""
    start("--idle-exit-s", "100", engine=ENGINE)
    with using(home):
        run = luthier.fit(
            **words,
            search={
                "learning_rate": loguniform(1e-4, 1e-2),
                "optimizer": conditional(
                    {"SGD": {"optimizer_options.momentum": uniform(0.0, 0.95)}, "Adam": {}}
                ),
                "max_trials": 4,
                "pruner": "halving",
            },
        )
    ended(run)
    found = read_summary(home, run.id)
    assert found.metrics == ("ndcg_at_k",)
    assert sorted(len(t.curve) for t in found.trials) == [1, 1, 2, 4]
    assert sorted(t.state for t in found.trials) == ["complete", "pruned", "pruned", "pruned"]
    best = found.best
    assert best is not None
    assert best.run_id is not None
    record = home.ledger.get(best.run_id)
    assert record.attempt == 3
    for trial in found.trials:
        assert trial.run_id is not None
        if trial.state == "pruned":
            assert not (home.path / "runs" / trial.run_id).exists()
    alone = ended(home.submit(parse_spec(record.spec.canonical())))
    assert alone.record().attempt == 1
    assert fingerprint(home.store.artifact(alone.artifact_id)) == fingerprint(
        home.store.artifact(run.artifact_id)
    )


def test_two_metrics_give_a_front(home: Home, start: Start, words: dict[str, Any]) -> None:
    start("--idle-exit-s", "100", engine=ENGINE)
    with using(home):
        run = luthier.fit(
            **words | {"epochs": 1},
            search={
                "output_dim": choice([4, 8, 16]),
                "metrics": ["ndcg_at_k", "bytes"],
                "algorithm": "grid",
            },
        )
    ended(run)
    found = read_summary(home, run.id)
    sizes = [t.scores["bytes"] for t in found.trials if t.scores]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    assert found.directions == ("maximize", "minimize")
    assert 0 in [t.number for t in found.front()]  # nothing is smaller


def test_everything_that_is_wrong_with_a_search_is_said_at_once(
    home: Home, words: dict[str, Any]
) -> None:
    with using(home), pytest.raises(SpecError) as caught:
        luthier.fit(
            **words | {"eval_data": None},
            search={
                "learning_rat": uniform(0.1, 1),
                "loss": choice(["TripletMarginLoss", "NoSuchLoss"]),
                "max_trials": 0,
            },
        )
    said = str(caught.value)
    assert "did you mean 'learning_rate'" in said
    assert "max_trials" in said
    with using(home), pytest.raises(SpecError) as caught:
        luthier.fit(**words, search={"loss": choice(["CosineSimilarityLoss", "NoSuchLoss"])})
    assert "NoSuchLoss" in str(caught.value)
    with using(home), pytest.raises(SpecError, match="nothing would be measured"):
        luthier.fit(**words | {"eval_data": None}, search={"batch_size": [4, 8]})
    assert home.ledger.runs() == []


def test_the_default_ranges_are_searched(home: Home, words: dict[str, Any]) -> None:
    with using(home):
        run = luthier.fit(**words, search="default")
    search = run.spec.search
    assert search is not None
    assert set(search.space) == {"training.learning_rate", "objective.loss_options.scale"}
    assert search.metrics == ("ndcg_at_k",)
