"""Trials of a search: put aside after so many evaluations, and with their share of the cores."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import cpu_count
from typing import Any, Literal

from luthier.engine.control import Control
from luthier.runs.connection import Home
from luthier.runs.records import RunRecord
from luthier.worker.teller import Teller


class Pause:
    """Interrupts a trial once it has had the evaluations that its search allows it.

    It stops as any interrupted run does, after the checkpoint: let go on, it equals one that
    was never put aside, bit for bit.
    """

    def __init__(self, home: Home, run: RunRecord, control: Control) -> None:
        self._after, self._control = run.pause_after, control
        self._is_trial = run.parent_id is not None
        self._every = run.spec.training.eval_steps
        #: Whether that many evaluations have been told: by an earlier attempt, where it died
        #: before it could put the trial aside.
        self.reached = self._after is not None and any(
            self._enough(event.data)
            for event in home.ledger.events(run.id, limit=100_000, kinds=["evaluation"])
        )

    def control(self) -> Literal["cancel", "interrupt"] | None:
        """What the engine shall do now."""
        return self._control() or ("interrupt" if self.reached else None)

    def listening(self, teller: Teller) -> Callable[[str, dict[str, Any]], None]:
        """The teller, with an ear for evaluations. Those of a trial are written before the run
        goes on: a checkpoint that is past an evaluation shall not outlive the news of it."""
        if not self._is_trial:
            return teller

        def told(kind: str, data: dict[str, Any]) -> None:
            teller(kind, data)
            if kind == "evaluation":
                teller.write()
                self.reached = self.reached or self._enough(data)

        return told

    def _enough(self, data: dict[str, Any]) -> bool:
        return self._after is not None and evaluation_number(data, self._every) >= self._after


def evaluation_number(data: dict[str, Any], eval_steps: int | None) -> int:
    """Which evaluation of its run this is, from 1: by epochs, or by steps where those count."""
    return int(data["step"]) // eval_steps if eval_steps else int(data["epoch"])


def threads_of_trial(home: Home, run: RunRecord) -> int | None:
    """A trial's share of the cores where its search runs several at a time. Not what happens to
    run just now: its numbers shall not depend on that."""
    if run.parent_id is None:
        return None
    search = home.ledger.get(run.parent_id).spec.search
    return (
        None if search is None or search.n_workers == 1 else max(1, cpu_count() // search.n_workers)
    )
