"""What is told of searches that two models scored: how scores moved, for each side of a click, or
what somebody's own class says.

A calculator works wherever a model trains, so it travels to a worker as data: the name of a card,
or Python text that defines its class, and the attributes of the object.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError, Problem, SpecError
from luthier.registry import find

if TYPE_CHECKING:
    from luthier.data.rankings import Rankings

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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


@dataclass(frozen=True)
class Layout:
    """Searches of rankings as inputs.

    queries, items: int64 [m], texts of the catalogue. clicked: bool [m]. starts: int64 [n + 1].
    irrelevant: bool [n]. Items that a row has of a search without a click are an input apart.
    """

    queries: Ints
    items: Ints
    clicked: Bools
    starts: Ints
    irrelevant: Bools

    def scored(self, before: Floats, after: Floats, *, is_similarity: bool) -> ScoredInputs:
        """With the scores of two models, [m]."""
        return ScoredInputs(
            before, after, self.clicked, self.starts, self.irrelevant, is_similarity
        )


def laid_out(dataset: Rankings) -> Layout:
    """The inputs of rankings. A row without anything relevant is one without a click."""
    shown = dataset.shown(np.arange(len(dataset)))
    apart = np.zeros(len(shown), bool) if shown.irrelevant is None else shown.irrelevant
    number = 2 * shown.rows + apart
    order = np.argsort(number, kind="stable")
    _, first, owner = np.unique(number[order], return_index=True, return_inverse=True)
    clicked = (shown.relevance > 0)[order]
    irrelevant = np.bincount(owner, clicked, len(first)) == 0
    return Layout(
        shown.queries[shown.rows][order],
        shown.items[order],
        clicked,
        np.concatenate([first, [len(order)]]).astype(np.int64),
        irrelevant,
    )


def made(name: str, attributes: Mapping[str, Any], code: str | None) -> MetricCalculator:
    """The calculator of that name: of a card, or of Python text, which is executed.

    Raises NotFound for a card, SpecError for text that cannot be executed or has no such class.
    """
    kind: Any = find("calculator", name).load() if code is None else _defined(name, code)
    found: MetricCalculator = kind.__new__(kind)
    vars(found).update(attributes)
    return found


def _defined(name: str, code: str) -> type:
    module_name = f"luthier_calculator_{hashlib.sha256(code.encode()).hexdigest()[:16]}"
    module = sys.modules.get(module_name)
    if module is None:
        module = types.ModuleType(module_name)
        sys.modules[module_name] = module  # where dataclasses look for what annotations name
        try:
            exec(compile(code, f"<calculator {name}>", "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[module_name]
            raise SpecError([_problem(name, f"{type(error).__name__}: {error}")]) from error
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise SpecError([_problem(name, "the text defines no such class")])
    return found


def _problem(name: str, message: str) -> Problem:
    return Problem(f"calculators.{name}", message)
