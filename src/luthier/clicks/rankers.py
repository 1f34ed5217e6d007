"""Rankers: the score of items for a query, from their vectors. Of NumPy arrays or of tensors: what
they are made of is what both can do."""

from __future__ import annotations

from typing import Any

from luthier.errors import NotFound, nearest

#: As in torch's CosineSimilarity of the reference: no vector counts as shorter.
_EPSILON = 1e-6


def cosine(query: Any, items: Any) -> Any:
    """Cosine similarity. query [d] or [n, d], items [n, d] → [n]."""
    lengths = _length(query).clip(min=_EPSILON) * _length(items).clip(min=_EPSILON)
    return (query * items).sum(-1) / lengths


def dot(query: Any, items: Any) -> Any:
    """Dot product. query [d] or [n, d], items [n, d] → [n]."""
    return (query * items).sum(-1)


def euclidean(query: Any, items: Any) -> Any:
    """Euclidean distance, small where similar. query [d] or [n, d], items [n, d] → [n]."""
    return _length(items - query)


#: name → (function, whether more is more similar).
RANKERS = {"cosine": (cosine, True), "dot": (dot, True), "euclidean": (euclidean, False)}


def find_ranker(name: str) -> tuple[Any, bool]:
    """A ranker by name, and whether more is more similar. Raises NotFound."""
    try:
        return RANKERS[name]
    except KeyError:
        hint = nearest(name, RANKERS) or f"known: {', '.join(RANKERS)}"
        raise NotFound(f"no ranker is called '{name}'", hint=hint) from None


def _length(vectors: Any) -> Any:
    return (vectors * vectors).sum(-1) ** 0.5
