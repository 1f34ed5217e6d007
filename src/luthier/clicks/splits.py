"""Which sessions train and which are held out, and how much both know of the same.

A random split of sessions leaks: the same query with the same clicks is on both sides. A split by
query tests on queries that training never saw; one by time on what comes after, as in use. What
still overlaps is counted and told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from luthier.batches.arithmetic import derive, numbers
from luthier.clicks.sessions import Bools, Ints, Sessions
from luthier.errors import DataError

By = Literal["query", "time"]


@dataclass(frozen=True)
class Overlap:
    """How many of the held-out part's things training knows: (known, of how many)."""

    queries: tuple[int, int]
    items: tuple[int, int]
    clicked_items: tuple[int, int]
    pairs: tuple[int, int]  # a query with an item clicked for it
    users: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """For reports, with shares."""
        return {
            name: {"known": known, "of": total, "share": known / total if total else 0.0}
            for name, (known, total) in vars(self).items()
        }


@dataclass(frozen=True)
class Split:
    """train, test: sessions; rows of both in what was split; the overlap."""

    train: Sessions
    test: Sessions
    train_rows: Ints
    test_rows: Ints
    overlap: Overlap
    by: By


def split_sessions(
    sessions: Sessions, *, test_size_ratio: float = 0.2, by: By = "query", seed: int = 0
) -> Split:
    """Hold a share of the sessions out.

    by: "query" keeps all sessions of a query on one side, drawn by the seed; "time" holds the
    latest out, and sessions of one moment stay together. Raises DataError where a side would
    be empty, or a time lacks.
    """
    if not 0 < test_size_ratio < 1:
        raise DataError(f"test_size_ratio is {test_size_ratio}", hint="between 0 and 1")
    if by == "query":
        held = _by_query(sessions, test_size_ratio, seed)
    elif by == "time":
        held = _by_time(sessions, test_size_ratio)
    else:
        raise DataError(f"sessions are not split by {by!r}", hint="query or time")
    if not held.any() or held.all():
        what = "different queries" if by == "query" else "different times"
        raise DataError("one side of the split would be empty", hint=f"there are too few {what}")
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    overlap = measure_overlap(sessions, train, test)
    return Split(sessions.take(train), sessions.take(test), train, test, overlap, by)


def _by_query(sessions: Sessions, share: float, seed: int) -> Bools:
    """Whole queries, in an order of their texts' own, until there are sessions enough: the same
    query is on the same side in a log that has grown, but for those at the border."""
    texts = sessions.query_texts
    names = np.array([derive("split", seed, text) for text in texts], np.uint64)
    order = np.argsort(numbers(derive("order", seed), names.view(np.int64)), kind="stable")
    counts = np.bincount(sessions.query_codes, minlength=len(texts))[order]
    wanted = share * len(sessions)
    before = np.concatenate([[0], np.cumsum(counts)[:-1]])
    take = before + counts / 2 <= wanted  # the query at the border: the nearer way
    if len(texts) > 1:
        take[0], take[-1] = True, False
    held = np.zeros(len(texts), bool)
    held[order[take]] = True
    found: Bools = held[sessions.query_codes]
    return found


def _by_time(sessions: Sessions, share: float) -> Bools:
    if np.isnan(sessions.times).any():
        unknown = int(np.isnan(sessions.times).sum())
        raise DataError(f"{unknown:,} sessions have no time", hint='split by="query"')
    ordered = np.sort(sessions.times)
    border = ordered[min(len(ordered) - 1, int(np.ceil((1 - share) * len(ordered))))]
    found: Bools = sessions.times >= border
    return found


def measure_overlap(sessions: Sessions, train: Ints, test: Ints) -> Overlap:
    """What the sessions of both parts (rows) share."""
    is_train = np.zeros(len(sessions), bool)
    is_train[train] = True
    is_test = np.zeros(len(sessions), bool)
    is_test[test] = True
    owner, clicked = sessions.owner, sessions.grades() > 0
    pairs = sessions.query_codes[owner] * max(1, len(sessions.item_names)) + sessions.item_codes

    def known(values: Ints, of: Ints, only: Bools | None = None) -> tuple[int, int]:
        use = np.ones(len(values), bool) if only is None else only
        tested = np.unique(values[use & is_test[of]])
        trained = np.unique(values[use & is_train[of]])
        return int(np.isin(tested, trained).sum()), len(tested)

    each, users = np.arange(len(sessions)), sessions.user_codes
    return Overlap(
        queries=known(sessions.query_codes, each),
        items=known(sessions.item_codes, owner),
        clicked_items=known(sessions.item_codes, owner, clicked),
        pairs=known(pairs, owner, clicked),
        users=known(users, each, users >= 0),
    )
