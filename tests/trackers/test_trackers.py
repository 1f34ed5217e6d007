"""Trackers against real stores: MLflow in a folder of its own; W&B offline where installed."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.errors import MissingExtra
from luthier.spec import EarlyStopping, MLFlowLogger, WandBLogger
from luthier.trackers import make_tracker
from luthier.trackers.tracker import numbers

HISTORY = [
    ("stage", {"name": "training"}),
    ("step", {"step": 1, "steps": 2, "loss": 0.5, "learning_rate": 1e-4}),
    ("step", {"step": 2, "steps": 2, "loss": 0.25, "learning_rate": 5e-5}),
    ("evaluation", {"step": 2, "metrics": {"ndcg_at_k": 0.9, "name": "no number"}}),
    ("report", {"before": {"ndcg_at_k": 0.8}, "after": {"ndcg_at_k": 0.9}, "verdict": "better"}),
]


def _tell(tracker):
    for kind, data in HISTORY:
        tracker(kind, data)


@pytest.fixture
def mlflow_uri(tmp_path):
    """A real store of MLflow, in a folder: the SQL stores need more than mlflow-skinny."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    return f"file://{tmp_path}/mlruns"


# MLflow would rather have a database than a folder, and says so once a store is opened.
@pytest.mark.filterwarnings("ignore:.*[Ff]ile.*store.*:FutureWarning")
def test_mlflow_holds_parameters_every_step_and_the_report(mlflow_uri, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    spec = MLFlowLogger(experiment="words", tracking_uri=mlflow_uri)
    tracker = make_tracker(spec, "sharp-noether", {"training": {"learning_rate": 1e-4}})
    _tell(tracker)
    tracker.close()

    client = MlflowClient(tracking_uri=mlflow_uri)
    [run] = client.search_runs([client.get_experiment_by_name("words").experiment_id])
    assert run.info.run_name == "sharp-noether"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"training.learning_rate": "0.0001"}
    losses = client.get_metric_history(run.info.run_id, "train.loss")
    assert [(m.step, m.value) for m in losses] == [(1, 0.5), (2, 0.25)]
    assert run.data.metrics["eval.metrics.ndcg_at_k"] == 0.9
    assert run.data.metrics["report.before.ndcg_at_k"] == 0.8
    report = client.download_artifacts(run.info.run_id, "report.json", str(tmp_path))
    assert json.loads(Path(report).read_text())["verdict"] == "better"


@pytest.mark.filterwarnings("ignore:.*[Ff]ile.*store.*:FutureWarning")
def test_two_mlflow_runs_in_one_process_do_not_mix(mlflow_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient

    spec = MLFlowLogger(tracking_uri=mlflow_uri)
    first, second = make_tracker(spec, "first"), make_tracker(spec, "second")
    first("step", {"step": 1, "loss": 1.0})
    second("step", {"step": 1, "loss": 2.0})
    first.close(succeeded=False)
    second.close()
    client = MlflowClient(tracking_uri=mlflow_uri)
    runs = client.search_runs([client.get_experiment_by_name("luthier").experiment_id])
    told = {r.info.run_name: (r.info.status, r.data.metrics["train.loss"]) for r in runs}
    assert told == {"first": ("FAILED", 1.0), "second": ("FINISHED", 2.0)}


@pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="the extra wandb is not part of dev"
)
def test_wandb_offline_writes_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = make_tracker(WandBLogger(mode="offline"), "sharp-noether", {"seed": 1})
    _tell(tracker)
    tracker.close()
    [file] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert b"ndcg_at_k" in file.read_bytes()


@pytest.mark.parametrize(
    ("module", "callback", "extra"),
    [("mlflow", "MLFlowLogger()", "mlflow"), ("wandb", "WandBLogger(mode='offline')", "wandb")],
)
def test_an_absent_package_is_named_with_its_extra(module, callback, extra):
    """In a process of its own, in which the import of that package fails."""
    program = f"""
import sys
sys.modules[{module!r}] = None
from luthier.errors import MissingExtra
from luthier.spec import MLFlowLogger, WandBLogger
from luthier.trackers import make_tracker
try:
    make_tracker({callback}, "name")
except MissingExtra as error:
    print(error.hint)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"pip install 'luthier[{extra}]'"


def test_a_callback_that_decides_is_no_tracker():
    with pytest.raises(TypeError, match="EarlyStopping is no tracker"):
        make_tracker(EarlyStopping(), "name")


def test_only_finite_numbers_are_metrics():
    data = {"loss": float("nan"), "done": True, "text": "x", "deep": {"k": 3, "inf": float("inf")}}
    assert numbers(data) == {"deep.k": 3.0}


def test_missing_extra_is_an_error_of_ours():
    assert MissingExtra("x", "wandb").exit_code == 5
