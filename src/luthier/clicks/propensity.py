"""How much of a click is the position's: propensities, estimated from the log itself.

The position-based model: P(click | query, item, k) = p_k r(query, item). Only the ratios p_k / p_1
can be known from clicks, so p_1 is 1. Both estimators need the same query and item shown at
different positions, as noise, changes of the ranking or experiments bring about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError

#: Iterations of EM, and how small a change of all propensities ends it.
_MOST_STEPS, _STILL = 500, 1e-5


@dataclass(frozen=True)
class Propensities:
    """values: float64 [K], of positions 1 … K, the first being 1. known: bool [K], positions of
    which the log says something; others have the value of the nearest known one above them.
    support: float64 [K], how many query-item pairs or impressions speak of each."""

    values: Floats
    known: Bools
    support: Floats
    method: str

    def at(self, positions: Ints) -> Floats:
        """The propensity of each position; beyond the last that of the last."""
        found: Floats = self.values[np.minimum(positions, len(self.values)) - 1]
        return found


@dataclass(frozen=True)
class Cells:
    """A log counted by query, item and position: shown and clicks, float64 [c] each.

    pair: int64 [c], the number of the query-item pair. position: int64 [c], from 0.
    """

    pair: Ints
    position: Ints
    shown: Floats
    clicks: Floats
    pairs: int
    positions: int


def count_cells(sessions: Sessions, clicked: Bools, positions: int | None = None) -> Cells:
    """Count a log. positions: how many from the top; all where it is not said."""
    most = int(sessions.positions.max(initial=0))
    k = most if positions is None else min(positions, most)
    if k < 1:
        raise DataError("a log without impressions has no propensities")
    use = sessions.positions <= k
    codes = sessions.query_codes[sessions.owner] * max(1, len(sessions.item_names))
    names, pair = np.unique((codes + sessions.item_codes)[use], return_inverse=True)
    cells, cell = np.unique(pair * k + sessions.positions[use] - 1, return_inverse=True)
    shown = np.bincount(cell, minlength=len(cells)).astype(np.float64)
    clicks = np.bincount(cell, clicked[use].astype(np.float64), len(cells)).astype(np.float64)
    return Cells(cells // k, cells % k, shown, clicks, len(names), k)


def harvest(sessions: Sessions, clicked: Bools, positions: int | None = None) -> Propensities:
    """Propensities by intervention harvesting: pairs that were shown at both k and k' say what
    the difference does, whatever their relevance.

    Over those pairs S(k, k'), with c(q, d, k) the share of clicks at k, the estimator AllPairs
    maximizes the likelihood of all sums  C(k; k') = sum over S(k, k') of c(q, d, k)  under
    p_k r(k, k'), for p and the symmetric r at once.

    Agarwal, Zaitsev, Wang, Li, Najork, Joachims, *Estimating position bias without intrusive
    interventions*, WSDM 2019, § 4 and § 5. Raises DataError where nothing was ever moved to or
    from another position.
    """
    hits, misses = _interventions(count_cells(sessions, clicked, positions))
    total = hits + misses
    known = _joined_with_first(total > 0)
    if known.sum() < 2 and len(known) > 1:
        hint = "no query-item pair was shown at the first and another position"
        raise DataError("the log holds no interventions", hint=hint)
    values = np.ones(len(known))
    values[known] = _all_pairs(hits[np.ix_(known, known)], misses[np.ix_(known, known)])
    return Propensities(_carried(values, known), known, total.sum(axis=1), "harvest")


def _interventions(cells: Cells) -> tuple[Floats, Floats]:
    """C(k; k') and its complement, [K, K], zero on the diagonal."""
    from scipy.sparse import csr_matrix

    shape = (cells.pairs, cells.positions)
    share = cells.clicks / cells.shown

    def matrix(values: Floats) -> Any:
        return csr_matrix((values, (cells.pair, cells.position)), shape=shape)

    there = matrix(np.ones(len(share)))
    hits = np.asarray((matrix(share).T @ there).todense(), np.float64)
    misses = np.asarray((matrix(1 - share).T @ there).todense(), np.float64)
    np.fill_diagonal(hits, 0.0)
    np.fill_diagonal(misses, 0.0)
    return hits, np.maximum(misses, 0.0)


def _joined_with_first(linked: Bools) -> Bools:
    """Positions that chains of interventions lead to from the first."""
    reached = np.zeros(len(linked), bool)
    reached[0] = True
    for _ in range(len(linked)):
        reached |= (linked & reached[None, :]).any(axis=1)
    return reached


def _all_pairs(hits: Floats, misses: Floats) -> Floats:
    from scipy.optimize import minimize

    k = len(hits)
    upper = np.triu_indices(k, 1)
    scale = max(1.0, float((hits + misses).sum()))

    def loss(logits: Floats) -> tuple[float, Floats]:
        p = _sigmoid(logits[:k])
        r = np.full((k, k), 0.5)
        r[upper] = _sigmoid(logits[k:])
        r = np.triu(r, 1) + np.triu(r, 1).T + np.eye(k) * 0.5
        chance = np.clip(p[:, None] * r, 1e-12, 1 - 1e-12)
        value = -(hits * np.log(chance) + misses * np.log1p(-chance)).sum()
        slope = -(hits / chance - misses / (1 - chance))
        of_p = (slope * r).sum(axis=1) * p * (1 - p)
        of_r = slope * p[:, None]
        both = (of_r + of_r.T)[upper] * r[upper] * (1 - r[upper])
        return value / scale, np.concatenate([of_p, both]) / scale

    start = np.zeros(k + len(upper[0]))
    found = minimize(loss, start, jac=True, method="L-BFGS-B",
                     options={"maxiter": 5000, "ftol": 1e-13, "gtol": 1e-9})  # fmt: skip
    p = _sigmoid(np.asarray(found.x[:k], np.float64))
    relative: Floats = p / p[0]
    return relative


def expectation_maximization(
    sessions: Sessions, clicked: Bools, positions: int | None = None, *,
    features: Floats | None = None, ridge: float = 1.0,
) -> Propensities:  # fmt: skip
    """Propensities of the position-based model by EM.

    Without features every query-item pair has a relevance of its own, which takes logs in which
    pairs are shown often. features: float [m, f], of each impression: relevance is a logistic
    regression on them, refitted in every M-step, and pairs that were shown once help as well.

    Wang, Golbandi, Bendersky, Metzler, Najork, *Position bias estimation for unbiased learning to
    rank in personal search*, WSDM 2018: § 4.2 (EM), § 4.3 (regression-based EM; here with
    expected instead of sampled labels, and a logistic regression for their trees).
    """
    if not clicked[sessions.positions == 1].any():
        raise DataError("nothing was clicked at the first position", hint="no scale without it")
    if features is not None:
        return _regression_em(sessions, clicked, positions, features, ridge)
    cells = count_cells(sessions, clicked, positions)
    k, misses = cells.positions, cells.shown - cells.clicks
    by_position = np.bincount(cells.position, cells.shown, k).astype(np.float64)
    by_pair = np.bincount(cells.pair, cells.shown, cells.pairs)
    theta, gamma = np.full(k, 0.5), np.full(cells.pairs, 0.5)
    for _ in range(_MOST_STEPS):
        p, r = theta[cells.position], gamma[cells.pair]
        looked, wanted = _hidden(p, r)
        before = theta
        seen = np.bincount(cells.position, cells.clicks + misses * looked, k)
        theta = seen / np.maximum(by_position, 1)
        liked = np.bincount(cells.pair, cells.clicks + misses * wanted, cells.pairs)
        gamma = liked / by_pair
        if np.abs(theta - before).max() < _STILL:
            break
    return _relative(theta, by_position, "em")


def _regression_em(
    sessions: Sessions, clicked: Bools, positions: int | None, features: Floats, ridge: float
) -> Propensities:
    if len(features) != len(clicked):
        raise DataError(f"features of {len(features)} impressions, of {len(clicked)}")
    most = int(sessions.positions.max(initial=1))
    k = most if positions is None else min(positions, most)
    use = sessions.positions <= k
    position, click = sessions.positions[use] - 1, clicked[use].astype(np.float64)
    design = np.column_stack([np.ones(use.sum()), features[use]])
    by_position = np.bincount(position, minlength=k).astype(np.float64)
    theta: Floats = np.full(k, 0.5)
    weights: Floats = np.zeros(design.shape[1])
    for _ in range(_MOST_STEPS):
        gamma = _sigmoid(design @ weights)
        looked, wanted = _hidden(theta[position], gamma)
        before = theta
        seen = np.bincount(position, click + (1 - click) * looked, k)
        theta = (seen / np.maximum(by_position, 1)).astype(np.float64)
        weights = _newton(design, click + (1 - click) * wanted, weights, ridge)
        if np.abs(theta - before).max() < _STILL:
            break
    return _relative(theta, by_position, "regression_em")


def _hidden(p: Floats, r: Floats) -> tuple[Floats, Floats]:
    """P(looked at) and P(wanted) of what was not clicked."""
    neither = np.maximum(1 - p * r, 1e-12)
    return p * (1 - r) / neither, r * (1 - p) / neither


def _newton(design: Floats, target: Floats, weights: Floats, ridge: float) -> Floats:
    """One step of logistic regression on labels between 0 and 1; EM takes many."""
    chance = _sigmoid(design @ weights)
    curve = np.maximum(chance * (1 - chance), 1e-6)
    penalty = np.eye(len(weights)) * ridge
    penalty[0, 0] = 0.0
    hessian = (design * curve[:, None]).T @ design + penalty
    slope = design.T @ (target - chance) - penalty @ weights
    step = np.linalg.solve(hessian, slope)
    return np.asarray(weights + step, np.float64)


def _relative(theta: Floats, support: Floats, method: str) -> Propensities:
    known = support > 0
    values = np.where(known, theta / theta[0], 1.0)
    return Propensities(_carried(values, known), known, support, method)


def _carried(values: Floats, known: Bools) -> Floats:
    """Unknown positions have the value of the nearest known one above."""
    at = np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))
    found: Floats = values[at]
    return found


def _sigmoid(x: Floats) -> Floats:
    found: Floats = 1.0 / (1.0 + np.exp(-np.clip(x, -500, 500)))
    return found
