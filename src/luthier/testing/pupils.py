"""A pupil for tests of updaters: a small classifier, or encoder, of plain vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.updaters.updater import Seen, among


class SmallPupil:
    """A two-layer perceptron on rows (inputs (n, d), labels (n,)).

    Attributes: as those of ``luthier.updaters.Pupil``. The feature of a row is its hidden layer.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, classes: int, *, seed: int = 0) -> None:
        torch.manual_seed(seed)
        width = inputs.shape[1]
        self.model: nn.Module = nn.Sequential(
            nn.Linear(width, 5), nn.Tanh(), nn.Linear(5, classes)
        ).double()
        self.inputs, self.of = inputs.double(), labels
        self.updates, self.new_rows, self.old_rows = 1, len(inputs), 0
        self.known: Tensor | None = torch.arange(classes)

    def batch(self, rows: Any) -> tuple[Tensor, Tensor]:
        """Inputs and labels of rows."""
        index = torch.as_tensor(rows)
        return self.inputs[index], self.of[index]

    def see(self, batch: Any, model: nn.Module | None = None) -> Seen:
        layers: Any = model if model is not None else self.model
        hidden = layers[1](layers[0](batch[0]))
        return Seen(batch, layers[2](hidden), (hidden,))

    def losses(self, seen: Seen, allowed: Tensor | None = None) -> Tensor:
        return F.cross_entropy(among(seen.scores, allowed), seen.batch[1], reduction="none")

    def certainty(self, seen: Seen) -> Tensor:
        return seen.scores.softmax(1).gather(1, seen.batch[1][:, None])[:, 0]

    def labels(self, seen: Seen) -> Tensor | None:
        labels: Tensor = seen.batch[1]
        return labels

    def rows(self, limit: int, at_once: int) -> Iterable[Any]:
        count = min(limit, len(self.of))
        for start in range(0, count, at_once):
            yield self.batch(range(start, min(start + at_once, count)))

    def remembered(self, at_once: int) -> Iterable[Any]:
        yield from self.rows(len(self.of), at_once)
