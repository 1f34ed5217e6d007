"""Losses of pytorch-metric-learning 2.9 that fail on real batches, put right.

Each equals the library's own value wherever that one is defined; a test shows both. The
library stays the source: a class goes from here when a release no longer needs it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils import loss_and_miner_utils as indexing
from torch import Tensor


class HistogramLoss(losses.HistogramLoss):  # type: ignore[misc]
    """Two equal texts have cosine 1 + 1e-7, beyond the last bin (index error); and indexing
    by a list of lists is deprecated by torch. Cosines are clamped to [-1, 1]."""

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor, ref_labels: Any
    ) -> dict[str, Any]:
        a, p, n = indexing.convert_to_triplets(
            indices_tuple, labels, ref_labels, t_per_anchor="all"
        )
        if len(a) == 0:
            return dict(self.zero_losses())
        similarity = self.distance(embeddings, ref_emb)
        positive, negative = (self._unordered(similarity, a, other) for other in (p, n))
        cumulative = torch.cumsum(self.compute_density(positive), dim=0)
        value = torch.sum(self.compute_density(negative) * cumulative)
        return {"loss": {"losses": value, "indices": None, "reduction_type": "already_reduced"}}

    @staticmethod
    def _unordered(similarity: Tensor, left: Tensor, right: Tensor) -> Tensor:
        """Similarities of the distinct unordered pairs, a little inside [-1, 1]."""
        pairs = torch.unique(torch.stack([left, right]).sort(dim=0).values, dim=1)
        edge = 1 - 1e-6  # the last bin begins at 1 - delta; the step is far below its width
        return similarity[pairs[0], pairs[1]].clamp(-edge, edge)


class TupletMarginLoss(losses.TupletMarginLoss):  # type: ignore[misc]
    """arccos has no gradient at 1, where two equal texts are: clamped just below."""

    def _compute_loss(self, pos_pairs: Any, neg_pairs: Any, indices_tuple: Any) -> dict[str, Any]:
        if len(pos_pairs):
            edge = 1 - 1e-6  # an angle of 0.08 degrees
            pos_pairs = pos_pairs.clamp(-edge, edge)
        return dict(super()._compute_loss(pos_pairs, neg_pairs, indices_tuple))


class NCALoss(losses.NCALoss):  # type: ignore[misc]
    """A batch without two items of a class has no term (mean of nothing): zero."""

    def nca_computation(
        self, query: Tensor, reference: Tensor, query_labels: Tensor, *rest: Any
    ) -> dict[str, Any]:
        found = dict(super().nca_computation(query, reference, query_labels, *rest))
        return found if len(found["loss"]["losses"]) else dict(self.zero_losses())


class SmoothAPLoss(losses.SmoothAPLoss):  # type: ignore[misc]
    """Takes a batch for a matrix of equally large classes, in order: sorted here. A batch with
    unequal ones (ValueError there) says nothing: zero. Class-balanced batches have none."""

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, *rest: Any
    ) -> dict[str, Any]:
        if labels is None:
            raise ValueError("SmoothAPLoss needs labels")
        sizes = torch.unique(labels, return_counts=True)[1]
        if len(torch.unique(sizes)) > 1:
            return dict(self.zero_losses())
        order = labels.argsort(stable=True)
        items, labels = embeddings[order], labels[order]
        if indices_tuple is not None:  # positions before sorting → after it
            place = order.argsort()
            indices_tuple = tuple(place[part] for part in indices_tuple)
        return dict(super().compute_loss(items, labels, indices_tuple, items, labels))


class DynamicSoftMarginLoss(losses.DynamicSoftMarginLoss):  # type: ignore[misc]
    """The histogram is state, so it is a buffer (saved and resumed) and keeps no graph from
    step to step; differences beyond the last bin count into it (index error)."""

    hist_: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        histogram = self.hist_
        del self.hist_
        self.register_buffer("hist_", histogram)

    def _binned(self, data: Tensor) -> Tensor:
        # update_histogram writes to bin floor(x) and the one above it
        last = self.min_val + self.delta * (self.num_bins - 1) - 1e-6
        return data.clamp(self.min_val, last)

    def compute_loss(self, *batch: Any) -> dict[str, Any]:
        found = dict(super().compute_loss(*batch))
        self.hist_ = self.hist_.detach()
        return found

    def update_histogram(self, data: Tensor) -> None:
        super().update_histogram(self._binned(data))

    def weigh_loss(self, data: Tensor) -> Tensor:
        bins = torch.floor((self._binned(data.detach()) - self.min_val) / self.delta).long()
        return torch.cumsum(self.hist_, 0)[bins] * data


class _WholeMargin:
    """The margin's binomial coefficients by integers, not by scipy on tensors (deprecated)."""

    def init_margin(self) -> None:
        self.margin: int
        self.max_n = self.margin // 2
        self.n_range = torch.arange(self.max_n + 1)
        choose = [float(math.comb(self.margin, 2 * n)) for n in range(self.max_n + 1)]
        self.margin_choose_n = torch.tensor(choose)
        self.cos_powers = self.margin - 2 * self.n_range
        self.alternating = (-1) ** self.n_range


class LargeMarginSoftmaxLoss(_WholeMargin, losses.LargeMarginSoftmaxLoss):  # type: ignore[misc]
    """See _WholeMargin."""


class SphereFaceLoss(_WholeMargin, losses.SphereFaceLoss):  # type: ignore[misc]
    """See _WholeMargin."""


class ManifoldLoss(losses.ManifoldLoss):  # type: ignore[misc]
    """Takes labels: the meta-class of an item, random in the library, is its label mod K."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Any = None,
        ref_labels: Any = None,
    ) -> Tensor:
        if labels is None or indices_tuple is not None:
            raise ValueError("ManifoldLoss works on labels alone")
        value: Tensor = super().forward(embeddings, indices_tuple=labels % self.K)
        return value
