"""Exact ranking: where each relevant item stands among all items, without a q x n matrix.

Ties. Two scores closer than one millionth of the largest possible score are the same score
(float32 sums differ by about a tenth of that when only the order of addition changes). Among
equal scores the items that are *not* relevant come first, then the lower row. So a model
that maps everything to one point ranks every relevant item last, and the order never
depends on how the work was cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from luthier.errors import TrainingError

Distance = Literal["cosine", "dot", "euclidean"]
Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]

#: Scores are told apart to this share of their largest possible size.
RESOLUTION = 1e-6
#: The scores of one block of queries against the whole index, and a copy, take at most this.
BLOCK_BYTES = 32 * 2**20
#: Up to so many relevant items a query, counting beats sorting the whole row.
COUNT_UP_TO = 16


@dataclass(frozen=True)
class Relevance:
    """For each query the rows of the index that answer it, as compressed sparse rows.

    indptr: int64 [q + 1]. rows: int64 [pairs], ascending and unique within a query.
    """

    indptr: Ints
    rows: Ints

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> Relevance:
        """From one list of index rows a query; duplicates collapse."""
        unique = [np.unique(np.asarray(rows, dtype=np.int64)) for rows in lists]
        indptr = np.zeros(len(unique) + 1, dtype=np.int64)
        indptr[1:] = np.cumsum([len(rows) for rows in unique])
        return cls(indptr, np.concatenate([*unique, np.zeros(0, dtype=np.int64)]))

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def of(self, query: int) -> Ints:
        """The relevant rows of one query."""
        return self.rows[self.indptr[query] : self.indptr[query + 1]]

    @property
    def counts(self) -> Ints:
        """How many rows are relevant, a query: int64 [q]."""
        return np.diff(self.indptr)


@dataclass(frozen=True)
class Ranking:
    """ranks: int64 [pairs], the 1-based place of each relevant row, ascending within a query
    (cut by ``relevance.indptr``). top: int64 [q, k] rows of the index, best first, -1 where
    there are fewer than k. scores: float64 [q, k], NaN there."""

    ranks: Ints
    top: Ints
    scores: NDArray[np.float64]


#: Scores of the queries [start, stop) against the whole index [b, n], larger is better, and
#: the largest size that a score of each of these queries can have [b].
Block = Callable[[int, int], tuple[Floats, Floats]]


def rank(
    block: Block, relevance: Relevance, n: int, own: Ints | None = None, k: int = 10
) -> Ranking:
    """Rank the index for every query.

    own: int64 [q], the row that is the query itself and is left out, or -1.
    """
    q = len(relevance)
    step = max(1, BLOCK_BYTES // (8 * max(n, 1)))
    width = min(k, n)
    ranks = np.empty(len(relevance.rows), dtype=np.int64)
    top = np.full((q, k), -1, dtype=np.int64)
    scores = np.full((q, k), np.nan)
    for start in range(0, q, step):
        stop = min(q, start + step)
        found, size = block(start, stop)
        unit = np.where(size > 0, size, 1.0).astype(np.float64) * RESOLUTION
        if own is not None:
            inside = np.flatnonzero(own[start:stop] >= 0)
            found[inside, own[start:stop][inside]] = -np.inf
        least = np.partition(found, n - width, axis=1)[:, n - width] if width else found[:, :0]
        for i in range(stop - start):
            row = Row(found[i], unit[i], relevance.of(start + i))
            first, last = relevance.indptr[start + i], relevance.indptr[start + i + 1]
            ranks[first:last] = row.ranks()
            if width:
                best = row.top(float(least[i]), width)
                kept = found[i, best] > -np.inf
                top[start + i, :width] = np.where(kept, best, -1)
                scores[start + i, :width] = np.where(kept, found[i, best], np.nan)
    return Ranking(ranks, top, scores)


@dataclass(frozen=True)
class Row:
    """One query's scores [n], larger is better and -inf left out; what one step of resolution
    is; the relevant columns.

    The order is that of integer keys: score, then not relevant, then column. Keys cost far more
    than comparisons of scores, and decide only where scores are within two steps of another.
    """

    found: Floats
    unit: float
    relevant: Ints

    def keys(self, columns: Ints) -> Ints:
        """One integer each, which orders them completely; -1 for what is left out."""
        n, scores = len(self.found), self.found[columns].astype(np.float64)
        inside = scores > -np.inf
        levels = np.rint(np.where(inside, scores, 0) / self.unit).astype(np.int64)
        levels = (levels + int(2 / RESOLUTION)) * 2 + 1
        places = np.searchsorted(self.relevant, columns)
        known = np.append(self.relevant, -1)[places] == columns
        return np.where(inside, (levels - known) * n + (n - 1 - columns), -1)

    def ranks(self) -> Ints:
        """1-based ranks of the relevant columns, ascending."""
        n = len(self.found)
        if len(self.relevant) > COUNT_UP_TO:
            keys = self.keys(np.arange(n))
            wanted = np.sort(keys[self.relevant])[::-1]
            return n - np.searchsorted(np.sort(keys), wanted).astype(np.int64)
        return np.sort([self._rank(int(column)) for column in self.relevant]).astype(np.int64)

    def _rank(self, column: int) -> int:
        score = float(self.found[column])
        if score == -np.inf:
            return len(self.found)
        above = int(np.count_nonzero(self.found > self._shifted(score, 2)))
        nearly = self.found >= self._shifted(score, -2)
        if np.count_nonzero(nearly) == above + 1:
            return above + 1
        near = np.flatnonzero(nearly & (self.found <= self._shifted(score, 2)))
        keys = self.keys(near)
        return above + int(np.count_nonzero(keys > keys[np.searchsorted(near, column)])) + 1

    def top(self, least: float, count: int) -> Ints:
        """The first ``count`` columns, best first; ``least`` is the score at that place."""
        low = self._shifted(least, -2) if least > -np.inf else self.found.dtype.type(-np.inf)
        near = np.flatnonzero(self.found >= low)
        chosen: Ints = near[np.argsort(-self.keys(near), kind="stable")[:count]]
        return chosen

    def _shifted(self, score: float, steps: int) -> np.floating[Any]:
        """In the precision of the scores, for a comparison with another copies all of them."""
        shifted: np.floating[Any] = self.found.dtype.type(score + steps * self.unit)
        return shifted


def search(
    queries: Floats,
    index: Floats,
    relevance: Relevance,
    *,
    own: Ints | None = None,
    k: int = 10,
    distance: Distance = "cosine",
) -> Ranking:
    """Rank embeddings ``index`` [n, d] for each of ``queries`` [q, d], exactly.

    The scores of the result are cosines, dot products, or Euclidean distances.
    Raises TrainingError when a vector is not finite.
    """
    q = _finite(queries, "queries")
    d = _finite(index, "index")
    if distance == "euclidean":
        ranking = rank(_euclidean(q, d), relevance, len(d), own, k)
        return Ranking(ranking.ranks, ranking.top, np.sqrt(np.maximum(-ranking.scores, 0)))
    if distance == "cosine":
        q, d = _unit(q), _unit(d)
    return rank(_dot(q, d), relevance, len(d), own, k)


def _dot(q: Floats, d: Floats) -> Block:
    longest = float(np.linalg.norm(d, axis=1).max(initial=0))
    sizes = np.linalg.norm(q, axis=1) * longest

    def block(start: int, stop: int) -> tuple[Floats, Floats]:
        return q[start:stop] @ d.T, sizes[start:stop]

    return block


def _euclidean(q: Floats, d: Floats) -> Block:
    """Negative squared distances. Centring changes no distance and saves digits."""
    longest = float(np.linalg.norm(d, axis=1).max(initial=0))
    sizes = (np.linalg.norm(q, axis=1) + longest) ** 2  # of the vectors as the model gave them
    centre = d.mean(axis=0) if len(d) else 0.0
    q, d = q - centre, d - centre
    q2, d2 = (q * q).sum(axis=1), (d * d).sum(axis=1)

    def block(start: int, stop: int) -> tuple[Floats, Floats]:
        return 2 * (q[start:stop] @ d.T) - q2[start:stop, None] - d2, sizes[start:stop]

    return block


def _unit(vectors: Floats) -> Floats:
    """Rows of length one; a zero vector stays zero and has cosine 0 with everything."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = vectors / np.where(norms > 0, norms, 1)
    return unit


def _finite(vectors: Floats, which: str) -> Floats:
    found = np.asarray(vectors)
    if found.dtype != np.float64:
        found = found.astype(np.float32, copy=False)
    bad = int((~np.isfinite(found)).any(axis=1).sum())
    if bad:
        raise TrainingError(
            f"the model gives vectors that are not finite numbers for {bad} of {len(found)} texts",
            where=which,
            hint="the run diverged: a smaller learning_rate or max_grad_norm=1 helps",
        )
    return found
