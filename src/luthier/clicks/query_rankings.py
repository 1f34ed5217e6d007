"""All sessions of a query as one ranking: how relevant each item is, by all its impressions.

Where the same queries come again and again, one row a query says what one a session says, in a
fraction of the steps; and estimates of an item's relevance vary less than single clicks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError
from luthier.store.atomic import cached_file


def relevance_by_query(
    sessions: Sessions, clicks: Bools | Floats, examination: Floats | None = None, *,
    strength: float = 0.0,
) -> tuple[Ints, Ints, Floats]:  # fmt: skip
    """Of each item that was shown for a query: sum of clicks / sum of examination.

    examination: P(looked at) of each impression, [m], as ``Propensities.at`` gives it; the
    quotient is then self-normalized inverse propensity scoring, the clicks over expected clicks
    of Zhang and Jones (WWW 2007). None counts all impressions alike, which is the naive share.
    strength: so many looks at the mean of all items are added to each, for items that were
    hardly looked at. Returns queries and items, by number, and their relevance, [c] each.
    """
    looked = np.ones(len(sessions.owner)) if examination is None else examination
    if len(looked) != len(sessions.owner) or len(clicks) != len(sessions.owner):
        raise DataError(f"{len(clicks)} clicks of {len(sessions.owner)} impressions")
    n = max(1, len(sessions.item_names))
    cells = sessions.query_codes[sessions.owner] * n + sessions.item_codes
    names, cell = np.unique(cells, return_inverse=True)
    hits = np.bincount(cell, np.asarray(clicks, np.float64), len(names))
    looks = np.bincount(cell, looked, len(names))
    usual = hits.sum() / max(float(looks.sum()), 1e-12)
    found = (hits + strength * usual) / np.maximum(looks + strength, 1e-12)
    return names // n, names % n, found


def to_query_rankings(
    sessions: Sessions, by_query: tuple[Ints, Ints, Floats], items: Mapping[str, str],
    destination: Path, *, above_mean: bool = True,
) -> Path:  # fmt: skip
    """Write a row a query, with every item that was shown for it and its relevance.

    by_query: of ``relevance_by_query``. above_mean: only what an item has beyond the mean of its
    query counts, so that clicks on whatever is shown add up to nothing. Queries whose items are
    all alike are left out. Returns destination. Raises DataError.
    """
    queries, codes, relevance = by_query
    if above_mean:
        counts = np.bincount(queries)
        means = np.bincount(queries, relevance) / np.maximum(counts, 1)
        relevance = np.maximum(relevance - means[queries], 0.0)
    best = np.zeros(len(sessions.query_texts))
    np.maximum.at(best, queries, relevance)
    kept = best[queries] > 0
    queries, codes, relevance = queries[kept], codes[kept], relevance[kept]
    if not len(queries):
        raise DataError("no query has anything relevant to learn from")
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
