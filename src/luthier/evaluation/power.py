"""How small a change would a two-sample test have noticed? So that "no drift" from twenty rows is
not mistaken for certainty.

Each function answers with the smallest shift that its test notices with probability 0.8 at these
sizes and this threshold, by formula: nothing is trained or permuted again. Tests simulate the
shifts that come out and count how often they are noticed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.two_sample import Array, squared_distances

#: The probability that is asked for; 0.8 is the usual one (Cohen 1988).
WANTED = 0.8
#: Shifts are searched between these, in standard deviations.
_SHIFTS = (1e-4, 100.0)
#: Rows and directions from which the power of the kernel test is computed.
_ROWS, _DIRECTIONS = 150, 32
#: Brownian bridges, and the steps of each, from which that of Kolmogorov and Smirnov is.
_BRIDGES, _GRID = 500, 128


@dataclass(frozen=True)
class SmallestShift:
    """The smallest shift that would be noticed with probability 0.8.

    shift: how large, in ``unit``; None where these sizes let no shift be noticed so surely.
    statistic: where the test's statistic would then be expected.
    """

    shift: float | None
    unit: str
    statistic: float | None

    def __str__(self) -> str:
        if self.shift is None:
            return "nothing for sure"
        number = f"{self.shift:.1%}" if self.unit.startswith("of the rows") else f"{self.shift:.2g}"
        return f"{number} {self.unit}"


def of_mmd(
    reference: Array, sigma: float, null: Array, threshold: float, m: int, seed: int = 0
) -> SmallestShift:
    """The smallest move of all new rows in one direction, in standard deviations of the
    reference along that direction; the direction is that from one reference row to another, the
    probability the mean over 32 of them.

    The moved rows' MMD² and the variance of its estimate (its first-order term, Gretton et al.
    2012, section 6, beside that under permutations) are those of the empirical reference.
    """
    unit = "standard deviations along the direction of the move"
    n = len(reference)
    rng = np.random.default_rng(seed)
    rows = reference[rng.permutation(n)[:_ROWS]]
    pairs = np.array([rng.choice(len(rows), 2, replace=False) for _ in range(_DIRECTIONS)])
    way = rows[pairs[:, 0]] - rows[pairs[:, 1]]
    length = np.linalg.norm(way, axis=1)
    along = rows @ (way[length > 0] / length[length > 0, None]).T
    if along.shape[1] == 0 or 1 / (1 + len(null)) > threshold:
        return SmallestShift(None, unit, None)
    critical = float(np.quantile(null, 1 - threshold, method="higher"))
    squared, off = squared_distances(rows, rows), ~np.eye(len(rows), dtype=bool)
    still = np.exp(squared / (-2 * sigma**2)) * off
    count = len(rows) - 1

    def moved(shift: float) -> list[tuple[float, float]]:
        """For each direction MMD² of the move, and the variance of its estimate."""
        found = []
        for line in along.T:
            step = shift * float(line.std())
            distance = squared - 2 * step * (line[:, None] - line) + step**2
            gap = still - np.exp(distance / (-2 * sigma**2)) * off
            old, new = gap.sum(axis=1) / count, gap.sum(axis=0) / count
            spread = 4 * float(old.var() / n + new.var() / m) + float(null.var())
            found.append((float(old.mean() + new.mean()), spread))
        return found

    def power(shift: float) -> float:
        chances = [_normal_cdf((v - critical) / math.sqrt(s + 1e-300)) for v, s in moved(shift)]
        return sum(chances) / len(chances)

    shift = _smallest(power)
    expected = None if shift is None else float(np.mean([value for value, _ in moved(shift)]))
    return SmallestShift(shift, unit, expected)


def of_kolmogorov_smirnov(n: int, m: int, features: int, threshold: float) -> SmallestShift:
    """The smallest move of one feature, normally distributed, at threshold / features.

    The scaled distance is the largest |b(t) + sqrt(nm/(n+m)) (t - Φ(Φ⁻¹(t) - shift))| with b a
    Brownian bridge (Doob 1949): simulated, the same bridges for every shift.
    """
    from scipy.special import ndtr, ndtri
    from scipy.stats import kstwo

    unit = "standard deviations of one feature"
    size = n * m / (n + m)
    steps = math.lcm(n, m)  # the distance takes whole steps of 1 / steps
    critical = math.ceil(float(kstwo.isf(threshold / features, round(size))) * steps - 1e-9) / steps
    t = np.arange(1, _GRID) / _GRID
    walk = np.random.default_rng(0).normal(scale=_GRID**-0.5, size=(_BRIDGES, _GRID)).cumsum(axis=1)
    bridge = walk[:, :-1] - t * walk[:, -1:]

    def gap(shift: float) -> Array:
        found: Array = t - ndtr(ndtri(t) - shift)
        return found

    def power(shift: float) -> float:
        largest = np.abs(bridge + math.sqrt(size) * gap(shift)).max(axis=1)
        return float((largest >= math.sqrt(size) * critical).mean())

    # of all orders of the values two are the most extreme: their share is the smallest p
    orders = math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1)
    shift = _smallest(power) if math.log(2 * features / threshold) <= orders else None
    return SmallestShift(shift, unit, None if shift is None else float(gap(shift).max()))


def of_classifier(
    reference: Array, m: int, held_out: tuple[int, int], threshold: float
) -> SmallestShift:
    """The smallest move in one direction, which half of the rows must first find.

    Of d features the direction of a move by s is found only in part: the held-out sides then
    differ by s² / sqrt(s² + d (1/n + 1/m)) standard deviations (n and m the rows learnt from;
    Raudys 1972), d being the effective number, tr(Σ)² / tr(Σ²).
    """
    unit = "standard deviations along the direction of the move"
    old, new = held_out
    error = math.sqrt((old + new + 1) / (12 * old * new))
    needed = 0.5 + (_normal_quantile(1 - threshold) + _normal_quantile(WANTED)) * error
    if needed >= 1:
        return SmallestShift(None, unit, None)
    inside = reference - reference.mean(axis=0)
    wide = inside.shape[1] > inside.shape[0]
    spread = np.linalg.eigvalsh(inside @ inside.T if wide else inside.T @ inside)
    total, square = float(spread.sum()), float((spread**2).sum())
    features = total**2 / square if square > 0 else 1.0
    blur = features * (1 / max(1, len(reference) - old) + 1 / max(1, m - new))

    def surplus(shift: float) -> float:
        apart = shift**2 / math.sqrt(shift**2 + blur)
        return _normal_cdf(apart / math.sqrt(2)) - needed + WANTED

    return SmallestShift(_smallest(surplus), unit, needed)


def of_labels(counts: NDArray[np.int64], m: int, threshold: float) -> SmallestShift:
    """The smallest share of the rows that must go from the commonest label to the others, by
    the noncentral chi-square distribution (Cohen 1988, chapter 7)."""
    from scipy.stats import chi2, ncx2

    unit = "of the rows changing their label"
    n = int(counts.sum())
    before = counts[counts > 0] / n
    if len(before) == 1:  # the rows can only go to a label that is not there yet
        before, way = np.array([1.0, 0.0]), np.array([-1.0, 1.0])
    else:
        others = np.delete(before, before.argmax())
        way = np.insert(others / others.sum(), before.argmax(), -1.0)
    width = len(before)
    critical = float(chi2.isf(threshold, width - 1))

    def noncentrality(share: float) -> float:
        after = before + share * way
        mean = (n * before + m * after) / (n + m)
        some = mean > 0
        gap = (after[some] - before[some]) ** 2 / mean[some]
        return float(gap.sum()) * n * m / (n + m)

    def power(share: float) -> float:
        return float(ncx2.sf(critical, width - 1, noncentrality(share)))

    shift = _smallest(power, (1e-6, float(before.max())))
    statistic = None if shift is None else noncentrality(shift) + width - 1
    return SmallestShift(shift, unit, statistic)


def of_mean(old: Array, new: Array, threshold: float) -> SmallestShift:
    """The smallest fall of a mean, in the values' own unit, for a one-sided test."""
    spread = math.sqrt(float(old.var()) / len(old) + float(new.var()) / len(new))
    shift = (_normal_quantile(1 - threshold) + _normal_quantile(WANTED)) * spread
    return SmallestShift(shift or None, "of quality", -shift if shift else None)


def _smallest(
    power: Callable[[float], float], between: tuple[float, float] = _SHIFTS
) -> float | None:
    """Where a growing function reaches WANTED, by bisection of the exponent; to three digits."""
    low, high = between
    if not power(high) >= WANTED:
        return None
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if power(middle) >= WANTED else (middle, high)
    return high


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def _normal_quantile(p: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(p)
