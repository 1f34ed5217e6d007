"""When a search has had enough: trials, time, money."""

from __future__ import annotations

import time
from collections.abc import Iterable

from luthier.runs.ledger import Ledger
from luthier.runs.records import RunRecord
from luthier.search.summary import Trial
from luthier.spec.search import SearchSpec

#: So many trials that failed, and none that did not: the next ones will fail as well.
MOST_FAILED = 5
#: Trials where nobody says how many.
TRIALS = 10


class Limits:
    """What a search may use."""

    def __init__(self, search: SearchSpec) -> None:
        self.search = search

    def most_trials(self, points: int | None) -> int | None:
        """How many trials are begun at most; None where something else ends the search.
        points: how many there are in the space, where that is known."""
        search = self.search
        others = (
            *(search.max_trials_completed, search.max_trials_finished),
            *(search.max_time_s, search.max_cost),
        )
        most = search.max_trials
        if most is None and search.pruner == "halving":
            most = TRIALS
        if most is None and points is None and not any(others):
            most = TRIALS
        return min((n for n in (most, points) if n is not None), default=None)

    def used_up(self, trials: Iterable[Trial], me: RunRecord, ledger: Ledger) -> bool:
        """Whether time, money, or the trials that were to end are used up."""
        search, trials = self.search, list(trials)
        completed = sum(t.state == "complete" for t in trials)
        finished = sum(t.ended for t in trials)
        failed = sum(t.state == "failed" for t in trials)
        if failed >= MOST_FAILED and failed == finished:
            return True
        if search.max_trials_completed and completed >= search.max_trials_completed:
            return True
        if search.max_trials_finished and finished >= search.max_trials_finished:
            return True
        begun = me.started_at
        if search.max_time_s and begun is not None and time.time() - begun >= search.max_time_s:
            return True
        if search.max_cost is None or search.cost_per_hour is None:
            return False
        return paid_s(ledger, me.id) * search.cost_per_hour / 3600 >= search.max_cost


def paid_s(ledger: Ledger, search_id: str) -> float:
    """Seconds of all trials together; of those that have not ended until now."""
    seconds = 0.0
    for record in ledger.trials(search_id):
        if record.started_at is not None:
            seconds += (record.finished_at or time.time()) - record.started_at
    return seconds
