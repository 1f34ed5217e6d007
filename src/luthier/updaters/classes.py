"""Classifiers made of means: the last layer is set, not trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.updaters.updater import Part, Pupil
from luthier.updaters.weights import grown


@dataclass
class NearestMean(Part):
    """At the end of an update the last linear layer becomes the nearest-class-mean classifier.

    Row c of its weight is the normed mean of the normed features of class c, its bias is 0: the
    class of the largest logit is that of the nearest mean. Classes without rows keep -inf-like
    logits: their weight is 0 and their bias -1, below every cosine that wins. While an update
    goes on the layer is what it was trained to be.

    Paper: Rebuffi et al. 2017, iCaRL, section 3.1 and algorithm 1; Mensink et al. 2013.
    """

    changes_model: ClassVar[bool] = True
    _trained: dict[str, Tensor] | None = field(default=None, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        if past:
            head = last_linear(pupil.model)
            there = head.state_dict()
            head.load_state_dict({n: grown(past["trained"][n], there[n]) for n in there})

    @torch.no_grad()
    def end(self, pupil: Pupil) -> None:
        head = last_linear(pupil.model)
        self._trained = {n: v.clone() for n, v in head.state_dict().items()}
        sums = torch.zeros_like(head.weight)
        counts = torch.zeros(len(sums), device=sums.device)
        for features, labels in features_of(pupil, head):
            sums.index_add_(0, labels, F.normalize(features, dim=1).to(sums))
            counts.index_add_(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        head.weight.copy_(F.normalize(sums, dim=1))
        if head.bias is not None:
            head.bias.copy_(torch.where(counts > 0, 0.0, -1.0))

    def hand_on(self) -> dict[str, Any]:
        return {"trained": self._trained}


@dataclass
class RunningMeans(Part):
    """The last linear layer becomes the nearest mean of all rows there ever were; none is kept.

    Row c of its weight is the normed sum of the normed features of class c over all updates, its
    bias 0; the bias of classes without rows is -1. Features must stay what they are: only the
    first update may train them.

    Paper: Mensink et al. 2013, Distance-Based Image Classification, section 3.2 (NCM).
    """

    changes_model: ClassVar[bool] = True
    _sums: Tensor | None = field(default=None, init=False)
    _counts: Tensor | None = field(default=None, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        self._sums, self._counts = (past["sums"], past["counts"]) if past else (None, None)

    @torch.no_grad()
    def end(self, pupil: Pupil) -> None:
        head = last_linear(pupil.model)
        sums = torch.zeros_like(head.weight) if self._sums is None else self._sums.to(head.weight)
        counts = sums.new_zeros(len(sums)) if self._counts is None else self._counts.to(sums)
        for features, labels in new_features_of(pupil, head):
            sums = sums.index_add(0, labels, F.normalize(features, dim=1).to(sums))
            counts = counts.index_add(0, labels, torch.ones_like(labels, dtype=counts.dtype))
        head.weight.copy_(F.normalize(sums, dim=1))
        if head.bias is not None:
            head.bias.copy_(torch.where(counts > 0, 0.0, -1.0))
        self._sums, self._counts = sums, counts

    def state(self) -> dict[str, Any]:
        return {"sums": self._sums, "counts": self._counts}

    def restore(self, state: dict[str, Any]) -> None:
        self._sums, self._counts = state["sums"], state["counts"]

    def hand_on(self) -> dict[str, Any]:
        return self.state()


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer of a model. Raises ValueError where there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("the model has no linear layer at its end")
    return layers[-1]


def features_of(pupil: Pupil, head: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """What goes into the last layer for the remembered rows, and their classes."""
    return _features_of(pupil, head, pupil.remembered(at_once=256))


def new_features_of(pupil: Pupil, head: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """The same for all new rows."""
    return _features_of(pupil, head, pupil.rows(pupil.new_rows, at_once=256))


def _features_of(
    pupil: Pupil, head: nn.Module, batches: Iterable[Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        with features_into(head) as caught:
            seen = pupil.see(batch)
        labels = pupil.labels(seen)
        if labels is not None:
            yield caught[-1], labels


@contextmanager
def features_into(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what is given to a layer while the block runs."""
    caught: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, given: caught.append(given[0].detach()))
    try:
        yield caught
    finally:
        handle.remove()
