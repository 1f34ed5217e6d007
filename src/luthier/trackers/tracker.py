"""What every tracker is, and which one a callback of the spec asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

from luthier.spec import MLFlowLogger, WandBLogger


class Tracker(Protocol):
    """A listener: called with what happens, closed at the end.

    kind and data are those of the engine: ``step`` {step, loss, learning_rate, …},
    ``evaluation`` {step, metrics…}, ``report`` {…}; every other kind is ignored. What a
    tracker raises is reported by the engine, which then drops it; the run goes on.
    """

    def __call__(self, kind: str, data: dict[str, Any]) -> None: ...

    def close(self, succeeded: bool = True) -> None:
        """Say how the run ended, and write what is still held back."""


def make_tracker(
    callback: MLFlowLogger | WandBLogger, run_name: str, config: Mapping[str, Any] | None = None
) -> Tracker:
    """The tracker that a callback of the spec asks for.

    config: the frozen job as plain data; it is recorded as the run's parameters.
    Raises MissingExtra when its package is not installed, TypeError for any other callback.
    """
    if isinstance(callback, MLFlowLogger):
        from luthier.trackers.mlflow import MLflowTracker

        return MLflowTracker(callback, run_name, config)
    if isinstance(callback, WandBLogger):
        from luthier.trackers.wandb import WandBTracker

        return WandBTracker(callback, run_name, config)
    raise TypeError(f"{type(callback).__name__} is no tracker")


def flat(data: Mapping[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Nested mappings as one, with joined names.

    >>> flat({"after": {"ndcg_at_k": 0.9}, "k": 10})
    {'after.ndcg_at_k': 0.9, 'k': 10}
    """
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}{separator}", separator)
        else:
            found[f"{prefix}{key}"] = value
    return found


def numbers(data: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of an event, flat. Truth values and texts are no metrics."""
    return {
        name: float(value)
        for name, value in flat(data).items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
