"""Who goes on: the pruners against plain simulations of their papers."""

from __future__ import annotations

import random
from typing import Any

import pytest

from luthier.search.planner import Known
from luthier.search.rungs import Asha, Ladder, make_pruner


def curve_of(number: int, length: int) -> list[float]:
    """A trial's accuracies; better ones are better at each evaluation, but for noise."""
    rng = random.Random(number)
    top = rng.random()
    return [top * (1 - 0.5 ** (i + 1)) + 0.01 * rng.random() for i in range(length)]


def simulate(
    name: str, trials: int, length: int, workers: int = 1, seed: int = 0, **options: Any
) -> list[Known]:
    """A search of the pruner, evaluation by evaluation, with so many workers."""
    pruner = make_pruner(name, options, falls=False, trials=trials)
    rng = random.Random(seed)
    known: list[Known] = []
    for _ in range(100_000):
        more = len(known) < trials
        decision = pruner.decide(known, no_more=not more)
        for number, rung in decision.go.items():
            assert known[number].state == "paused"
            known[number].state, known[number].rung = "running", rung
        for number in decision.stop:
            known[number].state = "pruned"
        running = [k for k in known if k.state == "running"]
        while more and len(running) < workers:
            new = Known(len(known), {}, "running", rung=pruner.first(len(known)))
            known.append(new)
            running.append(new)
            more = len(known) < trials
        if not running:
            if not more and not any(k.state == "paused" for k in known):
                return known
            assert decision.go or decision.stop, "nobody runs and nothing is decided"
            continue
        trial = rng.choice(running)
        done = len(trial.curve) + 1
        trial.curve[done] = curve_of(trial.number, length)[done - 1]
        if done == length:
            trial.state = "complete"
        elif done == trial.rung:
            trial.state = "paused"
    raise AssertionError("it does not end")


def evaluations(known: list[Known]) -> list[int]:
    return [len(k.curve) for k in known]


@pytest.mark.parametrize("workers", [1, 3])
def test_halving_is_the_paper_s(workers: int) -> None:
    """Eight trials: four go on at the first rung, two at the second, one to the end."""
    known = simulate("halving", 8, 12, workers)

    def plain() -> list[int]:
        used, alive, rung = [0] * 8, list(range(8)), 1
        for keep in (4, 2, 1):
            for i in alive:
                used[i] = rung
            alive = sorted(alive, key=lambda i: -curve_of(i, 12)[rung - 1])[:keep]
            rung *= 2
        used[alive[0]] = 12
        return used

    assert evaluations(known) == plain()
    assert sum(evaluations(known)) == 4 * 1 + 2 * 2 + 1 * 4 + 12
    assert [k.state for k in known].count("complete") == 1


@pytest.mark.parametrize("name", ["asha", "hyperband", "halving"])
@pytest.mark.parametrize("trials", [1, 2, 3, 9, 16])
@pytest.mark.parametrize("workers", [1, 4])
def test_every_search_ends_with_a_trial_that_ran_to_its_end(
    name: str, trials: int, workers: int
) -> None:
    for length in (1, 2, 5, 16):
        known = simulate(name, trials, length, workers)
        assert len(known) == trials
        assert any(k.state == "complete" for k in known)
        assert {k.state for k in known} <= {"complete", "pruned"}


def test_asha_promotes_the_best_share_of_a_rung() -> None:
    """With one worker, as in algorithm 2: promote where somebody can be, else begin a trial."""
    known = simulate("asha", 27, 27, reduction_factor=3)
    by_length = sorted(evaluations(known), reverse=True)
    assert by_length[0] == 27
    assert sum(n == 1 for n in by_length) >= 18 - 3
    assert sum(evaluations(known)) < 27 * 27 / 3
    best = max(range(27), key=lambda i: curve_of(i, 27)[-1])
    assert known[best].state == "complete"


def test_hyperband_s_brackets_cost_about_the_same() -> None:
    asha = Asha(False, Ladder(1, 2.0), brackets=3)
    counts = [sum(asha.bracket(i) == b for i in range(70)) for b in range(3)]
    assert counts == [40, 20, 10]
    assert [asha.first(next(i for i in range(70) if asha.bracket(i) == b)) for b in range(3)] == [
        1, 2, 4,
    ]  # fmt: skip


def test_the_median_rule_stops_who_is_worse_than_the_median_of_means() -> None:
    def complete(number: int, values: list[float]) -> Known:
        return Known(number, {}, "complete", (values[-1],), dict(enumerate(values, 1)))

    others = [complete(0, [1, 2, 3]), complete(1, [2, 3, 4]), complete(2, [3, 4, 5])]
    pruner = make_pruner("median", {}, falls=False, trials=9)
    running = Known(3, {}, "running", None, {1: 2.4})
    assert pruner.decide([*others, running], no_more=False).stop == ()  # it warms up
    running.curve[2] = 2.4  # means until 2: 1.5, 2.5, 3.5; the median is 2.5
    assert pruner.decide([*others, running], no_more=False).stop == (3,)
    running.curve[2] = 2.6
    assert pruner.decide([*others, running], no_more=False).stop == ()
    falling = make_pruner("median", {}, falls=True, trials=9)
    assert falling.decide([*others, running], no_more=False).stop == ()
    running.curve = {1: 2.6, 2: 2.6}
    assert falling.decide([*others, running], no_more=False).stop == (3,)
    assert pruner.decide([*others[:2], running], no_more=False).stop == ()


@pytest.mark.parametrize("name", ["asha", "halving", "hyperband"])
def test_a_failed_trial_holds_nobody_up(name: str) -> None:
    known = simulate(name, 6, 8)
    pruner = make_pruner(name, {}, falls=False, trials=6)
    half = [Known(k.number, {}, "paused", None, {1: k.curve[1]}, rung=1) for k in known[:5]]
    half.append(Known(5, {}, "failed"))
    decision = pruner.decide(half, no_more=True)
    assert decision.go
