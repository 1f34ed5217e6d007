"""ProbMarginRankingLoss and its cosine form: the margin losses of Embedding Studio."""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.objectives.lists import (
    Similarity,
    Weighting,
    pair_weights,
    sign,
    similarities,
    take_lists,
)
from luthier.objectives.objective import Embedded, Objective, zero


class ProbMarginRankingLoss(Objective):
    """The chance that a pair is in the wrong order by less than a margin.

        d = s(positive) - s(negative),  t = 1 for a similarity, -1 for a distance
        loss = mean over pairs of  c * sigmoid(margin - t d)

    Embedding Studio, ``ProbMarginRankingLoss``; a smooth form of the ranking hinge of Joachims,
    Optimizing search engines using clickthrough data, KDD 2002, section 4.

    Shapes: columns queries [n, d] and items [u, d], and the batch's lists. Pairs are two items of
    one query of which one is more relevant. margin: the reference's is 1. similarity: "cosine",
    "dot" or "euclidean". min_abs_difference_threshold, max_abs_difference_threshold: only pairs
    with min < |d| < max count; where none is left the loss is 0, and so is its gradient.
    weighting: c is the less of the two weights ("min", the reference's), or the weight of the
    more relevant item ("positive"), as inverse propensities of clicks need it.
    Needs: rankings. Raises DataError for other data.

    >>> import torch
    >>> from luthier.objectives.lists import Lists
    >>> zeros, ones = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    >>> lists = Lists(zeros, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), ones, zeros[:1])
    >>> sides = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.3, 0.9539392]])
    >>> loss = ProbMarginRankingLoss(margin=0.05)
    >>> round(loss(Embedded(sides, lists=lists)).item(), 4)  # sigmoid(0.05 - 0.3)
    0.4378
    """

    def __init__(
        self,
        *,
        margin: float = 1.0,
        similarity: Similarity = "cosine",
        min_abs_difference_threshold: float = 0.0,
        max_abs_difference_threshold: float = 1.0,
        weighting: Weighting = "min",
    ) -> None:
        super().__init__()
        self.margin = margin
        self.similarity: Similarity = similarity
        self.low, self.high = min_abs_difference_threshold, max_abs_difference_threshold
        self.weighting: Weighting = weighting

    def compute(self, batch: Embedded) -> Tensor:
        lists = take_lists(batch, type(self).__name__)
        scores = similarities(batch, lists, self.similarity)
        better, worse = lists.pairs()
        apart = scores[better] - scores[worse]
        kept = (apart.abs() > self.low) & (apart.abs() < self.high)
        self.stats = {"pairs": float(kept.sum())}
        if not bool(kept.any()):
            return zero(batch)
        missing = self.margin - sign(self.similarity) * apart[kept]
        weights = pair_weights(lists, better[kept], worse[kept], self.weighting)
        return (weights * self.chance(missing)).mean()

    def chance(self, missing: Tensor) -> Tensor:
        """Of what each pair lacks of the margin, [p]."""
        return torch.sigmoid(missing)


class CosineProbMarginRankingLoss(ProbMarginRankingLoss):
    """The same where differences are small, as those of cosines are: nearly a step.

        loss = mean over pairs of  c * sigmoid(400 (margin - t d) - 6)

    Embedding Studio, ``CosineProbMarginRankingLoss``. Options, shapes and needs: those of
    ``ProbMarginRankingLoss``.

    >>> import torch
    >>> from luthier.objectives.lists import Lists
    >>> zeros, ones = torch.zeros(2, dtype=torch.int64), torch.ones(2)
    >>> lists = Lists(zeros, torch.tensor([0, 1]), torch.tensor([1.0, 0.0]), ones, zeros[:1])
    >>> sides = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8], [0.3, 0.9539392]])
    >>> loss = CosineProbMarginRankingLoss(margin=0.32)
    >>> round(loss(Embedded(sides, lists=lists)).item(), 3)  # sigmoid(400 * 0.02 - 6)
    0.881
    """

    def chance(self, missing: Tensor) -> Tensor:
        return torch.sigmoid(400 * missing - 6)
