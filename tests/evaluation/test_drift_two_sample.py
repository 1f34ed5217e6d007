"""Two-sample tests against slow oracles and scipy; their p are uniform where nothing changed."""

from __future__ import annotations

import itertools
import math
import statistics
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from luthier.evaluation import two_sample
from luthier.evaluation.label_shift import estimate_shares, label_test
from luthier.evaluation.two_sample import (
    classifier,
    fall_of_mean,
    holm,
    kolmogorov_smirnov,
    median_distance,
    mmd,
)


def slow_mmd(x, y, sigma):
    """Equation 3 of Gretton et al. 2012, as it stands there."""

    def k(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    return xx + yy - 2 * xy


def test_mmd_and_each_of_its_permutations_equal_a_slow_oracle():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3)) + 0.7
    found = mmd(x, y, permutations=40, seed=3)
    assert found.statistic == pytest.approx(slow_mmd(x, y, found.bandwidth), abs=1e-13)
    rows = np.concatenate([x, y])
    chosen = two_sample._indicators(7, 5, 40, 3)[:, 1:]
    slow = [slow_mmd(rows[~c], rows[c], found.bandwidth) for c in chosen.T]
    np.testing.assert_allclose(found.null, slow, atol=1e-13)
    assert len({tuple(c) for c in chosen.T}) > 30  # they are permutations, not one and the same
    assert (chosen.sum(axis=0) == 5).all()
    extreme = sum(value >= found.statistic - 1e-12 for value in slow)
    assert found.p == (1 + extreme) / 41


def test_the_bandwidth_is_the_median_distance():
    rows = np.random.default_rng(1).normal(size=(25, 4))
    slow = statistics.median(math.dist(a, b) for a, b in itertools.combinations(rows.tolist(), 2))
    assert median_distance(rows) == pytest.approx(slow, abs=1e-12)
    assert median_distance(np.zeros((9, 2))) == 1.0
    mostly = np.zeros((9, 2))
    mostly[0] = 3.0
    assert median_distance(mostly) > 0  # the median is 0, which is no bandwidth


def test_a_block_at_a_time_is_the_same_as_all_at_once(monkeypatch):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(70, 3)), rng.normal(size=(45, 3))
    whole = mmd(x, y, permutations=99)
    monkeypatch.setattr(two_sample, "_BLOCK_BYTES", 8 * 115 * 10)
    told = []
    parts = mmd(x, y, permutations=99, progress=told.append)
    np.testing.assert_allclose(parts.null, whole.null, atol=1e-13)
    assert parts.p == whole.p
    assert len(told) == 12
    assert told[-1] == 1.0


def test_memory_does_not_hold_the_kernel_matrix():
    """6,000 rows: the matrix alone would take 288 MB."""
    rows = np.random.default_rng(3).normal(size=(6_000, 2))
    tracemalloc.start()
    mmd(rows[:3_000], rows[3_000:], permutations=19)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6


def test_equal_rows_are_no_difference():
    same = np.ones((8, 3))
    assert mmd(same, same).p == 1.0
    assert kolmogorov_smirnov(same, same).adjusted.min() == 1.0
    assert classifier(same, same).p == 1.0


@pytest.mark.parametrize(("n", "m"), [(20, 20), (31, 12), (7, 40)])
@pytest.mark.parametrize("method", ["exact", "asymp"])
@pytest.mark.parametrize("ties", [False, True])
def test_kolmogorov_smirnov_equals_scipy(n, m, method, ties):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(n, 6)), rng.normal(size=(m, 6)) + np.arange(6) / 3
    if ties:
        x, y = np.round(x, 1), np.round(y, 1)
    found = kolmogorov_smirnov(x, y, method=method)
    for i in range(6):
        theirs = stats.ks_2samp(x[:, i], y[:, i], method=method)
        assert found.distance[i] == pytest.approx(theirs.statistic, abs=1e-12)
        assert found.p[i] == pytest.approx(theirs.pvalue, rel=1e-9)


def test_the_exact_p_of_complete_separation():
    """Two of all orders of 60 and 60 values are as extreme; no digit is lost on the way."""
    x, y = np.arange(60.0)[:, None], np.arange(60.0)[:, None] + 100
    assert kolmogorov_smirnov(x, y).p[0] == pytest.approx(2 / math.comb(120, 60), rel=1e-10)


def test_holms_correction_equals_its_definition():
    p = np.random.default_rng(4).random(9) ** 3
    ranked = sorted(range(9), key=lambda i: p[i])
    slow = {
        i: min(1.0, max((9 - j) * p[ranked[j]] for j in range(at + 1)))
        for at, i in enumerate(ranked)
    }
    np.testing.assert_allclose(holm(p), [slow[i] for i in range(9)], rtol=1e-14)


@pytest.mark.parametrize(("rows", "width"), [(60, 4), (20, 50)])
def test_the_logistic_regression_is_at_its_optimum(rows, width):
    """The gradient of the penalised loss is zero in every direction, also those that are left
    out of the computation because no row has them."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(rows, width)) * 3 + 1
    target = (np.arange(rows) < rows // 3).astype(float)
    score = two_sample._logistic(x, target)
    centre, scale = two_sample.standard(x)
    bias = score(centre[None])[0]
    w = score(centre + np.eye(width) * scale) - bias
    chance = 1 / (1 + np.exp(-score(x)))
    weight = np.where(target == 1, 0.5 / target.mean(), 0.5 / (1 - target.mean()))
    gradient = ((x - centre) / scale).T @ (weight * (chance - target)) + width * w
    assert np.abs(gradient).max() < 1e-6


def uniform(p: list[float]) -> float:
    return float(stats.kstest(p, "uniform").pvalue)


def test_p_of_mmd_is_uniform_where_nothing_changed():
    """200 pairs of samples. A p of 99 permutations is a hundredth; spread over it, uniform."""
    rng = np.random.default_rng(6)
    found = []
    for seed in range(200):
        x, y = rng.standard_t(4, size=(25, 3)), rng.standard_t(4, size=(15, 3))
        found.append(mmd(x, y, permutations=99, seed=seed).p - rng.random() / 100)
    assert uniform(found) > 0.01


def test_p_of_the_classifier_is_uniform_where_nothing_changed():
    rng = np.random.default_rng(7)
    found = [
        classifier(rng.normal(size=(60, 5)), rng.normal(size=(40, 5)), seed=seed).p
        for seed in range(200)
    ]
    assert uniform(found) > 0.01


def test_p_of_labels_and_of_a_mean_are_uniform_where_nothing_changed():
    rng = np.random.default_rng(8)
    rare, mean, many = [], [], []
    for seed in range(200):
        x, y = rng.choice(list("abcdefgh"), 40), rng.choice(list("abcdefgh"), 30)
        rare.append(label_test(x, y, permutations=99, seed=seed).p)
        x, y = rng.choice(list("abc"), 300), rng.choice(list("abc"), 200)
        many.append(label_test(x, y).p)
        mean.append(fall_of_mean(rng.normal(size=30), rng.normal(size=20), permutations=99)[1])
    for p in (rare, mean, many):
        assert uniform([value - rng.random() / 100 for value in p]) > 0.01


def test_a_family_of_correlated_features_gives_few_false_alarms():
    """Of 200 comparisons of 20 features at 5%, at most 5% and three standard errors."""
    rng = np.random.default_rng(9)
    mix = rng.normal(size=(20, 20))
    alarms = sum(
        kolmogorov_smirnov(rng.normal(size=(50, 20)) @ mix, rng.normal(size=(50, 20)) @ mix)
        .adjusted.min() <= 0.05
        for _ in range(200)
    )  # fmt: skip
    assert alarms <= 0.05 * 200 + 3 * math.sqrt(200 * 0.05 * 0.95)


@pytest.mark.parametrize("change", ["mean", "spread", "dependence"])
def test_a_real_change_is_found(change):
    """A wider spread moves no mean; dependence of two features changes neither alone, so that
    a test a feature cannot see it and the kernel can."""
    rng = np.random.default_rng(10)
    x, y = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    if change == "mean":
        y[:, 0] += 0.5
    elif change == "spread":
        y[:, 0] *= 2.0
    else:
        y[:, 1] = 0.9 * y[:, 0] + math.sqrt(1 - 0.81) * y[:, 1]
    assert mmd(x, y, permutations=199).p <= 0.05
    by_feature = kolmogorov_smirnov(x, y)
    if change == "dependence":
        assert by_feature.adjusted.min() > 0.05
    else:
        assert by_feature.smallest == 0
        assert by_feature.adjusted[0] < 0.01
        assert (by_feature.adjusted[1:] > 0.05).all()
    if change == "mean":
        assert classifier(x, y).p < 0.01


# --- labels ---------------------------------------------------------------------------------


def test_the_chi_square_of_common_labels_equals_scipy():
    rng = np.random.default_rng(11)
    x, y = rng.choice(list("abc"), 100), rng.choice(list("abc"), 60, p=[0.6, 0.2, 0.2])
    found = label_test(x, y)
    theirs = stats.chi2_contingency(np.stack([found.reference, found.new]), correction=False)
    assert not found.exact
    assert found.statistic == pytest.approx(theirs.statistic, rel=1e-12)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-12)


def test_p_of_rare_labels_is_that_of_all_permutations():
    """All 462 splits of 11 labels, counted; random tables come within three standard errors."""
    old, new = list("aaabbc"), list("bcccc")
    pooled = old + new

    def chi_square(fresh):
        total = 0.0
        for label in "abc":
            both, here = pooled.count(label), fresh.count(label)
            for seen, size in ((here, 5), (both - here, 6)):
                expected = both * size / 11
                total += (seen - expected) ** 2 / expected
        return total

    splits = [[pooled[i] for i in picked] for picked in itertools.combinations(range(11), 5)]
    truth = np.mean([chi_square(s) >= chi_square(new) - 1e-9 for s in splits])
    found = label_test(old, new, permutations=4_000)
    assert found.exact
    assert found.statistic == pytest.approx(chi_square(new), rel=1e-12)
    assert found.p == pytest.approx(truth, abs=3 * math.sqrt(truth * (1 - truth) / 4_000) + 3e-4)


def test_labels_that_the_reference_lacks_are_counted():
    found = label_test(list("aabbaabb"), list("abccc"))
    assert found.unseen == 0.6
    assert label_test(["a"] * 9, ["a"] * 9).p == 1.0


def test_shares_are_estimated_from_predictions_alone():
    """A model that errs in a known way; the labels' shares change, the texts of a label do not.
    The naive estimate, counting predictions, is off by far more."""
    rng = np.random.default_rng(12)

    def side(n, shares):
        true = rng.choice(3, n, p=shares)
        wrong = rng.random(n) < np.array([0.1, 0.4, 0.2])[true]
        return true, np.where(wrong, (true + 1) % 3, true)

    true, said = side(4_000, [0.5, 0.3, 0.2])
    new_true, new_said = side(4_000, [0.1, 0.3, 0.6])
    found = estimate_shares(true, said, new_said)
    actual = np.bincount(new_true) / 4_000
    assert found.classes == ("0", "1", "2")
    assert np.abs(found.share - actual).max() < 0.03
    assert ((found.low <= actual) & (actual <= found.high)).all()
    assert np.abs(np.bincount(new_said) / 4_000 - actual).max() > 0.07


def test_the_fall_of_a_mean_by_permutations_and_by_formula_agree(monkeypatch):
    rng = np.random.default_rng(13)
    old, new = rng.random(200), rng.random(150) - 0.05
    fall, p = fall_of_mean(old, new, permutations=5_000)
    monkeypatch.setattr(two_sample, "_MEAN_ROWS", 10)
    same, formula = fall_of_mean(old, new)
    assert fall == same == pytest.approx(old.mean() - new.mean())
    assert p == pytest.approx(formula, abs=0.02)
    assert fall_of_mean(new, old, permutations=199)[1] > 0.5  # a rise is no fall
