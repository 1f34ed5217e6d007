"""Calculators at each evaluation: DistanceShift by its definition, somebody's own class, stopping
by what it says, and one that fails."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_rankings import searches, write

from luthier.admission import check
from luthier.engine.run import run
from luthier.errors import SpecError
from luthier.evaluation.calculators import made
from luthier.models.loading import open_text_model
from luthier.spec import CalculatorCallback, CalculatorSpec, EarlyStopping

OWN = """
import numpy as np
from luthier.clicks import MetricCalculator, MetricValue

class Moved(MetricCalculator):
    def calculate(self, inputs):
        apart = np.abs(inputs.after - inputs.before)
        return [MetricValue("moved", self.times * apart.max()), MetricValue("none", np.nan)]
"""


@pytest.fixture
def job(tmp_path, make_spec):
    """A job with calculators; its test searches have three without a click."""
    rows = searches()
    for row in rows[:3]:
        row["relevance"] = [0.0] * len(row["items"])
    files = [write(tmp_path / "train.jsonl", searches()), write(tmp_path / "test.jsonl", rows[:9])]
    sources = [{"uri": str(file)} for file in files]

    def make(*calculators, distance="cosine", callbacks=(), **changes):
        callback = CalculatorCallback(
            calculators=calculators, train_data=sources[0], test_data=sources[1], distance=distance
        )
        base = {"data.train": sources[0], "loss": "ListwiseSoftmaxLoss"}
        spec = make_spec(**{**base, **changes})
        return spec.model_copy(update={"callbacks": (callback, *callbacks)})

    return make


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    source = {"uri": str(tmp_path / "own.py")}
    return CalculatorSpec(name="Moved", attributes={"times": 2.0}, code=source)


def evaluations(outcome):
    return json.loads((outcome.folder / "luthier" / "history.json").read_text())["evaluations"]


def by_definition(folders, rows, distance):
    """By loops over searches, each text encoded for itself."""
    sides = []
    for folder in folders:
        model = open_text_model(folder, device="cpu")
        scores = []
        for row in rows:
            [query] = model.encode([row["query"]], normalize=False).astype(float)
            items = model.encode(row["items"], normalize=False).astype(float)
            if distance == "euclidean":
                scores.append(-np.linalg.norm(items - query, axis=1))
            else:
                lengths = np.linalg.norm(items, axis=1) * np.linalg.norm(query)
                scores.append(items @ query / lengths)
        sides.append(scores)
    good, bad = [], []
    for row, old, new in zip(rows, *sides, strict=True):
        clicked = np.array(row["relevance"]) > 0
        if clicked.any():
            good.append((new - old)[clicked].mean())
        else:
            bad.append((old - new).mean())
    return np.mean(good), np.mean(bad) if bad else None


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_shifts_are_told_at_each_evaluation(job, trained, tiny_model, distance):
    spec = job(CalculatorSpec(name="DistanceShift"), distance=distance, eval_steps=4)
    outcome = trained(spec)
    found = evaluations(outcome)
    assert [record["step"] for record in found] == [4, 8, 12]
    rows = searches()
    for row in rows[:3]:
        row["relevance"] = [0.0] * len(row["items"])
    folders = (tiny_model, outcome.folder)
    expected = {
        "train": by_definition(folders, searches(), distance),
        "test": by_definition(folders, rows[:9], distance),
    }
    last = outcome.metrics["calculated"]
    assert last.items() <= found[-1].items()
    assert set(last) == {"train_not_irrelevant_dist_shift", "test_not_irrelevant_dist_shift",
                         "test_irrelevant_dist_shift"}  # fmt: skip
    for stage, (good, bad) in expected.items():
        assert last[f"{stage}_not_irrelevant_dist_shift"] == pytest.approx(good, abs=1e-5)
        if bad is not None:
            assert last[f"{stage}_irrelevant_dist_shift"] == pytest.approx(bad, abs=1e-5)
    values = [record["train_not_irrelevant_dist_shift"] for record in found]
    assert len(set(values)) == 3  # another model each time


def test_a_class_of_ones_own_works_and_stops_the_training(job, trained, own):
    free = trained(job(own, num_train_epochs=3), "free")
    moved = [record["train_moved"] for record in evaluations(free)]
    assert len(moved) == 3
    assert all(value > 0 for value in moved)
    assert all("train_none" not in record for record in evaluations(free))
    stop = EarlyStopping(monitor="train_moved", mode="min", patience=1)
    stopped = trained(job(own, callbacks=(stop,), num_train_epochs=9), "stopped")
    assert moved[1] > moved[0]  # so that the second evaluation is no improvement
    assert len(evaluations(stopped)) == 2


def test_an_interrupted_training_says_the_same(job, run_in_pieces, own):
    spec = job(CalculatorSpec(name="DistanceShift"), own, eval_steps=3)
    straight, stopped = run_in_pieces(spec, 2, 7)
    assert evaluations(straight) == evaluations(stopped)


def test_one_that_fails_is_told_of_and_left_out(job, new_place, tmp_path):
    (tmp_path / "bad.py").write_text(OWN.replace("self.times *", "1 / 0 *"))
    bad = CalculatorSpec(name="Moved", code={"uri": str(tmp_path / "bad.py")})
    said = []

    def tell(kind, data):
        if kind == "log" and data["level"] == "warning":
            said.append(data["message"])

    shift = CalculatorSpec(name="DistanceShift")
    outcome = run(job(bad, shift), new_place("bad"), tell)
    assert said == ["Moved failed: ZeroDivisionError: division by zero"]
    assert "train_not_irrelevant_dist_shift" in evaluations(outcome)[-1]
    stop = EarlyStopping(monitor="test_moved", mode="max")
    with pytest.raises(SpecError, match=r"'test_moved' is not measured; there are: .*dist_shift"):
        run(job(bad, shift, callbacks=(stop,)), new_place("stop"), tell)


def test_what_cannot_be_is_refused(job, own):
    spec = job(CalculatorSpec(name="DistanceShif"))
    assert "did you mean 'DistanceShift'" in "\n".join(map(str, check(spec, "rankings", {"cpu"})))
    said = "\n".join(map(str, check(job(own), "pairs", {"cpu"})))
    assert "callbacks.calculators: is for rankings" in said
    nothing = spec.model_copy(update={"callbacks": (CalculatorCallback(calculators=[own]),)})
    said = "\n".join(map(str, check(nothing, "rankings", {"cpu"})))
    assert "there are no searches to score" in said
    with pytest.raises(SpecError, match="the text defines no such class"):
        made("Other", {}, OWN)
    with pytest.raises(SpecError, match="SyntaxError"):
        made("Other", {}, "class")
