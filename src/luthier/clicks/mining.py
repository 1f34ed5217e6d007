"""Hard negatives from the catalogue: what the starting model finds and nobody clicked.

What was shown and not clicked is half known: it may not have been seen. What was never shown is
unknown; most of it is far from the query, and teaches nothing. Between them are the nearest
neighbours of the query: Xiong et al., ANCE, ICLR 2021, arXiv:2007.00808. Some of those are as
good as what was clicked; ones that are as near as that, less a margin, are left out
(de Souza P. Moreira et al., NV-Retriever, 2024, arXiv:2407.15831, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.clicks.conversion import Inputs
from luthier.clicks.sessions import Bools, Floats, Ints
from luthier.errors import DataError

Vectors = NDArray[np.floating]

#: Queries that are compared with the whole catalogue at once.
_BLOCK = 256


@dataclass(frozen=True)
class Mined:
    """names: of the catalogue's items. places: int64 [q, c], for each query of the sessions the
    items that were mined, nearest first, -1 where there are fewer. scores: [q, c]."""

    names: tuple[str, ...]
    places: Ints
    scores: Floats

    def of(self, queries: Ints) -> tuple[list[Ints], list[Floats]]:
        """Of each of these queries the places of its items, and their scores."""
        found = [self.places[q] >= 0 for q in queries]
        return (
            [self.places[q][there] for q, there in zip(queries, found, strict=True)],
            [self.scores[q][there] for q, there in zip(queries, found, strict=True)],
        )


def mine(
    inputs: Inputs,
    queries: Vectors,
    names: Sequence[str],
    items: Vectors,
    *,
    count: int = 5,
    margin: float = 0.05,
    similarity: str = "cosine",
) -> Mined:
    """The nearest items of each query that were not clicked for it.

    queries: vectors of ``inputs.sessions.query_texts``, [q, d]. names, items: ids and vectors of
    the catalogue, [k], [k, d], by the starting model. count: of a query, at most. margin: items
    that are nearer than the nearest clicked one less this are taken for relevant, and left out;
    a query of which no clicked item is in the catalogue gets none. similarity: "cosine" or "dot".
    Raises DataError.
    """
    if len(queries) != len(inputs.sessions.query_texts):
        raise DataError(f"{len(queries)} vectors of {len(inputs.sessions.query_texts)} queries")
    if len(items) != len(names):
        raise DataError(f"{len(items)} vectors of {len(names)} items")
    if count < 1 or similarity not in ("cosine", "dot"):
        raise DataError(
            "count is a whole number from 1 on, and similarity cosine or dot",
            hint=f"not {count!r} and {similarity!r}",
        )
    if similarity == "cosine":
        queries, items = _unit(queries), _unit(items)
    clicked = _clicked(inputs, names)
    q, c = len(queries), min(count, len(names))
    places, scores = np.full((q, c), -1, np.int64), np.zeros((q, c))
    for start in range(0, q, _BLOCK):
        block = np.arange(start, min(start + _BLOCK, q))
        near = np.asarray(queries[block] @ items.T, np.float64)
        mask = _mask(clicked, block, len(names))
        limit = np.where(mask, near, -np.inf).max(axis=1) - margin
        near[mask | (near > limit[:, None])] = -np.inf
        best = np.argpartition(-near, c - 1, axis=1)[:, :c]
        order = np.argsort(-np.take_along_axis(near, best, 1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, 1)
        found = np.take_along_axis(near, best, 1)
        places[block] = np.where(np.isfinite(found), best, -1)
        scores[block] = np.where(np.isfinite(found), found, 0.0)
    return Mined(tuple(names), places, scores)


def _clicked(inputs: Inputs, names: Sequence[str]) -> tuple[Ints, Ints]:
    """Queries and items of the catalogue that were clicked for them, in pairs."""
    place = {name: i for i, name in enumerate(names)}
    sessions = inputs.sessions
    of = np.array([place.get(name, -1) for name in sessions.item_names] or [0], np.int64)
    at = np.flatnonzero(inputs.relevance > 0)
    item, query = of[sessions.item_codes[at]], sessions.query_codes[sessions.owner[at]]
    order = np.argsort(query[item >= 0], kind="stable")
    return query[item >= 0][order], item[item >= 0][order]


def _mask(clicked: tuple[Ints, Ints], block: Ints, items: int) -> Bools:
    """Which items were clicked for each query of a block, bool [b, k]."""
    queries, places = clicked
    first, last = np.searchsorted(queries, [block[0], block[-1] + 1])
    found = np.zeros((len(block), items), bool)
    found[queries[first:last] - block[0], places[first:last]] = True
    return found


def _unit(vectors: Vectors) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))
