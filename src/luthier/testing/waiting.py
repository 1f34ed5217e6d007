"""Waiting in tests: for a real condition, with a deadline, never for a time that should do."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(condition: Callable[[], object], deadline_s: float = 60) -> None:
    """Wait for a condition. Raises AssertionError when it does not come in time."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {deadline_s} s")
        time.sleep(0.01)
