"""Rows of the memory under the task's own loss, and under what the model said of them before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from luthier.updaters.updater import Part, Pupil, Seen, Term


@dataclass
class Replay(Part):
    """Experience replay.

    term = alpha · loss(memory)

    Paper: Chaudhry et al. 2019, On Tiny Episodic Memories in Continual Learning (ER).
    """

    alpha: float = 1.0

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if replayed is None:
            return ()
        return (Term("memory_loss", self.alpha, pupil.losses(replayed).mean()),)


@dataclass
class Dark(Part):
    """Dark experience replay: scores stay what they were when the row was admitted.

    term = alpha · mean(d(scores - noted scores)), d(x) = x² with "mse"; with "huber" x² / 2 up to
    a distance of 1 and |x| - 1/2 beyond, so that no row pulls harder than another however far it
    is: logits of a model that is sure of itself are large, and squares of them make high
    learning rates diverge.

    Paper: Buzzega et al. 2020, Dark Experience for General Continual Learning, equation 5
    (DER); with ``Replay`` beside it DER++, equation 6. Huber 1964, Robust Estimation of a
    Location Parameter.
    """

    notes: ClassVar[tuple[str, ...]] = ("scores",)
    alpha: float = 1.0
    distance: Literal["mse", "huber"] = "mse"

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if replayed is None:
            return ()
        now, before = _both(replayed)
        if self.distance == "huber":
            return (Term("huber_loss", self.alpha, F.huber_loss(now, before)),)
        return (Term("mse_loss", self.alpha, F.mse_loss(now, before)),)


def _both(seen: Seen) -> tuple[Tensor, Tensor]:
    """The scores of rows now, and those that were noted; of a head that has learnt more classes
    since then only what there was."""
    before = seen.kept["scores"].to(seen.scores)
    now = seen.scores[:, : before.shape[1]]
    known = ~before.isnan()
    return (now, before) if bool(known.all()) else (now[known], before[known])
