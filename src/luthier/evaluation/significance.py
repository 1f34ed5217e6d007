"""Is the tuned model better, or was it luck? Paired bootstrap over queries.

Queries (or scored rows) are drawn with replacement, the same draw for before and after, and
every metric is computed again; the middle 95% of 10,000 such values is the interval (Efron
and Tibshirani 1993, chapter 13; paired: Smucker, Allan and Carterette 2007). The verdict
reads the interval of the *difference* of the main metric:

    better               it lies above zero
    worse                it lies below zero
    no clear difference  it holds zero, or there are fewer than 20 queries

Fewer than 20 are too few: measured on simulated queries, the interval then misses the truth
more often than it claims. Beside it stand wins, losses and ties per query with an exact
sign test, and McNemar's exact test for hit_at_k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError
from luthier.evaluation.measure import (
    BY_QUERY,
    LESS_IS_BETTER,
    SHOWN,
    Evaluation,
    middle_ranks,
)

Verdict = Literal["better", "no clear difference", "worse"]
Array = NDArray[np.float64]

FEWEST_QUERIES = 20
RESAMPLES = 10_000
#: Two values of a metric closer than this are a tie.
SAME = 1e-9
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Interval:
    """A metric's value and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Counts:
    """How many queries got better, worse, or stayed; p of an exact two-sided sign test."""

    wins: int
    losses: int
    ties: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """Before against after on the same queries.

    difference is after - before. ``counts`` is by the main metric, ``hits`` by hit_at_k
    (None for scored data). For scored data a win is a row whose similarity got nearer to its
    score, both put on a scale of ranks.
    """

    main: str
    verdict: Verdict
    reason: str
    n: int
    confidence: float
    resamples: int
    seed: int
    before: dict[str, Interval]
    after: dict[str, Interval]
    difference: dict[str, Interval]
    counts: Counts
    hits: Counts | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Comparison:
        """The inverse of ``to_dict``."""
        known = dict(data)
        for side in ("before", "after", "difference"):
            known[side] = {name: Interval(**value) for name, value in data[side].items()}
        known["counts"] = Counts(**data["counts"])
        known["hits"] = Counts(**data["hits"]) if data["hits"] else None
        return cls(**known)


def compare(
    before: Evaluation,
    after: Evaluation,
    *,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two evaluations of the same set. Raises DataError when the sets differ."""
    if (before.set_id, before.k, before.distance) != (after.set_id, after.k, after.distance):
        raise DataError(
            "these evaluations were not made on the same set in the same way",
            hint="compare evaluations of equal set, k and distance",
        )
    names, n = SHOWN[after.kind], len(after)
    first, second = _statistics(before), _statistics(after)
    draws = [np.stack([first(c), second(c)]) for c in resamples_of(n, resamples, seed)]
    hits = None
    if after.kind == "retrieval":
        hits = _count(after.per_query["hit_at_k"] - before.per_query["hit_at_k"])
    return comparison(
        (before.metrics, after.metrics), draws, names,
        main=after.main, n=n, seed=seed, confidence=confidence, resamples=resamples,
        counts=_count(_gains(before, after)), hits=hits,
    )  # fmt: skip


def comparison(
    metrics: tuple[Mapping[str, float], Mapping[str, float]],
    draws: Sequence[Array],
    names: Sequence[str],
    *,
    main: str,
    n: int,
    seed: int,
    confidence: float,
    resamples: int,
    counts: Counts,
    hits: Counts | None = None,
    less_is_better: frozenset[str] = LESS_IS_BETTER,
    unit: str = "queries",
) -> Comparison:
    """What paired bootstrap samples say of metrics before and after.

    draws: of both sides on the same rows, [2, some resamples, metrics] each; NaN counts as no
    sample.
    """
    both = np.concatenate(list(draws), axis=1)
    tail = (1 - confidence) / 2

    def side(values: Array, sample: Array) -> dict[str, Interval]:
        low, high = np.nanquantile(sample, [tail, 1 - tail], axis=0)
        return {
            name: Interval(float(values[i]), float(low[i]), float(high[i]))
            for i, name in enumerate(names)
        }

    old, new = (np.array([found[name] for name in names]) for found in metrics)
    difference = side(new - old, both[1] - both[0])
    verdict, reason = verdict_of(difference[main], main, n, confidence, less_is_better, unit)
    return Comparison(
        main=main,
        verdict=verdict,
        reason=reason,
        n=n,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        before=side(old, both[0]),
        after=side(new, both[1]),
        difference=difference,
        counts=counts,
        hits=hits,
    )


def intervals(
    evaluation: Evaluation, *, seed: int = 0, confidence: float = 0.95, resamples: int = RESAMPLES
) -> dict[str, Interval]:
    """The confidence interval of every metric of one evaluation."""
    return compare(
        evaluation, evaluation, seed=seed, confidence=confidence, resamples=resamples
    ).after


def verdict_of(
    difference: Interval,
    main: str,
    n: int,
    confidence: float,
    less_is_better: frozenset[str] = LESS_IS_BETTER,
    unit: str = "queries",
) -> tuple[Verdict, str]:
    """The verdict that an interval allows, and its reason."""
    sign = -1 if main in less_is_better else 1
    low, high = sorted((sign * difference.low, sign * difference.high))
    span = f"{confidence:.0%} interval of the difference in {main}: {low:+.3f} to {high:+.3f}"
    if n < FEWEST_QUERIES:
        return "no clear difference", f"{n} {unit} are too few to tell (at least {FEWEST_QUERIES})"
    if low > SAME:
        return "better", f"{span}, above zero, over {n:,} {unit}"
    if high < -SAME:
        return "worse", f"{span}, below zero, over {n:,} {unit}"
    return "no clear difference", f"{span}, which holds zero, over {n:,} {unit}"


def _count(gains: Array) -> Counts:
    wins, losses = int((gains > SAME).sum()), int((gains < -SAME).sum())
    return Counts(wins, losses, len(gains) - wins - losses, sign_test(wins, losses))


def sign_test(wins: int, losses: int) -> float:
    """Exact two-sided p of so uneven a split, were a win as likely as a loss.

    >>> sign_test(9, 1)
    0.021484375
    """
    n, term, tail = wins + losses, 1, 0
    for i in range(min(wins, losses) + 1):  # term is n choose i, a whole number
        tail += term
        term = term * (n - i) // (i + 1)
    return min(1.0, float(Fraction(2 * tail, 2**n)))


def _gains(before: Evaluation, after: Evaluation) -> Array:
    """What each query (or row) gained."""
    if after.kind in BY_QUERY:
        gained: Array = after.per_query[after.main] - before.per_query[after.main]
        return gained
    target = middle_ranks(after.per_query["target"])
    error = [np.abs(middle_ranks(e.per_query["similarity"]) - target) for e in (before, after)]
    nearer: Array = error[0] - error[1]
    return nearer


def resamples_of(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each of n queries is drawn, float64 [chunk, n], in chunks of bounded size.

    The draws depend on n, resamples and seed only, so before and after share them.
    """
    rng = np.random.default_rng(seed)
    step = max(1, min(resamples, _CHUNK_BYTES // (8 * n)))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        drawn = rng.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)


def _statistics(evaluation: Evaluation) -> Callable[[Array], Array]:
    """From counts [b, n] to the metrics of those resamples [b, metrics]."""
    names = SHOWN[evaluation.kind]
    if evaluation.kind in BY_QUERY:
        values = np.stack([evaluation.per_query[name] for name in names], axis=1)
        return lambda counts: counts @ values / values.shape[0]
    similarity, target = evaluation.per_query["similarity"], evaluation.per_query["target"]
    ranked = [_WeightedRanks(similarity), _WeightedRanks(target)]
    squared = (similarity - target) ** 2

    def statistics(counts: Array) -> Array:
        columns = {
            "spearman": _correlations(counts, ranked[0](counts), ranked[1](counts)),
            "pearson": _correlations(counts, similarity[None], target[None]),
            "mse": counts @ squared / len(squared),
        }
        return np.stack([columns[name] for name in names], axis=1)

    return statistics


class _WeightedRanks:
    """Mid-ranks of n values of which each occurs ``counts`` times, without sorting again."""

    def __init__(self, values: Array) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(np.r_[self.starts, len(values)])
        self.group = np.repeat(np.arange(len(self.starts)), sizes)

    def __call__(self, counts: Array) -> Array:
        tied = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        middle = np.cumsum(tied, axis=1) - (tied - 1) / 2
        ranks = np.empty_like(counts)
        ranks[:, self.order] = middle[:, self.group]
        return ranks


def _correlations(counts: Array, x: Array, y: Array) -> Array:
    """Pearson's r of each resample; 0 where one side is constant."""
    n = counts.sum(axis=1, keepdims=True)
    x = x - (counts * x).sum(axis=1, keepdims=True) / n
    y = y - (counts * y).sum(axis=1, keepdims=True) / n
    xy = (counts * x * y).sum(axis=1)
    size = np.sqrt((counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1))
    found: Array = np.where(size > 1e-12 * n[:, 0], xy / np.where(size > 0, size, 1), 0.0)
    return found
