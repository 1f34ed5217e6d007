"""Which weights an update publishes: those it trained, a copy of them, or several merged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from torch import nn

from luthier.updaters.merging import Merge, loaded
from luthier.updaters.updater import Updater, Weights


class Scoring(Protocol):
    """By an evaluation the score of each row; see ``luthier.engine.updating.Validation``."""

    def scores(self, found: Any) -> tuple[str, np.ndarray]: ...


class Scored:
    """How good weights are on the validation rows of all updates so far; more is better.

    name: of the score. A loss is negative here, and positive again in ``told``.
    """

    def __init__(self, model: nn.Module, measure: Callable[[Any], Any], by: Scoring) -> None:
        self.model, self.name = model, ""
        self._measure, self._by = measure, by

    def put(self, weights: Weights) -> None:
        """Load weights into the model."""
        loaded(self.model.state_dict().items(), weights)

    def __call__(self, weights: Weights) -> float:
        self.put(weights)
        found = self._measure(self.model)
        if found is None:  # nothing to measure on: what is asked for first is taken
            return 0.0
        self.name, rows = self._by.scores(found)
        return float(rows.mean()) * (-1 if self.name == "loss" else 1)

    def told(self, kind: str, table: list[dict[str, Any]]) -> dict[str, Any]:
        """As JSON data."""
        sign = -1 if self.name == "loss" else 1
        rows = [row | ({"score": sign * row["score"]} if "score" in row else {}) for row in table]
        return {"kind": kind, "score": self.name, "table": rows}


def choose(updater: Updater, merge: Merge | None, scored: Scored) -> dict[str, Any]:
    """Leave in the model what is published, and tell what was tried; {} where it is as it was."""
    candidates = updater.candidates(scored.model)
    if merge is not None:
        weights, table = merge.end(updater.weights(scored.model), scored)
        scored.put(weights)
        return scored.told(merge.name, table)
    if not candidates:
        return {}
    if len(candidates) == 1:
        ((name, weights),) = candidates.items()
        scored.put(weights)
        return scored.told("copies", [{"name": name, "chosen": True}])
    found = {name: scored(weights) for name, weights in candidates.items()}
    best = max(found, key=lambda name: found[name])
    scored.put(candidates[best])
    rows = [{"name": name, "score": s, "chosen": name == best} for name, s in found.items()]
    return scored.told("copies", rows)
