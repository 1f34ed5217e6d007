"""What the loop trains: something that makes a loss of rows.

``Learner`` is the seam for other kinds of training (task heads, replay): the loop knows
nothing else. ``EmbeddingLearner`` puts a text model and an objective behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from luthier.engine.device import Device
from luthier.objectives import Embedded

if TYPE_CHECKING:
    from luthier.data import Dataset
    from luthier.objectives import Objective

Features = dict[str, Tensor]


class Learner(Protocol):
    """What the loop asks of what it trains."""

    def fetch(self, rows: np.ndarray) -> Any:
        """Read and collate rows. Pure and thread-safe: it may run ahead of the step."""

    def size(self, batch: Any) -> int:
        """Rows in a batch."""

    def backward(self, batch: Any, micro: int | None) -> float:
        """Fill the gradients of the whole batch's loss, at most ``micro`` rows at a time
        (None: all at once), and return the loss."""

    def loss(self, batch: Any) -> float:
        """The loss alone, in evaluation mode."""

    def mode(self, training: bool) -> None:
        """Training or evaluation mode."""

    def modules(self) -> Iterable[nn.Module]:
        """Everything with parameters."""


@dataclass(frozen=True)
class TextBatch:
    """Tokenised rows: one set of features a text role, and what the loss compares to."""

    features: tuple[Features, ...]
    labels: Tensor | None
    targets: Tensor | None

    def __len__(self) -> int:
        return len(next(iter(self.features[0].values())))


class EmbeddingLearner:
    """A text model under an objective.

    With ``micro`` smaller than the batch the gradient is that of the whole batch all the same:
    embeddings are computed in chunks without a graph, the loss is taken over all of them, and
    each chunk is run again with the gradient that the loss gave its embeddings (Gao et al.
    2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup). In-batch
    negatives are never lost to accumulation.
    """

    def __init__(self, model: Any, objective: Objective, dataset: Dataset, device: Device) -> None:
        self.model, self.objective, self.dataset, self.device = model, objective, dataset, device
        self._labels = (
            torch.from_numpy(dataset.array("label")) if dataset.form == "labelled" else None
        )
        role = {"scored": "score", "margin": "margin"}.get(dataset.form)
        self._targets = torch.from_numpy(dataset.array(role)).float() if role else None

    def modules(self) -> Iterable[nn.Module]:
        return self.model, self.objective

    def mode(self, training: bool) -> None:
        for module in self.modules():
            module.train(training)

    def fetch(self, rows: np.ndarray) -> TextBatch:
        index = torch.from_numpy(rows)
        return TextBatch(
            tuple(self.model.tokenize(self.dataset.texts(r, rows)) for r in self.dataset.roles),
            None if self._labels is None else self._labels[index],
            None if self._targets is None else self._targets[index],
        )

    def size(self, batch: TextBatch) -> int:
        return len(batch)

    def backward(self, batch: TextBatch, micro: int | None) -> float:
        if micro is None or micro >= len(batch):
            with self.device.autocast():
                columns = [self._embed(f) for f in batch.features]
            loss = self._compare(columns, batch)
            self.device.backward(loss)
            return loss.item()
        return self._backward_in_chunks(batch, micro)

    def loss(self, batch: TextBatch) -> float:
        with torch.no_grad(), self.device.autocast():
            columns = [self._embed(f) for f in batch.features]
            return self._compare(columns, batch).item()

    def _embed(self, features: Features) -> Tensor:
        embeddings: Tensor = self.model(self.device.move(features))
        return embeddings.float()

    def _compare(self, columns: Sequence[Tensor], batch: TextBatch) -> Tensor:
        device = columns[0].device
        labels = None if batch.labels is None else batch.labels.to(device)
        targets = None if batch.targets is None else batch.targets.to(device)
        loss: Tensor = self.objective(Embedded(tuple(columns), labels, targets))
        return loss

    def _backward_in_chunks(self, batch: TextBatch, micro: int) -> float:
        chunks = [
            (column, {k: v[start : start + micro] for k, v in features.items()})
            for column, features in enumerate(batch.features)
            for start in range(0, len(batch), micro)
        ]
        states, parts = [], []
        with torch.no_grad(), self.device.autocast():
            for _, features in chunks:
                states.append(self._random_state())
                parts.append(self._embed(features))
        columns = [
            torch.cat([p for p, (c, _) in zip(parts, chunks, strict=True) if c == column])
            .detach()
            .requires_grad_()
            for column in range(len(batch.features))
        ]
        loss = self._compare(columns, batch)
        self.device.backward(loss)
        after = self._random_state()
        gradients = [g for column in columns for g in torch.split(_gradient(column), micro)]
        for (_, features), state, gradient in zip(chunks, states, gradients, strict=True):
            self._set_random_state(state)  # the same dropout as in the first pass
            with self.device.autocast():
                embeddings = self._embed(features)
            # The gradient already bears the loss scale: accelerate must not scale it again.
            torch.autograd.backward([embeddings], [gradient])
        self._set_random_state(after)
        return loss.item()

    def _random_state(self) -> Tensor:
        if self.device.name.startswith("cuda"):
            return torch.cuda.get_rng_state(self.device.torch)
        return torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        if self.device.name.startswith("cuda"):
            torch.cuda.set_rng_state(state, self.device.torch)
        else:
            torch.set_rng_state(state)


def _gradient(column: Tensor) -> Tensor:
    return torch.zeros_like(column) if column.grad is None else column.grad
