"""What is done to the weights themselves: shrinking, anchors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.batches.arithmetic import derive
from luthier.updaters.updater import Part, Pupil, Seen, Term


@dataclass
class ShrinkAndPerturb(Part):
    """Before the first step w ← shrink_factor · w + sigma · N(0, 1), for what trains.

    Paper: Ash and Adams 2020, On Warm-Starting Neural Network Training, section 4. It is for
    weights that former data has trained: the first update leaves them as they are.
    shrink_factor 1 and sigma 0 do nothing.
    """

    shrink_factor: float = 0.95
    sigma: float = 0.001
    seed: int = 0

    @torch.no_grad()
    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        if not pupil.updates:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "perturb", pupil.updates) % 2**63)
            for weight in trained(pupil.model):
                noise = torch.randn(weight.shape, dtype=weight.dtype).to(weight.device)
                weight.mul_(self.shrink_factor).add_(noise, alpha=self.sigma)


@dataclass
class Anchor(Part):
    """Weights stay near those before the update.

    term = alpha / 2 · Σ (w - w₀)²

    Paper: Li et al. 2018, Explicit Inductive Bias for Transfer Learning, equation 2 (L2-SP).
    """

    alpha: float = 0.01
    _start: list[Tensor] = field(default_factory=list, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._start = [w.detach().clone() for w in trained(pupil.model)]

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        pairs = zip(trained(pupil.model), self._start, strict=True)
        return (Term("anchor", self.alpha, sum(_squares(w, w0) for w, w0 in pairs) / 2),)  # type: ignore[arg-type]

    def state(self) -> dict[str, Any]:
        return {"start": self._start}

    def restore(self, state: dict[str, Any]) -> None:
        self._start = list(state["start"])


def grown(saved: Tensor, like: Tensor) -> Tensor:
    """What was saved of a weight, in the shape of ``like``, whose rows beyond it are its own: a
    head has learnt more classes since.

    >>> grown(torch.ones(1, 2), torch.zeros(2, 2)).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    if saved.shape == like.shape:
        return saved
    wider = like.detach().clone()
    wider[: len(saved)] = saved
    return wider


def trained(model: nn.Module) -> list[Tensor]:
    """The parameters that train, in their order."""
    return [p for p in model.parameters() if p.requires_grad]


def _squares(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).square().sum()
