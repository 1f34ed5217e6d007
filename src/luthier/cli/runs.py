"""``luthier runs``: look at runs, follow them, and say what is to become of them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.following import say_it_goes_on
from luthier.cli.output import (
    Home,
    Json,
    note,
    print_facts,
    print_json,
    print_table,
    show,
    when,
)

if TYPE_CHECKING:
    from luthier.runs.client import Run
    from luthier.runs.records import RunRecord

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at runs and steer them.")

#: How often a followed run is looked at.
_LOOK_S = 0.3

Name = Annotated[str, typer.Argument(metavar="RUN", help="Its name or id.")]
InExperiment = Annotated[
    str | None,
    typer.Option("--experiment", "-e", help="The experiment, where two runs share a name."),
]


@app.command("list")
def list_runs(
    experiment: InExperiment = None,
    status: Annotated[str | None, typer.Option("--status", help="FINISHED, FAILED, …")] = None,
    page: Annotated[int, typer.Option("--page", min=1)] = 1,
    size: Annotated[int, typer.Option("--size", min=1, max=1000)] = 50,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Runs, the newest first."""
    from luthier import api

    wanted = status.upper() if status else None
    records = api.connect(home).ledger.runs(experiment, page=page, size=size, status=wanted)
    show([_summary(record) for record in records], as_json, lambda: _print_list(records))


@app.command("show")
def show_run(
    name: Name, experiment: InExperiment = None, home: Home = None, as_json: Json = False
) -> None:
    """One run: its state, its job, what it gained, and where its model is."""
    run = _run(name, experiment, home)
    document = _document(run)
    job = _flat(run.spec.model_dump(mode="json", exclude_defaults=True))
    show(document, as_json, lambda: _print_run(document, job))


@app.command("logs")
def logs(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the run ends.")
    ] = False,
    experiment: InExperiment = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What a run said. With --json every event, one a line.

    Ctrl-C ends the following, not the run.
    """
    run = _run(name, experiment, home)
    try:
        if as_json:
            _print_events(run, follow)
        elif follow:
            for line in run.stream_logs(interval=_LOOK_S):
                typer.echo(line)
        elif text := run.logs():
            typer.echo(text)
    except KeyboardInterrupt:
        if follow and not run.record().ended:
            say_it_goes_on(run.name)
        raise


@app.command("cancel")
def cancel(
    name: Name, experiment: InExperiment = None, home: Home = None, as_json: Json = False
) -> None:
    """Stop a run for good. What it has learned stays in its last checkpoint."""
    _changed(_run(name, experiment, home).cancel(), as_json)


@app.command("resume")
def resume(
    name: Name, experiment: InExperiment = None, home: Home = None, as_json: Json = False
) -> None:
    """Go on with a failed or cancelled run from its last checkpoint."""
    _changed(_run(name, experiment, home).resume(), as_json)


@app.command("retry")
def retry(
    name: Name, experiment: InExperiment = None, home: Home = None, as_json: Json = False
) -> None:
    """Do a failed or cancelled run again from the start."""
    _changed(_run(name, experiment, home).retry(), as_json)


@app.command("compare")
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN…", help="Two or more.")],
    experiment: InExperiment = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Runs side by side: in what their jobs differ, and what came of it."""
    from luthier import api

    if len(names) < 2:
        raise typer.BadParameter("it takes two runs or more", param_hint="RUN")
    place = api.connect(home)
    records = [place.get_run(name, experiment).record() for name in names]
    jobs = _differing([_flat(r.spec.model_dump(mode="json")) for r in records])
    figures = {
        f: [_flat(r.metrics or {}).get(f) for r in records]
        for f in dict.fromkeys(f for r in records for f in _flat(r.metrics or {}))
    }
    document = {"runs": [_summary(r) for r in records], "job": jobs, "metrics": figures}
    show(document, as_json, lambda: _print_comparison(records, jobs, figures))


@app.command("save")
def save(
    name: Name,
    directory: Annotated[Path, typer.Argument(help="A folder with the run's name is made here.")],
    experiment: InExperiment = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Copy the tuned model out of the store."""
    path = _run(name, experiment, home).save_artifact(directory)
    show({"path": path}, as_json, lambda: print(path))


@app.command("delete")
def delete(
    names: Annotated[list[str], typer.Argument(metavar="RUN…", help="Names or ids.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    experiment: InExperiment = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete runs with their checkpoints, and models that no other run has."""
    from luthier import api

    place = api.connect(home)
    runs = [place.get_run(name, experiment) for name in names]
    told = [run.name for run in runs]
    if not yes:
        typer.confirm(f"Delete {', '.join(told)} for good?", abort=True, err=True)
    for run in runs:
        run.delete()
    show({"deleted": told}, as_json, lambda: note(f"deleted {', '.join(told)}"))


def _run(name: str, experiment: str | None, home: str | None) -> Run:
    from luthier import api

    return api.connect(home).get_run(name, experiment)


def _changed(run: Run, as_json: bool) -> None:
    record = run.record()
    asked = record.cancel_requested_at is not None and not record.ended
    status = f"{record.status}, asked to stop" if asked else record.status
    show(_summary(record), as_json, lambda: print(f"{record.name}  {status}"))


def _summary(record: RunRecord) -> dict[str, Any]:
    """What a list says of a run."""
    return {
        "id": record.id,
        "name": record.name,
        "experiment": record.experiment,
        "status": record.status,
        "reason": record.reason,
        "details": record.details,
        "model": record.spec.model.name,
        "artifact_id": record.artifact_id,
        "created_at": record.created_at,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
    }


def _document(run: Run) -> dict[str, Any]:
    """All that ``runs show`` says. Times are seconds since 1970."""
    record = run.record()
    document = _summary(record) | {
        "description": record.description,
        "spec_id": record.spec_id,
        "spec": record.spec.model_dump(mode="json"),
        "attempt": record.attempt,
        "crashes": record.crashes,
        "checkpoint_step": record.checkpoint_step,
        "cancel_requested_at": record.cancel_requested_at,
        "metrics": record.metrics,
        "path": None,
        "report": None,
        "search_page": None,
    }
    search = run.home.run_folder(record) / "search.html"
    document["search_page"] = search if search.is_file() else None
    if record.artifact_id is not None:
        store = run.home.store
        gone = store.was_given_up(record.artifact_id)
        path = None if gone else store.artifact(record.artifact_id)
        told = path / "luthier" if path else store.told(record.artifact_id)
        report = told / "report.html"
        document |= {"path": path, "report": report if report.is_file() else None}
    return document


def _print_list(records: list[RunRecord]) -> None:
    if not records:
        note("no runs yet: luthier fit --model … --train-data …")
        return
    rows = [
        [
            r.name,
            r.status,
            r.reason,
            r.experiment,
            r.spec.model.name,
            when(r.created_at),
            _took(r.started_at, r.finished_at),
        ]
        for r in records
    ]
    print_table(["name", "status", "reason", "experiment", "model", "created", "took"], rows)


def _print_run(document: Mapping[str, Any], job: Mapping[str, Any]) -> None:
    facts = {
        name: document[name]
        for name in ("name", "id", "experiment", "description", "status", "reason", "details")
    }
    facts |= {name: when(document[f"{name}_at"]) for name in ("created", "started", "finished")}
    facts["took"] = _took(document["started_at"], document["finished_at"])
    facts["attempts"] = document["attempt"] if document["attempt"] > 1 else None
    shown = ("checkpoint_step", "artifact_id", "path", "report", "search_page")
    facts |= {name: document[name] for name in shown}
    print_facts(facts)
    print("\njob (what is not told is the default)")
    print_facts({f"  {leaf}": value for leaf, value in job.items()})
    if document["metrics"]:
        from luthier.runs import display

        print()
        display.print_metrics(document["metrics"])


def _print_comparison(
    records: list[RunRecord], jobs: Mapping[str, list[Any]], figures: Mapping[str, list[Any]]
) -> None:
    columns = ["", *(r.name for r in records)]
    rows: list[list[Any]] = [["status", *(r.status for r in records)]]
    rows += [[leaf, *values] for leaf, values in jobs.items()]
    rows += [[name, *values] for name, values in figures.items()]
    print_table(columns, rows)


def _print_events(run: Run, follow: bool) -> None:
    after = 0
    while True:
        ended = run.record().ended
        while events := run.events(after):
            for event in events:
                print_json(asdict(event), indent=None)
            after = events[-1].seq
        if ended or not follow:
            return
        time.sleep(_LOOK_S)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names.

    >>> _flat({"model": {"name": "bert", "options": {}}})
    {'model.name': 'bert'}
    """
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differing(jobs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    leaves = dict.fromkeys(leaf for job in jobs for leaf in job)
    values = {leaf: [job.get(leaf) for job in jobs] for leaf in leaves}
    return {leaf: all_ for leaf, all_ in values.items() if any(v != all_[0] for v in all_)}


def _took(start: float | None, end: float | None) -> str | None:
    if start is None:
        return None
    seconds = (time.time() if end is None else end) - start
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
