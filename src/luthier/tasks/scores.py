"""What a model predicted for rows, and how good that is; by row, so that chance can be judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
