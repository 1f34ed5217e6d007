"""A search: what is varied of a job, how values are asked for, and when it ends."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from luthier.spec.options import Options
from luthier.spec.source import Frozen

Algorithm = Literal["random", "tpe", "gp", "cmaes", "grid"]
Pruner = Literal["asha", "hyperband", "halving", "median"]

#: What a pruner takes → the least, and whether it is a whole number.
PRUNER_OPTIONS: dict[str, dict[str, tuple[float, bool]]] = {
    "asha": {"min_resource": (1, True), "reduction_factor": (1, False)},
    "halving": {"min_resource": (1, True), "reduction_factor": (1, False)},
    "hyperband": {
        "min_resource": (1, True),
        "reduction_factor": (1, False),
        "brackets": (1, True),
    },
    "median": {"warmup": (0, True), "startup_trials": (1, True)},
}


class SearchSpec(Frozen):
    """A job with one is a search: a run whose children are runs.

    space: dotted path of a field (``training.learning_rate``, ``objective.loss_options.margin``)
    → what it can be, as JSON; see ``luthier.search.space``. metrics: what is to become better,
    the first decides; none: the task's own. modes: "auto" knows that a loss, seconds and bytes
    are to fall. algorithm: who asks for values. pruner: who stops trials early; its options
    count evaluations. max_trials counts trials that were started, max_trials_completed those
    that ran to their end, max_trials_finished those that ended in any way. max_time_s: seconds
    since the search began. max_cost: of all trials together, at ``cost_per_hour`` of one.
    n_workers: trials at a time. initial: points that are tried first, by path. warm_start: ids
    of earlier searches whose trials are known to this one, and the first ``warm_start_top``
    of them are tried first. constraints: such as "seconds <= 60"; a name is a metric or the
    path of a field. sampling_seed: of the search, not of its trials. keep_best: of so many
    trials, the best by the first metric, the models are kept; None: of all.
    """

    space: Options = Field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    modes: tuple[Literal["auto", "min", "max"], ...] = ()
    algorithm: Algorithm = "tpe"
    pruner: Pruner | None = None
    pruner_options: Options = Field(default_factory=dict)
    max_trials: int | None = Field(default=None, ge=1)
    max_trials_completed: int | None = Field(default=None, ge=1)
    max_trials_finished: int | None = Field(default=None, ge=1)
    max_time_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    cost_per_hour: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    n_workers: int = Field(default=1, ge=1)
    sampling_seed: int = Field(default=0, ge=0, lt=2**32)
    initial: tuple[Options, ...] = ()
    warm_start: tuple[str, ...] = ()
    warm_start_top: int = Field(default=0, ge=0)
    constraints: tuple[str, ...] = ()
    keep_best: int | None = Field(default=None, ge=1)

    @field_validator("metrics", "modes", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> SearchSpec:
        if not self.space:
            raise ValueError("a search needs a space: what is to be varied")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("a metric is named twice")
        if self.modes and len(self.modes) != len(self.metrics):
            raise ValueError("modes are as many as metrics, or none")
        if (self.max_cost is None) != (self.cost_per_hour is None):
            raise ValueError("max_cost and cost_per_hour are given together")
        if self.warm_start_top and not self.warm_start:
            raise ValueError("warm_start_top means nothing without warm_start")
        if len(self.metrics) > 1 and self.pruner is not None:
            raise ValueError("a pruner goes by one metric: give one, or no pruner")
        if len(self.metrics) > 1 and self.algorithm == "cmaes":
            raise ValueError("cmaes searches by one metric: give one, or another algorithm")
        self._check_pruner()
        return self

    def _check_pruner(self) -> None:
        if self.pruner is None:
            if self.pruner_options:
                raise ValueError("pruner_options mean nothing without a pruner")
            return
        known = PRUNER_OPTIONS[self.pruner]
        for name, value in self.pruner_options.items():
            if name not in known:
                raise ValueError(f"{self.pruner} takes no '{name}'; it takes {', '.join(known)}")
            least, whole = known[name]
            kinds = int if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or value < least:
                raise ValueError(f"{name} is at least {least:g}, not {value!r:.40}")
        if self.pruner_options.get("reduction_factor", 2) <= 1:
            raise ValueError("reduction_factor is more than 1")
