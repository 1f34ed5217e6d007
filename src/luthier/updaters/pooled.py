"""Features of inner layers, pooled, stay what they were."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.updaters.updater import Part, Pupil, Seen, Term

Pooling = Literal["spatial", "pixel", "channel", "width", "height", "gap"]


@dataclass
class PooledOutputs(Part):
    """Pooled outputs distillation.

    term = alpha / L · Σ_l mean_rows |pool(f_l²) - pool(f̂_l²)|₂, f_l the features of layer l, f̂_l
    those noted when the row was admitted; pooled sums are normed first where ``normalize`` is on.

    Paper: Douillard et al. 2020, PODNet, equations 2 to 4, for (rows, channels, width, height).
    Of features (rows, d) every pooling is the features themselves.
    """

    notes: ClassVar[tuple[str, ...]] = ("features",)
    alpha: float = 1.0
    distillation_type: Pooling = "spatial"
    normalize: bool = True

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if replayed is None or not replayed.features:
            return ()
        distances = []
        for i, now in enumerate(replayed.features):
            pair = [
                pooled(x, self.distillation_type)
                for x in (now, replayed.kept[f"features.{i}"].to(now))
            ]
            if self.normalize:
                pair = [F.normalize(x, dim=1) for x in pair]
            distances.append((pair[0] - pair[1]).norm(dim=1).mean())
        return (Term("pod_loss", self.alpha, torch.stack(distances).mean()),)


def pooled(features: Tensor, how: Pooling) -> Tensor:
    """Squares of features (n, c, w, h), summed as the name says, (n, …).

    >>> pooled(torch.ones(1, 3, 2, 2), "gap").tolist()
    [[1.0, 1.0, 1.0]]
    """
    squares = features.square()
    if squares.dim() < 4 or how == "pixel":
        return squares.flatten(1)
    if how == "gap":
        return squares.mean(dim=(2, 3))
    if how == "spatial":
        return torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], dim=1)
    return squares.sum({"channel": 1, "width": 2, "height": 3}[how]).flatten(1)
