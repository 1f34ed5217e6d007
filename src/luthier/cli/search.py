"""``luthier search`` and ``luthier trials``: a search from a file, and what it found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.cli.following import wait_for
from luthier.cli.jobs import Config, read_job
from luthier.cli.output import Home, Json, note, print_facts, print_table, show
from luthier.cli.words import with_job_flags
from luthier.errors import NotFound, Problem, SpecError

if TYPE_CHECKING:
    from luthier.search.summary import Summary, Trial

app = typer.Typer(rich_markup_mode=None)


@app.command("search")
@with_job_flags
def search(
    config: Config = None,
    max_trials: Annotated[int | None, typer.Option(min=1, help="Trials at most.")] = None,
    max_time: Annotated[float | None, typer.Option(help="Seconds at most.")] = None,
    trials_at_a_time: Annotated[
        int | None, typer.Option("--n-workers", min=1, help="Trials at a time.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(help="What is to become better.")] = None,
    algorithm: Annotated[
        Literal["random", "tpe", "gp", "cmaes", "grid"] | None,
        typer.Option(help="Who asks for values."),
    ] = None,
    pruner: Annotated[
        Literal["asha", "hyperband", "halving", "median"] | None,
        typer.Option(help="Who stops trials early."),
    ] = None,
    home: Home = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay and show the progress until the search ends.")
    ] = False,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Search for the values that make the best model: a run whose children are runs.

    What is searched stands under search in the file, or in --search; without either, the ranges
    that luthier has for the loss or the task.
    """
    from luthier import api

    place = api.connect(home)
    settings = {
        "max_trials": max_trials,
        "max_time_s": max_time,
        "n_workers": trials_at_a_time,
        "metrics": metric or None,
        "algorithm": algorithm,
        "pruner": pruner,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    spec, naming = read_job(config, flags, place, given)
    run = api.submit(spec, **naming)
    code = wait_for(run, as_json) if wait else 0
    record = run.record()
    document = {
        "id": record.id,
        "name": record.name,
        "experiment": record.experiment,
        "spec_id": record.spec_id,
        "status": record.status,
        "reason": record.reason,
        "artifact_id": record.artifact_id,
        "search": (record.metrics or {}).get("search"),
    }

    def say() -> None:
        print_facts(
            {"search": record.name, "status": record.status, "artifact": record.artifact_id}
        )
        print(f"\nfollow  luthier runs logs -f {record.name}\nlook    luthier trials {record.name}")

    show(document, as_json, say)
    raise typer.Exit(code)


@app.command("trials")
def trials(
    name: Annotated[str, typer.Argument(metavar="SEARCH", help="Its name or id.")],
    export: Annotated[
        Path | None,
        typer.Option(help="Write the best trial's job here: without a search, the same model."),
    ] = None,
    page: Annotated[Path | None, typer.Option(help="Copy the page with the plots here.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """The trials of a search: what was tried, and what came of it."""
    from luthier import api
    from luthier.search.summary import current

    place = api.connect(home)
    run = place.get_run(name)
    if run.spec.search is None:
        raise SpecError([Problem(name, "is a run without a search", "luthier runs show")])
    summary = current(place, run.record())
    if export is not None:
        export.write_text(_plain(run, summary), encoding="utf-8")
        note(f"the job of trial {summary.best.number if summary.best else ''} is in {export}")
    if page is not None:
        from luthier.search.page import page as drawn

        page.write_text(drawn(summary), encoding="utf-8")
        note(f"the page is {page}")
    document = {
        "search": run.name,
        **summary.told(),
        "all": [trial.told() for trial in summary.trials],
    }
    show(document, as_json, lambda: _print(summary))


def _plain(run: Any, summary: Summary) -> str:
    import yaml

    best = summary.best
    if best is None or best.run_id is None:
        raise NotFound(f"no trial of '{run.name}' has finished", hint="wait for it")
    spec = run.home.ledger.get(best.run_id).spec
    return yaml.safe_dump(
        spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
    )


def _print(summary: Summary) -> None:
    paths = list(dict.fromkeys(path for trial in summary.trials for path in trial.values))
    names = [path.rpartition(".")[2] for path in paths]
    names = [n if names.count(n) == 1 else p for n, p in zip(names, paths, strict=True)]
    print_table(
        ["", "trial", "state", *summary.metrics, *names, "seconds"],
        [_row(trial, paths, summary) for trial in summary.trials],
    )
    for path, share in summary.importance().items():
        print(f"{share:6.0%} of what mattered: {path}")


def _row(trial: Trial, paths: list[str], summary: Summary) -> list[Any]:
    return [
        "best" if trial is summary.best else "",
        trial.number,
        trial.state,
        *((trial.scores or {}).get(metric) for metric in summary.metrics),
        *(trial.values.get(path) for path in paths),
        round(trial.seconds, 1),
    ]
