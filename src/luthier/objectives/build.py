"""From an ObjectiveSpec to an Objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_metric_learning import distances, reducers

from luthier.errors import Problem, SpecError
from luthier.objectives.labelled import LabelLoss, RowLoss
from luthier.objectives.matryoshka import MatryoshkaLoss, default_dims
from luthier.objectives.needs import find_loss, find_miner, inner
from luthier.objectives.objective import Objective
from luthier.objectives.problems import problems
from luthier.registry import Card
from luthier.spec import ObjectiveSpec

#: What constructors raise on a bad value; pytorch-metric-learning asserts most.
_REFUSALS = (AssertionError, ValueError, TypeError, RuntimeError, ZeroDivisionError, OverflowError)


def build_objective(
    spec: ObjectiveSpec, *, dim: int, num_classes: int, form: str | None
) -> Objective:
    """The objective of a job.

    dim: width of the embeddings. num_classes: of the training data (0 where there are none).
    form: of the data that reaches the objective, so what ``Needs.form_used`` gives. Random
    starts (class centres) come from torch's generator.

    Raises SpecError for names, options or combinations that cannot work.
    """
    found = problems(spec, form)
    if found:
        raise SpecError(found)
    card = find_loss(spec.loss, "objective.loss")
    assert isinstance(card, Card)
    return _build(card, spec.loss_options, spec, dim, num_classes, "objective.loss_options")


def _build(
    card: Card,
    options: Mapping[str, Any],
    spec: ObjectiveSpec,
    dim: int,
    num_classes: int,
    where: str,
) -> Objective:
    if card.facts.get("wraps"):
        return _matryoshka(card, options, spec, dim, num_classes, where)
    if card.facts.get("family") == "pml":
        return _composed(card, options, spec, dim, num_classes, where)
    filled = _filled(card, dim, num_classes)
    built = _construct(card, dict(options) | filled, where)
    if not isinstance(built, Objective):
        raise TypeError(f"{card.target} is not a luthier.objectives.Objective")
    return built


def _matryoshka(
    card: Card,
    options: Mapping[str, Any],
    spec: ObjectiveSpec,
    dim: int,
    num_classes: int,
    where: str,
) -> MatryoshkaLoss:
    name, inner_options = inner(card, options)
    dims = [int(d) for d in options.get("matryoshka_dims") or default_dims(dim)]
    if max(dims) > dim:
        message = f"{max(dims)} is wider than the model's embeddings, which have {dim}"
        raise SpecError([Problem(f"{where}.matryoshka_dims", message)])
    wrapped = find_loss(name, f"{where}.loss")
    assert isinstance(wrapped, Card)  # problems() was empty
    losses = [
        _build(wrapped, inner_options, spec, d, num_classes, f"{where}.loss_options") for d in dims
    ]
    return MatryoshkaLoss(losses, dims, options.get("matryoshka_weights"))


def _composed(
    card: Card,
    options: Mapping[str, Any],
    spec: ObjectiveSpec,
    dim: int,
    num_classes: int,
    where: str,
) -> Objective:
    """A loss of pytorch-metric-learning with its distance, reducer and miner."""
    given = _with_parts(card, options, where, num_classes)
    if given.get("num_classes") == "auto":  # MarginLoss: one boundary a class
        given["num_classes"] = num_classes
    loss = _construct(card, given | _filled(card, dim, num_classes), where)
    if card.facts["works_on"] == "rows":
        return RowLoss(loss)
    miner = None
    if spec.miner is not None:
        found = find_miner(spec.miner, "objective.miner")
        assert isinstance(found, Card)  # problems() was empty
        field = "objective.miner_options"
        miner = _construct(found, _with_parts(found, spec.miner_options, field, num_classes), field)
    by_class = "num_classes" in card.facts["fills"].values() or given.get("num_classes")
    return LabelLoss(loss, miner, num_classes if by_class else None)


def _filled(card: Card, dim: int, num_classes: int) -> dict[str, int]:
    known = {"dim": dim, "num_classes": num_classes}
    filled = {option: known[what] for option, what in card.facts.get("fills", {}).items()}
    if "num_classes" in card.facts.get("fills", {}).values() and num_classes < 1:
        raise SpecError([Problem("objective.loss", f"{card.name} needs data with classes")])
    return filled


def _with_parts(
    card: Card, options: Mapping[str, Any], where: str, num_classes: int
) -> dict[str, Any]:
    """The options with distance and reducer made from their names."""
    given = {name: value for name, value in options.items() if not name.endswith("_options")}
    for part, module in (("distance", distances), ("reducer", reducers)):
        part_options = dict(options.get(f"{part}_options") or {})
        name = given.pop(part, None) or (card.facts.get(part) if part_options else None)
        if name is None:
            continue  # the loss's own default
        if name == "ClassWeightedReducer":
            part_options["weights"] = _weights(
                part_options, f"{where}.reducer_options", num_classes
            )
        field = f"{where}.{part}_options"
        given[part] = _call(getattr(module, name), part_options, name, field)
    return given


def _weights(options: Mapping[str, Any], where: str, num_classes: int) -> torch.Tensor:
    try:
        weights = torch.tensor(options["weights"], dtype=torch.float32)
    except (TypeError, ValueError):
        raise SpecError([Problem(f"{where}.weights", "is a list of numbers")]) from None
    if weights.shape != (num_classes,):
        message = f"needs one weight for each of the {num_classes} classes"
        raise SpecError([Problem(f"{where}.weights", message)])
    return weights


def _construct(card: Card, options: Mapping[str, Any], where: str) -> Any:
    return _call(card.load(), options, card.name, where)


def _call(cls: Any, options: Mapping[str, Any], name: str, where: str) -> Any:
    try:
        return cls(**options)
    except _REFUSALS as error:
        said = str(error).strip() or type(error).__name__
        raise SpecError([Problem(where, f"{name} refuses its options: {said}")]) from error
