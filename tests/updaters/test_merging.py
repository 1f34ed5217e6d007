"""Merging of weights against slow arithmetic, number by number."""

import inspect

import pytest
import torch

from luthier.registry import find
from luthier.spec import UpdateSpec
from luthier.updaters.merge_words import MERGE_OPTIONS, merge_problems
from luthier.updaters.merging import MERGES, RunningAverage, Soup, Ties, WiSEFT, build_merge, mixed

SHAPES = {"layer.weight": (7, 6), "layer.bias": (7,)}


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator).double() for n, s in SHAPES.items()}


def flat(found) -> list[float]:
    return [x for name in SHAPES for x in found[name].flatten().tolist()]


def never(_found) -> float:
    raise AssertionError("it needs no scores")


def test_the_sweep_keeps_the_best_point_of_the_line() -> None:
    before, after = weights(1), weights(2)
    asked = []

    def score(found) -> float:  # best at 0.7 of the way
        asked.append(flat(found))
        way = (found["layer.bias"] - before["layer.bias"])[0] / (
            after["layer.bias"] - before["layer.bias"]
        )[0]
        return -abs(float(way) - 0.7)

    merge = WiSEFT()
    merge.start(before, None)
    found, table = merge.end(after, score)
    expected = [0.3 * a + 0.7 * b for a, b in zip(flat(before), flat(after), strict=True)]
    assert flat(found) == pytest.approx(expected)
    assert [row["alpha"] for row in table] == [i / 10 for i in range(11)]
    assert [row["alpha"] for row in table if row["chosen"]] == [0.7]
    assert len(asked) == 11


def test_of_points_that_score_alike_the_trained_one_stays() -> None:
    merge = WiSEFT(points=4)
    merge.start(weights(1), None)
    after = weights(2)
    found, table = merge.end(after, lambda _: 0.5)
    assert all(torch.equal(found[n], after[n]) for n in SHAPES)
    assert [row["alpha"] for row in table if row["chosen"]] == [1.0]


def test_a_running_average() -> None:
    merge = RunningAverage(decay=0.5)
    merge.start(weights(0), None)
    average = flat(weights(0))
    for step in range(1, 9):
        merge.stepped(weights(step))
        d = min(0.5, (1 + step) / (10 + step))
        average = [d * a + (1 - d) * w for a, w in zip(average, flat(weights(step)), strict=True)]
    found, table = merge.end(weights(8), never)
    assert flat(found) == pytest.approx(average)
    assert table == []


def test_a_greedy_soup_takes_what_does_no_harm() -> None:
    """The mean may not score less than without: by a score that is known for each mean."""
    epochs = [weights(seed) for seed in range(4)]
    target = mixed([epochs[1], epochs[3]], [0.5, 0.5])

    def score(found) -> float:
        return -sum((a - b) ** 2 for a, b in zip(flat(found), flat(target), strict=True))

    merge = Soup(ingredients=4)
    merge.start(weights(9), None)
    for each in epochs:
        merge.stepped(each)
    found, table = merge.end(epochs[-1], score)
    order = sorted(range(4), key=lambda i: -score(epochs[i]))
    taken = [order[0]]
    for i in order[1:]:  # recipe 1 of the paper
        share = 1 / (len(taken) + 1)
        tried = mixed([epochs[j] for j in [*taken, i]], [share] * (len(taken) + 1))
        if score(tried) >= score(mixed([epochs[j] for j in taken], [1 / len(taken)] * len(taken))):
            taken.append(i)
    expected = [
        sum(values) / len(taken) for values in zip(*(flat(epochs[i]) for i in taken), strict=True)
    ]
    assert flat(found) == pytest.approx(expected)
    assert [i for i, row in enumerate(table) if row["chosen"]] == sorted(taken)
    assert 1 < len(taken) < 4


def test_a_uniform_soup_is_the_mean_of_the_last_epochs() -> None:
    merge = Soup(kind="uniform", ingredients=2)
    merge.start(weights(9), None)
    for seed in range(3):
        merge.stepped(weights(seed))
    found, table = merge.end(weights(2), lambda _: 0.0)
    expected = [(a + b) / 2 for a, b in zip(flat(weights(1)), flat(weights(2)), strict=True)]
    assert flat(found) == pytest.approx(expected)
    assert [row["epoch"] for row in table] == [2, 3]


def test_task_vectors_are_trimmed_and_agree_on_a_sign() -> None:
    """Algorithm 1 of the paper, entry by entry, over three updates that hand on to one another."""
    first, past = weights(0), None
    density, scale = 0.5, 0.9
    for update in (1, 2, 3):
        merge = Ties(density, scale)
        merge.start(first if past is None else weights(50 + update), past)
        found, _ = merge.end(weights(update), never)
        past = merge.hand_on()
        if update == 1:
            assert flat(found) == flat(weights(1)), "alone there is nothing to elect"
    vectors = [
        [w - w0 for w, w0 in zip(flat(weights(u)), flat(first), strict=True)] for u in (1, 2, 3)
    ]
    trimmed = []
    for vector in vectors:
        largest = sorted((abs(x) for x in vector), reverse=True)[: round(density * len(vector))]
        trimmed.append([x if abs(x) >= min(largest) else 0.0 for x in vector])
    expected = []
    for w0, *entries in zip(flat(first), *trimmed, strict=True):
        sign = (sum(entries) > 0) - (sum(entries) < 0)
        agreeing = [x for x in entries if x * sign > 0]
        expected.append(w0 + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    assert flat(found) == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(MERGES))
def test_a_merge_goes_on_where_it_was(name) -> None:
    def go(stop: int | None):
        merge = build_merge(name, {})
        merge.start(weights(0), None)
        for step in range(1, 7):
            if step == stop:
                saved = merge.state()
                merge = build_merge(name, {})
                merge.restore(saved)
            merge.stepped(weights(step))
        return flat(merge.end(weights(6), lambda w: float(w["layer.bias"].sum()))[0])

    assert go(None) == go(4)


def test_options_are_those_of_the_classes() -> None:
    for name, kind in MERGES.items():
        taken = inspect.signature(kind).parameters
        assert MERGE_OPTIONS[name] == {n: p.default for n, p in taken.items()}


@pytest.mark.parametrize(
    ("merge", "options", "updater", "field"),
    [
        ("wise-ft", {"alpha": 1}, "ER", "alpha"),
        ("wise-ft", {"points": 0}, "ER", "points"),
        ("ema", {"decay": 1.0}, "ER", "decay"),
        ("soup", {"kind": "thick"}, "ER", "kind"),
        ("ties", {"density": 0}, "ER", "density"),
        ("none", {"decay": 0.9}, "ER", "decay"),
        ("ties", {}, "GDumb", "merge"),
    ],
)
def test_what_is_wrong_is_told(merge, options, updater, field) -> None:
    spec = UpdateSpec(updater=updater, merge=merge, merge_options=options)
    (problem,) = merge_problems(spec, find("updater", updater))
    assert problem.field.endswith(field)
