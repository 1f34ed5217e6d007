"""Retrieval metrics of each query, from the ranks of its relevant items.

With R relevant items at ranks r_1 < r_2 < … < r_R (1 is best) and a cut-off k:

    precision_at_k     |{i: r_i <= k}| / k
    recall_at_k        |{i: r_i <= k}| / R
    f1_score_at_k      harmonic mean of those two
    hit_at_k           1 if r_1 <= k
    dcg_at_k           sum over r_i <= k of 1 / log2(r_i + 1)
    ndcg_at_k          dcg_at_k / (sum for j = 1 … min(R, k) of 1 / log2(j + 1))
    average_precision  mean over i of i / r_i                 over the whole ranking
    r_precision        |{i: r_i <= R}| / R                    over the whole ranking
    reciprocal_rank    1 / r_1                                over the whole ranking

These are trec_eval's definitions (nDCG: Järvelin and Kekäläinen 2002, binary gains). The
three names without ``_at_k`` have no cut-off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luthier.evaluation.ranking import Ints, Relevance

#: The names, in the order in which they are shown. The first is the one that decides.
METRICS = (
    "ndcg_at_k",
    "reciprocal_rank",
    "average_precision",
    "hit_at_k",
    "recall_at_k",
    "precision_at_k",
    "f1_score_at_k",
    "r_precision",
    "dcg_at_k",
)

PerQuery = dict[str, NDArray[np.float64]]


def metrics(ranks: Ints, relevance: Relevance, k: int) -> PerQuery:
    """All metrics of every query, float64 [q] each.

    ranks: int64 [pairs], ascending within a query, cut by ``relevance.indptr``.
    Every query needs at least one relevant item; ``sets.py`` sees to that.
    """
    total = relevance.counts.astype(np.float64)
    owner = np.repeat(np.arange(len(relevance)), relevance.counts)
    ordinal = np.arange(len(ranks)) - relevance.indptr[:-1][owner] + 1  # i of r_i
    within = ranks <= k

    def summed(values: NDArray[np.float64]) -> NDArray[np.float64]:
        sums: NDArray[np.float64] = np.bincount(owner, values, len(relevance)).astype(np.float64)
        return sums

    hits = summed(within.astype(np.float64))
    first = ranks[relevance.indptr[:-1]]
    dcg = summed(np.where(within, 1 / np.log2(ranks + 1.0), 0.0))
    ideal = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1.0))])
    precision, recall = hits / k, hits / total
    return {
        "ndcg_at_k": dcg / ideal[np.minimum(relevance.counts, k)],
        "reciprocal_rank": 1.0 / first,
        "average_precision": summed(ordinal / ranks) / total,
        "hit_at_k": (first <= k).astype(np.float64),
        "recall_at_k": recall,
        "precision_at_k": precision,
        "f1_score_at_k": 2 * precision * recall / np.where(hits > 0, precision + recall, 1.0),
        "r_precision": summed((ranks <= total[owner]).astype(np.float64)) / total,
        "dcg_at_k": dcg,
    }
