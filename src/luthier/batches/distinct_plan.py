"""Batches in which no text occurs twice, for losses with in-batch negatives.

Another row's positive is a negative here; if it is also this row's positive, the loss would
push apart what belongs together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.batches.arithmetic import Rows, derive, numbers, permutation
from luthier.batches.cache import EpochCache
from luthier.batches.dealing import deal
from luthier.batches.random_plan import check_step
from luthier.batches.repair import separate

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Epoch:
    rows: npt.NDArray[np.integer]  # by batch
    starts: Rows  # [steps + 1]


class DistinctPlan:
    """Each row once an epoch, no text twice in a batch, the last batch smaller.

    codes: [n, roles], a number for each text that several rows have, -1 for the others.
    Rows are dealt by their most frequent text, which alone can never clash; what clashes by
    another text changes places with a row of another batch.

    Where a text is in more rows than there would be batches, there are more and smaller
    batches; where even those would be of a single row, the rows that are left over wait, and
    others do in the next epoch.
    """

    def __init__(
        self,
        codes: Codes,
        *,
        batch_size: int,
        min_rows: int,
        key: tuple[object, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        n = len(codes)
        self._n, self._codes, self._key = n, codes, key
        self.batch_size = min(batch_size, n)
        self._shared = np.flatnonzero((codes >= 0).any(axis=1))
        counts = np.bincount(codes[codes >= 0]) if len(self._shared) else np.zeros(1, np.int64)
        self._kinds, self._sizes = _most_frequent(codes, counts)
        self._layers, said = self._layout(min_rows)
        self.steps_per_epoch = self._layers[0]
        self._partial_last = self._layers[-1] < self._layers[0]
        self._waiting = self._surplus()
        if self._waiting and said:
            said += f", and {self._waiting} rows (others each epoch) are left out of an epoch"
        self.notes = notes + ((said,) if said else ())
        self._epoch = EpochCache(self._deal)

    def _layout(self, min_rows: int) -> tuple[list[int], str]:
        """(how many batches have a 1st, a 2nd, … row; what is to be said of it)."""
        n, size = self._n, self.batch_size
        most = int(self._sizes.max(initial=1))
        full, rest = divmod(n, size)
        if rest and rest < min_rows and full >= most:
            what = "one row" if rest == 1 else f"{rest} rows"
            return [full] * size, f"{what} of {n} (others each epoch) would be a batch too small"
        steps = -(-n // size)
        if most > steps or (rest and rest < min_rows):
            # so many batches that each row with that text finds one with another row in it
            steps = most if min_rows < 2 else max(1, min(most, n - most))
            return [steps] * size, (
                f"one text is in {most} of {n} rows and may be in a batch once: batches are "
                f"smaller and there are {steps} of them; in-batch negatives fit such data badly"
            )
        # texts that need every batch, the smaller last one too, may be more than that one holds
        if full and int((self._sizes > full).sum()) > rest * steps:
            return [steps] * size, ""  # evened out: all batches have nearly the same size
        return [steps] * rest + [full] * (size - rest), ""

    def _surplus(self) -> int:
        """Rows of texts that are in more rows than there are batches."""
        return int((np.maximum(self._sizes - self.steps_per_epoch, 0) / self._sizes).sum().round())

    def rows(self, epoch: int, step: int) -> Rows:
        """The rows of a step, int64, at least one."""
        check_step(step, self.steps_per_epoch)
        dealt = self._epoch(epoch)
        return dealt.rows[dealt.starts[step] : dealt.starts[step + 1]].astype(np.int64)

    def _deal(self, epoch: int) -> _Epoch:
        key = (*self._key, epoch)
        order = self._order(key)
        kinds = self._kinds[order]
        order, kinds = self._within_limit(order, kinds)
        capacity = sum(self._layers)
        order, kinds = order[:capacity], kinds[:capacity]
        batch = deal(kinds, self._layers, key)
        if len(self._shared):
            separate(batch, self._codes, order, derive(*key, "swap"))
        return self._by_step(order, batch, key)

    def _order(self, key: tuple[object, ...]) -> Rows:
        """Rows in a random order in which those of one kind are next to each other."""
        if not len(self._shared):
            return permutation(derive(*key, "rows"), self._n).astype(np.int64)
        word = numbers(derive(*key, "kinds"), self._kinds)
        # the low bits are another number for each row, so no two words are equal, and the
        # order does not depend on the sorting algorithm
        low = np.uint64((1 << max(24, self._n.bit_length())) - 1)
        odd, start = numbers(derive(*key, "rows"), 2) | np.uint64(1)
        word = (word & ~low) | ((np.arange(self._n, dtype=np.uint64) * odd + start) & low)
        # kinds that need the smaller last batch too come first, where the layers are widest
        word >>= np.uint64(1)
        word |= (self._sizes <= self._layers[-1]).astype(np.uint64) << np.uint64(63)
        return np.argsort(word)

    def _within_limit(self, order: Rows, kinds: Rows) -> tuple[Rows, Rows]:
        """Leave out what a kind has beyond one row a batch."""
        if not (self._sizes > self.steps_per_epoch).any():
            return order, kinds
        sort = np.argsort(kinds, kind="stable")
        first = np.concatenate([[0], np.flatnonzero(np.diff(kinds[sort])) + 1])
        rank = np.arange(len(kinds)) - np.repeat(first, np.diff([*first, len(kinds)]))
        keep = np.ones(len(kinds), dtype=bool)
        keep[sort] = rank < self.steps_per_epoch
        return order[keep], kinds[keep]

    def _by_step(self, rows: Rows, batch: Rows, key: tuple[object, ...]) -> _Epoch:
        """The rows of each batch next to each other, full batches in a random order."""
        steps = self.steps_per_epoch
        full = steps - 1 if self._partial_last else steps
        place = np.arange(steps)
        place[:full] = permutation(derive(*key, "steps"), full)
        layer = np.repeat(np.arange(len(self._layers)), self._layers)[: len(rows)]
        width = int(layer[-1]) + 1 if len(rows) else 1
        kept = batch >= 0
        batch, rows, layer = batch[kept], rows[kept], layer[kept]
        table: Rows = np.full(steps * width, -1, dtype=np.int64)
        table[place[batch] * width + layer] = rows  # a batch has one row of each layer
        filled = table >= 0
        counts = filled.reshape(steps, width).sum(axis=1)
        return _Epoch(table[filled], np.concatenate([[0], np.cumsum(counts)]))

    def describe(self) -> dict[str, Any]:
        """What the pre-flight report shows."""
        return {
            "sampler": "no duplicates",
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "rows_per_epoch": min(self._n - self._waiting, sum(self._layers)),
            "rows_with_shared_texts": len(self._shared),
        }


def _most_frequent(codes: Codes, counts: npt.NDArray[np.integer]) -> tuple[Rows, Rows]:
    """(kind of each row, how many rows are of that kind): the kind is the text of the row
    that most rows have; a row with no shared text is a kind of its own."""
    n = len(codes)
    times = np.where(codes >= 0, counts[codes], 0)
    best = codes[np.arange(n), times.argmax(axis=1)].astype(np.int64)
    alone = best < 0
    kinds = np.where(alone, len(counts) + np.arange(n), best)
    per_kind = np.bincount(best[~alone], minlength=len(counts))
    return kinds, np.where(alone, 1, per_kind[np.where(alone, 0, best)])
