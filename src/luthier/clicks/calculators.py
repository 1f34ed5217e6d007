"""What is told of a trained model beside its evaluation: how scores moved, for each side of a
click."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from luthier.clicks.sessions import Bools, Floats, Ints
from luthier.errors import DataError


@dataclass(frozen=True)
class MetricValue:
    """A number with its name."""

    name: str
    value: float


@dataclass(frozen=True)
class ScoredInputs:
    """Inputs with the scores of two models.

    before, after: float64 [m], of the starting and of the trained model. clicked: bool [m].
    starts: int64 [n + 1], where the inputs begin. irrelevant: bool [n], inputs without a click.
    is_similarity: whether more is more similar.
    """

    before: Floats
    after: Floats
    clicked: Bools
    starts: Ints
    irrelevant: Bools
    is_similarity: bool = True

    def __post_init__(self) -> None:
        m, n = len(self.clicked), len(self.irrelevant)
        if {len(self.before), len(self.after)} != {m} or len(self.starts) != n + 1:
            raise DataError("scores, clicks and inputs do not fit together")


class MetricCalculator:
    """Says something of scored inputs. Subclasses override ``calculate``."""

    def calculate(self, inputs: ScoredInputs) -> list[MetricValue]:
        """Its values; a name of its own for each."""
        raise NotImplementedError

    def __call__(self, inputs: ScoredInputs, stage: str = "test") -> list[MetricValue]:
        """The values with ``train_`` or ``test_`` before their names."""
        return [MetricValue(f"{stage}_{v.name}", v.value) for v in self.calculate(inputs)]


class DistanceShift(MetricCalculator):
    """How far items moved, in the direction that is wanted.

    ``not_irrelevant_dist_shift``: of inputs with clicks, the mean over the clicked items of
    t (new - old); ``irrelevant_dist_shift``: of inputs without, the mean over the results of
    t (old - new); t = 1 for similarities, -1 for distances. The mean over inputs; positive is
    good. What there is no input of is left out.

    >>> scored = ScoredInputs(np.array([.5, .5]), np.array([.75, .25]), np.array([True, False]),
    ...                       np.array([0, 2]), np.array([False]))
    >>> DistanceShift()(scored)
    [MetricValue(name='test_not_irrelevant_dist_shift', value=0.25)]
    """

    def calculate(self, inputs: ScoredInputs) -> list[MetricValue]:
        t = 1.0 if inputs.is_similarity else -1.0
        moved = t * (inputs.after - inputs.before)
        owner = np.repeat(np.arange(len(inputs.irrelevant)), np.diff(inputs.starts))
        clicks = inputs.clicked & ~inputs.irrelevant[owner]
        groups = (
            ("not_irrelevant_dist_shift", moved, clicks),
            ("irrelevant_dist_shift", -moved, inputs.irrelevant[owner]),
        )
        return [
            MetricValue(name, _mean_of_means(values[mask], owner[mask]))
            for name, values, mask in groups
            if mask.any()
        ]


def _mean_of_means(values: Floats, owner: Ints) -> float:
    counts = np.bincount(owner)
    sums = np.bincount(owner, values)
    return float((sums[counts > 0] / counts[counts > 0]).mean())
