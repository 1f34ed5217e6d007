"""ListwiseSoftmaxLoss: what was clicked stands out of its list, and of the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from luthier.objectives.lists import Lists, Similarity, all_similarities, take_lists
from luthier.objectives.objective import Embedded, Objective, zero


class ListwiseSoftmaxLoss(Objective):
    """Cross-entropy of the relevant items of a list, in-batch negatives among the others.

        loss = mean over queries of  sum_i  w_i y_i * -log  exp(s_i / T) / sum_j exp(s_j / T)
        i over relevant items, j over the list's items and the in-batch negatives

    Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML 2007,
    section 4; with w_i = 1 / propensity it is unbiased by position: Ai et al., SIGIR 2018,
    arXiv:1804.05938, section 4. It is the sum over clicks, not their mean: so it is linear in
    the weights, which is what makes it unbiased.

    Shapes: columns queries [n, d] and items [u, d], and the batch's lists. temperature: > 0,
    0.05 is usual for cosines. in_batch_negatives: items of other queries count in the sum below;
    not those that were shown for the same query. false_negative_margin: and not those that are
    nearer to the query than the relevant item less this margin (None: all count), as in
    de Souza P. Moreira et al., NV-Retriever, 2024, arXiv:2407.15831, section 3. similarity:
    "cosine", "dot", or "euclidean" (its negative).
    Needs: rankings; a query without a relevant item says nothing. Raises DataError.

    >>> import torch
    >>> from luthier.objectives.lists import Lists
    >>> zeros, ones = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    >>> lists = Lists(zeros, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), ones, zeros[:1])
    >>> sides = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    >>> round(ListwiseSoftmaxLoss(temperature=1.0)(Embedded(sides, lists=lists)).item(), 4)
    0.3133
    """

    def __init__(
        self,
        *,
        temperature: float = 0.05,
        in_batch_negatives: bool = True,
        false_negative_margin: float | None = None,
        similarity: Literal["cosine", "dot", "euclidean"] = "cosine",
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.in_batch_negatives = in_batch_negatives
        self.false_negative_margin = false_negative_margin
        self.similarity: Similarity = similarity

    def compute(self, batch: Embedded) -> Tensor:
        lists = take_lists(batch, "ListwiseSoftmaxLoss")
        relevant = torch.nonzero(lists.relevance * lists.weights > 0).squeeze(1)
        among = self._own(batch, lists, relevant)
        alone = among.sum(1) < 2  # of a phase that leaves it nothing to stand out of
        scores = all_similarities(batch, self.similarity)[lists.rows[relevant]]  # [p, u]
        own = scores.gather(1, lists.items[relevant][:, None])
        if self.in_batch_negatives:
            others = ~_shown(batch, lists)[lists.rows[relevant]]
            if self.false_negative_margin is not None:
                others &= (scores <= own - self.false_negative_margin).detach()
            self.stats = {"in-batch negatives": float(others.sum()) / max(1, len(relevant))}
            among, alone = among | others, alone & (lists.phase is not None)
        kept = ~alone
        if not bool(kept.any()):
            return zero(batch)
        logits = (scores / self.temperature).masked_fill(~among, -torch.inf)
        found = torch.logsumexp(logits, 1) - own.squeeze(1) / self.temperature
        worth = lists.relevance[relevant] * lists.weights[relevant]
        queries = torch.unique(lists.rows[relevant[kept]])
        return (worth * found)[kept].sum() / len(queries)

    def _own(self, batch: Embedded, lists: Lists, relevant: Tensor) -> Tensor:
        """The items of its list that each relevant impression is compared with, itself among
        them, bool [p, u]."""
        p, u = len(relevant), len(batch.columns[1])
        same = lists.rows[relevant][:, None] == lists.rows[None]  # [p, m]
        first, second = torch.nonzero(same, as_tuple=True)
        counted = lists.counts(relevant[first], second) | (lists.relevance[second] > 0)
        found = torch.zeros(p, u, dtype=torch.bool, device=relevant.device)
        found[first[counted], lists.items[second[counted]]] = True
        return found


def _shown(batch: Embedded, lists: Lists) -> Tensor:
    """Which items were shown for a query, in any of the batch's searches for it, bool [n, u]."""
    n, u = len(batch.columns[0]), len(batch.columns[1])
    found = torch.zeros(n, u, dtype=torch.bool, device=lists.rows.device)
    found[lists.rows, lists.items] = True
    same = lists.queries[:, None] == lists.queries[None]
    if int(same.sum()) == n:
        return found
    return (same.float() @ found.float()) > 0
