"""``MetricsAccumulator``: a metric's values as they come, and what they come to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.clicks.calculators import MetricValue
from luthier.errors import Problem, SpecError

#: What training and evaluation call a metric that Embedding Studio calls otherwise.
ALSO = {"test_loss": "val_loss"}


@dataclass
class MetricsAccumulator:
    """Values of one metric, their mean, least, most, and the mean of the last ``window_size``.

    >>> sums = MetricsAccumulator("train_loss", calc_mean=True, calc_sliding=True, window_size=2)
    >>> [v.value for v in [*sums.accumulate(4.0), *sums.accumulate(2.0), *sums.accumulate(0.0)]]
    [4.0, 4.0, 4.0, 2.0, 3.0, 3.0, 0.0, 2.0, 1.0]
    """

    name: str
    calc_mean: bool = False
    calc_sliding: bool = False
    calc_min: bool = False
    calc_max: bool = False
    window_size: int = 10
    values: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if isinstance(self.window_size, bool) or not isinstance(self.window_size, int) or (
            self.window_size < 1
        ):  # fmt: skip
            message = f"is a whole number from 1 on, not {self.window_size!r}"
            raise SpecError([Problem("window_size", message)])

    def accumulate(self, value: float) -> list[MetricValue]:
        """Take a value in: it, then ``mean_``, ``sliding_``, ``min_`` and ``max_`` as asked for."""
        self.values.append(float(value))
        return [MetricValue(name, values[-1]) for name, values in self.series().items()]

    def clear(self) -> None:
        """Forget all values."""
        self.values.clear()

    def series(self) -> dict[str, list[float]]:
        """The whole history: the name → its values, and so for each that is asked for."""
        found = {self.name: list(self.values)}
        seen = range(1, len(self.values) + 1)
        if self.calc_mean:
            found[f"mean_{self.name}"] = [sum(self.values[:n]) / n for n in seen]
        if self.calc_sliding:
            w = self.window_size
            found[f"sliding_{self.name}"] = [
                sum(self.values[max(0, n - w) : n]) / min(n, w) for n in seen
            ]
        if self.calc_min:
            found[f"min_{self.name}"] = [min(self.values[:n]) for n in seen]
        if self.calc_max:
            found[f"max_{self.name}"] = [max(self.values[:n]) for n in seen]
        return found


def accumulated(
    accumulators: Iterable[MetricsAccumulator],
    losses: Sequence[float],
    evaluations: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, list[float]]]:
    """The history of a run through accumulators: by metric, each derived series. ``train_loss`` is
    that of every step, other metrics those of every evaluation. A metric that was not measured
    raises SpecError. The accumulators themselves stay as they are."""
    found: dict[str, dict[str, list[float]]] = {}
    problems = []
    known = sorted({"train_loss", *(name for record in evaluations for name in record)})
    for each in accumulators:
        name = ALSO.get(each.name, each.name)
        values = list(losses) if name == "train_loss" else [
            record[name] for record in evaluations if name in record
        ]  # fmt: skip
        if not values:
            hint = f"measured are {', '.join(known)}"
            problems.append(Problem(f"accumulators.{each.name}", "nothing measured it", hint))
            continue
        settings = {k: v for k, v in vars(each).items() if k != "values"}
        found[each.name] = MetricsAccumulator(**settings, values=values).series()
    if problems:
        raise SpecError(problems)
    return found
