"""What is watched while a model learns on: the chunks before, a general probe, drift; and whether
the result may follow the state that it came from.

What is measured before training is kept beside the run, so that a later attempt says the same.
Nothing here changes what is trained: random states are put back.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from luthier.engine.control import Listener
from luthier.engine.drifting import Side, compare
from luthier.engine.past import FOLDER
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.setup import Setup, pretrained
from luthier.engine.state import OURS, random_states, restore_random_states
from luthier.errors import DataError, Problem, SpecError
from luthier.evaluation.forgetting import Kept, kept, over_budget, stability
from luthier.store import atomic

#: Rows of earlier chunks that are scored on the way where ``stability_steps`` asks for it.
_ON_THE_WAY = 500
#: What the history of a state keeps of each update: nothing that grows with their number.
_KEPT = ("score", "by_chunk", "before", "average", "forgetting", "backward_transfer", "lost",
         "gained", "verdict")  # fmt: skip


@runtime_checkable
class Scores(Protocol):
    """A judge that can score single validation rows, a probe, and test rows."""

    def scored(self, model: Any, rows: np.ndarray) -> Any:
        """Of some validation rows."""

    def sides(self) -> tuple[Side | None, Side]:
        """Rows of former updates, and new ones, which differ in nothing else."""

    def probed(self, model: Any) -> Any:
        """Of the general probe; None where there is none."""

    def read(self, record: dict[str, Any]) -> Any:
        """An evaluation that was written down."""

    def tested(self, model: Any) -> list[dict[str, float]]:
        """Of the test rows of each chunk."""


class Oversight:
    """Of one update, from before its first step to its result.

    before: the evaluation that the run began with. Raises SpecError or DataError for what is
    asked for and cannot be watched.
    """

    def __init__(self, setup: Setup, judge: Any, before: Any, tell: Listener) -> None:
        assert setup.update is not None
        self.setup, self.update, self.tell = setup, setup.update, tell
        self.spec, self.before = setup.spec.update, before
        self._scores = judge if isinstance(judge, Scores) else None
        self._rows = self._earlier_rows()
        self._check()
        self._resolved = Resolved(setup.place.folder / RESOLVED)
        with _as_it_was():
            self.drift = self._drift()
            self._probe = self._once("probe", lambda judge, model: judge.probed(model))
            self._fresh = self._fresh_tests()

    @property
    def skips(self) -> bool:
        """Whether there is nothing to learn: the state is to stay as it is."""
        if self.spec.drift != "gate" or self.drift is None:
            return False
        return bool(self.drift["decision"] == "skip")

    # --- before training -----------------------------------------------------------------------

    def _check(self) -> None:
        budgets = (self.spec.forgetting_budget, self.spec.forgetting_budget_each)
        if any(b is not None for b in budgets) and self.before is None:
            message = "there are no validation rows, so nothing tells what is forgotten"
            raise DataError(message, file="val_data()", hint="leave forgetting_budget out")
        merge = self.update.merge
        if merge is not None and merge.scores and self.before is None:
            message = f"'{merge.name}' chooses by validation rows, and there are none"
            raise SpecError([Problem("update.merge", message, "give some, or use merge='ema'")])

    def _earlier_rows(self) -> np.ndarray:
        """Validation rows of earlier chunks; of many a sample, the same at every look."""
        rows = np.flatnonzero(self.update.validation.chunks < self.update.past.updates)
        if len(rows) <= _ON_THE_WAY:
            return rows
        rng = np.random.default_rng(self.setup.spec.training.seed)
        return np.sort(rng.choice(rows, _ON_THE_WAY, replace=False))

    def _drift(self) -> dict[str, Any] | None:
        if self.spec.drift == "off" or self._scores is None:
            return None
        setup, sides = self.setup, self._scores.sides()
        seed = setup.spec.training.seed
        found: dict[str, Any] = self._resolved.once(
            "drift", lambda: compare(starting(setup), *sides, seed)
        )
        level = "warning" if found["decision"] == "retrain" else "info"
        message = f"drift: {_said(found, self.spec.drift == 'gate')}"
        self.tell("log", {"level": level, "message": message})
        return found

    def _once(self, name: str, measure: Callable[[Scores, Any], Any]) -> Any:
        """An evaluation of the model that the update starts from, measured once a run."""
        if self._scores is None:
            return None
        record = self.setup.place.folder / f"{name}.json"
        if record.exists():
            saved = json.loads(record.read_text())
            return self._scores.read(saved) if saved else None
        found = measure(self._scores, starting(self.setup))
        if found is None and name == "probe" and self.spec.probe_budget is not None:
            message = "there is no probe: the configuration file has no probe_data_fn"
            raise SpecError([Problem("update.probe_budget", message, "define it, or leave it out")])
        atomic.write_bytes(record, json.dumps(found.to_dict() if found else None).encode())
        return found

    def _fresh_tests(self) -> list[dict[str, float]] | None:
        """Of the test rows of every chunk, by a model that has learnt nothing; in the first
        update only."""
        if self._scores is None or self.update.past.updates or self.setup.spec.model.artifact:
            return None
        scores = self._scores
        found: list[dict[str, float]] = self._resolved.once(
            "fresh", lambda: scores.tested(starting(self.setup))
        )
        return found

    # --- on the way ----------------------------------------------------------------------------

    def stepped(self) -> None:
        """After a step: look at earlier chunks, where that is due."""
        every, done = self.spec.stability_steps, self.setup.position.done
        if every is None or done % every or not len(self._rows) or self._scores is None:
            return
        if self.update.preliminary:  # it is not the model that is to be published
            return
        with _as_it_was():
            found = self._scores.scored(self.setup.model, self._rows)
        self._note(self.update.validation.scores(found)[1], self._rows)

    def evaluated(self, found: Any) -> None:
        """After an evaluation of all validation rows."""
        if self.spec.stability_steps is not None or found is None or not len(self._rows):
            return
        if self.update.preliminary:
            return
        chunks = self.update.validation.chunks
        rows = np.flatnonzero(chunks < self.update.past.updates)
        scores = self.update.validation.scores(found)[1]
        if len(scores) == len(chunks):  # a quick look may have seen the new rows alone
            self._note(scores[rows], rows)

    def _note(self, scores: np.ndarray, rows: np.ndarray) -> None:
        curve, done = self.update.curve, self.setup.position.done
        if curve and curve[-1]["step"] >= done:
            return
        chunks = self.update.validation.chunks[rows]
        means = [float(scores[chunks == c].mean()) for c in np.unique(chunks)]
        curve.append({"step": done, "by_chunk": means})

    # --- afterwards ----------------------------------------------------------------------------

    def told(self, before: Any, after: Any, model: Any) -> dict[str, Any]:
        """What is said of the update, as JSON data."""
        found = self.update.retention(before, after) | self._judged(after, model)
        if self.update.merged:
            found["merge"] = self.update.merged
        plain: dict[str, Any] = json.loads(json.dumps(found))  # lists, as whoever reads it has
        return plain

    def save(self, folder: Path, told: dict[str, Any]) -> None:
        """What the next update needs, into ``folder`` (``luthier`` of a bundle); its sizes are
        added to what is told. Where nothing was trained it is what it was."""
        if not self.skips:
            self.update.save(folder, {name: told[name] for name in _KEPT})
        elif self.update.origin is not None:
            shutil.copytree(self.update.origin / OURS / FOLDER, folder / FOLDER)
        told["bytes"] = _sizes(folder)

    def _judged(self, after: Any, model: Any) -> dict[str, Any]:
        """Beside the matrix: verdict, stability, probe, drift, and whether the result may be
        committed (``promoted``, ``reasons``)."""
        judged = self._kept(after)
        probe, told = self._probe_told(model)
        reasons = over_budget(judged, self.spec.forgetting_budget, self.spec.forgetting_budget_each)
        if probe is not None and self.update.past.updates:
            budget = self.spec.probe_budget
            if budget is not None and probe.mean is not None and probe.mean > budget:
                reasons.append(f"the probe lost {probe.mean:.1%}, {budget:.1%} is allowed")
        stops = bool(reasons) and self.spec.on_forgetting == "stop"
        if reasons:
            then = "the result is not committed" if stops else "on_forgetting='warn' allows it"
            message = f"{'; '.join(reasons)}: {then}"
            self.tell("log", {"level": "warning", "message": message})
        if self.skips:
            assert self.drift is not None
            reasons.append(f"nothing was trained: {self.drift['reason']}")
        drift = None if self.drift is None else {**self.drift, "skipped": self.skips}
        return {
            "verdict": judged.verdict,
            "reason": judged.reason,
            "earlier": judged.to_dict(),
            "stability": self._stability(),
            "probe": told,
            "drift": drift,
            "promoted": not stops and not self.skips,
            "reasons": reasons,
            "fresh": self._fresh,
        }

    def _kept(self, after: Any) -> Kept:
        if self.before is None or after is None:
            return Kept("nothing to compare", "there are no validation rows")
        chunks = self.update.validation.chunks
        old = chunks < self.update.past.updates
        score, now = self.update.validation.scores(after)
        return kept(
            self._start()[1][old], now[old], chunks[old], score,
            seed=self.setup.spec.training.seed,
        )  # fmt: skip

    def _start(self) -> tuple[str, np.ndarray]:
        found: tuple[str, np.ndarray] = self.update.validation.scores(self.before)
        return found

    def _stability(self) -> dict[str, Any] | None:
        if self.before is None:
            return None
        score, values = self._start()
        chunks = self.update.validation.chunks
        rows = self._rows
        if self.spec.stability_steps is None:
            rows = np.flatnonzero(chunks < self.update.past.updates)
        values, there = values[rows], chunks[rows]
        start = [float(values[there == c].mean()) for c in np.unique(there)]
        return stability(start, self.update.curve, score)

    def _probe_told(self, model: Any) -> tuple[Kept | None, dict[str, Any] | None]:
        if self._probe is None or self._scores is None:
            return None, None
        with _as_it_was():
            after = self._scores.probed(model)
        assert after is not None
        before = self._probe
        (score, now), (_, then) = (self.update.validation.scores(e) for e in (after, before))
        one = np.zeros(len(now), dtype=np.int64)
        found = kept(then, now, one, score, seed=self.setup.spec.training.seed)
        told = {"metric": getattr(after, "main", None), "before": before.metrics,
                "after": after.metrics}  # fmt: skip
        return found, told | found.to_dict()


def starting(setup: Setup) -> Any:
    """The model that the update starts from: of an updater that trains a new one, the model that
    it would replace."""
    update = setup.update
    if update is not None and update.updater.fresh and update.origin is not None:
        with _as_it_was():
            return setup.load(update.origin)
    return pretrained(setup) if setup.position.done else setup.model


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of what is kept for the next update, by file; ``folder`` is ``luthier`` of a bundle."""
    found = {file.stem: file.stat().st_size for file in sorted((folder / FOLDER).glob("*.*"))
             if file.suffix != ".json"}  # fmt: skip
    weights = folder.parent / "model.safetensors"
    return found | ({"model": weights.stat().st_size} if weights.exists() else {})


def _said(found: dict[str, Any], gate: bool) -> str:
    then = {
        "skip": "nothing is trained, the state stays as it is" if gate else "updating",
        "update": "updating",
        "retrain": "updating all the same; a model trained on all data may be better",
    }[found["decision"]]
    return f"{found['decision']} ({found['reason']}); {then}"


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Random states afterwards are those before."""
    states = random_states()
    try:
        yield
    finally:
        restore_random_states(states)
