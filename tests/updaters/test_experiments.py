"""execute_experiment_job: into a bucket, updates that are not promoted, forward transfer."""

import json

import numpy as np
import pytest

import luthier
from luthier.errors import SpecError, StoreError
from luthier.store.object_store import put
from luthier.store.states import head
from luthier.testing import s3
from luthier.tuning import execute_experiment_job
from luthier.updates import _experiment

CONFIG = """
from luthier.tuning import ClassIncrementalScenario, MultiLayerPerceptron
from luthier.tuning.arrays import DigitsDataModule


def data_module_fn(data_path: str, chunk_id: int, seed: int = 0):
    digits = DigitsDataModule(val_size=0.2, seed=seed)
    return ClassIncrementalScenario(digits, chunk_id, [[0, 1], [2, 3], [4, 5]])


def model_fn(model_state_url=None):
    return MultiLayerPerceptron(
        num_inputs=64, num_outputs=10, num_hidden_layers=1, hidden_size=30
    )
"""
SPACE = {"optimizer": "SGD", "learning_rate": 0.1, "max_epochs": 3}


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket of a real server, which everything started from here can reach."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("HOME", str(tmp_path))
    with s3.server(tmp_path / "s3") as server:
        server.client().create_bucket(Bucket="outputs")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def test_an_experiment_in_a_bucket(bucket, tmp_path) -> None:
    """The second update forgets more than is allowed: what stays is the first."""
    (tmp_path / "config.py").write_text(CONFIG)
    words = {
        "config_file": tmp_path / "config.py", "config_space": SPACE | {"forgetting_budget": 0.2},
        "experiment_outputs_url": "s3://outputs/first/", "num_updates": 2,
        "updater": "FineTuning", "accelerator": "cpu",
    }  # fmt: skip
    home = luthier.connect(tmp_path / "home")
    try:
        found = execute_experiment_job("local", **words)
        with pytest.raises(SpecError, match="already"):
            execute_experiment_job("local", **words)
        with pytest.raises(SpecError, match="not to gs://"):
            execute_experiment_job("local", **words | {"experiment_outputs_url": "gs://a/b"})
    finally:
        home.close()
    body = bucket.client().get_object(Bucket="outputs", Key="first/experiment.json")["Body"]
    assert json.loads(body.read()) == found
    assert head("s3://outputs/first/state") == 1
    assert found["promoted"] == [True, False]
    assert found["matrix"][1] == found["matrix"][0]
    assert found["forgetting"] == 0.0
    assert found["forward_transfer"] <= 0.2, "what shares no classes is not known before"


def test_a_bucket_that_is_not_there(bucket) -> None:
    with pytest.raises(StoreError, match="cannot be written") as caught:
        put("s3://nowhere/a.json", b"{}")
    assert "there is no bucket" in str(caught.value.hint)
    put("s3://outputs/a.json", b"1")
    put("s3://outputs/a.json", b"2")
    assert bucket.client().get_object(Bucket="outputs", Key="a.json")["Body"].read() == b"2"


def update(row, *, promoted=True, fresh=None) -> dict:
    tests = [{"accuracy": value, "loss": 1 - value} for value in row]
    fresh = fresh and [{"accuracy": value, "loss": 1 - value} for value in fresh]
    return {"test": tests, "seconds": 1.0, "update": {"promoted": promoted, "fresh": fresh}}


def test_what_a_series_did_by_hand() -> None:
    found = _experiment([
        update([0.9, 0.3, 0.2], fresh=[0.1, 0.1, 0.1]),
        update([0.1, 0.9, 0.6], promoted=False),
        update([0.8, 0.2, 0.9]),
    ])  # fmt: skip
    assert found["matrix"] == [[0.9, 0.3, 0.2], [0.9, 0.3, 0.2], [0.8, 0.2, 0.9]]
    assert found["promoted"] == [True, False, True]
    assert found["forward_transfer"] == pytest.approx(np.mean([0.3 - 0.1, 0.2 - 0.1]))
    assert found["average"] == pytest.approx(np.mean([0.8, 0.2, 0.9]))
    assert found["score"] == "accuracy"
