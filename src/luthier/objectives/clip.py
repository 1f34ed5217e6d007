"""CLIPLoss: both sides of a pair find each other, with a learned temperature."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from luthier.objectives.objective import Embedded, Objective, take_columns


class CLIPLoss(Objective):
    """Symmetric cross entropy over the similarities of all pairs in the batch.

        logits = exp(t) * cos(a_i, p_j);  loss = (CE(logits, i) + CE(logits^T, i)) / 2

    Radford et al., CLIP, ICML 2021, section 2.3, figure 3 and section 2.5.

    Shapes: columns anchor, positive, each [n, d]. temperature: > 0, 1 / exp(t) at the start,
    the paper's 0.07. max_scale: exp(t) is kept at most this, the paper's 100.
    Parameter: ``logit_scale`` t, a scalar. Needs: pairs, no text twice in a batch.
    Raises DataError for other than two columns.

    >>> import torch
    >>> sides = torch.eye(2)
    >>> round(CLIPLoss(temperature=1.0)(Embedded((sides, sides))).item(), 4)
    0.3133
    """

    def __init__(self, *, temperature: float = 0.07, max_scale: float = 100.0) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1.0 / temperature)))
        self.max_scale = max_scale

    def compute(self, batch: Embedded) -> Tensor:
        take_columns(batch, "CLIPLoss", at_least=2, at_most=2)
        left, right = (nn.functional.normalize(column, dim=-1) for column in batch.columns)
        scale = self.logit_scale.exp().clamp(max=self.max_scale)
        self.stats = {"scale": float(scale.detach())} if scale.device.type == "cpu" else {}
        logits = scale * left @ right.T  # [n, n]
        own = torch.arange(len(batch), device=logits.device)
        cross_entropy = nn.functional.cross_entropy
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
