"""Weights that mattered for what was learnt before stay near where they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from luthier.updaters.updater import Part, Pupil, Seen, Term
from luthier.updaters.weights import grown, trained


@dataclass
class Elastic(Part):
    """Elastic weight consolidation.

    term = lambda / 2 · Σ_w F_w (w - w*)², w* the weights after the last update, F the diagonal of
    the Fisher information: the mean over rows of the squared gradient of the loss of that row,
    summed over updates.

    Paper: Kirkpatrick et al. 2017, Overcoming Catastrophic Forgetting, equation 3 (EWC); one
    sum for all updates as Huszár 2018 corrects it. rows: how many of the new rows F is taken on.
    """

    lambda_: float = 0.4
    rows: int = 200
    _fisher: list[Tensor] = field(default_factory=list, init=False)
    _at: list[Tensor] = field(default_factory=list, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        if not past:
            return
        self.restore(past)
        weights = trained(pupil.model)
        pairs = list(zip(self._fisher, self._at, weights, strict=True))
        self._fisher = [grown(f, torch.zeros_like(w)) for f, _, w in pairs]
        self._at = [grown(at, w) for _, at, w in pairs]

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if not self._fisher:
            return ()
        parts = zip(trained(pupil.model), self._fisher, self._at, strict=True)
        squares = [(f * (w - at).square()).sum() for w, f, at in parts]
        return (Term("ewc_loss", self.lambda_, torch.stack(squares).sum() / 2),)

    def end(self, pupil: Pupil) -> None:
        weights = trained(pupil.model)
        found = [torch.zeros_like(w) for w in weights]
        count = 0
        for batch in pupil.rows(self.rows, at_once=1):
            seen = pupil.see(batch)
            gradients = torch.autograd.grad(pupil.losses(seen).mean(), weights, allow_unused=True)
            squares = (
                torch.zeros_like(w) if g is None else g.square()
                for w, g in zip(weights, gradients, strict=True)
            )
            found = [total + square for total, square in zip(found, squares, strict=True)]
            count += 1
        found = [total / max(1, count) for total in found]
        before = self._fisher or [torch.zeros_like(w) for w in weights]
        self._fisher = [a + b for a, b in zip(before, found, strict=True)]
        self._at = [w.detach().clone() for w in weights]

    def state(self) -> dict[str, Any]:
        return {"fisher": self._fisher, "at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        self._fisher, self._at = list(state["fisher"]), list(state["at"])

    def hand_on(self) -> dict[str, Any]:
        return self.state()
