"""Who goes on: successive halving in its forms, and the median rule.

A rung is a number of evaluations. A trial stops at its rung, its checkpoint kept, and goes on
from there when it is among the best; the rest are pruned. Each decision is a function of what is
known, so it is the same after a kill.

asha      Li et al. 2020, A System for Massively Parallel Hyperparameter Tuning, algorithm 2
halving   Jamieson and Talwalkar 2016: the same, but a rung is decided when all are there
hyperband Li et al. 2018, with asha in each bracket
median    Golovin et al. 2017, Google Vizier, section 3.2: trials are stopped, not put aside
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.search.planner import Known

#: Without options: double the evaluations of the better half.
MIN_RESOURCE, REDUCTION_FACTOR, BRACKETS = 1, 2.0, 3
WARMUP, STARTUP_TRIALS = 1, 3


@dataclass(frozen=True)
class Decision:
    """What becomes of trials now. go: number → the next rung (None: to the end)."""

    go: dict[int, int | None]
    stop: tuple[int, ...] = ()
    wait: bool = False  # begin no new trial


class Pruner(Protocol):
    """Decides about trials."""

    def first(self, number: int) -> int | None:
        """The first rung of a new trial; None where it does not stop by itself."""

    def decide(self, known: Sequence[Known], *, no_more: bool) -> Decision:
        """Who goes on and who is stopped. no_more: no trial will be begun any more."""


def make_pruner(name: str | None, options: dict[str, Any], *, falls: bool, trials: int | None
                ) -> Pruner:  # fmt: skip
    """The pruner of that name. falls: less is better. trials: how many there will be."""
    if name is None:
        return NoPruner()
    if name == "median":
        return MedianRule(falls, **{"warmup": WARMUP, "startup_trials": STARTUP_TRIALS, **options})
    ladder = Ladder(
        int(options.get("min_resource", MIN_RESOURCE)),
        float(options.get("reduction_factor", REDUCTION_FACTOR)),
    )
    if name == "halving":
        return Halving(falls, ladder, trials or 0)
    brackets = int(options.get("brackets", BRACKETS)) if name == "hyperband" else 1
    return Asha(falls, ladder, brackets)


@dataclass(frozen=True)
class Ladder:
    """The rungs: ``least``, ``least * factor``, ``least * factor**2``, … evaluations."""

    least: int
    factor: float

    def rung(self, step: int) -> int:
        """Evaluations at a rung, counted from 0; each more than the one before."""
        found = self.least
        for _ in range(step):
            found = max(found + 1, round(found * self.factor))
        return found

    def step(self, rung: int) -> int:
        """Which rung has so many evaluations (or the first with more)."""
        step = 0
        while self.rung(step) < rung:
            step += 1
        return step


class NoPruner:
    """Every trial runs to its end."""

    def first(self, number: int) -> int | None:
        return None

    def decide(self, known: Sequence[Known], *, no_more: bool) -> Decision:
        return Decision({})


class Asha:
    """Promotes whoever is in the best 1/factor of all that reached a rung, at once. Hyperband
    has several brackets, whose trials begin at a later rung each."""

    def __init__(self, falls: bool, ladder: Ladder, brackets: int = 1) -> None:
        self.falls, self.ladder, self.brackets = falls, ladder, brackets

    def first(self, number: int) -> int | None:
        return self.ladder.rung(self.bracket(number))

    def bracket(self, number: int) -> int:
        """Hyperband spends as much on each bracket: one that begins a rung later, where a trial
        costs ``factor`` times as much, has so many fewer trials."""
        weights = [self.ladder.factor**-index for index in range(self.brackets)]
        counts = [0] * self.brackets
        chosen = 0
        for _ in range(number + 1):
            chosen = min(
                range(self.brackets), key=lambda index: (counts[index] + 1) / weights[index]
            )
            counts[chosen] += 1
        return chosen

    def decide(self, known: Sequence[Known], *, no_more: bool) -> Decision:
        go: dict[int, int | None] = {}
        for bracket in range(self.brackets):
            mine = [k for k in known if self.bracket(k.number) == bracket]
            go |= self._promoted(mine, bracket)
        paused = [k for k in known if k.state == "paused"]
        busy = any(k.state == "running" for k in known) or bool(go)
        if not no_more or busy or not paused:
            return Decision(go)
        if not any(k.state == "complete" for k in known):
            best = self._furthest(paused)
            return Decision({best.number: self.ladder.rung(self._step(best) + 1)})
        return Decision({}, tuple(k.number for k in paused))

    def _promoted(self, known: Sequence[Known], bracket: int) -> dict[int, int | None]:
        go: dict[int, int | None] = {}
        steps = [self._step(k) for k in known if k.state == "paused"]
        for step in range(max(steps, default=-1), bracket - 1, -1):
            rung = self.ladder.rung(step)
            there = [k for k in known if k.state != "failed" and _at(k, rung) is not None]
            there.sort(key=lambda k: _key(k, rung, self.falls))
            best = there[: int(len(there) / self.ladder.factor)]
            for each in best:
                if each.state == "paused" and self._step(each) == step:
                    go[each.number] = self.ladder.rung(step + 1)
        return go

    def _step(self, trial: Known) -> int:
        """The rung that a paused trial waits at."""
        return _waits_at(trial, self.ladder)

    def _furthest(self, paused: Sequence[Known]) -> Known:
        """Where nobody was promoted to the end, the best of the highest rung shall get there."""
        top = max(self._step(k) for k in paused)
        there = [k for k in paused if self._step(k) == top]
        return min(there, key=lambda k: _key(k, self.ladder.rung(top), self.falls))


class Halving:
    """A rung is decided when all its trials are there; the last one goes to its end."""

    def __init__(self, falls: bool, ladder: Ladder, trials: int) -> None:
        self.falls, self.ladder, self.trials = falls, ladder, trials

    def first(self, number: int) -> int | None:
        return self.ladder.least if self.trials > 1 else None

    def decide(self, known: Sequence[Known], *, no_more: bool) -> Decision:
        paused = [k for k in known if k.state == "paused"]
        if not no_more or not paused:
            return Decision({})
        step = min(_waits_at(k, self.ladder) for k in paused)
        rung = self.ladder.rung(step)
        if any(k.state == "running" and k.rung is not None and k.rung <= rung for k in known):
            return Decision({})
        here = [k for k in paused if _waits_at(k, self.ladder) == step]
        here.sort(key=lambda k: _key(k, rung, self.falls))
        keep = max(1, int(len(known) / self.ladder.factor ** (step + 1)))
        # After a kill between two promotions some of them have been made.
        past = [k for k in known if k.state in ("running", "paused", "complete") and k not in here]
        chosen = here[: max(0, keep - len(past))]
        target = None if keep == 1 else self.ladder.rung(step + 1)
        stopped = tuple(k.number for k in here if k not in chosen)
        return Decision({k.number: target for k in chosen}, stopped)


class MedianRule:
    """Stops a trial whose best so far is worse than the median of the others' means so far."""

    def __init__(self, falls: bool, warmup: int, startup_trials: int) -> None:
        self.falls, self.warmup, self.startup_trials = falls, warmup, startup_trials

    def first(self, number: int) -> int | None:
        return None

    def decide(self, known: Sequence[Known], *, no_more: bool) -> Decision:
        if sum(k.state == "complete" for k in known) < self.startup_trials:
            return Decision({})
        stop = []
        for trial in known:
            if trial.state != "running" or not trial.curve:
                continue
            last = max(trial.curve)
            others = [m for k in known if k is not trial if (m := _mean_until(k, last)) is not None]
            if last <= self.warmup or len(others) < self.startup_trials:
                continue
            best = (min if self.falls else max)(_finite(trial.curve.values(), self.falls))
            median = statistics.median(others)
            if best > median if self.falls else best < median:
                stop.append(trial.number)
        return Decision({}, tuple(stop))


def _waits_at(trial: Known, ladder: Ladder) -> int:
    return ladder.step(trial.rung) if trial.rung is not None else 0


def _at(trial: Known, rung: int) -> float | None:
    """A trial's value at a rung: the last evaluation up to there, if it got so far."""
    if not trial.curve or max(trial.curve) < rung:
        return None
    numbers = [n for n in trial.curve if n <= rung]
    return trial.curve[max(numbers)] if numbers else trial.curve[min(trial.curve)]


def _key(trial: Known, rung: int, falls: bool) -> tuple[float, int]:
    """What trials are sorted by, the best first; of equal ones the earlier."""
    value = _at(trial, rung)
    if value is None or not math.isfinite(value):
        return math.inf, trial.number
    return (value if falls else -value), trial.number


def _mean_until(trial: Known, last: int) -> float | None:
    values = [v for n, v in trial.curve.items() if n <= last]
    finite = [v for v in values if math.isfinite(v)]
    return statistics.fmean(finite) if finite and max(trial.curve) >= last else None


def _finite(values: Iterable[float], falls: bool) -> list[float]:
    worst = math.inf if falls else -math.inf
    return [v if math.isfinite(v) else worst for v in values]
