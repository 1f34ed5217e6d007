"""Calculators on their way to a worker, and what a training on clicks does with them."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from clicks_world import a_worker, write_world

from luthier.clicks import (
    DistanceShift,
    EarlyStopping,
    FineTuningParams,
    FineTuningSettings,
    MetricCalculator,
    MetricsAccumulator,
    MetricValue,
)
from luthier.clicks.builder import FineTuningBuilder
from luthier.clicks.carrying import carried, text_of
from luthier.clicks.defaults import DEFAULTS
from luthier.clicks.loaders import as_loader
from luthier.clicks.reading import quiet, read_catalogue, read_sessions
from luthier.clicks.tuning import begin, finish, run, tune
from luthier.errors import SpecError
from luthier.evaluation.calculators import Layout, ScoredInputs, made
from luthier.evaluation.reranking import metrics
from luthier.runs import connection
from luthier.testing.models import tiny_text_model

CUT = 3
COMPUTED = int("4")


def discount(place):
    """What a place is worth."""
    return 1.0 / math.log2(place + 1)


@dataclass
class ClickGain(MetricCalculator):
    """The discounted gain of clicked items among the first of each input."""

    name: str = "click_gain"
    scale: float = 1.0

    def calculate(self, inputs):
        gains = []
        for start, end in zip(inputs.starts[:-1], inputs.starts[1:], strict=True):
            order = np.argsort(-inputs.after[start:end], kind="stable")[:CUT]
            clicked = inputs.clicked[start:end][order]
            gains.append(sum(discount(n) for n, c in enumerate(clicked, start=1) if c))
        return [MetricValue(self.name, self.scale * float(np.mean(gains)))]


class Computed(MetricCalculator):
    def calculate(self, inputs):
        return [MetricValue("computed", float(COMPUTED))]


class Fails(MetricCalculator):
    def calculate(self, inputs):
        return [MetricValue("ratio", inputs.nothing)]


SCORED = ScoredInputs(
    np.array([0.1, 0.2, 0.3]), np.array([0.9, 0.1, 0.5]), np.array([False, True, True]),
    np.array([0, 3]), np.array([False]),
)  # fmt: skip
LAYOUT = Layout(np.zeros(3, int), np.arange(3), SCORED.clicked, SCORED.starts, SCORED.irrelevant)


def test_the_text_of_a_class_is_what_it_needs_and_no_more():
    text = text_of(ClickGain)
    assert "def discount" in text
    assert "CUT = 3" in text
    for other in ("pytest", "COMPUTED", "def test", "class Fails"):
        assert other not in text
    there = made("ClickGain", {"name": "gain", "scale": 2.0}, text)
    assert type(there) is not ClickGain
    assert there(SCORED) == ClickGain("gain", 2.0)(SCORED)
    assert there(SCORED)[0].value == pytest.approx(2 * (1 / math.log2(3) + 1 / math.log2(4)))


@pytest.fixture
def home(tmp_path):
    found = connection.Home(f"sqlite:///{tmp_path}/luthier.db", store=str(tmp_path / "store"))
    yield found
    found.close()


def test_what_can_go_goes_and_what_stays_says_why(home):
    class Local(MetricCalculator):
        pass

    odd = ClickGain()
    odd.memory = {1, 2}
    calculators = [ClickGain(), DistanceShift(), Computed(), Fails(), Local()]
    found = carried(calculators, {"train": LAYOUT}, home, is_similarity=True)
    assert [c.name for c in found.calculators] == ["ClickGain", "DistanceShift"]
    assert found.calculators[0].attributes == {"name": "click_gain", "scale": 1.0}
    assert found.calculators[1].code is None  # it has a card
    assert found.names == {"train_click_gain", "train_not_irrelevant_dist_shift"}
    assert found.left["Computed"].startswith("it needs 'COMPUTED', which its file computes")
    assert "tried, it failed: AttributeError" in found.left["Fails"]
    assert "inside a function" in found.left["Local"]
    for bad, said in [(odd, "its attributes are no JSON"), (ClickGain("loss"), "'train_loss'")]:
        left = carried([bad], {"train": LAYOUT}, home, is_similarity=True).left
        assert said in left["ClickGain"]


# --- a training -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calculators")
    write_world(folder, pairs=40, sessions=240)
    tiny_text_model(folder / "tiny")
    with a_worker(folder / "home"):
        yield folder


@pytest.fixture
def connected(world, monkeypatch):
    before = connection._current
    monkeypatch.setenv("LUTHIER_WORKER", "none")
    yield connection.connect(world / "home")
    connection._current.close()
    connection._current = before


def _settings(**words):
    words = {"metric_calculators": [DistanceShift(), ClickGain()], "num_epochs": 3} | words
    return FineTuningSettings(
        loss_func="ListwiseSoftmaxLoss", batch_size=16, step_size=None, gamma=None,
        test_each_n_inputs=0.5, **words,
    )  # fmt: skip


def _builder(world, settings, accumulators=()):
    from luthier.clicks.builder import ranking_data
    from luthier.clicks.items_sets import TextItemSetManager
    from luthier.clicks.splits import split_sessions

    manager = TextItemSetManager()
    sessions = read_sessions(world / "log.jsonl", say=quiet)
    catalogue = read_catalogue(as_loader(world / "items.jsonl"), manager, None, None)
    data = ranking_data(split_sessions(sessions), catalogue, manager)
    params = FineTuningParams(**{**DEFAULTS, "query_lr": 1e-3, "items_lr": 1e-3})
    return FineTuningBuilder(settings, params, data, model=str(world / "tiny"),
                             accumulators=accumulators)  # fmt: skip


def test_they_work_at_each_evaluation_and_accumulate_over_the_training(world, connected):
    accumulators = [
        MetricsAccumulator("train_not_irrelevant_dist_shift", calc_mean=True, calc_sliding=True,
                           window_size=2),
        MetricsAccumulator("test_click_gain", calc_max=True),
    ]  # fmt: skip
    done = run(_builder(world, _settings(), accumulators))
    records = [e.data for e in done.run.events() if e.kind == "evaluation"]
    assert len(records) >= 5  # twice an epoch
    said = ("not_irrelevant_dist_shift", "irrelevant_dist_shift", "click_gain")
    names = {f"{stage}_{name}" for stage in ("train", "test") for name in said}
    assert all(names <= set(record) for record in records)
    shifts = [record["train_not_irrelevant_dist_shift"] for record in records]
    assert len(set(shifts)) == len(records)
    series = done.metrics["accumulated"]["train_not_irrelevant_dist_shift"]
    assert series["train_not_irrelevant_dist_shift"] == pytest.approx(shifts)
    sliding = series["sliding_train_not_irrelevant_dist_shift"]
    assert sliding[-1] == pytest.approx(sum(shifts[-2:]) / 2)
    gains = [record["test_click_gain"] for record in records]
    most = done.metrics["accumulated"]["test_click_gain"]["max_test_click_gain"]
    assert most == pytest.approx([max(gains[: n + 1]) for n in range(len(gains))])
    assert done.run.metrics()["calculated"]["test_click_gain"] == pytest.approx(gains[-1])
    assert {"test_not_irrelevant_dist_shift", "test_click_gain"} <= set(done.metrics)  # at the end


def test_a_training_stops_by_what_ones_own_class_says(world, connected):
    stop = EarlyStopping(monitor="train_click_gain", patience=1, mode="min", verbose=True)
    job = begin(_builder(world, _settings(early_stopping=stop))).run
    finish(job)
    events = job.events(limit=10_000)
    records = [e.data for e in events if e.kind == "evaluation"]
    gains = [record["train_click_gain"] for record in records]
    assert len(records) < 5
    assert gains[-1] >= min(gains[:-1])
    assert any(e.data.get("message", "").startswith("stopping early") for e in events)


def test_a_monitor_that_nothing_measures_is_refused_with_the_reason(world, connected):
    words = (str(world / "tiny"), world / "log.jsonl", world / "items.jsonl")
    stop = EarlyStopping(monitor="test_computed", mode="max")
    settings = _settings(metric_calculators=[ClickGain(), Computed()], early_stopping=stop)
    said = []
    with pytest.raises(SpecError, match=r"nothing measures 'test_computed'.*test_click_gain.*"
                                        r"Computed: it needs 'COMPUTED'"):  # fmt: skip
        tune(*words, settings=settings, say=said.append)
    assert any(line.startswith("Computed is calculated before and after") for line in said)


def test_the_gain_of_the_test_is_that_of_ndcg():
    """The class of this test against the house's nDCG, where one item is relevant."""
    rng = np.random.default_rng(1)
    scores, clicked = rng.random(12), np.tile([True, False, False], 4)
    rows = np.repeat(np.arange(4), 3)
    inputs = ScoredInputs(scores, scores, clicked, np.arange(0, 13, 3), np.zeros(4, bool))
    expected = metrics(rows, clicked.astype(float), scores, 4, CUT)["ndcg_at_k"].mean()
    assert ClickGain().calculate(inputs)[0].value == pytest.approx(expected)
