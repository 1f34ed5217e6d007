"""CMA-ES: a normal distribution over the unit cube that moves to where trials were good.

Hansen 2016, The CMA Evolution Strategy: A Tutorial (arXiv:1604.00772), by the package ``cmaes``
that Optuna uses as well. Nothing is kept between two proposals: the generations are told again,
in the order of the trials' numbers. Choices are drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from luthier.search.planner import Known, derived
from luthier.search.space import Parameter, Point, Space
from luthier.tuning.domains import Float, Integer

#: The first distribution: from the middle, about two thirds of the cube within one sigma each way.
_SIGMA = 0.3


def propose(
    space: Space, known: Sequence[Known], seed: int, number: int, attempt: int, falls: bool
) -> Point:
    """A point from the distribution that the finished generations lead to."""
    from cmaes import CMA

    axes = [p for p in space.parameters().values() if p.count is None]
    drawn = space.sample(derived(seed, number, attempt))
    if len(axes) < 2:  # the strategy has a covariance: with one number it is a shrinking range
        axes = [*axes, *[_FILLER] * (2 - len(axes))]
    strategy = CMA(
        mean=np.full(len(axes), 0.5),
        sigma=_SIGMA,
        bounds=np.array([[0.0, 1.0]] * len(axes)),
        seed=derived(seed, "cmaes"),
    )
    told = [(_place(k.point, axes), v) for k in known if (v := _value(k, falls)) is not None]
    size = strategy.population_size
    for start in range(0, len(told) - size + 1, size):
        strategy.tell(told[start : start + size])
    strategy.reseed_rng(derived(seed, "cmaes", number, attempt))
    place = strategy.ask()
    chosen = {p.name: _number(p, float(x)) for p, x in zip(axes, place, strict=True)}
    return space.draw(lambda p: chosen[p.name] if p.count is None else _choice(p, drawn))[0]


_FILLER = Parameter("", Float(0.0, 1.0), None)


def _choice(parameter: Parameter, drawn: Point) -> Any:
    return drawn.get(parameter.name, 0)


def _value(known: Known, falls: bool) -> float | None:
    if known.state != "complete" or known.scores is None:
        return None
    value = known.scores[0]
    return value if falls else -value


def _place(point: Point, axes: Sequence[Parameter]) -> np.ndarray:
    """Where a point is in the unit cube; a parameter that it has not is in the middle."""
    return np.array([_share(p, point[p.name]) if p.name in point else 0.5 for p in axes])


def _share(parameter: Parameter, value: float) -> float:
    low, high, log = _bounds(parameter)
    if log:
        value = math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def _number(parameter: Parameter, share: float) -> float | int:
    low, high, log = _bounds(parameter)
    value = low + share * (high - low)
    value = math.exp(value) if log else value
    domain = parameter.domain
    assert isinstance(domain, Float | Integer)
    if domain.step not in (None, 1) or isinstance(domain, Integer):
        step = domain.step or 1
        value = domain.lower + round((value - domain.lower) / step) * step
    value = min(max(value, domain.lower), domain.upper)
    return int(value) if isinstance(domain, Integer) else value


def _bounds(parameter: Parameter) -> tuple[float, float, bool]:
    domain = parameter.domain
    assert isinstance(domain, Float | Integer)
    if domain.log:
        return math.log(domain.lower), math.log(domain.upper), True
    return domain.lower, domain.upper, False
