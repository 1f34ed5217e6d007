"""How ranges can be written: our words, Syne Tune's, Hyperopt's, Optuna's, and in YAML.

``normal`` brings them all to the JSON form that ``luthier.search.space`` reads.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.search.hyperopt_graph import Labelled, quantized, read_graph
from luthier.tuning.config_spaces import as_domain
from luthier.tuning.domains import (
    Categorical,
    Domain,
    Float,
    Integer,
    choice,
    lograndint,
    loguniform,
    ordinal,
    randint,
    to_json,
    uniform,
)

_WORDS: dict[str, Callable[..., Domain]] = {
    "uniform": uniform,
    "loguniform": loguniform,
    "randint": randint,
    "lograndint": lograndint,
    "choice": choice,
    "ordinal": ordinal,
    "quniform": lambda low, high, q: Float(low, high, step=q),
}


@dataclass(frozen=True)
class Conditional:
    """A choice of values, each with what is searched where it was chosen."""

    cases: tuple[tuple[Any, Mapping[str, Any]], ...]


def conditional(cases: Mapping[Any, Mapping[str, Any]]) -> Conditional:
    """One of several values, and what is varied with each:
    ``conditional({"SGD": {"optimizer_options.momentum": uniform(0, 0.99)}, "Adam": {}})``."""
    return Conditional(tuple(cases.items()))


class hp:
    """Hyperopt's words, with Hyperopt's meanings: a label first, ``loguniform`` by its
    exponents, the upper bound of ``randint`` not included."""

    @staticmethod
    def choice(label: str, options: Sequence[Any]) -> Labelled:
        """One of several; mappings among them can hold further ranges."""
        return Labelled(label, choice(list(options)))

    @staticmethod
    def uniform(label: str, low: float, high: float) -> Labelled:
        return Labelled(label, uniform(low, high))

    @staticmethod
    def loguniform(label: str, low: float, high: float) -> Labelled:
        """exp of a number between ``low`` and ``high``."""
        return Labelled(label, loguniform(math.exp(low), math.exp(high)))

    @staticmethod
    def quniform(label: str, low: float, high: float, q: float) -> Labelled:
        """Multiples of ``q``, as ``round(x / q) * q`` gives."""
        return Labelled(label, quantized(low, high, q))

    @staticmethod
    def randint(label: str, low: int, high: int | None = None) -> Labelled:
        """``randint(label, upper)`` or ``randint(label, low, upper)``; below ``upper``."""
        low, high = (0, low) if high is None else (low, high)
        return Labelled(label, Integer(low, high - 1))

    @staticmethod
    def uniformint(label: str, low: int, high: int) -> Labelled:
        """Both bounds included."""
        return Labelled(label, Integer(low, high))


def normal(value: Any, path: str, resolve: Callable[[str], str]) -> dict[str, Any]:
    """The JSON form of what stands for one path. resolve: from a name to a path, for names
    below a choice. Raises SpecError that names the path."""
    try:
        return _normal(value, path, resolve)
    except SpecError as error:
        problems = [
            Problem(path if p.field in ("config_space", "search") else p.field, p.message, p.hint)
            for p in error.problems
        ]
        raise SpecError(problems) from None


def _normal(value: Any, path: str, resolve: Callable[[str], str]) -> dict[str, Any]:
    if isinstance(value, Labelled):
        value = value.domain
    if isinstance(value, Conditional):
        return _branches(
            [
                {path: {"type": "fixed", "value": case}} | _case(_known(inner, path), resolve)
                for case, inner in value.cases
            ]
        )
    if hasattr(value, "pos_args") and hasattr(value, "named_args"):
        return _normal(read_graph(value), path, resolve)
    if isinstance(value, str):
        value = _called(value)
    elif isinstance(value, Mapping):
        value = _spelled(value, path)
        if isinstance(value, Conditional):
            return _normal(value, path, resolve)
    elif isinstance(value, list):
        value = choice(value)
    if isinstance(value, Mapping):
        return dict(value)  # the JSON form itself
    domain = as_domain(value)
    if domain is None:
        return {"type": "fixed", "value": value}
    if isinstance(domain, Categorical) and any(map(_has_ranges, domain.categories)):
        mixed = [c if isinstance(c, Mapping) else {path: c} for c in domain.categories]
        return _branches([_case(c, resolve) for c in mixed])
    return to_json(domain)


def _known(inner: Any, path: str) -> Mapping[str, Any]:
    if inner is None:
        return {}
    if not isinstance(inner, Mapping):
        raise SpecError([Problem(path, "each case has a mapping of what is varied with it")])
    return inner


def _case(case: Mapping[str, Any], resolve: Callable[[str], str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in case.items():
        path = resolve(name)
        plain = not _has_ranges({"": value}) and not isinstance(value, str | Mapping | list)
        fixed = plain or (isinstance(value, str | list) and not _is_call(value))
        found[path] = {"type": "fixed", "value": value} if fixed else normal(value, path, resolve)
    return found


def _branches(cases: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "branches", "cases": cases}


def _has_ranges(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_is_range(inner) or _has_ranges(inner) for inner in value.values())
    return False


def _is_range(value: Any) -> bool:
    if isinstance(value, Labelled | Conditional) or hasattr(value, "pos_args"):
        return True
    if isinstance(value, Mapping):
        return len(value) == 1 and next(iter(value)) in (*_WORDS, "conditional")
    return _is_call(value) or as_domain(value) is not None


def _is_call(value: Any) -> bool:
    return isinstance(value, str) and value.partition("(")[0].strip() in _WORDS and "(" in value


def _called(text: str) -> Any:
    """``loguniform(1e-5, 1e-3)`` as it is written in a YAML file; other text as it is."""
    if not _is_call(text):
        return text
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.keywords:
            raise ValueError("it is no call")
        return _WORDS[call.func.id](*(ast.literal_eval(each) for each in call.args))
    except (SyntaxError, ValueError, TypeError) as error:
        message = f"{text!r:.80} cannot be read: {error}"
        raise SpecError([Problem("search", message, "loguniform(1e-5, 1e-3)")]) from None


def _spelled(value: Mapping[str, Any], path: str) -> Any:
    """``{loguniform: [1e-5, 1e-3]}``, ``{conditional: {…}}``, or the JSON form."""
    if "type" in value:
        return value
    if len(value) != 1:
        raise SpecError([Problem(path, "is no range", "{loguniform: [1e-5, 1e-3]}")])
    word, given = next(iter(value.items()))
    if word == "conditional" and isinstance(given, Mapping):
        return conditional(given)
    if word not in _WORDS:
        known = [*_WORDS, "conditional"]
        hint = nearest(str(word), known) or f"known: {', '.join(known)}"
        raise SpecError([Problem(path, f"there is no range '{word}'", hint)])
    arguments = [given] if word in ("choice", "ordinal") else given
    try:
        return _WORDS[word](*arguments)
    except TypeError as error:
        raise SpecError([Problem(path, f"{word}: {error}", "{loguniform: [1e-5, 1e-3]}")]) from None
