"""Judges the model of a configuration file: on its validation items, of all updates so far."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.engine.control import Control, Listener, obeying
from luthier.engine.drifting import Side, at_items
from luthier.engine.items import Items
from luthier.engine.program_setup import ProgramData
from luthier.engine.setup import Setup
from luthier.evaluation.card import inline, listed, measured
from luthier.evaluation.page import sentence
from luthier.evaluation.report import Report, versions
from luthier.evaluation.scored_task import TaskEvaluation, compare_scores

_RESAMPLES = 10_000
_LESS_IS_BETTER = frozenset({"val_loss"})


class ProgramJudge:
    """Metrics have the prefix ``val_``; those of the training rows ``train_``."""

    def __init__(self, setup: Setup, data: ProgramData, tell: Listener, control: Control) -> None:
        self.setup, self.data, self.tell = setup, data, tell
        self._obey = obeying(control)
        self._latest: tuple[int, TaskEvaluation] | None = None
        self._further = data.program.metrics()

    def validation_loss(self) -> float | None:
        found = self.evaluate(self.setup.model)
        if found is None:
            return None
        self._latest = self.setup.position.done, found
        return found.metrics["val_loss"]

    def evaluate_quickly(self, model: Any) -> TaskEvaluation | None:
        if self._latest is not None and self._latest[0] == self.setup.position.done:
            return self._latest[1]
        return self.evaluate(model)

    def evaluate(self, model: Any) -> TaskEvaluation | None:
        items = self.data.validation
        if items is None:
            return None
        return self._evaluation(items, model)

    def probed(self, model: Any) -> TaskEvaluation | None:
        """The same of the general probe of the configuration file; None without."""
        return None if self.data.probe is None else self._evaluation(self.data.probe, model)

    def scored(self, model: Any, rows: np.ndarray) -> TaskEvaluation:
        """Of some validation rows only, without further metrics."""
        assert self.data.validation is not None
        per_row = self._scored(self.data.validation, model, rows=rows)
        metrics = {f"val_{name}": value for name, value in _means(per_row).items()}
        return TaskEvaluation("program", f"{len(rows)} rows", metrics, per_row)

    def sides(self) -> tuple[Side | None, Side]:
        """Rows of former updates and new ones. Validation rows are strangers to the model, as new
        rows are; the memory is what it was trained on, and serves where there are no others."""
        assert self.data.new is not None

        def side(items: Items, rows: np.ndarray, name: str) -> Side:
            return Side(at_items(self.setup.plain, items), rows, name)

        new = side(self.data.new, np.arange(len(self.data.new)), "the new rows")
        items, chunks = self.data.validation, self.data.chunks
        earlier = np.flatnonzero(chunks < self.setup.learner.past.updates)
        if items is not None and len(earlier):
            return side(items, earlier, "validation rows of former updates"), new
        memory = self.data.remembered
        if memory is None:
            return None, new
        return side(memory, np.arange(len(memory)), "remembered rows"), new

    def _evaluation(self, items: Items, model: Any) -> TaskEvaluation:
        started = time.perf_counter()
        for metric in self._further.values():
            metric.reset()
        per_row = self._scored(items, model, list(self._further.values()))
        metrics = {f"val_{name}": value for name, value in _means(per_row).items()}
        metrics |= {f"val_{name}": float(m.compute()) for name, m in self._further.items()}
        seconds = time.perf_counter() - started
        return TaskEvaluation("program", f"{len(items)} items", metrics, per_row, seconds)

    def tested(self, model: Any) -> list[dict[str, float]]:
        """Loss and accuracy on the test rows of each chunk, also of chunks that are to come."""
        return [_means(self._scored(items, model)) for items in self.data.tests]

    def _scored(
        self,
        items: Items,
        model: Any,
        further: Sequence[Any] = (),
        *,
        rows: np.ndarray | None = None,
    ) -> dict[str, np.ndarray]:
        """The loss of each row, and whether it is right where there are classes."""
        learner = self.setup.learner.inner
        size = self.setup.spec.training.per_device_eval_batch_size
        wanted = np.arange(len(items), dtype=np.int64) if rows is None else rows
        model.train(False)
        losses, right = [], []
        with torch.no_grad():
            for start in range(0, len(wanted), size):
                self._obey()
                part = wanted[start : start + size]
                seen = learner.see(items.batch(part), model)
                losses.append(learner.losses(seen).double().cpu().expand(len(part)))
                labels = learner.labels(seen)
                if labels is not None:
                    right.append((seen.scores.argmax(1) == labels).double().cpu())
                for metric in further:
                    metric.update(seen.scores, seen.batch[1])
        found = {"loss": torch.cat(losses).numpy()}
        return found | ({"correct": torch.cat(right).numpy()} if right else {})

    def read(self, record: dict[str, Any]) -> TaskEvaluation:
        return TaskEvaluation.from_dict(record)

    def report(
        self, before: TaskEvaluation | None, after: TaskEvaluation | None, told: dict[str, Any]
    ) -> Report:
        spec = self.setup.spec
        name = Path(spec.program.config_file or spec.model.name).stem
        learner = self.setup.learner
        facts = {
            "new rows": learner.inner.new,
            "remembered rows": learner.inner.old,
            "update": learner.past.updates + 1,
            "updater": spec.update.updater or "FineTuning",
        }
        told = told | {"data": facts, "environment": versions() | told["environment"]}
        if before is None or after is None:
            return Report(name, **told)
        of_rows = {"val_loss": "loss", "val_accuracy": "correct"}
        both = [_only(found, set(of_rows)) for found in (before, after)]

        def resample(found: TaskEvaluation) -> Any:
            def metrics(counts: np.ndarray) -> dict[str, np.ndarray]:
                total = counts.sum(1)
                return {m: counts @ found.per_row[of_rows[m]] / total for m in found.metrics}

            return metrics

        main = "val_accuracy" if "val_accuracy" in after.metrics else "val_loss"
        comparison = compare_scores(
            both[0], both[1], (resample(both[0]), resample(both[1])),
            main=main, less_is_better=_LESS_IS_BETTER, n=len(after.per_row["loss"]),
            seed=spec.training.seed, resamples=_RESAMPLES,
        )  # fmt: skip
        evaluation = {
            "kind": "program",
            "rows": len(after.per_row["loss"]),
            "less_is_better": sorted(_LESS_IS_BETTER & set(after.metrics)),
            "notes": [],
            "set_id": after.set_id,
            "seconds": round(before.seconds + after.seconds, 1),
        }
        return Report(name, evaluation=evaluation, comparison=comparison, **told)

    def card(self, report: Report) -> str:
        parts = [
            "---\nlibrary_name: luthier\ntags: [luthier, continual-learning]\n---",
            f"# {inline(report.name)}",
            f"The model of {inline(report.name)}.py after an update. {sentence(report)}",
            "## Use\n\nThe weights are in `model.safetensors`: the state dict of the module that "
            "`model_fn` makes.",
            measured(report),
            listed("Training", report.run),
            listed("Data", report.data),
            listed("Lineage", report.lineage),
            listed("Environment", report.environment),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def _means(per_row: dict[str, np.ndarray]) -> dict[str, float]:
    names = {"loss": "loss", "correct": "accuracy"}
    return {names[name]: float(values.mean()) for name, values in per_row.items()}


def _only(found: TaskEvaluation, names: set[str]) -> TaskEvaluation:
    metrics = {name: value for name, value in found.metrics.items() if name in names}
    return TaskEvaluation(found.task, found.set_id, metrics, found.per_row, found.seconds)
