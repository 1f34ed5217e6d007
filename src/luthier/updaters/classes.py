"""Classifiers made of means: the last layer is set, not trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.updaters.updater import Part, Pupil


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
            last_linear(pupil.model).load_state_dict(past["trained"])

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


def last_linear(model: nn.Module) -> nn.Linear:
    """The last linear layer of a model. Raises ValueError where there is none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise ValueError("the model has no linear layer at its end")
    return layers[-1]


def features_of(pupil: Pupil, head: nn.Linear) -> Iterator[tuple[Tensor, Tensor]]:
    """What goes into the last layer for the remembered rows, and their classes."""
    for batch in pupil.remembered(at_once=256):
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
