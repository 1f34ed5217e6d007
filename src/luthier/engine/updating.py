"""One update: a learner that an updater and its memory go along with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from luthier.batches.arithmetic import Rows, derive, permutation
from luthier.engine.choosing import Scored, choose
from luthier.engine.past import FOLDER, Past, Remembered
from luthier.engine.state import flatten
from luthier.errors import OutOfMemory
from luthier.evaluation.retention import retention
from luthier.updaters.memory import Herding, Memory
from luthier.updaters.merging import Merge
from luthier.updaters.updater import Seen, Updater

#: Rows that go through the model at once when scores are noted at the end.
_AT_ONCE = 256


class Validation(Protocol):
    """What an update is measured on. chunks: the update that each row came with (n,)."""

    @property
    def chunks(self) -> np.ndarray: ...

    def remember(self) -> Remembered:
        """All of it, raw."""

    def scores(self, found: Any) -> tuple[str, np.ndarray]:
        """By an evaluation of it the score of each row (n,), and what it is called: "correct",
        "loss" (less is better), or a metric of which more is better."""


class UpdatingLearner:
    """A learner, and an updater that has its say in every step.

    The memory holds rows of the learner: ``old`` ones that are remembered from former updates
    come first there, then the ``new`` ones. index: the rows that the plan's numbers stand for.
    merge: what is made of the weights at the end; merged: what it found, as JSON. most_bytes: of
    the remembered rows. phase_steps: steps of a phase, where there are several; turn: what then
    gives the learner a new model.
    """

    def __init__(
        self,
        learner: Any,
        updater: Updater,
        memory: Memory,
        past: Past,
        *,
        name: str,
        validation: Validation | None,
        seed: int,
        replayed: int,
        merge: Merge | None = None,
        most_bytes: int | None = None,
    ) -> None:
        self.most_bytes = most_bytes
        self.merge, self.merged = merge, dict[str, Any]()
        self.origin: Path | None = None  # the bundle that the update starts from
        self.curve: list[dict[str, Any]] = []  # what earlier chunks score on the way
        self.phase_steps = 0
        self.turn: Callable[[int], None] | None = None
        self.inner, self.updater, self.memory, self.past = learner, updater, memory, past
        self.name, self.seed, self.replayed = name, seed, replayed
        self.validation: Any = validation  # None: until there is a judge
        self.steps, self.steps_per_epoch = 0, 0
        self._offered = 0
        self._right = self._counted = 0
        self._pending: dict[str, Any] | None = None
        self._last: tuple[Rows, Seen] | None = None
        self._drawn: Rows = np.empty(0, dtype=np.int64)
        self.index: Rows = np.empty(0, dtype=np.int64)
        learner.memory, learner.updates, learner.old_rows = memory, past.updates, past.seen
        if past.classes:
            learner.known = torch.tensor(past.classes)

    # --- what the loop asks -------------------------------------------------------------------

    @property
    def model(self) -> Any:
        return self.inner.model

    @property
    def objective(self) -> nn.Module:
        objective: nn.Module = self.inner.objective
        return objective

    @property
    def device(self) -> Any:
        return self.inner.device

    def modules(self) -> Iterable[nn.Module]:
        found: Iterable[nn.Module] = self.inner.modules()
        return found

    def mode(self, training: bool) -> None:
        self.inner.mode(training)

    def fetch(self, rows: np.ndarray) -> Any:
        own = self.index[rows]
        return own, self.inner.fetch(own)

    def size(self, batch: Any) -> int:
        return len(batch[0])

    def loss(self, batch: Any) -> float:
        return float(self.inner.loss(batch[1]))

    def backward(self, batch: Any, micro: int | None) -> float:
        if micro is not None:
            raise OutOfMemory(
                "a step of an update does not fit in memory",
                hint="give a smaller batch_size, or fewer remembered rows (batch_memory_frac)",
            )
        rows, new_rows = batch
        new = self.inner.see(new_rows)
        replayed = self._replay()
        loss = self.updater.loss(self.inner, new, replayed)
        self.inner.device.backward(loss)
        if replayed is not None and self.updater.ema_memory_update_gamma < 1:
            self._smooth(replayed)
        self._count(new)
        self._last = rows, Seen(new.batch, new.scores.detach(), _detached(new.features))
        return loss.item()

    def _count(self, new: Seen) -> None:
        labels = self.inner.labels(new)
        if labels is not None:
            self._right += int((new.scores.argmax(1) == labels).sum())
            self._counted += len(labels)

    def training_metrics(self) -> dict[str, float]:
        """Of the new rows that were trained on since this was asked last."""
        if not self._counted:
            return {}
        found = {"train_accuracy": self._right / self._counted}
        self._right = self._counted = 0
        return found

    def _replay(self) -> Seen | None:
        if self.updater.learns != "new" or not self.replayed:
            return None
        slots = self.updater.extend(self.memory, self.replayed, self.steps, self.inner.per_class)
        if not len(slots):
            return None
        seen: Seen = self.inner.see(self.inner.fetch(self.memory.rows[slots]))
        kept = {name: self.memory.noted(name, slots) for name in self.memory.kept}
        self._drawn = slots
        return replace(seen, kept=kept)

    def _smooth(self, seen: Seen) -> None:
        """What was noted of rows moves towards what the model says of them now."""
        gamma = self.updater.ema_memory_update_gamma
        now = {"scores": seen.scores} | {f"features.{i}": f for i, f in enumerate(seen.features)}
        for name in self.memory.kept.keys() & now.keys():
            noted = seen.kept[name]
            told = now[name].detach().to(noted)
            self.memory.note(name, self._drawn, gamma * noted + (1 - gamma) * told)

    # --- the five points ----------------------------------------------------------------------

    def lay_out(self) -> None:
        """Which rows are trained on; before there is a plan, and without the model."""
        if self.past.memory is not None:
            self.memory.restore(self.past.memory)
        if self.updater.offers == "start":
            self._offer(self._all_new())
        if self.updater.learns == "memory":
            self.index = np.sort(self.memory.rows)
        elif self.updater.learns == "both":
            self.index = np.concatenate([np.sort(self.memory.rows), self._new()])
        else:
            self.index = self._new()

    def start(self) -> None:
        """Before the first step of an update, or of an attempt at it."""
        pending, same = self._pending, self.past.updater == self.name
        past = self.past.state if same else None  # what another updater left means nothing to it
        if pending is None:
            self.updater.start(self.inner, past)
            self._note_what_is_missing()
            if self.merge is not None:
                kind, left = self.past.merge.get("kind"), self.past.merge.get("left")
                weights = self.updater.weights(self.model)
                self.merge.start(weights, left if kind == self.merge.name else None)
            return
        weights = {n: t.clone() for n, t in self.model.state_dict().items()}
        self.updater.start(self.inner, past)
        self.model.load_state_dict(weights)  # the checkpoint has what ``start`` did to them
        self.steps, self._offered = pending["steps"], pending["offered"]
        self._right, self._counted = pending["right"], pending["counted"]
        self.curve = pending["curve"]
        self.memory.restore(pending["memory"])
        self.updater.restore(pending["updater"])
        if self.merge is not None:
            self.merge.restore(pending["merge"])

    @property
    def preliminary(self) -> bool:
        """Whether what is trained now is not yet the model that the update is for."""
        return 0 < self.steps <= self.phase_steps * (self.updater.phases - 1)

    def began(self) -> None:
        """Before a step: between two phases the learner gets a new model."""
        per = self.phase_steps
        if self.turn is None or not per or not self.steps or self.steps % per:
            return
        if self.steps // per < self.updater.phases:
            self.turn(self.steps // per)
            if self.merge is not None:
                self.merge.start(self.updater.weights(self.model), None)

    def stepped(self) -> None:
        """After a step of the optimizer."""
        self.updater.stepped(self.model)
        if self.merge is not None:
            epoch_ends = (self.steps + 1) % self.steps_per_epoch == 0
            if self.merge.every == 1 or (self.merge.every == "epoch" and epoch_ends):
                self.merge.stepped(self.updater.weights(self.model))
        if self.updater.offers == "online" and self._last and self.steps < self.steps_per_epoch:
            rows, seen = self._last
            self._offer(rows, seen)
        self.steps += 1
        self._last = None

    def end(self, model: nn.Module, measure: Callable[[Any], Any] = lambda _: None) -> bool:
        """After the last step, with the model that is kept. Returns whether it is as it was.

        measure: evaluates a model on the validation rows of all updates so far.
        """
        self.inner.model = model
        self.inner.mode(training=False)
        self.updater.detach(model)
        self.merged = choose(self.updater, self.merge, Scored(model, measure, self.validation))
        if self.updater.offers == "end" or self._offered < self.inner.new_rows:
            self._offer(self._all_new()[self._offered :])
        if isinstance(self.memory, Herding):
            self._herd()
        if self.most_bytes is not None:
            self.memory.within(self.most_bytes, self.inner.bytes_of(self.memory.rows))
        if self.updater.renotes:
            self._note_slots(np.arange(len(self.memory), dtype=np.int64))
        self.updater.end(self.inner)
        return not self.merged and not any(part.changes_model for part in self.updater.parts)

    def _new(self) -> Rows:
        first: int = self.inner.old
        return first + np.arange(self.inner.new, dtype=np.int64)

    def _all_new(self) -> Rows:
        first: int = self.inner.old
        order = permutation(derive(self.seed, "offer", self.past.updates), self.inner.new)
        return first + order.astype(np.int64)

    def _offer(self, rows: Rows, seen: Seen | None = None) -> None:
        if not self.memory.size or not len(rows):
            return
        labels = self.inner.labels_of(rows)
        slots, places = self.memory.offer(rows, labels)
        self._offered += len(rows)
        if not self.updater.notes or not len(slots):
            return
        if seen is not None:
            index = torch.from_numpy(places)
            self._note(slots, Seen(None, seen.scores[index], _part(seen.features, index)))
            return
        self._note_slots(slots)

    def _note_slots(self, slots: Rows) -> None:
        with torch.no_grad():
            for start in range(0, len(slots), _AT_ONCE):
                part = slots[start : start + _AT_ONCE]
                self._note(part, self.inner.see(self.inner.fetch(self.memory.rows[part])))

    def _note_what_is_missing(self) -> None:
        """Of rows that were admitted by an updater that noted less, or nothing: what the model
        says of them before it learns on. What this updater does not keep up to date is dropped."""
        wanted = self.updater.notes
        kept = {n: v for n, v in self.memory.kept.items() if n.partition(".")[0] in wanted}
        self.memory.kept, held = kept, {n.partition(".")[0] for n in kept}
        if len(self.memory) and wanted - held:
            self.inner.mode(training=False)
            self._note_slots(np.arange(len(self.memory), dtype=np.int64))

    def _note(self, slots: Rows, seen: Seen) -> None:
        if "scores" in self.updater.notes:
            self.memory.note("scores", slots, seen.scores)
        if "features" in self.updater.notes:
            for i, layer in enumerate(seen.features):
                self.memory.note(f"features.{i}", slots, layer)

    def _herd(self) -> None:
        rows = np.concatenate([np.sort(self.memory.rows[self.memory.rows < self.inner.old]),
                               self._new()])  # fmt: skip
        labels = self.inner.labels_of(rows)
        with torch.no_grad():
            features = [
                self.inner.features_of(self.inner.fetch(rows[start : start + _AT_ONCE]))
                for start in range(0, len(rows), _AT_ONCE)
            ]
        self.memory.choose(rows, labels, torch.cat(features))  # type: ignore[attr-defined]

    def retention(self, before: Any, after: Any) -> dict[str, Any]:
        """What the update did to the validation rows of each update so far, by two evaluations
        of them; as JSON data."""
        chunks, history = self.validation.chunks, self.past.history
        if before is None or after is None:
            return retention(None, None, chunks, history).to_dict()
        (score, now), (_, then) = self.validation.scores(after), self.validation.scores(before)
        return retention(then, now, chunks, history, score).to_dict()

    # --- crash and future ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a checkpoint in the middle of an update."""
        return {
            "steps": self.steps,
            "offered": self._offered,
            "right": self._right,
            "counted": self._counted,
            "curve": self.curve,
            "memory": self.memory.state(),
            "updater": self.updater.state(),
            "merge": self.merge.state() if self.merge is not None else {},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``, which ``start`` will do."""
        self._pending = state

    def save(self, folder: Path, entry: dict[str, Any]) -> None:
        """What the next update needs, into ``folder/update``. To be called after ``end``.

        entry: of this update, for the history.
        """
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        remembered = self.inner.remember(self.memory.rows)
        memory = self.memory.state()
        memory["rows"] = torch.arange(len(self.memory))
        tensors: dict[str, Tensor] = {}
        parts = {"memory": memory, "state": self.updater.hand_on(), "merge": {}}
        if self.merge is not None:
            parts["merge"] = {"kind": self.merge.name, "left": self.merge.hand_on()}
        known = set(self.past.classes) | set(self.inner.classes())
        saved = {
            "updates": self.past.updates + 1,
            "seen": self.past.seen + self.inner.new,
            "classes": sorted(known),
            "chunks": self.validation.chunks.tolist(),
            "updater": self.name,
            "history": [*self.past.history, entry],
            "parts": flatten(parts, tensors, "update"),
        }
        remembered.save(place, "memory")
        self.validation.remember().save(place, "validation")
        save_file(tensors, place / "update.safetensors")
        (place / "update.json").write_text(json.dumps(saved))


def _detached(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(layer.detach() for layer in features)


def _part(features: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer[index] for layer in features)
