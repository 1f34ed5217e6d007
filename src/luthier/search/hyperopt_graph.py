"""Hyperopt's own expressions, read without importing Hyperopt.

``hp.choice`` and its kin make graphs of named nodes (``hyperopt.pyll.Apply``): ``float`` around
``hyperopt_param`` around ``loguniform``, ``switch`` around ``randint`` and the options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem, SpecError
from luthier.tuning.domains import Domain, Float, Integer, choice, loguniform, uniform


@dataclass(frozen=True)
class Labelled:
    """A range that was given a name of its own, as Hyperopt's are."""

    label: str
    domain: Domain


def read_graph(node: Any) -> Any:
    """The range or the value of a node. Raises SpecError for a distribution that is none."""
    name = node.name
    arguments = [*node.pos_args]
    if name == "literal":
        return node.obj
    if name in ("float", "int"):
        found = read_graph(arguments[0])
        return _whole(found) if name == "int" else found
    if name == "hyperopt_param":
        return Labelled(str(read_graph(arguments[0])), _range(arguments[1]))
    if name == "switch":
        label = str(read_graph(arguments[0].pos_args[0]))
        return Labelled(label, choice([_option(each) for each in arguments[1:]]))
    if name in ("dict", "pos_args"):
        return _option(node)
    raise _unknown(name)


def _whole(found: Any) -> Any:
    """``uniformint`` is an ``int`` around a ``quniform`` by 1."""
    if not isinstance(found, Labelled) or not isinstance(found.domain, Float):
        return found
    low, high, step = (int(x) for x in (found.domain.lower, found.domain.upper,
                                        found.domain.step or 1))  # fmt: skip
    return Labelled(found.label, Integer(low, high, step=step))


def _option(node: Any) -> Any:
    if node.name == "dict":
        return {key: _option(inner) for key, inner in node.named_args}
    if node.name == "pos_args":
        return [_option(inner) for inner in node.pos_args]
    return read_graph(node)


def _range(node: Any) -> Domain:
    words: Mapping[str, Any] = {key: read_graph(value) for key, value in node.named_args}
    values = [read_graph(each) for each in node.pos_args]

    def given(index: int, name: str) -> Any:
        return values[index] if index < len(values) else words[name]

    if node.name == "randint":
        low, high = (0, values[0]) if len(values) == 1 else (given(0, "low"), given(1, "high"))
        return Integer(int(low), int(high) - 1)
    if node.name not in ("uniform", "loguniform", "quniform", "uniformint"):
        raise _unknown(node.name)
    low, high = given(0, "low"), given(1, "high")
    if node.name == "loguniform":
        return loguniform(math.exp(low), math.exp(high))
    if node.name == "uniformint":
        return Integer(int(low), int(high))
    if node.name == "quniform":
        return quantized(low, high, given(2, "q"))
    return uniform(low, high)


def quantized(low: float, high: float, q: float) -> Float:
    """Hyperopt's ``round(x / q) * q`` of an even number between ``low`` and ``high``."""
    return Float(round(low / q) * q, round(high / q) * q, step=q)


def _unknown(name: str) -> SpecError:
    hint = "uniform, loguniform, quniform, randint, uniformint or choice"
    message = f"Hyperopt's '{name}' is no range that can be searched here"
    return SpecError([Problem("search", message, hint)])
