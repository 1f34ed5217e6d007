"""Leads a search: asks for points, makes trials of them, lets them go on or stops them.

It is what the run of a search does, in a process with a lease like any other. The truth is in
the tables: a ``trial`` event of the search for each point that was asked for, and the children
with how they stand. So a conductor that is killed is replaced by one that knows the same.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from typing import Any

from luthier.engine.control import Cancelled, Interrupted
from luthier.errors import Conflict, LuthierError, NotFound, SpecError, TrainingError
from luthier.runs.connection import Home
from luthier.runs.leases import MAX_CRASHES
from luthier.runs.records import Claim
from luthier.runs.trials import WITH_SEARCH, TrialRecord
from luthier.search import results
from luthier.search.constraints import Constraint, read_constraints
from luthier.search.keeping import Keeping
from luthier.search.limits import Limits
from luthier.search.planner import Known, Planner
from luthier.search.rungs import make_pruner
from luthier.search.space import Point, applied, read_space
from luthier.search.summary import Summary, Trial, nothing_found, trial_events, write_summary
from luthier.spec.search import SearchSpec

#: How soon it is looked again how the trials stand: at once where something has just changed, and
#: ever later where nothing does.
LOOK_S, SELDOM_S = 0.05, 0.25
#: How often it is made sure, meanwhile, that somebody works.
_WAKE_S = 2.0
#: Points that are drawn before a constraint is taken to allow none.
_ATTEMPTS = 200
#: Why a trial was cancelled: a pruner, or the end of the search.
PRUNED, ENDED = "pruned", "search_ended"

Tell = Callable[[str, dict[str, Any]], None]
Control = Callable[[], str | None]


def conduct(
    home: Home, claim: Claim, tell: Tell, control: Control, max_crashes: int = MAX_CRASHES
) -> tuple[str, dict[str, Any]]:
    """Lead a search to its end: the artifact of its best trial, and what is to be known. A trial
    that crashed ``max_crashes`` times in a row is quarantined, as its worker would do.

    Raises TrainingError where no trial finished, Cancelled, Interrupted, LeaseLost.
    """
    return Conductor(home, claim, tell, control, max_crashes).run()


class Conductor:
    """One attempt at one search."""

    def __init__(
        self, home: Home, claim: Claim, tell: Tell, control: Control, max_crashes: int
    ) -> None:
        self._max_crashes = max_crashes
        self.home, self.ledger, self.tell, self.control = home, home.ledger, tell, control
        self.me, self.epoch = claim.run, claim.epoch
        spec = claim.run.spec
        assert spec.search is not None
        self.search: SearchSpec = spec.search
        self.metrics = self.search.metrics or (results.default_metric(spec),)
        modes = self.search.modes or ("auto",) * len(self.metrics)
        self.directions = [
            results.direction(m, mode) for m, mode in zip(self.metrics, modes, strict=True)
        ]
        self.space = read_space(self.search.space)
        self.planner = Planner(self.space, self.search, self.directions)
        self.constraints: list[Constraint] = read_constraints(self.search.constraints)
        self.limits = Limits(self.search)
        self.most = self.limits.most_trials(self.planner.exhausted_at)
        self.pruner = make_pruner(
            self.search.pruner,
            dict(self.search.pruner_options),
            falls=self.directions[0] == "minimize",
            trials=self.most,
        )
        self.keeping = Keeping(home, self.me, self.epoch, self.search.keep_best)
        self.trials: dict[int, Trial] = {}
        self._told: dict[int, dict[str, Any]] = {}  # what was said of trials that had ended
        self.earlier: list[Known] = []
        self._first: list[Point] = []
        self._seen: dict[int, int] = {}  # trial → the last of its events that was read
        self._woken_at = 0.0
        self._pause_s, self._stood = LOOK_S, list[tuple[str, int | None, int]]()

    def run(self) -> tuple[str, dict[str, Any]]:
        """See ``conduct``."""
        self._take_up()
        while True:
            self._obey()
            self._look()
            self._tidy()
            self._decide()
            if self._is_over():
                break
            while self._may_begin():
                self._begin()
            self._wake()
            self._rest()
        self._close()
        self._tidy(last=True)
        return self._result()

    # Taking up what is there

    def _take_up(self) -> None:
        """What an earlier attempt at this search has done, from the tables."""
        for told in trial_events(self.home, self.me.id):
            if told["state"] == "begun":
                self._remember(told)
            else:
                self._told[int(told["number"])] = told
        records = self.ledger.trials(self.me.id)
        by_key = {trial.key: trial for trial in records}
        mine = f"{self.me.id}/{self.me.generation}/"
        self.keeping.earlier = tuple(
            r.id for r in records if r.ended and r.key and not r.key.startswith(mine)
        )
        for number, trial in self.trials.items():
            record = by_key.get(self._key(number))
            if record is None and trial.state == "asked":
                self._submit(trial)
            elif record is not None:
                trial.run_id, trial.name = record.id, record.name
                trial.rung = record.pause_after
                if record.status == "CANCELLED" and record.reason == WITH_SEARCH:
                    self.ledger.resume(record.id)  # the search itself was resumed
                trial.state = "running"
        if self.trials:
            message = f"taking the search up again: {len(self.trials)} trials were begun"
            self.tell("log", {"level": "info", "message": message})
        self._take_earlier()
        self.tell("stage", {"name": "searching"})

    def _remember(self, data: dict[str, Any]) -> None:
        trial = Trial(int(data["number"]), dict(data["point"]), dict(data["values"]))
        if data.get("error"):
            trial.state, trial.error = "failed", str(data["error"])
        self.trials[trial.number] = trial

    def _take_earlier(self) -> None:
        """What is tried first, and what earlier searches say."""
        from luthier.search.transfer import initial_points, known_trials

        self._first = initial_points(self.home, self.search, self.space, self.metrics)
        if self.search.warm_start and not self.search.warm_start_top:
            self.earlier = known_trials(self.home, self.search, self.space, self.metrics)
            message = f"{len(self.earlier)} trials of earlier searches are known"
            self.tell("log", {"level": "info", "message": message})

    # Looking

    def _look(self) -> None:
        """How the trials that have not ended stand."""
        waited_for = {t.run_id: t for t in self.trials.values() if not t.ended and t.run_id}
        if not waited_for:
            return
        for record in self.ledger.trials(self.me.id, list(waited_for)):
            trial = waited_for.pop(record.id)
            if self._follows_curves():
                self._read_curve(trial)
            trial.rung = record.pause_after
            if record.paused:
                trial.state = "paused"
            elif record.ended:
                self._take_end(trial, record)
            else:
                trial.state = "running"
        for trial in waited_for.values():  # somebody deleted it
            trial.state, trial.error = "cancelled", "its run was deleted"
            self.tell("trial", trial.told())

    def _follows_curves(self) -> bool:
        return self.search.pruner is not None

    def _read_curve(self, trial: Trial) -> None:
        assert trial.run_id is not None
        after = self._seen.get(trial.number, 0)
        events = self.ledger.events(trial.run_id, after, kinds=["evaluation"])
        if events:
            self._seen[trial.number] = events[-1].seq
            every = self.me.spec.training.eval_steps
            trial.curve |= results.curve(events, self.metrics[0], every)

    def _take_end(self, trial: Trial, record: TrialRecord) -> None:
        """A trial has ended: what came of it."""
        trial.artifact_id, trial.seconds = record.artifact_id, results.trial_seconds(record)
        self._read_curve(trial)
        if record.status == "FINISHED":
            if trial.recall(self._told.get(trial.number, {})):
                return
            self._take_scores(trial, record)
        elif record.status == "FAILED":
            trial.state = "failed"
            trial.error = f"{record.reason}: {record.details}" if record.details else record.reason
        else:
            trial.state = "pruned" if record.reason in (PRUNED, ENDED) else "cancelled"
            self._free(trial)
        if self.search.keep_best is None:
            self.tell("trial", trial.told())
        else:  # on the disk before the artifact, which some scores are read from, is given up
            self.ledger.append(self.me.id, self.epoch, [("trial", trial.told())])

    def _take_scores(self, trial: Trial, record: TrialRecord) -> None:
        names = [m for c in self.constraints for m in c.names if m not in self.space.paths()]
        found: dict[str, float] = {}
        try:
            for name in (*self.metrics, *names):
                told = trial.curve if name == self.metrics[0] else self._curve_of(record, name)
                found[name] = results.score(self.home, record, name, told)
        except NotFound as error:
            trial.state = "failed"
            trial.error = f"{error.message} ({error.hint})"
            return
        if wrong := [f"{n} is {v}" for n, v in found.items() if not math.isfinite(v)]:
            trial.state, trial.error = "failed", ", ".join(wrong)
            return
        trial.state = "complete"
        trial.scores = {name: found[name] for name in self.metrics}
        trial.violations = tuple(
            c.violation(trial.values | found) for c in self.constraints if c.needs(names)
        )

    def _curve_of(self, record: TrialRecord, metric: str) -> dict[int, float]:
        events = self.ledger.events(record.id, limit=100_000, kinds=["evaluation"])
        return results.curve(events, metric, self.me.spec.training.eval_steps)

    def _tidy(self, *, last: bool = False) -> None:
        """Give up the models that shall not be kept."""
        for problem in self.keeping.tidy(self._summary(), last=last):
            self.tell("log", {"level": "warning", "message": problem})

    def _summary(self) -> Summary:
        return Summary.of(self.me.name, self.search, self.metrics, self.directions,
                          self.trials.values())  # fmt: skip

    def _free(self, trial: Trial) -> None:
        """A trial that nobody goes on with needs no checkpoints."""
        assert trial.run_id is not None
        shutil.rmtree(self.home.path / "runs" / trial.run_id, ignore_errors=True)

    # Deciding

    def _decide(self) -> None:
        decision = self.pruner.decide(self._known(), no_more=not self._wants_more())
        for number, rung in decision.go.items():
            trial = self.trials[number]
            assert trial.run_id is not None
            self.ledger.let_go(trial.run_id, rung)
            trial.state, trial.rung = "running", rung
        for number in decision.stop:
            self._cancel(self.trials[number], PRUNED)
        if decision.stop:
            self._look()

    def _cancel(self, trial: Trial, reason: str) -> None:
        assert trial.run_id is not None
        try:
            self.ledger.cancel(trial.run_id, reason)
        except LuthierError as error:
            if error.code != "illegal_transition":
                raise  # else it ended by itself in this moment

    def _known(self) -> list[Known]:
        return [trial.known(self.metrics) for _, trial in sorted(self.trials.items())]

    def _is_over(self) -> bool:
        if self.limits.used_up(self.trials.values(), self.me, self.ledger):
            return True
        busy = any(not t.ended for t in self.trials.values())
        return not busy and not self._wants_more()

    def _wants_more(self) -> bool:
        return self.most is None or len(self.trials) < self.most

    # Beginning trials

    def _may_begin(self) -> bool:
        if not self._wants_more():
            return False
        running = sum(t.state in ("asked", "running") for t in self.trials.values())
        return running < self.search.n_workers

    def _begin(self) -> None:
        """Ask for a point, write it down, and make a run of it."""
        number = len(self.trials)
        trial = Trial(number, *self._proposed(number))
        try:
            applied(self.me.spec, trial.values)
        except SpecError as error:
            trial.state, trial.error = "failed", str(error)
        told = {
            "state": "begun",
            "number": number,
            "point": trial.point,
            "values": trial.values,
            "error": trial.error,
        }
        self.ledger.append(self.me.id, self.epoch, [("trial", told)])
        self.trials[number] = trial
        if trial.state != "failed":
            self._submit(trial)

    def _proposed(self, number: int) -> tuple[Point, dict[str, Any]]:
        first = self._first
        if number < len(first):
            return first[number], self.space.values(first[number])
        known = [*self.earlier, *self._known()]
        for attempt in range(_ATTEMPTS):
            point = self.planner.propose(number - len(first), known, attempt)
            values = self.space.values(point)
            if all(c.allows(values) for c in self.constraints):
                return point, values
        raise TrainingError(
            f"in {_ATTEMPTS} draws no point was allowed by the constraints",
            hint="widen them: " + ", ".join(self.search.constraints),
        )

    def _submit(self, trial: Trial) -> None:
        spec = applied(self.me.spec, trial.values)
        name: str | None = f"{self.me.name}-{trial.number}"
        if self.me.generation:
            name = f"{name}-retry-{self.me.generation}"
        trial.rung = self.pruner.first(trial.number)
        words: dict[str, Any] = {
            "experiment": self.me.experiment,
            "description": f"trial {trial.number} of {self.me.name}",
            "idempotency_key": self._key(trial.number),
            "parent_id": self.me.id,
            "parent_epoch": self.epoch,
            "pause_after": trial.rung,
        }
        try:
            record = self.ledger.submit(spec, name=name, **words)
        except Conflict:
            self._obey()  # perhaps the search was cancelled; else the name was taken
            record = self.ledger.submit(spec, **words)
        trial.run_id, trial.name, trial.state = record.id, record.name, "running"

    def _key(self, number: int) -> str:
        return f"{self.me.id}/{self.me.generation}/{number}"

    # Ending

    def _obey(self) -> None:
        wish = self.control()
        if wish == "cancel":
            raise Cancelled  # its trials were cancelled with it
        if wish == "interrupt":
            raise Interrupted

    def _wake(self) -> None:
        if time.monotonic() - self._woken_at >= _WAKE_S:
            self._woken_at = time.monotonic()
            self.ledger.reap(self._max_crashes)
            self.home.ensure_worker()

    def _close(self) -> None:
        """Stop what still runs or waits, and wait until it has stopped."""
        for trial in self.trials.values():
            if not trial.ended and trial.run_id is not None:
                self._cancel(trial, ENDED)
        while any(not t.ended for t in self.trials.values()):
            self._obey()
            self._look()
            self._wake()
            self._rest()

    def _rest(self) -> None:
        """Wait a little, the longer the longer nothing has changed."""
        now = [(t.state, t.rung, len(t.curve)) for t in self.trials.values()]
        self._pause_s = LOOK_S if now != self._stood else min(self._pause_s * 1.3, SELDOM_S)
        self._stood = now
        end = time.monotonic() + self._pause_s
        while time.monotonic() < end and self.control() is None:
            time.sleep(min(LOOK_S, self._pause_s))

    def _result(self) -> tuple[str, dict[str, Any]]:
        summary = self._summary()
        best = summary.best
        if best is None or best.artifact_id is None:
            raise nothing_found(summary)
        folder = self.home.run_folder(self.me)
        folder.mkdir(parents=True, exist_ok=True)
        write_summary(folder, summary)
        assert best.run_id is not None
        shutil.rmtree(self.home.cache / "baselines" / self.me.id, ignore_errors=True)
        record = self.ledger.get(best.run_id)
        metrics = dict(record.metrics or {})
        metrics["search"] = summary.told()
        self.tell("report", metrics)
        return best.artifact_id, metrics
