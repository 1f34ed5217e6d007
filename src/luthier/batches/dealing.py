"""Dealing rows to batches such that no batch gets two of one kind."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from luthier.batches.arithmetic import Rows, derive, permutation


def deal(kinds: npt.NDArray[np.integer], layers: Sequence[int], key: tuple[object, ...]) -> Rows:
    """A batch for each position, such that positions of one kind get different batches.

    kinds: [n], equal kinds next to each other. layers: how many batches the 1st, 2nd, …
    layer of positions is dealt to, one position a batch; they sum to at least n and do not
    grow. Each layer is dealt in a random order. Returns [n] batch numbers, -1 where a kind
    has more positions than there are batches.

    >>> deal(np.array([7, 7, 8, 8, 9]), [2, 2, 2], ("doc",)).tolist()
    [1, 0, 0, 1, 1]
    """
    n = len(kinds)
    batches = np.full(n, -1, dtype=np.int64)
    start_of_run = 0
    low = 0
    for number, width in enumerate(layers):
        high = min(low + width, n)
        if low >= high:
            break
        order = permutation(derive(*key, "layer", number), width).astype(np.int64)
        head = 0
        if low and kinds[low] == kinds[low - 1]:  # a kind that began in an earlier layer
            head = int(np.searchsorted(kinds[low:high] != kinds[low], True))
            order, head, lost = _avoiding(order, batches[start_of_run:low], head, width)
            batches[low + head : low + head + lost] = -1
            filled = np.concatenate([np.arange(head), np.arange(head + lost, high - low)])
            batches[low + filled] = order[: len(filled)]
        else:
            batches[low:high] = order[: high - low]
        start_of_run = _start_of_last_run(kinds, low, high, start_of_run)
        low = high
    return batches


def _avoiding(order: Rows, taken: Rows, head: int, width: int) -> tuple[Rows, int, int]:
    """(order with ``head`` batches that are not taken first, how many there are, how many of
    the head found none)."""
    busy = np.zeros(width, dtype=bool)
    busy[taken[(taken >= 0) & (taken < width)]] = True
    free = order[~busy[order]][:head]
    chosen = np.zeros(width, dtype=bool)
    chosen[free] = True
    return np.concatenate([free, order[~chosen[order]]]), len(free), head - len(free)


def _start_of_last_run(kinds: npt.NDArray[np.integer], low: int, high: int, earlier: int) -> int:
    """Where the run that ends this layer began: here, or in an earlier layer."""
    changes = np.flatnonzero(kinds[low:high] != kinds[high - 1])
    if len(changes):
        return low + int(changes[-1]) + 1
    return earlier if low and kinds[low] == kinds[low - 1] else low
