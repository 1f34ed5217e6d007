"""Rows in a random order, cut into batches."""

from __future__ import annotations

from typing import Any

from luthier.batches.arithmetic import Rows, derive, permutation
from luthier.batches.cache import EpochCache


class RandomPlan:
    """Each row once an epoch; the last batch may be smaller.

    A last batch of fewer than ``min_rows`` rows is left out: its loss says nothing. It holds
    other rows each epoch.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        min_rows: int,
        key: tuple[object, ...],
        notes: tuple[str, ...] = (),
    ) -> None:
        self._n, self._key = n, key
        self.batch_size = min(batch_size, n)
        rest = n % self.batch_size
        dropped = rest if rest < min_rows and n > self.batch_size else 0
        self.steps_per_epoch = -(-(n - dropped) // self.batch_size)
        self._used = n - dropped
        if dropped:
            notes += (f"{_rows(dropped)} of {n} (others each epoch) would be a batch too small",)
        self.notes = notes
        self._order = EpochCache(lambda epoch: permutation(derive(*key, epoch), n))

    def rows(self, epoch: int, step: int) -> Rows:
        """The rows of a step, int64."""
        check_step(step, self.steps_per_epoch)
        start = step * self.batch_size
        end = min(start + self.batch_size, self._used)
        return self._order(epoch)[start:end].astype("int64")

    def describe(self) -> dict[str, Any]:
        """What the pre-flight report shows."""
        return {
            "sampler": "random",
            "batch_size": self.batch_size,
            "steps_per_epoch": self.steps_per_epoch,
            "rows_per_epoch": self._used,
        }


def check_step(step: int, steps_per_epoch: int) -> None:
    """Raise IndexError for a step that the epoch does not have."""
    if not 0 <= step < steps_per_epoch:
        raise IndexError(f"step {step} of an epoch of {steps_per_epoch}")


def _rows(count: int) -> str:
    return "one row" if count == 1 else f"{count} rows"
