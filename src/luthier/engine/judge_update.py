"""Judges an encoder that learns on: by the evaluation sets of all updates so far."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from luthier.engine.control import Control, Listener
from luthier.engine.judge_retrieval import RetrievalJudge
from luthier.engine.past import FOLDER
from luthier.engine.read import Data
from luthier.engine.setup import Setup
from luthier.engine.state import OURS
from luthier.evaluation.measure import Evaluation
from luthier.evaluation.remembered_sets import RememberedSets, scores_of


class UpdateJudge(RetrievalJudge):
    """The main evaluation is that of the new queries; those of earlier updates go along.

    It is what the update is measured on as well: its sets are remembered. An update without
    queries of its own is measured on the last that there were.
    """

    def __init__(self, setup: Setup, data: Data, tell: Listener, control: Control) -> None:
        super().__init__(setup, data, tell, control)
        update = setup.update
        assert update is not None
        before = RememberedSets()
        if update.origin is not None:
            before = RememberedSets.load(update.origin / OURS / FOLDER / "validation.json")
        self.sets = before.with_new(self.set, update.past.updates)
        if len(self.sets):
            self.set = self.sets.sets[-1]
        update.validation = self

    def evaluate(self, model: Any) -> Evaluation | None:
        if not len(self.sets):
            return None
        found = [self.measured(model, one) for one in self.sets.sets]
        return replace(found[-1], earlier=tuple(found[:-1]))

    # --- what an update asks ------------------------------------------------------------------

    @property
    def chunks(self) -> np.ndarray:
        """The update that each row of all sets came with."""
        return self.sets.rows()

    def remember(self) -> RememberedSets:
        """All sets."""
        return self.sets

    def scores(self, found: Evaluation) -> tuple[str, np.ndarray]:
        """What each row adds to the main metric of its set."""
        return scores_of([*found.earlier, found])
