"""The whole way: a log in an empty folder, a real worker, a better encoder, and the proof."""

import json
import subprocess
import sys

import pyarrow as pa
import pytest
from clicks_world import a_worker, environment, write_world

from luthier.cli.main import run as command
from luthier.clicks import (
    DistanceShift,
    FineTuningBuilder,
    FineTuningParams,
    FineTuningSettings,
    MetricsAccumulator,
    find_method,
)
from luthier.clicks.defaults import DEFAULTS
from luthier.clicks.tuning import run, tune
from luthier.errors import DataError, NotFound, SpecError
from luthier.evaluation.report import read_report
from luthier.runs import connection
from luthier.testing.models import tiny_text_model

RATES = ["--param", "query_lr=1e-3", "--param", "items_lr=1e-3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with a log, a catalogue and a model; its home; a worker."""
    folder = tmp_path_factory.mktemp("tune")
    write_world(folder)
    tiny_text_model(folder / "tiny")
    with a_worker(folder / "home"):
        yield folder


@pytest.fixture
def home(world):
    """The home as the current one of this process, which starts no worker."""
    before = connection._current
    patch = pytest.MonkeyPatch()
    patch.setenv("LUTHIER_WORKER", "none")
    yield connection.connect(world / "home")
    connection._current.close()
    connection._current = before
    patch.undo()


def _tune(world, *words):
    line = ["--model", "tiny", "--sessions", "log.jsonl", "--items", "items.jsonl", *words]
    done = subprocess.run(
        [sys.executable, "-m", "luthier", "clicks", "tune", *map(str, line)],
        cwd=world, env=environment(world / "home"), capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def tuned(world):
    """What the command said: first to a person, then to a program."""
    words = [*RATES, "--epochs", 6, "--promote-to", "production", "--run-name", "first"]
    first = _tune(world, *words)
    return first, _tune(world, *words, "--json")


def test_a_person_is_told_the_verdict(tuned):
    said = tuned[0]
    assert "split by query" in said.stderr
    assert "training knows 0 of" in said.stderr
    assert "seen at positions 1, 2, …: 1.00, 0." in said.stderr
    rows = {line.split("  ")[0]: line for line in said.stdout.splitlines()}
    assert {"nDCG@10", "MRR", "recall@10", "as logged", "ranked by the model after"} <= set(rows)
    assert rows["better: 95% interval of the difference in ndcg_at_k: "
                + said.stdout.partition("ndcg_at_k: ")[2].splitlines()[0]]  # fmt: skip
    assert "promoted: alias:production is" in said.stdout


def test_a_program_is_told_all_of_it_and_nothing_is_trained_again(tuned, world, home):
    found = json.loads(tuned[1].stdout)
    assert (found["run"], found["verdict"]) == ("first", "better")
    assert found["after"]["ndcg_at_k"]["low"] > found["before"]["ndcg_at_k"]["high"]
    assert found["difference"]["ndcg_at_k"]["low"] > 0
    assert found["overlap"]["queries"]["known"] == 0
    assert found["propensities"]["values"][:3] == pytest.approx([1, 1 / 2, 1 / 3], rel=0.35)
    earned = found["off_policy"]
    assert earned["after"]["snips"]["value"] > earned["logged"]["value"]
    assert found["train_not_irrelevant_dist_shift"] is not None
    assert home.aliases.find("production").artifact_id == found["artifact_id"]
    assert [r.name for r in home.list_runs("clicks")].count("first") == 1
    told = tuned[0].stdout.split()
    assert found["artifact_id"] in told


def test_the_report_is_of_what_was_held_out(tuned, world):
    folder = json.loads(tuned[1].stdout)["folder"]
    report = read_report(world / folder / "report.json")
    assert report.comparison.verdict == "better"
    assert report.evaluation["queries"] == report.comparison.n >= 20
    assert "nDCG@10" in (world / folder / "report.html").read_text()


def test_a_plugin_trains_and_its_search_goes_on_from_the_first(tuned, world, home, monkeypatch):
    from pathlib import Path

    plugins = Path(__file__).parents[2] / "examples" / "clicks" / "plugins"
    monkeypatch.setenv("CATALOGUE", str(world / "items.jsonl"))
    monkeypatch.setenv("MODEL", str(world / "tiny"))
    from luthier.clicks.reading import read_sessions

    method = find_method("TextMethod", plugins)
    method.upload_initial_model()
    builder = method.get_fine_tuning_builder(read_sessions(world / "log.jsonl"))
    builder.accumulators = [
        MetricsAccumulator("train_loss", calc_sliding=True, calc_min=True, window_size=3),
        MetricsAccumulator("test_loss", calc_mean=True),
    ]
    said = []
    done = run(builder, idempotency_key="a-task", say=said.append)
    assert len(done.run.trials()) == 2
    assert any(line.startswith("search: 2 of 2 trials complete") for line in said)
    series = done.metrics["accumulated"]
    losses = series["train_loss"]["train_loss"]
    assert series["train_loss"]["sliding_train_loss"][-1] == pytest.approx(sum(losses[-3:]) / 3)
    assert len(series["test_loss"]["mean_test_loss"]) == len(series["test_loss"]["test_loss"]) == 2
    report = read_report(done.folder / "report.json")
    assert report.evaluations[-1]["sliding_train_loss"] == series["train_loss"][
        "sliding_train_loss"
    ][-1]  # fmt: skip
    again = run(builder, idempotency_key="a-task")
    assert (again.run.id, again.metrics) == (done.run.id, done.metrics)
    # a later iteration tries the best of this one first
    later = run(builder, after=[done.run.id], seed=7)
    best = done.run.metrics()["search"]["best"]["values"]
    first = min(later.run.trials(), key=lambda trial: trial.record().created_at).spec
    assert first.training.query_learning_rate == best["training.query_learning_rate"]


def test_lists_of_queries_train(world, home):
    files = str(world / "tiny"), world / "log.jsonl", world / "items.jsonl"
    settings = FineTuningSettings(
        loss_func="ListwiseSoftmaxLoss", rows="queries", certainty=0.0, batch_size=8, num_epochs=8,
        step_size=None, gamma=None,
    )  # fmt: skip
    rates = {"query_lr": 1e-3, "items_lr": 1e-3}
    done = tune(*files, device="cpu", params=rates, settings=settings)
    losses = [e.data["loss"] for e in done.run.events() if e.kind == "step"]
    assert sum(losses[-(len(losses) // 8) :]) < sum(losses[: len(losses) // 8])  # of an epoch each
    with pytest.raises(SpecError, match="rows: is said by the settings"):
        tune(*files, rows="queries", settings=settings)
    with pytest.raises(DataError, match="no query has anything relevant"):
        tune(*files, rows="queries")  # a few sessions of each show nothing with certainty


def test_two_towers_and_a_curriculum_by_the_starting_models_scores(world, home):
    settings = FineTuningSettings(
        loss_func="ProbMarginRankingLoss", num_epochs=2, batch_size=8, step_size=10, gamma=0.5,
        test_each_n_inputs=0.5, metric_calculators=[DistanceShift()], towers="two",
        mined_negatives=2, mined_margin=-1,
    )  # fmt: skip
    params = {**DEFAULTS, "margin": 0.2, "items_lr": 1e-3, "examples_order": ["soft_all", 11],
              "negative_downsampling": 0.8}  # fmt: skip
    done = tune(
        str(world / "tiny"), world / "log.jsonl", world / "items.jsonl",
        params=FineTuningParams(**params), settings=settings, split="time", objective="naive",
    )  # fmt: skip
    assert done.run.spec.training.examples_order == (3, 11)
    assert done.run.spec.model.towers == "two"
    with pa.memory_map(str(home.store.blob(done.run.spec.data.train.sha256))) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    assert max(len(row["items"]) for row in rows) > 5  # five were shown, two were mined
    assert all(row["score"] is not None for row in rows)
    assert done.metrics["split"] == "time"
    assert done.metrics["propensities"]["method"] is None
    assert done.metrics["off_policy"] is None
    assert len([e for e in done.run.events() if e.kind == "evaluation"]) == 4


def test_a_builder_without_a_model_and_a_search_of_nothing(world, home):
    from luthier.clicks.builder import ranking_data
    from luthier.clicks.items_sets import TextItemSetManager
    from luthier.clicks.reading import read_sessions
    from luthier.clicks.splits import split_sessions

    sessions = read_sessions(world / "log.jsonl")
    data = ranking_data(
        split_sessions(sessions), dict.fromkeys(sessions.item_names, "x"), TextItemSetManager()
    )
    settings = FineTuningSettings(loss_func="LambdaLoss")
    builder = FineTuningBuilder(settings, FineTuningParams(**DEFAULTS), data)
    with pytest.raises(SpecError, match="nothing says what to tune"):
        run(builder)
    with pytest.raises(SpecError, match="there is nothing to search"):
        run(
            FineTuningBuilder(
                settings, FineTuningParams(**DEFAULTS), data, initial_max_evals=3,
                model=str(world / "tiny"),
            )
        )  # fmt: skip
    with pytest.raises(SpecError, match=r"ranking_data(?s:.*)initial_max_evals"):
        FineTuningBuilder(settings, {}, "data", initial_max_evals=0)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--model", "no-such-model"], 6, "no-such-model"),
        (["--objective", "ipss"], 2, "ips, dr or naive"),
        (["--loss", "TripletMarginLoss"], 2, "does not take rankings"),
        (["--rows", "queries", "--objective", "dr"], 2, "dr is of single sessions"),
        (["--rows", "lists"], 2, "lists"),
        (["--param", "querry_lr=1e-4"], 2, "did you mean 'query_lr'"),
        (["--param", "query_lr=fast(1)"], 2, "query_lr"),
        (["--trials", "3"], 2, "there is nothing to search"),
        (["--items", "none.jsonl"], 3, "there is no such file"),
        (["--sessions", "none.jsonl"], 3, "there is no such file"),
        (["--items", "log.jsonl"], 3, "no field is known to hold an item's id"),
        (["--id-field", "sku"], 3, "column sku"),
        (["--test-size", "1.5"], 3, "test_size_ratio"),
        (["--clip", "0"], 2, "clip"),
        (["--split", "luck"], 2, "luck"),
        (["--device", "gpu0"], 2, "device"),
    ],
)
def test_what_cannot_be_is_said_with_its_exit_code(world, home, monkeypatch, capsys, words,
                                                   code, said):  # fmt: skip
    monkeypatch.chdir(world)
    monkeypatch.setenv("LUTHIER_HOME", str(world / "home"))
    line = {"--model": "tiny", "--sessions": "log.jsonl", "--items": "items.jsonl"}
    line |= dict(zip(words[::2], words[1::2], strict=True))
    assert command(["clicks", "tune", *(w for pair in line.items() for w in pair)]) == code
    assert said in capsys.readouterr().err


def test_rows_that_are_wrong_are_named(world, home, tmp_path):
    bad = tmp_path / "items.jsonl"
    bad.write_text('{"id": "d0", "text": "a"}\n{"id": "d1"}\n')
    with pytest.raises(DataError, match=r"row 2.*text"):
        tune(str(world / "tiny"), world / "log.jsonl", bad)
    bad.write_text('{"id": "x", "text": "a"}\n')
    with pytest.raises(DataError, match="no item of the log is in the catalogue"):
        tune(str(world / "tiny"), world / "log.jsonl", bad)
    with pytest.raises(NotFound, match="nobody"):
        tune("alias:nobody", world / "log.jsonl", world / "items.jsonl")
