"""Signals as bytes in a pipe: seen by whoever watches it, even while Python code is stuck.

A Python signal handler runs in the main thread between two bytecodes; a main thread that is
inside a long call into C never gets there. The interpreter's own handler, however, writes the
signal's number into a descriptor at once (``signal.set_wakeup_fd``).
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable


class Signals:
    """Watches signals of this process from now on. To be made in the main thread."""

    def __init__(self, watched: Iterable[signal.Signals]) -> None:
        self._read, write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in watched:
            signal.signal(number, _noted)

    def wait(self, timeout_s: float) -> set[int]:
        """The signals that came, waiting at most that long for the first."""
        ready, _, _ = select.select([self._read], [], [], max(timeout_s, 0))
        return set(os.read(self._read, 1024)) if ready else set()


def _noted(number: int, frame: object) -> None:
    """Without a Python handler the interpreter's own would not be there."""
