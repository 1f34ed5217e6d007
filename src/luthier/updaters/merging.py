"""Weights of several moments made into one model, once an update is trained.

Every function and class here works on ``Weights``: floating tensors by the names of a state dict.
A merge has points of its own, beside those of an updater:

    start     the weights before the first step, and what the update before handed on
    stepped   the weights after a step, where ``every`` asks for them
    end       the weights after the last step, and a function that scores weights (more is better)
              → the weights that are published, and what was tried as rows of a table
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from luthier.updaters.updater import Weights

#: From weights to how good they are on the accumulated validation rows; more is better.
Score = Callable[[Weights], float]
Table = list[dict[str, Any]]


def mixed(weights: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Σ share · w, name by name, in float32 or better.

    >>> mixed([{"w": torch.tensor([0.0])}, {"w": torch.tensor([4.0])}], [0.75, 0.25])
    {'w': tensor([1.])}
    """
    found: Weights = {}
    for name, first in weights[0].items():
        wide = torch.promote_types(first.dtype, torch.float32)
        parts = (share * w[name].to(wide) for w, share in zip(weights, shares, strict=True))
        found[name] = torch.stack(list(parts)).sum(0).to(first.dtype)
    return found


class Merge:
    """One way of it. Subclasses override the points they need.

    scores: whether ``end`` asks how good weights are. every: 0 never asks for weights on the
    way, 1 does after each step, "epoch" after each epoch.
    """

    name: ClassVar[str] = ""
    scores: ClassVar[bool] = False
    every: ClassVar[Literal[0, 1, "epoch"]] = 0

    def start(self, weights: Weights, past: dict[str, Any] | None) -> None:
        """Before the first step. past: of the update before, None where it merged otherwise."""

    def stepped(self, weights: Weights) -> None:
        """After a step, or an epoch."""

    def end(self, weights: Weights, score: Score) -> tuple[Weights, Table]:
        """After the last step."""
        return weights, []

    def state(self) -> dict[str, Any]:
        """What must survive a crash in the middle of an update."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``; instead of ``start``."""

    def hand_on(self) -> dict[str, Any]:
        """What the next update needs; after ``end``."""
        return {}


@dataclass
class WiSEFT(Merge):
    """The best point on the line from the weights before the update to those after it.

    w = (1 - alpha) · before + alpha · after, alpha of 0, 1/points, …, 1; of two that score alike
    the larger.

    Paper: Wortsman et al. 2022, Robust Fine-Tuning of Zero-Shot Models, equation 1.
    """

    name: ClassVar[str] = "wise-ft"
    scores: ClassVar[bool] = True
    points: int = 10
    _before: Weights = field(default_factory=dict, init=False)

    def start(self, weights: Weights, past: dict[str, Any] | None) -> None:
        self._before = weights

    def end(self, weights: Weights, score: Score) -> tuple[Weights, Table]:
        table, best, best_score = Table(), weights, float("-inf")
        for i in range(self.points, -1, -1):
            alpha = i / self.points
            candidate = mixed([self._before, weights], [1 - alpha, alpha]) if alpha < 1 else weights
            found = score(candidate)
            table.append({"alpha": alpha, "score": found})
            if found > best_score:
                best, best_score = candidate, found
        return best, _chosen(table[::-1], best_score, last=True)

    def state(self) -> dict[str, Any]:
        return {"before": self._before}

    def restore(self, state: dict[str, Any]) -> None:
        self._before = state["before"]


@dataclass
class RunningAverage(Merge):
    """An exponential moving average of the weights over the steps of the update.

    average ← d · average + (1 - d) · w after step t (from 1), d = min(decay, (1 + t) / (10 + t)),
    beginning with the weights before the first step.

    Paper: Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging; the
    shorter memory of the first steps is TensorFlow's (ExponentialMovingAverage, num_updates).
    """

    name: ClassVar[str] = "ema"
    every: ClassVar[Literal[0, 1, "epoch"]] = 1
    decay: float = 0.99
    _average: Weights = field(default_factory=dict, init=False)
    _steps: int = field(default=0, init=False)

    def start(self, weights: Weights, past: dict[str, Any] | None) -> None:
        self._average, self._steps = weights, 0

    def stepped(self, weights: Weights) -> None:
        self._steps += 1
        d = min(self.decay, (1 + self._steps) / (10 + self._steps))
        for name, average in self._average.items():
            average.lerp_(weights[name], 1 - d)

    def end(self, weights: Weights, score: Score) -> tuple[Weights, Table]:
        return (self._average if self._steps else weights), []

    def state(self) -> dict[str, Any]:
        return {"average": self._average, "steps": self._steps}

    def restore(self, state: dict[str, Any]) -> None:
        self._average, self._steps = dict(state["average"]), state["steps"]


@dataclass
class Soup(Merge):
    """The mean of the weights after several epochs, the last ``ingredients`` of them.

    kind "uniform": of all of these. "greedy": from the best on, each in the order of its score,
    is kept in the mean where that scores no worse than without it.

    Paper: Wortsman et al. 2022, Model Soups, recipe 1.
    """

    name: ClassVar[str] = "soup"
    scores: ClassVar[bool] = True
    every: ClassVar[Literal[0, 1, "epoch"]] = "epoch"
    kind: Literal["greedy", "uniform"] = "greedy"
    ingredients: int = 8
    _epochs: list[Weights] = field(default_factory=list, init=False)
    _seen: int = field(default=0, init=False)

    def start(self, weights: Weights, past: dict[str, Any] | None) -> None:
        self._epochs, self._seen = [], 0

    def stepped(self, weights: Weights) -> None:
        self._epochs = [*self._epochs, weights][-self.ingredients :]
        self._seen += 1

    def end(self, weights: Weights, score: Score) -> tuple[Weights, Table]:
        there = self._epochs or [weights]
        first = self._seen - len(self._epochs)
        scored = [score(w) for w in there]
        table: Table = [{"epoch": first + i + 1, "score": s} for i, s in enumerate(scored)]
        order = sorted(range(len(there)), key=lambda i: -scored[i])
        taken, best = [order[0]], scored[order[0]]
        for i in order[1:]:
            found = score(_mean([there[j] for j in [*taken, i]])) if self.kind == "greedy" else best
            if found >= best:
                taken, best = [*taken, i], found
        for i, row in enumerate(table):
            row["chosen"] = i in taken
        return _mean([there[i] for i in taken]), table

    def state(self) -> dict[str, Any]:
        return {"epochs": list(self._epochs), "seen": self._seen}

    def restore(self, state: dict[str, Any]) -> None:
        self._epochs, self._seen = list(state["epochs"]), state["seen"]


@dataclass
class Ties(Merge):
    """Task vectors of all updates so far, trimmed, with one sign elected for each weight.

    τ_t = w_t - w_0, w_t the weights that update t was trained to and w_0 those before the first.
    Of each τ only the ``density`` largest entries stay; the sign of an entry is that of Σ_t τ_t;
    entries of that sign are averaged: w = w_0 + scale · τ. With one update there is nothing to
    elect, and the model stays as it was trained. Where a head has grown, w_0 of its new rows is
    what they began as, and earlier updates have nothing to say of them.

    Paper: Yadav et al. 2023, TIES-Merging, algorithm 1 (density 0.2, scale 1 where it was not
    tuned).
    """

    name: ClassVar[str] = "ties"
    density: float = 0.2
    scale: float = 1.0
    _first: Weights = field(default_factory=dict, init=False)
    _vectors: list[Weights] = field(default_factory=list, init=False)

    def start(self, weights: Weights, past: dict[str, Any] | None) -> None:
        if past:
            self.restore(past)
            none = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
            self._first = _widened(self._first, weights)
            self._vectors = [_widened(vector, none) for vector in self._vectors]
        else:
            self._first = weights

    def end(self, weights: Weights, score: Score) -> tuple[Weights, Table]:
        vector = mixed([weights, self._first], [1, -1])
        self._vectors = [*self._vectors, vector]
        table: Table = [{"update": i + 1} for i in range(len(self._vectors))]
        if len(self._vectors) == 1:
            return weights, table
        return mixed([self._first, self._elected()], [1, self.scale]), table

    def _elected(self) -> Weights:
        trimmed = [_trimmed(vector, self.density) for vector in self._vectors]
        found: Weights = {}
        for name in self._first:
            values = torch.stack([t[name] for t in trimmed])
            sign = values.sum(0).sign()
            agrees = (values.sign() == sign) & (values != 0)
            counts = agrees.sum(0).clamp(min=1)
            found[name] = torch.where(agrees, values, torch.zeros_like(values)).sum(0) / counts
        return found

    def state(self) -> dict[str, Any]:
        return {"first": self._first, "vectors": list(self._vectors)}

    def restore(self, state: dict[str, Any]) -> None:
        self._first, self._vectors = state["first"], list(state["vectors"])

    def hand_on(self) -> dict[str, Any]:
        return self.state()


MERGES: dict[str, type[Merge]] = {m.name: m for m in (WiSEFT, RunningAverage, Soup, Ties)}


def build_merge(name: str, options: Mapping[str, Any]) -> Merge | None:
    """The merge of that name with options that have been checked; None for "none"."""
    return None if name == "none" else MERGES[name](**options)


def _mean(weights: Sequence[Weights]) -> Weights:
    return mixed(weights, [1 / len(weights)] * len(weights)) if len(weights) > 1 else weights[0]


def _widened(weights: Weights, to: Weights) -> Weights:
    """Weights in the shapes of others, whose values fill what there was not.

    >>> _widened({"w": torch.tensor([1.0])}, {"w": torch.tensor([7.0, 8.0])})
    {'w': tensor([1., 8.])}
    """
    found: Weights = {}
    for name, wide in to.items():
        known = weights.get(name)
        if known is None or known.shape != wide.shape:
            found[name] = wide.clone()
            if known is not None:
                found[name][tuple(slice(size) for size in known.shape)] = known
        else:
            found[name] = known
    return found


def _trimmed(vector: Weights, density: float) -> Weights:
    """The largest entries over all names together; all else is 0."""
    flat = torch.cat([tensor.abs().flatten() for tensor in vector.values()])
    kept = max(1, round(density * len(flat)))
    least = flat.kthvalue(len(flat) - kept + 1).values
    return {n: torch.where(t.abs() >= least, t, torch.zeros_like(t)) for n, t in vector.items()}


def _chosen(table: Table, score: float, *, last: bool) -> Table:
    places = [i for i, row in enumerate(table) if row["score"] == score]
    chosen = places[-1] if last and places else None
    return [{**row, "chosen": i == chosen} for i, row in enumerate(table)]


def loaded(targets: Iterable[tuple[str, Any]], weights: Weights) -> None:
    """Put weights into the tensors of a state dict that have their names, in place."""
    with torch.no_grad():
        for name, tensor in targets:
            if isinstance(tensor, Tensor) and name in weights:
                tensor.copy_(weights[name])
