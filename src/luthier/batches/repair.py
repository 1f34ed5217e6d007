"""Separating rows of one batch that share a text, by changing places with other rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from luthier.batches.arithmetic import Rows, numbers, permutation

Codes = npt.NDArray[np.int32]

#: Places tried for a row; small data is looked through completely.
_TRIES = 4096
#: Places tried in all, some seconds; a row that finds none waits for the next epoch.
_BUDGET = 500_000


def separate(batch: Rows, codes: Codes, order: Rows, key: int) -> None:
    """Change ``order`` in place until no batch has two rows with one code.

    batch: [m] the batch of each position, or -1. order: [m] the row at each position.
    codes: [n, roles] of the rows. A position for whose row no place is found gets batch -1.
    """
    if codes.shape[1] < 2:
        return  # dealing by the one code there is leaves nothing to separate
    clashing = _clashes(batch, codes, order)
    if not len(clashing):
        return
    table = _Table(batch, codes, order)
    for count, position in enumerate(clashing):
        if not table.move(int(position), key + count):
            batch[position] = -1


def _clashes(batch: Rows, codes: Codes, order: Rows) -> Rows:
    """Positions that share a code with an earlier position of their batch."""
    width = int(codes.max()) + 1
    words, places = [], []
    for role in range(codes.shape[1]):
        code = codes[order, role]
        place = np.flatnonzero((code >= 0) & (batch >= 0))
        words.append(batch[place] * width + code[place])
        places.append(place)
    word, place = np.concatenate(words), np.concatenate(places)
    sort = np.lexsort((place, word))
    word, place = word[sort], place[sort]
    same = np.flatnonzero((word[1:] == word[:-1]) & (place[1:] != place[:-1])) + 1
    return np.unique(place[same])


class _Table:
    """Which position is where, so that a change of places is cheap."""

    def __init__(self, batch: Rows, codes: Codes, order: Rows) -> None:
        self._batch, self._codes, self._order = batch, codes, order
        sort = np.argsort(batch, kind="stable")
        sort = sort[np.searchsorted(batch[sort], 0) :]
        self._batches = int(batch.max()) + 1
        starts = np.searchsorted(batch[sort], np.arange(self._batches + 1))
        self._members = [sort[a:b] for a, b in pairwise(starts)]
        self._widest = max(map(len, self._members))
        self._budget = _BUDGET

    def _held(self, positions: Rows) -> set[int]:
        held = set(self._codes[self._order[positions]].ravel().tolist())
        held.discard(-1)
        return held

    def move(self, position: int, key: int) -> bool:
        """Change places with a row of another batch, so that neither batch has a clash more.
        True also when the position no longer clashes; False takes it out of its batch."""
        home = int(self._batch[position])
        here = self._members[home]
        mine = self._held(np.array([position]))
        others = self._held(here[here != position])
        if not mine & others:
            return True
        for place in self._places(key):
            self._budget -= 1
            if self._swap(position, *place, mine, others):
                return True
        self._members[home] = here[here != position]
        return False

    def _places(self, key: int) -> Iterator[tuple[int, int]]:
        """(batch, slot) at random, at least 16 however many rows came before; all of them
        where that is few."""
        tries = max(16, min(_TRIES, self._budget))
        widest = self._widest
        if self._batches * widest <= tries:
            for word in permutation(key, self._batches * widest).tolist():
                yield word // widest, word % widest
            return
        for start in range(0, tries, 64):
            for word in numbers(key, np.arange(start, min(start + 64, tries))).tolist():
                yield word % self._batches, word >> 32

    def _swap(
        self, position: int, target: int, slot: int, mine: set[int], others: set[int]
    ) -> bool:
        there = self._members[target]
        home = int(self._batch[position])
        if target == home or not len(there):
            return False
        slot %= len(there)
        other = int(there[slot])
        if self._held(np.array([other])) & others:
            return False
        if mine & self._held(np.delete(there, slot)):
            return False
        order = self._order
        order[position], order[other] = order[other], order[position]
        return True
