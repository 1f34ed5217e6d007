"""From what the engine tells to events in the ledger, in a thread: the run does not wait."""

from __future__ import annotations

import sys
import threading
from typing import Any

from luthier.errors import LeaseLost, LuthierError
from luthier.runs.ledger import Ledger

#: How often events are written; of the steps in between only the last is.
WRITE_EVERY_S = 0.25
#: When the ledger cannot be written, so many events are kept; then the oldest are dropped.
_KEPT = 10_000


class Teller:
    """A listener that writes events under the fence. It never raises and never blocks."""

    def __init__(self, ledger: Ledger, run_id: str, epoch: int) -> None:
        self._ledger, self._run_id, self._epoch = ledger, run_id, epoch
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="events", daemon=True)
        self._thread.start()

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """Note an event. A step replaces the step before, if that was not yet written."""
        with self._lock:
            if kind == "step" and self._pending and self._pending[-1][0] == "step":
                self._pending[-1] = (kind, dict(data))
            else:
                self._pending.append((kind, dict(data)))

    def write(self) -> None:
        """Write what is pending now, in the thread that asks."""
        self._write()

    def end(self) -> None:
        """Write what is left, and stop."""
        self._ending.set()
        self._thread.join()
        self._write()

    def _write_on(self) -> None:
        while not self._ending.wait(WRITE_EVERY_S):
            self._write()

    def _write(self) -> None:
        with self._writing:
            self._write_alone()

    def _write_alone(self) -> None:
        with self._lock:
            new, self._pending = self._pending, []
        if not new:
            return
        try:
            self._ledger.append(self._run_id, self._epoch, new)
            steps = [int(data["step"]) for kind, data in new if kind == "checkpoint"]
            if steps:
                self._ledger.progress(self._run_id, self._epoch, checkpoint_step=max(steps))
        except LeaseLost:
            return  # the heart notices as well, and ends this process
        except LuthierError as error:
            print(f"events could not be written, trying again: {error}", file=sys.stderr)
            with self._lock:
                self._pending = [*new, *self._pending][-_KEPT:]
