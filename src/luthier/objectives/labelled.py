"""Losses of pytorch-metric-learning as objectives: distance → miner → loss → reducer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luthier.errors import DataError
from luthier.objectives.objective import Embedded, Objective, zero

Tuples = tuple[Tensor, ...]


class LabelLoss(Objective):
    """A loss that compares items by class, with a miner or without.

    Labelled data: the items of the batch with their labels; the miner picks tuples of them.
    Triplet data: each row's own tuples are given to the loss, which compares no other rows.
    A batch without a valid pair or triplet gives 0. ``stats``: how many the miner found.
    """

    def __init__(
        self, loss: nn.Module, miner: nn.Module | None = None, num_classes: int | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.num_classes = num_classes  # of a loss with one centre a class

    def compute(self, batch: Embedded) -> Tensor:
        if batch.labels is None:
            return self._of_tuples(batch)
        (items,), labels = batch.columns, batch.labels
        self._check_classes(labels)
        tuples: Tuples | None = None
        if self.miner is not None:
            if not _comparable(labels):
                self.stats = {"mined": 0}
                return zero(batch)
            tuples = self.miner(items, labels)
            self.stats = _counts(tuples)
            if not any(len(part) for part in tuples):
                return zero(batch)
        value: Tensor = self.loss(items, labels, tuples)
        return value

    def _of_tuples(self, batch: Embedded) -> Tensor:
        items, tuples = torch.cat(batch.columns), row_tuples(batch)
        value: Tensor = self.loss(items, None, tuples)
        return value

    def _check_classes(self, labels: Tensor) -> None:
        # only where it costs no synchronization with a device, or where time is not short
        if self.num_classes is None or (self.training and labels.is_cuda):
            return
        if int(labels.max()) >= self.num_classes or int(labels.min()) < 0:
            raise DataError(
                f"a label is outside the {self.num_classes} classes of the training data",
                hint=f"{type(self.loss).__name__} learns one centre a class of those only",
            )


class RowLoss(Objective):
    """A loss of pytorch-metric-learning that compares two views of each row (VICReg)."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def compute(self, batch: Embedded) -> Tensor:
        if len(batch.columns) != 2:
            raise DataError(
                f"{type(self.loss).__name__} compares two texts a row, "
                f"and the data has {len(batch.columns)}"
            )
        if len(batch) < 2:  # a variance of one row is not defined
            return zero(batch)
        value: Tensor = self.loss(batch.columns[0], ref_emb=batch.columns[1])
        return value


def row_tuples(batch: Embedded) -> Tuples:
    """(anchors, positives, anchors, negatives): row numbers in the stacked columns, such that
    each anchor meets its own positive once and each of its own negatives once."""
    if len(batch.columns) < 3:
        raise DataError("triplets have an anchor, a positive and at least one negative")
    n, negatives = len(batch), len(batch.columns) - 2
    anchors = torch.arange(n, device=batch.columns[0].device)
    every = torch.arange(n * negatives, device=anchors.device)
    return anchors, anchors + n, every % n, every + 2 * n


def _comparable(labels: Tensor) -> bool:
    """Whether some two items share a class and some two do not."""
    distinct = len(torch.unique(labels))
    return 1 < distinct < len(labels)


def _counts(tuples: Tuples) -> dict[str, float]:
    if len(tuples) == 3:
        return {"mined": len(tuples[0])}
    positive, negative = len(tuples[0]), len(tuples[2])
    return {"mined": positive + negative, "positive_pairs": positive, "negative_pairs": negative}
