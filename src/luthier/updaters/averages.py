"""Slow copies of a model that remember what the fast one forgets."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from luthier.batches.arithmetic import derive, numbers
from luthier.updaters.updater import Part, Pupil, Seen, Term


@dataclass
class Complementary(Part):
    """Two running averages of the model teach it on rows of the memory.

    term = beta · mean((scores - scores*)²), where scores* of a row are those of the copy,
    stable or plastic, that is surer of what is true. A copy moves in a step with its
    probability p: copy ← w · copy + (1 - w) · model, w = min(1 - 1 / (t + 1), weight).

    Paper: Arani et al. 2022, Learning Fast, Learning Slow (CLS-ER), algorithm 1. There the
    stable copy moves more seldom than the plastic one, and no faster.
    """

    beta: float = 0.1
    stable_model_update_weight: float = 0.999
    plastic_model_update_weight: float = 0.999
    stable_model_update_probability: float = 0.7
    plastic_model_update_probability: float = 0.9
    seed: int = 0
    _copies: tuple[nn.Module, ...] = field(default=(), init=False)
    _steps: int = field(default=0, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._copies = tuple(copied(pupil.model) for _ in range(2))
        if past:
            self.restore(past)

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if replayed is None:
            return ()
        with torch.no_grad():
            stable, plastic = (pupil.see(replayed.batch, model) for model in self._copies)
            surer = pupil.certainty(stable) >= pupil.certainty(plastic)
            target = torch.where(surer[:, None], stable.scores, plastic.scores)
        return (Term("cls_loss", self.beta, F.mse_loss(replayed.scores, target)),)

    def stepped(self, model: nn.Module) -> None:
        chance = numbers(derive(self.seed, "averages", self._steps), 2) / np.float64(2**64)
        self._steps += 1
        limits = (self.stable_model_update_weight, self.plastic_model_update_weight)
        odds = (self.stable_model_update_probability, self.plastic_model_update_probability)
        for copy_, limit, p, drawn in zip(self._copies, limits, odds, chance, strict=True):
            if drawn < p:
                follow(copy_, model, min(1 - 1 / (self._steps + 1), limit))

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "copies": [dict(m.state_dict()) for m in self._copies]}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        for model, saved in zip(self._copies, state["copies"], strict=True):
            model.load_state_dict(saved)

    def hand_on(self) -> dict[str, Any]:
        return self.state()


def copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that does not train."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, weight: float) -> None:
    """average ← weight · average + (1 - weight) · model; buffers are the model's."""
    ours = [p.data for p in average.parameters()]
    theirs = [p.data for p in model.parameters()]
    torch._foreach_lerp_(ours, theirs, 1 - weight)
    for mine, other in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(other)
