"""An iteration as it is kept: its parameter sets, their metrics, and the model of the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.clicks.calculators import MetricValue
from luthier.clicks.experiments import ExperimentsManager, FineTuningIteration
from luthier.clicks.parameters import FineTuningParams
from luthier.clicks.preparing import known_variant
from luthier.doors.clicks import params_of
from luthier.errors import SpecError, StoreError

if TYPE_CHECKING:
    from luthier.clicks.builder import FineTuningBuilder
    from luthier.clicks.tuning import Tuned
    from luthier.runs.connection import Home
    from luthier.spec import JobSpec


@dataclass(frozen=True)
class Tried:
    """A set of parameters and what came of it. artifact_id: of the best."""

    params: FineTuningParams
    metrics: dict[str, float]
    artifact_id: str | None
    failed: bool = False


def iterate(
    builder: FineTuningBuilder, iteration: FineTuningIteration, train: Callable[[], Tuned],
    home: Home,
) -> Tuned:  # fmt: skip
    """Train, and keep it with the builder's experiments manager. A search begins with the best
    parameters of earlier iterations. Raises what the training raises."""
    manager = builder.experiments_manager
    if not isinstance(manager, ExperimentsManager):
        return train()
    manager.set_iteration(iteration)
    if not isinstance(builder.initial_params, FineTuningParams):
        top = [params.model_dump(mode="json") for params in manager.get_top_params()]
        builder.starting_params = [*builder.starting_params, *top]
    tuned = train()
    try:
        for tried in tried_by(tuned, builder, home):
            keep(manager, tried)
        manager.finish_iteration()
    except StoreError as error:  # what was trained is not lost for that
        tuned.metrics.setdefault("notes", []).append(f"the iteration was not kept: {error}")
    return tuned


def keep(manager: ExperimentsManager, tried: Tried) -> None:
    """Keep a set of parameters; nothing, where that was done before."""
    if manager.set_run(tried.params):
        return
    for name, value in tried.metrics.items():
        manager.save_metric(MetricValue(name, value))
    if tried.artifact_id is not None and manager.get_quality() is not None:
        manager.save_model(tried.artifact_id)
    manager.finish_run(as_failed=tried.failed)


def tried_by(tuned: Tuned, builder: FineTuningBuilder, home: Home) -> Iterator[Tried]:
    """What a training tried: itself, or the trials of its search, the best of them with all that
    was measured on the searches that were held out."""
    from luthier.search.space import applied
    from luthier.search.summary import read_summary

    spec, record = tuned.run.spec, tuned.run.record()
    everything = numbers(tuned.metrics)
    if spec.search is None:
        params = _params(spec, builder, home)
        if params is not None:
            yield Tried(params, everything, tuned.artifact_id)
        return
    summary = read_summary(home, record.id)
    best = summary.best
    for trial in summary.trials:
        params = _params(applied(spec, trial.values), builder, home)
        if params is None or trial.state not in ("complete", "failed"):
            continue
        is_best = best is not None and trial.number == best.number
        metrics = (trial.scores or {}) | (everything if is_best else {})
        artifact = tuned.artifact_id if is_best else None
        yield Tried(params, metrics, artifact, trial.state == "failed")


def _params(spec: JobSpec, builder: FineTuningBuilder, home: Home) -> FineTuningParams | None:
    """None where they are not those of this version."""
    if isinstance(builder.initial_params, FineTuningParams):
        return builder.initial_params
    uri = spec.data.train.uri
    variant = known_variant(home, uri)
    try:
        return FineTuningParams(**params_of(spec, {uri: variant} if variant else {}, {}))
    except SpecError:
        return None


def numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of nested metrics, by joined names that MLflow takes.

    >>> numbers({"after": {"ndcg@10": {"value": 0.5}}, "verdict": "better"})
    {'after.ndcg_at_10.value': 0.5}
    """
    found: dict[str, float] = {}
    for name, value in metrics.items():
        key = f"{prefix}{name}".replace("@", "_at_").replace(" ", "_")
        if isinstance(value, Mapping):
            found |= numbers(value, f"{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    return found
