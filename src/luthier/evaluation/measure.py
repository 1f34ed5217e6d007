"""Measure an encoder on an evaluation set."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError, TrainingError
from luthier.evaluation.ranking import Distance, Floats, Ranking, search
from luthier.evaluation.reranking import METRICS as RERANKING
from luthier.evaluation.reranking import RankedSet, reranked
from luthier.evaluation.retrieval import METRICS, metrics
from luthier.evaluation.sets import EvaluationSet, RetrievalSet, ScoredSet

Encode = Callable[[list[str]], NDArray[np.floating[Any]]]

#: The metric that decides the verdict, and all metrics in order of display, by kind of set.
SHOWN: Mapping[str, tuple[str, ...]] = {
    "retrieval": METRICS,
    "rankings": RERANKING,
    "scored": ("spearman", "pearson"),
    "margin": ("spearman", "pearson", "mse"),
}
#: Kinds whose metrics are means over queries.
BY_QUERY = ("retrieval", "rankings")
#: Metrics where less is better.
LESS_IS_BETTER = frozenset({"mse"})
_FORMAT = 1


@dataclass(frozen=True)
class Evaluation:
    """What was measured, query by query.

    per_query: for retrieval every metric, float64 [q]; for scored and margin sets
    ``similarity`` and ``target``, float64 [n]; for rankings as for retrieval. metrics: their
    means (or correlations).
    top: int64 [q, k] rows of the index, best first, -1 where there are fewer; scores beside
    them. set_id: evaluations with the same one can be compared. earlier: of the sets of former
    updates, of the same model.
    """

    kind: str
    set_id: str
    k: int
    distance: str
    metrics: dict[str, float]
    per_query: dict[str, NDArray[np.float64]]
    top: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    scores: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    seconds: float = 0.0
    earlier: tuple[Evaluation, ...] = ()

    @property
    def main(self) -> str:
        """The name of the metric that decides the verdict."""
        return SHOWN[self.kind][0]

    def __len__(self) -> int:
        return len(next(iter(self.per_query.values())))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON. Reading it back gives the same numbers, bit for bit, but for
        the displayed scores, which keep six decimals."""
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "set_id": self.set_id,
            "k": self.k,
            "distance": self.distance,
            "metrics": self.metrics,
            "per_query": {name: values.tolist() for name, values in self.per_query.items()},
            "top": self.top.tolist(),
            "scores": [[_shown(s) for s in row] for row in self.scores.tolist()],
            "seconds": self.seconds,
            **({"earlier": [found.to_dict() for found in self.earlier]} if self.earlier else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of ``to_dict``. Raises DataError for another format."""
        if data.get("format") != _FORMAT:
            raise DataError(f"an evaluation of format {data.get('format')!r}, not {_FORMAT}")
        q, k = len(data["top"]), int(data["k"])
        scores = [[np.nan if s is None else s for s in row] for row in data["scores"]]
        return cls(
            kind=data["kind"],
            set_id=data["set_id"],
            k=k,
            distance=data["distance"],
            metrics=dict(data["metrics"]),
            per_query={n: np.asarray(v, dtype=np.float64) for n, v in data["per_query"].items()},
            top=np.asarray(data["top"], dtype=np.int64).reshape(q, k if q else 0),
            scores=np.asarray(scores, dtype=np.float64).reshape(q, k if q else 0),
            seconds=data["seconds"],
            earlier=tuple(cls.from_dict(found) for found in data.get("earlier", ())),
        )


def _shown(score: float) -> float | None:
    return None if math.isnan(score) else round(score, 6)


def evaluate(
    encode: Encode,
    evaluation_set: EvaluationSet,
    *,
    k: int = 10,
    distance: Distance = "cosine",
    encode_index: Encode | None = None,
) -> Evaluation:
    """Measure ``encode`` (texts to embeddings [n, d]) on a set; each text is encoded once.

    k: the cut-off of the metrics named ``_at_k``, and how many results are kept to show.
    distance: how embeddings are compared; for scored and margin sets "euclidean" means the
    negative distance. encode_index: another encoder for the index (``index_model``).
    Raises TrainingError when a vector is not finite.
    """
    started = time.perf_counter()
    if isinstance(evaluation_set, ScoredSet):
        similarity = _similarities(encode, evaluation_set, distance)
        return scored_evaluation(
            evaluation_set, similarity, distance, time.perf_counter() - started
        )
    if isinstance(evaluation_set, RankedSet):
        return _reranked(encode, encode_index, evaluation_set, k, distance, started)
    queries, index = _encoded(encode, encode_index or encode, evaluation_set)
    ranking = search(
        queries, index, evaluation_set.relevance, own=evaluation_set.own, k=k, distance=distance
    )
    return retrieval_evaluation(evaluation_set, ranking, k, distance, time.perf_counter() - started)


def _reranked(
    encode: Encode, encode_items: Encode | None, found: RankedSet, k: int, distance: Distance,
    started: float,
) -> Evaluation:  # fmt: skip
    vectors = np.asarray(encode(list(found.texts)))
    items = vectors if encode_items is None else np.asarray(encode_items(list(found.texts)))
    if not (np.isfinite(vectors).all() and np.isfinite(items).all()):
        raise TrainingError("the model gives vectors that are not finite numbers")
    per_query = reranked(found, vectors, items, distance, k)
    means = {name: float(per_query[name].mean()) for name in RERANKING}
    seconds = time.perf_counter() - started
    return Evaluation("rankings", found.id, k, distance, means, per_query, seconds=seconds)


def retrieval_evaluation(
    found: RetrievalSet, ranking: Ranking, k: int, distance: str, seconds: float
) -> Evaluation:
    """The metrics of a ranking, whoever made it."""
    per_query = metrics(ranking.ranks, found.relevance, k)
    means = {name: float(per_query[name].mean()) for name in METRICS}
    return Evaluation(
        "retrieval", found.id, k, distance, means, per_query, ranking.top, ranking.scores, seconds
    )


def scored_evaluation(
    found: ScoredSet, similarity: NDArray[np.float64], distance: str, seconds: float
) -> Evaluation:
    """Correlations of similarities [n] (or their differences) with the targets."""
    per_query = {"similarity": similarity, "target": found.targets}
    means = {
        "spearman": correlation(middle_ranks(similarity), middle_ranks(found.targets)),
        "pearson": correlation(similarity, found.targets),
    }
    if found.kind == "margin":
        means["mse"] = float(np.mean((similarity - found.targets) ** 2))
    return Evaluation(found.kind, found.id, 0, distance, means, per_query, seconds=seconds)


def middle_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, ascending; equal values share the mean of their ranks.

    >>> middle_ranks(np.array([5.0, 1.0, 5.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    return ranks


def correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's r, and 0 where one side is constant: such a model tells nothing apart."""
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum() / size) if size > 1e-12 * max(len(x), 1) else 0.0


def _encoded(encode: Encode, encode_index: Encode, found: RetrievalSet) -> tuple[Floats, Floats]:
    if encode is not encode_index:
        return encode(list(found.queries)), encode_index(list(found.index))
    vectors, rows = _once(encode, [found.queries, found.index])
    return vectors[rows[0]], vectors[rows[1]]


def _similarities(encode: Encode, found: ScoredSet, distance: Distance) -> NDArray[np.float64]:
    columns = [found.first, found.second, *([found.third] if found.third else [])]
    vectors, rows = _once(encode, columns)
    vectors = vectors.astype(np.float64)
    if not np.isfinite(vectors).all():
        raise TrainingError("the model gives vectors that are not finite numbers")
    if distance == "cosine":
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.where(norms > 0, norms, 1)

    def similar(a: Floats, b: Floats) -> NDArray[np.float64]:
        if distance == "euclidean":
            return cast(NDArray[np.float64], -np.linalg.norm(a - b, axis=1))
        return cast(NDArray[np.float64], np.einsum("nd,nd->n", a, b))

    first, second = vectors[rows[0]], vectors[rows[1]]
    if found.third is None:
        return similar(first, second)
    return similar(first, second) - similar(first, vectors[rows[2]])


def _once(encode: Encode, columns: list[tuple[str, ...]]) -> tuple[Floats, list[NDArray[np.int64]]]:
    """Vectors of the distinct texts, and for each column the rows in them."""
    row: dict[str, int] = {}
    places = [
        np.array([row.setdefault(text, len(row)) for text in column], dtype=np.int64)
        for column in columns
    ]
    vectors = np.asarray(encode(list(row)))
    if vectors.ndim != 2 or len(vectors) != len(row):
        raise TrainingError(f"the encoder gave an array {vectors.shape} for {len(row)} texts")
    return vectors, places
