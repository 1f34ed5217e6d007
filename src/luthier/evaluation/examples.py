"""Example queries for people: what was found before and after, the failures included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from luthier.evaluation.measure import Evaluation
from luthier.evaluation.sets import RetrievalSet

#: At most so many of the relevant texts are quoted.
_QUOTED = 3


@dataclass(frozen=True)
class Result:
    """One result of a search."""

    text: str
    score: float
    relevant: bool


@dataclass(frozen=True)
class Example:
    """A query, why it is shown, what is relevant to it, and the top results on both sides.

    rank_before, rank_after: where the first relevant item stood, from 1.
    """

    query: str
    why: str
    relevant: tuple[str, ...]
    rank_before: int
    rank_after: int
    before: tuple[Result, ...]
    after: tuple[Result, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Example:
        """The inverse of ``to_dict``."""
        sides = {side: tuple(Result(**r) for r in data[side]) for side in ("before", "after")}
        return cls(**{**data, "relevant": tuple(data["relevant"]), **sides})


def choose_examples(
    before: Evaluation,
    after: Evaluation,
    found: RetrievalSet,
    *,
    results: int = 5,
    wins: int = 2,
    losses: int = 1,
    drawn: int = 3,
    seed: int = 0,
) -> tuple[Example, ...]:
    """The greatest gains, the greatest loss, and some queries drawn at random."""
    gain = after.per_query[after.main] - before.per_query[before.main]
    order = np.argsort(-gain, kind="stable").tolist()
    picked = {i: "one of the greatest gains" for i in order[:wins] if gain[i] > 0}
    picked |= {i: "the greatest loss" for i in order[::-1][:losses] if gain[i] < 0}
    for i in np.random.default_rng(seed).permutation(len(found)).tolist():
        if drawn and i not in picked:
            picked[i] = "drawn at random"
            drawn -= 1
    return tuple(_example(i, why, before, after, found, results) for i, why in picked.items())


def _example(
    i: int, why: str, before: Evaluation, after: Evaluation, found: RetrievalSet, results: int
) -> Example:
    relevant = found.relevance.of(i)

    def side(evaluation: Evaluation) -> tuple[Result, ...]:
        rows = evaluation.top[i, :results].tolist()
        scores = evaluation.scores[i, :results].tolist()
        return tuple(
            Result(found.index[row], round(score, 4), row in relevant)
            for row, score in zip(rows, scores, strict=True)
            if row >= 0
        )

    def rank(evaluation: Evaluation) -> int:
        return round(1 / float(evaluation.per_query["reciprocal_rank"][i]))

    return Example(
        query=found.queries[i],
        why=why,
        relevant=tuple(found.index[row] for row in relevant[:_QUOTED].tolist()),
        rank_before=rank(before),
        rank_after=rank(after),
        before=side(before),
        after=side(after),
    )
