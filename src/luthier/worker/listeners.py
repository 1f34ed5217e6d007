"""All who listen to a run. A listener that fails is reported and dropped; the run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.engine.control import Listener
from luthier.runs.records import RunRecord
from luthier.spec import MLFlowLogger, WandBLogger
from luthier.trackers import Tracker, make_tracker


class Audience:
    """Tells the ledger first, then each tracker."""

    def __init__(self, first: Listener) -> None:
        self._first = first
        self._trackers: list[Tracker] = []

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        self._first(kind, data)
        for tracker in list(self._trackers):
            try:
                tracker(kind, data)
            except Exception as error:
                self._drop(tracker, error)

    def invite(self, run: RunRecord) -> None:
        """Start the trackers that the run's spec names."""
        for callback in run.spec.callbacks:
            if isinstance(callback, MLFlowLogger | WandBLogger):
                try:
                    config = run.spec.model_dump(mode="json")
                    self._trackers.append(make_tracker(callback, run.name, config))
                except Exception as error:
                    self._say(type(callback).__name__, "could not be started", error)

    def leave(self, succeeded: bool) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            try:
                tracker.close(succeeded)
            except Exception as error:
                self._say(type(tracker).__name__, "could not be closed", error)

    def _drop(self, tracker: Tracker, error: Exception) -> None:
        self._trackers.remove(tracker)
        self._say(type(tracker).__name__, "failed and is dropped", error)

    def _say(self, name: str, what: str, error: Exception) -> None:
        message = f"{name} {what}; the run goes on: {type(error).__name__}: {error}"
        self._first("log", {"level": "warning", "message": message})


@contextmanager
def audience(first: Listener, run: RunRecord) -> Iterator[Audience]:
    """The listeners of a run, closed at its end whichever way it ends."""
    found = Audience(first)
    found.invite(run)
    try:
        yield found
    except BaseException:
        found.leave(succeeded=False)
        raise
    found.leave(succeeded=True)
