"""The heart of an attempt: a thread that keeps the lease, hears signals and cancellations,
and ends the process when its main thread does not."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Literal

from luthier.errors import LeaseLost, LuthierError
from luthier.runs.ledger import Ledger
from luthier.worker.signals import Signals

#: How often it is asked whether the run is still ours and wanted.
ASK_EVERY_S = 0.2
#: A cancelled run may save for so long; then it is ended (a cancellation takes 2 s at most).
CANCEL_GRACE_S = 1.0
#: An interrupted run may save for so long; then its lease is released (5 s at most).
INTERRUPT_GRACE_S = 4.0

#: Exit codes of an attempt that its heart has ended.
LOST, STOPPED = 20, 21


class Heart:
    """Beats until ``stop()``. ``control`` is what the engine asks before every step."""

    def __init__(
        self, ledger: Ledger, run_id: str, epoch: int, lease_s: float, signals: Signals
    ) -> None:
        self._ledger, self._run_id, self._epoch = ledger, run_id, epoch
        self._lease_s, self._signals = lease_s, signals
        self._cancelled_at: float | None = None
        self._interrupted_at: float | None = None
        self._beaten_at = time.monotonic()
        self._stopping = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heart", daemon=True)
        self._thread.start()

    def control(self) -> Literal["cancel", "interrupt"] | None:
        """What the engine shall do now."""
        if self._cancelled_at is not None:
            return "cancel"
        return "interrupt" if self._interrupted_at is not None else None

    def let_end(self) -> None:
        """Keep the lease, but end this process no more: it is about to end the run itself."""
        self._ending.set()

    def stop(self) -> None:
        """Stop beating."""
        self._stopping.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._stopping.is_set():
            if {signal.SIGTERM, signal.SIGINT} & self._signals.wait(ASK_EVERY_S):
                self._interrupted_at = self._interrupted_at or time.monotonic()
            try:
                self._beat()
                self._lose_patience()
            except LuthierError as error:
                # The fence holds whether we beat or not; a ledger that is back goes on.
                print(f"heartbeat failed, trying again: {error}", file=sys.stderr)

    def _beat(self) -> None:
        if time.monotonic() - self._beaten_at >= self._lease_s / 3:
            beat = self._ledger.heartbeat(self._run_id, self._epoch, self._lease_s)
            self._beaten_at = time.monotonic()
        else:
            beat = self._ledger.asked(self._run_id, self._epoch)
        if not beat.mine:
            self._leave(LOST, "the lease was lost")
        if beat.cancel:
            self._cancelled_at = self._cancelled_at or time.monotonic()

    def _lose_patience(self) -> None:
        if self._ending.is_set():
            return
        now = time.monotonic()
        if self._cancelled_at is not None and now - self._cancelled_at > CANCEL_GRACE_S:
            self._end(lambda: self._ledger.confirm_cancel(self._run_id, self._epoch))
        elif self._interrupted_at is not None and now - self._interrupted_at > INTERRUPT_GRACE_S:
            self._end(lambda: self._ledger.release(self._run_id, self._epoch, "interrupted"))

    def _end(self, verb: Callable[[], object]) -> None:
        try:
            verb()
        except LeaseLost:
            self._leave(LOST, "the lease was lost")
            return
        self._leave(STOPPED, "the main thread did not stop in time")

    def _leave(self, code: int, why: str) -> None:
        if self._ending.is_set():
            return  # the main thread is ending the run itself, by the fence
        print(f"leaving: {why}", file=sys.stderr, flush=True)
        os._exit(code)  # whatever the main thread is in, it must not go on
