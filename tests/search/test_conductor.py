"""Searches with real workers, real signals and the stand-in engine."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.process import this_process
from luthier.search.conductor import Conductor
from luthier.search.limits import MOST_FAILED
from luthier.search.summary import read_summary
from luthier.spec import JobSpec, parse_spec
from luthier.testing.forkserver import Forked
from luthier.testing.toy_engine import result, toy_spec
from luthier.testing.waiting import until
from luthier.worker import leading, supervisor
from luthier.worker.supervisor import Orders, Supervisor
from luthier.worker.teller import Teller

Start = Callable[..., Forked]

RATES = {"training.learning_rate": {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True}}


def toy_search(steps: int = 6, space: Any = None, options: Any = None, **search: Any) -> JobSpec:
    """A search over the stand-in engine's learning rate, by its last loss."""
    base = toy_spec(steps, **(options or {})).model_dump(mode="json")
    base["training"]["eval_steps"] = 1
    words = {"space": space or RATES, "metrics": ["loss"], "max_trials": 4, "algorithm": "random"}
    return parse_spec(base | {"search": words | search})


def ended(run: Run) -> Run:
    until(lambda: run.record().ended, 120)
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
    folder = home.run_folder(run.record())
    page = (folder / "search.html").read_text()
    assert "<svg" in page
    (link,) = re.findall(r"href='([^']+)'", page)
    assert (folder / link).parents[1] == folder / "../../artifacts" / run.artifact_id
    assert (folder / link).parent.is_dir()  # with a real engine the report is in it


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
    assert len(home.ledger.trials(run.id)) == MOST_FAILED


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
    assert run.metrics()["search"]["trials"]["complete"] == 2


def test_time_ends_a_search_and_stops_what_runs(home: Home, start: Start) -> None:
    """The first trial takes half a second, the second would take hours."""
    lengths = {"training.max_steps": {"type": "ordinal", "categories": [5, 100_000]}}
    run = home.submit(
        toy_search(
            space=lengths, options={"step_ms": 100}, algorithm="grid", max_trials=2, max_time_s=8.0
        )
    )
    assert start("--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED", run.logs()
    states = [t.state for t in read_summary(home, run.id).trials]
    assert states == ["complete", "pruned"]
    assert all(t.ended for t in home.ledger.trials(run.id))


def test_a_search_done_again_from_the_start_makes_its_trials_anew(home: Home, start: Start) -> None:
    run = home.submit(toy_search(steps=200, options={"step_ms": 20}, max_trials=2))
    start("--idle-exit-s", "60")
    until(lambda: any(t.status == "STARTED" for t in home.ledger.trials(run.id)))
    run.cancel()
    ended(run)
    run.retry()
    until(lambda: len(home.ledger.trials(run.id)) > 2)
    keys = [t.key for t in home.ledger.trials(run.id)]
    assert len(set(keys)) == len(keys)
    assert all(key and key.split("/")[1] == "1" for key in keys[2:])
    run.cancel()
    ended(run)


def test_what_falls_behind_the_median_is_stopped(home: Home, start: Start) -> None:
    """Three trials that learn, and one that diverges."""
    rates = {"training.learning_rate": {"type": "ordinal", "categories": [0.01, 0.02, 0.03, 30.0]}}
    run = home.submit(
        toy_search(
            steps=40, space=rates, options={"step_ms": 50},
            algorithm="grid", pruner="median", max_trials=4,
        )
    )  # fmt: skip
    assert start("--once").wait(90) == 0
    trials = read_summary(home, run.id).trials
    assert [t.state for t in trials] == ["complete"] * 3 + ["pruned"]
    assert len(trials[3].curve) < 40
    assert home.ledger.trials(run.id)[3].reason == "pruned"
    assert not (home.path / "runs" / (trials[3].run_id or "")).exists()


def test_a_constraint_on_a_metric_keeps_the_best_from_being_chosen(
    home: Home, start: Start
) -> None:
    start("--idle-exit-s", "60")
    free = ended(home.submit(toy_search()))
    losses = sorted(t.metrics["loss"] for t in home.ledger.trials(free.id))
    bound = (losses[1] + losses[2]) / 2
    bound_run = ended(home.submit(toy_search(constraints=[f"loss >= {bound!r}"])))
    found = read_summary(home, bound_run.id)
    assert sorted(t.scores["loss"] for t in found.trials if t.scores) == losses
    assert found.best is not None
    assert found.best.scores == {"loss": losses[2]}
    assert bound_run.metrics()["loss"] == losses[2]


def test_a_constraint_on_a_field_is_kept_by_every_trial(home: Home, start: Start) -> None:
    run = home.submit(toy_search(constraints=["training.learning_rate <= 0.01"]))
    assert start("--once").wait(60) == 0
    rates = [t.values["training.learning_rate"] for t in read_summary(home, run.id).trials]
    assert len(rates) == 4
    assert max(rates) <= 0.01


def test_what_earlier_searches_found_is_tried_first(home: Home, start: Start) -> None:
    start("--idle-exit-s", "60")
    first = ended(home.submit(toy_search()))
    ranked = read_summary(home, first.id).ranked()
    given = {"training.learning_rate": 0.5}
    second = ended(
        home.submit(
            toy_search(
                initial=[given], warm_start=[first.id], warm_start_top=2, sampling_seed=1,
            )
        )
    )  # fmt: skip
    tried = [t.values for t in read_summary(home, second.id).trials]
    assert tried[:3] == [given, ranked[0].values, ranked[1].values]
    third = home.submit(toy_search(warm_start=[first.id], algorithm="tpe", max_trials=1))
    ended(third)
    assert "4 trials of earlier searches are known" in third.logs()
    alone = ended(home.submit(toy_search(algorithm="tpe", max_trials=1)))
    assert read_summary(home, third.id).trials[0].values == (
        read_summary(home, alone.id).trials[0].values
    )  # four are too few to learn from: both draw at random


def test_money_ends_a_search(home: Home, start: Start) -> None:
    """At a thousand an hour a trial of a second costs 28 cents."""
    run = home.submit(
        toy_search(
            steps=10, options={"step_ms": 100}, max_trials=None, max_cost=1.2, cost_per_hour=1000.0
        )
    )
    assert start("--once").wait(90) == 0
    found = read_summary(home, run.id)
    assert found.best is not None
    spent = sum(t.seconds for t in found.trials) * 1000 / 3600
    assert spent + 0.3 >= 1.2
    assert spent < 3


def test_a_worker_that_started_by_itself_makes_room_for_the_trials(home: Home) -> None:
    """As many as their searches have begun; of a standing worker its command line says."""
    run = home.submit(toy_search(n_workers=3))
    claim = home.ledger.claim(this_process(), kind="search")
    assert claim is not None
    own, standing = (
        Supervisor(home, Orders(lock_descriptor=descriptor, devices=("cpu",)))
        for descriptor in (0, None)
    )
    assert (own._room(), standing._room()) == (1, 1)
    trials = [
        home.ledger.submit(toy_spec(1, seed=n), parent_id=run.id, parent_epoch=claim.epoch)
        for n in range(3)
    ]
    assert (own._room(), standing._room()) == (3, 1)
    taken = home.ledger.claim(this_process(), run_id=trials[0].id)
    assert taken is not None
    home.ledger.pause(taken.run.id, taken.epoch)
    assert own._room() == 2


def test_a_trial_may_crash_as_often_as_its_worker_says(home: Home, monkeypatch: Any) -> None:
    """Who leads takes runs back as well, and must not be the stricter one."""
    run = home.submit(toy_search(), run_name="s")
    claim = home.ledger.claim(this_process(), kind="search")
    assert claim is not None
    limits: list[int] = []
    monkeypatch.setattr(home.ledger, "reap", limits.append)
    monkeypatch.setattr(home, "ensure_worker", lambda: None)

    def conducted(*given: Any) -> tuple[str, dict[str, Any]]:
        Conductor(*given)._wake()
        return "", {}

    monkeypatch.setattr(leading, "conduct", conducted)
    leading.lead(home, claim, Teller(home.ledger, run.id, claim.epoch), lambda: None, 7)
    assert limits == [7]
    words = spawned_words(home, monkeypatch)
    assert words[words.index("--max-crashes") + 1] == "7"


def spawned_words(home: Home, monkeypatch: Any) -> list[str]:
    """How a supervisor starts a cold child."""
    found: list[list[str]] = []

    class Child:
        pid = 1

        def __init__(self, words: list[str]) -> None:
            found.append(words)

    monkeypatch.setattr(supervisor.subprocess, "Popen", Child)
    Supervisor(home, Orders(max_crashes=7, spawn=True))._start_child("search")
    return found[0]
