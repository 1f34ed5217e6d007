"""How far to trust that a click, or its absence, says what it seems to say.

The two calculators of Embedding Studio, with its names. They ask whether a result's neighbours
agree with it. What they do not ask is whether anybody saw the result: for that see
``propensity`` and its weights, which correct the position's bias where
``calculate_confidences`` adds to it, for its weight falls with the position.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: (ranks [m], clicks [m], starts [n + 1]) → weights [m]. Ranks are the scores of the search.
ConfidenceCalculator = Callable[[Floats, Floats, Ints], Floats]


def dummy_confidences(ranks: Floats, clicks: Floats, starts: Ints | None = None) -> Floats:
    """1 for all."""
    return np.ones(len(clicks))


def calculate_confidences(
    ranks: Floats, clicks: Floats, starts: Ints | None = None, *, window_size: int = 3
) -> Floats:
    """How well each result agrees with its neighbours, from 0 to 1 within its list.

    In a window of ``window_size // 2`` results to either side, cut at the list's ends, with the
    share of clicks p and the mean score a, and s = abs(score - a) / a::

        click        p (1 - s) + (1 - p) s
        no click     (1 - p) (1 - s) + p s

    times exp(-3 i / N - 0.3) + 0.25 for the i-th of N results; then stretched to 0 … 1.

    ranks: the scores of the search. clicks: 1 or 0. starts: where lists begin, with the end;
    one list without it. Raises DataError: a window under 2, or scores that are not known.

    >>> import numpy as np
    >>> calculate_confidences(np.array([.9, .8, .7]), np.array([0., 1., 0.])).round(4).tolist()
    [1.0, 0.0, 0.1847]
    """
    if isinstance(window_size, bool) or not isinstance(window_size, int) or window_size < 2:
        raise DataError(f"window_size is {window_size!r}", hint="a whole number from 2 on")
    if np.isnan(ranks).any():
        hint = "dummy_confidences, or propensities, need none"
        raise DataError("calculate_confidences needs the score of every result", hint=hint)
    starts = np.array([0, len(ranks)]) if starts is None else starts
    lengths = np.diff(starts)
    begin, n = np.repeat(starts[:-1], lengths), np.repeat(lengths, lengths)
    i = np.arange(len(ranks))
    half = window_size // 2
    low, high = np.maximum(begin, i - half), np.minimum(begin + n, i + half + 1)
    mean_rank = _window_means(ranks, low, high) + 1e-9
    share = _window_means((clicks > 0).astype(np.float64), low, high)
    apart = np.abs(ranks - mean_rank) / mean_rank
    agrees = (1 - apart) * share + (1 - share) * apart
    differs = (1 - share) * (1 - apart) + share * apart
    position: Floats = np.exp(-3 * (i - begin + 1) / n - 0.3) + 0.25
    raw: Floats = np.where(clicks > 0, agrees, differs) * position
    return _stretched(raw, starts, lengths)


def _window_means(values: Floats, low: Ints, high: Ints) -> Floats:
    """Means of values[low:high]; windows are short, so they are summed term by term: sums that
    are taken of differences of running totals lose what is small beside the total."""
    total = np.zeros(len(values))
    for step in range(int((high - low).max(initial=0))):
        at = np.minimum(low + step, len(values) - 1)
        total += np.where(low + step < high, values[at], 0.0)
    mean: Floats = total / np.maximum(high - low, 1)
    return mean


def _stretched(raw: Floats, starts: Ints, lengths: Ints) -> Floats:
    full = np.flatnonzero(lengths)
    if not len(full):
        return raw
    least = np.repeat(np.minimum.reduceat(raw, starts[:-1][full]), lengths[full])
    most = np.repeat(np.maximum.reduceat(raw, starts[:-1][full]), lengths[full])
    found: Floats = (raw - least) / (most - least + 1e-9)
    return found
