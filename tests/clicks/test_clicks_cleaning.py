"""Repetitions, bots and bursts, beside slow loops."""

import numpy as np
import pytest

from luthier.clicks.cleaning import bots, bursts, clean, repetitions, visits
from luthier.clicks.sessions import Sessions
from luthier.errors import DataError


def _sessions(rows):
    """(user, query, time[, clicks]) each; two results."""
    return Sessions.of(
        {"session": str(i), "user": user, "query": query, "time": time, "items": ["a", "b"],
         "clicks": list(more[0]) if more else []}
        for i, (user, query, time, *more) in enumerate(rows)
    )  # fmt: skip


@pytest.fixture(scope="module")
def random_rows():
    rng = np.random.default_rng(0)
    people = [(f"u{rng.integers(5)}", f"q{rng.integers(3)}", float(rng.integers(4000)))
              for _ in range(300)]  # fmt: skip
    return [*people, (None, "q0", 5.0), (None, "q0", 5.0), ("u0", "q0", None), ("u0", "q0", None)]


def _slow_crowded(rows, many, within):
    found = [False] * len(rows)
    for user, _, time in rows:
        if user is None or time is None:
            continue
        group = [j for j, (u, _, t) in enumerate(rows)
                 if u == user and t is not None and time <= t <= time + within]  # fmt: skip
        if len(group) >= many:
            for j in group:
                found[j] = True
    return found


@pytest.mark.parametrize(("many", "within"), [(3, 30.0), (2, 1.0), (20, 1000.0), (500, 9e9)])
def test_bursts_are_those_of_a_slow_loop(random_rows, many, within):
    expected = _slow_crowded(random_rows, many, within)
    assert bursts(_sessions(random_rows), many, within).tolist() == expected


def test_who_searches_too_often_is_a_bot_and_goes_whole():
    few = [("u", "q", 100.0 * i) for i in range(5)]
    robot = [("robot", "q", 20.0 * i) for i in range(30)] + [("robot", "q", 9e9), (None, "q", 1.0)]
    found = bots(_sessions([*few, *robot]), most_an_hour=29)
    assert found.tolist() == [False] * 5 + [True] * 31 + [False]


def test_who_clicks_everything_is_a_bot():
    rows = [("all", "q", 5e3 * i, (0, 1)) for i in range(10)]
    rows += [("most", "q", 5e3 * i, (0, 1)) for i in range(10)] + [("most", "q", 9e6, (0,))]
    assert bots(_sessions(rows)).tolist() == [True] * 10 + [False] * 11


def test_repetitions_are_dropped_but_the_first():
    rows = [("u", "q", 10.0), ("u", "q", 11.0), ("u", "r", 11.0), ("v", "q", 11.0),
            ("u", "q", 20.0), (None, "q", 1.0), (None, "q", 1.0), ("u", "q", None),
            ("u", "q", None)]  # fmt: skip
    expected = [False, True] + [False] * 7
    assert repetitions(_sessions(rows)).tolist() == expected
    assert not repetitions(_sessions(rows), 0).any()


def test_visits_end_with_a_pause():
    rows = [("u", "q", 0.0), ("v", "q", 10.0), ("u", "r", 1700.0), ("u", "q", 9000.0),
            (None, "q", 1.0), (None, "q", 1.0)]  # fmt: skip
    found = visits(_sessions(rows))
    assert found[0] == found[2]
    assert len(set(found.tolist())) == 5


def test_clean_says_what_it_took(random_rows):
    done = clean(_sessions(random_rows), repeated_s=30, burst=(3, 30.0))
    assert len(done.sessions) == len(random_rows) - sum(done.dropped.values())
    assert done.dropped["repeated"] > 0
    assert done.dropped["burst"] > 0
    off = clean(_sessions(random_rows), repeated_s=0, most_an_hour=0, burst=(0, 0), clicks_all=0)
    assert len(off.sessions) == len(random_rows)
    with pytest.raises(DataError, match="not negative"):
        clean(_sessions(random_rows), repeated_s=-1)
