"""The orders of the last epochs asked for. They are pure, so forgetting one costs time only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class EpochCache(Generic[T]):
    """Two epochs at a time: one that ends while the next is already being read ahead."""

    def __init__(self, compute: Callable[[int], T], keep: int = 2) -> None:
        self._compute, self._keep = compute, keep
        self._held: dict[int, T] = {}
        self._lock = threading.Lock()

    def __call__(self, epoch: int) -> T:
        with self._lock:
            if epoch not in self._held:
                while len(self._held) >= self._keep:
                    del self._held[next(iter(self._held))]
                self._held[epoch] = self._compute(epoch)
            return self._held[epoch]
