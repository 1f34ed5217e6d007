"""Judges models with a task's head: its metrics on rows held out, and their loss."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.engine.control import Control, Listener, obeying
from luthier.engine.drifting import Looked, Side, last_layer
from luthier.engine.features import Features
from luthier.engine.setup import Setup
from luthier.engine.task_learner import TaskLearner
from luthier.engine.task_rows import TaskData
from luthier.evaluation.report import Report, versions
from luthier.evaluation.scored_task import TaskEvaluation, compare_scores
from luthier.evaluation.task_card import task_card
from luthier.tasks.examples import Examples
from luthier.tasks.remembered import RememberedRows
from luthier.tasks.scores import Scores, row_scores
from luthier.updaters.classes import features_into

#: Resamples where each is a pass over counts of classes; as many as for retrieval.
_RESAMPLES = 10_000


class TaskJudge:
    """Predicts for the rows held out, and scores what was predicted.

    Texts that have to be generated word by word are generated before and after training;
    during training only where a callback monitors a metric of them.
    """

    def __init__(
        self, setup: Setup, data: TaskData, tell: Listener, control: Control, prepare: Control
    ) -> None:
        """control: asked while measuring, by every process alike. prepare: by this one alone."""
        self.setup, self.task, self.tell = setup, data.task, tell
        self.examples, self.train = data.held_out, data.train
        self._probe = data.probe
        self.chunks = data.chunks
        self._obey = obeying(control)
        self._held_out = self._learner(obeying(prepare))
        monitors = {getattr(callback, "monitor", "") for callback in setup.spec.callbacks}
        measured = {metric.name for metric in data.task.metrics}
        if setup.update is not None:
            setup.update.validation = self
        self._quick = data.task.auto_class != "AutoModelForSeq2SeqLM" or bool(monitors & measured)

    def validation_loss(self) -> float | None:
        """Mean over the targets of the rows held out."""
        learner = self._held_out
        if learner is None:
            return None
        learner.mode(training=False)
        total, weights, size = 0.0, 0, self.setup.spec.training.per_device_eval_batch_size
        order = np.argsort(-learner.features.lengths, kind="stable")
        for start in range(0, len(order), size):
            self._obey()
            batch = learner.collated(order[start : start + size], size)
            weight = sum(learner.targets(part) for part in batch)
            total, weights = total + learner.loss(batch) * weight, weights + weight
        return total / max(1, weights)

    def evaluate(self, model: Any) -> TaskEvaluation | None:
        """The task's metrics of a model on the rows held out."""
        return None if self.examples is None else self._measured(model, self.examples)

    def _measured(self, model: Any, examples: Examples) -> TaskEvaluation:
        self.tell("stage", {"name": "evaluating"})
        started = time.perf_counter()
        predictions = self.task.predict(
            model.model,
            examples,
            model.processor,
            batch_size=self.setup.spec.training.per_device_eval_batch_size,
            obey=self._obey,
        )
        scores = self.task.score(predictions, examples)
        seconds = time.perf_counter() - started
        return TaskEvaluation(
            self.task.name, examples.rows.id, scores.metrics, dict(scores.per_row), seconds
        )

    def evaluate_quickly(self, model: Any) -> TaskEvaluation | None:
        return self.evaluate(model) if self._quick else None

    def tested(self, model: Any) -> list[dict[str, float]]:
        return []

    def read(self, record: dict[str, Any]) -> TaskEvaluation:
        return TaskEvaluation.from_dict(record)

    # --- what an update asks ------------------------------------------------------------------

    def remember(self) -> RememberedRows:
        """All rows held out, of this update and those before."""
        count = 0 if self.examples is None else len(self.examples)
        rows = np.arange(count, dtype=np.int64)
        return RememberedRows(self.examples, rows, self.task.of_images)

    def scores(self, found: TaskEvaluation) -> tuple[str, np.ndarray]:
        """Whether each row is right, where it can be; else a metric of each row, or its loss."""
        return row_scores(found.per_row, [metric.name for metric in self.task.metrics])

    def scored(self, model: Any, rows: np.ndarray) -> TaskEvaluation:
        """Of some of the rows held out."""
        assert self.examples is not None
        return self._measured(model, self.examples.take(rows))

    def probed(self, model: Any) -> TaskEvaluation | None:
        """Of the probe, if there is one."""
        return None if self._probe is None else self._measured(model, self._probe)

    def sides(self) -> tuple[Side | None, Side]:
        """Rows held out of former updates and of this one: both strangers to the model."""
        update = self.setup.update
        assert update is not None
        now = np.flatnonzero(self.chunks == update.past.updates)
        old = np.flatnonzero(self.chunks < update.past.updates)
        new = Side(self._look, now, "the new rows that are held out")
        if not len(old):
            return None, new
        return Side(self._look, old, "rows of former updates that were held out"), new

    def _look(self, model: Any, rows: np.ndarray) -> Looked:
        learner, examples = self._held_out, self.examples
        assert learner is not None
        assert examples is not None
        size, layer = self.setup.spec.training.per_device_eval_batch_size, last_layer(model)
        features = []
        model.train(False)
        with torch.no_grad():
            for start in range(0, len(rows), size):
                (part,) = learner.collated(rows[start : start + size], size)
                with features_into(layer) as caught:
                    model(**learner.device.move(dict(part)))
                features.append(_of_rows(caught[-1], part.get("attention_mask")).double().cpu())
        found = self.scores(self.scored(model, rows))[1]
        codes = examples.codes
        labels = None
        if codes is not None and codes.ndim == 1:
            labels = [examples.labels[code] for code in codes[rows]]
        return Looked(torch.cat(features).numpy(), found, labels)

    def report(
        self, before: TaskEvaluation | None, after: TaskEvaluation | None, told: dict[str, Any]
    ) -> Report:
        spec = self.setup.spec
        facts = {
            "rows": len(self.train),
            "columns": dict(self.train.columns),
            "classes": len(self.train.labels) or None,
        }
        told = told | {"data": facts, "environment": versions() | told["environment"]}
        name = Path(spec.model.name).name
        if before is None or after is None or self.examples is None:
            return Report(name, **told)
        best = next(m for m in (*self.task.metrics, self.task.best) if m.name in after.metrics)
        less = {m.name for m in (*self.task.metrics, self.task.best) if not m.greater_is_better}

        def resample(found: TaskEvaluation) -> Any:
            scores = Scores(found.metrics, found.per_row)
            return lambda counts: self.task.resampled(scores, counts)

        comparison = compare_scores(
            before,
            after,
            (resample(before), resample(after)),
            main=best.name,
            less_is_better=frozenset(less),
            n=len(self.examples),
            seed=spec.training.seed,
            resamples=_RESAMPLES,
        )
        measured = {
            "kind": self.task.name,
            "rows": len(self.examples),
            "less_is_better": sorted(less & set(after.metrics)),
            "notes": [],
            "set_id": after.set_id,
            "seconds": round(before.seconds + after.seconds, 1),
        }
        return Report(name, evaluation=measured, comparison=comparison, **told)

    def card(self, report: Report) -> str:
        return task_card(
            report,
            task=self.task.name,
            auto_class=self.task.auto_class,
            base_model=self.setup.spec.model.name,
        )

    def _learner(self, obey: Callable[[], None]) -> TaskLearner | None:
        if self.examples is None:
            return None
        learner = self.setup.plain
        features = Features(
            self.task,
            self.examples,
            self.setup.model.processor,
            self.setup.place.cache,
            obey,
        )
        collate = self.task.collator(self.setup.model.processor, self.setup.model.model)
        return TaskLearner(
            self.setup.model, features, collate, learner.device, at_once=learner.at_once
        )


def _of_rows(features: Tensor, mask: Tensor | None) -> Tensor:
    """Features of rows (n, d): of tokens (n, t, d) the mean over those that are no padding."""
    if features.dim() < 3:
        return features
    if mask is None or mask.shape != features.shape[:2]:
        return features.flatten(1, -2).mean(1)
    weight = mask.to(features)[:, :, None]
    return (features * weight).sum(1) / weight.sum(1).clamp(min=1)
