"""With what a run computes, beside what its spec says: here, one process and plain torch.

A run's numbers are those of its spec whatever the means are, up to rounding. ``Means`` is the
seam for several processes and for engines that shard a model; whoever starts a run brings them.
Every method is called by every process, in the same order, unless it says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from luthier.engine.control import Control
from luthier.engine.device import Device

if TYPE_CHECKING:
    from luthier.engine.setup import Setup

#: One micro-batch, and its share of the step's loss.
Piece = tuple[dict[str, Tensor], float]


class Means:
    """One process.

    Attributes:
        rank, processes: which of how many this one is. The first one writes.
        halves: whether a step that does not fit is done again in smaller pieces.
        compiles: whether the model is compiled first.
        half: whether the weights themselves are kept in 16 bits while they train.
    """

    rank = 0
    processes = 1
    halves = True
    compiles = False
    half = False

    @property
    def writes(self) -> bool:
        return self.rank == 0

    @contextmanager
    def first(self) -> Iterator[None]:
        """The first process goes through the block before the others: it fills the caches."""
        yield

    def barrier(self) -> None:
        """Nobody goes on until all are here."""

    def agreed(self, control: Control) -> Control:
        """A control that says the same to all."""
        return control

    def attach(self, setup: Setup) -> None:
        """Take over a run whose model and optimizer are made, before it is restored."""

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        """While it lasts this process holds all weights, to be read."""
        yield

    def remember(self, setup: Setup, folder: Path | None) -> None:
        """Write what the other processes remember into a checkpoint's folder; None where
        this process does not write."""

    def recall(self, folder: Path) -> dict[str, Any]:
        """What this process remembered beside the first: ``random``, ``optimization``."""
        return {}

    # --- a step ------------------------------------------------------------------------------

    def share(self, rows: np.ndarray) -> np.ndarray:
        """The rows of a step that are this process's. Arithmetic: any thread may call it."""
        return rows

    def total(self, count: int) -> int:
        """Sum over the processes."""
        return count

    def pieces(self, pieces: list[Piece]) -> Iterator[Piece]:
        """What goes through the model here, one by one."""
        yield from pieces

    def autocast(self, device: Device) -> AbstractContextManager[Any]:
        """The precision in which the model's forward pass runs."""
        return device.autocast()

    def backward(self, device: Device, loss: Tensor) -> None:
        device.backward(loss)

    def settle(
        self, parameters: Iterable[nn.Parameter], loss: float, failure: Exception | None
    ) -> float:
        """After the backward pass: gradients and loss are those of all. Raises the failure."""
        if failure is not None:
            raise failure
        return loss
