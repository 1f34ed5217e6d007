"""Rows of the memory under the task's own loss, and under what the model said of them before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F

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

    term = alpha · mean((scores - noted scores)²)

    Paper: Buzzega et al. 2020, Dark Experience for General Continual Learning, equation 5
    (DER); with ``Replay`` beside it DER++, equation 6.
    """

    notes: ClassVar[tuple[str, ...]] = ("scores",)
    alpha: float = 1.0

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if replayed is None:
            return ()
        before = replayed.kept["scores"].to(replayed.scores)
        return (Term("mse_loss", self.alpha, F.mse_loss(replayed.scores, before)),)
