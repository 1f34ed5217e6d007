"""Learning a task: what the loop trains when a model has a head of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import LabelSmoother

from luthier.engine.device import Device
from luthier.engine.features import Features
from luthier.engine.means import Means, Piece
from luthier.engine.memory import is_out_of_memory
from luthier.models.task import TaskModel

#: Collated batches.
Batch = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Step:
    """The rows of one step that go through this process. most: the most of any process.
    idle: they are only for company, where there are fewer rows than processes."""

    parts: Batch
    most: int
    idle: bool = False


class TaskLearner:
    """A model under its own loss: the mean over the step's targets, however it is cut.

    ``at_once`` features go through the model together; a step's loss and gradient are those of
    all its features together: tokens weigh alike in language models and taggers, rows in all
    else. smoothing: epsilon of the targets (Szegedy et al. 2016, section 7).
    """

    def __init__(
        self,
        model: TaskModel,
        features: Features,
        collate: Any,
        device: Device,
        *,
        at_once: int,
        smoothing: float = 0.0,
    ) -> None:
        self.model, self.features, self.device = model, features, device
        self.at_once = at_once
        self.means = Means()
        self.objective = nn.Module()  # a head's loss has no parameters of its own
        self._collate = collate
        self._smoother = LabelSmoother(epsilon=smoothing) if smoothing else None
        self._shifts = _is_causal(model.model)

    def modules(self) -> Iterable[nn.Module]:
        return (self.model,)

    def mode(self, training: bool) -> None:
        self.model.train(training)

    def fetch(self, rows: np.ndarray) -> Step:
        mine, most = self.means.share(rows), -(-len(rows) // self.means.processes)
        idle = not len(mine)
        return Step(self.collated(rows[:1] if idle else mine, self.at_once), most, idle)

    def collated(self, rows: np.ndarray, at_once: int) -> Batch:
        """Batches of features, in their order."""
        found = self.features.take(rows)
        return [
            dict(self._collate(found[start : start + at_once]))
            for start in range(0, len(found), at_once)
        ]

    def size(self, batch: Step) -> int:
        return batch.most

    def backward(self, batch: Step, micro: int | None) -> float:
        total, failure = 0.0, cast(Exception | None, None)
        try:
            for piece, share in self.means.pieces(self._pieces(batch, micro)):
                with self.means.autocast(self.device):
                    loss = self._loss(piece) * share
                self.means.backward(self.device, loss)
                total += loss.item()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # which would keep the failed graph alive
        try:
            return self.means.settle(self.model.parameters(), total, failure)
        finally:
            del failure  # likewise: what is raised would refer to this frame, and it to that

    def _pieces(self, batch: Step, micro: int | None) -> list[Piece]:
        """Each with its share of all targets of the step."""
        mine = 0 if batch.idle else sum(self.targets(part) for part in batch.parts)
        whole = max(1, self.means.total(mine))
        return [
            (piece, 0.0 if batch.idle else self.targets(piece) / whole)
            for part in batch.parts
            for piece in _pieces(part, micro)
        ]

    def loss(self, batch: Batch) -> float:
        """The mean over the targets of a step, without gradients."""
        weights = [self.targets(part) for part in batch]
        with torch.no_grad(), self.means.autocast(self.device):
            found = [self._loss(part).item() for part in batch]
        if not sum(weights):
            return 0.0
        return sum(w * f for w, f in zip(weights, found, strict=True)) / sum(weights)

    def targets(self, part: Mapping[str, Tensor]) -> int:
        """What the mean of a batch's loss is taken over."""
        labels = part.get("labels")
        if labels is None or labels.ndim < 2 or labels.is_floating_point():
            return _rows(part)
        return int((labels[:, 1:] if self._shifts else labels).ne(-100).sum())

    def _loss(self, part: Mapping[str, Tensor]) -> Tensor:
        features = self.device.move(dict(part))
        return self.loss_of(self.model(**features), features)

    def loss_of(self, output: Any, features: Mapping[str, Tensor]) -> Tensor:
        """The mean over the targets of what the model gave for features."""
        if not self.targets(features):
            return output.logits.sum() * 0.0  # type: ignore[no-any-return]
        if self._smoother is None:
            loss: Tensor = output.loss
            return loss
        labels = features["labels"]
        smoothed: Tensor = self._smoother(output, labels, shift_labels=self._shifts)
        return smoothed


def _is_causal(model: Any) -> bool:
    return "ForCausalLM" in type(model).__name__ or type(model).__name__.endswith("LMHeadModel")


def _rows(part: Mapping[str, Tensor]) -> int:
    return int(next(iter(part.values())).shape[0])


def _pieces(part: dict[str, Tensor], micro: int | None) -> Iterable[dict[str, Tensor]]:
    rows = _rows(part)
    if micro is None or micro >= rows:
        return [part]
    return [
        {name: value[start : start + micro] for name, value in part.items()}
        for start in range(0, rows, micro)
    ]
