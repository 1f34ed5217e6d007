"""Which point to try next: Optuna is asked, of nothing but what is known.

A proposal is a function of (the space, the settings, the seed, the trial's number, what is known
of the others): no sampler lives between two trials. So a search that is taken up again by
another process asks for the same, and nothing of it has to be saved but the trials themselves.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from luthier.search.space import Parameter, Point, Space
from luthier.spec.search import SearchSpec
from luthier.tuning.domains import Float, Integer, Ordinal

if TYPE_CHECKING:
    import optuna

Direction = Literal["minimize", "maximize"]

#: Points that TPE and GP draw at random before they have something to learn from.
STARTUP_TRIALS = 5
#: Instead of infinity, which no model of violations knows.
_FAR = 1e9


@dataclass
class Known:
    """What is known of a trial. scores: of each metric, higher or lower being better as its mode
    says; curve: number of an evaluation → the first metric. violations: above 0 is not allowed.
    rung: evaluations after which it waits, or waits already."""

    number: int
    point: Point
    state: str = "running"  # running, paused, complete, pruned, failed
    scores: tuple[float, ...] | None = None
    curve: dict[int, float] = field(default_factory=dict)
    violations: tuple[float, ...] = ()
    rung: int | None = None


def derived(*parts: object) -> int:
    """A seed of 32 bits from whatever tells draws apart."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


class Planner:
    """Proposes points of a space."""

    def __init__(self, space: Space, search: SearchSpec, directions: Sequence[Direction]) -> None:
        self.space, self.search, self.directions = space, search, list(directions)
        self._grid = list(space.grid()) if search.algorithm == "grid" else []

    @property
    def exhausted_at(self) -> int | None:
        """How many points there are, where that is known."""
        return len(self._grid) or None

    def propose(self, number: int, known: Sequence[Known], attempt: int = 0) -> Point:
        """The point of trial ``number``. attempt: grows when a point was not allowed."""
        seed = derived(self.search.sampling_seed, number, attempt)
        if self.search.algorithm == "grid":
            return self._grid[number % len(self._grid)]
        scored = sum(k.state in ("complete", "pruned", "paused") for k in known)
        if self.search.algorithm == "random" or (
            scored < STARTUP_TRIALS and self.search.algorithm != "cmaes"
        ):
            return self.space.sample(seed)
        if self.search.algorithm == "cmaes":
            from luthier.search.evolution import propose

            falls = self.directions[0] == "minimize"
            return propose(self.space, known, self.search.sampling_seed, number, attempt, falls)
        return self._asked(seed, known)

    def _asked(self, seed: int, known: Sequence[Known]) -> Point:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            warnings.filterwarnings("ignore", "`gamma` has been deprecated", FutureWarning)
            study = optuna.create_study(directions=self.directions, sampler=self._sampler(seed))
            study.add_trials(list(self._frozen(known)))
            trial = study.ask()
            return self.space.draw(lambda p: suggested(trial, p))[0]

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        import optuna

        if self.search.algorithm == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=0)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=0,
            multivariate=True,
            group=True,  # parameters that exist together are modelled together
            constant_liar=self.search.n_workers > 1,
            gamma=_good,
        )

    def _frozen(self, known: Iterable[Known]) -> Iterable[optuna.trial.FrozenTrial]:
        """The trials as Optuna keeps them. One that waits at a rung, or still trains and was
        evaluated, counts as pruned there: that is what is known of it."""
        import optuna

        states = optuna.trial.TrialState
        for each in known:
            if each.state == "failed":
                continue
            finite = each.scores is not None and all(map(math.isfinite, each.scores))
            curve = {n: v for n, v in each.curve.items() if math.isfinite(v)}
            state = states.RUNNING
            if each.state == "complete" and finite:
                state = states.COMPLETE
            elif curve and len(self.directions) == 1:
                state = states.PRUNED
            elif each.state != "running":
                continue
            yield optuna.trial.create_trial(
                state=state,
                values=list(each.scores or ()) if state == states.COMPLETE else None,
                params=each.point,
                distributions=self._distributions(each.point),
                intermediate_values=curve,
                constraints={str(i): min(v, _FAR) for i, v in enumerate(each.violations)} or None,
            )

    def _distributions(self, point: Point) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def given(parameter: Parameter) -> Any:
            found[parameter.name] = distribution(parameter)
            return point[parameter.name]

        self.space.draw(given)
        return found


def distribution(parameter: Parameter) -> optuna.distributions.BaseDistribution:
    """How Optuna calls a parameter's range. Categories are told by their place."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    domain = parameter.domain
    if parameter.count is not None:
        if isinstance(domain, Ordinal):
            return IntDistribution(0, parameter.count - 1)
        return CategoricalDistribution(list(range(parameter.count)))
    assert isinstance(domain, Integer | Float)
    if isinstance(domain, Integer):
        return IntDistribution(domain.lower, domain.upper, domain.log, domain.step)
    return FloatDistribution(domain.lower, domain.upper, domain.log, domain.step)


def suggested(trial: optuna.Trial, parameter: Parameter) -> Any:
    """What Optuna proposes for a parameter."""
    name, domain = parameter.name, parameter.domain
    if isinstance(domain, Ordinal):
        return trial.suggest_int(name, 0, len(domain.categories) - 1)
    if parameter.count is not None:
        return trial.suggest_categorical(name, list(range(parameter.count)))
    assert isinstance(domain, Integer | Float)
    if isinstance(domain, Integer):
        return trial.suggest_int(name, domain.lower, domain.upper, step=domain.step, log=domain.log)
    return trial.suggest_float(name, domain.lower, domain.upper, step=domain.step, log=domain.log)


def _good(trials: int) -> int:
    """How many trials TPE takes for the good ones. Optuna's tenth is made for hundreds of trials;
    a quarter finds better values in ten to thirty (docs/search.md)."""
    return min(math.ceil(0.25 * trials), 25)
