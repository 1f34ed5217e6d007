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
#: The keys of one block of queries against the whole index take at most this.
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
        keys = _keys(found, size, relevance, start, own)
        for i in range(stop - start):
            first, last = relevance.indptr[start + i], relevance.indptr[start + i + 1]
            ranks[first:last] = _places(keys[i], relevance.rows[first:last])
        best = _largest(keys, width)
        kept = np.take_along_axis(keys, best, axis=1) >= 0
        top[start:stop, :width] = np.where(kept, best, -1)
        scores[start:stop, :width] = np.where(kept, np.take_along_axis(found, best, axis=1), np.nan)
    return Ranking(ranks, top, scores)


def _keys(found: Floats, size: Floats, relevance: Relevance, start: int, own: Ints | None) -> Ints:
    """One integer an item that orders a row completely: score, then not relevant, then row."""
    b, n = found.shape
    unit = np.where(size > 0, size, 1.0).astype(np.float64) * RESOLUTION
    levels = np.rint(found / unit[:, None]).astype(np.int64) + int(2 / RESOLUTION)
    keys: Ints = levels * 2 + 1
    for i in range(b):
        keys[i, relevance.of(start + i)] -= 1
    keys *= n
    keys += np.arange(n - 1, -1, -1, dtype=np.int64)
    if own is not None:
        left_out = own[start : start + b]
        inside = np.flatnonzero(left_out >= 0)
        keys[inside, left_out[inside]] = -1
    return keys


def _places(keys: Ints, relevant: Ints) -> Ints:
    """1-based ranks of the relevant rows, ascending."""
    wanted = np.sort(keys[relevant])[::-1]
    if len(wanted) <= COUNT_UP_TO:
        return np.array([np.count_nonzero(keys > key) + 1 for key in wanted], dtype=np.int64)
    return len(keys) - np.searchsorted(np.sort(keys), wanted).astype(np.int64)


def _largest(keys: Ints, k: int) -> Ints:
    """Columns of the k largest keys of each row, largest first. Keys are unique."""
    n = keys.shape[1]
    found = np.argpartition(keys, n - k, axis=1)[:, n - k :] if 0 < k < n else None
    if found is None:
        found = np.broadcast_to(np.arange(n), keys.shape)
    order = np.argsort(-np.take_along_axis(keys, found, axis=1), axis=1)
    return np.take_along_axis(found, order, axis=1)[:, :k]


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
