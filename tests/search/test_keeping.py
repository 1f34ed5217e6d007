"""Searches that keep the models of their best trials only."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier import environment
from luthier.cli.main import run as luthier
from luthier.errors import Conflict, LeaseLost, LuthierError, NotFound
from luthier.inference import get_model
from luthier.runs.client import Run
from luthier.runs.connection import Home, using
from luthier.runs.process import this_process
from luthier.runs.records import Claim
from luthier.search.keeping import Keeping, superfluous
from luthier.search.summary import Summary, Trial, read_summary
from luthier.spec import JobSpec, parse_spec
from luthier.store import failpoint
from luthier.store.bundle import Bundle, write_bundle
from luthier.testing.forkserver import Forked, ForkServer
from luthier.testing.toy_engine import result, toy_spec
from luthier.testing.workers import starting

Start = Callable[..., Forked]
RATES = {"training.learning_rate": {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True}}


def toy_search(**search: Any) -> JobSpec:
    """A search over the stand-in engine's learning rate. The size of the model, which is read
    from it, is measured as well."""
    base = toy_spec(4, padding_kb=20).model_dump(mode="json")
    base["training"]["eval_steps"] = 1
    words = {"space": RATES, "metrics": ["loss", "bytes"], "algorithm": "random"}
    return parse_spec(base | {"search": words | {"max_trials": 5, "keep_best": 2} | search})


def remaining(home: Home) -> set[str]:
    """The artifacts that are there, whole."""
    return {name for name in home.store.artifact_ids() if home.store.artifact(name)}


def is_tidy(home: Home, run: Run, count: int) -> bool:
    """Whether the models of the best are there and no others; and of the others the records."""
    found = read_summary(home, run.id)
    best = found.ranked()[:count]
    assert run.artifact_id == best[0].artifact_id
    assert remaining(home) == {t.artifact_id for t in best}
    for trial in superfluous(found, count):
        assert trial.run_id is not None
        left = [p.name for p in (home.path / "runs" / trial.run_id).iterdir()]
        assert left == ["console.log"], trial
    return all(t.scores and t.scores["bytes"] > 500 for t in found.trials)


def test_the_models_of_the_best_are_kept_and_the_others_can_be_made_again(
    home: Home,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = home.submit(toy_search(), run_name="s")
    assert start("--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED", run.logs()
    assert is_tidy(home, run, 2)
    lost = read_summary(home, "s").ranked()[-1]
    assert lost.name is not None
    trial = home.get_run(lost.name)
    assert trial.metrics()["loss"] == (lost.scores or {})["loss"]
    asked = (
        lambda: trial.save_artifact(tmp_path / "out"),
        lambda: get_model(trial),
        lambda: get_model(trial.artifact_id[:9]),
        lambda: home.aliases.promote(trial.artifact_id),
    )
    for ask in asked:
        with using(home), pytest.raises(NotFound, match="was given up: keep_best=2") as caught:
            ask()
        assert f"luthier trials s --trial {lost.number} --export" in str(caught.value.hint)
    monkeypatch.setenv("LUTHIER_HOME", home.place)
    assert luthier(["runs", "show", lost.name, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["path"], shown["metrics"]) == (None, trial.metrics())
    assert luthier(["trials", "s"]) == 0
    assert capsys.readouterr().out.count("given up") == 3
    # Made again it is the model that it was: the same losses, step by step.
    plain = tmp_path / "job.yaml"
    assert luthier(["trials", "s", "--trial", str(lost.number), "--export", str(plain)]) == 0
    spec = parse_spec(yaml.safe_load(plain.read_text()))
    assert spec.id == trial.record().spec_id
    again = home.submit(spec)
    assert start("--once").wait(60) == 0
    losses = [event.data["loss"] for event in trial.events() if event.kind == "evaluation"]
    assert result(home.store.artifact(again.artifact_id))[1] == losses


def test_what_is_asked_for_wrongly_is_refused(home: Home, capsys: Any) -> None:
    for words, said in (
        (["--trial", "1"], "means nothing without --export"),
        (["--trial", "9", "--export", "x.yaml"], "has no trial 9"),
    ):
        home.submit(toy_search(), run_name=f"s{len(words)}")
        code = luthier(["trials", f"s{len(words)}", *words, "--home", home.place])
        assert code not in (0, 1)
        assert said in capsys.readouterr().err
    with pytest.raises(LuthierError, match="keep_best"):
        toy_search(keep_best=0)


POINTS = ("artifact.given_up", "search.given_up", "search.removed")


@pytest.mark.parametrize("point", POINTS)
def test_a_leader_that_is_killed_while_it_gives_up_loses_no_model_that_is_kept(
    home: Home, start: Start, tmp_path: Path, point: str
) -> None:
    """Its successor goes on where it was, and takes no trial for worse than it is."""
    kills_the_leader(home, start, tmp_path / "killed", point)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_models_are_given_up_where_postgresql_has_the_ledger(
    url: str, forks: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(environment.WORKER, "none")
    monkeypatch.setenv(environment.STORE, str(tmp_path / "store"))
    with closing(Home(url)) as home, starting(home, forks, tmp_path) as start:
        assert (home.place, home.path) == (url, tmp_path / "store")
        env = {environment.STORE: str(home.path)}
        kills_the_leader(home, start, tmp_path / "killed", POINTS[1], **env)


def kills_the_leader(home: Home, start: Start, marker: Path, point: str, **env: str) -> None:
    """Kill who leads a search once, at a named point; check what its successor leaves."""
    env |= {environment.FAILPOINT: f"{point}@2=kill", environment.FAILPOINT_ONCE: str(marker)}
    run = home.submit(toy_search(constraints=["bytes >= 500"]))
    assert start("--once", env=env).wait(90) == 0
    assert marker.exists()
    assert run.record().attempt == 2
    assert run.status()["status"] == "FINISHED", run.logs()
    assert is_tidy(home, run, 2)
    assert len(home.ledger.trials(run.id)) == 5


def test_halving_keeps_what_may_go_on(home: Home, start: Start) -> None:
    run = home.submit(toy_search(metrics=["loss"], pruner="halving", max_trials=4, keep_best=1))
    assert start("--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED", run.logs()
    found = read_summary(home, run.id)
    assert sorted(len(t.curve) for t in found.trials) == [1, 1, 2, 4]
    assert remaining(home) == {run.artifact_id}


def test_a_search_done_again_gives_up_what_was_before(home: Home, start: Start) -> None:
    """Its second trial fails for good; done again from the start, it makes all of them anew."""
    spec = toy_search(metrics=["loss"], keep_best=1, max_trials=2)
    run = home.submit(spec)
    claim = home.ledger.claim(this_process(), devices=["cpu"], kind="search")
    assert claim is not None
    first = finished(home, claim, 0, home.path / "made")
    home.ledger.fail(run.id, claim.epoch, "training_failed", "the leader gave up")
    run.retry()
    assert start("--once").wait(60) == 0
    assert run.status()["status"] == "FINISHED", run.logs()
    assert len(home.ledger.trials(run.id)) == 3
    assert remaining(home) == {run.artifact_id}
    with pytest.raises(NotFound, match="an earlier trial of"):
        home.store.artifact(first)


# What others refer to


def bundle_of(folder: Path, text: str) -> Bundle:
    def fill(inner: Path) -> None:
        (inner / "luthier").mkdir()
        (inner / "weights").write_text(text)
        (inner / "luthier" / "report.json").write_text(json.dumps({"examples": {"q": text}}))

    return write_bundle(folder, fill, {})


def finished(home: Home, claim: Claim, number: int, folder: Path, text: str | None = None) -> str:
    """A trial of a search that is led here, finished; the id of its artifact."""
    spec = toy_spec(seed=number + 1)
    key = f"{claim.run.id}/{claim.run.generation}/{number}"
    home.ledger.submit(spec, parent_id=claim.run.id, parent_epoch=claim.epoch, idempotency_key=key)
    mine = home.ledger.claim(this_process(), devices=["cpu"], kind="training")
    assert mine is not None
    artifact_id = home.store.publish(bundle_of(folder, text or f"trial {number}"), public=False)
    home.ledger.finish(mine.run.id, mine.epoch, artifact_id, {"loss": float(number)})
    return artifact_id


@pytest.fixture
def led(home: Home, tmp_path: Path) -> tuple[Keeping, Summary]:
    """A search of four finished trials, the first the best, and what keeps the best one."""
    home.submit(toy_search(metrics=["loss"], keep_best=1))
    claim = home.ledger.claim(this_process(), devices=["cpu"], kind="search")
    assert claim is not None
    assert claim.run.spec.search is not None
    for number in range(4):
        finished(home, claim, number, tmp_path / str(number))
    trials = [
        Trial(n, {}, {}, "complete", r.id, r.name, r.artifact_id, scores={"loss": float(n)})
        for n, r in enumerate(home.ledger.trials(claim.run.id))
    ]
    summary = Summary.of("s", claim.run.spec.search, ["loss"], ["minimize"], trials)
    return Keeping(home, claim.run, claim.epoch, 1), summary


def test_what_is_referred_to_is_kept(home: Home, led: tuple[Keeping, Summary]) -> None:
    keeping, summary = led
    best, aliased, named, free = (str(t.artifact_id) for t in summary.trials)
    home.aliases.set("production", aliased)
    home.aliases.set("production", best)  # one can go back to what it was
    home.submit(toy_spec().changed(artifact=named))
    assert keeping.tidy(summary) == []
    assert remaining(home) == {best, aliased, named}
    assert home.aliases.rollback("production", keep=None).artifact_id == aliased
    lost = home.get_run(str(summary.trials[3].name))
    assert lost.example_results() == {"q": "trial 3"}  # the report stays
    assert home.store.was_given_up(free)
    lost.delete()
    assert not home.store.was_given_up(free)


def test_a_model_that_a_kept_trial_or_another_run_has_as_well_is_kept(
    home: Home, tmp_path: Path
) -> None:
    """Two trials of a search make the same model as its best; two others the same worse one,
    which one run that is no trial has made, too."""
    search = home.submit(toy_search(metrics=["loss"], keep_best=1))
    claim = home.ledger.claim(this_process(), devices=["cpu"], kind="search")
    assert claim is not None
    texts = ["good", "good", "worse", "worse", "mine", "mine"]
    made = [finished(home, claim, n, tmp_path / str(n), text) for n, text in enumerate(texts)]
    home.submit(toy_spec(seed=99))
    alone = home.ledger.claim(this_process(), devices=["cpu"], kind="training")
    assert alone is not None
    home.ledger.finish(alone.run.id, alone.epoch, made[2], {})
    trials = [
        Trial(n, {}, {}, "complete", r.id, r.name, r.artifact_id, scores={"loss": float(n)})
        for n, r in enumerate(home.ledger.trials(search.id))
    ]
    assert claim.run.spec.search is not None
    summary = Summary.of("s", claim.run.spec.search, ["loss"], ["minimize"], trials)
    Keeping(home, claim.run, claim.epoch, 1).tidy(summary)
    assert remaining(home) == {made[0], made[2]}


def test_only_who_leads_the_search_gives_up(home: Home, led: tuple[Keeping, Summary]) -> None:
    keeping, summary = led
    late = Keeping(home, keeping.search, keeping.epoch - 1, 1)
    with pytest.raises(LeaseLost):
        late.tidy(summary)
    assert len(remaining(home)) == 4
    trial = summary.trials[3]
    assert trial.run_id is not None
    with (
        pytest.raises(Conflict, match="at work again"),
        home.ledger.giving_up(keeping.search.id, keeping.epoch, claimed(home), ()),
    ):
        pass


def claimed(home: Home) -> str:
    """A run that is at work."""
    home.submit(toy_spec(seed=50))
    claim = home.ledger.claim(this_process(), devices=["cpu"], kind="training")
    assert claim is not None
    return claim.run.id


def test_a_full_disk_costs_no_model_and_is_tried_again(
    home: Home, led: tuple[Keeping, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, summary = led
    monkeypatch.setattr(failpoint, "_passed", {})
    monkeypatch.setenv(environment.FAILPOINT, "folder.filled=enospc")
    (problem,) = keeping.tidy(summary)
    assert "is kept for now" in problem
    assert len(remaining(home)) == 2
    assert keeping.tidy(summary) == []
    assert remaining(home) == {summary.trials[0].artifact_id}


def test_who_is_not_among_the_best_of_some_is_not_among_the_best_of_more() -> None:
    """Why a leader that knows less than its successor gives up nothing that is to be kept."""
    dice = random.Random(4)
    spec = toy_search(metrics=["loss"]).search
    assert spec is not None
    for _ in range(200):
        trials = [
            Trial(
                n, {}, {}, dice.choice(["complete", "complete", "failed", "paused", "running"]),
                scores={"loss": float(dice.randrange(4))},
                violations=(float(dice.choice([0, 0, 1])),),
            )
            for n in range(8)
        ]  # fmt: skip
        some = [
            t if dice.random() < 0.6 else dataclasses.replace(t, state="running") for t in trials
        ]
        count = dice.randint(1, 4)
        lost = [
            {t.number for t in superfluous(Summary.of("s", spec, ["loss"], ["minimize"], x), count)}
            for x in (some, trials)
        ]
        assert lost[0] <= lost[1]
        kept = [t for t in trials if t.state == "complete" and t.number not in lost[1]]
        assert len(kept) <= count
