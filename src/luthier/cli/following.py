"""Waiting for a run from a terminal, and leaving it to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.cli.output import note

if TYPE_CHECKING:
    from luthier.runs.client import Run

#: The exit code of ``fit --wait`` when somebody cancelled the run.
CANCELLED = 12


def wait_for(run: Run, as_json: bool) -> int:
    """Stay until the run ends; the exit code that says how. Ctrl-C ends the waiting only.

    Raises TrainingError when the run failed.
    """
    try:
        run.wait(progress=not as_json)
    except KeyboardInterrupt:
        say_it_goes_on(run.name)
        raise
    return CANCELLED if run.record().status == "CANCELLED" else 0


def say_it_goes_on(name: str) -> None:
    """What Ctrl-C did not do, and how to do it."""
    note(f"\nThe run {name} goes on.")
    note(f"  follow it again  luthier runs logs -f {name}")
    note(f"  cancel it        luthier runs cancel {name}")
