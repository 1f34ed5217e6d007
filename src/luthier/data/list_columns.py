"""Which columns are those of rankings: by name, or as the options say."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Names that are understood, each with its role. The query goes by any name of a first text.
NAMES = {
    "items": "items",
    "documents": "items",
    "docs": "items",
    "passages": "items",
    "results": "items",
    "relevance": "relevance",
    "relevances": "relevance",
    "labels": "relevance",
    "weight": "weight",
    "weights": "weight",
    "score": "score",
    "scores": "score",
    "irrelevant": "irrelevant",
}


def plain(name: str) -> str:
    """A name as it is looked up."""
    return re.sub(r"[\s\-.]+", "_", name.strip().lower())


def list_role(name: str) -> str | None:
    """The role of a column of this name in rankings, without the query's."""
    return NAMES.get(plain(name))


def are_rankings(names: Sequence[str]) -> bool:
    """Whether these columns (or roles) are of rankings: they have items and relevance."""
    found = {plain(name) for name in names}
    return "relevance" in found and bool(found & {n for n, r in NAMES.items() if r == "items"})
