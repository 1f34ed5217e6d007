"""What a model is measured on: queries and what answers them, or scored sentence pairs.

pairs, triplets   queries are the distinct anchors, the index the distinct positives and
                  negatives; all positives of an anchor are relevant to it
labelled          every text is a query against all others; the same label is relevant
scored            the similarity of each pair against its score
margin            the difference of two similarities against the teacher's difference
rankings          the items of each search, ranked anew (``reranking.py``)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from luthier.data.rankings import Rankings
from luthier.errors import DataError
from luthier.evaluation.ranking import Ints, Relevance
from luthier.evaluation.reranking import RankedSet, ranked_set

if TYPE_CHECKING:
    from luthier.data import Dataset

#: Beyond these a seeded sample is measured, and a note says so.
MAX_QUERIES = 10_000
MAX_INDEX = 100_000


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, the index that is searched, and which rows of it are relevant.

    own: int64 [q], the row of the index that is the query itself, or -1: it is not counted.
    notes: what was left out, in words.
    """

    queries: tuple[str, ...]
    index: tuple[str, ...]
    relevance: Relevance
    own: Ints
    notes: tuple[str, ...] = ()

    kind = "retrieval"

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def id(self) -> str:
        """sha256 of the content: evaluations are comparable when they share it."""
        numbers = (self.relevance.indptr, self.relevance.rows, self.own)
        return _fingerprint(self.kind, (self.queries, self.index), numbers)

    def facts(self) -> dict[str, int | float]:
        """Sizes for the report."""
        return {
            "queries": len(self.queries),
            "texts searched": len(self.index),
            "relevant per query": round(float(self.relevance.counts.mean()), 2),
        }


@dataclass(frozen=True)
class ScoredSet:
    """Texts [n] whose similarities should follow ``targets`` float64 [n].

    Without ``third`` the similarity of ``first`` and ``second`` is measured; with it, how
    much nearer ``second`` is to ``first`` than ``third`` is (``targets`` are margins).
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    targets: NDArray[np.float64]
    third: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.first)

    @property
    def kind(self) -> str:
        """``scored`` or ``margin``."""
        return "scored" if self.third is None else "margin"

    @property
    def id(self) -> str:
        """sha256 of the content: evaluations are comparable when they share it."""
        texts = (self.first, self.second, self.third or ())
        return _fingerprint(self.kind, texts, (self.targets,))

    def facts(self) -> dict[str, int | float]:
        """Sizes for the report."""
        return {"pairs" if self.third is None else "triplets": len(self.first)}


EvaluationSet = RetrievalSet | ScoredSet | RankedSet


def evaluation_set(
    dataset: Dataset,
    index: Dataset | None = None,
    *,
    exclude_self: bool = True,
    max_queries: int = MAX_QUERIES,
    max_index: int = MAX_INDEX,
    seed: int = 0,
) -> EvaluationSet:
    """The evaluation set of a dataset.

    index: more texts to search (``EvaluationCallback.index_data``); for labelled data those
    with the query's label are relevant. exclude_self: a query does not find its own text.
    max_queries, max_index: above these a seeded sample is measured; what is relevant to a
    kept query is always kept.
    Raises DataError when no query has anything to find.
    """
    rng = np.random.default_rng(seed)
    if isinstance(dataset, Rankings):
        if index is not None:
            hint = "give pairs as query_data, or leave index_data out"
            raise DataError("the items of rankings are ranked, not a whole index", hint=hint)
        return ranked_set(dataset, max_queries, rng)
    if dataset.form in ("scored", "margin"):
        if index is not None:
            raise DataError(
                f"{dataset.form} data is not searched, so index_data has no meaning for it",
                hint="leave index_data out, or give pairs as query_data",
            )
        return _scored(dataset, max_queries, rng)
    collected = _labelled(dataset, index) if dataset.form == "labelled" else _pairs(dataset, index)
    return _retrieval(*collected, exclude_self, max_queries, max_index, rng)


def _scored(dataset: Dataset, limit: int, rng: np.random.Generator) -> ScoredSet:
    n = len(dataset)
    rows = np.arange(n)
    notes: tuple[str, ...] = ()
    if n > limit:
        rows = np.sort(rng.choice(n, limit, replace=False))
        notes = (f"measured on a sample of {limit:,} of {n:,} rows",)
    if not n:
        raise DataError("the evaluation data has no rows")
    columns = [tuple(dataset.texts(role, rows)) for role in dataset.roles]
    targets = dataset.array("score" if dataset.form == "scored" else "margin")[rows]
    third = columns[2] if dataset.form == "margin" else None
    return ScoredSet(columns[0], columns[1], targets.astype(np.float64), third, notes)


class _Index:
    """Distinct texts, each with its row."""

    def __init__(self) -> None:
        self.rows: dict[str, int] = {}

    def add(self, texts: Iterable[str]) -> list[int]:
        rows = self.rows
        return [rows.setdefault(text, len(rows)) for text in texts]


_Collected = tuple[list[str], "_Index", list[list[int]]]


def _pairs(dataset: Dataset, index: Dataset | None) -> _Collected:
    """Distinct anchors, the index, and the relevant rows of each anchor."""
    found, relevant = _Index(), dict[str, list[int]]()
    everything = np.arange(len(dataset))
    anchors = dataset.texts(dataset.roles[0], everything)
    positives = found.add(dataset.texts(dataset.roles[1], everything))
    for anchor, row in zip(anchors, positives, strict=True):
        relevant.setdefault(anchor, []).append(row)
    for role in dataset.roles[2:]:
        found.add(dataset.texts(role, everything))
    if index is not None:
        for role in index.roles if len(index.roles) == 1 else index.roles[1:]:
            found.add(index.texts(role, np.arange(len(index))))
    return list(relevant), found, list(relevant.values())


def _labelled(dataset: Dataset, index: Dataset | None) -> _Collected:
    """Every distinct text a query; relevant is what shares one of its labels."""
    queries, found = dict[str, set[str]](), _Index()
    members: dict[str, list[int]] = {}
    for text, label in _with_labels(dataset):
        queries.setdefault(text, set()).add(label)
    searched = [dataset] if index is None else [index]
    for one in searched:
        if one.form != "labelled":
            raise DataError(
                f"the queries are labelled, but index_data is {one.form}",
                hint="index_data needs the columns text and label too",
            )
        pairs = list(_with_labels(one))
        for row, (_, label) in zip(found.add(text for text, _ in pairs), pairs, strict=True):
            members.setdefault(label, []).append(row)
    relevant = [
        [row for label in labels for row in members.get(label, ())] for labels in queries.values()
    ]
    return list(queries), found, relevant


def _with_labels(dataset: Dataset) -> Iterable[tuple[str, str]]:
    texts = dataset.texts(dataset.roles[0], np.arange(len(dataset)))
    codes = dataset.array("label").tolist()
    names = {code: dataset.class_name(code) for code in set(codes)}
    return zip(texts, (names[code] for code in codes), strict=True)


def _retrieval(
    queries: list[str],
    index: _Index,
    relevant: list[list[int]],
    exclude_self: bool,
    max_queries: int,
    max_index: int,
    rng: np.random.Generator,
) -> RetrievalSet:
    notes: list[str] = []
    own = [index.rows.get(query, -1) if exclude_self else -1 for query in queries]
    answerable = [i for i, rows in enumerate(relevant) if any(row != own[i] for row in rows)]
    if not answerable:
        raise DataError(
            "no query has anything relevant to find",
            hint="a label needs two texts at least, a pair two different texts",
        )
    if len(answerable) < len(queries):
        left_out = len(queries) - len(answerable)
        notes.append(
            f"{left_out:,} of {len(queries):,} queries have nothing relevant and are left out"
        )
    if len(answerable) > max_queries:
        notes.append(f"measured on a sample of {max_queries:,} of {len(answerable):,} queries")
        answerable = sorted(rng.choice(answerable, max_queries, replace=False).tolist())
    kept = [np.setdiff1d(relevant[i], [own[i]]) for i in answerable]
    relevance = Relevance.of_lists([rows.tolist() for rows in kept])
    rows = np.array([own[i] for i in answerable], dtype=np.int64)
    texts = list(index.rows)
    if len(texts) > max_index:
        texts, relevance, rows = _smaller(texts, relevance, rows, max_index, rng)
        notes.append(
            f"searched in a sample of {len(texts):,} of {len(index.rows):,} items: easier than all"
        )
    picked = tuple(queries[i] for i in answerable)
    return RetrievalSet(picked, tuple(texts), relevance, rows, tuple(notes))


def _smaller(
    texts: list[str], relevance: Relevance, own: Ints, limit: int, rng: np.random.Generator
) -> tuple[list[str], Relevance, Ints]:
    """Keep every relevant item and a sample of the others, in the same order."""
    needed = np.zeros(len(texts), dtype=bool)
    needed[relevance.rows] = True
    others = np.flatnonzero(~needed)
    room = max(0, limit - int(needed.sum()))
    needed[rng.choice(others, min(room, len(others)), replace=False)] = True
    new_row = np.where(needed, np.cumsum(needed) - 1, -1)
    moved = Relevance(relevance.indptr, new_row[relevance.rows])
    own = np.where(own >= 0, new_row[np.maximum(own, 0)], -1)
    return [texts[i] for i in np.flatnonzero(needed)], moved, own


def _fingerprint(
    kind: str, texts: Sequence[Sequence[str]], numbers: Sequence[NDArray[np.generic]]
) -> str:
    digest = hashlib.sha256(kind.encode())
    for column in texts:
        digest.update(f"\0column {len(column)}".encode())
        for text in column:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"\0{len(data)}:".encode() + data)
    for array in numbers:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
