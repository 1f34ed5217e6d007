"""``luthier experiments``: named groups of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli.output import Home, Json, note, print_facts, print_table, show, when

if TYPE_CHECKING:
    from luthier.runs.client import Experiment

app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Named groups of runs.")

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT")]


@app.command("list")
def list_experiments(
    page: Annotated[int, typer.Option("--page", min=1)] = 1,
    size: Annotated[int, typer.Option("--size", min=1, max=1000)] = 50,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Experiments, the newest first."""
    from luthier import api

    found = api.connect(home).list_experiments(page, size)
    show(
        [_document(experiment) for experiment in found],
        as_json,
        lambda: print_table(
            ["name", "status", "created", "description"],
            [[e.name, e.status, when(e.created_at), e.description] for e in found],
        ),
    )


@app.command("create")
def create(
    name: Name,
    description: Annotated[str, typer.Option("--description", help="What it is for.")] = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make an experiment; one that is there already is left as it is."""
    from luthier import api

    made = api.connect(home).create_experiment(name, description)
    show(_document(made), as_json, lambda: print(made.name))


@app.command("show")
def show_experiment(name: Name, home: Home = None, as_json: Json = False) -> None:
    """One experiment, and its newest runs."""
    from luthier import api

    place = api.connect(home)
    found = place.get_experiment(name)
    records = place.ledger.runs(found.name)
    document = _document(found) | {
        "runs": [{"id": r.id, "name": r.name, "status": r.status} for r in records]
    }

    def human() -> None:
        print_facts(_document(found) | {"created_at": when(found.created_at)})
        if records:
            print()
            rows = [[r.name, r.status, r.spec.model.name, when(r.created_at)] for r in records]
            print_table(["run", "status", "model", "created"], rows)

    show(document, as_json, human)


@app.command("delete")
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Delete an experiment with all its runs."""
    from luthier import api

    place = api.connect(home)
    place.get_experiment(name)
    if not yes:
        typer.confirm(f"Delete {name} and all its runs for good?", abort=True, err=True)
    place.delete_experiment(name)
    show({"deleted": name}, as_json, lambda: note(f"deleted {name}"))


def _document(experiment: Experiment) -> dict[str, Any]:
    return {
        "id": experiment.id,
        "name": experiment.name,
        "status": experiment.status,
        "description": experiment.description,
        "created_at": experiment.created_at,
    }
