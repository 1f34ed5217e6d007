"""A closed-form classifier on random projections of features that stay what they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.batches.arithmetic import derive, permutation
from luthier.updaters.classes import last_linear, new_features_of
from luthier.updaters.updater import Part, Pupil

#: Strengths of the ridge that are tried, as McDonnell et al. 2023 do (appendix F.5).
RIDGES = tuple(10.0**power for power in range(-8, 9))

#: The bias of a class that has no rows: below what a regression to 0 and 1 gives.
_UNKNOWN = -10.0


class RandomProjectionHead(nn.Module):
    """features (n, in_features) → scores (n, num_classes) = relu(features · P) Wᵀ + b.

    P is drawn once from N(0, 1 / in_features) and never trained. It is what ``RanPAC`` puts in
    the place of a model's last linear layer; a model that ends in one already keeps it.
    """

    def __init__(
        self, in_features: int, num_classes: int, projected: int = 2000, seed: int = 0
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(int(derive(seed, "projection")) % 2**63)
        drawn = torch.randn(in_features, projected, generator=generator) / in_features**0.5
        self.projection: Tensor
        self.register_buffer("projection", drawn)
        self.linear = nn.Linear(projected, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        scores: Tensor = self.linear(F.relu(features @ self.projection))
        return scores


@dataclass
class RandomProjection(Part):
    """The last layer becomes a ridge regression to classes on random projections.

    H = relu(features · P) (rows, M), Y the classes one-hot; over all updates G = Σ HᵀH,
    C = Σ HᵀY, and W = (G + ridge · I)⁻¹ C. With ridge None it is the one of ``RIDGES`` that is
    best, by the squared error, on a fifth of the new rows after learning the rest. Features must
    stay what they are: only the first update may train them.

    projected M: 0 takes the features themselves. Paper: McDonnell et al. 2023, RanPAC, equations
    1, 5 and 6 and algorithm 1 (M = 10,000).
    """

    changes_model: ClassVar[bool] = True
    projected: int = 2000
    ridge: float | None = None
    tune_first: bool = True
    seed: int = 0
    _gram: Tensor | None = field(default=None, init=False)  # (M, M), float64
    _sums: Tensor | None = field(default=None, init=False)  # (M, classes)

    def attach(self, model: nn.Module, updates: int) -> None:
        if updates or not self.tune_first:  # else the head that is there trains the features
            self._put(model)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._gram, self._sums = (past["gram"], past["sums"]) if past else (None, None)

    @torch.no_grad()
    def end(self, pupil: Pupil) -> None:
        self._put(pupil.model)
        head = last_linear(pupil.model)
        pairs = list(new_features_of(pupil, head))
        h = torch.cat([features for features, _ in pairs]).double()
        labels = torch.cat([labels for _, labels in pairs])
        y = F.one_hot(labels, head.out_features).to(h)
        gram = h.new_zeros(h.shape[1], h.shape[1]) if self._gram is None else self._gram.to(h)
        sums = h.new_zeros(h.shape[1], y.shape[1]) if self._sums is None else self._sums.to(h)
        ridge = self.ridge if self.ridge is not None else best_ridge(gram, sums, h, y)
        gram, sums = gram + h.T @ h, sums + h.T @ y
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        head.weight.copy_(torch.linalg.solve(gram + ridge * eye, sums, left=True).T)
        if head.bias is not None:
            known = (sums != 0).any(0)
            head.bias.copy_(torch.where(known, 0.0, _UNKNOWN))
        self._gram, self._sums = gram, sums

    def state(self) -> dict[str, Any]:
        return {"gram": self._gram, "sums": self._sums}

    def restore(self, state: dict[str, Any]) -> None:
        self._gram, self._sums = state["gram"], state["sums"]

    def hand_on(self) -> dict[str, Any]:
        return self.state()

    def _put(self, model: nn.Module) -> None:
        """Replace the last linear layer, where it is not the head's already."""
        if not self.projected or any(isinstance(m, RandomProjectionHead) for m in model.modules()):
            return
        old = last_linear(model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            new = RandomProjectionHead(old.in_features, old.out_features, self.projected, self.seed)
        for parent in model.modules():
            for name, child in parent.named_children():
                if child is old:
                    setattr(parent, name, new.to(old.weight))
                    return


def best_ridge(gram: Tensor, sums: Tensor, h: Tensor, y: Tensor) -> float:
    """The ridge that is best on a random fifth of h (n, M), y (n, c) after the others and those
    whose sums are given. With fewer than five rows the middle one, 1."""
    order = torch.from_numpy(permutation(derive("ridge"), len(h)).astype("int64"))
    held_out = order.to(h.device) % 5 == 4
    if not held_out.any():
        return 1.0
    rest = h[~held_out]
    values, vectors = torch.linalg.eigh(gram + rest.T @ rest)
    turned = vectors.T @ (sums + rest.T @ y[~held_out])
    seen = h[held_out] @ vectors
    values = values.clamp(min=0)
    errors = [
        ((seen / (values + ridge)) @ turned - y[held_out]).square().mean() for ridge in RIDGES
    ]
    return RIDGES[int(torch.stack(errors).argmin())]
