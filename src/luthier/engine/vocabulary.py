"""Whether only the token rows that occur are trained: where that is exact, and worth it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from luthier.engine.control import Listener
from luthier.engine.resolved import Resolved
from luthier.models.text import TextModel
from luthier.models.tokens import Ints
from luthier.models.vocabulary import activate, inexact, unfit
from luthier.spec import TrainingSpec

if TYPE_CHECKING:
    from luthier.engine.learner import EmbeddingLearner

#: Part of the table from which on the rest is not worth leaving out: the table is kept beside
#: the active rows, so at a half nothing is saved but the moments.
MOST_ACTIVE = 0.5

#: Share of all that trains from which on a token table's moments and passes are noticed.
LEAST_SHARE = 0.1

#: Texts whose tokens are looked at together.
_READ = 16_384


def use_active_vocabulary(
    learner: EmbeddingLearner,
    training: TrainingSpec,
    rows: np.ndarray | None,
    resolved: Resolved,
    tell: Listener,
    *,
    fresh: bool,
    tokenized: bool,
) -> None:
    """Train only the token rows that occur in the rows of a run (None: all) where that is the
    same training and saves something. Chosen once a run; never in the middle of one, and not
    where a run would first have to wait until all its texts are ``tokenized``."""
    model: TextModel = learner.model
    if not isinstance(model, TextModel):  # two towers have two tables
        return
    if unfit(model) or inexact(training.optim, training.optim_args):
        return
    table = model.token_embedding.weight
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if table.numel() < LEAST_SHARE * trainable:
        return
    seen = np.arange(len(learner.reads)) if rows is None else rows

    def decide() -> bool:
        return fresh and tokenized and len(_occurring(learner, seen)) < MOST_ACTIVE * len(table)

    if not resolved.once("active_vocabulary", decide):
        return
    ids = _occurring(learner, seen)
    activate(model, ids)
    message = f"{len(ids):,} of {len(table):,} tokens occur: only their vectors are trained"
    tell("log", {"level": "info", "message": message})


def _occurring(learner: EmbeddingLearner, rows: np.ndarray) -> Ints:
    """The tokens in the texts of these rows, sorted."""
    found = np.zeros(len(learner.model.token_embedding.weight), dtype=bool)
    for role in learner.reads.roles:
        for start in range(0, len(rows), _READ):
            found[learner.texts(role, rows[start : start + _READ]).values] = True
    return np.flatnonzero(found)
