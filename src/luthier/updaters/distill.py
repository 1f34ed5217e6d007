"""What a model said before it learnt something new, or what an expert says of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.updaters.averages import copied
from luthier.updaters.updater import Part, Pupil, Seen, Term


@dataclass
class Previous(Part):
    """The model of before the update is asked about the new rows.

    term = alpha · T² · KL(softmax(before / T) ‖ softmax(now / T)), the mean over rows, for
    classifiers, over the classes that were known before; for models of language, whose scores are
    (rows, tokens, words), the mean over the tokens that are scored; alpha · mean((now - before)²)
    for vectors. Nothing in the first update.

    Paper: Li and Hoiem 2016, Learning without Forgetting, equation 2 (LwF); with T = 1 the
    penalty on the previous model of language models (Ziegler et al. 2019, section 2).
    """

    alpha: float = 1.0
    temperature: float = 2.0
    _before: nn.Module | None = field(default=None, init=False)
    _known: Tensor | None = field(default=None, init=False)

    def start(self, pupil: Pupil, past: dict[str, Any] | None = None) -> None:
        if pupil.updates:
            self._before, self._known = copied(pupil.model), pupil.known

    def terms(self, pupil: Pupil, new: Seen, replayed: Seen | None) -> Iterable[Term]:
        if self._before is None:
            return ()
        with torch.no_grad():
            before = pupil.see(new.batch, self._before).scores
        if new.scores.dim() == 3:
            value = divergence(new.scores, before, self.temperature, None, new.counts)
            return (Term("distillation_loss", self.alpha, value),)
        if pupil.known is None:
            return (Term("distillation_loss", self.alpha, F.mse_loss(new.scores, before)),)
        value = divergence(new.scores, before, self.temperature, self._known)
        return (Term("distillation_loss", self.alpha, value),)

    def state(self) -> dict[str, Any]:
        if self._before is None:
            return {}
        return {"before": dict(self._before.state_dict()), "known": self._known}

    def restore(self, state: dict[str, Any]) -> None:
        if self._before is not None and state:
            self._before.load_state_dict(state["before"])
            self._known = state["known"]


def divergence(
    now: Tensor,
    before: Tensor,
    temperature: float,
    classes: Tensor | None,
    counts: Tensor | None = None,
) -> Tensor:
    """T² · KL(before ‖ now) of softened logits (n, c), the mean over rows; of (n, t, v) over the
    tokens that ``counts`` (n, t), all where it is None.

    >>> float(divergence(torch.zeros(1, 2), torch.zeros(1, 2), 2.0, None))
    0.0
    """
    if classes is not None:
        now, before = now[:, classes], before[:, classes]
    if now.dim() == 3:
        chosen = slice(None) if counts is None else counts.flatten()
        now, before = now.flatten(0, 1)[chosen], before.flatten(0, 1)[chosen]
    return temperature**2 * F.kl_div(
        (now / temperature).log_softmax(1),
        (before / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
