"""What an update may cost: budgets, a probe, the stability gap and the drift gate, on real digits
through the real engine."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from luthier.engine.control import Interrupted
from luthier.engine.run import Place, run
from luthier.errors import DataError, SpecError
from luthier.evaluation.report import read_report
from luthier.spec import parse_spec
from luthier.store.states import head, read_state

CONFIG = """
import torch
from torch.utils.data import TensorDataset

from luthier.tuning import ClassIncrementalScenario, IIDScenario, ImageRotationScenario
from luthier.tuning.arrays import DigitsDataModule


def data_module_fn(chunk_id: int, way: str = "classes", val_size: float = 0.2):
    digits = DigitsDataModule(val_size=val_size, test_size=0.2, seed=0)
    if way == "iid":
        return IIDScenario(digits, 4, chunk_id, 0)
    if way == "turned":
        return ImageRotationScenario(digits, [0, 90, 180, 270], chunk_id, 0)
    return ClassIncrementalScenario(digits, chunk_id, [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]])


def model_fn(model_state_url=None):
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 40), torch.nn.ReLU(), torch.nn.Dropout(0.1),
        torch.nn.Linear(40, 10),
    )
"""
PROBE = """

def probe_data_fn(probe_size: int = 60):
    from sklearn.datasets import load_digits

    found = load_digits()
    rows = [i for i, y in enumerate(found.target) if y < 2][:probe_size]
    images = torch.tensor(found.images[rows] / 16, dtype=torch.float32)[:, None]
    return TensorDataset(images, torch.tensor(found.target[rows]))
"""


class Bench:
    """Updates in one folder, each with its own place."""

    def __init__(self, folder: Path, config: str = CONFIG + PROBE) -> None:
        self.folder = folder
        self.config = folder / "config.py"
        self.config.write_text(config)
        self.state = str(folder / "state")
        self.said: list[str] = []
        (folder / "cache").mkdir()

    def place(self, name: str) -> Place:
        place = Place(self.folder / name, self.folder / "cache", Path, Path)
        place.folder.mkdir(exist_ok=True)
        return place

    def spec(self, chunk, updater="ER", *, arguments=None, training=None, **update):
        words = {"learning_rate": 0.1, "num_train_epochs": 3, "per_device_train_batch_size": 16}
        words |= {"optim": "SGD", "optim_args": {"momentum": 0.9}, "device": "cpu"}
        urls = {"output_state_url": self.state}
        urls |= {"input_state_url": self.state} if head(self.state) else {}
        remembers = updater not in ("FineTuning", "LwF")
        return parse_spec({
            "task": "program",
            "model": {"name": str(self.config)},
            "data": {"train": {"uri": str(self.config)}},
            "program": {"config_file": str(self.config),
                        "arguments": {"chunk_id": chunk, **(arguments or {})}},
            "update": {"updater": updater, "memory_size": 60 if remembers else 500,
                       **urls, **update},
            "training": words | (training or {}),
        })  # fmt: skip

    def update(self, name, *args, control=lambda: None, **words):
        spec = self.spec(*args, **words)

        def tell(kind, data) -> None:
            if kind == "log":
                self.said.append(data["message"])

        return run(spec, self.place(name), tell, control)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def told(outcome) -> dict:
    return outcome.metrics["update"]


def test_a_budget_stops_a_promotion(bench) -> None:
    first = bench.update("first", 0, forgetting_budget=0.1)
    assert told(first)["verdict"] == "nothing to compare"
    assert told(first)["promoted"], "there is nothing to forget"
    before = read_state(bench.state, bench.folder / "cache").bundle.id

    stopped = bench.update("stopped", 1, "FineTuning", forgetting_budget=0.1,
                           forgetting_budget_each=0.2)  # fmt: skip
    found = told(stopped)
    assert found["verdict"] == "forgot"
    assert found["earlier"]["mean"] > 0.5
    assert found["earlier"]["change"]["high"] < 0
    assert found["promoted"] is False
    assert len(found["reasons"]) == 2
    assert "10.0% is allowed" in found["reasons"][0]
    assert "chunk 1 lost" in found["reasons"][1]
    assert (stopped.folder / "model.safetensors").exists(), "the artifact is kept"
    assert head(bench.state) == 1
    assert read_state(bench.state, bench.folder / "cache").bundle.id == before
    assert any("stays as it is" in line for line in bench.said)
    again = run(bench.spec(1, "FineTuning", forgetting_budget=0.1, forgetting_budget_each=0.2),
                bench.place("stopped"))  # fmt: skip
    assert again.folder == stopped.folder
    assert head(bench.state) == 1, "asked for once more, it is not committed either"

    better = bench.update("better", 1, "ER", forgetting_budget=0.3)
    assert told(better)["promoted"]
    assert [len(row) for row in told(better)["matrix"]] == [1, 2], "what was stopped left no trace"
    assert head(bench.state) == 2


def test_a_warning_does_not_stop(bench) -> None:
    bench.update("first", 0)
    found = told(
        bench.update("second", 1, "FineTuning", forgetting_budget=0.1, on_forgetting="warn")
    )
    assert found["promoted"]
    assert "on average" in found["reasons"][0]
    assert any("allows it" in line for line in bench.said)
    assert head(bench.state) == 2


def test_a_general_probe_has_a_budget_of_its_own(bench) -> None:
    first = told(bench.update("first", 0))
    assert first["probe"]["after"]["val_accuracy"] > 0.9, "zeros and ones are what was learnt"
    assert first["probe"]["before"]["val_accuracy"] < 0.9
    found = told(bench.update("second", 1, "FineTuning", probe_budget=0.05))
    assert found["probe"]["before"] == first["probe"]["after"]
    assert found["probe"]["mean"] == pytest.approx(
        found["probe"]["before"]["val_accuracy"] - found["probe"]["after"]["val_accuracy"]
    )
    assert found["promoted"] is False
    assert "the probe lost" in found["reasons"][0]
    assert head(bench.state) == 1
    folder = read_state(bench.state, bench.folder / "cache").bundle.path / "luthier/update"
    kept = load_file(folder / "validation.safetensors")
    assert len(next(iter(kept.values()))) == sum(
        1 for c in json.loads((folder / "update.json").read_text())["chunks"] if c == 0
    ), "the probe is not among what is remembered"


def test_what_is_asked_for_and_cannot_be_watched(tmp_path) -> None:
    bench = Bench(tmp_path, CONFIG)
    with pytest.raises(SpecError, match="no probe_data_fn"):
        bench.update("a", 0, probe_budget=0.1)
    with pytest.raises(DataError, match="nothing tells what is forgotten"):
        bench.update("b", 0, forgetting_budget=0.1, arguments={"val_size": 0.0})
    with pytest.raises(SpecError, match="forgetting_budget"):
        bench.spec(0, forgetting_budget=1.5)


def test_the_stability_gap(bench) -> None:
    """At evaluations for nothing, or every few steps; in both it is the largest drop on the way."""
    bench.update("first", 0)
    by_epoch = told(bench.update("second", 1, output_state_url=None))["stability"]
    assert [entry["step"] for entry in by_epoch["curve"]] == [15, 30, 45]
    outcome = bench.update("third", 1, stability_steps=5, output_state_url=None)
    found = told(outcome)["stability"]
    steps = [entry["step"] for entry in found["curve"]]
    assert steps == list(range(5, 46, 5))
    start = told(outcome)["before"][0]
    drops = [start - entry["by_chunk"][0] for entry in found["curve"]]
    assert found["gap"] == pytest.approx(max(0, *drops))
    assert found["step"] == steps[int(np.argmax(drops))]
    shared = [entry for entry in found["curve"] if entry["step"] % 15 == 0]
    assert shared == by_epoch["curve"]
    assert found["gap"] >= by_epoch["gap"]
    assert found["end"] == by_epoch["end"]
    page = (outcome.folder / "luthier/report.html").read_text()
    assert "What was kept" in page
    assert page.count("<svg") >= 4
    assert "accuracy of earlier chunks on the way" in page
    assert read_report(outcome.folder / "luthier/report.json").update["stability"] == found


def test_watching_changes_nothing_that_is_trained(tmp_path) -> None:
    weights = []
    for name, words in {
        "plain": {},
        "watched": {"stability_steps": 3, "drift": "report", "probe_budget": 1.0},
    }.items():
        (tmp_path / name).mkdir()
        bench = Bench(tmp_path / name)
        bench.update("first", 0)
        outcome = bench.update("second", 1, "ER", **words)
        weights.append(load_file(outcome.folder / "model.safetensors"))
    assert all((weights[0][n] == weights[1][n]).all() for n in weights[0])


def test_an_interrupted_update_tells_the_same(bench) -> None:
    words = {"stability_steps": 3, "drift": "report"}
    bench.update("first", 0)
    state = bench.folder / "state"
    whole = bench.update("whole", 1, output_state_url=str(bench.folder / "a"), **words)
    calls = []

    def stop():
        calls.append(1)
        return "interrupt" if len(calls) == 25 else None

    other = {"output_state_url": str(bench.folder / "b"), **words}
    with pytest.raises(Interrupted):
        bench.update("parts", 1, control=stop, **other)
    parts = bench.update("parts", 1, **other)
    assert state.exists()
    assert told(parts) == told(whole)
    assert len(told(parts)["stability"]["curve"]) == 15


def test_bytes_are_those_of_the_files(bench) -> None:
    outcome = bench.update("first", 0)
    sizes = told(outcome)["bytes"]
    update = outcome.folder / "luthier" / "update"
    assert sizes["memory"] == (update / "memory.safetensors").stat().st_size
    assert sizes["validation"] == (update / "validation.safetensors").stat().st_size
    assert sizes["model"] == (outcome.folder / "model.safetensors").stat().st_size
    assert json.loads((outcome.folder / "luthier/metrics.json").read_text()) == outcome.metrics


# --- drift -----------------------------------------------------------------------------------


def test_nothing_new_is_not_learnt(bench) -> None:
    """Of the same distribution: the gate leaves the state as it is."""
    way = {"arguments": {"way": "iid"}}
    bench.update("first", 0, drift="gate", **way)
    assert head(bench.state) == 1, "the first update has nothing to compare with"
    state = read_state(bench.state, bench.folder / "cache").bundle
    outcome = bench.update("second", 1, drift="gate", **way)
    found = told(outcome)
    assert found["drift"]["decision"] == "skip", found["drift"]["reason"]
    assert found["drift"]["skipped"]
    assert found["drift"]["reference"] == "validation rows of former updates"
    assert outcome.metrics["steps"] == 0
    assert found["promoted"] is False
    assert "nothing was trained" in found["reasons"][0]
    assert head(bench.state) == 1
    same, kept = load_file(outcome.folder / "model.safetensors"), load_file(
        state.path / "model.safetensors"
    )  # fmt: skip
    assert all((same[n] == kept[n]).all() for n in kept)
    assert any("nothing is trained" in line for line in bench.said)
    past = json.loads((outcome.folder / "luthier/update/update.json").read_text())
    assert past["updates"] == 1


def test_an_updater_that_starts_anew_gives_the_model_there_is(bench) -> None:
    way = {"arguments": {"way": "iid"}}
    bench.update("first", 0, "GDumb", memory_batch_size=0, **way)
    state = read_state(bench.state, bench.folder / "cache").bundle
    outcome = bench.update("second", 1, "GDumb", memory_batch_size=0, drift="gate", **way)
    assert told(outcome)["drift"]["decision"] == "skip", told(outcome)["drift"]["reason"]
    same = load_file(outcome.folder / "model.safetensors")
    kept = load_file(state.path / "model.safetensors")
    assert all((same[n] == kept[n]).all() for n in kept)
    assert told(outcome)["before"] == told(outcome)["by_chunk"]


def test_what_is_new_is_learnt(bench) -> None:
    bench.update("first", 0, arguments={"way": "turned"})
    found = told(bench.update("second", 1, drift="gate", arguments={"way": "turned"}))
    assert found["drift"]["decision"] in ("update", "retrain")
    assert found["drift"]["skipped"] is False
    assert found["promoted"]
    assert head(bench.state) == 2
    assert any(line.startswith("drift: ") for line in bench.said)


def test_without_held_out_rows_the_memory_is_compared(bench) -> None:
    way = {"arguments": {"way": "turned", "val_size": 0.0}}
    bench.update("first", 0, **way)
    found = told(bench.update("second", 1, drift="report", **way))
    assert found["drift"]["reference"] == "remembered rows"
    assert found["drift"]["reference_rows"] == 60
    assert found["drift"]["decision"] == "retrain"


def test_a_fresh_model_is_measured_for_forward_transfer(bench) -> None:
    first = bench.update("first", 0)
    second = bench.update("second", 1)
    fresh = told(first)["fresh"]
    assert len(fresh) == 5
    assert all(0 <= test["accuracy"] <= 0.9 for test in fresh)
    assert told(second)["fresh"] is None, "there is a model that has learnt something"
