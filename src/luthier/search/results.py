"""What came of a trial: its scores, read from the run's row, its events and its artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from luthier.errors import NotFound, Problem, SpecError
from luthier.registry import find
from luthier.runs.connection import Home
from luthier.runs.records import Event
from luthier.runs.trials import TrialRecord
from luthier.search.planner import Direction
from luthier.spec import EvaluationCallback, JobSpec

#: Measured of every finished trial, beside what its evaluation says.
OF_RUNS = ("seconds", "bytes")


def default_metric(spec: JobSpec) -> str:
    """What decides where nobody says: the first of the task's metrics, by the data of the job.

    Raises SpecError where nothing would be measured.
    """
    measured = (
        spec.data.eval is not None
        or spec.data.val_split > 0
        or any(isinstance(c, EvaluationCallback) for c in spec.callbacks)
    )
    if spec.task == "program":
        return "val_loss"
    if not measured:
        hint = "give eval_data or val_split, or search by the metric 'train_loss'"
        raise SpecError([Problem("search.metrics", "nothing would be measured", hint)])
    if spec.task == "embedding":
        return "ndcg_at_k"
    metrics = find("task", spec.task).facts["metrics"]
    return str(metrics[0].name)


def direction(metric: str, mode: str) -> Direction:
    """minimize or maximize. Mode auto: losses, seconds, bytes and perplexity are to fall."""
    falls = mode == "min" or (
        mode == "auto"
        and ("loss" in metric or metric in (*OF_RUNS, "perplexity", "mae", "mse", "rmse"))
    )
    return "minimize" if falls else "maximize"


def curve(events: Iterable[Event], metric: str, eval_steps: int | None) -> dict[int, float]:
    """Number of an evaluation → the metric. One that was made twice, after a kill, is the same."""
    found: dict[int, float] = {}
    for event in events:
        data = event.data
        value = data.get(metric)
        if isinstance(value, int | float):
            number = int(data["step"]) // eval_steps if eval_steps else int(data["epoch"])
            found[number] = float(value)
    return found


def score(home: Home, trial: TrialRecord, metric: str, told: Mapping[int, float]) -> float:
    """The value of a metric of a finished trial: of its final model where that was measured,
    else that of its last evaluation. Raises NotFound with what there is."""
    after = trial.metrics.get("after")
    groups = [after if isinstance(after, Mapping) else {}, trial.metrics]
    for group in groups:
        value = group.get(metric)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    if told:
        return told[max(told)]
    if metric in OF_RUNS and trial.artifact_id is not None:
        folder = home.store.artifacts / trial.artifact_id
        return _seconds(folder, trial) if metric == "seconds" else _bytes(folder)
    there = sorted({k for g in groups for k, v in g.items() if isinstance(v, int | float)})
    raise NotFound(f"the trial has no metric '{metric}'", hint=f"it has {', '.join(there)}")


def _seconds(folder: Path, trial: TrialRecord) -> float:
    """Seconds spent in steps, over all attempts; of other runs from start to end."""
    state = folder / "luthier" / "state.json"
    if state.is_file():
        position = json.loads(state.read_text()).get("position", {})
        if "seconds" in position:
            return float(position["seconds"])
    return (trial.finished_at or 0.0) - (trial.started_at or 0.0)


def _bytes(folder: Path) -> float:
    """Bytes of the weights."""
    files = [*folder.rglob("*.safetensors"), *folder.rglob("*.bin")]
    return float(sum(f.stat().st_size for f in files if "luthier" not in f.parts[-2:-1]))


def trial_seconds(trial: TrialRecord) -> float:
    """Seconds from the start of a trial to its end, as they would be paid for."""
    if trial.started_at is None or trial.finished_at is None:
        return 0.0
    return max(0.0, trial.finished_at - trial.started_at)
