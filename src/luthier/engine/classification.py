"""Learning to classify texts: what the loop trains, with the cross entropy of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from luthier.engine.device import Device
from luthier.models.classifier import SequenceClassifier
from luthier.models.tokens import Tokens


@dataclass(frozen=True)
class LabelledBatch:
    """Texts and their classes, int64 [n]."""

    tokens: Tokens
    labels: Tensor


class ClassificationLearner:
    """A classifier under the mean cross entropy of a batch.

    texts: the tokens of rows. labels: int64, one a row. With ``micro`` a batch runs in pieces
    whose losses weigh as many rows as they have, which is the gradient of the whole.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        texts: Callable[[np.ndarray], Tokens],
        labels: np.ndarray,
        device: Device,
    ) -> None:
        self.model, self.texts, self.device = model, texts, device
        self._labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))

    def modules(self) -> Iterable[nn.Module]:
        return (self.model,)

    def mode(self, training: bool) -> None:
        self.model.train(training)

    def fetch(self, rows: np.ndarray) -> LabelledBatch:
        return LabelledBatch(self.texts(rows), self._labels[torch.from_numpy(rows)])

    def size(self, batch: LabelledBatch) -> int:
        return len(batch.tokens)

    def backward(self, batch: LabelledBatch, micro: int | None) -> float:
        rows, total = len(batch.tokens), 0.0
        for start in range(0, rows, micro or rows):
            part = np.arange(start, min(start + (micro or rows), rows))
            with self.device.autocast():
                loss = self._loss(batch, part) * (len(part) / rows)
            self.device.backward(loss)
            total += loss.item()
        return total

    def loss(self, batch: LabelledBatch) -> float:
        with torch.no_grad(), self.device.autocast():
            return self._loss(batch, np.arange(len(batch.tokens))).item()

    def _loss(self, batch: LabelledBatch, part: np.ndarray) -> Tensor:
        logits = self.model.logits(batch.tokens.take(part)).float()
        labels = batch.labels[torch.from_numpy(part)].to(logits.device)
        return nn.functional.cross_entropy(logits, labels)
