"""Slow copies of a model that remember what the fast one forgets."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.batches.arithmetic import derive, numbers
from luthier.updaters.updater import Part, Pupil, Seen, Term, Weights
from luthier.updaters.weights import grown


@dataclass
class Complementary(Part):
    """Two running averages of the model teach it on rows of the memory.

    term = beta · mean((scores - scores*)²), where scores* of a row are those of the copy,
    stable or plastic, that is surer of what is true. A copy moves in a step with its
    probability p: copy ← w · copy + (1 - w) · model, w = min(1 - 1 / (t + 1), weight).

    Paper: Arani et al. 2022, Learning Fast, Learning Slow (CLS-ER), algorithm 1. There the
    stable copy moves more seldom than the plastic one, and no faster; it is the one that is
    tested (section 4), while the working model learns on. published: "stable", "plastic" or
    "working"; "best" asks the validation rows, for a copy that moves slowly lags behind when
    updates are short. Without such rows it is the working model.
    """

    beta: float = 0.1
    stable_model_update_weight: float = 0.99
    plastic_model_update_weight: float = 0.99
    stable_model_update_probability: float = 0.7
    plastic_model_update_probability: float = 0.9
    published: str = "best"
    seed: int = 0
    _copies: tuple[nn.Module, ...] = field(default=(), init=False)
    _steps: int = field(default=0, init=False)
    _working: Weights = field(default_factory=dict, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._copies = tuple(copied(pupil.model) for _ in range(2))
        if past:  # of a head that has learnt more classes since, what there was
            self._steps = past["steps"]
            saved = (past["working"], *past["copies"])
            for model, weights in zip((pupil.model, *self._copies), saved, strict=True):
                there = tensors_of(model)
                loaded = {n: grown(weights[n], t) for n, t in there.items() if n in weights}
                model.load_state_dict(loaded, strict=len(loaded) == len(there))

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

    def candidates(self, model: nn.Module) -> dict[str, Weights]:
        self._working = {n: t.detach().clone() for n, t in tensors_of(model).items()}
        named = dict(zip(("stable", "plastic"), map(tensors_of, self._copies), strict=True))
        found = {"working": self._working} | named
        return found if self.published == "best" else {self.published: found[self.published]}

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "copies": [tensors_of(m) for m in self._copies]}

    def restore(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        for model, saved in zip(self._copies, state["copies"], strict=True):
            there = model.state_dict()
            model.load_state_dict({name: grown(saved[name], there[name]) for name in there})

    def hand_on(self) -> dict[str, Any]:
        return self.state() | {"working": self._working}


def tensors_of(model: nn.Module) -> Weights:
    """The tensors of a state dict."""
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


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
