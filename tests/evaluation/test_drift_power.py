"""The smallest noticed shifts are true: simulated, they are noticed about four times in five.
Known ground: who lies where."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.evaluation import power
from luthier.evaluation.ground import known_ground
from luthier.evaluation.label_shift import label_test
from luthier.evaluation.two_sample import classifier, fall_of_mean, kolmogorov_smirnov, mmd

#: 0.8 less three standard errors of a hundred trials, and a little for the formula; above, a
#: shift that is noticed more often than said is the lesser fault.
LOW, HIGH = 0.66, 0.96
TRIALS = 100


def rows_of(kind, rng, n):
    """Normal rows, or rows in four clusters with features of unequal spread."""
    if kind == "normal":
        return rng.normal(size=(n, 5))
    centres = np.random.default_rng(99).normal(size=(4, 20)) * 2
    return centres[rng.integers(0, 4, n)] + rng.normal(size=(n, 20)) * np.linspace(0.2, 2, 20)


def moved(rng, x, y, shift):
    """All of y in the direction from one row of x to another, by deviations along it."""
    one, other = rng.choice(len(x), 2, replace=False)
    way = x[one] - x[other]
    way = way / np.linalg.norm(way)
    return y + shift * (x @ way).std() * way


@pytest.mark.parametrize(("kind", "n", "m"), [("normal", 80, 80), ("clusters", 100, 40)])
def test_the_kernel_test_notices_what_it_says(kind, n, m):
    rng = np.random.default_rng(0)
    x, y = rows_of(kind, rng, n), rows_of(kind, rng, m)
    still = mmd(x, y, permutations=999)
    said = power.of_mmd(x, still.bandwidth, still.null, 0.05, m)
    seen = 0
    for seed in range(TRIALS):
        x, y = rows_of(kind, rng, n), rows_of(kind, rng, m)
        seen += mmd(x, moved(rng, x, y, said.shift), permutations=99, seed=seed).p <= 0.05
    assert LOW <= seen / TRIALS <= HIGH


@pytest.mark.parametrize(("n", "m", "features"), [(30, 30, 1), (200, 60, 12)])
def test_kolmogorov_smirnov_notices_what_it_says(n, m, features):
    said = power.of_kolmogorov_smirnov(n, m, features, 0.05)
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(n, TRIALS)), rng.normal(size=(m, TRIALS)) + said.shift
    seen = (kolmogorov_smirnov(x, y).p * features <= 0.05).mean()
    assert LOW <= seen <= HIGH


@pytest.mark.parametrize(("kind", "n", "m"), [("normal", 120, 120), ("clusters", 200, 100)])
def test_the_classifier_notices_what_it_says(kind, n, m):
    rng = np.random.default_rng(2)
    x, y = rows_of(kind, rng, n), rows_of(kind, rng, m)
    said = power.of_classifier(x, m, classifier(x, y).held_out, 0.05)
    seen = 0
    for seed in range(TRIALS):
        x, y = rows_of(kind, rng, n), rows_of(kind, rng, m)
        seen += classifier(x, moved(rng, x, y, said.shift), seed=seed).p <= 0.05
    assert LOW <= seen / TRIALS <= 1.0


@pytest.mark.parametrize("counts", [[120, 60, 20], [200]])
def test_the_test_of_labels_notices_what_it_says(counts):
    counts = np.array(counts)
    said = power.of_labels(counts, 150, 0.05)
    shares = counts / counts.sum()
    if len(counts) == 1:
        shares = np.array([1.0, 0.0])
    after = shares.copy()
    after[0] -= said.shift
    after[1:] += said.shift * (shares[1:] / (shares[1:].sum() or 1) if shares[1:].any() else 1)
    rng = np.random.default_rng(3)
    names = np.array(list("abc"))[: len(shares)]
    seen = sum(
        label_test(rng.choice(names, 200, p=shares), rng.choice(names, 150, p=after)).p <= 0.05
        for _ in range(TRIALS)
    )
    assert LOW <= seen / TRIALS <= 1.0


def test_the_test_of_quality_notices_what_it_says():
    rng = np.random.default_rng(4)
    said = power.of_mean(rng.random(150), rng.random(80), 0.05)
    seen = sum(
        fall_of_mean(rng.random(150), rng.random(80) - said.shift, permutations=99)[1] <= 0.05
        for _ in range(TRIALS)
    )
    assert LOW <= seen / TRIALS <= HIGH


def test_more_rows_notice_less():
    wide, narrow = (
        [
            power.of_kolmogorov_smirnov(n, n, 3, 0.05).shift,
            power.of_labels(np.array([n // 2, n // 2]), n, 0.05).shift,
            power.of_classifier(rows_of("normal", np.random.default_rng(5), n), n,
                                (n // 2, n // 2), 0.05).shift,
        ]
        for n in (40, 4_000)
    )  # fmt: skip
    assert all(5 < few / many < 20 for few, many in zip(wide, narrow, strict=True))


def test_too_few_rows_notice_nothing_for_sure():
    """Of 5 and 5 values even the most extreme order has a p of 2 / 252, above 0.05 / 20."""
    said = power.of_kolmogorov_smirnov(5, 5, 20, 0.05)
    assert said.shift is None
    assert str(said) == "nothing for sure"
    assert power.of_classifier(np.eye(6), 6, (3, 3), 0.01).shift is None
    still = mmd(np.eye(6), np.eye(6) + 0.1, permutations=19)
    assert power.of_mmd(np.eye(6), still.bandwidth, still.null, 0.01, 6).shift is None


def test_who_lies_on_known_ground():
    rng = np.random.default_rng(6)
    known, more = rows_of("clusters", rng, 400), rows_of("clusters", rng, 300)
    far = more + 30
    assert known_ground(known, more).off < 0.05
    assert known_ground(known, far).off == 1.0
    half = np.concatenate([more[:150], far[:150]])
    assert known_ground(known, half).off == pytest.approx(0.5, abs=0.05)
    assert known_ground(known, known[:100]).off < 0.05


def test_a_part_of_the_known_ground_is_known_however_different():
    """One of four clusters: every test sees that change, and nothing of it is new."""
    centres = np.random.default_rng(99).normal(size=(4, 20)) * 2
    rng = np.random.default_rng(7)
    known = rows_of("clusters", rng, 400)
    part = centres[0] + rng.normal(size=(100, 20)) * np.linspace(0.2, 2, 20)
    assert mmd(known, part, permutations=99).p == 0.01
    assert known_ground(known, part).off < 0.1


def test_few_rows_are_called_off_no_more_often_than_by_chance():
    """300 pairs of 12 and 8 rows of one distribution: the mean share, before what is below 0 is
    cut off, would be 0; cut off it stays small."""
    rng = np.random.default_rng(8)
    off = [known_ground(rng.normal(size=(12, 3)), rng.normal(size=(8, 3))).off for _ in range(300)]
    assert np.mean(off) < 0.1
    assert np.mean(np.array(off) >= 0.5) < 0.1
