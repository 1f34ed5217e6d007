"""Intervals that hold what they promise, and verdicts that follow from them."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from luthier.errors import DataError
from luthier.evaluation.measure import SHOWN, Evaluation, correlation, middle_ranks
from luthier.evaluation.significance import Comparison, compare, intervals, sign_test


def retrieval(values, set_id="set") -> Evaluation:
    """An evaluation of which only the main metric matters."""
    values = np.asarray(values, dtype=np.float64)
    per_query = dict.fromkeys(SHOWN["retrieval"], values)
    means = {name: float(values.mean()) for name in per_query}
    return Evaluation("retrieval", set_id, 10, "cosine", means, per_query)


def scored(similarity, target) -> Evaluation:
    metrics = {
        "spearman": correlation(middle_ranks(similarity), middle_ranks(target)),
        "pearson": correlation(similarity, target),
    }
    return Evaluation(
        "scored", "set", 0, "cosine", metrics, {"similarity": similarity, "target": target}
    )


def ndcg_like(rng, n, quality):
    """Values as nDCG takes them: many zeros, many ones, and the steps between."""
    ranks = rng.geometric(quality, n)
    return np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0.0)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """400 simulated comparisons whose true difference is known: 95% of 400 give or take three
    standard errors of that share (.011)."""
    rng = np.random.default_rng(0)
    ranks = np.arange(1, 11)
    mean = {p: float((p * (1 - p) ** (ranks - 1) / np.log2(ranks + 1)).sum()) for p in (0.3, 0.4)}
    truth = mean[0.4] - mean[0.3]
    held = 0
    for trial in range(400):
        before, after = (retrieval(ndcg_like(rng, 150, p)) for p in (0.3, 0.4))
        found = compare(before, after, seed=trial, resamples=1_000).difference["ndcg_at_k"]
        held += found.low <= truth <= found.high
    assert 0.95 - 0.033 <= held / 400 <= 0.95 + 0.033


def test_no_difference_is_seldom_called_one():
    """Two equally good models: at most 5% verdicts, plus three standard errors."""
    rng = np.random.default_rng(1)
    called = 0
    for trial in range(300):
        pair = [retrieval(ndcg_like(rng, 100, 0.3)) for _ in range(2)]
        called += compare(*pair, seed=trial, resamples=1_000).verdict != "no clear difference"
    assert called / 300 <= 0.05 + 0.038


def test_few_queries_would_promise_too_much():
    """Why fewer than 20 give no verdict: at 5 queries the interval misses far too often."""
    rng = np.random.default_rng(2)
    held = 0
    for trial in range(300):
        values = rng.normal(0.0, 1.0, 5)
        zero = retrieval(np.zeros(5))
        found = compare(zero, retrieval(values), seed=trial, resamples=500)
        assert found.verdict == "no clear difference"
        held += found.difference["ndcg_at_k"].low <= 0 <= found.difference["ndcg_at_k"].high
    assert held / 300 < 0.90


def test_spearmans_interval_holds_the_truth():
    """Normal pairs with r = .7, whose true Spearman is 6/pi asin(r/2)."""
    rng = np.random.default_rng(3)
    truth = 6 / math.pi * math.asin(0.35)
    held = 0
    for trial in range(200):
        x = rng.normal(size=150)
        y = 0.7 * x + math.sqrt(1 - 0.49) * rng.normal(size=150)
        found = intervals(scored(y, x), seed=trial, resamples=500)["spearman"]
        held += found.low <= truth <= found.high
    assert held / 200 >= 0.95 - 0.05


def test_resampled_correlations_equal_those_of_the_drawn_rows():
    """The quick way, by counts, against drawing the rows and ranking them again."""
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 6, 40).astype(float), rng.normal(size=40)
    evaluation = scored(x, y)
    from luthier.evaluation.significance import _statistics, resamples_of

    counts = next(resamples_of(40, 50, seed=9))
    quick = _statistics(evaluation)(counts)
    for row, found in zip(counts.astype(int), quick, strict=True):
        drawn = np.repeat(np.arange(40), row)
        slow = correlation(middle_ranks(x[drawn]), middle_ranks(y[drawn]))
        assert found[0] == pytest.approx(slow, abs=1e-12)
        assert found[1] == pytest.approx(correlation(x[drawn], y[drawn]), abs=1e-12)


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.1, "better"), (-0.1, "worse"), (0.0, "no clear difference")]
)
def test_verdicts(shift, verdict):
    rng = np.random.default_rng(5)
    before = rng.uniform(0.2, 0.8, 200)
    found = compare(retrieval(before), retrieval(before + shift + 0.05 * rng.normal(size=200)))
    assert found.verdict == verdict
    assert "200 queries" in found.reason


def test_pairing_sees_what_two_separate_intervals_do_not():
    """A small gain on every query is certain, though the queries differ far more."""
    before = np.random.default_rng(6).uniform(0, 0.9, 100)
    found = compare(retrieval(before), retrieval(before + 0.01))
    assert found.before["ndcg_at_k"].high > found.after["ndcg_at_k"].low
    assert found.verdict == "better"


def test_equal_models_do_not_differ():
    values = np.random.default_rng(7).uniform(0, 1, 50)
    found = compare(retrieval(values), retrieval(values))
    assert found.verdict == "no clear difference"
    assert (found.counts.wins, found.counts.losses, found.counts.ties) == (0, 0, 50)
    assert found.counts.p == 1.0


def test_less_error_is_better():
    """For margins the verdict follows Spearman; mse is reported with its sign."""
    rng = np.random.default_rng(8)
    target = rng.normal(size=100)

    def margin(noise):
        similarity = target + noise * rng.normal(size=100)
        metrics = scored(similarity, target).metrics
        metrics["mse"] = float(((similarity - target) ** 2).mean())
        values = {"similarity": similarity, "target": target}
        return Evaluation("margin", "set", 0, "cosine", metrics, values)

    found = compare(margin(2.0), margin(0.3))
    assert found.verdict == "better"
    assert found.difference["mse"].high < 0


def test_sign_test_equals_scipys():
    from scipy.stats import binomtest

    for wins, losses in ((0, 0), (1, 0), (5, 5), (9, 1), (30, 50), (700, 650)):
        expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_the_same_seed_gives_the_same_interval():
    rng = np.random.default_rng(9)
    pair = [retrieval(rng.uniform(size=60)) for _ in range(2)]
    first, again, other = (compare(*pair, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.difference != other.difference
    assert Comparison.from_dict(json.loads(json.dumps(first.to_dict()))) == first


def test_different_sets_are_not_compared():
    values = np.zeros(30)
    with pytest.raises(DataError, match="same set"):
        compare(retrieval(values), retrieval(values, set_id="another"))
