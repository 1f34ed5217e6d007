"""What an update did to everything that was learnt before it.

Validation rows are kept from update to update, each with the number of the update that it came
with (its chunk), so every update is measured on all chunks so far. The rows of the matrix are
updates, its columns chunks (Lopez-Paz and Ranzato 2017, Gradient Episodic Memory, section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Retention:
    """score: "correct" (the share of right rows) or "loss" (less is better).

    by_chunk: the score on each chunk after this update; before: the same before it. matrix: of
    all updates so far, one row each, shorter for earlier ones. average: the mean over chunks.
    forgetting: for each chunk but the newest, how far it is below its best so far (Chaudhry et
    al. 2018, Riemannian Walk, equation 3), their mean. backward_transfer: how far those chunks
    moved since they were learnt, their mean. lost, gained: shares of rows that were right before
    this update and are wrong now, and the other way round; of earlier chunks only.
    """

    score: str = "correct"
    by_chunk: tuple[float, ...] = ()
    before: tuple[float, ...] = ()
    matrix: tuple[tuple[float, ...], ...] = ()
    average: float | None = None
    forgetting: float | None = None
    backward_transfer: float | None = None
    lost: float | None = None
    gained: float | None = None
    notes: tuple[str, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def retention(
    before: np.ndarray | None,
    after: np.ndarray | None,
    chunks: np.ndarray,
    history: Sequence[Mapping[str, Any]],
    score: str = "correct",
) -> Retention:
    """Compare scores of rows (n,) before and after an update.

    Args:
        before, after: the score of each validation row; None where there are no such rows.
        chunks: the update that each row came with (n,), from 0.
        history: entries of former updates, with ``by_chunk``.

    >>> now = np.array([0.0, 1.0, 1.0, 1.0])
    >>> then = np.array([1.0, 1.0, 0.0, 0.0])
    >>> found = retention(then, now, np.array([0, 0, 1, 1]), [{"by_chunk": [1.0]}])
    >>> found.by_chunk, found.forgetting, found.lost
    ((0.5, 1.0), 0.5, 0.5)
    """
    if before is None or after is None or not len(after):
        return Retention(score, notes=("there are no validation rows: nothing was measured",))
    there = np.unique(chunks)
    means = tuple(float(after[chunks == c].mean()) for c in there)
    earlier = tuple(float(before[chunks == c].mean()) for c in there)
    matrix = (*(tuple(entry.get("by_chunk", ())) for entry in history), means)
    sign = -1.0 if score == "loss" else 1.0
    old = range(len(there) - 1)
    fallen, moved = [], []
    for c in old:
        column = [row[c] for row in matrix[:-1] if c < len(row)]
        if column:
            fallen.append(sign * (max(column, key=lambda s: sign * s) - means[c]))
            moved.append(sign * (means[c] - column[0]))
    past = chunks < there[-1]
    lost = gained = None
    if score == "correct" and past.any():
        lost = float(((before == 1) & (after == 0))[past].mean())
        gained = float(((before == 0) & (after == 1))[past].mean())
    return Retention(
        score,
        means,
        earlier,
        matrix,
        float(np.mean(means)),
        float(np.mean(fallen)) if fallen else None,
        float(np.mean(moved)) if moved else None,
        lost,
        gained,
    )


def experiment(
    matrix: Sequence[Sequence[float]], *, less_is_better: bool = False
) -> dict[str, Any]:
    """What a series of updates did, by the scores of chunks (columns) after each update (rows).

    average: of all chunks that were learnt, after the last update. forgetting: how far those
    before it are below their best since they were learnt, their mean. backward_transfer: how far
    they moved since they were learnt (Lopez-Paz and Ranzato 2017, equation 3); of losses both
    have the sign that they would have of accuracies.

    >>> found = experiment([[1.0, 0.0], [0.6, 0.9]])
    >>> found["average"], round(found["forgetting"], 2), round(found["backward_transfer"], 2)
    (0.75, 0.4, -0.4)
    """
    last, count = matrix[-1], len(matrix)
    learnt = range(min(count, len(last)))
    before = [c for c in learnt if c < count - 1]
    sign = -1.0 if less_is_better else 1.0
    column = {c: [sign * row[c] for row in matrix[c:] if c < len(row)] for c in before}
    fallen = [max(scores) - scores[-1] for scores in column.values()]
    moved = [scores[-1] - scores[0] for scores in column.values()]
    return {
        "matrix": [list(row) for row in matrix],
        "average": float(np.mean([last[c] for c in learnt])),
        "forgetting": float(np.mean(fallen)) if fallen else None,
        "backward_transfer": float(np.mean(moved)) if moved else None,
    }
