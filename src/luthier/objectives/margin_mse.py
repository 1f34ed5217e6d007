"""MarginMSELoss: the student's margin between positive and negative is the teacher's."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from luthier.objectives.objective import Embedded, Objective, take_columns, take_targets


class MarginMSELoss(Objective):
    """Mean squared error between the student's and the teacher's difference of similarities.

        loss = mean_i ((s(q_i, p_i) - s(q_i, n_i)) - margin_i)^2

    Hofstätter et al., Improving Efficient Neural Ranking Models with Cross-Architecture
    Knowledge Distillation, 2020, section 3.2.

    Shapes: columns anchor, positive, negative_1, each [n, d]; targets [n], the teacher's
    score of the positive minus that of the negative. similarity: "dot", the paper's, or
    "cosine". Needs: margin data. Raises DataError for other than three columns or no margins.

    >>> import torch
    >>> query, negative = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> MarginMSELoss()(Embedded((query, query, negative), targets=torch.tensor([3.0]))).item()
    1.0
    """

    def __init__(self, *, similarity: Literal["dot", "cosine"] = "dot") -> None:
        super().__init__()
        self.similarity = similarity

    def compute(self, batch: Embedded) -> Tensor:
        take_columns(batch, "MarginMSELoss", at_least=3, at_most=3)
        margins = take_targets(batch, "MarginMSELoss", "margin")
        columns = batch.columns
        if self.similarity == "cosine":
            columns = tuple(nn.functional.normalize(column, dim=-1) for column in columns)
        query, positive, negative = columns
        student = (query * positive).sum(-1) - (query * negative).sum(-1)  # [n]
        return nn.functional.mse_loss(student, margins)
