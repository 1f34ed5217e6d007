"""Examinations during training: evaluations, early stopping, the best model, kept epochs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier.batches import make_plan
from luthier.engine.control import Cancelled, Interrupted
from luthier.engine.decisions import Watch
from luthier.engine.learner import EmbeddingLearner
from luthier.engine.loop import Moments
from luthier.engine.precision import encoding_in, encoding_precision
from luthier.engine.read import Data
from luthier.engine.setup import KEPT, Setup, checkpoints, pretrained, prune, train_form
from luthier.errors import Problem, SpecError
from luthier.evaluation.measure import Evaluation, evaluate
from luthier.evaluation.sets import EvaluationSet, evaluation_set
from luthier.objectives import needs
from luthier.spec import (
    BestModelCheckpoint,
    EarlyStopping,
    EvaluationCallback,
    TrainingCheckpoint,
)
from luthier.store import atomic


class Examiner(Moments):
    """Examines a model before, during and after training, and acts on what it sees."""

    def __init__(
        self,
        setup: Setup,
        data: Data,
        tell: Callable[[str, dict[str, Any]], None],
        control: Callable[[], str | None],
    ) -> None:
        self.setup, self.tell, self._control = setup, tell, control
        spec = setup.spec
        self.callback = next((c for c in spec.callbacks if isinstance(c, EvaluationCallback)), None)
        self.set: EvaluationSet | None = None
        if data.queries is not None:
            self.set = evaluation_set(
                data.queries,
                index=data.index,
                exclude_self=self.callback.exclude_self if self.callback else True,
            )
        self._held_out = self._held_out_learner(data)
        memory = setup.position.decisions
        self._watches = [
            Watch(c, memory.setdefault(c.kind, {}))
            for c in spec.callbacks
            if isinstance(c, EarlyStopping | BestModelCheckpoint)
        ]
        self._keep = next(
            (c.last_k_epochs for c in spec.callbacks if isinstance(c, TrainingCheckpoint)), 0
        )
        self.latest: Evaluation | None = None
        self._latest_at = -1

    # --- moments of the loop ---------------------------------------------------------------

    def step_ended(self) -> bool:
        """Evaluate, where evaluation goes by steps."""
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
            prune(self.setup.place.folder / "epochs", self._keep)
        return stop

    # --- before training -------------------------------------------------------------------

    def before(self) -> Evaluation | None:
        """The baseline: measured once a run, before the first step, and kept beside it."""
        if self.set is None:
            return None
        record = self.setup.place.folder / "before.json"
        if record.exists():
            return Evaluation.from_dict(json.loads(record.read_text()))
        model = self.setup.model
        if self.setup.position.done:  # the record was lost, and this model is trained already
            model = pretrained(self.setup)
        found = self.evaluate(model)
        assert found is not None
        atomic.write_bytes(record, json.dumps(found.to_dict()).encode())
        return found

    # --- what is measured ------------------------------------------------------------------

    def evaluate(self, model: Any) -> Evaluation | None:
        """Retrieval (or correlation) of a model on the evaluation set, if there is one."""
        if self.set is None:
            return None
        self.tell("stage", {"name": "evaluating"})
        model.execution = self.setup.model.execution  # all that is compared runs the same way
        place, plain = self.setup.place, model.execution == "padded"
        batch = self.setup.spec.training.per_device_eval_batch_size
        if self.callback:
            batch = self.callback.batch_size

        def encode(texts: Sequence[str]) -> np.ndarray:
            word = encoding_precision(model, texts, place, plain, self.tell)
            with encoding_in(model, word):
                vectors: np.ndarray = model.encode(
                    texts, batch_size=batch, normalize=False, progress=lambda _: self._obey()
                )
            return vectors

        if self.callback is None:
            return evaluate(encode, self.set)
        return evaluate(encode, self.set, k=self.callback.limit, distance=self.callback.distance)

    def _examine(self) -> bool:
        values = self._values()
        position = self.setup.position
        record = {"epoch": position.epoch, "step": position.done, **values}
        self.setup.history.evaluations.append(record)
        self.tell("evaluation", record)
        return self._decide(values)

    def _values(self) -> dict[str, float]:
        history = self.setup.history
        since = history.evaluations[-1]["step"] if history.evaluations else 0
        values = {"train_loss": float(np.mean(history.losses[since:]))}
        if self._held_out is not None:
            values["val_loss"] = self._validation_loss()
        self.latest = self.evaluate(self.setup.model)
        self._latest_at = self.setup.position.done
        if self.latest is not None:
            values |= self.latest.metrics
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
        prune(folder, KEPT)

    def best(self) -> Path | None:
        """The checkpoint of the best model, where one was asked for and found."""
        for watch in self._watches:
            if isinstance(watch.callback, BestModelCheckpoint) and "step" in watch.memory:
                return self.setup.place.folder / "best" / f"step-{watch.memory['step']:08d}"
        return None

    def _held_out_learner(self, data: Data) -> EmbeddingLearner | None:
        spec = self.setup.spec
        wants = needs(spec.objective)
        if data.held_out is None:
            return None
        if wants.fixed_classes:
            self._refuse_val_loss(
                f"{spec.objective.loss} has a centre for each training class, "
                "so its loss on other classes means nothing"
            )
            return None
        dataset = train_form(data.held_out, spec)
        learner = self.setup.learner
        return EmbeddingLearner(learner.model, learner.objective, dataset, learner.device)

    def _refuse_val_loss(self, reason: str) -> None:
        for callback in self.setup.spec.callbacks:
            if getattr(callback, "monitor", None) == "val_loss":
                hint = "monitor an evaluation metric such as 'ndcg_at_k'"
                raise SpecError([Problem("callbacks.monitor", reason, hint)])

    def _validation_loss(self) -> float:
        """Mean loss over the held-out rows, in batches of the training size."""
        learner, training = self._held_out, self.setup.spec.training
        assert learner is not None
        plan = make_plan(
            learner.dataset,
            batch_size=min(self.setup.batch_size, len(learner.dataset)),
            num_items_per_class=training.num_items_per_class,
            sampler=training.sampler,
            seed=training.seed,
            objective=needs(self.setup.spec.objective),
        )
        learner.mode(training=False)
        total, rows = 0.0, 0
        for step in range(plan.steps_per_epoch):
            self._obey()
            batch = learner.fetch(plan.rows(0, step))
            total += learner.loss(batch) * len(batch)
            rows += len(batch)
        return total / rows

    def _obey(self) -> None:
        wish = self._control()
        if wish == "cancel":
            raise Cancelled
        if wish == "interrupt":
            raise Interrupted  # the last checkpoint stands: evaluating again costs little


def save_checkpoint(setup: Setup) -> None:
    """Write a checkpoint of where the run is now, then drop those that it makes superfluous."""
    folder = checkpoints(setup.place)
    setup.bundle(folder / f"step-{setup.position.done:08d}")
    prune(folder, KEPT)
