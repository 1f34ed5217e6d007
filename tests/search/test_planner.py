"""Who proposes what: reproducible, within the space, and better than chance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from luthier.search.planner import Known, Planner
from luthier.search.space import Values, read_space
from luthier.search.summary import Trial, pareto
from luthier.spec.search import SearchSpec

ALGORITHMS = ("random", "tpe", "gp", "cmaes", "grid")
NUMBERS = {
    "x": {"type": "float", "lower": -5.0, "upper": 5.0},
    "y": {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True},
}
MIXED = NUMBERS | {
    "n": {"type": "integer", "lower": 1, "upper": 9},
    "c": {"type": "categorical", "categories": ["a", "b", "c"]},
    "o": {"type": "ordinal", "categories": [1, 10, 100]},
    "k": {
        "type": "branches",
        "cases": [
            {"z": {"type": "float", "lower": 0.0, "upper": 1.0}},
            {"w": {"type": "fixed", "value": 3}},
        ],
    },
}


def bowl(values: Values) -> float:
    """Least at x = 2, y = 0.01."""
    return (values["x"] - 2) ** 2 + (math.log10(values["y"]) + 2) ** 2


def walk(
    algorithm: str,
    space: dict[str, Any],
    value: Callable[[Values], float],
    trials: int,
    seed: int = 0,
) -> list[tuple[Values, float]]:
    read = read_space(space)
    spec = SearchSpec(space=space, algorithm=algorithm, sampling_seed=seed)  # type: ignore[arg-type]
    planner = Planner(read, spec, ["minimize"])
    known: list[Known] = []
    found = []
    for number in range(trials):
        point = planner.propose(number, known)
        values = read.values(point)
        known.append(Known(number, point, "complete", (value(values),)))
        found.append((values, value(values)))
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_seed_asks_for_the_same(algorithm: str) -> None:
    """Of every kind of parameter, those below a choice included."""
    trials = 8 if algorithm == "gp" else 14
    first = walk(algorithm, MIXED, bowl, trials)
    assert walk(algorithm, MIXED, bowl, trials) == first
    if algorithm != "grid":
        assert walk(algorithm, MIXED, bowl, trials, seed=1) != first


@pytest.mark.parametrize("algorithm", ["tpe", "gp", "cmaes"])
def test_what_was_learnt_is_used(algorithm: str) -> None:
    """Over four seeds the later half of the trials is much better than that of random search."""
    trials = {"tpe": 30, "gp": 16, "cmaes": 48}[algorithm]

    def later(name: str) -> float:
        halves = [walk(name, NUMBERS, bowl, trials, seed)[trials // 2 :] for seed in range(4)]
        return sum(v for half in halves for _, v in half) / (4 * (trials - trials // 2))

    assert later(algorithm) < 0.5 * later("random")


def test_failed_trials_are_not_learnt_from_and_paused_ones_are() -> None:
    read = read_space(NUMBERS)
    planner = Planner(read, SearchSpec(space=NUMBERS), ["minimize"])
    known = [Known(i, read.sample(i), "complete", (float(i),)) for i in range(8)]
    asked = planner.propose(9, known)
    assert planner.propose(9, [*known, Known(8, read.sample(8), "failed")]) == asked
    waiting = [Known(k.number, k.point, "paused", None, {1: float(k.number)}) for k in known]
    first = planner.propose(9, waiting)
    waiting[7].curve[1] = -100.0
    assert planner.propose(9, waiting) != first


def test_a_constraint_s_violations_are_learnt_from() -> None:
    """Half of the line is better, and not allowed: TPE keeps to the other half."""
    space = {"x": {"type": "float", "lower": -1.0, "upper": 1.0}}
    read = read_space(space)
    spec = SearchSpec(space=space, constraints=("x <= 0",))
    planner = Planner(read, spec, ["maximize"])
    known: list[Known] = []
    for number in range(25):
        point = planner.propose(number, known)
        x = point["x"]
        known.append(Known(number, point, "complete", (x,), violations=(x,)))
    assert sum(k.point["x"] <= 0 for k in known[10:]) >= 10


def test_two_objectives_are_searched_for_both() -> None:
    spec = SearchSpec(space=NUMBERS, metrics=("a", "b"))
    read = read_space(NUMBERS)
    planner = Planner(read, spec, ["maximize", "minimize"])
    known: list[Known] = []
    for number in range(12):
        point = planner.propose(number, known)
        known.append(Known(number, point, "complete", (point["x"], point["y"])))
    assert len({repr(k.point) for k in known}) == 12


def test_the_front_is_that_of_the_definition() -> None:
    values = [(0.5, 3.0), (0.6, 3.0), (0.6, 2.0), (0.9, 9.0), (0.1, 1.0), (0.6, 2.0), (0.1, 5.0)]
    trials = [
        Trial(i, {}, {}, "complete", scores={"q": q, "s": s}) for i, (q, s) in enumerate(values)
    ]

    def better(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    expected = [i for i, mine in enumerate(values) if not any(better(o, mine) for o in values)]
    found = pareto(trials, ("q", "s"), ("maximize", "minimize"))
    assert [t.number for t in found] == expected == [2, 3, 4, 5]
