"""Splits that do not leak, and what a ranking that nobody saw would have earned."""

import numpy as np
import pytest

from luthier.clicks.click_models import PositionBased
from luthier.clicks.off_policy import evaluate, evaluate_policy, reranked
from luthier.clicks.propensity import Propensities, harvest
from luthier.clicks.sessions import Sessions
from luthier.clicks.simulate import Collection, simulate
from luthier.clicks.splits import split_sessions
from luthier.errors import DataError

K = 5
TRUE = PositionBased.eta_decay(K)


@pytest.fixture(scope="module")
def log():
    topics = [f"word{i} " * 3 for i in range(30)]
    documents = [f"{topics[i % 30]} text {i} word{(i * 7) % 30}" for i in range(300)]
    pairs = [(f"word{i % 30} word{i % 7}", documents[i]) for i in range(60)]
    pairs += [(f"word{i} word{(i * 7) % 30}", documents[i % 300]) for i in range(30)]
    pairs += [(f"word{i % 30} text", d) for i, d in enumerate(documents)]
    collection = Collection.of_pairs(pairs)
    return simulate(collection, TRUE, sessions=6000, results=K, noise=2.0, seed=2)


def _slow_overlap(sessions, split):
    def parts(rows):
        queries, items, clicked, pairs, users = set(), set(), set(), set(), set()
        grades = sessions.grades()
        table = sessions.table.to_pylist()
        for i in rows:
            row = table[i]
            queries.add(row["query"])
            users |= {row["user"]} - {None}
            for j, item in enumerate(row["items"]):
                items.add(item)
                if grades[sessions.starts[i] + j] > 0:
                    clicked.add(item)
                    pairs.add((row["query"], item))
        return queries, items, clicked, pairs, users

    both = zip(parts(split.train_rows), parts(split.test_rows), strict=True)
    return [(len(train & test), len(test)) for train, test in both]


@pytest.mark.parametrize("by", ["query", "time"])
def test_what_overlaps_is_counted(log, by):
    few = log.sessions.take(np.arange(800))
    split = split_sessions(few, by=by, test_size_ratio=0.25, seed=1)
    assert sorted([*split.train_rows, *split.test_rows]) == list(range(800))
    assert abs(len(split.test) / 800 - 0.25) < 0.03
    found = split.overlap
    assert list(vars(found).values()) == _slow_overlap(few, split)
    if by == "query":
        assert found.queries[0] == found.pairs[0] == 0
    else:
        assert found.queries[0] > 0
        assert split.train.times.max() < split.test.times.min()
    assert found.to_dict()["users"]["share"] <= 1


def test_the_same_query_stays_on_its_side_when_the_log_grows(log):
    small = split_sessions(log.sessions.take(np.arange(3000)), seed=1)
    large = split_sessions(log.sessions, seed=1)
    held = set(large.test.query_texts)
    same = [query in held for query in small.test.query_texts]
    assert np.mean(same) > 0.85
    assert set(split_sessions(log.sessions, seed=2).test.query_texts) != held


def test_splits_that_cannot_be():
    rows = [{"session": f"{i}", "query": "q", "items": ["a"], "time": 5.0} for i in range(4)]
    same = Sessions.of(rows)
    for by, what in (("query", "different queries"), ("time", "different times")):
        with pytest.raises(DataError, match=what):
            split_sessions(same, by=by)
    with pytest.raises(DataError, match="1 sessions have no time"):
        split_sessions(Sessions.of([*rows, {**rows[0], "time": None}]), by="time")
    with pytest.raises(DataError, match="query or time"):
        split_sessions(same, by="user")
    with pytest.raises(DataError, match="test_size_ratio is 1"):
        split_sessions(same, test_size_ratio=1)


# --- off-policy ---------------------------------------------------------------------------------


def _known(values):
    values = np.array(values)
    return Propensities(values, np.ones(len(values), bool), np.ones(len(values)), "given")


def test_a_new_order_deals_the_positions_out_anew():
    rows = [
        {"session": "1", "query": "q", "items": ["a", "b", "c"], "positions": [11, 12, 14]},
        {"session": "2", "query": "q", "items": ["a", "b"]},
    ]
    found = reranked(Sessions.of(rows), np.array([0.1, 0.9, 0.9, 0.5, 0.4]))
    assert found.tolist() == [14, 11, 12, 1, 2]


def test_estimates_by_hand():
    rows = [
        {"session": "1", "query": "q", "items": ["a", "b"], "clicks": [1]},
        {"session": "2", "query": "q", "items": ["a", "b"], "clicks": [0]},
    ]
    sessions = Sessions.of(rows)
    clicked = sessions.grades() > 0
    new = np.array([2, 1, 2, 1])
    predicted = np.array([0.5, 0.8, 0.5, 0.8])
    found = evaluate(sessions, clicked, new, _known([1, 0.5]), predicted=predicted, clip=0.8)
    unclipped = evaluate(sessions, clicked, new, _known([1, 0.5]))
    assert found.logged.value == 1.0
    assert unclipped.ips.value == pytest.approx((1 / 0.5 + 0.5) / 2)
    assert unclipped.effective == pytest.approx(2.5**2 / (2**2 + 0.5**2))
    assert found.ips.value == pytest.approx((1 / 0.8 + 0.5) / 2)
    snips = (1 / 0.8 + 0.5) / 2 * 1.5 / (0.5 * 1 + 1 / 0.8 * 0.5)
    assert found.snips.value == pytest.approx(snips)
    by_session = [
        0.5 * 0.5 + 0.5 * (0 - 0.5) + 0.8 + 1 / 0.8 * (1 - 0.5 * 0.8),
        0.5 * 0.5 + 0.5 * (1 - 0.5) + 0.8 + 1 / 0.8 * (0 - 0.5 * 0.8),
    ]
    assert found.dr.value == pytest.approx(np.mean(by_session))


@pytest.fixture(scope="module")
def better(log):
    """A ranking that puts what is relevant first, and what it would truly earn."""
    new = reranked(log.sessions, log.attraction)
    truth = (np.array(TRUE.examination)[new - 1] * log.attraction).sum() / len(log.sessions)
    return new, float(truth)


def test_what_a_better_ranking_would_earn_is_estimated_from_the_log(log, better):
    new, truth = better
    p = _known(TRUE.examination)
    found = evaluate(log.sessions, log.clicked, new, p, draws=200)
    assert truth > found.logged.high  # this ranking earns less
    for estimate in (found.ips, found.snips):
        assert estimate.low < truth < estimate.high
        assert abs(estimate.value - truth) < 0.04 * truth
    right = log.attraction
    clipped = evaluate(log.sessions, log.clicked, new, p, predicted=right, clip=0.5, draws=200)
    assert clipped.ips.high < truth  # what a clip costs,
    assert clipped.dr.low < truth < clipped.dr.high  # and who pays for it
    assert clipped.dr.high - clipped.dr.low < found.ips.high - found.ips.low
    harvested = harvest(log.sessions, log.clicked)
    rough = evaluate(log.sessions, log.clicked, new, harvested, draws=20)
    assert abs(rough.ips.value - truth) < 0.1 * truth
    assert set(found.to_dict()) == {"logged", "ips", "snips", "dr", "effective"}


def test_the_ranking_of_the_log_earns_what_it_earned(log):
    same = log.sessions.positions
    found = evaluate(log.sessions, log.clicked, same, _known(TRUE.examination), draws=20)
    assert found.ips == found.logged
    assert found.effective == pytest.approx(log.clicked.sum())
    assert found.dr is None


def test_intervals_cover_as_often_as_they_say(log):
    """40 logs of 150 sessions, intervals of 80 %: all but some 8 hold the truth."""
    new = reranked(log.sessions, log.attraction)
    hits = 0
    gain = np.array(TRUE.examination)[new - 1] * log.attraction
    truth = float(gain.sum() / len(log.sessions))
    for i in range(40):
        part = slice(i * 150, (i + 1) * 150)
        rows, at = np.arange(6000)[part], slice(i * 150 * K, (i + 1) * 150 * K)
        few = log.sessions.take(rows)
        found = evaluate(few, log.clicked[at], new[at], _known(TRUE.examination), draws=100,
                         level=0.8, seed=i)  # fmt: skip
        hits += found.ips.low <= truth <= found.ips.high
    assert 24 <= hits <= 39


def test_estimates_that_cannot_be(log):
    with pytest.raises(DataError, match="3 scores of"):
        reranked(log.sessions, np.ones(3))
    none = log.sessions.take(np.zeros(0, np.int64))
    with pytest.raises(DataError, match="no session"):
        evaluate(none, np.zeros(0, bool), np.zeros(0, np.int64), _known([1.0]))


def _bandit(n, seed):
    """Contexts 0 and 1, three actions; the log draws with known chances, the new policy too."""
    rng = np.random.default_rng(seed)
    reward = np.array([[0.1, 0.5, 0.9], [0.6, 0.2, 0.3]])
    old = np.array([[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]])
    new = np.array([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]])
    context = rng.integers(2, size=n)
    action = (rng.random(n)[:, None] > np.cumsum(old[context], axis=1)).sum(axis=1)
    hit = (rng.random(n) < reward[context, action]).astype(float)
    rough = reward * 0.8
    return {
        "rewards": hit,
        "weights": new[context, action] / old[context, action],
        "predicted": rough[context, action],
        "predicted_new": (new[context] * rough[context]).sum(axis=1),
    }, float((new * reward).sum() / 2)


def test_a_policy_that_did_not_choose_is_estimated_from_one_that_did():
    """Means of many small logs: IPS and DR are unbiased, SNIPS nearly, DR varies least."""
    values = []
    for seed in range(300):
        words, truth = _bandit(100, seed)
        found = evaluate_policy(**words, draws=2)
        values.append((found.logged.value, found.ips.value, found.snips.value, found.dr.value))
    means, spread = np.mean(values, axis=0), np.std(values, axis=0) / 300**0.5
    assert truth - means[0] > 0.15
    assert (np.abs(means[1:] - truth) < 4 * spread[1:] + [0, 0.02, 0]).all()
    assert spread[3] < spread[1]
    assert spread[2] < spread[1]
    covered = [0, 0]
    for seed in range(40):
        words, truth = _bandit(1500, 1000 + seed)
        found = evaluate_policy(**words, draws=100, level=0.8)
        covered[0] += found.snips.low < truth < found.snips.high
        covered[1] += found.dr.low < truth < found.dr.high
    assert all(24 <= hits <= 39 for hits in covered)  # of 32 that are due
    w, r = words["weights"], words["rewards"]
    assert found.snips.value == pytest.approx((w * r).sum() / w.sum())
    assert found.effective == pytest.approx(w.sum() ** 2 / (w**2).sum())


@pytest.mark.parametrize(
    "words",
    [
        {"weights": np.ones(2)},
        {"weights": np.array([-1.0, 1, 1])},
        {"weights": np.ones(3), "predicted": np.ones(3)},
        {"weights": np.ones(3), "level": 1.0},
    ],
)
def test_policies_that_cannot_be_estimated(words):
    with pytest.raises(DataError):
        evaluate_policy(np.ones(3), **words)
