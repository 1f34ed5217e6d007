"""Searches of clicks: choices of Embedding Studio's parameters become the space of a search."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from luthier.clicks.curriculum import examples_order
from luthier.clicks.parameters import OF_DATA, FineTuningParams
from luthier.clicks.settings import FineTuningSettings
from luthier.doors.clicks_data import ClickData, Part, Variant
from luthier.errors import DataError, Problem, SpecError, nearest
from luthier.search.spellings import normal

#: Parameter → the leaf that it sets. Those of the data are not here, nor is examples_order's
#: default, which needs no scores.
PATHS = {
    "num_fixed_layers": "model.num_fixed_layers",
    "query_lr": "training.query_learning_rate",
    "items_lr": "training.learning_rate",
    "query_weight_decay": "training.query_weight_decay",
    "items_weight_decay": "training.optim_args.weight_decay",
    "margin": "objective.loss_options.margin",
    "min_abs_difference_threshold": "objective.loss_options.min_abs_difference_threshold",
    "max_abs_difference_threshold": "objective.loss_options.max_abs_difference_threshold",
    "examples_order": "training.examples_order",
}
#: The name of the choice between variants of the data in a search.
DATA = "data"


def data_variants(params: FineTuningParams | Mapping[str, Any]) -> list[Variant]:
    """The variants of the data that parameters ask for. Raises SpecError for a range of numbers:
    a variant is made before training begins."""
    if isinstance(params, FineTuningParams):
        return [(params.not_irrelevant_only, params.negative_downsampling)]
    problems: list[Problem] = []
    columns = []
    for name in OF_DATA:
        if name not in params:
            problems.append(Problem(name, "is missing", "give its value, or choices"))
            continue
        values = _choices(name, params[name])
        if values is None:
            hint = "give choices: [0.1, 0.3, 0.5]"
            problems.append(Problem(name, "changes the data, so that it is no range", hint))
            continue
        columns.append(values)
    if problems:
        raise SpecError(problems)
    return list(dict.fromkeys((v[0], float(v[1])) for v in itertools.product(*columns)))


def read_params(
    given: Mapping[str, Any],
    settings: FineTuningSettings,
    data: ClickData,
    problems: list[Problem],
) -> tuple[dict[str, Any], FineTuningParams]:
    """The space of a search, and the parameters of its first point."""
    nodes: dict[str, dict[str, Any]] = {}
    for name, value in given.items():
        if name not in FineTuningParams.model_fields:
            hint = nearest(name, FineTuningParams.model_fields)
            problems.append(Problem(name, "is no parameter of fine-tuning", hint))
            continue
        try:
            nodes[name] = _node(name, value)
        except SpecError as error:
            problems += [Problem(name, p.message, p.hint) for p in error.problems]
    if problems:
        raise SpecError(problems)
    first = FineTuningParams(**{name: _first(node) for name, node in nodes.items()})
    problems += _bad_choices(nodes, first)
    space: dict[str, Any] = {}
    for name, node in nodes.items():
        if name in OF_DATA or (len(_values(node) or ()) == 1):
            continue
        path = PATHS[name]
        space[path] = node
    variants = data_variants(given)
    if len(variants) > 1:
        found = [data.parts[v] for v in variants if v in data.parts]
        if len(found) < len(variants):
            problems.append(Problem("negative_downsampling", "there are no data of a variant"))
        parts = {part.train.uri: part for part in found}  # variants of some logs are the same
        if len(parts) > 1:
            cases = [_case(part, settings) for part in parts.values()]
            space[DATA] = {"type": "branches", "cases": cases}
    return space, first


def _case(part: Part, settings: FineTuningSettings) -> dict[str, Any]:
    values = {
        "data.train.uri": part.train.uri,
        "data.train.sha256": part.train.sha256,
        "training.eval_steps": settings.eval_steps(part.rows),
    }
    return {path: {"type": "fixed", "value": value} for path, value in values.items()}


def _node(name: str, value: Any) -> dict[str, Any]:
    """The JSON form of a choice, a range or a value. A list is a list of choices."""
    node = normal(value, name, lambda each: each)
    if node["type"] == "branches":
        message = "a parameter is chosen by itself here"
        raise SpecError([Problem(name, message, "give choices, or a range")])
    if name == "examples_order":
        found = [numbers_of(each) for each in _values(node) or ()]
        return {"type": "categorical", "categories": found}
    return node


def numbers_of(order: Any) -> list[int]:
    try:
        numbers = [int(kind) for kind in examples_order([order] if isinstance(order, int | str)
                                                        else order)]  # fmt: skip
    except DataError as error:
        raise SpecError([Problem("examples_order", error.message, error.hint)]) from None
    return [] if set(numbers) == {11} else numbers


def _values(node: Mapping[str, Any]) -> list[Any] | None:
    """All values of a node, where they are told one by one."""
    if node["type"] == "fixed":
        return [node["value"]]
    if node["type"] in ("categorical", "ordinal"):
        return list(node["categories"])
    return None


def _choices(name: str, value: Any) -> list[Any] | None:
    return _values(_node(name, value))


def _first(node: Mapping[str, Any]) -> Any:
    values = _values(node)
    if values is not None:
        return values[0]
    low, high = node["lower"], node["upper"]
    if node.get("log"):
        return type(high)((low * high) ** 0.5)
    return type(high)((low + high) / 2)


def _bad_choices(nodes: Mapping[str, Any], first: FineTuningParams) -> list[Problem]:
    """Every choice, and the ends of every range, must be a parameter's."""
    found: list[Problem] = []
    for name, node in nodes.items():
        values = _values(node)
        for value in [node["lower"], node["upper"]] if values is None else values:
            try:
                FineTuningParams(**{**first.model_dump(), name: value})
            except SpecError as error:
                found += [p for p in error.problems if p not in found]
    return found


def point_of(
    params: Mapping[str, Any], space: Mapping[str, Any], given: Any, data: ClickData
) -> dict[str, Any] | None:
    """A set of parameters as a point of this search; None where it lies outside of it."""
    point: dict[str, Any] = {}
    for name, path in PATHS.items():
        if path not in space or name not in params:
            continue
        value = numbers_of(params[name]) if name == "examples_order" else params[name]
        values, node = _values(space[path]), space[path]
        if values is None:
            if not isinstance(value, int | float) or not node["lower"] <= value <= node["upper"]:
                return None
            point[path] = value
            continue
        same = [v for v in values if v == value and isinstance(v, bool) == isinstance(value, bool)]
        if not same:
            return None
        point[path] = same[0]  # 0 is 0.0 to people, and not to the space
    if DATA in space and all(name in params for name in OF_DATA):
        variant = (params["not_irrelevant_only"], float(params["negative_downsampling"]))
        if variant not in data_variants(given):
            return None
        point["data.train.uri"] = data.parts[variant].train.uri
    return point
