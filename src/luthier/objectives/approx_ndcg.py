"""ApproxNDCGLoss: NDCG with ranks that have a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.objectives.lambda_loss import gains_of, ideal_dcg, ranks_within
from luthier.objectives.lists import Similarity, sign, similarities, take_lists
from luthier.objectives.objective import Embedded, Objective, zero


class ApproxNDCGLoss(Objective):
    """1 - NDCG, with ranks approximated by sigmoids.

        rank_i = 1 + sum_{j != i} sigmoid((s_j - s_i) / T)
        loss = mean over queries of  sum_i w_i G_i (1 / D(best rank_i) - 1 / D(rank_i))
        G = (2^y - 1) / ideal DCG,  D(r) = log2(1 + r)

    Qin et al., A general approximation framework for direct optimization of information
    retrieval measures, Information Retrieval 13, 2010, section 4; Bruch et al., SIGIR 2019.
    With all weights 1 it is 1 - ApproxNDCG. Weights stand with the gains of clicks but not in the
    ideal DCG, where those of a list's only click would cancel.

    Shapes: columns queries [n, d] and items [u, d], and the batch's lists. temperature: > 0;
    0.1 is Bruch et al.'s. similarity: "cosine", "dot", or "euclidean" (its negative).
    Needs: rankings; a query without a relevant item says nothing. Raises DataError.

    >>> import torch
    >>> from luthier.objectives.lists import Lists
    >>> zeros, ones = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    >>> lists = Lists(zeros, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), ones, zeros[:1])
    >>> sides = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> round(ApproxNDCGLoss(temperature=1.0)(Embedded(sides, lists=lists)).item(), 4)
    0.154
    """

    def __init__(self, *, temperature: float = 0.1, similarity: Similarity = "cosine") -> None:
        super().__init__()
        self.temperature = temperature
        self.similarity: Similarity = similarity

    def compute(self, batch: Embedded) -> Tensor:
        lists = take_lists(batch, "ApproxNDCGLoss")
        scores = sign(self.similarity) * similarities(batch, lists, self.similarity)
        relevant = torch.nonzero(lists.relevance > 0).squeeze(1)
        same = lists.rows[relevant][:, None] == lists.rows[None]
        same[torch.arange(len(relevant), device=same.device), relevant] = False
        first, second = torch.nonzero(same, as_tuple=True)
        counted = lists.counts(relevant[first], second) | (lists.relevance[second] > 0)
        first, second = first[counted], second[counted]
        if not len(first):
            return zero(batch)
        above = torch.sigmoid((scores[second] - scores[relevant[first]]) / self.temperature)
        ranks = torch.ones_like(scores[relevant]).index_add(0, first, above)
        best = ranks_within(lists, lists.relevance)[relevant].to(scores)
        gains = (lists.weights * gains_of(lists) / ideal_dcg(lists))[relevant]
        lost = gains * (1 / torch.log2(1 + best) - 1 / torch.log2(1 + ranks))
        return lost.sum() / len(torch.unique(lists.rows[relevant[first]]))
