"""Did an update forget what was learnt before it, and was it more than is allowed?

The rows of earlier chunks are scored before and after the update, so every row is compared with
itself: a bootstrap over rows gives the interval of what they gained or lost together, an exact
sign test (of right and wrong: McNemar's) how likely so uneven a split is by chance. While the
model learns, the same rows are scored now and then: what they lose on the way, though they may
have it back at the end, is the stability gap (De Lange et al. 2023, Continual evaluation for
lifelong learning: identifying the stability gap, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from luthier.evaluation.significance import (
    FEWEST_QUERIES,
    SAME,
    Interval,
    resamples_of,
    sign_test,
)

Verdict = Literal["kept", "forgot", "nothing to compare"]

_CONFIDENCE = 0.95
_RESAMPLES = 10_000
#: Draws of rows whose scores are fractions: each takes a pass over the rows.
_RESAMPLES_OF_FRACTIONS = 2_000
#: Up to so many different changes of a row, a resample is a draw of how often each occurs.
_FEW = 16


@dataclass(frozen=True)
class Kept:
    """What rows lost or gained in an update, by each row's own scores before and after.

    change: of all the rows together, positive where they gained, with its interval. p: of the
    sign test. lost: what each chunk lost (negative: gained), as a share: of right rows the
    difference of the shares, of losses the relative rise. verdict: "forgot" where the interval
    lies below zero.
    """

    verdict: Verdict
    reason: str
    rows: int = 0
    change: Interval | None = None
    p: float | None = None
    lost: tuple[float, ...] = ()

    @property
    def mean(self) -> float | None:
        """What the chunks lost, their mean."""
        return float(np.mean(self.lost)) if self.lost else None

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return {**asdict(self), "mean": self.mean}


def kept(
    before: np.ndarray | None,
    after: np.ndarray | None,
    groups: np.ndarray,
    score: str = "correct",
    *,
    seed: int = 0,
) -> Kept:
    """Compare the scores of rows (n,) before and after; groups (n,): the chunk of each row.

    >>> right, wrong = np.ones(40), np.r_[np.ones(20), np.zeros(20)]
    >>> found = kept(right, wrong, np.repeat([0, 1], 20))
    >>> found.verdict, found.lost, found.mean
    ('forgot', (0.0, 1.0), 0.5)
    """
    if before is None or after is None or not len(groups):
        return Kept("nothing to compare", "there are no rows of earlier chunks")
    sign = -1.0 if score == "loss" else 1.0
    gain = sign * (np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64))
    lost = []
    for chunk in np.unique(groups):
        there = groups == chunk
        whole = max(float(before[there].mean()), SAME) if score == "loss" else 1.0
        lost.append(float((0.0 - gain[there]).mean()) / whole)
    n = len(gain)
    change = _interval(gain, seed)
    p = sign_test(int((gain > SAME).sum()), int((gain < -SAME).sum()))
    span = f"{change.low:+.3f} to {change.high:+.3f}"
    said = f"{change.value:+.3f}, {_CONFIDENCE:.0%} interval {span}"
    if n < FEWEST_QUERIES:
        reason = f"{n} rows of earlier chunks are too few to tell (at least {FEWEST_QUERIES})"
        return Kept("nothing to compare", reason, n, change, p, tuple(lost))
    if change.high < -SAME:
        return Kept("forgot", f"{said}, below zero, over {n:,} rows", n, change, p, tuple(lost))
    return Kept("kept", f"{said}, over {n:,} rows", n, change, p, tuple(lost))


def _interval(gain: np.ndarray, seed: int) -> Interval:
    """The mean, and the middle 95% of the means of resamples."""
    n = len(gain)
    values, counts = np.unique(gain, return_counts=True)
    if len(values) <= _FEW:
        drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=_RESAMPLES)
        means = drawn @ values / n
    else:
        draws = resamples_of(n, _RESAMPLES_OF_FRACTIONS, seed)
        means = np.concatenate([counts @ gain / n for counts in draws])
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(gain.mean()), float(low), float(high))


def over_budget(found: Kept, mean: float | None, each: float | None) -> list[str]:
    """What was lost beyond what is allowed, a sentence each; none where it was not."""
    said = []
    if mean is not None and found.mean is not None and found.mean > mean + SAME:
        said.append(f"earlier chunks lost {found.mean:.1%} on average, {mean:.1%} is allowed")
    if each is not None and found.lost and max(found.lost) > each + SAME:
        worst = int(np.argmax(found.lost))
        message = f"chunk {worst + 1} lost {found.lost[worst]:.1%}, {each:.1%} is allowed for each"
        said.append(message)
    return said


def stability(
    before: Sequence[float], curve: Sequence[Mapping[str, Any]], score: str = "correct"
) -> dict[str, Any] | None:
    """What earlier chunks lost on the way. before: their scores where the update began; curve:
    entries with ``step`` and ``by_chunk``, in order. None where nothing was scored on the way.

    gap: the largest drop of each chunk below where it began, their mean; by_chunk: of each;
    step: where the mean over chunks was lowest; end: how far below that start it ended.

    >>> stability([1.0], [{"step": 1, "by_chunk": [0.2]}, {"step": 2, "by_chunk": [0.9]}])["gap"]
    0.8
    """
    if not len(before) or not curve:
        return None
    sign = -1.0 if score == "loss" else 1.0
    start = np.asarray(before, dtype=np.float64)
    scores = np.array([entry["by_chunk"][: len(start)] for entry in curve], dtype=np.float64)
    drops = sign * (start[None] - scores)
    largest = np.maximum(drops.max(axis=0), 0.0)
    return {
        "gap": float(largest.mean()),
        "by_chunk": largest.tolist(),
        "step": int(curve[int(drops.mean(axis=1).argmax())]["step"]),
        "end": float(drops[-1].mean()),
        "curve": [
            {"step": int(entry["step"]), "by_chunk": row}
            for entry, row in zip(curve, scores.tolist(), strict=True)
        ],
    }


def forward_transfer(
    matrix: Sequence[Sequence[float]], fresh: Sequence[float], *, less_is_better: bool = False
) -> float | None:
    """How much better chunks are known before they are learnt than by a fresh model, their mean
    (Lopez-Paz and Ranzato 2017, equation 4). matrix: rows are updates, columns the test rows of
    every chunk; fresh: of a model that has learnt nothing. None where there is only one chunk.

    >>> forward_transfer([[0.9, 0.4], [0.9, 0.9]], [0.1, 0.1])
    0.30000000000000004
    """
    sign = -1.0 if less_is_better else 1.0
    known = [c for c in range(1, min(len(matrix), len(fresh))) if c < len(matrix[c - 1])]
    found = [sign * (matrix[c - 1][c] - fresh[c]) for c in known]
    return float(np.mean(found)) if found else None
