"""``luthier models aliases``, ``promote``, ``rollback``: names for artifacts, who moved them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli.output import Home, Json, note, print_table, show, when

if TYPE_CHECKING:
    from luthier.runs.aliases import Alias
    from luthier.runs.connection import Home as Place

Artifact = Annotated[
    str, typer.Argument(metavar="ARTIFACT", help="A run by name, an artifact, or alias:NAME.")
]
Expect = Annotated[
    str | None,
    typer.Option("--expect", help="Only if the name stands for this artifact now; or: nothing."),
]
Note = Annotated[str, typer.Option("--note", help="Why; kept in the history.")]
Keep = Annotated[str, typer.Option("--keep", help="The name for what stood there before.")]


def add_verbs(app: typer.Typer) -> None:
    """Add the verbs of aliases to those of models."""
    for name, verb in (
        ("aliases", list_aliases), ("alias", set_alias), ("promote", promote),
        ("rollback", rollback), ("history", history), ("unalias", remove),
    ):  # fmt: skip
        app.command(name)(verb)


def list_aliases(home: Home = None, as_json: Json = False) -> None:
    """The names of artifacts, such as production. alias:NAME does wherever an artifact does."""
    found = _place(home).aliases.all()
    show(
        [dataclasses.asdict(alias) for alias in found],
        as_json,
        lambda: print_table(
            ["name", "artifact", "since", "by", "before"],
            [[a.name, a.artifact_id[:12], when(a.at), a.by, (a.before or "")[:12]] for a in found],
        ),
    )


def set_alias(
    name: str, artifact: Artifact, expect: Expect = None, why: Note = "", home: Home = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Let a name stand for an artifact."""
    place = _place(home)
    found = place.aliases.set(
        name, place.artifact_of(artifact), expected=_expected(expect), note=why
    )
    _say(found, as_json)


def promote(
    artifact: Artifact,
    name: Annotated[str, typer.Option("--as", help="The name to be moved.")] = "production",
    keep: Keep = "previous",
    expect: Expect = None,
    why: Note = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make an artifact the one in production; what was there until now is called previous."""
    place = _place(home)
    found = place.aliases.promote(
        place.artifact_of(artifact), name=name, keep=keep, expected=_expected(expect), note=why
    )
    _say(found, as_json)


def rollback(
    name: Annotated[str, typer.Argument()] = "production",
    keep: Keep = "previous",
    expect: Expect = None,
    why: Note = "",
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Go back to what a name stood for before; once more, to what was before that."""
    found = _place(home).aliases.rollback(name, keep=keep, expected=_expected(expect), note=why)
    _say(found, as_json)


def history(name: str, home: Home = None, as_json: Json = False) -> None:
    """All changes of a name: what, when, by whom, why. The newest first."""
    found = _place(home).aliases.history(name)
    show(
        [dataclasses.asdict(change) for change in found],
        as_json,
        lambda: print_table(
            ["revision", "when", "action", "artifact", "by", "note"],
            [
                [c.revision, when(c.at), c.action, (c.artifact_id or "")[:12], c.by, c.note]
                for c in found
            ],
        ),
    )


def remove(name: str, expect: Expect = None, home: Home = None) -> None:
    """Take a name away. Its history stays."""
    _place(home).aliases.remove(name, expected=_expected(expect))
    note(f"{name} stands for nothing now")


def _say(alias: Alias, as_json: bool) -> None:
    before = f", before {alias.before[:12]}" if alias.before else ""
    show(
        dataclasses.asdict(alias),
        as_json,
        lambda: note(f"{alias.name} is {alias.artifact_id[:12]}{before}"),
    )


def _expected(word: str | None) -> str | None:
    from luthier.runs.aliases import ANY

    return ANY if word is None else None if word == "nothing" else word


def _place(home: str | None) -> Place:
    from luthier import api

    return api.connect(home)
