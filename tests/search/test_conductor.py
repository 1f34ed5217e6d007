"""Searches with real workers, real signals and the stand-in engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.search.summary import read_summary
from luthier.spec import JobSpec, parse_spec
from luthier.testing.forkserver import Forked
from luthier.testing.toy_engine import result, toy_spec
from luthier.testing.waiting import until

Start = Callable[..., Forked]

RATES = {"training.learning_rate": {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True}}


def toy_search(steps: int = 6, space: Any = None, options: Any = None, **search: Any) -> JobSpec:
    """A search over the stand-in engine's learning rate, by its last loss."""
    base = toy_spec(steps, **(options or {})).model_dump(mode="json")
    base["training"]["eval_steps"] = 1
    words = {"space": space or RATES, "metrics": ["loss"], "max_trials": 4, "algorithm": "random"}
    return parse_spec(base | {"search": words | search})


def ended(run: Run) -> Run:
    until(lambda: run.record().ended, 60)
    return run


def test_the_best_trial_is_the_search_s_model(home: Home, start: Start) -> None:
    run = home.submit(toy_search())
    assert start("--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED", run.logs()
    trials = home.ledger.trials(run.id)
    assert [t.status for t in trials] == ["FINISHED"] * 4
    best = min(trials, key=lambda t: t.metrics["loss"])
    assert run.artifact_id == best.artifact_id
    found = run.metrics()["search"]
    assert found["best"]["scores"] == {"loss": best.metrics["loss"]}
    assert found["trials"] == {
        "all": 4, "complete": 4, "pruned": 0, "failed": 0, "cancelled": 0,
    }  # fmt: skip
    summary = read_summary(home, run.name)
    assert [t.number for t in summary.trials] == [0, 1, 2, 3]
    page = (home.run_folder(run.record()) / "search.html").read_text()
    assert "<svg" in page


def test_the_best_trial_s_spec_gives_the_same_model_alone(home: Home, start: Start) -> None:
    run = home.submit(toy_search())
    start("--idle-exit-s", "60")
    ended(run)
    best = run.metrics()["search"]["best"]
    again = home.submit(home.ledger.get(best["run_id"]).spec)
    ended(again)
    assert again.spec.search is None
    assert result(home.store.artifact(again.artifact_id)) == result(
        home.store.artifact(run.artifact_id)
    )


def test_a_trial_that_fails_is_failed_and_never_scored(home: Home, start: Start) -> None:
    """Three of five raise; the search goes on, and its best is one that finished."""
    space = RATES | {
        "model.options.do": {"type": "ordinal", "categories": ["raise", "exit", "none"]},
    }
    run = home.submit(
        toy_search(space=space, options={"at": 2, "do": "none"}, max_trials=9, algorithm="grid")
    )
    assert start("--once").wait(60) == 0
    found = read_summary(home, run.id)
    assert {t.values["model.options.do"]: t.state for t in found.trials} == {
        "raise": "failed", "exit": "failed", "none": "complete",
    }  # fmt: skip
    assert found.best is not None
    assert found.best.values["model.options.do"] == "none"
    failed = [t for t in found.trials if t.state == "failed"]
    assert all(t.scores is None for t in failed)
    assert {(t.error or "").partition(":")[0] for t in failed} == {
        "training_failed", "quarantined",
    }  # fmt: skip


def test_where_every_trial_fails_the_search_says_why_and_ends_early(
    home: Home, start: Start
) -> None:
    run = home.submit(toy_search(options={"at": 1, "do": "raise"}, max_trials=50))
    assert start("--once").wait(60) == 0
    status = run.status()
    assert (status["status"], status["reason"]) == ("FAILED", "training_failed")
    assert "the loss became nan" in status["details"]
    assert len(home.ledger.trials(run.id)) <= 7


def test_a_metric_that_no_trial_has_fails_the_trials(home: Home, start: Start) -> None:
    run = home.submit(toy_search(metrics=["accuracy"], max_trials=2))
    assert start("--once").wait(60) == 0
    assert "no metric 'accuracy'" in run.status()["details"]


def test_cancelling_cancels_the_trials_and_resuming_goes_on(home: Home, start: Start) -> None:
    run = home.submit(toy_search(steps=40, options={"step_ms": 20}, max_trials=3))
    start("--idle-exit-s", "60")
    until(lambda: any(t.status == "STARTED" for t in home.ledger.trials(run.id)))
    run.cancel()
    ended(run)
    until(lambda: all(t.ended for t in home.ledger.trials(run.id)), 10)
    assert run.status()["status"] == "CANCELLED"
    trials = home.ledger.trials(run.id)
    assert {(t.status, t.reason) for t in trials} == {("CANCELLED", "search")}
    run.resume()
    ended(run)
    assert run.status()["status"] == "FINISHED", run.logs()
    assert [t.status for t in home.ledger.trials(run.id)] == ["FINISHED"] * 3


def test_a_search_that_waits_is_cancelled_with_its_trials_and_deleted_with_them(
    home: Home, start: Start
) -> None:
    run = home.submit(toy_search(max_trials=2))
    assert start("--once").wait(60) == 0
    artifacts = {t.artifact_id for t in home.ledger.trials(run.id)}
    assert len(artifacts) == 2
    run.delete()
    assert home.ledger.runs() == []
    assert home.store.artifact_ids() == []
    assert list((home.path / "runs").iterdir()) == []


def test_several_at_a_time(home: Home, start: Start) -> None:
    """A worker with room for two trials has two at work, and leading the search takes none."""
    run = home.submit(toy_search(steps=30, options={"step_ms": 20}, max_trials=4, n_workers=2))
    start("--concurrency", "2", "--idle-exit-s", "60")
    until(lambda: sum(r.status == "STARTED" for r in home.ledger.runs()) == 3)
    ended(run)
    assert run.metrics()["search"]["trials"]["complete"] == 4


def test_a_number_of_completed_trials_ends_a_search(home: Home, start: Start) -> None:
    run = home.submit(toy_search(max_trials=None, max_trials_completed=2))
    assert start("--once").wait(60) == 0
    assert run.metrics()["search"]["trials"]["complete"] in (2, 3)


def test_time_ends_a_search_and_stops_what_runs(home: Home, start: Start) -> None:
    """A trial takes a second, and there would be no end of them."""
    run = home.submit(
        toy_search(steps=10, options={"step_ms": 100}, max_trials=None, max_time_s=8.0)
    )
    assert start("--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED", run.logs()
    states = [t.state for t in read_summary(home, run.id).trials]
    assert states.count("complete") >= 1
    assert states.count("pruned") >= 1
    assert all(t.ended for t in home.ledger.trials(run.id))
