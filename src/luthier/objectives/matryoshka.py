"""MatryoshkaLoss: another loss at several widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from luthier.objectives.objective import Embedded, Objective

#: Embeddings narrower than this are of little use; the paper's smallest is 8 for images,
#: sentence-transformers' examples end at 64.
SMALLEST = 32


class MatryoshkaLoss(Objective):
    """The weighted sum of a loss on embeddings cut to several widths and normalized again.

        loss = sum_m  w_m * L(normalize(x[:m]))

    Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022, equation 1.

    losses: one objective a width (a loss with parameters has its own at each width). dims:
    the widths. weights: one a width, default 1 each, the paper's. Shapes and needs: those of
    the wrapped loss; embeddings at least as wide as the widest.

    >>> import torch
    >>> from luthier.objectives.multiple_negatives_ranking import MultipleNegativesRankingLoss
    >>> ranking = MultipleNegativesRankingLoss(scale=1.0)
    >>> sides = torch.eye(2)
    >>> loss = MatryoshkaLoss([ranking, ranking], dims=[2, 1], weights=[1, 0.5])
    >>> round(loss(Embedded((sides, sides))).item(), 4)  # 0.3133 + 0.5 * 0.5032
    0.5649
    """

    def __init__(
        self,
        losses: Sequence[Objective],
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.dims = tuple(dims)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.dims)

    def compute(self, batch: Embedded) -> Tensor:
        values = []
        self.stats = {}
        for loss, dim, weight in zip(self.losses, self.dims, self.weights, strict=True):
            assert isinstance(loss, Objective)
            values.append(weight * loss(batch.cut(dim)))
            self.stats |= {f"{name}@{dim}": value for name, value in loss.stats.items()}
        return torch.stack(values).sum()


def default_dims(dim: int) -> list[int]:
    """The model's width, halved while it stays above or at ``SMALLEST``.

    >>> default_dims(384)
    [384, 192, 96, 48]
    """
    dims = [dim]
    while dims[-1] // 2 >= SMALLEST:
        dims.append(dims[-1] // 2)
    return dims
