"""An expert learns the new rows; a new model learns from it, and from what was noted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luthier.updaters.averages import copied
from luthier.updaters.memory import Memory, Rows
from luthier.updaters.updater import Part, Pupil, Seen, Term, Updater


@dataclass
class Expert(Part):
    """Repeated distillation, an update in two phases, each with a new model.

    phase 0   the expert: the task's loss of the new rows
    phase 1   the model that is kept: 1/2 · mean((scores - target)²) over the rows of the step,
              target the scores of the expert for new rows, and for remembered ones those that
              were noted; of classifiers less their mean over classes

    Paper: Zhang et al. 2020, Class-incremental Learning via Deep Model Consolidation, equation 5
    (double distillation); that the noted rows stand for its auxiliary data is Renate's.
    """

    notes: ClassVar[tuple[str, ...]] = ("scores",)
    _expert: nn.Module | None = field(default=None, init=False)
    _phase: int = field(default=0, init=False)

    @property
    def phase(self) -> int:
        return self._phase

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._expert, self._phase = copied(pupil.model), 0

    def turned(self, pupil: Pupil, phase: int) -> None:
        self._expert, self._phase = copied(pupil.model), phase

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if not self._phase:
            return (Term("loss", 1.0, pupil.losses(new).mean()),)
        classes = pupil.labels(new) is not None
        with torch.no_grad():
            target = pupil.see(new.batch, self._expert).scores
        rows = [distance(new.scores, target, classes)]
        if replayed is not None:
            noted = replayed.kept["scores"].to(replayed.scores)
            rows.append(distance(replayed.scores, noted, classes))
        return (Term("distillation_loss", 1.0, torch.cat(rows).mean()),)

    def state(self) -> dict[str, Any]:
        assert self._expert is not None
        expert = dict(self._expert.state_dict()) if self._phase else {}
        return {"phase": self._phase, "expert": expert}

    def restore(self, state: dict[str, Any]) -> None:
        assert self._expert is not None
        self._phase = state["phase"]
        if self._phase:
            self._expert.load_state_dict(state["expert"])


class Distilled(Updater):
    """Nothing is replayed while the expert learns, and its loss is all there is."""

    def extend(self, memory: Memory, count: int, step: int, per_class: int = 0) -> Rows:
        return super().extend(memory, count if self._expert.phase else 0, step, per_class)

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> list[Term]:
        return list(self._expert.terms(pupil, new, replayed))

    @property
    def _expert(self) -> Expert:
        (part,) = self.parts
        assert isinstance(part, Expert)
        return part


def distance(scores: Tensor, target: Tensor, classes: bool) -> Tensor:
    """Half the mean squared distance of each row (n,), the target centred for classifiers.

    >>> distance(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]), True)
    tensor([0.5000])
    """
    if classes:
        target = target - target.mean(1, keepdim=True)
    return (scores - target).square().flatten(1).mean(1) / 2
