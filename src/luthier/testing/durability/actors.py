"""What the forked processes of the harness do. Each is called by name in a fork."""

from __future__ import annotations

import os
import signal

from luthier.runs.connection import Home
from luthier.runs.process import this_process


def claim_and_stop_locked(place: str) -> None:
    """Claim a run for no time at all, begin a write, and stop in the middle of it."""
    home = Home(place)
    claim = home.ledger.claim(this_process(), lease_s=0.5)
    assert claim is not None
    with home.ledger.database.write():
        os.kill(os.getpid(), signal.SIGSTOP)
