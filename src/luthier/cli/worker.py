"""``luthier worker``: a process that executes runs."""

from __future__ import annotations

import typer

app = typer.Typer(rich_markup_mode=None)

#: The worker reads its own words: they are told once, in luthier.worker.main.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("worker", context_settings=_PASSED_ON)
def worker(context: typer.Context) -> None:
    """Execute runs until stopped. Ctrl-C saves what is in progress and gives it back.

    A worker starts by itself when a run is submitted and none is there; start your own to
    keep one warm, to run several, or to work on another machine for the same home.
    """
    from luthier.worker.main import main

    raise typer.Exit(main(context.args))
