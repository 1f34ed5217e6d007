"""What is alike in all that an updater learns with: rows of former updates, then the new ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from luthier.batches.arithmetic import Rows
from luthier.updaters.memory import Memory


class RowPupil:
    """A learner whose rows have numbers: the ``old`` ones that are remembered, then the ``new``.

    Attributes: as those of ``luthier.updaters.updater.Pupil``; and memory, set by whoever has it.
    per_class: how many rows of a class are to be together when some are drawn; 0: as they come.
    Subclasses have ``fetch``, ``labels_of`` and ``bytes_of``.
    """

    per_class = 0

    def counted(self, old: int, new: int) -> None:
        """Say how many rows there are; once."""
        self.old, self.new = old, new
        self.updates, self.new_rows, self.old_rows = 0, new, 0
        self.known: Tensor | None = None
        self.memory: Memory | None = None

    def fetch(self, rows: np.ndarray) -> Any:
        """Read and collate rows."""
        raise NotImplementedError

    def labels_of(self, rows: Rows) -> Rows | None:
        """The classes of rows without sending them through the model; None where they have none."""
        raise NotImplementedError

    def bytes_of(self, rows: Rows) -> Rows:
        """The bytes of each of these rows, raw (n,)."""
        raise NotImplementedError

    def rows(self, limit: int, at_once: int) -> Iterable[Any]:
        """Batches of so many of the new rows, the same ones each time."""
        places = np.unique(np.linspace(0, self.new - 1, min(limit, self.new)).astype(np.int64))
        for start in range(0, len(places), at_once):
            yield self.fetch(self.old + places[start : start + at_once])

    def remembered(self, at_once: int) -> Iterable[Any]:
        """Batches of all rows that the memory holds, in the order of its slots."""
        rows = np.empty(0, dtype=np.int64) if self.memory is None else self.memory.rows
        for start in range(0, len(rows), at_once):
            yield self.fetch(rows[start : start + at_once])

    def classes(self) -> list[int]:
        """The classes of the new rows."""
        labels = self.labels_of(self.old + np.arange(self.new, dtype=np.int64))
        return [] if labels is None else np.unique(labels).tolist()
