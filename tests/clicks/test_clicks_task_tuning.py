"""A task from its request to production: a plugin of a folder, a real worker, MLflow on SQLite."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.clicks.bulk import import_sessions
from luthier.clicks.click_models import PositionBased
from luthier.clicks.simulate import Collection, simulate
from luthier.clicks.store import ClickStore
from luthier.clicks.task_runs import work
from luthier.clicks.tasks import FineTuningTasks
from luthier.runs.connection import Home

PLUGIN = """
import os
from luthier import clicks
from luthier.clicks.experiments import ExperimentsManager

class Tiny(clicks.FineTuningMethod):
    meta = clicks.PluginMeta(name="Tiny")

    def __init__(self):
        self.manager = ExperimentsManager(os.environ["TRACKING"], "ndcg_at_k", "Tiny")

    def upload_initial_model(self):
        self.manager.upload_initial_model(os.environ["MODEL"])

    def get_fine_tuning_builder(self, clickstream):
        data = clicks.prepare_data(
            clickstream, clicks.ClickstreamSessionConverter(), clicks.TrainTestSplitter(),
            clicks.TextQueryRetriever(), clicks.FileDataLoader(os.environ["CATALOGUE"]),
            clicks.TextItemSetManager(clicks.DatasetFieldsNormalizer("text", "id")),
        )
        settings = clicks.FineTuningSettings(
            loss_func=clicks.CosineProbMarginRankingLoss(), num_epochs=1, batch_size=16
        )
        choices = {
            "num_fixed_layers": [0], "query_lr": [1e-3, 2e-3], "items_lr": [1e-3],
            "query_weight_decay": [0.0], "items_weight_decay": [0.0], "margin": [0.2],
            "not_irrelevant_only": [True], "negative_downsampling": [1.0],
        }
        return clicks.FineTuningBuilder(
            settings, choices, data, experiments_manager=self.manager, initial_max_evals=2
        )
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning:mlflow")
def test_a_task_goes_through_its_plugin_and_is_kept(tmp_path, tiny_model, monkeypatch, one_thread):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "tiny.py").write_text(PLUGIN)
    pairs = [(f"word {i} alpha", f"text of word {i} and more {i % 5}") for i in range(40)]
    collection = Collection.of_pairs(pairs)
    log = simulate(collection, PositionBased.eta_decay(5), sessions=160, results=5, noise=1.0)
    catalogue = tmp_path / "items.jsonl"
    catalogue.write_text(
        "".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in _items(collection))
    )
    for name, value in {
        "TRACKING": f"sqlite:///{tmp_path}/mlflow.db", "MODEL": str(tiny_model),
        "CATALOGUE": str(catalogue), "LUTHIER_PLUGINS": str(tmp_path / "plugins"),
        "LUTHIER_WORKER": "none", "LUTHIER_HOME": str(tmp_path / "home"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)  # where MLflow puts artifacts of a database without a server
    home = Home(tmp_path / "home")
    store = ClickStore(home.url)
    import_sessions(store, log.sessions)
    tasks = FineTuningTasks(home)
    made = tasks.create_task({"embedding_model_id": str(tiny_model), "deploy_as_blue": True})
    worker = subprocess.Popen([sys.executable, "-m", "luthier", "worker"], env={**os.environ})
    try:
        [done] = work(home)
    finally:
        worker.terminate()
        worker.wait(60)
    assert done["status"] == "done", done["detail"]
    result = done["result"]
    assert result["start"] == str(Path(tiny_model).resolve())
    assert home.store.artifact(result["artifact_id"]).is_dir()
    assert result["promoted"] == (result["verdict"] == "better")
    assert len(home.aliases.all()) == result["promoted"]
    assert [batch["state"] for batch in store.list_batches()] == ["archived"]
    _check_kept(tmp_path, made["id"], done)
    store.close()
    home.close()


def _items(collection):
    return zip(collection.names, collection.documents, strict=True)


def _check_kept(tmp_path, task_id, done):
    """What MLflow has: the initial model, an iteration of two runs, the better with its model."""
    from luthier.clicks.experiments import ExperimentsManager, FineTuningIteration

    manager = ExperimentsManager(f"sqlite:///{tmp_path}/mlflow.db", "ndcg_at_k", "Tiny")
    assert manager.has_initial_model()
    assert {p.query_lr for p in manager.get_top_params()} == {1e-3, 2e-3}
    manager.set_iteration(FineTuningIteration(done["batch_id"], done["result"]["start"], "Tiny"))
    best = manager.get_best_run_id()
    assert best is not None
    found = manager.download_model(best, tmp_path / "best")
    assert (found / "luthier" / "manifest.json").is_file()
