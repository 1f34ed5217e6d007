"""``luthier worker``: a process that executes runs."""

from __future__ import annotations

from typing import Annotated

import typer

from luthier.cli.output import Home

app = typer.Typer(rich_markup_mode=None)


@app.command("worker")
def worker(
    home: Home = None,
    once: Annotated[bool, typer.Option("--once", help="Stop when the queue is empty.")] = False,
    idle_exit_s: Annotated[
        float | None, typer.Option("--idle-exit-s", help="Stop after so many idle seconds.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, help="How many runs at the same time.")
    ] = 1,
) -> None:
    """Execute runs until stopped. Ctrl-C saves what is in progress and gives it back.

    A worker starts by itself when a run is submitted and none is there; start your own to
    keep one warm, to run several, or to work on another machine for the same home.
    """
    from luthier.worker.main import main

    argv = ["--concurrency", str(concurrency)]
    if home is not None:
        argv += ["--home", home]
    if once:
        argv.append("--once")
    if idle_exit_s is not None:
        argv += ["--idle-exit-s", str(idle_exit_s)]
    main(argv)
