"""What an updater is: parts that have their say while a model learns new rows.

    attach    before there is an optimizer: what is put into the model, what does not train
    start     before the first step: copies of the model, projections, what was forgotten to ask
    extend    which rows of the memory go along with a batch of new ones
    terms     what is added to the loss of the new rows, each with its weight
    stepped   after each step of the optimizer: averages, shrinking
    turned    between the phases of an update that has several
    detach    after the last step: what was put into the model becomes plain weights
    end       after that, and after the memory was offered the new rows

An updater knows no optimizer, no data and no task. What it learns with is a ``Pupil``, whose
scores are the logits of a classifier or the vectors of an encoder alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from luthier.updaters.memory import Memory, Rows

#: When new rows are offered to the memory: each with its first step, all before the first step,
#: or all after the last.
Offers = Literal["online", "start", "end"]
#: What is trained on: the new rows (with rows of the memory beside), the memory alone, or both
#: as if they were one set.
Learns = Literal["new", "memory", "both"]
#: Whether each update trains weights, or only the first, so that features stay what they are.
Tunes = Literal["always", "first", "never"]
#: Weights by the names of a state dict.
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """Rows that went through a model.

    batch: what the pupil was given. scores (n, d): logits, or vectors. features: what inner
    layers gave, each (n, …), where a part asks for them. kept: what the memory noted of these
    rows when they were admitted, by name, each (n, …).
    """

    batch: Any
    scores: Tensor
    features: tuple[Tensor, ...] = ()
    kept: dict[str, Tensor] = field(default_factory=dict)
    counts: Tensor | None = None


class Pupil(Protocol):
    """What a part asks of what is trained.

    updates: how many updates came before. new_rows, old_rows: how many rows there are now, and
    were in all updates before. known: the classes (c,) of all rows before this
    update, for classifiers; None for all else.
    """

    model: nn.Module
    updates: int
    new_rows: int
    old_rows: int
    known: Tensor | None

    def see(self, batch: Any, model: nn.Module | None = None) -> Seen:
        """Send rows through the model, or through a copy of it."""

    def losses(self, seen: Seen, allowed: Tensor | None = None) -> Tensor:
        """The task's loss: of each row (n,), or one number where it is made of all of them.
        allowed: classes (c,) among which to choose, for classifiers."""

    def certainty(self, seen: Seen) -> Tensor:
        """How sure the scores are of what is true, for each row (n,)."""

    def labels(self, seen: Seen) -> Tensor | None:
        """The class of each row (n,), where rows have one."""

    def rows(self, limit: int, at_once: int) -> Iterable[Any]:
        """Batches of so many of the new rows, the same ones each time."""

    def remembered(self, at_once: int) -> Iterable[Any]:
        """Batches of all rows that the memory holds, in the order of its slots."""


@dataclass(frozen=True)
class Term:
    """One summand of a loss."""

    name: str
    weight: float
    value: Tensor


class Part:
    """One idea. Subclasses override the points they need.

    notes: what the memory must keep beside a row for ``terms``: "scores", "features".
    changes_model: whether ``detach`` or ``end`` changes the weights.
    """

    notes: ClassVar[tuple[str, ...]] = ()
    changes_model: ClassVar[bool] = False

    def attach(self, model: nn.Module, updates: int) -> None:
        """Before the optimizer is built, and again for each model that a checkpoint is loaded
        into: what is put into the model, and what does not train. updates: how many came before.
        Draws from generators of its own."""

    def detach(self, model: nn.Module) -> None:
        """The inverse of ``attach`` once the model is trained: plain weights that say the same."""

    def plain(self, model: nn.Module, weights: Weights) -> Weights:
        """The weights that ``detach`` would leave, of an attached model and its own weights."""
        return weights

    def candidates(self, model: nn.Module) -> dict[str, Weights]:
        """Whole state dicts by name of which one is published, after ``detach``: the first where
        nothing can be measured, else the best. Empty: the model as it is."""
        return {}

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        """Before the first step, and once more when an attempt goes on from a checkpoint: what
        it does to the weights is undone then, for the checkpoint has it. past: what ``hand_on``
        gave at the end of the update before, None in the first."""

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        """Summands for one step. replayed: None while the memory is empty."""
        return ()

    def stepped(self, model: nn.Module) -> None:
        """After the optimizer has stepped."""

    def turned(self, pupil: Pupil, phase: int) -> None:
        """A phase (from 1) begins: the pupil's model is still what the one before made of it."""

    def end(self, pupil: Pupil) -> None:
        """After the last step."""

    def state(self) -> dict[str, Any]:
        """What must survive a crash in the middle of an update."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``, after ``start``."""

    def hand_on(self) -> dict[str, Any]:
        """What the next update needs; after ``end``."""
        return {}


def among(scores: Tensor, classes: Tensor | None) -> Tensor:
    """Scores (n, c) that leave only these classes to choose from; all where None.

    >>> among(torch.zeros(1, 3), torch.tensor([0, 2])).tolist()
    [[0.0, -inf, 0.0]]
    """
    if classes is None:
        return scores
    closed = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
    closed[classes] = False
    return scores.masked_fill(closed, -torch.inf)


@dataclass
class Updater:
    """Parts, and how they are put together.

    loss = [loss_weight · loss(new) + Σ weight · term] / Σ weights, or without the division
    where ``loss_normalization`` is off.

    learns, offers: see above. fresh: train a new model, not the one there is. asymmetric: the
    loss of new rows chooses among the classes of their own batch only (ER-ACE, Caccia et al.
    2022, New Insights on Reducing Abrupt Representation Change, equation 3), so that what is
    new does not push away what is old. It needs rows of the update in the memory while it goes
    on (``offers="online"``): nothing else tells new classes from old ones. own_classes: it does
    so without a memory as well. ema_memory_update_gamma: each time a remembered row goes along,
    what was noted of it becomes gamma · noted + (1 - gamma) · now. tunes: see above. phases: how
    often the steps of an update are gone through, each time with a new model. renotes: all
    remembered rows are noted anew at the end, not only those that were admitted.
    """

    parts: Sequence[Part] = ()
    learns: Learns = "new"
    offers: Offers = "online"
    fresh: bool = False
    loss_weight: float = 1.0
    loss_normalization: bool = True
    asymmetric: bool = False
    own_classes: bool = False
    ema_memory_update_gamma: float = 1.0
    tunes: Tunes = "always"
    phases: int = 1
    renotes: bool = False

    @property
    def notes(self) -> frozenset[str]:
        """What the memory keeps beside rows."""
        return frozenset(note for part in self.parts for note in part.notes)

    def trains(self, updates: int) -> bool:
        """Whether an update after so many others trains weights."""
        return self.tunes == "always" or (self.tunes == "first" and not updates)

    def attach(self, model: nn.Module, updates: int) -> None:
        for part in self.parts:
            part.attach(model, updates)

    def detach(self, model: nn.Module) -> None:
        for part in reversed(self.parts):
            part.detach(model)

    def weights(self, model: nn.Module) -> Weights:
        """Copies of the floating tensors of a state dict, as ``detach`` would leave them."""
        found = {
            name: tensor.detach().clone()
            for name, tensor in model.state_dict().items()
            if isinstance(tensor, Tensor) and tensor.is_floating_point()
        }
        for part in reversed(self.parts):
            found = part.plain(model, found)
        return found

    def candidates(self, model: nn.Module) -> dict[str, Weights]:
        found: dict[str, Weights] = {}
        for part in self.parts:
            found |= part.candidates(model)
        return found

    def start(self, pupil: Pupil, past: list[dict[str, Any]] | None = None) -> None:
        for part, before in zip_longest(self.parts, past or ()):
            part.start(pupil, before)

    def extend(self, memory: Memory, count: int, step: int, per_class: int = 0) -> Rows:
        """The slots whose rows go along with a step; per_class: so many of a class together."""
        if per_class:
            return memory.draw_classes(count, per_class, step)
        return memory.draw(count, step)

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> list[Term]:
        """All summands, the loss of the new rows first."""
        allowed = None
        if self.own_classes or (self.asymmetric and replayed is not None):
            labels = pupil.labels(new)
            allowed = None if labels is None else torch.unique(labels)
        found = [Term("loss", self.loss_weight, pupil.losses(new, allowed).mean())]
        for part in self.parts:
            found += part.terms(pupil, new, replayed)
        return found

    def loss(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Tensor:
        """The loss of a step."""
        terms = self.terms(pupil, new, replayed)
        total = torch.stack([term.weight * term.value for term in terms]).sum()
        weight = sum(term.weight for term in terms)
        return total / weight if self.loss_normalization and weight else total

    def stepped(self, model: nn.Module) -> None:
        for part in self.parts:
            part.stepped(model)

    def turned(self, pupil: Pupil, phase: int) -> None:
        for part in self.parts:
            part.turned(pupil, phase)

    def end(self, pupil: Pupil) -> None:
        for part in self.parts:
            part.end(pupil)

    def state(self) -> list[dict[str, Any]]:
        return [part.state() for part in self.parts]

    def restore(self, state: list[dict[str, Any]]) -> None:
        for part, saved in zip(self.parts, state, strict=True):
            part.restore(saved)

    def hand_on(self) -> list[dict[str, Any]]:
        return [part.hand_on() for part in self.parts]
