"""What a model makes of all queries and items: scores of impressions, and nearest items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from luthier.clicks.builder import RankingData
from luthier.clicks.conversion import Inputs
from luthier.clicks.mining import Mined, mine
from luthier.clicks.scoring import Model, Vectors, encoded, scores
from luthier.clicks.sessions import Floats, Sessions
from luthier.clicks.splitters import aggregate

if TYPE_CHECKING:
    from luthier.runs.connection import Home


@dataclass(frozen=True)
class Sides:
    """What a model makes of all that is measured: queries [q, d], items [i, d] (of parts their
    aggregate), by text and by id."""

    queries: Vectors
    items: Vectors
    query: Mapping[str, int]
    item: Mapping[str, int]

    def scores(self, sessions: Sessions, ranker: str) -> Floats:
        """The score of each impression, [m]; NaN where its item is not in the catalogue."""
        query = np.array([self.query.get(text, -1) for text in sessions.query_texts] or [-1])
        item = np.array([self.item.get(name, -1) for name in sessions.item_names] or [-1])
        left, right = query[sessions.query_codes][sessions.owner], item[sessions.item_codes]
        found = np.full(len(left), np.nan)
        known = (left >= 0) & (right >= 0)
        found[known] = scores(ranker, self.queries, self.items, left[known], right[known])
        return found

    def mined(self, inputs: Inputs, count: int, margin: float, ranker: str) -> Mined:
        """The nearest items of each query that were not clicked for it. Raises DataError."""
        rows = [self.query[text] for text in inputs.sessions.query_texts]
        return mine(
            inputs, self.queries[rows], list(self.item), self.items, count=count, margin=margin,
            similarity=ranker,
        )  # fmt: skip


def sides(
    models: Sequence[Model], data: RankingData, queries: Sequence[str], home: Home
) -> list[Sides]:
    """Vectors by each model, made in a process of their own. Raises ModelError."""
    items = data.test_items
    folder = home.cache / "clicks" / "vectors"
    query = {text: row for row, text in enumerate(queries)}
    item = {name: row for row, name in enumerate(items.ids)}
    return [
        Sides(left, aggregate(right, items.parts, data.aggregation).astype(np.float32), query, item)
        for left, right in encoded(models, queries, items.parts.texts, folder, str(home.path))
    ]


def all_queries(*parts: Sessions | None) -> list[str]:
    """The different queries of sessions, in order."""
    found = [text for part in parts if part is not None for text in part.query_texts]
    return list(dict.fromkeys(found))
