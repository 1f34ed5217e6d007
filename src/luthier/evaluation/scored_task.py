"""An evaluation of a task, and whether the tuned model is better or was lucky.

As ``significance.py``: paired bootstrap over rows, the verdict from the interval of the difference
of the main metric. A task says how its metrics come from the rows of a resample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from luthier.errors import DataError
from luthier.evaluation.significance import (
    RESAMPLES,
    Array,
    Comparison,
    Counts,
    comparison,
    resamples_of,
    sign_test,
)

#: From how often each row was drawn, float64 [b, n], to every metric of those resamples, [b].
Resample = Callable[[Array], Mapping[str, Array]]

_FORMAT = 1


@dataclass(frozen=True)
class TaskEvaluation:
    """metrics: of all rows. per_row: arrays with the rows first, from which the metrics of any
    resample follow. set_id: evaluations of the same one can be compared."""

    task: str
    set_id: str
    metrics: dict[str, float]
    per_row: dict[str, np.ndarray]
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data; reading it back gives the same numbers."""
        arrays = {
            name: {"dtype": str(value.dtype), "values": value.tolist()}
            for name, value in self.per_row.items()
        }
        return {
            "format": _FORMAT, "task": self.task, "set_id": self.set_id,
            "metrics": self.metrics, "per_row": arrays, "seconds": self.seconds,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskEvaluation:
        """The inverse of ``to_dict``. Raises DataError for another format."""
        if data.get("format") != _FORMAT:
            raise DataError(f"an evaluation of format {data.get('format')!r}, not {_FORMAT}")
        arrays = {
            name: np.asarray(found["values"], dtype=found["dtype"])
            for name, found in data["per_row"].items()
        }
        return cls(data["task"], data["set_id"], dict(data["metrics"]), arrays, data["seconds"])


def compare_scores(
    before: TaskEvaluation,
    after: TaskEvaluation,
    resample: tuple[Resample, Resample],
    *,
    main: str,
    less_is_better: frozenset[str],
    n: int,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Before against after on the same rows. Raises DataError when the rows differ.

    A win is a row on which the loss fell by more than rounding, where rows have a loss.
    """
    if before.set_id != after.set_id:
        raise DataError("these evaluations were not made on the same rows")
    names = [name for name in after.metrics if name in before.metrics]
    draws: list[np.ndarray] = []
    for counts in resamples_of(n, resamples, seed):
        sides = [side(counts) for side in resample]
        draws.append(np.stack([np.stack([s[name] for name in names], 1) for s in sides]))
    return comparison(
        (before.metrics, after.metrics), draws, names,
        main=main, n=n, seed=seed, confidence=confidence, resamples=resamples,
        counts=_counts(before, after), less_is_better=less_is_better,
        unit="rows",
    )  # fmt: skip


def _counts(before: TaskEvaluation, after: TaskEvaluation) -> Counts:
    old, new = before.per_row.get("loss"), after.per_row.get("loss")
    if old is None or new is None or old.ndim != 1:
        return Counts(0, 0, 0, 1.0)
    gain = old - new
    wins, losses = int((gain > 1e-6).sum()), int((gain < -1e-6).sum())
    return Counts(wins, losses, len(gain) - wins - losses, sign_test(wins, losses))
