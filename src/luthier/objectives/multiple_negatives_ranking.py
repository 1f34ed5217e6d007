"""MultipleNegativesRankingLoss: each anchor finds its positive among the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from luthier.objectives.objective import Embedded, Objective, take_columns


class MultipleNegativesRankingLoss(Objective):
    """Softmax over the positives (and hard negatives) of all rows; also called InfoNCE.

        loss = mean_i  -log  exp(s(a_i, p_i)) / sum_d exp(s(a_i, d))
        d over all positives and negatives of the batch,  s(x, y) = scale * cos(x, y)

    Henderson et al., Efficient Natural Language Response Suggestion, 2017, section 4.4.

    Shapes: columns anchor, positive, negative_1, …, each [n, d]; at least the first two.
    scale: > 0, default 20 (sentence-transformers'); the paper has 1 on dot products.
    temperature: 1 / scale, instead of it. symmetric: the mean of this and of each positive
    finding its anchor among all anchors. similarity: "cosine" or "dot".
    Needs: pairs or triplets, no text twice in a batch. Raises DataError for one column.

    >>> import torch
    >>> anchors = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> loss = MultipleNegativesRankingLoss(scale=1.0)
    >>> round(loss(Embedded((anchors, anchors))).item(), 4)  # -log(e / (e + 1))
    0.3133
    """

    def __init__(
        self,
        *,
        scale: float = 20.0,
        temperature: float | None = None,
        symmetric: bool = False,
        similarity: Literal["cosine", "dot"] = "cosine",
    ) -> None:
        super().__init__()
        self.scale = scale if temperature is None else 1.0 / temperature
        self.symmetric = symmetric
        self.similarity = similarity

    def compute(self, batch: Embedded) -> Tensor:
        take_columns(batch, "MultipleNegativesRankingLoss", at_least=2)
        columns = batch.columns
        if self.similarity == "cosine":
            columns = tuple(nn.functional.normalize(column, dim=-1) for column in columns)
        anchors, positives = columns[0], columns[1]
        own = torch.arange(len(batch), device=anchors.device)
        forward = anchors @ torch.cat(columns[1:]).T * self.scale  # [n, n * (columns - 1)]
        loss = nn.functional.cross_entropy(forward, own)
        if self.symmetric:
            backward = positives @ anchors.T * self.scale  # [n, n]
            loss = (loss + nn.functional.cross_entropy(backward, own)) / 2
        return loss
