"""One update: a learner that an updater and its memory go along with.

What is kept from one update to the next lies in ``luthier/update`` of the bundle: ``update.json``
(numbers, names, the history), ``update.safetensors`` (averages, Fisher information, scores that
were noted), ``memory.safetensors`` and ``validation.safetensors`` (raw items, stacked).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.batches.arithmetic import Rows, derive, permutation
from luthier.engine.control import Listener
from luthier.engine.items import Stacked
from luthier.engine.read import Place
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.state import flatten, unflatten
from luthier.errors import OutOfMemory
from luthier.evaluation.retention import retention
from luthier.store.bundle import Bundle
from luthier.updaters.memory import Herding, Memory
from luthier.updaters.updater import Seen, Updater

FOLDER = "update"

#: What a run notes when it begins: the generation that its own will follow.
PARENT = "output_generation"

#: Rows that go through the model at once when scores are noted at the end.
_AT_ONCE = 256


@dataclass
class Past:
    """What former updates left. seen: rows in all of them. chunks: the update that each
    remembered validation item came with. history: one entry an update."""

    updates: int = 0
    seen: int = 0
    classes: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    updater: str = ""
    memory: dict[str, Any] | None = None
    state: list[dict[str, Any]] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


def read_past(bundle: Path) -> Past:
    """The past in the folder ``luthier`` of a bundle; nothing where there is none."""
    folder = bundle / FOLDER
    if not (folder / "update.json").exists():
        return Past()
    saved = json.loads((folder / "update.json").read_text())
    tensors = load_file(folder / "update.safetensors")
    parts = unflatten(saved.pop("parts"), tensors)
    return Past(**saved, memory=parts["memory"], state=parts["state"])


def commit(url: str, bundle: Bundle, place: Place, tell: Listener) -> None:
    """Make a result the next generation of a state. Done again after a crash it changes nothing.

    Raises StateConflict where another update was committed meanwhile.
    """
    from luthier.store.states import commit_state

    parent = Resolved(place.folder / RESOLVED).once(PARENT, lambda: 0)
    generation = commit_state(bundle, url, parent=parent, meta={"spec_id": bundle.meta["spec_id"]})
    tell("log", {"level": "info", "message": f"{url}: generation {generation} is committed"})


class Validation(Protocol):
    """What an update is measured on. chunks: the update that each row came with (n,)."""

    @property
    def chunks(self) -> np.ndarray: ...

    def remember(self) -> Stacked:
        """All of its rows, raw."""


class UpdatingLearner:
    """A learner, and an updater that has its say in every step.

    The memory holds rows of ``learner.items``: those that are remembered from former updates
    come first there, then the new ones. index: the rows that the plan's numbers stand for.
    """

    def __init__(
        self,
        learner: Any,
        updater: Updater,
        memory: Memory,
        past: Past,
        *,
        name: str,
        validation: Validation,
        seed: int,
        replayed: int,
    ) -> None:
        self.inner, self.updater, self.memory, self.past = learner, updater, memory, past
        self.name, self.validation, self.seed, self.replayed = name, validation, seed, replayed
        self.steps, self.steps_per_epoch = 0, 0
        self._offered = 0
        self._right = self._counted = 0
        self._pending: dict[str, Any] | None = None
        self._last: tuple[Rows, Seen] | None = None
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
        loss = self.updater.loss(self.inner, new, self._replay())
        self.inner.device.backward(loss)
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
        slots = self.updater.extend(self.memory, self.replayed, self.steps)
        if not len(slots):
            return None
        seen: Seen = self.inner.see(self.inner.fetch(self.memory.rows[slots]))
        kept = {name: self.memory.noted(name, slots) for name in self.memory.kept}
        return Seen(seen.batch, seen.scores, seen.features, kept)

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
        pending = self._pending
        if pending is None:
            self.updater.start(self.inner, self.past.state)
            return
        weights = {n: t.clone() for n, t in self.model.state_dict().items()}
        self.updater.start(self.inner, self.past.state)
        self.model.load_state_dict(weights)  # the checkpoint has what ``start`` did to them
        self.steps, self._offered = pending["steps"], pending["offered"]
        self._right, self._counted = pending["right"], pending["counted"]
        self.memory.restore(pending["memory"])
        self.updater.restore(pending["updater"])

    def stepped(self) -> None:
        """After a step of the optimizer."""
        self.updater.stepped(self.model)
        if self.updater.offers == "online" and self._last and self.steps < self.steps_per_epoch:
            rows, seen = self._last
            self._offer(rows, seen)
        self.steps += 1
        self._last = None

    def end(self, model: nn.Module) -> bool:
        """After the last step, with the model that is kept. Returns whether it is as it was."""
        self.inner.model = model
        self.inner.mode(training=False)
        if self.updater.offers == "end" or self._offered < self.inner.new_rows:
            self._offer(self._all_new()[self._offered :])
        if isinstance(self.memory, Herding):
            self._herd()
        self.updater.end(self.inner)
        return not any(part.changes_model for part in self.updater.parts)

    def _new(self) -> Rows:
        first: int = self.inner.items.old
        return first + np.arange(self.inner.items.new, dtype=np.int64)

    def _all_new(self) -> Rows:
        first: int = self.inner.items.old
        order = permutation(derive(self.seed, "offer", self.past.updates), self.inner.items.new)
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
        with torch.no_grad():
            for start in range(0, len(slots), _AT_ONCE):
                part = slots[start : start + _AT_ONCE]
                self._note(part, self.inner.see(self.inner.fetch(self.memory.rows[part])))

    def _note(self, slots: Rows, seen: Seen) -> None:
        if "scores" in self.updater.notes:
            self.memory.note("scores", slots, seen.scores)
        if "features" in self.updater.notes:
            for i, layer in enumerate(seen.features):
                self.memory.note(f"features.{i}", slots, layer)

    def _herd(self) -> None:
        rows = np.concatenate([np.sort(self.memory.rows[self.memory.rows < self.inner.items.old]),
                               self._new()])  # fmt: skip
        labels = self.inner.labels_of(rows)
        with torch.no_grad():
            features = [
                self.inner.features(self.inner.fetch(rows[start : start + _AT_ONCE]))
                for start in range(0, len(rows), _AT_ONCE)
            ]
        self.memory.choose(rows, labels, torch.cat(features))  # type: ignore[attr-defined]

    def retention(self, before: Any, after: Any) -> dict[str, Any]:
        """What the update did to the validation rows of each update so far, by two evaluations
        of them; as JSON data."""
        chunks, history = self.validation.chunks, self.past.history
        if before is None or after is None:
            return retention(None, None, chunks, history).to_dict()
        score = "correct" if "correct" in after.per_row else "loss"
        found = retention(before.per_row[score], after.per_row[score], chunks, history, score)
        return found.to_dict()

    # --- crash and future ---------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For a checkpoint in the middle of an update."""
        return {
            "steps": self.steps,
            "offered": self._offered,
            "right": self._right,
            "counted": self._counted,
            "memory": self.memory.state(),
            "updater": self.updater.state(),
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
        parts = {"memory": memory, "state": self.updater.hand_on()}
        known = set(self.past.classes) | set(self.inner.classes())
        saved = {
            "updates": self.past.updates + 1,
            "seen": self.past.seen + self.inner.items.new,
            "classes": sorted(known),
            "chunks": self.validation.chunks.tolist(),
            "updater": self.name,
            "history": [*self.past.history, entry],
            "parts": flatten(parts, tensors, "update"),
        }
        remembered.save(place / "memory.safetensors")
        self.validation.remember().save(place / "validation.safetensors")
        save_file(tensors, place / "update.safetensors")
        (place / "update.json").write_text(json.dumps(saved))


def _detached(features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(layer.detach() for layer in features)


def _part(features: tuple[Tensor, ...], index: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer[index] for layer in features)
