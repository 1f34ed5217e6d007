"""Evaluation sets that are remembered, each with the number of the update that it came with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import DataError
from luthier.evaluation.measure import Evaluation, middle_ranks
from luthier.evaluation.ranking import Relevance
from luthier.evaluation.reranking import RankedSet
from luthier.evaluation.sets import EvaluationSet, RetrievalSet, ScoredSet


@dataclass(frozen=True)
class RememberedSets:
    """Sets in the order of their updates. chunks: the update of each, from 0."""

    sets: tuple[EvaluationSet, ...] = ()
    chunks: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.sets)

    def with_new(self, new: EvaluationSet | None, chunk: int) -> RememberedSets:
        """These and a new one, which is the last; measured on again it keeps its first number."""
        if new is None:
            return self
        there = dict(zip((known.id for known in self.sets), self.chunks, strict=True))
        others = [place for place, known in enumerate(self.sets) if known.id != new.id]
        return RememberedSets(
            (*(self.sets[place] for place in others), new),
            (*(self.chunks[place] for place in others), there.get(new.id, chunk)),
        )

    def rows(self) -> np.ndarray:
        """The update of each row of all sets, in their order, int64 [n]."""
        return np.repeat(np.array(self.chunks, np.int64), [len(found) for found in self.sets])

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.json``; nothing for none."""
        if self.sets:
            pairs = zip(self.chunks, self.sets, strict=True)
            told = [{"chunk": chunk, **_to_dict(found)} for chunk, found in pairs]
            (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> RememberedSets:
        """The inverse of ``save``; none where there is no file."""
        if not file.exists():
            return cls()
        told = json.loads(file.read_text(encoding="utf-8"))
        return cls(tuple(_from_dict(one) for one in told), tuple(one["chunk"] for one in told))


def row_scores(found: Evaluation) -> np.ndarray:
    """What each row adds to the main metric, float64 [n]: their mean is that metric.

    Of a correlation by ranks that is the product of both ranks, standardized.
    """
    if found.kind == "retrieval":
        return found.per_query[found.main]
    ranks = [middle_ranks(found.per_query[name]) for name in ("similarity", "target")]
    spread = [max(float(r.std()), 1e-12) for r in ranks]
    sides = [(r - r.mean()) / s for r, s in zip(ranks, spread, strict=True)]
    product: np.ndarray = sides[0] * sides[1]
    return product


def scores_of(found: Sequence[Evaluation]) -> tuple[str, np.ndarray]:
    """The main metric by name, and what each row of all evaluations adds to it."""
    return found[-1].main, np.concatenate([row_scores(one) for one in found])


def _to_dict(found: EvaluationSet) -> dict[str, Any]:
    if isinstance(found, ScoredSet):
        return {
            "first": found.first, "second": found.second, "third": found.third,
            "targets": found.targets.tolist(), "notes": found.notes,
        }  # fmt: skip
    if isinstance(found, RankedSet):
        raise DataError(
            "searches to evaluate on are not kept from one update to the next",
            hint="evaluate updates on pairs, with an EvaluationCallback",
        )
    return {
        "queries": found.queries, "index": found.index, "own": found.own.tolist(),
        "indptr": found.relevance.indptr.tolist(), "rows": found.relevance.rows.tolist(),
        "notes": found.notes,
    }  # fmt: skip


def _from_dict(told: dict[str, Any]) -> EvaluationSet:
    notes = tuple(told["notes"])
    if "targets" in told:
        third = None if told["third"] is None else tuple(told["third"])
        targets = np.array(told["targets"], np.float64)
        return ScoredSet(tuple(told["first"]), tuple(told["second"]), targets, third, notes)
    relevance = Relevance(np.array(told["indptr"], np.int64), np.array(told["rows"], np.int64))
    own = np.array(told["own"], np.int64)
    return RetrievalSet(tuple(told["queries"]), tuple(told["index"]), relevance, own, notes)
