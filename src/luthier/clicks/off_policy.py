"""What another ranking would have earned, of the log of this one.

Two models. ``evaluate`` knows how much is seen at each position: a new ranking moves results, and
what a result earns hangs on its position by p. Clicks a session under the new ranking::

    IPS     sum of c_i  w_i,  w_i = p(new_i) / max(p(old_i), clip)
    SNIPS   IPS times  sum of p(new_i) / sum of w_i p(old_i),  the sums being of all sessions
    DR      sum of  p(new_i) r_i + w_i (c_i - p(old_i) r_i)

Without a clip w_i p(old_i) is p(new_i), and all three are one; a clip bounds the variance, and the
others pay back what it costs: SNIPS on average, DR where the relevance r is right.

``evaluate_policy`` knows how likely each choice was, of a log whose rankings were drawn::

    IPS     mean of w_i c_i,  w_i = chance under the new policy / chance under the old
    SNIPS   sum of w_i c_i / sum of w_i
    DR      mean of  q_new_i + w_i (c_i - q_i)

Horvitz and Thompson 1952; Swaminathan and Joachims, NeurIPS 2015 (self-normalized); Dudík,
Langford, Li, ICML 2011 (doubly robust); Li et al., *Offline evaluation of ranking policies with
click models*, KDD 2018 (positions).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.clicks.chance import uniform
from luthier.clicks.propensity import Propensities
from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """Clicks a session: the value, and its bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class OffPolicy:
    """``logged``: what this ranking earned. ``ips``, ``snips``, ``dr``: what the other would have;
    ``dr`` is None without predictions. effective: of so many clicks as good as unweighted
    ones ((sum of w)^2 / sum of w^2, Kish 1965); few say that the rankings differ much."""

    logged: Estimate
    ips: Estimate
    snips: Estimate
    dr: Estimate | None
    effective: float

    def to_dict(self) -> dict[str, Any]:
        """For reports."""
        return {
            name: value if value is None or isinstance(value, float) else vars(value)
            for name, value in vars(self).items()
        }


def reranked(sessions: Sessions, scores: Floats) -> Ints:
    """Positions that each impression [m] would have, were its session ordered by these scores:
    the positions that were there are dealt out anew, the best score first, ties as they were."""
    if len(scores) != len(sessions.owner):
        raise DataError(f"{len(scores)} scores of {len(sessions.owner)} impressions")
    best = np.lexsort((sessions.positions, -scores, sessions.owner))
    places = np.lexsort((sessions.positions, sessions.owner))
    found = np.empty(len(scores), np.int64)
    found[best] = sessions.positions[places]
    return found


def evaluate(
    sessions: Sessions, clicked: Bools, new_positions: Ints, propensities: Propensities, *,
    predicted: Floats | None = None, clip: float = 0.0, draws: int = 1000, level: float = 0.95,
    seed: int = 0,
) -> OffPolicy:  # fmt: skip
    """Estimate the clicks a session of a ranking that was not shown.

    new_positions: int64 [m], see ``reranked``. predicted: float64 [m], relevance by a model, for
    DR. clip: the least p(old) that is divided by; without one DR is IPS, as what a prediction adds
    at one place it takes away at the other: it pays for what a clip costs. Intervals are those of
    ``draws`` bootstrap samples of sessions. Raises DataError.
    """
    if not len(sessions):
        raise DataError("no session to evaluate")
    _check(draws, level)
    old, new = propensities.at(sessions.positions), propensities.at(new_positions)
    weight = new / np.maximum(old, clip) if clip else new / old
    n, owner = len(sessions), sessions.owner

    def summed(values: Floats) -> Floats:
        found: Floats = np.bincount(owner, values, n).astype(np.float64)
        return found

    hit = clicked.astype(np.float64)
    ips = summed(weight * hit)
    columns = [summed(hit), ips, summed(weight * old), summed(new)]
    if predicted is not None:
        if len(predicted) != len(owner):
            raise DataError(f"{len(predicted)} predictions of {len(owner)} impressions")
        columns.append(summed(new * predicted + weight * (hit - old * predicted)))
    return _estimated(columns, weight[clicked], draws, level, seed)


def evaluate_policy(
    rewards: Floats, weights: Floats, *, predicted: Floats | None = None,
    predicted_new: Floats | None = None, draws: int = 1000, level: float = 0.95, seed: int = 0,
) -> OffPolicy:  # fmt: skip
    """Estimate the mean reward of a policy that did not choose.

    rewards: float64 [n], of the choices of the log, clicks of sessions for one. weights: float64
    [n], how much likelier the new policy is to choose so. predicted: [n], the reward that a
    model expects of the choice of the log; predicted_new: [n], of those of the new policy.
    Raises DataError.
    """
    together = [weights, *(x for x in (predicted, predicted_new) if x is not None)]
    if not len(rewards) or any(len(x) != len(rewards) for x in together):
        raise DataError("rewards, weights and predictions are as many, and one at least")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError("a weight is a finite number, not negative")
    if (predicted is None) != (predicted_new is None):
        raise DataError("predictions are of the log's choices and of the new ones, or of none")
    _check(draws, level)
    columns = [rewards, weights * rewards, weights, np.ones(len(rewards))]
    if predicted is not None and predicted_new is not None:
        columns.append(predicted_new + weights * (rewards - predicted))
    return _estimated(columns, weights, draws, level, seed)


def _check(draws: int, level: float) -> None:
    if not 0 < level < 1 or draws < 2:
        raise DataError("level is between 0 and 1, and draws from 2 on")


def _estimated(
    columns: list[Floats], used: Floats, draws: int, level: float, seed: int
) -> OffPolicy:  # fmt: skip
    """columns [n] each: logged, weighted, weights, what the weights should be, and DR."""
    table = np.stack(columns, axis=1)
    value, drawn = _values(table.mean(axis=0)), _bootstrap(table, draws, seed)
    edges = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    found = [Estimate(*map(float, row)) for row in zip(value, *edges, strict=True)]
    squares = float((used**2).sum())
    effective = float(used.sum()) ** 2 / squares if squares else 0.0
    return OffPolicy(
        found[0], found[1], found[2], found[3] if len(found) > 3 else None, effective
    )  # fmt: skip


def _values(means: Floats) -> Floats:
    """logged, ips, snips and dr of the means of the columns, [..., 4 or 5]."""
    snips = means[..., 1] * means[..., 3] / np.maximum(means[..., 2], 1e-12)
    found = [means[..., 0], means[..., 1], snips]
    return np.stack(found + ([means[..., 4]] if means.shape[-1] == 5 else []), axis=-1)


def _bootstrap(table: Floats, draws: int, seed: int) -> Floats:
    """Values of so many samples of sessions with replacement, [draws, 3 or 4]."""
    n = len(table)
    means = np.empty((draws, table.shape[1]))
    for draw in range(draws):
        rows = (uniform(n, "bootstrap", seed, draw) * n).astype(np.int64)
        means[draw] = np.bincount(rows, minlength=n) @ table / n
    return _values(means)
