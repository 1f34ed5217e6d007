"""What in a log is not people searching: repetitions, bots, bursts. Each is a mask of what to keep,
with what it says; ``clean`` applies them in turn and reports how many each took."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from luthier.clicks.sessions import Bools, Ints, Sessions
from luthier.errors import DataError


@dataclass(frozen=True)
class Cleaned:
    """sessions: what is left. dropped: reason → how many sessions."""

    sessions: Sessions
    dropped: dict[str, int] = field(default_factory=dict)


def clean(
    sessions: Sessions, *, repeated_s: float = 2.0, most_an_hour: int = 120,
    burst: tuple[int, float] = (10, 10.0), clicks_all: int = 10,
) -> Cleaned:  # fmt: skip
    """Drop repetitions, bots and bursts.

    repeated_s: see ``repetitions``. most_an_hour, clicks_all: see ``bots``. burst: (searches,
    seconds), see ``bursts``. 0 for any switches it off. The thresholds are for searches that
    people type; raise them for suggestions while typing. Raises DataError.
    """
    if repeated_s < 0 or most_an_hour < 0 or clicks_all < 0 or min(burst) < 0:
        raise DataError("thresholds are not negative", hint="0 switches one off")
    dropped: dict[str, int] = {}

    def without(bad: Bools, reason: str, left: Sessions) -> Sessions:
        dropped[reason] = int(bad.sum())
        return left.take(~bad) if bad.any() else left

    left = without(repetitions(sessions, repeated_s), "repeated", sessions)
    if most_an_hour or clicks_all:
        left = without(bots(left, most_an_hour, clicks_all), "bot", left)
    if all(burst):
        left = without(bursts(left, int(burst[0]), burst[1]), "burst", left)
    return Cleaned(left, dropped)


def repetitions(sessions: Sessions, within_s: float = 2.0) -> Bools:
    """The same user's same query again within so many seconds: a reload, a double click, a log
    written twice. Sessions without user or time are never repetitions. bool [n]"""
    if not within_s:
        return np.zeros(len(sessions), bool)
    users, times, queries = sessions.user_codes, sessions.times, sessions.query_codes
    known = (users >= 0) & ~np.isnan(times)
    order = np.lexsort((np.arange(len(users)), times, queries, users))
    again = np.zeros(len(users), bool)
    a, b = order[:-1], order[1:]
    same = (users[a] == users[b]) & (queries[a] == queries[b]) & known[a] & known[b]
    with np.errstate(invalid="ignore"):
        again[b] = same & (times[b] - times[a] <= within_s)
    return again


def bots(sessions: Sessions, most_an_hour: int = 120, clicks_all: int = 10) -> Bools:
    """All sessions of users who search more often than people do: more than ``most_an_hour`` times
    in some hour, or who clicked everything that was shown in ``clicks_all`` sessions of two
    results or more, and left nothing unclicked in any. bool [n]"""
    users = sessions.user_codes
    count = int(users.max(initial=-1)) + 1
    bad = np.zeros(count + 1, bool)  # the last stands for users that are not known
    if most_an_hour:
        bad[users[_crowded(sessions, most_an_hour + 1, 3600.0)]] = True
    if clicks_all and count:
        clicked = (sessions.grades() > 0).astype(np.int64)
        size = np.diff(sessions.starts)
        hits = np.bincount(sessions.owner, clicked, len(sessions))
        everything = (hits == size) & (size > 1)
        known = users >= 0
        full = np.bincount(users[known & everything], minlength=count)
        other = np.bincount(users[known & ~everything & (size > 1)], minlength=count)
        bad[:count] |= (full >= clicks_all) & (other == 0)
    bad[count] = False
    found: Bools = bad[users]
    return found


def bursts(sessions: Sessions, searches: int = 10, within_s: float = 10.0) -> Bools:
    """Sessions of a user that stand among so many within so many seconds. bool [n]"""
    return _crowded(sessions, searches, within_s)


def _crowded(sessions: Sessions, many: int, within_s: float) -> Bools:
    """Sessions within some window of ``within_s`` seconds that holds ``many`` of their user's."""
    users, times = sessions.user_codes, sessions.times
    at = np.flatnonzero((users >= 0) & ~np.isnan(times))
    at = at[np.lexsort((times[at], users[at]))]
    found = np.zeros(len(users), bool)
    if len(at) < many or many < 1:
        return found
    first, last = at[: len(at) - many + 1], at[many - 1 :]
    full = (users[first] == users[last]) & (times[last] - times[first] <= within_s)
    edges = np.zeros(len(at) + 1, np.int64)
    begin = np.flatnonzero(full)
    np.add.at(edges, begin, 1)
    np.add.at(edges, begin + many, -1)
    found[at] = np.cumsum(edges[:-1]) > 0
    return found


def visits(sessions: Sessions, gap_s: float = 1800.0) -> Ints:
    """The number of the visit of each session, int64 [n]: a user's sessions belong together
    until a pause of ``gap_s``. Without user or time a session is a visit of its own."""
    users, times = sessions.user_codes, sessions.times
    order = np.lexsort((times, users))
    known = (users >= 0) & ~np.isnan(times)
    new = np.ones(len(order), bool)
    a, b = order[:-1], order[1:]
    with np.errstate(invalid="ignore"):
        same = (users[a] == users[b]) & known[a] & known[b] & (times[b] - times[a] <= gap_s)
    new[1:] = ~same
    found = np.empty(len(order), np.int64)
    found[order] = np.cumsum(new) - 1
    return found
