"""Searches that a model ranks anew: is what was relevant now further up?

With y_i the relevance of the item at rank i of the shown items, and a cut-off k:

    ndcg_at_k        sum over i <= k of (2^y_i - 1) / log2(i + 1), over its value in the best order
    reciprocal_rank  1 / rank of the first item with y > 0

Burges et al. 2005 and Järvelin and Kekäläinen 2002. Equal scores are ordered against the model:
the less relevant first. Clicks are not judgments: where users look at what stands first, a
ranking like the one that was shown looks better than it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError

if TYPE_CHECKING:
    from luthier.data.rankings import Rankings

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

METRICS = ("ndcg_at_k", "reciprocal_rank")


@dataclass(frozen=True)
class RankedSet:
    """Searches with something relevant and something that is not.

    texts: queries and items, each once. queries: int64 [q], items: int64 [m], places in texts.
    rows: int64 [m], the search of each item. relevance: [m].
    """

    texts: tuple[str, ...]
    queries: Ints
    rows: Ints
    items: Ints
    relevance: Floats
    content: str
    notes: tuple[str, ...] = ()

    kind = "rankings"

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def id(self) -> str:
        """Of the content: evaluations are comparable when they share it."""
        return self.content

    def facts(self) -> dict[str, int | float]:
        """Sizes for the report."""
        return {
            "searches": len(self),
            "texts": len(self.texts),
            "items per search": round(len(self.items) / len(self), 2),
            "relevant per search": round(float((self.relevance > 0).sum()) / len(self), 2),
        }


def ranked_set(dataset: Rankings, limit: int, rng: np.random.Generator) -> RankedSet:
    """The searches of a dataset that can tell rankings apart; a sample of ``limit`` of more.

    Raises DataError when there are none.
    """
    shown = dataset.shown(np.arange(len(dataset)))
    n = len(dataset)
    best = np.full(n, -np.inf)
    np.maximum.at(best, shown.rows, shown.relevance)
    worst = np.full(n, np.inf)
    np.minimum.at(worst, shown.rows, shown.relevance)
    telling = np.flatnonzero((best > 0) & (worst < best))
    if not len(telling):
        raise DataError(
            "no search of the evaluation data has items of different relevance",
            hint="a search needs a relevant item and one that is less so",
        )
    notes = []
    if len(telling) < n:
        notes.append(f"{n - len(telling):,} of {n:,} searches cannot tell rankings apart: left out")
    if len(telling) > limit:
        notes.append(f"measured on a sample of {limit:,} of {len(telling):,} searches")
        telling = np.sort(rng.choice(telling, limit, replace=False))
    part = dataset.take(telling)
    shown = part.shown(np.arange(len(part)))
    used = part.used()
    return RankedSet(
        tuple(dataset.catalogue.texts("text", used)),
        np.searchsorted(used, shown.queries),
        shown.rows,
        np.searchsorted(used, shown.items),
        shown.relevance,
        part.id,
        tuple(notes),
    )


def reranked(
    found: RankedSet, queries: NDArray[Any], items: NDArray[Any], distance: str, k: int
) -> dict[str, Floats]:
    """The metrics of each search, float64 [q], by vectors of all texts [t, d] by both sides."""
    scores = similarities(
        queries[found.queries][found.rows].astype(np.float64),
        items[found.items].astype(np.float64),
        distance,
    )
    return metrics(found.rows, found.relevance, scores, len(found), k)


def metrics(rows: Ints, relevance: Floats, scores: Floats, n: int, k: int) -> dict[str, Floats]:
    """nDCG and the reciprocal rank of each of n searches, whose items stand together."""
    gains: Floats = np.exp2(relevance) - 1
    dcg = _dcg(rows, gains, np.lexsort((relevance, -scores, rows)), n, k)
    ideal = _dcg(rows, gains, np.lexsort((-relevance, rows)), n, k)
    order = np.lexsort((relevance, -scores, rows))
    places = _places(rows[order], n)
    first: Floats = np.full(n, np.inf)
    hit = relevance[order] > 0
    np.minimum.at(first, rows[order][hit], places[hit])
    return {"ndcg_at_k": dcg / np.where(ideal > 0, ideal, 1), "reciprocal_rank": 1 / first}


def _dcg(rows: Ints, gains: Floats, order: Ints, n: int, k: int) -> Floats:
    places = _places(rows[order], n)
    worth: Any = np.where(places <= k, gains[order] / np.log2(places + 1), 0.0)
    found: Floats = np.bincount(rows[order], worth, n).astype(np.float64)
    return found


def _places(rows: Ints, n: int) -> Ints:
    """From 1 on within each search; rows ascending."""
    starts = np.searchsorted(rows, np.arange(n))
    found: Ints = np.arange(len(rows)) - starts[rows] + 1
    return found


def similarities(queries: Floats, items: Floats, distance: str) -> Floats:
    """Of each query [n, d] with its item [n, d]; of the Euclidean distance its negative."""
    if distance == "euclidean":
        found: Floats = -np.linalg.norm(queries - items, axis=1)
        return found
    if distance == "cosine":
        queries, items = _unit(queries), _unit(items)
    return np.asarray(np.einsum("nd,nd->n", queries, items))


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: Floats = vectors / np.where(norms > 0, norms, 1)
    return found
