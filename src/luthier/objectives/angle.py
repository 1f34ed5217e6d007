"""AnglELoss: CoSENT on angles in complex space."""

from __future__ import annotations

from torch import Tensor, nn

from luthier.objectives.cosent import CoSENTLoss
from luthier.objectives.objective import Embedded

__all__ = ["AnglELoss", "Embedded"]


class AnglELoss(CoSENTLoss):
    """The cosine is flat near 0 and 180 degrees; the angle of complex numbers is not.

        halves of an embedding are real and imaginary parts, z and w of two unit embeddings:
        s = |Re<z, w> + Im<z, w>|;  then as CoSENT

    Li and Li, AoE: Angle-optimized Embeddings, ACL 2024, section 3; arXiv:2309.12871.
    An embedding of odd width gets a 0 at its end.

    Shapes, needs and errors as CoSENTLoss. scale: > 0, default 20, the paper's.

    >>> import torch
    >>> left, right = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> batch = Embedded((left, right), targets=torch.tensor([1.0, 0.0]))
    >>> round(AnglELoss(scale=1.0)(batch).item(), 4)  # both angles count 1: log(1 + 1)
    0.6931
    """

    def similarity(self, left: Tensor, right: Tensor) -> Tensor:
        if left.shape[1] % 2:
            left, right = nn.functional.pad(left, (0, 1)), nn.functional.pad(right, (0, 1))
        left = nn.functional.normalize(left, dim=-1)
        right = nn.functional.normalize(right, dim=-1)
        left_real, left_imaginary = left.chunk(2, dim=1)
        right_real, right_imaginary = right.chunk(2, dim=1)
        real = (left * right).sum(1)
        imaginary = (left_imaginary * right_real - left_real * right_imaginary).sum(1)
        return (real + imaginary).abs()
