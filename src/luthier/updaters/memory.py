"""Which rows of all that was ever learnt are remembered.

A memory holds numbers of rows in slots, never the rows themselves: nothing is copied while a
model trains. What an item was like when it was admitted (the model's scores, its features) is
kept beside it, by slot. Every choice is a function of the seed and of how many rows came before,
so a memory that was saved and read again goes on as if nothing had happened.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luthier.batches.arithmetic import below, derive, numbers

Rows = npt.NDArray[np.int64]


class Memory:
    """At most ``size`` rows (0: none). Subclasses choose which, in ``_slots_for``.

    Attributes:
        rows: the number of the row in each slot. labels: its class, -1 where there is none.
        seen: how many rows were ever offered.
        kept: by name, what was noted of the item in each slot, shaped (slots, …); it is cut to
            the slots that are filled when it is read with ``noted``.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 0:
            raise ValueError(f"a memory of {size} rows")
        self.size, self.seed, self.seen = size, seed, 0
        self.rows: Rows = np.empty(0, dtype=np.int64)
        self.labels: Rows = np.empty(0, dtype=np.int64)
        self.kept: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def offer(self, rows: Rows, labels: Rows | None = None) -> tuple[Rows, Rows]:
        """Offer rows, each once in its life. Returns slots, and which of the offered rows
        (their places in ``rows``) are in them now."""
        labels = np.full(len(rows), -1, dtype=np.int64) if labels is None else labels
        placed: dict[int, int] = {}
        filled = len(self)
        for place, slot in enumerate(self._slots_for(rows, labels)):
            if slot is not None:
                placed[min(slot, filled)] = place
                filled = max(filled, min(slot, filled) + 1)
        self.seen += len(rows)
        slots = np.fromiter(placed, dtype=np.int64, count=len(placed))
        places = np.fromiter(placed.values(), dtype=np.int64, count=len(placed))
        self._put(slots, rows[places], labels[places])
        return slots, places

    def _slots_for(self, rows: Rows, labels: Rows) -> list[int | None]:
        """The slot of each, in turn, or None where it is not admitted. One that is beyond the
        slots that are filled is the next free one."""
        raise NotImplementedError

    def _put(self, slots: Rows, rows: Rows, labels: Rows) -> None:
        grown = int(slots.max(initial=-1)) + 1 - len(self.rows)
        if grown > 0:
            self.rows = np.concatenate([self.rows, np.zeros(grown, dtype=np.int64)])
            self.labels = np.concatenate([self.labels, np.zeros(grown, dtype=np.int64)])
        self.rows[slots], self.labels[slots] = rows, labels

    # --- what was noted of the items ---------------------------------------------------------

    def note(self, name: str, slots: Rows, values: Tensor) -> None:
        """Keep ``values`` (len(slots), …) beside the items of these slots. Where they are wider
        than before (a head has learnt more classes), what was kept has NaN for what is new."""
        values = values.detach().to("cpu")
        found = self.kept.get(name)
        if found is not None and values.dim() == 2 and values.shape[1] > found.shape[1]:
            wider = values.new_full((len(found), values.shape[1]), torch.nan)
            wider[:, : found.shape[1]] = found
            self.kept[name] = found = wider
        if found is None or len(found) < len(self):
            room = max(len(self), min(self.size, 2 * len(self)))
            grown = values.new_zeros((room, *values.shape[1:]))
            if found is not None:
                grown[: len(found)] = found
            self.kept[name] = found = grown
        found[torch.from_numpy(slots)] = values

    def noted(self, name: str, slots: Rows) -> Tensor:
        """What was noted of the items in these slots."""
        return self.kept[name][torch.from_numpy(slots)]

    def draw(self, count: int, *key: object) -> Rows:
        """At most ``count`` different slots, each as likely; the same ones for the same key."""
        if count >= len(self):
            return np.arange(len(self), dtype=np.int64)
        word = derive(self.seed, "draw", *key)
        if 16 * count < len(self):  # two in a hundred collide: no need to order all slots
            drawn = below(word, 2 * count, len(self))
            _, first = np.unique(drawn, return_index=True)
            if len(first) >= count:
                return drawn[np.sort(first)[:count]]
        return np.argsort(numbers(word, len(self)))[:count]

    def draw_classes(self, count: int, per_class: int, *key: object) -> Rows:
        """At most ``count`` different slots, ``per_class`` of each class that is drawn where it
        has so many; classes of one slot come last, for they compare with nothing."""
        order = np.argsort(numbers(derive(self.seed, "draw", *key), len(self)))
        labels = self.labels[order]
        _, first, of, sizes = np.unique(
            labels, return_index=True, return_inverse=True, return_counts=True
        )
        place = np.lexsort((first, sizes < 2))  # classes in the order of their first slot
        turn = np.empty_like(place)
        turn[place] = np.arange(len(place))
        by_class = np.argsort(of, kind="stable")
        within = np.empty_like(of)
        within[by_class] = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[np.lexsort((turn[of], within // per_class))][:count]

    # --- between updates ---------------------------------------------------------------------

    def keep(self, slots: Rows) -> None:
        """Forget all but these slots, which are then 0, 1, …."""
        self.rows, self.labels = self.rows[slots], self.labels[slots]
        self.kept = {n: v[torch.from_numpy(slots)] for n, v in self.kept.items()}

    def within(self, most: int, sizes: Rows) -> None:
        """Forget rows, drawn at random, until those that are left have at most so many bytes.

        sizes: of the row in each slot (slots,).
        """
        if int(sizes.sum()) <= most:
            return
        order = np.argsort(numbers(derive(self.seed, "bytes", self.seen), len(self)))
        fit = np.cumsum(sizes[order]) <= most
        self.keep(np.sort(order[fit]))

    def state(self) -> dict[str, Any]:
        """Everything, as a tree of numbers and tensors."""
        return {
            "size": self.size,
            "seed": self.seed,
            "seen": self.seen,
            "rows": torch.from_numpy(self.rows.copy()),
            "labels": torch.from_numpy(self.labels.copy()),
            "kept": {name: values[: len(self)] for name, values in self.kept.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``. A smaller ``size`` than it was keeps a random part."""
        self.seen = state["seen"]
        self.seed = state["seed"]
        self.rows, self.labels = state["rows"].numpy().copy(), state["labels"].numpy().copy()
        self.kept = dict(state["kept"])
        if len(self) > self.size:
            self.keep(np.sort(self.draw(self.size, "shrunk", self.seen)))


class Reservoir(Memory):
    """Each row ever offered is kept with the same probability, size / seen.

    Vitter 1985, Random Sampling with a Reservoir, algorithm R: the n-th row (from 1) takes the
    slot j, drawn from 0 … n - 1, where j < size.

    >>> memory = Reservoir(2, seed=1)
    >>> memory.offer(np.arange(10))[0].size <= 2, memory.seen, len(memory)
    (True, 10, 2)
    """

    def _slots_for(self, rows: Rows, labels: Rows) -> list[int | None]:
        arrivals = self.seen + np.arange(len(rows), dtype=np.int64)
        drawn = below(derive(self.seed, "reservoir"), arrivals, arrivals + 1)
        slots = np.where(arrivals < self.size, arrivals, drawn)
        return [int(slot) if slot < self.size else None for slot in slots]


class SlidingWindow(Memory):
    """The ``size`` rows that came last.

    >>> memory = SlidingWindow(3)
    >>> _ = memory.offer(np.arange(5))
    >>> sorted(memory.rows.tolist())
    [2, 3, 4]
    """

    _first = 0  # how many rows came before the one that took slot 0

    def _slots_for(self, rows: Rows, labels: Rows) -> list[int | None]:
        if not self.size:
            return [None] * len(rows)
        return [(self.seen - self._first + i) % self.size for i in range(len(rows))]

    def restore(self, state: dict[str, Any]) -> None:
        size, self.size = self.size, max(self.size, len(state["rows"]))
        super().restore(state)
        self.size = size
        oldest = (self.seen - state.get("first", 0)) % len(self) if len(self) else 0
        order = np.roll(np.arange(len(self), dtype=np.int64), -oldest)
        self.keep(order[max(0, len(self) - size) :])
        self._first = self.seen - len(self)

    def state(self) -> dict[str, Any]:
        return super().state() | {"first": self._first}


class GreedyBalanced(Reservoir):
    """As many rows of each class as there is room for; rows without classes as a reservoir.

    Prabhu et al. 2020, GDumb, algorithm 1: once it is full, a row of a class that is not the
    largest takes the place of a random row of the largest.

    >>> memory = GreedyBalanced(4)
    >>> _ = memory.offer(np.arange(8), np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    >>> sorted(memory.labels.tolist())
    [0, 0, 1, 1]
    """

    def _slots_for(self, rows: Rows, labels: Rows) -> list[int | None]:
        if not self.size or (labels < 0).all():
            return super()._slots_for(rows, labels)
        slots: list[int | None] = []
        of: dict[int, list[int]] = {}  # the slots of each class
        for slot, label in enumerate(self.labels.tolist()):
            of.setdefault(label, []).append(slot)
        filled, key = len(self), derive(self.seed, "balanced")
        for i, label in enumerate(labels.tolist()):
            if filled < self.size:
                slot, filled = filled, filled + 1
            else:
                largest = min(of, key=lambda c: (-len(of[c]), c))
                theirs = of[largest]
                if len(of.get(label, ())) >= len(theirs):
                    slots.append(None)
                    continue
                drawn = int(below(key, np.array([self.seen + i]), len(theirs))[0])
                theirs[drawn], theirs[-1] = theirs[-1], theirs[drawn]
                slot = theirs.pop()
            of.setdefault(label, []).append(slot)
            slots.append(slot)
        return slots


class Infinite(Memory):
    """Every row."""

    def __init__(self, size: int = 0, seed: int = 0) -> None:
        super().__init__(2**62, seed)

    def _slots_for(self, rows: Rows, labels: Rows) -> list[int | None]:
        return list(range(len(self), len(self) + len(rows)))


class Herding(GreedyBalanced):
    """As many rows of each class as there is room for, those whose mean feature is nearest to
    that of the class.

    Rebuffi et al. 2017, iCaRL, algorithm 4: they are chosen one after the other, so that the
    first m are the best m. While a chunk is learnt rows are admitted as by ``GreedyBalanced``;
    at its end ``choose`` is given the features of all.
    """

    def choose(self, rows: Rows, labels: Rows, features: Tensor) -> None:
        """Take the exemplars of rows (n) by their features (n, d), normed here."""
        classes = np.unique(labels)
        share = self.size // max(1, len(classes))
        chosen = [
            members[herded(features[torch.from_numpy(members)], share)]
            for members in (np.flatnonzero(labels == c) for c in classes)
        ]
        places = np.concatenate(chosen) if chosen else np.empty(0, dtype=np.int64)
        self.rows, self.labels = rows[places], labels[places]
        self.kept = {}


def herded(features: Tensor, count: int) -> Rows:
    """Places of ``count`` features (n, d) whose running mean follows the mean of all.

    >>> herded(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.8]]), 1).tolist()
    [2]
    """
    features = torch.nn.functional.normalize(features.double(), dim=1)
    mean = torch.nn.functional.normalize(features.mean(0), dim=0)
    total, chosen = torch.zeros_like(mean), list[int]()
    free = torch.ones(len(features), dtype=torch.bool)
    for k in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / k).norm(dim=1)
        best = int(torch.where(free, distance, torch.inf).argmin())
        free[best] = False
        total += features[best]
        chosen.append(best)
    return np.array(chosen, dtype=np.int64)


MEMORIES: dict[str, type[Memory]] = {
    "reservoir": Reservoir,
    "sliding_window": SlidingWindow,
    "greedy_balanced": GreedyBalanced,
    "herding": Herding,
    "infinite": Infinite,
}
