"""Iterations in MLflow: a real tracking server, a process of its own, on SQLite."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")

from luthier.clicks.accumulators import MetricsAccumulator
from luthier.clicks.calculators import MetricValue
from luthier.clicks.experiments import (
    ExperimentsManager,
    FineTuningIteration,
    MLflowClientWrapper,
)
from luthier.clicks.recording import Tried, keep, numbers
from luthier.errors import Conflict, IllegalTransition, NotFound, StoreError

PARAMS = {
    "num_fixed_layers": 0, "query_lr": 1e-4, "items_lr": 1e-4, "query_weight_decay": 0.0,
    "items_weight_decay": 0.0, "margin": 0.2, "not_irrelevant_only": True,
    "negative_downsampling": 0.5,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The URL of a server, once it answers."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts",
        "--artifacts-destination", str(folder / "artifacts"), "--workers", "1",
    ]  # fmt: skip
    with open(folder / "log", "w") as log:
        # mlflow-skinny has not what the server's own jobs need
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 280
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                    assert answer.status == 200
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                said = (folder / "log").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
        yield url
    finally:
        process.terminate()
        process.wait(60)


names = (f"plugin {n}" for n in range(10**6))


@pytest.fixture
def wrapper(server):
    return MLflowClientWrapper(server)


@pytest.fixture
def manager(wrapper):
    return ExperimentsManager.from_wrapper(wrapper, "ndcg", next(names))


def again(manager, **words):
    """Another that knows nothing but the server."""
    return ExperimentsManager.from_wrapper(
        MLflowClientWrapper(manager._mlflow.tracking_uri), manager.main_metric,
        manager.plugin_name, **words,
    )  # fmt: skip


def folder(tmp_path, text):
    made = tmp_path / f"model-{text}"
    (made / "deep").mkdir(parents=True)
    (made / "deep" / "weights").write_text(text)
    (made / "config.json").write_text("{}")
    return made


def begin(manager, batch):
    manager.set_iteration(FineTuningIteration(batch, "start", manager.plugin_name))


def tried(manager, quality, model=None, failed=False, **changes):
    assert manager.set_run(PARAMS | changes) is False
    if quality is not None:
        manager.save_metric(MetricValue(manager.main_metric, quality))
    kept = model is not None and manager.save_model(model)
    manager.finish_run(as_failed=failed)
    return kept


def test_the_initial_model_is_uploaded_once(manager, tmp_path):
    model = folder(tmp_path, "a")
    assert manager.has_initial_model() is False
    with pytest.raises(NotFound, match="upload_initial_model"):
        manager.download_initial_model(tmp_path / "found")
    run = manager.upload_initial_model(model)
    assert again(manager).upload_initial_model(str(model)) == run
    found = again(manager).download_initial_model(tmp_path / "found")
    assert (found / "deep" / "weights").read_text() == "a"
    assert sorted(p.name for p in found.iterdir()) == ["config.json", "deep"]
    with pytest.raises(Conflict, match="another initial model"):
        manager.upload_initial_model(folder(tmp_path, "b"))
    assert manager._client.get_run(run).info.status == "FINISHED"


UPLOADER = """
import sys
from luthier.clicks.experiments import ExperimentsManager
url, plugin, model = sys.argv[1:]
manager = ExperimentsManager(url, "ndcg", plugin)
sys.stdin.read(1)
print(manager.upload_initial_model(model))
"""


def test_of_several_uploads_at_once_one_counts(manager, tmp_path):
    """Real processes, released at the same moment."""
    words = [manager._mlflow.tracking_uri, manager.plugin_name, str(folder(tmp_path, "a"))]
    running = [
        subprocess.Popen([sys.executable, "-c", UPLOADER, *words], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    said = {process.communicate("x", timeout=200)[0].strip() for process in running}
    assert len(said) == 1
    assert manager.upload_initial_model(words[2]) in said


def test_a_run_is_known_by_its_parameters(manager):
    begin(manager, "b1")
    assert tried(manager, 0.5) is False
    assert manager.set_run(PARAMS) is True
    other = again(manager)
    begin(other, "b1")  # the same iteration, found again
    assert other.set_run(dict(reversed(PARAMS.items()))) is True
    assert other.get_quality() == 0.5
    assert other.set_run(PARAMS | {"margin": 0.3}) is False
    run = other._run
    other.finish_run(as_failed=True)
    assert manager.set_run(PARAMS | {"margin": 0.3}) is False  # what failed is begun again
    assert manager._run == run
    begin(manager, "b2")
    assert manager.set_run(PARAMS) is False  # another iteration


def test_later_iterations_know_the_best_of_earlier_ones(manager):
    for batch, qualities in (("b1", (0.5, 0.9, 0.1)), ("b2", (0.6, 0.3, None))):
        begin(manager, batch)
        for n, quality in enumerate(qualities):
            tried(manager, quality, margin=float(n))
        tried(manager, 1.0, failed=True, margin=9.0)  # it failed, so it is no example
        assert [p.margin for p in manager.get_top_params()] == ([] if batch == "b1" else [1, 0, 2])
        manager.finish_iteration()
    assert [p.margin for p in manager.get_top_params()] == [1, 0, 2]
    assert [p.margin for p in again(manager, n_top_runs=2).get_top_params()] == [1, 0]
    falling = again(manager, is_loss=True)
    assert [p.margin for p in falling.get_top_params()] == [2, 1, 0]
    stranger = ExperimentsManager.from_wrapper(manager._mlflow, "ndcg", next(names))
    assert stranger.get_top_params() == []


def test_only_the_best_model_is_kept(manager, tmp_path):
    begin(manager, "b1")
    assert tried(manager, 0.5, folder(tmp_path, "a"), margin=1.0) is True
    assert tried(manager, 0.4, folder(tmp_path, "b"), margin=2.0) is False
    first = manager.get_best_run_id()
    assert tried(manager, 0.8, folder(tmp_path, "c"), margin=3.0) is True
    best = manager.get_best_run_id()
    assert best != first
    found = manager.download_model(best, tmp_path / "found")
    assert (found / "deep" / "weights").read_text() == "c"
    with pytest.raises(NotFound, match="the run has no model"):
        manager.download_model(first, tmp_path / "gone")
    assert manager._client.list_artifacts(first, "model") == []
    assert manager._client.get_run(first).info.status == "FINISHED"  # the run itself stays
    manager.set_run(PARAMS | {"margin": 4.0})
    with pytest.raises(IllegalTransition, match="no 'ndcg' yet"):
        manager.save_model(folder(tmp_path, "d"))
    assert manager.save_model(tmp_path / "model-d", best_only=False) is True
    assert manager.delete_poor_models() == [manager._run]


def test_accumulators_make_a_history(wrapper):
    sums = MetricsAccumulator("train_loss", calc_mean=True, calc_sliding=True, window_size=2)
    manager = ExperimentsManager.from_wrapper(wrapper, "ndcg", next(names), [sums])
    begin(manager, "b1")
    manager.set_run(PARAMS)
    for value in (4.0, 2.0, 0.0, float("nan")):
        manager.save_metric(MetricValue("train_loss", value))
    client, run = manager._client, manager._run
    told = {
        name: [(m.step, m.value) for m in client.get_metric_history(run, name)]
        for name in ("train_loss", "mean_train_loss", "sliding_train_loss")
    }
    assert told == {
        "train_loss": [(0, 4.0), (1, 2.0), (2, 0.0)],
        "mean_train_loss": [(0, 4.0), (1, 3.0), (2, 2.0)],
        "sliding_train_loss": [(0, 4.0), (1, 3.0), (2, 1.0)],
    }


def test_what_was_tried_is_kept_once(manager, tmp_path):
    from luthier.clicks.parameters import FineTuningParams

    begin(manager, "b1")
    params = FineTuningParams(**PARAMS)
    for _ in range(2):
        keep(
            manager,
            Tried(
                params,
                {"ndcg": 0.7, "after.recall_at_10": 0.5},
                str(
                    tmp_path / "model-a"
                    if (tmp_path / "model-a").exists()
                    else folder(tmp_path, "a")
                ),
            ),
        )
        keep(manager, Tried(params.model_copy(update={"margin": 9.0}), {}, None, failed=True))
    runs = manager._runs(manager._experiment)
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]
    assert manager.get_best_run_id() is not None
    assert numbers({"after": {"ndcg@10": {"value": 1}}, "verdict": "better", "x": True}) == {
        "after.ndcg_at_10.value": 1.0
    }


def test_without_a_beginning_there_is_nothing_to_finish(manager):
    for verb in (manager.finish_iteration, lambda: manager.set_run(PARAMS)):
        with pytest.raises(IllegalTransition, match="set_iteration"):
            verb()
    begin(manager, "b1")
    for verb in (manager.finish_run, manager.get_quality):
        with pytest.raises(IllegalTransition, match="set_run"):
            verb()


def test_a_server_that_is_not_there_is_said(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    manager = ExperimentsManager("http://127.0.0.1:9", "ndcg", "x")
    with pytest.raises(StoreError, match="MLflow failed"):
        manager.has_initial_model()


def test_without_mlflow_the_extra_is_named():
    program = """
import sys
sys.modules["mlflow"] = None
from luthier.clicks.experiments import ExperimentsManager
from luthier.errors import MissingExtra
try:
    ExperimentsManager("http://127.0.0.1:9", "ndcg", "x")
except MissingExtra as error:
    print(error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "pip install 'luthier[mlflow]'"
