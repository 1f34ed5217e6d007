"""Judges an encoder that learns on: by the evaluation sets of all updates so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.engine.control import Control, Listener
from luthier.engine.drifting import Looked, Side
from luthier.engine.judge_retrieval import RetrievalJudge
from luthier.engine.past import FOLDER
from luthier.engine.read import Data
from luthier.engine.setup import Setup
from luthier.engine.state import OURS
from luthier.evaluation.measure import Evaluation
from luthier.evaluation.remembered_sets import RememberedSets, scores_of
from luthier.evaluation.reranking import RankedSet
from luthier.evaluation.sets import EvaluationSet, ScoredSet, evaluation_set


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
        self._probe = None if data.probe is None else evaluation_set(data.probe)

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

    def scores(self, found: Evaluation | Some) -> tuple[str, np.ndarray]:
        """What each row adds to the main metric of its set."""
        if isinstance(found, Some):
            return found.name, found.values
        return scores_of([*found.earlier, found])

    def scored(self, model: Any, rows: np.ndarray) -> Some:
        """Of some rows: an index has to be encoded whole for any query of it."""
        found = self.evaluate(model)
        assert found is not None
        name, values = self.scores(found)
        return Some(name, values[rows])

    def probed(self, model: Any) -> Evaluation | None:
        """Of the probe's own queries among its own documents, if there is one."""
        return None if self._probe is None else self.measured(model, self._probe)

    def sides(self) -> tuple[Side | None, Side]:
        """Queries of former updates and the new ones: both strangers to the model. Where there
        are none, the rows that are remembered, which it was trained on, and the new rows."""
        update, sets = self.setup.update, self.sets
        assert update is not None
        if len(sets) > 1 and sets.chunks[-1] == update.past.updates:
            earlier = [text for found in sets.sets[:-1] for text in _asked(found)]
            names = "queries of former updates", "the new queries"
            old, new = (self._side(*pair) for pair in zip((earlier, _asked(sets.sets[-1])), names,
                                                          strict=True))  # fmt: skip
            return old, new
        pupil = update.inner
        role, count = pupil.dataset.roles[0], pupil.old
        new = self._side(pupil.dataset.texts(role, count + np.arange(pupil.new)), "the new rows")
        if not count:
            return None, new
        return self._side(pupil.dataset.texts(role, np.arange(count)), "remembered rows"), new

    def _side(self, texts: Sequence[str], name: str) -> Side:
        def look(model: Any, rows: np.ndarray) -> Looked:
            vectors = model.encode([texts[row] for row in rows.tolist()])
            return Looked(np.asarray(vectors, dtype=np.float64))

        return Side(look, np.arange(len(texts), dtype=np.int64), name)


@dataclass(frozen=True)
class Some:
    """Scores of some rows (n,), and what they are called."""

    name: str
    values: np.ndarray


def _asked(found: EvaluationSet) -> tuple[str, ...]:
    if isinstance(found, RankedSet):
        return tuple(found.texts[place] for place in np.unique(found.queries))
    return found.first if isinstance(found, ScoredSet) else found.queries
