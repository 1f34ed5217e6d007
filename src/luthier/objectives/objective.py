"""What an objective is: a module that turns the embeddings of a batch into one number."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.errors import DataError
from luthier.objectives.lists import Lists


@dataclass(frozen=True)
class Embedded:
    """What the model made of one batch.

    columns: one [n, d] tensor a text role, in the order of the roles (anchor, positive,
    negative_1, …; for labelled data the text alone). labels: [n] int64 class numbers, for
    labelled data. targets: [n] float, the score of scored pairs or the teacher's margin. lists:
    of rankings, whose columns are the queries [n, d] and the items [u, d] of all queries.
    """

    columns: tuple[Tensor, ...]
    labels: Tensor | None = None
    targets: Tensor | None = None
    lists: Lists | None = None

    def __len__(self) -> int:
        return len(self.columns[0])

    def cut(self, dim: int) -> Embedded:
        """The first ``dim`` components of each embedding, normalized again."""
        columns = tuple(nn.functional.normalize(c[:, :dim], dim=-1) for c in self.columns)
        return Embedded(columns, self.labels, self.targets, self.lists)

    def in_full_precision(self) -> Embedded:
        """Half-precision columns and targets as float32."""
        half = (torch.float16, torch.bfloat16)
        columns = tuple(c.float() if c.dtype in half else c for c in self.columns)
        targets = self.targets
        if targets is not None and targets.dtype != columns[0].dtype:
            targets = targets.to(columns[0].dtype)
        lists = None if self.lists is None else self.lists.like(columns[0])
        return Embedded(columns, self.labels, targets, lists)


class Objective(nn.Module):
    """Base of all losses: ``forward`` gives a scalar that can be backpropagated.

    A loss implements ``compute``. It is called outside of autocast and with float32 (or
    float64) embeddings, for differences of similarities drown in half precision.
    ``parameters()`` are the loss's own. ``stats`` holds numbers of the last batch, such as how
    many triplets were mined.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stats: dict[str, float] = {}

    def compute(self, batch: Embedded) -> Tensor:
        """The loss of a batch, a scalar."""
        raise NotImplementedError

    def forward(self, batch: Embedded) -> Tensor:
        with torch.autocast(batch.columns[0].device.type, enabled=False):
            return self.compute(batch.in_full_precision()).reshape(())


def zero(batch: Embedded) -> Tensor:
    """0, from which gradients (of 0) still flow back to every column."""
    return torch.stack([(column * 0).sum() for column in batch.columns]).sum()


def take_columns(batch: Embedded, name: str, at_least: int, at_most: int | None = None) -> None:
    """Raise DataError unless the batch has that many columns."""
    count = len(batch.columns)
    if count < at_least or (at_most is not None and count > at_most):
        wanted = str(at_least) if at_least == at_most else f"at least {at_least}"
        raise DataError(f"{name} compares {wanted} texts a row, and the data has {count}")


def take_targets(batch: Embedded, name: str, what: str) -> Tensor:
    """The targets, [n]. Raises DataError when the data has none."""
    if batch.targets is None:
        raise DataError(f"{name} needs a {what} in each row, and the data has none")
    return batch.targets
