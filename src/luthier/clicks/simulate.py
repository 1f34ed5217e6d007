"""Logs with known bias, of a collection whose relevant documents are known.

Somebody asks a query; a lexical ranker, whose scores are disturbed anew each time, shows ten
documents; a click model whose parameters are known clicks. What an estimator says of such a log
can be held against the truth. The disturbance moves documents up and down, as experiments and
changes of a ranking do, and as propensities need it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from luthier.batches.arithmetic import below, derive
from luthier.clicks.chance import uniform
from luthier.clicks.click_models import ClickModel
from luthier.clicks.sessions import SCHEMA, Bools, Floats, Ints, Sessions
from luthier.errors import DataError
from luthier.evaluation.bm25 import words

#: Documents that a query's ranker may show at all, as many times as are shown.
_DEPTH = 3
#: Sessions that are worked on at once.
_CHUNK = 20_000
#: The first session's time, 2024-01-01, and seconds between two sessions.
_START, _APART = 1_704_067_200.0, 30.0


@dataclass(frozen=True)
class Collection:
    """queries [q], documents [d], their names; relevant: rows of documents of each query."""

    queries: tuple[str, ...]
    documents: tuple[str, ...]
    names: tuple[str, ...]
    relevant: tuple[tuple[int, ...], ...]

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[str, str]]) -> Collection:
        """Of queries with a relevant document each; the same query or document may come often."""
        queries: dict[str, list[int]] = {}
        documents: dict[str, int] = {}
        for query, document in pairs:
            row = documents.setdefault(document, len(documents))
            queries.setdefault(query, []).append(row)
        names = tuple(f"d{row}" for row in range(len(documents)))
        relevant = tuple(tuple(dict.fromkeys(rows)) for rows in queries.values())
        return cls(tuple(queries), tuple(documents), names, relevant)


@dataclass(frozen=True)
class Simulated:
    """A log and the truth behind it. attraction: float64 [m], of each impression. probability:
    P(click), [m]. ranking: rows of ``sessions`` by query, as ``Collection.queries``."""

    sessions: Sessions
    attraction: Floats
    probability: Floats
    clicked: Bools


def simulate(
    collection: Collection, model: ClickModel, *, sessions: int, results: int = 10,
    noise: float = 1.0, attraction: tuple[float, float] = (0.1, 0.9), users: int = 100,
    preference: Floats | None = None, seed: int = 0,
) -> Simulated:  # fmt: skip
    """A log of so many searches.

    noise: the spread of what is added to scores, in standard deviations of the scores of a
    query's candidates; 0 shows the same list each time. attraction: of documents that are not
    relevant, and of relevant ones. preference: float64 [d], what the ranker adds to the scores of
    documents, in the same unit, whatever is asked: new ones, short ones, those that pay. Raises
    DataError.
    """
    if sessions < 1 or results < 1 or users < 1:
        raise DataError("sessions, results and users are whole numbers from 1 on")
    if not collection.queries or not collection.documents:
        raise DataError("the collection is empty")
    if noise < 0 or not all(0 <= a <= 1 for a in attraction):
        raise DataError("noise is not negative, and attraction from 0 to 1")
    if preference is not None and len(preference) != len(collection.documents):
        raise DataError(f"{len(preference)} preferences of {len(collection.documents)} documents")
    ranker = _Ranker(collection, _DEPTH * results)
    if preference is not None:
        ranker.scores = ranker.scores + np.asarray(preference, np.float64)[ranker.candidates]
    shown = min(results, len(collection.documents))
    chosen = below(derive("query", seed), sessions, len(collection.queries))
    parts = []
    for start in range(0, sessions, _CHUNK):
        queries = chosen[start : start + _CHUNK]
        rows = _rankings(ranker, queries, shown, noise, seed, start)
        relevant = ranker.is_relevant(queries, rows)
        attracts = np.where(relevant, attraction[1], attraction[0])
        clicks = model.clicks(attracts, "clicks", seed, start)
        parts.append((rows, attracts, model.probabilities(attracts), clicks))
    rows, attracts, chance, clicks = (np.concatenate(found) for found in zip(*parts, strict=True))
    table = _table(collection, chosen, rows, clicks, users, seed)
    flat = (attracts.ravel(), chance.ravel(), clicks.ravel())
    return Simulated(Sessions(table), *flat)


class _Ranker:
    """The best candidates of each query by the words that it shares with documents."""

    def __init__(self, collection: Collection, depth: int) -> None:
        self._relevant = collection.relevant
        depth = min(depth, len(collection.documents))
        index = _Index(collection.documents)
        self.candidates = np.empty((len(collection.queries), depth), np.int64)
        self.scores = np.empty(self.candidates.shape)
        for number, query in enumerate(collection.queries):
            scores = index.scores(query)
            best = np.argsort(-scores, kind="stable")[:depth]
            found = scores[best]
            self.candidates[number] = best
            self.scores[number] = (found - found.mean()) / (found.std() + 1e-9)

    def is_relevant(self, queries: Ints, rows: Ints) -> Bools:
        """Whether each row [n, K] answers its query [n]."""
        size = int(self.candidates.max()) + 1
        true = np.array(
            sorted({q * size + d for q, found in enumerate(self._relevant) for d in found
                    if d < size}), np.int64,
        )  # fmt: skip
        found: Bools = np.isin(queries[:, None] * size + rows, true)
        return found


class _Index:
    """Words of documents by tf-idf with lengths taken out: what a plain search engine does."""

    def __init__(self, documents: Sequence[str]) -> None:
        self._count = len(documents)
        lists: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for row, document in enumerate(documents):
            counts = Counter(words(document))
            length = math.sqrt(sum(counts.values())) or 1.0
            for word, count in counts.items():
                lists[word].append((row, math.sqrt(count) / length))
        self._lists = {
            word: (np.array([r for r, _ in found]), np.array([w for _, w in found]))
            for word, found in lists.items()
        }

    def scores(self, query: str) -> Floats:
        """float64 [documents]."""
        found = np.zeros(self._count)
        for word in dict.fromkeys(words(query)):
            if word in self._lists:
                rows, weights = self._lists[word]
                found[rows] += weights * math.log(1 + self._count / len(rows))
        return found


def _rankings(
    ranker: _Ranker, queries: Ints, shown: int, noise: float, seed: int, start: int
) -> Ints:  # fmt: skip
    """Documents shown, int64 [n, K], best disturbed score first."""
    scores = ranker.scores[queries]
    if noise:
        u = np.clip(uniform(scores.shape, "noise", seed, start), 1e-12, 1 - 1e-12)
        scores = scores + noise * np.log(u / (1 - u)) * math.sqrt(3) / math.pi  # unit variance
    order = np.argsort(-scores, axis=1, kind="stable")[:, :shown]
    found: Ints = np.take_along_axis(ranker.candidates[queries], order, axis=1)
    return found


def _table(
    collection: Collection, queries: Ints, rows: Ints, clicks: Bools, users: int, seed: int
) -> pa.Table:
    n, k = rows.shape
    times = _START + _APART * np.arange(n)
    counts = clicks.sum(axis=1)
    at, place = np.nonzero(clicks)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    even = np.arange(0, n * k + 1, k, dtype=np.int32)

    def lists(offsets: np.ndarray, values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), values)

    def named(texts: Sequence[str], codes: Ints) -> pa.Array:
        return pa.array(texts, pa.string()).take(pa.array(codes))

    who = below(derive("user", seed), n, users)
    nothing = pa.nulls(len(at), pa.float64())
    columns = {
        "session": pa.array([f"s{i}" for i in range(n)]),
        "query": named(collection.queries, queries),
        "user": pa.array([f"u{i}" for i in who]),
        "time": pa.array(times),
        "irrelevant": pa.array(np.zeros(n, bool)),
        "items": lists(even, named(collection.names, rows.ravel())),
        "positions": lists(even, pa.array(np.tile(np.arange(1, k + 1, dtype=np.int32), n))),
        "scores": lists(even, pa.nulls(n * k, pa.float64())),
        "event_results": lists(starts, pa.array(place.astype(np.int32))),
        "event_types": lists(starts, pa.array(["click"] * len(at), pa.string())),
        "event_grades": lists(starts, nothing),
        "event_dwells": lists(starts, nothing),
        "event_times": lists(starts, pa.array(times[at] + 1.0 + place)),
        "event_ids": lists(starts, pa.array([f"s{i}-{p}" for i, p in zip(at, place, strict=True)],
                                            pa.string())),
    }  # fmt: skip
    return pa.table(columns, schema=SCHEMA)
