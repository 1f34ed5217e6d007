"""Everything that is wrong with an objective, found before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from luthier.errors import Problem, nearest
from luthier.objectives.cards import PML
from luthier.objectives.needs import Needs, find_loss, find_miner, inner, losses_for, needs
from luthier.objectives.papers import REFUSED, REFUSED_OPTIONS
from luthier.registry import Card, Option
from luthier.spec import ObjectiveSpec

#: Named first when a form has several fitting losses: what most people want.
_USUAL = {
    "labelled": ("TripletMarginLoss", "ArcFaceLoss", "SupConLoss"),
    "pairs": ("MultipleNegativesRankingLoss", "TripletMarginLoss", "CLIPLoss"),
    "triplets": ("MultipleNegativesRankingLoss", "TripletMarginLoss"),
    "scored": ("CoSENTLoss", "CosineSimilarityLoss", "AnglELoss"),
    "margin": ("MarginMSELoss",),
    "rankings": ("ListwiseSoftmaxLoss", "CosineProbMarginRankingLoss"),
}


def problems(spec: ObjectiveSpec, form: str | None) -> list[Problem]:
    """All problems of an objective, for data of ``form`` (None: not known yet)."""
    card = find_loss(spec.loss, "objective.loss")
    found: list[Problem] = []
    if isinstance(card, Problem):
        found.append(card)
    else:
        found += _loss_problems(card, spec.loss_options, "objective.loss_options", form)
    found += _miner_problems(spec, card)
    if found:  # what follows asks what a valid loss needs
        return found
    wanted = needs(spec)
    return [*_form_problems(spec, wanted, form), *_optimizer_problems(spec, wanted)]


def _loss_problems(
    card: Card, options: Mapping[str, Any], where: str, form: str | None
) -> Iterator[Problem]:
    yield from option_problems(card, options, where)
    if card.facts.get("wraps"):
        yield from _wrapped_problems(card, options, where, form)
    if options.get("temperature") is not None and options.get("scale") is not None:
        yield Problem(f"{where}.temperature", "is 1 / scale: give one of them, not both")
    by_class = options.get("reducer") == "ClassWeightedReducer" or options.get("num_classes")
    if by_class and form == "triplets":
        yield Problem(where, "weighs by class, and triplets have no classes")


def _wrapped_problems(
    card: Card, options: Mapping[str, Any], where: str, form: str | None
) -> Iterator[Problem]:
    name, inner_options = inner(card, options)
    if not isinstance(name, str) or not isinstance(inner_options, Mapping):
        return  # option_problems says so
    wrapped = find_loss(name, f"{where}.loss")
    if isinstance(wrapped, Problem):
        yield wrapped
    elif wrapped.facts.get("wraps"):
        yield Problem(f"{where}.loss", f"{card.name} cannot wrap {name}")
    else:
        yield from _loss_problems(wrapped, inner_options, f"{where}.loss_options", form)
    dims, weights = options.get("matryoshka_dims"), options.get("matryoshka_weights")
    if isinstance(dims, list | tuple):
        whole = all(isinstance(d, int) and not isinstance(d, bool) and d > 0 for d in dims)
        if not dims or not whole:
            yield Problem(f"{where}.matryoshka_dims", "is a list of whole numbers above 0")
        elif len(set(dims)) < len(dims):
            yield Problem(f"{where}.matryoshka_dims", "names a width twice")
    if isinstance(weights, list | tuple):
        if not all(_number(w) and w >= 0 for w in weights):
            yield Problem(f"{where}.matryoshka_weights", "is a list of numbers from 0")
        if not isinstance(dims, list | tuple) or len(dims) != len(weights):
            yield Problem(
                f"{where}.matryoshka_weights", "needs one weight for each matryoshka_dims"
            )


def option_problems(card: Card, options: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """Unknown, missing and ill-valued options of a loss or miner."""
    for problem in card.unknown_options(options, where):
        refused = REFUSED_OPTIONS.get(problem.field.rpartition(".")[2])
        if refused and card.facts.get("family") == "pml":
            yield Problem(problem.field, f"{card.name} is not given this: it {refused}")
        else:
            yield problem
    known = {option.name: option for option in card.options}
    for name, value in options.items():
        if name in known:
            yield from _value_problems(card, known[name], value, f"{where}.{name}")
    for part in ("distance", "reducer"):
        yield from _part_problems(card, part, options, where)


def _value_problems(card: Card, option: Option, value: Any, field: str) -> Iterator[Problem]:
    choices = card.facts.get("choices", {}).get(option.name)
    if option.name in ("distance", "reducer"):
        return  # _part_problems
    if choices is not None:
        if not any(_is(value, choice) for choice in choices):
            yield Problem(field, f"is one of {_shown(choices)}, not {value!r:.80}")
            return
    elif isinstance(option.default, bool):
        if not isinstance(value, bool):
            yield Problem(field, f"is true or false, not {value!r:.80}")
    elif isinstance(option.default, dict):
        if not isinstance(value, Mapping):
            yield Problem(field, f"is a mapping of options, not {value!r:.80}")
    elif isinstance(option.default, str):
        if not isinstance(value, str):
            yield Problem(field, f"is a name, not {value!r:.80}")
    elif not _number(value) and not (
        value is None and option.default is None and not option.required
    ):
        yield Problem(field, f"is a number, not {value!r:.80}")
    if option.name in card.facts.get("whole", ()) and _number(value) and value != int(value):
        yield Problem(field, f"is a whole number, not {value!r:.80}")
    if option.name in card.facts.get("positive", ()) and _number(value) and value <= 0:
        yield Problem(field, f"is greater than 0, not {value!r:.80}")


def _part_problems(
    card: Card, part: str, options: Mapping[str, Any], where: str
) -> Iterator[Problem]:
    """Distance and reducer are names with options of their own."""
    known = {option.name for option in card.options}
    if part not in known:
        return
    allowed = card.facts[f"{part}s"]
    name = options.get(part, card.facts.get(part))
    given = options.get(f"{part}_options") or {}
    field = f"{where}.{part}"
    if name is None:
        if given:
            yield Problem(f"{field}_options", f"are given without a {part}")
        return
    if name not in allowed:
        reason = REFUSED.get(name) if isinstance(name, str) else None
        hint = reason or nearest(str(name), allowed) or f"it takes: {', '.join(allowed)}"
        yield Problem(field, f"{card.name} cannot use {part} {name!r:.80}", hint)
        return
    if not isinstance(given, Mapping):
        return  # _value_problems says so
    entry = PML[f"{part}s"][name]
    takes = [*entry["options"], *entry.get("required", ())]
    for option in given:
        if option not in takes:
            hint = nearest(str(option), takes) or f"it takes: {', '.join(takes) or 'none'}"
            yield Problem(f"{field}_options.{option}", f"{name} takes no option '{option}'", hint)
    for option in entry.get("required", ()):
        if option not in given:
            yield Problem(f"{field}_options.{option}", f"{name} needs the option '{option}'")
    if name == "ThresholdReducer" and not any(given.get(o) is not None for o in ("low", "high")):
        yield Problem(f"{field}_options", "ThresholdReducer needs low, high or both")


def _miner_problems(spec: ObjectiveSpec, loss: Card | Problem) -> Iterator[Problem]:
    if spec.miner is None:
        if spec.miner_options:
            yield Problem("objective.miner_options", "are given without a miner")
        return
    card = find_miner(spec.miner, "objective.miner")
    if isinstance(card, Problem):
        yield card
        return
    yield from option_problems(card, spec.miner_options, "objective.miner_options")
    for part in ("pos", "neg"):
        span = spec.miner_options.get(f"allowed_{part}_range")
        if isinstance(span, list | tuple) and not (len(span) == 2 and all(map(_number, span))):
            yield Problem(f"objective.miner_options.allowed_{part}_range", "is [low, high]")
    if isinstance(loss, Card) and loss.facts.get("wraps"):
        name, _ = inner(loss, spec.loss_options)
        loss = find_loss(str(name), "objective.loss_options.loss")
    if isinstance(loss, Card) and not loss.facts.get("takes_miner"):
        yield Problem(
            "objective.miner",
            f"{loss.name} takes no miner",
            "leave the miner out, or use a loss that takes one, such as TripletMarginLoss",
        )


def _form_problems(spec: ObjectiveSpec, wanted: Needs, form: str | None) -> Iterator[Problem]:
    if form is None or form in wanted.forms:
        return
    if spec.miner is not None and form == "triplets" and form in _unmined(spec).forms:
        yield Problem(
            "objective.miner",
            "a miner picks triplets by label, and triplet data gives its own",
            "leave the miner out",
        )
        return
    fitting = losses_for(form)
    usual = [name for name in _USUAL.get(form, ()) if name in fitting]
    others = len(fitting) - len(usual)
    hint = f"for {form} data use {' or '.join(usual)}" if usual else None
    if hint and others:
        hint += f", or another of the {len(fitting)} that fit it"
    yield Problem(
        "objective.loss",
        f"{wanted.loss} needs {' or '.join(wanted.forms)} data, and this data is {form}",
        hint,
    )


def _unmined(spec: ObjectiveSpec) -> Needs:
    return needs(spec.model_copy(update={"miner": None}))


def _optimizer_problems(spec: ObjectiveSpec, wanted: Needs) -> Iterator[Problem]:
    if wanted.learns:
        return
    for field in ("loss_optimizer", "loss_optimizer_options"):
        if getattr(spec, field):
            hint = "leave it out"
            if wanted.loss == "MarginLoss":
                hint += ", or set learn_beta"
            yield Problem(
                f"objective.{field}", f"{wanted.loss} has no parameters of its own to train", hint
            )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is(value: Any, choice: Any) -> bool:
    if choice is list:
        return isinstance(value, list | tuple)
    if choice is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return type(value) is type(choice) and bool(value == choice)


def _shown(choices: tuple[Any, ...]) -> str:
    words = {int: "a whole number", list: "a list"}
    return ", ".join(words.get(c, repr(c)) if isinstance(c, type) else repr(c) for c in choices)
