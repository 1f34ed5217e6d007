"""Two samples of vectors: are they from one distribution? Three tests of it.

``mmd``: maximum mean discrepancy with an RBF kernel (Gretton et al., A Kernel Two-Sample Test,
JMLR 2012). ``kolmogorov_smirnov``: one test a feature, corrected by Holm's method for their
number. ``classifier``: can a classifier tell the samples apart on rows that it has not seen
(Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, ICLR 2017)?

All take a reference [n, d] and new rows [m, d] and say how surprising their difference would be
if there were none (p). Randomness comes from a seed: the same call gives the same answer.
Nothing here loads scipy before it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Bytes that a block of the kernel matrix, or of permutations beside it, may take.
_BLOCK_BYTES = 32 * 2**20
#: Rows of which the median distance is taken; it hardly changes with more.
_MEDIAN_ROWS = 1_000
#: scipy's own limit for exact p is 10,000 rows; beyond this the asymptotic one agrees to 1e-3.
_EXACT_ROWS = 200
#: Up to so many rows a mean is tested by permutations: a matrix of rows x permutations.
_MEAN_ROWS = 10_000


# --- maximum mean discrepancy ---------------------------------------------------------------


@dataclass(frozen=True)
class Mmd:
    """statistic: the unbiased estimate of MMD², which may be slightly negative. null: its values
    under permutations. bandwidth: sigma of the kernel exp(-|x - y|² / (2 sigma²))."""

    statistic: float
    p: float
    null: Array
    bandwidth: float


def mmd(
    reference: Array, new: Array, *, permutations: int = 1_000, seed: int = 0,
    bandwidth: float | None = None, progress: Callable[[float], None] | None = None,
) -> Mmd:  # fmt: skip
    """The kernel two-sample test.

    MMD²_u = Σ_{i≠j} k(x_i, x_j) / (n(n-1)) + Σ_{i≠j} k(y_i, y_j) / (m(m-1))
             - 2 Σ_{i,j} k(x_i, y_j) / (nm)

    the unbiased estimate (Gretton et al. 2012, equation 3). bandwidth: by default the median
    distance between rows of the pooled sample (the median heuristic; up to 1,000 rows of it,
    drawn without regard to side, so that permutations stay exact).

    p = (1 + number of permutations whose statistic is as large) / (1 + permutations) (Phipson
    and Smyth 2010): never 0, and at most alpha as often as alpha says. All permutations are one
    product of the kernel matrix, of which a block of rows exists at a time, with a matrix of
    indicators. Costs (n + m)² (d + permutations) multiplications. progress: told the share done.
    """
    rows = np.concatenate([reference, new])
    rows = rows - rows.mean(axis=0)  # distances stay; what they are computed from gets small
    sigma = median_distance(rows, seed) if bandwidth is None else bandwidth
    chosen = _indicators(len(reference), len(new), permutations, seed)
    statistics = _statistics(rows, chosen, sigma, progress)
    observed, null = float(statistics[0]), statistics[1:]
    # permutations that only swap equal rows give the same sum up to the rounding of its order
    same = 1e-12 + 1e-9 * abs(observed)
    p = (1 + int((null >= observed - same).sum())) / (1 + permutations)
    return Mmd(observed, p, null, sigma)


def median_distance(rows: Array, seed: int = 0) -> float:
    """The median Euclidean distance of two rows. Where that is 0 (more than half of the pairs
    are equal) the mean distance; 1 where all rows are equal."""
    if len(rows) > _MEDIAN_ROWS:
        picked = np.random.default_rng(seed).choice(len(rows), _MEDIAN_ROWS, replace=False)
        rows = rows[picked]
    squared = squared_distances(rows, rows)[np.triu_indices(len(rows), 1)]
    distances = np.sqrt(squared)
    return float(np.median(distances)) or float(distances.mean()) or 1.0


def squared_distances(left: Array, right: Array) -> Array:
    """|x - y|² of each row of one with each of the other, [n, m]; never below 0."""
    squares = np.einsum("ij,ij->i", left, left)[:, None] + np.einsum("ij,ij->i", right, right)
    squares -= 2.0 * (left @ right.T)
    # what is left of two equal rows is rounding, 1e-16 of the lengths that were subtracted
    found: Array = np.maximum(squares, 0.0, out=squares)
    return found


def _indicators(n: int, m: int, permutations: int, seed: int) -> NDArray[np.bool_]:
    """[n + m, 1 + permutations]: which rows are the new ones; in the first column, truly."""
    chosen = np.zeros((1 + permutations, n + m), dtype=bool)
    chosen[:, n:] = True
    np.random.default_rng(seed).permuted(chosen[1:], axis=1, out=chosen[1:])
    return np.ascontiguousarray(chosen.T)


def _statistics(
    rows: Array, chosen: NDArray[np.bool_], sigma: float, progress: Callable[[float], None] | None
) -> Array:
    """MMD²_u for each column of ``chosen``.

    With s a column, D the kernel matrix with a zero diagonal: the sums within the new rows,
    across, and within the reference are s'Ds, s'D1 - s'Ds and 1'D1 - 2 s'D1 + s'Ds.
    """
    size, columns = chosen.shape
    m = int(chosen[:, 0].sum())
    n = size - m
    within, degree, total = np.zeros(columns), np.zeros(columns), 0.0
    for start, block in _kernel_blocks(rows, sigma):
        part = slice(start, start + len(block))
        sums = block.sum(axis=1)
        total += float(sums.sum())
        step = max(1, _BLOCK_BYTES // (8 * size))
        for left in range(0, columns, step):
            some = chosen[:, left : left + step].astype(np.float64)
            mine = some[part]
            within[left : left + step] += np.einsum("ij,ij->j", mine, block @ some)
            degree[left : left + step] += sums @ mine
        if progress is not None:
            progress((start + len(block)) / size)
    across = degree - within
    rest = total - 2 * degree + within
    found: Array = rest / (n * (n - 1)) + within / (m * (m - 1)) - 2 * across / (n * m)
    return found


def _kernel_blocks(rows: Array, sigma: float) -> Iterator[tuple[int, Array]]:
    """The kernel matrix with a zero diagonal, some rows at a time, each with its first row."""
    step = max(1, _BLOCK_BYTES // (8 * len(rows)))
    for start in range(0, len(rows), step):
        block = squared_distances(rows[start : start + step], rows)
        np.exp(block / (-2.0 * sigma * sigma), out=block)
        here = np.arange(len(block))
        block[here, start + here] = 0.0
        yield start, block


# --- Kolmogorov-Smirnov ---------------------------------------------------------------------


@dataclass(frozen=True)
class KolmogorovSmirnov:
    """distance and p of each feature, [d]; ``adjusted`` are the p after Holm's correction. The
    smallest of them is the p of the whole: that no feature changed."""

    distance: Array
    p: Array
    adjusted: Array

    @property
    def smallest(self) -> int:
        """The feature of the smallest p; among equals, that of the largest distance."""
        return int(np.lexsort((-self.distance, self.p))[0])


def kolmogorov_smirnov(reference: Array, new: Array, *, method: str = "auto") -> KolmogorovSmirnov:
    """A two-sided two-sample Kolmogorov-Smirnov test of each feature.

    method: ``exact`` (counts of lattice paths, Hodges 1958), ``asymp`` (the finite-sample
    distribution of one sample of nm/(n+m) rows, as scipy.stats.ks_2samp has it), or ``auto``:
    exact up to 200 rows a side. Both equal scipy's. Ties make the exact p conservative.
    Holm (1979) holds the chance of any false alarm below alpha however the features depend.
    """
    from scipy.stats import kstwo

    n, m = len(reference), len(new)
    distance = _distances(reference, new)
    if method == "exact" or (method == "auto" and max(n, m) <= _EXACT_ROWS):
        levels, where = np.unique(distance, return_inverse=True)
        p = _exact_p(levels, n, m)[where]
    else:
        p = np.clip(kstwo.sf(distance, np.round(n * m / (n + m))), 0.0, 1.0)
    return KolmogorovSmirnov(distance, p, holm(p))


def _distances(reference: Array, new: Array) -> Array:
    """The largest difference of the two empirical distribution functions, a feature."""
    n, m = len(reference), len(new)
    pooled = np.concatenate([reference, new])
    order = np.argsort(pooled, axis=0, kind="stable")
    ordered = np.take_along_axis(pooled, order, axis=0)
    # counted in units of 1 / nm, in which both functions step by whole numbers
    steps = np.where(order < n, m, -n).cumsum(axis=0)
    last_of_ties = np.ones(ordered.shape, dtype=bool)
    last_of_ties[:-1] = ordered[1:] != ordered[:-1]
    highest = np.where(last_of_ties, np.abs(steps), 0).max(axis=0)
    found: Array = highest / (n * m)
    return found


def _exact_p(levels: Array, n: int, m: int) -> Array:
    """P(distance >= level) under no difference and no ties.

    Of all orders of n + m values, each a path from (0, 0) to (n, m), those that leave the band
    |i/n - j/m| < level. The chance to have left is carried from one diagonal i + j = s to the
    next: a random path to (i, j) came from (i-1, j) with probability i / s.
    """
    limit = np.round(levels * (n * m))[:, None]
    i = np.arange(n + 1)
    left = np.where(limit <= 0, 1.0, 0.0) * np.ones(n + 1)
    for s in range(1, n + m + 1):
        share = i / s
        before = np.concatenate([np.zeros((len(left), 1)), left[:, :-1]], axis=1)
        left = np.clip(share, 0, 1) * before + np.clip(1 - share, 0, 1) * left
        j = s - i
        inside = (j >= 0) & (j <= m)
        left[(np.abs(i * m - j * n) >= limit) & inside] = 1.0
    found: Array = left[:, n]
    return found


def holm(p: Array) -> Array:
    """Adjusted p of Holm's step-down method: below alpha for what is rejected at alpha."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    found = np.empty_like(p)
    found[order] = np.minimum(stepped, 1.0)
    return found


# --- classifier -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Classifier:
    """auc: the chance that a held-out new row scores above a held-out reference row. accuracy:
    balanced over the two sides. held_out: how many rows of each side it was measured on."""

    auc: float
    accuracy: float
    p: float
    held_out: tuple[int, int]


def classifier(reference: Array, new: Array, *, seed: int = 0) -> Classifier:
    """The classifier two-sample test: logistic regression on half of the rows, judged on the
    other half.

    The held-out scores are compared by the Mann-Whitney test, one-sided: its statistic is the
    AUC, which unlike the accuracy of the paper needs no sides of equal size. The p is valid
    whatever the classifier learnt, since it has not seen these rows.
    """
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(seed)
    parts = [_halves(rng.permutation(side)) for side in (reference, new)]
    train = np.concatenate([parts[0][0], parts[1][0]])
    target = np.repeat([0.0, 1.0], [len(parts[0][0]), len(parts[1][0])])
    score = _logistic(train, target)
    old, fresh = score(parts[0][1]), score(parts[1][1])
    found = mannwhitneyu(fresh, old, alternative="greater", method="auto")
    auc = float(found.statistic) / (len(old) * len(fresh))
    p = 1.0 if np.ptp(np.r_[old, fresh]) == 0 else float(found.pvalue)
    accuracy = (float((old < 0).mean()) + float((fresh > 0).mean())) / 2
    return Classifier(auc, accuracy, p, (len(old), len(fresh)))


def _halves(rows: Array) -> tuple[Array, Array]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _logistic(rows: Array, target: Array) -> Callable[[Array], Array]:
    """Balanced logistic regression by Newton's method; what scores rows, above 0 for class 1.

    The penalty is d |w|² / 2 on standardised features: before any data the score has variance 1,
    whatever the width d. Both classes weigh the same, however many rows they have.
    """
    centre, scale = standard(rows)
    inside = (rows - centre) / scale
    penalty = float(rows.shape[1])
    basis: Any = None
    if inside.shape[1] > len(inside):  # the solution lies in the span of the rows
        basis = np.linalg.svd(inside, full_matrices=False)[2].T
        inside = inside @ basis
    inside = np.concatenate([inside, np.ones((len(inside), 1))], axis=1)
    ridge = np.r_[np.full(inside.shape[1] - 1, penalty), 1e-6]
    weight = np.where(target == 1, 0.5 / target.mean(), 0.5 / (1 - target.mean()))
    w = np.zeros(inside.shape[1])
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(inside @ w, -30, 30)))
        slope = inside.T @ (weight * (chance - target)) + ridge * w
        bend = (inside * (weight * chance * (1 - chance))[:, None]).T @ inside + np.diag(ridge)
        step = np.linalg.solve(bend, slope)
        w -= step / max(1.0, math.sqrt(float(step @ step)) / 10)
        if float(np.abs(step).max()) < 1e-8:
            break

    def score(rows: Array) -> Array:
        known = (rows - centre) / scale
        known = known if basis is None else known @ basis
        found: Array = known @ w[:-1] + w[-1]
        return found

    return score


def standard(rows: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each feature; 1 for a feature that does not vary."""
    centre, scale = rows.mean(axis=0), rows.std(axis=0)
    return centre, np.where(scale > 1e-12 * np.maximum(1.0, np.abs(centre)), scale, 1.0)


def fall_of_mean(
    old: Array, new: Array, *, permutations: int = 1_000, seed: int = 0
) -> tuple[float, float]:
    """By how much the mean of [m] lies below that of [n], and the one-sided p: of a permutation
    test, or beyond 10,000 rows of the normal distribution that it then has."""
    n, m = len(old), len(new)
    pooled = np.concatenate([old, new])
    fall = float(old.mean() - new.mean())
    if n + m > _MEAN_ROWS:
        error = math.sqrt(float(pooled.var(ddof=1)) * (1 / n + 1 / m))
        return fall, 0.5 * math.erfc(fall / error / math.sqrt(2)) if error else 1.0
    sums = pooled @ _indicators(n, m, permutations, seed)[:, 1:]
    falls = (pooled.sum() - sums) / n - sums / m
    same = 1e-12 + 1e-9 * abs(fall)
    return fall, (1 + int((falls >= fall - same).sum())) / (1 + permutations)
