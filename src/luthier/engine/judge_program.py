"""Judges the model of a configuration file: on its validation items, of all updates so far."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.engine.control import Control, Listener, obeying
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
        started = time.perf_counter()
        learner = self.setup.learner.inner
        model.train(False)
        losses, right = [], []
        size = self.setup.spec.training.per_device_eval_batch_size
        for metric in self._further.values():
            metric.reset()
        with torch.no_grad():
            for start in range(0, len(items), size):
                self._obey()
                rows = np.arange(start, min(start + size, len(items)), dtype=np.int64)
                seen = learner.see(items.batch(rows), model)
                losses.append(learner.losses(seen).double().cpu().expand(len(rows)))
                labels = learner.labels(seen)
                if labels is not None:
                    right.append((seen.scores.argmax(1) == labels).cpu())
                for metric in self._further.values():
                    metric.update(seen.scores, seen.batch[1])
        per_row = {"loss": torch.cat(losses).numpy()}
        metrics = {"val_loss": float(per_row["loss"].mean())}
        if right:
            per_row["correct"] = torch.cat(right).numpy().astype(np.float64)
            metrics["val_accuracy"] = float(per_row["correct"].mean())
        metrics |= {f"val_{name}": float(m.compute()) for name, m in self._further.items()}
        seconds = time.perf_counter() - started
        return TaskEvaluation("program", f"{len(items)} items", metrics, per_row, seconds)

    def read(self, record: dict[str, Any]) -> TaskEvaluation:
        return TaskEvaluation.from_dict(record)

    def report(
        self, before: TaskEvaluation | None, after: TaskEvaluation | None, told: dict[str, Any]
    ) -> Report:
        spec = self.setup.spec
        name = Path(spec.program.config_file or spec.model.name).stem
        learner = self.setup.learner
        facts = {
            "new rows": learner.inner.items.new,
            "remembered rows": learner.inner.items.old,
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


def _only(found: TaskEvaluation, names: set[str]) -> TaskEvaluation:
    metrics = {name: value for name, value in found.metrics.items() if name in names}
    return TaskEvaluation(found.task, found.set_id, metrics, found.per_row, found.seconds)
