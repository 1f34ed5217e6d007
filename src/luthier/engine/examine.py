"""Examinations during training: evaluations, early stopping, the best model, kept epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from luthier.engine.decisions import Watch
from luthier.engine.loop import Moments
from luthier.engine.oversight import Oversight, starting
from luthier.engine.setup import KEPT, Setup, checkpoints, prune
from luthier.errors import Problem, SpecError
from luthier.evaluation.report import Report
from luthier.spec import BestModelCheckpoint, EarlyStopping, TrainingCheckpoint
from luthier.store import atomic


class Measured(Protocol):
    """An evaluation of a model."""

    @property
    def metrics(self) -> dict[str, float]: ...

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""


class Judge(Protocol):
    """What is measured, and how; for vectors and for each task."""

    def validation_loss(self) -> float | None:
        """The training loss on rows that are held out; None where it means nothing."""

    def evaluate(self, model: Any) -> Measured | None:
        """Measure a model; None where there is nothing to measure on."""

    def evaluate_quickly(self, model: Any) -> Measured | None:
        """The same during training; None where it would take too long."""

    def tested(self, model: Any) -> list[dict[str, float]]:
        """What is measured once, at the end, on rows that are for nothing else."""

    def read(self, record: dict[str, Any]) -> Measured:
        """The inverse of ``to_dict``."""

    def report(self, before: Any, after: Any, facts: dict[str, Any]) -> Report:
        """What was gained."""

    def card(self, report: Report) -> str:
        """The model card, in Markdown."""


@runtime_checkable
class Calculates(Protocol):
    """A judge with calculators: they compare the present model with the starting one."""

    def begin(self, starting: Callable[[], Any]) -> None:
        """Once a run, before the first step: let them see the starting model."""

    def calculated(self, model: Any) -> dict[str, float]:
        """What they say of a model, by name."""


class Examiner(Moments):
    """Examines a model before, during and after training, and acts on what it sees."""

    def __init__(
        self,
        setup: Setup,
        judge: Judge,
        tell: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.setup, self.judge, self.tell = setup, judge, tell
        spec = setup.spec
        memory = setup.position.decisions
        self._watches = [
            Watch(c, memory.setdefault(c.kind, {}))
            for c in spec.callbacks
            if isinstance(c, EarlyStopping | BestModelCheckpoint)
        ]
        self._keep = next(
            (c.last_k_epochs for c in spec.callbacks if isinstance(c, TrainingCheckpoint)), 0
        )
        self.oversight: Oversight | None = None
        self.latest: Measured | None = None
        self._latest_at = -1

    # --- moments of the loop ---------------------------------------------------------------

    def step_began(self) -> None:
        """Let an updater turn to its next phase."""
        if self.setup.update is not None:
            self.setup.update.began()

    def step_ended(self) -> bool:
        """Let an updater have its say; evaluate, where evaluation goes by steps."""
        if self.setup.update is not None:
            self.setup.update.stepped()
        if self.oversight is not None:
            self.oversight.stepped()
        every = self.setup.spec.training.eval_steps
        return every is not None and self.setup.position.done % every == 0 and self._examine()

    def epoch_ended(self) -> bool:
        """Evaluate, where evaluation goes by epochs; keep the epoch where asked to."""
        stop = False
        if not self.setup.spec.training.eval_steps:
            stop = self._examine()
        if self._keep:
            done = self.setup.position.done
            self.setup.bundle(self.setup.place.folder / "epochs" / f"step-{done:08d}")
            if self.setup.means.writes:
                prune(self.setup.place.folder / "epochs", self._keep)
        return stop

    # --- before training -------------------------------------------------------------------

    def before(self) -> Any:
        """The baseline: measured once a run, before the first step, and kept beside it."""
        record = self.setup.place.folder / "before.json"
        known = record.exists()
        self.setup.means.barrier()  # or another process might see what the first writes below
        if known:
            return self.judge.read(json.loads(record.read_text()))
        found = self.judge.evaluate(starting(self.setup))
        if found is not None and self.setup.means.writes:
            atomic.write_bytes(record, json.dumps(found.to_dict()).encode())
        return found

    def begin(self) -> None:
        """Before the first step: let calculators see the model that training starts from."""
        if isinstance(self.judge, Calculates):
            self.judge.begin(lambda: starting(self.setup))

    # --- what is measured ------------------------------------------------------------------

    def _examine(self) -> bool:
        values = self._values()
        position = self.setup.position
        record = {"epoch": position.epoch, "step": position.done, **values}
        self.setup.history.evaluations.append(record)
        self.tell("evaluation", record)
        if self.setup.update is not None and self.setup.update.preliminary:
            return False  # it is not the model that is to be published
        return self._decide(values)

    def _values(self) -> dict[str, float]:
        history = self.setup.history
        since = history.evaluations[-1]["step"] if history.evaluations else 0
        values = {"train_loss": float(np.mean(history.losses[since:]))}
        if self.setup.update is not None:
            values |= self.setup.update.training_metrics()
        loss = self.judge.validation_loss()
        if loss is not None:
            values["val_loss"] = loss
        self.latest = self.judge.evaluate_quickly(self.setup.model)
        self._latest_at = self.setup.position.done
        if self.oversight is not None:
            self.oversight.evaluated(self.latest)
        if self.latest is not None:
            values |= self.latest.metrics
        if isinstance(self.judge, Calculates):
            more = self.judge.calculated(self.setup.model)
            values |= {name: value for name, value in more.items() if name not in values}
        return values

    @property
    def latest_is_current(self) -> bool:
        """Whether the last evaluation saw the weights as they are now."""
        return self._latest_at == self.setup.position.done

    def _decide(self, values: dict[str, float]) -> bool:
        for watch in self._watches:
            monitor = watch.callback.monitor
            if monitor not in values or not math.isfinite(values[monitor]):
                message = f"'{monitor}' is not measured; there are: {', '.join(values)}"
                raise SpecError([Problem("callbacks.monitor", message)])
            better = watch.better(values, self.setup.position.epoch)
            if better and isinstance(watch.callback, BestModelCheckpoint):
                self._save_best(watch)
        stopping = [w for w in self._watches if w.exhausted]
        for watch in stopping:
            message = f"stopping early: {watch.callback.monitor} no longer improves"
            self.tell("log", {"level": "info", "message": message})
        return bool(stopping)

    def _save_best(self, watch: Watch) -> None:
        done = self.setup.position.done
        watch.memory["step"] = done
        folder = self.setup.place.folder / "best"
        self.setup.bundle(folder / f"step-{done:08d}")
        if self.setup.means.writes:
            prune(folder, KEPT)

    def best(self) -> Path | None:
        """The checkpoint of the best model, where one was asked for and found."""
        for watch in self._watches:
            if isinstance(watch.callback, BestModelCheckpoint) and "step" in watch.memory:
                return self.setup.place.folder / "best" / f"step-{watch.memory['step']:08d}"
        return None


def save_checkpoint(setup: Setup) -> None:
    """Write a checkpoint of where the run is now, then drop those that it makes superfluous."""
    folder = checkpoints(setup.place)
    setup.bundle(folder / f"step-{setup.position.done:08d}")
    if setup.means.writes:
        prune(folder, KEPT)
