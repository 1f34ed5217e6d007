"""CosineSimilarityLoss: the cosine of two texts is their score."""

from __future__ import annotations

from torch import Tensor, nn

from luthier.objectives.objective import Embedded, Objective, take_columns, take_targets


class CosineSimilarityLoss(Objective):
    """Mean squared error between cosine and score.

        loss = mean_i (cos(u_i, v_i) - score_i)^2

    Reimers and Gurevych, Sentence-BERT, EMNLP 2019, section 3, regression objective.

    Shapes: columns sentence1, sentence2, each [n, d]; targets [n].
    Needs: scored pairs. Raises DataError for other than two columns or no scores.

    >>> import torch
    >>> sides = torch.eye(2)
    >>> CosineSimilarityLoss()(Embedded((sides, sides), targets=torch.tensor([1.0, 0.5]))).item()
    0.125
    """

    def compute(self, batch: Embedded) -> Tensor:
        take_columns(batch, "CosineSimilarityLoss", at_least=2, at_most=2)
        scores = take_targets(batch, "CosineSimilarityLoss", "score")
        left, right = batch.columns
        return nn.functional.mse_loss(nn.functional.cosine_similarity(left, right), scores)
