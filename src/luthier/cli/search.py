"""``luthier search`` and ``luthier trials``: a search from a file, and what it found."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luthier.cli.jobs import Config, hand_in, read_job
from luthier.cli.output import Home, Json, note, print_facts, print_table, show
from luthier.cli.words import with_job_flags
from luthier.errors import NotFound, Problem, SpecError

if TYPE_CHECKING:
    from luthier.runs.client import Run
    from luthier.runs.records import RunRecord
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
    keep_best: Annotated[
        int | None, typer.Option(min=1, help="Trials whose models are kept; default all.")
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
        "keep_best": keep_best,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    spec, naming = read_job(config, flags, place, given)
    hand_in(spec, naming, wait, as_json, _found, _say_submitted)


@app.command("trials")
def trials(
    name: Annotated[str, typer.Argument(metavar="SEARCH", help="Its name or id.")],
    export: Annotated[
        Path | None,
        typer.Option(help="Write the best trial's job here: without a search, the same model."),
    ] = None,
    trial: Annotated[
        int | None, typer.Option(min=0, help="The trial to export instead of the best.")
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
    if trial is not None and export is None:
        raise SpecError([Problem("--trial", "means nothing without --export", "--export job.yaml")])
    if export is not None:
        chosen = _chosen(summary, trial)
        export.write_text(_plain(run, chosen), encoding="utf-8")
        note(f"the job of trial {chosen.number} is in {export}")
    if page is not None:
        from luthier.search.page import page as drawn

        page.write_text(drawn(summary), encoding="utf-8")
        note(f"the page is {page}")
    given_up = place.store.was_given_up
    gone = {t.number for t in summary.trials if t.artifact_id and given_up(t.artifact_id)}
    document = {
        "search": run.name,
        **summary.told(),
        "all": [each.told() | {"given_up": each.number in gone} for each in summary.trials],
    }
    show(document, as_json, lambda: _print(summary, gone))


def _found(record: RunRecord) -> dict[str, Any]:
    return {"search": (record.metrics or {}).get("search")}


def _say_submitted(document: Mapping[str, Any]) -> None:
    name = document["name"]
    print_facts({"search": name, "status": document["status"], "artifact": document["artifact_id"]})
    print(f"\nfollow  luthier runs logs -f {name}\nlook    luthier trials {name}")


def _chosen(summary: Summary, number: int | None) -> Trial:
    """The trial of that number, by default the best. Raises NotFound."""
    if number is None:
        if summary.best is None:
            raise NotFound(f"no trial of '{summary.name}' has finished", hint="wait for it")
        return summary.best
    found = [trial for trial in summary.trials if trial.number == number]
    if not found:
        hint = f"there are {len(summary.trials)}, and the first is 0"
        raise NotFound(f"'{summary.name}' has no trial {number}", hint=hint)
    return found[0]


def _plain(run: Run, trial: Trial) -> str:
    """The job of a trial, as it was tried, as YAML."""
    import yaml

    from luthier.search.space import applied

    # Not what its run has: one that has just begun may have none yet.
    spec = applied(run.spec, trial.values)
    return yaml.safe_dump(
        spec.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
    )


def _print(summary: Summary, gone: Collection[int]) -> None:
    """A table of the trials. gone: the numbers of those whose models were given up."""
    paths = list(dict.fromkeys(path for trial in summary.trials for path in trial.values))
    names = [path.rpartition(".")[2] for path in paths]
    names = [n if names.count(n) == 1 else p for n, p in zip(names, paths, strict=True)]
    titles = ["", "trial", "state", *summary.metrics, *names, "seconds"]
    rows = [_row(trial, paths, summary) for trial in summary.trials]
    if gone:
        titles.append("model")
        said = ("given up" if trial.number in gone else "" for trial in summary.trials)
        rows = [[*row, word] for row, word in zip(rows, said, strict=True)]
    print_table(titles, rows)
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
