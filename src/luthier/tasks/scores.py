"""What a model predicted for rows, and how good that is; by row, so that chance can be judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Predictions:
    """values: for each row what the task predicts (a label, labels, tags, an answer, a text).
    arrays: what the model said about it, the rows first (probabilities, losses, …)."""

    values: list[Any]
    arrays: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Scores:
    """metrics: of all rows together. per_row: arrays with the rows first: what each row adds
    (counts, sums), from which ``Task.resampled`` makes every metric of any resample, exactly."""

    metrics: dict[str, float]
    per_row: dict[str, Array]

    def __len__(self) -> int:
        return len(next(iter(self.per_row.values())))


def row_scores(rows: Mapping[str, Array], metrics: Sequence[str]) -> tuple[str, Array]:
    """What is said of each row [n], and its name: "correct" (0 or 1), "loss" (less is better), or
    one of the task's metrics. KeyError for metrics that only all rows together have.

    >>> row_scores({"target": np.array([1, 0]), "predicted": np.array([1, 1])}, ["accuracy"])
    ('correct', array([1., 0.]))
    """
    if "target" in rows and rows["target"].ndim == 1:
        return "correct", (rows["target"] == rows["predicted"]).astype(np.float64)
    if "correct" in rows:
        return "correct", rows["correct"].astype(np.float64)
    for share, whole in (("hits", "length"), ("nll", "tokens")):
        if share in rows:
            found: Array = rows[share] / np.maximum(rows[whole], 1)
            return ("loss" if share == "nll" else "accuracy"), found
    name = next(name for name in (*metrics, "loss") if name in rows and rows[name].ndim == 1)
    return name, rows[name].astype(np.float64)
