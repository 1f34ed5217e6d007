"""Cards: what luthier can be asked for by name, known without importing torch.

A card says what a name stands for (``target``, imported only when used), which options it
takes, which forms of data it fits, what it needs, and the paper it comes from. The tables
in the docs, the CLI listings and the checks at submit time all read the cards.

Third parties add cards through the entry point group ``luthier.plugins``: a function that
takes no argument and returns cards.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from luthier.errors import MissingExtra, NotFound, Problem, nearest

Kind = Literal[
    "loss", "miner", "optimizer", "scheduler", "model", "pooler", "callback", "task", "updater",
    "calculator",
]  # fmt: skip

#: Modules of ours that hold a ``CARDS`` tuple. They import neither torch nor transformers.
BUILT_IN = (
    "luthier.objectives.cards",
    "luthier.models.catalog",
    "luthier.engine.cards",
    "luthier.tasks.cards",
    "luthier.updaters.cards",
    "luthier.evaluation.cards",
)


@dataclass(frozen=True)
class Option:
    """One option of a card: its name, default and meaning."""

    name: str
    default: Any = None
    doc: str = ""
    required: bool = False


@dataclass(frozen=True)
class Card:
    """What a name stands for."""

    kind: Kind
    name: str
    target: str  # "module:object", imported by load()
    summary: str
    options: tuple[Option, ...] = ()
    forms: tuple[str, ...] = ()  # data forms that a loss fits; see luthier.spec.Form
    paper: str = ""
    extra: str | None = None  # the optional dependency group that it needs
    facts: Mapping[str, Any] = field(default_factory=dict)  # what only this kind has

    def load(self) -> Any:
        """Import the object. Raises MissingExtra when its optional package is absent."""
        module, _, name = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
        except ImportError as error:
            if self.extra:
                raise MissingExtra(self.name, self.extra) from error
            raise
        for part in name.split("."):
            found = getattr(found, part)
        return found

    def unknown_options(self, options: Mapping[str, Any], where: str) -> list[Problem]:
        """A problem for each option that the card does not take, or that it needs and lacks."""
        known = [option.name for option in self.options]
        choice = f"it takes: {', '.join(known)}" if known else "it takes none"
        problems = [
            Problem(
                f"{where}.{name}",
                f"{self.name} takes no option '{name}'",
                nearest(name, known) or choice,
            )
            for name in options
            if name not in known
        ]
        problems += [
            Problem(
                f"{where}.{option.name}",
                f"{self.name} needs the option '{option.name}'",
                option.doc or None,
            )
            for option in self.options
            if option.required and option.name not in options
        ]
        return problems


@cache
def _table() -> dict[tuple[str, str], Card]:
    cards: list[Card] = []
    for module in BUILT_IN:
        cards.extend(importlib.import_module(module).CARDS)
    cards.extend(_plugin_cards())
    return {(card.kind, card.name): card for card in cards}


def _plugin_cards() -> Iterable[Card]:
    from importlib.metadata import entry_points

    for point in entry_points(group="luthier.plugins"):
        yield from point.load()()


def cards(kind: Kind) -> list[Card]:
    """All cards of a kind, in the order in which they were declared."""
    return [card for (k, _), card in _table().items() if k == kind]


def find(kind: Kind, name: str) -> Card:
    """The card of that name. Raises NotFound with the nearest name as a hint."""
    try:
        return _table()[kind, name]
    except KeyError:
        names = [card.name for card in cards(kind)]
        raise NotFound(
            f"no {kind} is called '{name}'",
            hint=nearest(name, names) or f"known: {', '.join(names[:12])}",
        ) from None
