"""What the losses of rankings share: the lists of a batch, similarities, and pairs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.objectives.objective import Embedded

Similarity = Literal["cosine", "dot", "euclidean"]
#: What a pair weighs: the less of its two items' weights, or that of the more relevant one.
Weighting = Literal["min", "positive"]


@dataclass(frozen=True)
class Phase:
    """Which pairs count: low < |difference of the starting scores| <= high, and whether the
    negative is of a search without a click (None: either)."""

    low: float = float("-inf")
    high: float = float("inf")
    irrelevant: bool | None = None


@dataclass(frozen=True)
class Lists:
    """Which items each query of a batch was shown.

    The batch's columns are the queries [n, d] and the items [u, d], each item of the batch once.
    rows: int64 [m], the query of each impression. items: int64 [m], its item's place in the
    second column. relevance, weights: [m]. scores: [m], of the starting model, if known.
    queries: int64 [n], equal for equal queries. irrelevant: bool [m], items of searches without
    a click. phase: which pairs count; None: all.
    """

    rows: Tensor
    items: Tensor
    relevance: Tensor
    weights: Tensor
    queries: Tensor
    scores: Tensor | None = None
    irrelevant: Tensor | None = None
    phase: Phase | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def like(self, column: Tensor) -> Lists:
        """On a column's device, numbers in its precision."""
        device = column.device

        def moved(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)

        return Lists(
            self.rows.to(device),
            self.items.to(device),
            self.relevance.to(column),
            self.weights.to(column),
            self.queries.to(device),
            moved(self.scores),
            moved(self.irrelevant),
            self.phase,
        )

    def counts(self, better: Tensor, worse: Tensor) -> Tensor:
        """Whether pairs of impressions [p] are of the phase, bool [p]."""
        found = torch.ones(len(better), dtype=torch.bool, device=better.device)
        if self.phase is None:
            return found
        if self.scores is not None:
            apart = (self.scores[better] - self.scores[worse]).abs()
            found &= (apart > self.phase.low) & (apart <= self.phase.high)
        if self.phase.irrelevant is not None:
            of = torch.zeros_like(found) if self.irrelevant is None else self.irrelevant[worse]
            found &= of == self.phase.irrelevant
        return found

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Impressions of one query of which the first is more relevant: int64 [p] twice."""
        better, worse = [], []
        for start, end in self.spans():
            relevance = self.relevance[start:end]
            first, second = torch.nonzero(relevance[:, None] > relevance[None], as_tuple=True)
            better.append(first + start)
            worse.append(second + start)
        none = torch.zeros(0, dtype=torch.int64, device=self.rows.device)
        left, right = torch.cat([none, *better]), torch.cat([none, *worse])
        kept = self.counts(left, right)
        return left[kept], right[kept]

    def spans(self) -> list[tuple[int, int]]:
        """Where each query's impressions begin and end; they stand together."""
        if not len(self):
            return []
        _, sizes = torch.unique_consecutive(self.rows, return_counts=True)
        ends = sizes.cumsum(0).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))


def take_lists(batch: Embedded, name: str) -> Lists:
    """The lists of a batch. Raises DataError when the data is no rankings."""
    if batch.lists is None or len(batch.columns) != 2:
        raise DataError(f"{name} compares the items of searches, and the data has none")
    return batch.lists


def sign(similarity: Similarity) -> int:
    """1 where more is more similar, -1 for a distance."""
    return -1 if similarity == "euclidean" else 1


def similarities(batch: Embedded, lists: Lists, similarity: Similarity) -> Tensor:
    """Of each impression to its query, [m]; for "euclidean" the distance."""
    queries, items = batch.columns
    if similarity == "cosine":
        queries, items = nn.functional.normalize(queries), nn.functional.normalize(items)
    left, right = queries[lists.rows], items[lists.items]
    if similarity == "euclidean":
        # The root of 0 has no gradient: a text is compared with itself now and then.
        found: Tensor = ((left - right) ** 2).sum(-1).clamp(min=1e-12).sqrt()
        return found
    return (left * right).sum(-1)


def all_similarities(batch: Embedded, similarity: Similarity) -> Tensor:
    """Of each query to each item of the batch, more is more similar, [n, u]."""
    queries, items = batch.columns
    if similarity == "cosine":
        queries, items = nn.functional.normalize(queries), nn.functional.normalize(items)
    if similarity == "euclidean":
        squares = (queries**2).sum(1)[:, None] + (items**2).sum(1)[None] - 2 * queries @ items.T
        return -squares.clamp(min=1e-12).sqrt()
    return queries @ items.T


def pair_weights(lists: Lists, better: Tensor, worse: Tensor, weighting: Weighting) -> Tensor:
    """What each pair weighs, [p]."""
    if weighting == "positive":
        return lists.weights[better]
    return torch.minimum(lists.weights[better], lists.weights[worse])
