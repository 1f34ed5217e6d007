"""run_training_job through the queue: the public functions, on real digits."""

import json

import pytest

import luthier
from luthier.errors import LuthierError, SpecError
from luthier.store.states import head
from luthier.tuning import execute_experiment_job, execute_tuning_job, run_training_job

CONFIG = """
from luthier.tuning import ClassIncrementalScenario, MultiLayerPerceptron
from luthier.tuning.arrays import DigitsDataModule

GROUPS = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def data_module_fn(data_path: str, chunk_id: int, seed: int = 0):
    data_module = DigitsDataModule(val_size=0.2, seed=seed)
    return ClassIncrementalScenario(data_module, class_groupings=GROUPS, chunk_id=chunk_id)


def model_fn(model_state_url=None, hidden_size: int = 200):
    return MultiLayerPerceptron(
        num_inputs=64, num_outputs=10, num_hidden_layers=1, hidden_size=hidden_size
    )
"""
SPACE = {"optimizer": "SGD", "momentum": 0.0, "learning_rate": 0.1, "memory_size": 100}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("tuning")
    (here / "config.py").write_text(CONFIG)
    home = luthier.connect(here / "home")
    yield here
    home.close()


def test_two_updates_and_what_is_kept(folder) -> None:
    state = folder / "state"
    for chunk in range(2):
        run = execute_tuning_job(
            config_space=SPACE | {"max_epochs": 10}, mode="max", metric="val_accuracy",
            updater="DER", chunk_id=chunk, config_file=folder / "config.py", next_state_url=state,
            state_url=state if chunk else None, accelerator="cpu",
        )  # fmt: skip
        assert run.status()["status"] == "FINISHED"
    found = run.metrics()
    assert head(str(state)) == 2
    assert {"val_loss", "val_accuracy"} <= set(found["after"])
    assert found["update"]["by_chunk"][0] > 0.8
    assert found["update"]["by_chunk"][1] > 0.8


def test_the_later_vocabulary(folder) -> None:
    run = run_training_job(
        mode="max", config_space=SPACE | {"hidden_size": 20}, metric="val_accuracy",
        backend="local", updater="ER", max_epochs=2, chunk_id=0, accelerator="cpu",
        config_file=folder / "config.py", output_state_url=folder / "later",
    )  # fmt: skip
    assert run.metrics()["after"]["val_accuracy"] > 0.8
    assert head(str(folder / "later")) == 1


def test_an_experiment(folder) -> None:
    outputs = folder / "experiment"
    words = {"config_file": folder / "config.py", "experiment_outputs_url": outputs}
    found = execute_experiment_job(
        "local", config_space=SPACE, num_updates=2, updater="ER", max_epochs=5,
        accelerator="cpu", **words,
    )  # fmt: skip
    assert [len(row) for row in found["matrix"]] == [5, 5]
    first, second = found["matrix"]
    assert first[0] > 0.8
    assert second[1] > 0.5
    assert max(second[2:]) == 0.0, "what was never learnt is not known"
    assert found["forgetting"] == pytest.approx(max(first[0], second[0]) - second[0])
    assert json.loads((outputs / "experiment.json").read_text()) == found
    with pytest.raises(SpecError, match="already"):
        execute_experiment_job("local", config_space=SPACE, num_updates=2, **words)
    with pytest.raises(SpecError, match="num_updates"):
        execute_experiment_job("local", **words | {"experiment_outputs_url": folder / "new"},
                               config_space=SPACE, num_updates=0)  # fmt: skip


def test_a_state_that_is_not_there_fails_the_run(folder) -> None:
    with pytest.raises(LuthierError, match="no-state"):
        run_training_job(
            config_space=SPACE, max_epochs=1, chunk_id=1, accelerator="cpu",
            config_file=folder / "config.py", input_state_url=folder / "no-state",
        )  # fmt: skip


def test_what_is_wrong_is_told_before_anything_runs(folder) -> None:
    with pytest.raises(SpecError, match="did you mean 'hidden_size'"):
        run_training_job(config_space={"hiden_size": 3}, config_file=folder / "config.py")
    with pytest.raises(SpecError, match=r"did you mean 'config\.py'"):
        run_training_job(config_space={}, config_file=folder / "confg.py")
    with pytest.raises(SpecError, match="alpha"):
        run_training_job(config_space={"alpha": -1.0}, config_file=folder / "config.py")
    with pytest.raises(SpecError, match="memory_size"):
        run_training_job(config_space={"memory_size": 0}, config_file=folder / "config.py")
