"""What logs say of positions, held against logs whose bias is known."""

import itertools

import numpy as np
import pytest

from luthier.clicks.chance import uniform
from luthier.clicks.click_models import (
    Cascade,
    DynamicBayesian,
    PositionBased,
    click_model,
    simplified_dbn,
)
from luthier.clicks.importing import import_log
from luthier.clicks.propensity import (
    _interventions,
    count_cells,
    expectation_maximization,
    harvest,
)
from luthier.clicks.sessions import Sessions
from luthier.clicks.simulate import Collection, simulate
from luthier.clicks.weights import (
    by_pair,
    doubly_robust_relevance,
    inverse_propensity,
    ips_relevance,
    weights_of,
)
from luthier.clicks.writing import write_sessions
from luthier.errors import DataError

K = 6
TRUE = PositionBased.eta_decay(K, 1.0)


@pytest.fixture(scope="module")
def collection():
    """Real queries and documents: definitions of WordNet and the words they define."""
    import json
    from importlib.resources import files

    lines = files("luthier.demo").joinpath("wordnet-sample.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()][:600]
    found = Collection.of_pairs([(r["definition"], f"{r['words']} {r['subject']}") for r in rows])
    return Collection(found.queries[:40], found.documents, found.names, found.relevant[:40])


@pytest.fixture(scope="module")
def log(collection):
    return simulate(collection, TRUE, sessions=40_000, results=K, noise=2.0, seed=5)


# --- click models -------------------------------------------------------------------------------


def _by_enumeration(model, attraction):
    """P(click) of each place, over everything that can happen to one person."""
    k = len(attraction)
    found = [0.0] * k
    for attracted, satisfied, leaves in itertools.product(
        itertools.product((0, 1), repeat=k), repeat=3
    ):
        chance = 1.0
        for a, s, g, alpha in zip(attracted, satisfied, leaves, attraction, strict=True):
            chance *= alpha if a else 1 - alpha
            chance *= model.satisfaction if s else 1 - model.satisfaction
            chance *= 1 - model.perseverance if g else model.perseverance
        for place in range(k):
            found[place] += chance * attracted[place]
            if (attracted[place] and satisfied[place]) or leaves[place]:
                break
    return found


@pytest.mark.parametrize("model", [DynamicBayesian(0.6, 0.8), Cascade(), DynamicBayesian(0, 1)])
def test_chances_of_a_click_from_the_top(model):
    attraction = [0.3, 0.9, 0.5]
    slow = _by_enumeration(model, attraction)
    np.testing.assert_allclose(model.probabilities(np.array([attraction]))[0], slow, atol=1e-12)


@pytest.mark.parametrize("name", ["position", "cascade", "dbn"])
def test_what_is_drawn_has_those_chances(name):
    model = click_model(name, 5, eta=0.7)
    attraction = np.tile([0.2, 0.9, 0.5, 0.4, 0.7], (40_000, 1))
    drawn = model.clicks(attraction, name)
    expected = model.probabilities(attraction[:1])[0]
    spread = np.sqrt(expected * (1 - expected) / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - expected) < 4.5 * spread + 1e-12).all()
    np.testing.assert_array_equal(drawn, model.clicks(attraction, name))
    assert (drawn != model.clicks(attraction, "another")).any()
    if name == "cascade":
        assert drawn.sum(axis=1).max() == 1


def test_models_that_cannot_be():
    with pytest.raises(DataError, match="did you mean 'cascade'"):
        click_model("cascad", 3)
    with pytest.raises(DataError, match="a probability"):
        DynamicBayesian(1.2)
    with pytest.raises(DataError, match="3 positions, and lists of 4"):
        PositionBased.eta_decay(3).clicks(np.ones((1, 4)))


def test_the_dbn_in_closed_form_finds_what_made_the_log(collection):
    made = simulate(
        collection, DynamicBayesian(0.6, 1.0), sessions=30_000, results=K, noise=2.0, seed=1
    )
    found = simplified_dbn(made.sessions, made.clicked)
    truth = by_pair(made.sessions, made.attraction)[2]
    often = found.shown > 150
    assert often.sum() > 200
    assert np.abs(found.attraction - truth)[often].mean() < 0.03
    clicked_often = found.shown * found.attraction > 150
    assert (found.satisfaction[clicked_often] > 0.6).all()  # a bound, as its docstring says
    naive = by_pair(made.sessions, made.clicked.astype(float))[2]
    wanted = often & (truth > 0.5)
    assert np.abs(naive - truth)[wanted].mean() > 0.06
    assert np.abs(found.attraction - truth)[wanted].mean() < 0.04


def test_the_dbn_by_hand():
    rows = [
        {"session": "1", "query": "q", "items": ["a", "b", "c"], "clicks": [0, 1]},
        {"session": "2", "query": "q", "items": ["a", "b", "c"], "clicks": [0]},
        {"session": "3", "query": "q", "items": ["a", "b", "c"]},
    ]
    sessions = Sessions.of(rows)
    found = simplified_dbn(sessions, sessions.grades() > 0, prior=0)
    np.testing.assert_allclose(found.attraction, [2 / 3, 1 / 2, 0])
    np.testing.assert_allclose(found.satisfaction, [1 / 2, 1, np.nan])
    np.testing.assert_allclose(found.relevance(), [1 / 3, 1 / 2, 0])


# --- propensities -------------------------------------------------------------------------------


def test_harvested_propensities_are_those_that_made_the_log(log):
    found = harvest(log.sessions, log.clicked)
    np.testing.assert_allclose(found.values, TRUE.examination, rtol=0.12)
    assert found.known.all()
    assert found.at(np.array([1, K, K + 5])).tolist() == [1.0, found.values[-1], found.values[-1]]


def test_propensities_by_em_are_those_that_made_the_log(log):
    found = expectation_maximization(log.sessions, log.clicked)
    np.testing.assert_allclose(found.values, TRUE.examination, rtol=0.12)


def test_propensities_by_regression_em(log):
    """With what relevance hangs on as a feature, a twentieth of the log is enough."""
    few = log.sessions.take(np.arange(4000))
    m = len(few.owner)
    features = (log.attraction[:m, None] > 0.5).astype(float)
    found = expectation_maximization(few, log.clicked[:m], features=features)
    np.testing.assert_allclose(found.values, TRUE.examination, rtol=0.2)


def test_the_naive_estimate_is_wrong_where_the_others_are_right(log):
    """Better documents are higher up, so shares of clicks by position exaggerate the bias."""
    positions = log.sessions.positions
    shares = np.array([log.clicked[positions == k].mean() for k in range(1, K + 1)])
    naive, true = shares / shares[0], np.array(TRUE.examination)
    apart = np.abs(naive / true - 1).max()
    assert apart > 0.25
    for estimate in (harvest, expectation_maximization):
        found = estimate(log.sessions, log.clicked)
        assert np.abs(found.values / true - 1).max() < apart / 2


def test_interventions_counted_slowly(log):
    few = log.sessions.take(np.arange(300))
    clicked = log.clicked[: len(few.owner)]
    hits, misses = _interventions(count_cells(few, clicked))
    shown, clicks = {}, {}
    codes = few.query_codes[few.owner]
    for q, d, k, c in zip(codes, few.item_codes, few.positions, clicked, strict=True):
        shown[q, d, k] = shown.get((q, d, k), 0) + 1
        clicks[q, d, k] = clicks.get((q, d, k), 0) + c
    slow_hits, slow_misses = np.zeros((K, K)), np.zeros((K, K))
    for (q, d, k), n in shown.items():
        for other in range(1, K + 1):
            if other != k and (q, d, other) in shown:
                slow_hits[k - 1, other - 1] += clicks[q, d, k] / n
                slow_misses[k - 1, other - 1] += 1 - clicks[q, d, k] / n
    np.testing.assert_allclose(hits, slow_hits, atol=1e-9)
    np.testing.assert_allclose(misses, slow_misses, atol=1e-9)


def test_a_log_without_interventions_says_so(collection):
    same = simulate(collection, TRUE, sessions=500, results=K, noise=0.0)
    with pytest.raises(DataError, match="holds no interventions"):
        harvest(same.sessions, same.clicked)
    with pytest.raises(DataError, match="nothing was clicked at the first position"):
        expectation_maximization(same.sessions, np.zeros(500 * K, bool))


# --- weights ------------------------------------------------------------------------------------


def test_ips_is_unbiased_where_the_naive_estimate_is_not(log):
    """By query and document: shares of clicks are too low by the position's part in them,
    inverse propensities put it right, with the true ones and with those of the log."""
    truth = by_pair(log.sessions, log.attraction)[2]
    p = np.array(TRUE.examination)[log.sessions.positions - 1]
    estimated = harvest(log.sessions, log.clicked).at(log.sessions.positions)
    counts = by_pair(log.sessions, p)[3]
    often = counts > 100

    def bias(values):
        return float((by_pair(log.sessions, values)[2] - truth)[often].mean())

    naive = bias(log.clicked.astype(float))
    assert naive < -0.05
    assert abs(bias(ips_relevance(log.clicked, p))) < 0.008
    assert abs(bias(ips_relevance(log.clicked, estimated))) < abs(naive) / 4


def test_the_doubly_robust_estimate_forgives_a_clip_or_a_prediction(log):
    p = np.array(TRUE.examination)[log.sessions.positions - 1]

    def bias(values):
        return abs(float((values - log.attraction).mean()))

    clipped = bias(ips_relevance(log.clicked, p, clip=0.5))
    assert clipped > 0.03
    good = doubly_robust_relevance(log.clicked, p, log.attraction, clip=0.5)
    assert bias(good) < 0.008
    wrong = doubly_robust_relevance(log.clicked, p, np.full(len(p), 0.9), clip=0.0)
    assert bias(wrong) < 0.008
    assert good.var() < ips_relevance(log.clicked, p).var()


def test_weights_by_hand():
    assert inverse_propensity(np.array([1.0, 0.25])).tolist() == [1.0, 4.0]
    with pytest.raises(DataError, match="a propensity is 0"):
        inverse_propensity(np.array([0.0]))
    with pytest.raises(DataError, match="clip is 2"):
        inverse_propensity(np.array([0.5]), 2)
    found = doubly_robust_relevance(
        np.array([1, 0]), np.array([0.5, 0.1]), np.array([0.4, 0.4]), 0.2
    )
    np.testing.assert_allclose(found, [0.4 + 0.8 / 0.5, 0.4 - 0.04 / 0.2])


def test_weights_of_sessions_are_clipped(log):
    found = weights_of(log.sessions, harvest(log.sessions, log.clicked), clip=0.5)
    assert found.max() <= 2.0
    assert (found[log.sessions.positions == 1] == 1.0).all()


# --- simulated logs -----------------------------------------------------------------------------


def test_a_simulated_log_is_the_same_each_time_and_survives_files(collection, tmp_path):
    made = simulate(collection, Cascade(), sessions=200, results=5, seed=3)
    again = simulate(collection, Cascade(), sessions=200, results=5, seed=3)
    assert made.sessions.table.equals(again.sessions.table)
    other = simulate(collection, Cascade(), sessions=200, results=5, seed=4)
    assert not made.sessions.table.equals(other.sessions.table)
    for name in ("log.jsonl", "log.csv"):
        write_sessions(made.sessions, tmp_path / name)
        read = import_log(tmp_path / name, tmp_path / "out.arrow", strict=True).sessions
        for column in ("session", "query", "user", "time", "items", "positions", "event_results"):
            assert read.table[column].to_pylist() == made.sessions.table[column].to_pylist()
    with pytest.raises(DataError, match=r"\.arrow, \.jsonl or \.csv"):
        write_sessions(made.sessions, tmp_path / "log.txt")


def test_a_ranking_finds_what_is_relevant_more_often_than_chance(collection):
    made = simulate(collection, Cascade(), sessions=400, results=5, noise=0.0)
    shown = made.attraction.reshape(-1, 5) > 0.5
    assert shown.any(axis=1).mean() > 0.1


def test_uniform_numbers_are_uniform():
    found = uniform((50_000,), "test")
    assert np.abs(np.quantile(found, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.01


def test_what_a_ranker_prefers_stands_on_top_whatever_is_asked() -> None:
    pairs = [(f"word{i} word{i % 7}", f"text {i} of word{i} and word{i % 3}") for i in range(60)]
    collection = Collection.of_pairs(pairs)
    preference = np.where(np.arange(60) % 2, 5.0, 0.0)
    people = PositionBased.eta_decay(5)
    top = {}
    for name, given in (("plain", None), ("preferring", preference)):
        log = simulate(collection, people, sessions=400, results=5, preference=given).sessions
        first = log.item_codes[log.positions == 1]
        top[name] = np.mean([int(log.item_names[code][1:]) % 2 for code in first])
    assert top["preferring"] > 0.95
    assert top["plain"] < 0.7
    with pytest.raises(DataError, match="3 preferences of 60 documents"):
        simulate(collection, people, sessions=4, results=5, preference=np.zeros(3))
