"""Named points after each durable step, at which a test can make the process die or the disk fill.

``LUTHIER_FAILPOINT`` holds ``name=action`` pairs, separated by commas; ``name@3=action`` acts
at the third passage. Actions: ``kill`` (SIGKILL), ``stop`` (SIGSTOP, as a suspended laptop),
``enospc`` and ``eio`` (the OSError that a full or broken disk gives). ``*`` is any name.
``LUTHIER_FAILPOINT_TRACE`` names a file to which the names that are passed are written, one a line:
how a test learns what to fail. ``LUTHIER_FAILPOINT_ONCE`` names one that is made when a point acts;
while it is there none acts any more, in any process. When the variables are unset all that a point
costs is a look at the environment.
"""

from __future__ import annotations

import os

from luthier.environment import FAILPOINT, FAILPOINT_ONCE, FAILPOINT_TRACE

_passed: dict[str, int] = {}


def point(name: str) -> None:
    """Do nothing, unless the environment names this point."""
    if FAILPOINT not in os.environ and FAILPOINT_TRACE not in os.environ:
        return
    _trace(name)
    for entry in filter(None, os.environ.get(FAILPOINT, "").split(",")):
        where, _, action = entry.partition("=")
        wanted, _, passage = where.partition("@")
        if wanted not in (name, "*"):
            continue
        count = _passed[where] = _passed.get(where, 0) + 1
        if count == int(passage or 1) and _is_first():
            _act(name, action)


def _is_first() -> bool:
    marker = os.environ.get(FAILPOINT_ONCE)
    if marker is None:
        return True
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _trace(name: str) -> None:
    trace = os.environ.get(FAILPOINT_TRACE)
    if trace:
        with open(trace, "a", encoding="utf-8") as file:
            file.write(f"{name}\n")


def _act(name: str, action: str) -> None:
    import errno
    import signal

    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action in ("enospc", "eio"):
        number = getattr(errno, action.upper())
        raise OSError(number, f"{os.strerror(number)} (failpoint {name})")
    else:
        raise ValueError(f"{FAILPOINT}: no action is called '{action}'")
