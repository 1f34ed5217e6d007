"""What the loop trains: something that makes a loss of rows.

``Learner`` is the seam for other kinds of training (task heads, replay): the loop knows
nothing else. ``EmbeddingLearner`` puts a text model and an objective behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from luthier.engine.device import Device
from luthier.models.tokens import Tokens, by_budget
from luthier.objectives import Embedded

if TYPE_CHECKING:
    from luthier.data import Dataset
    from luthier.objectives import Objective

Rows = npt.NDArray[np.int64]

#: The tokens of a role's texts, by the numbers of their rows.
Texts = Callable[[str, np.ndarray], Tokens]


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
    """Rows as tokens: one column a text role, and what the loss compares to."""

    columns: tuple[Tokens, ...]
    labels: Tensor | None
    targets: Tensor | None

    def __len__(self) -> int:
        return len(self.columns[0])


class EmbeddingLearner:
    """A text model under an objective.

    With ``micro`` smaller than the batch the gradient is that of the whole batch all the same:
    embeddings are computed in chunks without a graph, the loss is taken over all of them, and
    each chunk is run again with the gradient that the loss gave its embeddings (Gao et al.
    2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup). In-batch
    negatives are never lost to accumulation.

    ``texts`` gives the tokens of rows. At first it makes them when a batch is fetched. ``reads``
    is what those rows are of: the data set, but for rankings, whose texts are a catalogue.
    """

    def __init__(self, model: Any, objective: Objective, dataset: Dataset, device: Device) -> None:
        self.model, self.objective, self.dataset, self.device = model, objective, dataset, device
        self.reads = dataset
        self.texts: Texts = lambda role, rows: model.tokens(dataset.texts(role, rows))
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

    @property
    def texts_a_row(self) -> float:
        """Texts of ``reads`` that a row has of each role, in the mean."""
        return 1.0

    def read_by(self, rows: Rows | None) -> Rows | None:
        """The rows of ``reads`` whose texts these rows of the data set have, sorted; None: all."""
        return rows

    def fetch(self, rows: np.ndarray) -> TextBatch:
        index = torch.from_numpy(rows)
        return TextBatch(
            tuple(self.texts(role, rows) for role in self.dataset.roles),
            None if self._labels is None else self._labels[index],
            None if self._targets is None else self._targets[index],
        )

    def size(self, batch: TextBatch) -> int:
        return len(batch)

    def backward(self, batch: TextBatch, micro: int | None) -> float:
        if micro is None or micro >= len(batch):
            with self.device.autocast():
                columns = self.embed_columns(batch, self.model)
            loss = self.compare(columns, batch)
            self.device.backward(loss)
            return loss.item()
        return self._backward_in_chunks(batch, micro)

    def loss(self, batch: TextBatch) -> float:
        with torch.no_grad(), self.device.autocast():
            return self.compare(self.embed_columns(batch, self.model), batch).item()

    def embed_columns(self, batch: TextBatch, model: Any) -> Sequence[Tensor]:
        """The vectors (n, d) of each role's texts by a model like the one that learns."""
        if model.execution == "padded":  # each role padded for itself, as others do
            return [_embedded(model, column) for column in batch.columns]
        sizes = [len(column) for column in batch.columns]
        return torch.split(_embedded(model, Tokens.join(batch.columns)), sizes)

    def compare(self, columns: Sequence[Tensor], batch: TextBatch) -> Tensor:
        """The objective of a batch, one number."""
        device = columns[0].device
        labels = None if batch.labels is None else batch.labels.to(device)
        targets = None if batch.targets is None else batch.targets.to(device)
        loss: Tensor = self.objective(Embedded(tuple(columns), labels, targets))
        return loss

    def _backward_in_chunks(self, batch: TextBatch, micro: int) -> float:
        tokens = Tokens.join(batch.columns)
        order = self._chunks(batch, micro)
        chunks = [tokens.take(texts) for texts in order]
        states, parts = [], []
        with torch.no_grad(), self.device.autocast():
            for chunk, texts in zip(chunks, order, strict=True):
                states.append(self._random_state())
                parts.append(_embedded(self._model_of(texts, batch), chunk))
        vectors = torch.empty(len(tokens), parts[0].shape[1], device=parts[0].device)
        places = [torch.from_numpy(texts).to(vectors.device) for texts in order]
        vectors[torch.cat(places)] = torch.cat(parts)
        vectors.requires_grad_()
        sizes = [len(column) for column in batch.columns]
        loss = self.compare(torch.split(vectors, sizes), batch)
        self.device.backward(loss)
        gradient = torch.zeros_like(vectors) if vectors.grad is None else vectors.grad
        after = self._random_state()
        for chunk, texts, place, state in zip(chunks, order, places, states, strict=True):
            self._set_random_state(state)  # the same dropout as in the first pass
            with self.device.autocast():
                embeddings = _embedded(self._model_of(texts, batch), chunk)
            # The gradient already bears the loss scale: accelerate must not scale it again.
            torch.autograd.backward([embeddings], [gradient[place]])
        self._set_random_state(after)
        return loss.item()

    def _model_of(self, texts: np.ndarray, batch: TextBatch) -> Any:
        """What embeds a chunk of the texts of all columns."""
        return self.model

    def _chunks(self, batch: TextBatch, micro: int) -> list[np.ndarray]:
        """The texts of all columns in chunks that need no more memory than ``micro`` of the
        longest texts: those of one role of so many rows, as with losses that chunk each role for
        itself. Twice as many at once are no faster, and their activations take twice the room."""
        rows, columns = len(batch), batch.columns
        if self.model.execution == "padded":
            texts = np.arange(rows * len(columns))
            starts = [c * rows + s for c in range(len(columns)) for s in range(0, rows, micro)]
            return np.split(texts, starts[1:])
        lengths = np.concatenate([column.lengths for column in columns])
        return by_budget(lengths, micro * int(lengths.max()))

    def _random_state(self) -> Tensor:
        if self.device.name.startswith("cuda"):
            return torch.cuda.get_rng_state(self.device.torch)
        return torch.get_rng_state()

    def _set_random_state(self, state: Tensor) -> None:
        if self.device.name.startswith("cuda"):
            torch.cuda.set_rng_state(state, self.device.torch)
        else:
            torch.set_rng_state(state)


def _embedded(model: Any, tokens: Tokens) -> Tensor:
    embeddings: Tensor = model.embed(tokens)
    return embeddings.float()
