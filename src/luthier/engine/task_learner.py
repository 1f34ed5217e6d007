"""Learning a task: what the loop trains when a model has a head of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.trainer_pt_utils import LabelSmoother

from luthier.engine.device import Device
from luthier.engine.features import Features
from luthier.models.task import TaskModel

#: Collated batches of one step.
Batch = list[dict[str, Tensor]]


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
        self.objective = nn.Module()  # a head's loss has no parameters of its own
        self._collate = collate
        self._smoother = LabelSmoother(epsilon=smoothing) if smoothing else None
        self._shifts = _is_causal(model.model)

    def modules(self) -> Iterable[nn.Module]:
        return (self.model,)

    def mode(self, training: bool) -> None:
        self.model.train(training)

    def fetch(self, rows: np.ndarray) -> Batch:
        return self.collated(rows, self.at_once)

    def collated(self, rows: np.ndarray, at_once: int) -> Batch:
        """Batches of features, in their order."""
        found = self.features.take(rows)
        return [
            dict(self._collate(found[start : start + at_once]))
            for start in range(0, len(found), at_once)
        ]

    def size(self, batch: Batch) -> int:
        return sum(_rows(part) for part in batch)

    def backward(self, batch: Batch, micro: int | None) -> float:
        whole, total = sum(self.targets(part) for part in batch), 0.0
        for piece in (piece for part in batch for piece in _pieces(part, micro)):
            with self.device.autocast():
                loss = self._loss(piece) * (self.targets(piece) / max(1, whole))
            self.device.backward(loss)
            total += loss.item()
        return total

    def loss(self, batch: Batch) -> float:
        """The mean over the targets of a step, without gradients."""
        weights = [self.targets(part) for part in batch]
        with torch.no_grad(), self.device.autocast():
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
        if not self.targets(part):
            return self.model.model(**features).logits.sum() * 0.0  # type: ignore[no-any-return]
        if self._smoother is None:
            loss: Tensor = self.model.model(**features).loss
            return loss
        output = self.model.model(**features)
        smoothed: Tensor = self._smoother(output, features["labels"], shift_labels=self._shifts)
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
