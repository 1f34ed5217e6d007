"""What a search found: its trials, the best of them, what mattered, and the curve to it."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luthier.errors import NotFound, TrainingError
from luthier.runs.connection import Home
from luthier.runs.records import RunRecord
from luthier.search.planner import Direction, Known, distribution
from luthier.search.results import default_metric, direction
from luthier.search.space import Point, read_space
from luthier.spec.search import SearchSpec
from luthier.store.atomic import write_bytes

FILE = "search.json"
#: Fewer trials than this say nothing about what matters.
_ENOUGH = 4


@dataclass
class Trial:
    """One trial. values: path → what was tried there. scores: metric → value, once complete."""

    number: int
    point: Point
    values: dict[str, Any]
    state: str = "asked"  # running, paused, complete, pruned, failed, cancelled
    run_id: str | None = None
    name: str | None = None
    artifact_id: str | None = None
    rung: int | None = None
    scores: dict[str, float] | None = None
    curve: dict[int, float] = field(default_factory=dict)
    violations: tuple[float, ...] = ()
    error: str | None = None
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("complete", "pruned", "failed", "cancelled")

    @property
    def allowed(self) -> bool:
        """Whether it is complete, and keeps the constraints."""
        return self.state == "complete" and all(v <= 0 for v in self.violations)

    def known(self, metrics: Sequence[str]) -> Known:
        """What a planner and a pruner know of it."""
        state = {"asked": "running", "cancelled": "failed"}.get(self.state, self.state)
        scores = tuple(self.scores[m] for m in metrics) if self.scores else None
        return Known(self.number, self.point, state, scores, self.curve, self.violations, self.rung)

    def recall(self, told: Mapping[str, Any]) -> bool:
        """Take what was told of this trial, with this very model, when it had ended; whether it
        was told: some scores are read from a model, which by now may have been given up."""
        if not told or (self.run_id, self.artifact_id) != (
            told.get("run_id"),
            told.get("artifact_id"),
        ):
            return False
        self.state, self.error, self.scores = told["state"], told.get("error"), told.get("scores")
        # Infinity is no number in JSON.
        self.violations = tuple(
            math.inf if v is None else float(v) for v in told.get("violations", ())
        )
        return True

    def told(self) -> dict[str, Any]:
        """As JSON data; without what means nothing."""
        data = asdict(self)
        data["curve"] = [[n, v] for n, v in sorted(self.curve.items())]
        data["violations"] = list(self.violations)
        return {k: v for k, v in data.items() if v not in (None, [], {})}


@dataclass(frozen=True)
class Summary:
    """A search that has ended."""

    name: str
    space: dict[str, Any]
    metrics: tuple[str, ...]
    directions: tuple[Direction, ...]
    trials: tuple[Trial, ...]

    @classmethod
    def of(
        cls,
        name: str,
        search: SearchSpec,
        metrics: Sequence[str],
        directions: Sequence[Direction],
        trials: Iterable[Trial],
    ) -> Summary:
        """Of all trials."""
        ordered = tuple(sorted(trials, key=lambda t: t.number))
        return cls(name, dict(search.space), tuple(metrics), tuple(directions), ordered)

    def ranked(self) -> list[Trial]:
        """Trials that are complete and allowed, by the first metric, the best first."""
        sign = 1 if self.directions[0] == "minimize" else -1
        found = [t for t in self.trials if t.allowed and t.scores]
        return sorted(found, key=lambda t: (sign * (t.scores or {})[self.metrics[0]], t.number))

    @property
    def best(self) -> Trial | None:
        """The best by the first metric; of equal ones the earlier."""
        return next(iter(self.ranked()), None)

    def front(self) -> list[Trial]:
        """Trials than which none is better in one metric and no worse in the others."""
        return pareto(self.ranked(), self.metrics, self.directions)

    def history(self) -> list[dict[str, Any]]:
        """After each complete trial, its value and the best so far."""
        falls, best = self.directions[0] == "minimize", None
        found = []
        for trial in self.trials:
            if not trial.allowed or not trial.scores:
                continue
            value = trial.scores[self.metrics[0]]
            best = value if best is None else (min if falls else max)(best, value)
            found.append({"number": trial.number, "value": value, "best": best})
        return found

    def importance(self) -> dict[str, float]:
        """Share of each parameter in what makes the better trials (PED-ANOVA, Watanabe et al.
        2023); empty where too few are complete."""
        return importance(self)

    def told(self) -> dict[str, Any]:
        """For the metrics of the search's run."""
        best = self.best
        counts = {s: sum(t.state == s for t in self.trials) for s in
                  ("complete", "pruned", "failed", "cancelled")}  # fmt: skip
        return {
            "metrics": list(self.metrics),
            "directions": list(self.directions),
            "trials": {"all": len(self.trials), **counts},
            "best": best.told() if best is not None else None,
            "front": [t.number for t in self.front()],
            "importance": self.importance(),
            "seconds": sum(t.seconds for t in self.trials),
        }


def nothing_found(summary: Summary) -> TrainingError:
    """The error of a search without a best trial."""
    errors = [t for t in summary.trials if t.error]
    stopped = sum(t.state == "pruned" for t in summary.trials)
    last = f"; the last: {errors[-1].error}" if errors else ""
    return TrainingError(
        f"of {len(summary.trials)} trials none finished within the limits and constraints, "
        f"{len(errors)} failed, {stopped} were stopped{last}",
        hint="see the trials' own logs, or give max_time and max_cost more room",
    )


def pareto(
    trials: Sequence[Trial], metrics: Sequence[str], directions: Sequence[str]
) -> list[Trial]:
    """The trials that no other dominates, in their order."""

    def costs(trial: Trial) -> list[float]:
        signs = [1 if d == "minimize" else -1 for d in directions]
        return [s * (trial.scores or {})[m] for m, s in zip(metrics, signs, strict=True)]

    def dominates(a: list[float], b: list[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and a != b

    every = [costs(t) for t in trials]
    return [t for t, mine in zip(trials, every, strict=True)
            if not any(dominates(other, mine) for other in every)]  # fmt: skip


def importance(summary: Summary) -> dict[str, float]:
    """See ``Summary.importance``."""
    complete = [t for t in summary.ranked() if math.isfinite((t.scores or {})[summary.metrics[0]])]
    parameters = {
        name: parameter
        for name, parameter in read_space(summary.space).parameters().items()
        if all(name in t.point for t in complete)
    }
    if len(complete) < _ENOUGH or not parameters:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {name: distribution(p) for name, p in parameters.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(direction=summary.directions[0])
        study.add_trials(
            [
                optuna.trial.create_trial(
                    value=(t.scores or {})[summary.metrics[0]],
                    params={name: t.point[name] for name in parameters},
                    distributions=distributions,
                )
                for t in sorted(complete, key=lambda t: t.number)
            ]
        )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``search.json`` and ``search.html`` into a folder."""
    from luthier.search.page import page

    data = {
        "name": summary.name,
        "space": summary.space,
        "metrics": list(summary.metrics),
        "directions": list(summary.directions),
        "trials": [t.told() for t in summary.trials],
        "best": summary.best.number if summary.best else None,
        "front": [t.number for t in summary.front()],
        "importance": summary.importance(),
        "history": summary.history(),
    }
    write_bytes(folder / FILE, json.dumps(data, indent=1).encode())
    write_bytes(folder / "search.html", page(summary).encode())


def read_summary(home: Home, name_or_id: str) -> Summary:
    """What a search of this home found. Raises NotFound where it has not ended well."""
    record = home.ledger.find(name_or_id)
    file = home.run_folder(record) / FILE
    if not file.is_file():
        raise NotFound(f"'{record.name}' is no search that has finished", hint=record.status)
    data = json.loads(file.read_text())
    return Summary(
        data["name"],
        data["space"],
        tuple(data["metrics"]),
        tuple(data["directions"]),
        tuple(_trial(each) for each in data["trials"]),
    )


def current(home: Home, record: RunRecord) -> Summary:
    """What a search has found so far: from its events, also while it goes on."""
    file = home.run_folder(record) / FILE
    if file.is_file():
        return read_summary(home, record.id)
    assert record.spec.search is not None
    search, trials = record.spec.search, dict[int, Trial]()
    for data in trial_events(home, record.id):
        words = {k: v for k, v in data.items() if k in Trial.__dataclass_fields__}
        if words.get("state") == "begun":
            words["state"] = "failed" if words.get("error") else "running"
        trials[int(words["number"])] = _trial(words)
    metrics = search.metrics or (default_metric(record.spec),)
    modes = search.modes or ("auto",) * len(metrics)
    directions = [direction(m, mode) for m, mode in zip(metrics, modes, strict=True)]
    return Summary.of(record.name, search, metrics, directions, trials.values())


def trial_events(home: Home, search_id: str) -> list[dict[str, Any]]:
    """What a search told of its trials, since it was last begun from the start."""
    found: list[dict[str, Any]] = []
    after = 0
    while page := home.ledger.events(search_id, after, kinds=["trial", "status"]):
        for event in page:
            if event.kind == "trial":
                found.append(event.data)
            elif event.data.get("reason") == "retried":
                found = []
        after = page[-1].seq
    return found


def read_trials(home: Home, name_or_id: str) -> tuple[Trial, ...]:
    """The trials of a search that has finished. Raises NotFound."""
    return read_summary(home, name_or_id).trials


def _trial(data: dict[str, Any]) -> Trial:
    words = dict(data)
    words["curve"] = {int(n): float(v) for n, v in data.get("curve", [])}
    words["violations"] = tuple(data.get("violations", ()))
    return Trial(**{"point": {}, "values": {}, **words})
