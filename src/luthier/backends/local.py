"""The local backend: a worker process of its own on this machine, started when none is there.

Whoever starts a worker holds a file lock and hands it to the child with the open descriptor:
from the first moment to the worker's last there is no gap in which a second could start.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.runs.connection import Home

LOCK = "worker.lock"
#: The embedded worker leaves when it had nothing to do for this long.
IDLE_EXIT_S = 120.0


def ensure_worker(home: Home, idle_exit_s: float = IDLE_EXIT_S) -> bool:
    """Start an embedded worker if no worker is alive; whether one was started.

    Returns at once: the worker loads its libraries in its own time. Its output goes to
    ``worker.log`` in the home.
    """
    if home.ledger.workers():
        return False
    with locked(home.path / LOCK) as descriptor:
        if descriptor is None:
            return False
        with open(home.log, "ab") as log:
            child = subprocess.Popen(
                [
                    *(sys.executable, "-m", "luthier.worker"),
                    *("--home", home.place),
                    *("--store", str(home.path)),
                    *("--idle-exit-s", str(idle_exit_s)),
                    *("--lock-descriptor", str(descriptor)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
                pass_fds=(descriptor,),
                cwd="/",
            )
        # Nobody will wait for it: it outlives us. Without this Python warns when it forgets it.
        child.returncode = 0
    return True


@contextmanager
def locked(path: Path) -> Iterator[int | None]:
    """Try the lock: an inheritable descriptor that holds it, or None when another has it.

    The lock belongs to the open file, so a child that inherits the descriptor holds it too;
    ours is only closed here, never unlocked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)
