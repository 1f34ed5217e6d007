"""LambdaLoss: pairs, each weighed by what its exchange would cost of NDCG."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from luthier.objectives.lists import (
    Lists,
    Similarity,
    Weighting,
    pair_weights,
    sign,
    similarities,
    take_lists,
)
from luthier.objectives.objective import Embedded, Objective, zero


class LambdaLoss(Objective):
    """Logistic loss of pairs, weighed by the NDCG that exchanging the two would cost.

        loss = mean over queries of  sum over y_i > y_j of
               w_ij |G_i - G_j| |1 / D_i - 1 / D_j| log2(1 + exp(-sigma (s_i - s_j)))
        G = (2^y - 1) / ideal DCG,  D = log2(1 + rank by the present scores)

    Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018, equation
    12 (LambdaRank in that framework; Burges et al., NIPS 2006). Ranks are taken as they are: no
    gradient flows through them.

    Shapes: columns queries [n, d] and items [u, d], and the batch's lists. sigma: > 0, the
    paper's is 1; cosines lie close together, so 10 to 20 is better for them. k: only pairs of
    which one is among the first k count (None: all), and the ideal DCG is that of the first k.
    similarity: "cosine", "dot", or "euclidean" (its negative). weighting: of a pair, the weight
    of the more relevant item ("positive"), or the less of both ("min").
    Needs: rankings; a query whose items are all equally relevant says nothing. Raises DataError.

    >>> import torch
    >>> from luthier.objectives.lists import Lists
    >>> zeros, ones = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    >>> lists = Lists(zeros, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), ones, zeros[:1])
    >>> sides = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> round(LambdaLoss()(Embedded(sides, lists=lists)).item(), 4)  # (1 - 1/log2(3)) log2(1+1/e)
    0.1668
    """

    def __init__(
        self,
        *,
        sigma: float = 1.0,
        k: int | None = None,
        similarity: Similarity = "cosine",
        weighting: Weighting = "positive",
    ) -> None:
        super().__init__()
        self.sigma, self.k = sigma, k
        self.similarity: Similarity = similarity
        self.weighting: Weighting = weighting

    def compute(self, batch: Embedded) -> Tensor:
        lists = take_lists(batch, "LambdaLoss")
        scores = sign(self.similarity) * similarities(batch, lists, self.similarity)
        better, worse = lists.pairs()
        if not len(better):
            return zero(batch)
        ranks = ranks_within(lists, scores.detach())
        gains = gains_of(lists) / ideal_dcg(lists, self.k)
        discounts = 1 / torch.log2(1 + ranks.to(scores))
        cost = (gains[better] - gains[worse]).abs()
        cost = cost * (discounts[better] - discounts[worse]).abs()
        if self.k is not None:
            cost = cost * (torch.minimum(ranks[better], ranks[worse]) <= self.k)
        weights = cost * pair_weights(lists, better, worse, self.weighting)
        wrong = torch.nn.functional.softplus(-self.sigma * (scores[better] - scores[worse]))
        queries = torch.unique(lists.rows[better])
        return (weights * wrong).sum() / math.log(2) / len(queries)


def ranks_within(lists: Lists, scores: Tensor) -> Tensor:
    """The place of each impression in its list by these scores, from 1, int64 [m]; equal scores
    by their order."""
    ranks = torch.empty_like(lists.rows)
    for start, end in lists.spans():
        order = torch.argsort(scores[start:end], descending=True, stable=True)
        ranks[start:end][order] = torch.arange(1, end - start + 1, device=ranks.device)
    return ranks


def gains_of(lists: Lists) -> Tensor:
    """2^relevance - 1, [m] (Burges et al., ICML 2005)."""
    return torch.exp2(lists.relevance) - 1


def ideal_dcg(lists: Lists, k: int | None = None) -> Tensor:
    """The DCG of each impression's list in the best order, [m]; 1 where nothing is relevant."""
    gains = gains_of(lists)
    discounts = 1 / torch.log2(1 + ranks_within(lists, gains).to(gains))
    if k is not None:
        discounts = discounts * (ranks_within(lists, gains) <= k)
    total = torch.zeros(int(lists.rows.max()) + 1, dtype=gains.dtype, device=gains.device)
    total = total.index_add(0, lists.rows, gains * discounts)
    return torch.where(total > 0, total, torch.ones_like(total))[lists.rows]
