"""Home, Run and Experiment, with a ledger and a store that are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from luthier.errors import (
    Conflict,
    IllegalTransition,
    NotFound,
    OutOfMemory,
    SpecError,
    StoreError,
    TrainingError,
)
from luthier.runs import client, connection
from luthier.runs.client import Run
from luthier.runs.connection import Home
from luthier.runs.leases import MAX_CRASHES
from luthier.runs.process import Process, this_process
from luthier.spec import JobSpec, parse_spec
from luthier.store.bundle import open_bundle, write_bundle
from luthier.testing.toy_engine import toy_spec
from luthier.testing.waiting import until

ME = this_process()
EXAMPLES = [
    {
        "query": "describe [a] word",
        "before": [{"text": "no", "score": 0.1, "relevant": False}],
        "after": [{"text": "word", "score": 0.9, "relevant": True}],
    }
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LUTHIER_WORKER", "none")
    return Home(tmp_path / "home")


def spec(seed: int = 1) -> JobSpec:
    return parse_spec(
        {"model": {"name": "m"}, "data": {"train": {"uri": "x"}}, "training": {"seed": seed}}
    )


def finish(run: Run, number: int = 1) -> str:
    """Work on a run as a worker does; the id of its artifact."""
    ledger = run.home.ledger
    claim = ledger.claim(ME, run_id=run.id)
    assert claim is not None
    steps = [("step", {"step": i, "steps": 3, "loss": 1 / i, "epoch": 1}) for i in (1, 2, 3)]
    ledger.append(
        run.id,
        claim.epoch,
        [
            ("stage", {"name": "training"}),
            ("log", {"level": "warning", "message": "mind [this]"}),
            *steps,
            ("evaluation", {"step": 3, "ndcg_at_k": 0.91234}),
            ("checkpoint", {"step": 3}),
        ],
    )

    def fill(folder: Path) -> None:
        (folder / "luthier").mkdir()
        (folder / "model").write_text(str(number))
        (folder / "luthier" / "report.json").write_text(json.dumps({"examples": EXAMPLES}))

    bundle = write_bundle(run.home.path / "made" / run.id, fill, {})
    artifact_id = run.home.store.publish(bundle, public=False)
    metrics = {"before": {"ndcg_at_k": 0.5}, "after": {"ndcg_at_k": 0.9}, "verdict": "better"}
    ledger.finish(run.id, claim.epoch, artifact_id, metrics)
    return artifact_id


def fail(run: Run, reason: str = "training_failed") -> None:
    claim = run.home.ledger.claim(ME, run_id=run.id)
    assert claim is not None
    error = {"level": "error", "message": "the loss became nan", "hint": "lower the rate"}
    run.home.ledger.append(run.id, claim.epoch, [("log", error)])
    run.home.ledger.fail(run.id, claim.epoch, reason, "the loss became nan")


def test_a_finished_run_tells_everything(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = home.submit(spec(), run_name="n", experiment_name="e", description="d")
    assert run.status() == {"status": "CREATED", "details": "", "reason": None}
    assert run.metrics() == {}
    for early in (lambda: run.artifact_id, run.save_artifact, run.example_results):
        with pytest.raises(IllegalTransition, match="no artifact"):
            early()
    artifact_id = finish(run)
    assert run.artifact_id == artifact_id
    assert (run.name, run.experiment_name, run.description) == ("n", "e", "d")
    assert run.config["training"]["seed"] == 1
    assert run.wait(progress=False) == run
    assert run.wait() is run
    shown = capsys.readouterr().err
    assert "mind [this]" in shown
    assert "FINISHED" in shown
    lines = run.logs().splitlines()
    assert list(run.stream_logs(interval=0)) == lines
    assert [line.split(maxsplit=3)[3] for line in lines] == [
        "CREATED",
        "STARTED (attempt 1)",
        "training",
        "mind [this]",
        "evaluation: step 3, ndcg_at_k 0.9123",
        "checkpoint after step 3",
        "FINISHED",
    ]
    run.display_metrics()
    run.display_examples(k=1)
    table = capsys.readouterr().out
    assert "0.9000" in table
    assert "describe [a] word" in table
    assert "✓ word" in table
    assert run.example_results()["examples"] == EXAMPLES
    saved = run.save_artifact(tmp_path / "out")
    assert saved == str(tmp_path / "out" / "n")
    assert open_bundle(Path(saved)).id == artifact_id
    assert run.save_artifact(tmp_path / "out") == saved
    (tmp_path / "out" / "n" / "model").write_text("mine")
    with pytest.raises((Conflict, StoreError)):
        run.save_artifact(tmp_path / "out")


def test_the_live_bar_survives_every_event(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal: the bar is drawn to the end, and what is said stands above it."""
    run = home.submit(spec(), run_name="a-run")
    finish(run)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run.wait()
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "mind [this]" in shown


def test_waiting_for_a_failure_raises_its_cause(home: Home) -> None:
    run = home.submit(spec())
    thread = threading.Thread(target=fail, args=(run,))
    thread.start()
    with pytest.raises(TrainingError, match="the loss became nan") as caught:
        run.wait(progress=False)
    thread.join()
    assert caught.value.hint == "lower the rate"
    assert run.name in str(caught.value)
    run.resume()
    fail(run, "out_of_memory")
    with pytest.raises(OutOfMemory):
        run.wait(progress=False)


def test_cancelled_is_no_error(home: Home) -> None:
    run = home.submit(spec()).cancel()
    assert run.wait(progress=False).status()["status"] == "CANCELLED"


def test_waiting_takes_back_a_run_from_a_dead_worker(home: Home) -> None:
    run = home.submit(spec())
    home.ledger.claim(Process(ME.host, ME.boot, ME.pid, "1"))
    thread = threading.Thread(target=run.wait, kwargs={"progress": False}, daemon=True)
    thread.start()
    until(lambda: run.record().status == "CREATED")
    run.cancel()
    thread.join(10)
    assert not thread.is_alive()


def test_clone_changes_a_field_and_is_checked(home: Home, tmp_path: Path, tiny_model: Path) -> None:
    data = tmp_path / "pairs.csv"
    data.write_text("anchor,positive\n" + "".join(f"a{i},b{i}\n" for i in range(20)))
    job = {
        "model": {"name": str(tiny_model)},
        "data": {"train": {"uri": str(data)}},
        "objective": {"loss": "MultipleNegativesRankingLoss"},
    }
    run = home.submit(parse_spec(job), experiment_name="e", description="d")
    with connection.using(home):
        clone = run.clone(learning_rate=0.5, run_name="other")
        assert clone.home.url == home.url
        assert (clone.name, clone.experiment_name, clone.description) == ("other", "e", "d")
        assert clone.spec == run.spec.changed(learning_rate=0.5)
        for wrong in ({"learning_rat": 1}, {"optim": "Adem"}, {"learning_rate": -1}):
            with pytest.raises(SpecError):
                run.clone(**wrong)
    assert len(home.list_runs()) == 2


def test_experiments_and_deleting(home: Home) -> None:
    experiment = home.create_experiment("e", "about")
    assert home.create_experiment("e").id == experiment.id
    assert (experiment.name, experiment.status, experiment.description) == ("e", "ACTIVE", "about")
    runs = [home.submit(spec(i), experiment_name="e", run_name=f"n{i}") for i in range(3)]
    assert experiment.list_runs() == runs[::-1]
    assert experiment.list_runs(page=2, size=2) == runs[:1]
    assert experiment.get_run("n1") == runs[1]
    same = finish(runs[0]), finish(runs[1])
    assert same[0] == same[1]
    experiment.delete_run("n0")
    assert home.store.artifact_ids() == [same[0]], "another run has it as well"
    runs[1].delete()
    assert home.store.artifact_ids() == []
    home.ledger.claim(ME)
    for verb in (home.delete_runs, home.delete_experiments, experiment.delete_runs):
        with pytest.raises(IllegalTransition, match="at work"):
            verb()
    home.ledger.release(runs[2].id, 1)
    home.delete_experiments()
    assert home.list_experiments() == []
    with pytest.raises(NotFound):
        home.get_run("n2")


def test_homes_are_found_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_current", None)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "by variable"))
    assert connection.current().path == tmp_path / "by variable"
    assert connection.connect(tmp_path / "other") is connection.current()
    by_url = Home(f"sqlite:///{tmp_path}/x.db", store=str(tmp_path / "store"))
    assert (by_url.path, by_url.place) == (tmp_path / "store", f"sqlite:///{tmp_path}/x.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made"):
        Home(tmp_path / "file" / "below")


def test_importing_the_client_is_light() -> None:
    code = "import sys, luthier.api; print([m for m in ('torch', 'alembic') if m in sys.modules])"
    environment = os.environ | {"PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "[]"


def test_who_waits_leaves_quarantine_to_a_worker_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``--max-crashes`` may be another; where nobody works, a run must not crash for ever."""

    class Asked(Exception):
        pass

    limits = []

    def reap(limit: int) -> None:
        limits.append(limit)
        raise Asked

    monkeypatch.setenv("LUTHIER_WORKER", "none")
    monkeypatch.setattr(client, "_WAKE_S", 0.0)
    home = Home(tmp_path / "home")
    run = home.submit(toy_spec())
    monkeypatch.setattr(home.ledger, "reap", reap)
    with pytest.raises(Asked):
        run.wait()
    home.ledger.register_worker(ME)
    with pytest.raises(Asked):
        run.wait()
    assert limits == [MAX_CRASHES, sys.maxsize]
    home.close()
