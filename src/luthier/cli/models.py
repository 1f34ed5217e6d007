"""``luthier models``: which pretrained models there are, and what each takes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from luthier.cli import aliases
from luthier.cli.output import Json, print_facts, print_table, show
from luthier.registry import Card, cards, find

app = typer.Typer(rich_markup_mode=None)
aliases.add_verbs(app)

Task = Annotated[
    str | None, typer.Option("--task", help="Only models for this task, such as text-to-text.")
]


@app.callback(invoke_without_command=True)
def models(context: typer.Context, task: Task = None, as_json: Json = False) -> None:
    """Which pretrained models there are, and what each takes. Without a verb: the list."""
    if context.invoked_subcommand is None:
        list_models(task, as_json)


@app.command("list")
def list_models(task: Task = None, as_json: Json = False) -> None:
    """Every model that can be tuned by name. A hub id or a folder will do as well."""
    from luthier.models import catalog

    found = [find("model", name) for name in catalog.list_models(task)]
    show([_document(card) for card in found], as_json, lambda: _print_list(found))


@app.command("describe")
def describe(name: str, as_json: Json = False) -> None:
    """One model: what it is, where it comes from, and the options that it takes."""
    from luthier.models import catalog

    card = find("model", name)
    catalog.resolve(name)  # refuses the models that this version cannot tune, with the reason
    show(_document(card, options=True), as_json, lambda: _print_card(card))


@app.command("losses")
def losses(as_json: Json = False) -> None:
    """Every loss by name, and the form of data that it learns from."""
    _show_kind("loss", as_json)


@app.command("miners")
def miners(as_json: Json = False) -> None:
    """Every miner by name."""
    _show_kind("miner", as_json)


@app.command("optimizers")
def optimizers(as_json: Json = False) -> None:
    """Every optimizer by name."""
    _show_kind("optimizer", as_json)


def _show_kind(kind: Any, as_json: bool) -> None:
    found = cards(kind)
    show(
        [_document(card, options=True) for card in found],
        as_json,
        lambda: print_table(
            ["name", "data", "what it is"], [[c.name, " ".join(c.forms), c.summary] for c in found]
        ),
    )


def _document(card: Card, options: bool = False) -> dict[str, Any]:
    document: dict[str, Any] = {"name": card.name, "summary": card.summary, **card.facts}
    if card.forms:
        document["forms"] = card.forms
    if card.paper:
        document["paper"] = card.paper
    if options:
        document["options"] = [
            {"name": o.name, "default": o.default, "doc": o.doc, "required": o.required}
            for o in card.options
        ]
    return document


def _print_list(found: list[Card]) -> None:
    rows = [
        [card.name, *(card.facts.get(fact) for fact in ("task", "dim", "license")), card.summary]
        for card in found
    ]
    print_table(["name", "task", "dim", "license", "what it is"], rows)


def _print_card(card: Card) -> None:
    print_facts({"name": card.name, "what": card.summary, **card.facts, "paper": card.paper})
    if card.options:
        print("\noptions")
        print_table(
            ["option", "default", "what it does"],
            [[o.name, o.default, o.doc] for o in card.options],
        )
