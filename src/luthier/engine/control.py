"""How a run is told to stop, and how it tells what it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

#: Asked by the engine before every step: go on (None), stop for good, or stop for now.
Control = Callable[[], Literal["cancel", "interrupt"] | None]
#: Called by the engine with what happens: a kind and its data. It may not raise.
Listener = Callable[[str, dict[str, Any]], None]


class Stopped(Exception):
    """The run was told to stop, and has committed a checkpoint."""


class Cancelled(Stopped):
    """Stopped for good: the user does not want it any more."""


class Interrupted(Stopped):
    """Stopped for now: the machine is wanted for something else. Another attempt goes on."""


def keep_going() -> None:
    """A control that never stops a run."""


def ignore(kind: str, data: dict[str, Any]) -> None:
    """A listener that listens to nothing."""


def obeying(control: Callable[[], str | None]) -> Callable[[], None]:
    """Raises what ends an evaluation when the run is told to stop."""

    def obey() -> None:
        wish = control()
        if wish == "cancel":
            raise Cancelled
        if wish == "interrupt":
            raise Interrupted  # the last checkpoint stands: evaluating again costs little

    return obey
