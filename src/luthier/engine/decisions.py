"""Callbacks that decide: early stopping, and which model is the best so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem
from luthier.spec import (
    BestModelCheckpoint,
    CalculatorCallback,
    EarlyStopping,
    EvaluationCallback,
    JobSpec,
)

#: What can be monitored without an evaluation set.
ALWAYS = ("train_loss",)


def improves(value: float, best: float | None, *, mode: str, monitor: str, by: float = 0.0) -> bool:
    """Whether ``value`` is better than ``best``. Mode auto: a loss falls, all else rises."""
    if best is None:
        return True
    falls = mode == "min" or (mode == "auto" and "loss" in monitor)
    return value < best - by if falls else value > best + by


@dataclass
class Watch:
    """Follows one monitored value over the epochs for one callback."""

    callback: EarlyStopping | BestModelCheckpoint
    memory: dict[str, Any]

    def better(self, values: dict[str, float], epoch: int) -> bool:
        """Take in an epoch's values; whether they are the best so far."""
        monitor, mode = self.callback.monitor, self.callback.mode
        if monitor not in values:
            raise KeyError(monitor)
        stopping = isinstance(self.callback, EarlyStopping)
        by = self.callback.min_delta if isinstance(self.callback, EarlyStopping) else 0.0
        best = self.memory.get("best")
        if best is None and isinstance(self.callback, EarlyStopping):
            best = self.callback.baseline
        value = values[monitor]
        if improves(value, best, mode=mode, monitor=monitor, by=by):
            self.memory.update(best=value, epoch=epoch, waited=0)
            return True
        if stopping:
            self.memory["waited"] = self.memory.get("waited", 0) + 1
        return False

    @property
    def exhausted(self) -> bool:
        """Whether an early stopping has lost its patience."""
        if not isinstance(self.callback, EarlyStopping):
            return False
        waited: int = self.memory.get("waited", 0)
        return waited >= self.callback.patience


def problems(spec: JobSpec) -> list[Problem]:
    """Monitors that nothing in the job would ever measure, and callbacks given twice."""
    found = []
    loss_known = spec.data.eval is not None or spec.data.val_split > 0
    measuring = EvaluationCallback | CalculatorCallback
    evaluated = loss_known or any(isinstance(c, measuring) for c in spec.callbacks)
    kinds = [c.kind for c in spec.callbacks]
    for number, callback in enumerate(spec.callbacks):
        field = f"callbacks.{number}"
        if kinds.index(callback.kind) != number:
            found.append(Problem(field, f"a second {type(callback).__name__}"))
        if isinstance(callback, EvaluationCallback):
            found += [
                Problem(f"{field}.{word}", "chooses among the encoders of a model; a text has one")
                for word in ("model", "index_model")
                if getattr(callback, word) is not None
            ]
        if not isinstance(callback, EarlyStopping | BestModelCheckpoint):
            continue
        if callback.monitor in ALWAYS or spec.task == "program":  # its data says, in the run
            continue
        measured = loss_known if callback.monitor == "val_loss" else evaluated
        if not measured:
            found.append(
                Problem(
                    f"{field}.monitor",
                    f"nothing measures '{callback.monitor}': there is no evaluation data",
                    "give eval_data or val_split, or monitor 'train_loss'",
                )
            )
    return found
