"""All sessions of a query as one ranking: how relevant each item is, by all its impressions.

Where the same queries come again and again, one row a query says what one a session says, in a
fraction of the steps; and estimates of an item's relevance vary less than single clicks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError
from luthier.store.atomic import cached_file


@dataclass(frozen=True)
class ByQuery:
    """queries, items: their numbers [c], sorted by query; relevance [c]; error: its standard
    error, [c], which is 0 where the relevance is known."""

    queries: Ints
    items: Ints
    relevance: Floats
    error: Floats

    def of_items(self, kept: Bools) -> ByQuery:
        """Without the items that are not kept, bool [items]."""
        at = kept[self.items]
        return ByQuery(self.queries[at], self.items[at], self.relevance[at], self.error[at])

    def above_mean(self, certainty: float = 0.0) -> Floats:
        """What each has beyond the mean of its query, [c], less so many standard errors; not
        below 0. Clicks on whatever is shown then add up to nothing, and a lucky click on what
        was hardly looked at is not taken for relevance."""
        counts = np.bincount(self.queries)
        means = np.bincount(self.queries, self.relevance) / np.maximum(counts, 1)
        beyond: Floats = self.relevance - means[self.queries] - certainty * self.error
        return np.maximum(beyond, 0.0)


def relevance_by_query(
    sessions: Sessions, clicks: Bools | Floats, examination: Floats | None = None, *,
    strength: float = 5.0,
) -> ByQuery:  # fmt: skip
    """Of each item that was shown for a query: sum of clicks / sum of examination.

    examination: P(looked at) of each impression, [m], as ``Propensities.at`` gives it; the
    quotient is then self-normalized inverse propensity scoring, the clicks over expected clicks
    of Zhang and Jones (WWW 2007). None counts all impressions alike, which is the naive share.
    strength: so many looks at the mean of the query's items are added to each, for items that
    were hardly looked at. The error is that of a Poisson count of clicks. Raises DataError.
    """
    looked = np.ones(len(sessions.owner)) if examination is None else examination
    if len(looked) != len(sessions.owner) or len(clicks) != len(sessions.owner):
        raise DataError(f"{len(clicks)} clicks of {len(sessions.owner)} impressions")
    queries, items, cell = pairs_shown(sessions)
    hits = np.bincount(cell, np.asarray(clicks, np.float64), len(queries))
    looks = np.bincount(cell, looked, len(queries))
    usual = np.bincount(queries, hits) / np.maximum(np.bincount(queries, looks), 1e-12)
    looks = np.maximum(looks + strength, 1e-12)
    found = (hits + strength * usual[queries]) / looks
    return ByQuery(queries, items, found, np.sqrt(found / looks))


def known_by_query(sessions: Sessions, relevance: Bools | Floats) -> ByQuery:
    """The same where relevance is known, of each impression, [m]: from judgments, or from a
    simulated log's truth."""
    queries, items, cell = pairs_shown(sessions)
    counts = np.bincount(cell, minlength=len(queries))
    found = np.bincount(cell, np.asarray(relevance, np.float64), len(queries)) / counts
    return ByQuery(queries, items, found, np.zeros(len(queries)))


def pairs_shown(sessions: Sessions) -> tuple[Ints, Ints, Ints]:
    """Query and item of each pair that there is, by number [c], sorted; and of each impression
    [m] the place of its pair."""
    width = max(1, len(sessions.item_names))
    cells = sessions.query_codes[sessions.owner] * width + sessions.item_codes
    names, cell = np.unique(cells, return_inverse=True)
    return names // width, names % width, cell


def to_query_rankings(
    sessions: Sessions, by_query: ByQuery, items: Mapping[str, str], destination: Path, *,
    certainty: float = 2.0,
) -> Path:  # fmt: skip
    """Write a row a query, with every item that was shown for it and its relevance.

    by_query: of ``relevance_by_query``. certainty: see ``ByQuery.above_mean``. Queries that have
    nothing above their mean with this certainty are left out. Returns destination. Raises
    DataError.
    """
    queries, codes, relevance = by_query.queries, by_query.items, by_query.above_mean(certainty)
    best = np.zeros(len(sessions.query_texts))
    np.maximum.at(best, queries, relevance)
    kept = best[queries] > 0
    queries, codes, relevance = queries[kept], codes[kept], relevance[kept]
    if not len(queries):
        hint = "more sessions, or a lower certainty"
        raise DataError("no query has anything relevant to learn from", hint=hint)
    names = [sessions.item_names[code] for code in codes]
    missing = [name for name in names if not items.get(name)]
    if missing:
        raise DataError(f"{len(missing):,} items have no text, such as {missing[0]!r}")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(queries)) + 1, [len(queries)]])
    offsets = pa.array(starts.astype(np.int32))
    texts = pa.array([items[name] for name in names], pa.string())
    table = pa.table(
        {
            "query": pa.array([sessions.query_texts[q] for q in queries[starts[:-1]]]),
            "items": pa.ListArray.from_arrays(offsets, texts),
            "relevance": pa.ListArray.from_arrays(offsets, pa.array(relevance)),
        }
    )
    with (
        cached_file(destination) as aside,
        pa.OSFile(str(aside), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    return destination
