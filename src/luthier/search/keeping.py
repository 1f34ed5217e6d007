"""Which models a search keeps, where it was told to keep the best only; the others it gives up.

A trial that is not among the best of some trials is not among the best of more: so whoever leads
the search may be killed, replaced or late, and what it gave up was rightly given up. What it left
half done its successor does again.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from luthier.errors import Conflict, StoreError
from luthier.runs.connection import Home
from luthier.runs.records import RunRecord
from luthier.search.summary import Summary, Trial
from luthier.store.atomic import point

#: What stays of the folder of a trial.
_KEPT = ("console.log",)


class Keeping:
    """Gives up the models and checkpoints of all trials but the best ``count``; for None, of
    none. earlier: ids of runs that ended before the search was done again from the start."""

    def __init__(self, home: Home, search: RunRecord, epoch: int, count: int | None) -> None:
        self.home, self.search, self.epoch, self.count = home, search, epoch, count
        self.earlier: tuple[str, ...] = ()
        self._ended, self._done = -1, set[str]()

    def tidy(self, summary: Summary, *, last: bool = False) -> list[str]:
        """Give up what is superfluous now; what could not be, and why. last: look once more for
        what others referred to. Raises LeaseLost."""
        ended = sum(trial.ended for trial in summary.trials)
        if self.count is None or (ended == self._ended and not last):
            return []
        self._ended = ended
        left = superfluous(summary, self.count)
        whose = {trial.run_id: trial.number for trial in left if trial.run_id}
        every = [*self.earlier, *whose]
        problems = []
        for run_id in every:
            if run_id in self._done:
                continue
            try:
                if self._give_up(run_id, whose.get(run_id), every):
                    self._done.add(run_id)
            except (Conflict, StoreError) as error:  # the disk is full, or somebody resumed it
                problems.append(f"the model of run {run_id} is kept for now: {error}")
                self._ended = -1
        return problems

    def _give_up(self, run_id: str, number: int | None, others: Sequence[str]) -> bool:
        """Whether nothing is left to give up."""
        name = self.search.name
        folder = self.home.path / "runs" / run_id
        which = "an earlier trial" if number is None else f"trial {number}"
        message = f"the model of {which} of '{name}' was given up: keep_best={self.count}"
        hint = f"the reports are there; luthier trials {name}"
        if number is not None:
            hint = (
                f"it can be made again: luthier trials {name} --trial {number} --export job.yaml, "
                "then luthier fit job.yaml"
            )
        with self.home.ledger.giving_up(self.search.id, self.epoch, run_id, others) as artifact_id:
            if artifact_id is not None:
                # The weights are deleted outside of the transaction, which others wait for.
                self.home.store.give_up(artifact_id, folder, message, hint)
        point("search.given_up")
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.name in _KEPT:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        point("search.removed")
        return artifact_id is not None or self.home.ledger.get(run_id).artifact_id is None


def superfluous(summary: Summary, count: int) -> list[Trial]:
    """The trials that have ended and are not among the best ``count`` by the first metric."""
    best = {trial.number for trial in summary.ranked()[:count]}
    return [trial for trial in summary.trials if trial.ended and trial.number not in best]
