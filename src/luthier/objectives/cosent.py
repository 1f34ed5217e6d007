"""CoSENTLoss: similarities in the order of the scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from luthier.objectives.objective import Embedded, Objective, take_columns, take_targets


class CoSENTLoss(Objective):
    """Every pair of rows that the similarities put in the wrong order costs.

        loss = log(1 + sum_{score_i > score_j} exp(scale * (s_j - s_i))),  s_i = cos(u_i, v_i)

    Huang et al., CoSENT, TASLP 2024, equation 8.

    Shapes: columns sentence1, sentence2, each [n, d]; targets [n].
    scale: > 0, default 20, the paper's. Needs: scored pairs, at least two different scores in
    a batch (else 0). Raises DataError for other than two columns or no scores.

    >>> import torch
    >>> left, right = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> batch = Embedded((left, right), targets=torch.tensor([0.0, 1.0]))  # wrong way round
    >>> round(CoSENTLoss(scale=1.0)(batch).item(), 4)  # log(1 + e)
    1.3133
    """

    def __init__(self, *, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        """Of each row, [n]."""
        return nn.functional.cosine_similarity(left, right)

    def compute(self, batch: Embedded) -> Tensor:
        name = type(self).__name__
        take_columns(batch, name, at_least=2, at_most=2)
        scores = take_targets(batch, name, "score")
        similarity = self.similarity(*batch.columns) * self.scale  # [n]
        above = scores[:, None] > scores[None, :]  # [n, n]: row i should beat column j
        wrong = (similarity[None, :] - similarity[:, None])[above]
        return torch.logsumexp(torch.cat([similarity.new_zeros(1), wrong]), dim=0)
