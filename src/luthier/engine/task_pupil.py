"""A model with a task's head as an updater sees it: what it says of a row is its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.batches.arithmetic import Rows
from luthier.engine.device import Device
from luthier.engine.features import Features
from luthier.engine.pupil import RowPupil
from luthier.engine.task_learner import Step, TaskLearner
from luthier.errors import DataError
from luthier.models.task import TaskModel
from luthier.tasks.examples import Examples
from luthier.tasks.remembered import RememberedRows
from luthier.updaters.classes import features_into, last_linear
from luthier.updaters.updater import Seen


@dataclass(frozen=True)
class SeenRows(Seen):
    """loss: the mean over the targets of the batch, as the head has it."""

    loss: Tensor | None = None


class TaskPupil(TaskLearner, RowPupil):
    """A model under its head's loss, the remembered rows before the new ones.

    Raises DataError where a row gives several features: a memory holds whole rows.
    """

    def __init__(
        self, model: TaskModel, features: Features, collate: Any, device: Device, *,
        examples: Examples, old: int, at_once: int, smoothing: float = 0.0, images: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, features, collate, device, at_once=at_once, smoothing=smoothing)
        if len(features) != len(examples):
            raise DataError(
                f"{len(examples):,} rows give {len(features):,} features",
                file=examples.rows.file,
                hint="an update remembers whole rows: give a max_seq_length that holds each",
            )
        self.counted(old, len(examples) - old)
        self.examples, self.smoothing, self._images = examples, smoothing, images
        single = examples.codes is not None and examples.codes.ndim == 1
        self._codes = examples.codes if single else None

    def fetch(self, rows: np.ndarray) -> Step:
        return Step(self.collated(rows, max(1, len(rows))), len(rows))

    # --- what an updater asks -----------------------------------------------------------------

    def see(self, batch: Step, model: nn.Module | None = None) -> SeenRows:
        features = self.device.move(dict(batch.parts[0]))
        through = self.model if model is None else model
        with self.means.autocast(self.device):
            output = through(**features)
            loss = self.loss_of(output, features)
        if "start_logits" in output:  # of the spans of question answering
            scores = torch.cat([output.start_logits, output.end_logits], dim=1)
        else:
            scores = output.logits
        return SeenRows(batch, scores.float(), counts=self._counts(features), loss=loss)

    def _counts(self, features: Mapping[str, Tensor]) -> Tensor | None:
        """Which tokens (n, t) a loss of tokens is taken over: those that foretell a target."""
        labels = features.get("labels")
        if labels is None or labels.ndim < 2 or labels.is_floating_point():
            return None
        counted = labels.ne(-100)
        return F.pad(counted[:, 1:], (0, 1)) if self._shifts else counted

    def losses(self, seen: Seen, allowed: Tensor | None = None) -> Tensor:
        assert isinstance(seen, SeenRows)
        labels = self.labels(seen)
        if labels is None:
            assert seen.loss is not None
            return seen.loss
        if allowed is not None:
            labels = torch.searchsorted(allowed, labels)
            chosen = seen.scores[:, allowed]
        else:
            chosen = seen.scores
        return F.cross_entropy(chosen, labels, reduction="none", label_smoothing=self.smoothing)

    def certainty(self, seen: Seen) -> Tensor:
        """The probability of what is true; of several labels the mean over the classes."""
        labels = self.labels(seen)
        if labels is not None:
            return seen.scores.softmax(1).gather(1, labels[:, None])[:, 0]
        truth = self._targets(seen.batch)["labels"].to(seen.scores)
        chance = seen.scores.sigmoid()
        return (truth * chance + (1 - truth) * (1 - chance)).mean(1)

    def labels(self, seen: Seen) -> Tensor | None:
        if self._codes is None:
            return None
        labels: Tensor = self._targets(seen.batch)["labels"].to(seen.scores.device)
        return labels

    def _targets(self, batch: Step) -> Mapping[str, Tensor]:
        return batch.parts[0]

    # --- what an update asks ------------------------------------------------------------------

    def labels_of(self, rows: Rows) -> Rows | None:
        found: Rows | None = None if self._codes is None else self._codes[rows]
        return found

    def bytes_of(self, rows: Rows) -> Rows:
        return self.remember(rows).bytes()

    def features_of(self, batch: Step) -> Tensor:
        """What goes into the last layer (n, d)."""
        with features_into(last_linear(self.model)) as caught:
            self.see(batch)
        return caught[-1]

    def remember(self, rows: Rows) -> RememberedRows:
        """These rows, raw."""
        return RememberedRows(self.examples, rows, self._images)
