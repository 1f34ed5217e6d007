"""Hyperopt's ``fmin`` for functions of this process, by the planner of our searches.

A search of runs is ``FineTuningBuilder(initial_params=…)``, which goes on after a crash and can
train several at once; this is for code that is written for Hyperopt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from luthier.errors import LuthierError, Problem, SpecError, TrainingError, nearest
from luthier.search.planner import Known, Planner
from luthier.search.space import read_space
from luthier.search.spellings import hp, normal
from luthier.spec import SearchSpec

__all__ = ["Trials", "fmin", "hp", "tpe"]

STATUS_OK, STATUS_FAIL = "ok", "fail"


class tpe:
    """Algorithms by Hyperopt's names."""

    suggest = "tpe"


class rand:
    """Drawn at random."""

    suggest = "random"


@dataclass
class Trials:
    """What was tried: a mapping each, with params, loss, status and, where it failed, error."""

    trials: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def best_trial(self) -> dict[str, Any]:
        """The one with the least loss. Raises TrainingError where none has one."""
        done = [trial for trial in self.trials if trial["status"] == STATUS_OK]
        if not done:
            errors = [trial["error"] for trial in self.trials if trial.get("error")]
            raise TrainingError("no trial came to its end", hint=errors[-1] if errors else None)
        return min(done, key=lambda trial: float(trial["loss"]))

    def losses(self) -> list[float | None]:
        """The loss of each; None where it failed."""
        return [trial.get("loss") for trial in self.trials]


def fmin(
    fn: Callable[[dict[str, Any]], Any],
    space: Mapping[str, Any],
    algo: Any = tpe.suggest,
    max_evals: int = 10,
    trials: Trials | None = None,
    verbose: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """The parameters with the least loss, as values (Hyperopt tells the place of a choice).

    fn: parameters by name → a loss, or a mapping with ``loss`` and ``status``. A trial that raises
    a LuthierError, or whose loss is no finite number, has failed: it has no score, and the search
    goes on. trials: those of an earlier call are known, and count. verbose: print each.
    Raises SpecError, and TrainingError where every trial failed.
    """
    if algo not in (tpe.suggest, rand.suggest):
        hint = nearest(str(algo), ("tpe.suggest", "rand.suggest")) or "tpe.suggest or rand.suggest"
        raise SpecError([Problem("algo", f"'{algo}' is no algorithm here", hint)])
    nodes = {name: normal(value, name, lambda each: each) for name, value in space.items()}
    spec = SearchSpec(space=nodes, algorithm=algo, sampling_seed=seed)
    drawn = read_space(nodes)
    planner = Planner(drawn, spec, ["minimize"])
    record = Trials() if trials is None else trials
    known = [_known(number, trial) for number, trial in enumerate(record.trials)]
    for number in range(len(record), max_evals):
        point = planner.propose(number, known)
        trial = _tried(fn, drawn.values(point)) | {"point": point}
        record.trials.append(trial)
        known.append(_known(number, trial))
        if verbose:
            print(f"trial {number}: {trial.get('loss', trial.get('error'))}")
    return dict(record.best_trial["params"])


def _tried(fn: Callable[[dict[str, Any]], Any], params: dict[str, Any]) -> dict[str, Any]:
    try:
        told = fn(dict(params))
    except LuthierError as error:
        return {"params": params, "status": STATUS_FAIL, "error": str(error)}
    found = dict(told) if isinstance(told, Mapping) else {"loss": told, "status": STATUS_OK}
    loss = found.get("loss")
    if found.get("status", STATUS_OK) != STATUS_OK or not isinstance(loss, int | float) or (
        not math.isfinite(loss)
    ):  # fmt: skip
        return {"params": params, "status": STATUS_FAIL, "error": f"the loss is {loss!r}"}
    return {"params": params, "status": STATUS_OK, **found}


def _known(number: int, trial: Mapping[str, Any]) -> Known:
    if trial["status"] != STATUS_OK:
        return Known(number, trial["point"], "failed")
    return Known(number, trial["point"], "complete", (float(trial["loss"]),))
