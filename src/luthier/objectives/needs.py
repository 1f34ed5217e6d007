"""What a loss asks of data and batches, known from its card alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luthier import registry
from luthier.errors import NotFound, Problem, SpecError, nearest
from luthier.objectives.papers import REFUSED
from luthier.registry import Card
from luthier.spec import ObjectiveSpec

WorksOn = Literal["labels", "rows"]


@dataclass(frozen=True)
class Needs:
    """What an objective asks of its data and batches.

    forms: the forms of data that it accepts. works_on: "labels" when it compares items by
    class, "rows" when each row stands for itself. learns: whether it has parameters of its
    own. sampler: what "auto" means on labelled data; the other one is refused when
    sampler_forced. in_batch_negatives: no text may occur twice in a batch. fixed_classes: it
    has one centre a class, so labels outside the training data mean nothing to it.
    """

    loss: str
    forms: tuple[str, ...]
    works_on: WorksOn = "rows"
    learns: bool = False
    sampler: Literal["class", "random"] = "random"
    sampler_forced: bool = False
    in_batch_negatives: bool = False
    fixed_classes: bool = False
    minimum: int = 1

    def form_used(self, form: str) -> str:
        """The form that data of ``form`` is trained on as: pairs become classes for a loss
        that compares items by class."""
        return "labelled" if form == "pairs" and self.works_on == "labels" else form

    def min_rows(self, form: str) -> int:
        """Rows below which a batch says nothing. A triplet brings its own negative."""
        if form in ("triplets", "margin") and self.loss != "VICRegLoss":
            return 1
        return self.minimum


def find_loss(name: str, field: str) -> Card | Problem:
    """The card of a loss, or what is wrong with the name."""
    return _find("loss", name, field)


def find_miner(name: str, field: str) -> Card | Problem:
    """The card of a miner, or what is wrong with the name."""
    return _find("miner", name, field)


def _find(kind: Literal["loss", "miner"], name: str, field: str) -> Card | Problem:
    try:
        return registry.find(kind, name)
    except NotFound as error:
        if name in REFUSED:
            return Problem(field, f"'{name}' cannot be used", REFUSED[name])
        known = [card.name for card in registry.cards(kind)]
        return Problem(field, error.message, nearest(name, known) or f"known: {', '.join(known)}")


def inner(card: Card, options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Name and options of the loss that a wrapper wraps."""
    defaults = {option.name: option.default for option in card.options}
    name = options.get("loss", defaults["loss"])
    return name, options.get("loss_options") or {}


def needs(spec: ObjectiveSpec) -> Needs:
    """What the objective needs, from its card. Raises SpecError for an unknown name."""
    return _needs(spec.loss, spec.loss_options, spec.miner is not None, "objective.loss")


def _needs(name: str, options: Mapping[str, Any], mined: bool, field: str) -> Needs:
    card = find_loss(name, field)
    if isinstance(card, Problem):
        raise SpecError([card])
    if card.facts.get("wraps"):
        name, options = inner(card, options)
        return _needs(str(name), options, mined, "objective.loss_options.loss")
    facts = card.facts
    learns = facts.get("learns", False)
    return Needs(
        loss=card.name,
        # explicit triplets are the tuples; a miner would pick others by labels there are not
        forms=tuple(form for form in card.forms if not (mined and form == "triplets")),
        works_on=facts.get("works_on", "rows"),
        learns=bool(options.get(learns, False)) if isinstance(learns, str) else learns,
        sampler=facts.get("sampler", "random"),
        sampler_forced=facts.get("sampler_forced", False),
        in_batch_negatives=facts.get("in_batch_negatives", False),
        fixed_classes="num_classes" in facts.get("fills", {}).values(),
        minimum=facts.get("min_rows", 1),
    )


def losses_for(form: str) -> list[str]:
    """Names of the losses that fit a form of data, wrappers left out."""
    return [
        card.name
        for card in registry.cards("loss")
        if form in card.forms and not card.facts.get("wraps")
    ]
