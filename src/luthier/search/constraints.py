"""Constraints such as ``seconds <= 60``: arithmetic over fields and metrics, and one comparison."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem, SpecError

_COMPARISON = re.compile(r"(<=|>=|<|>)")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_OPERATIONS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Constraint:
    """``text``; ``names`` are the fields (by path) and metrics in it."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr
    strict: bool

    def violation(self, values: Mapping[str, Any]) -> float:
        """How far from allowed: 0 or less is allowed. Infinite where a value is no number."""
        try:
            found = _value(self.tree, {n: values[n] for n in self.names})
        except (KeyError, TypeError, ValueError, ArithmeticError):
            return math.inf
        if math.isnan(found):
            return math.inf
        return math.ulp(0.0) if self.strict and found == 0 else found

    def allows(self, values: Mapping[str, Any]) -> bool:
        """Whether a point may be tried; one that needs what only the trial tells may."""
        if any(name not in values for name in self.names):
            return True
        return self.violation(values) <= 0

    def needs(self, metrics: Iterable[str]) -> bool:
        """Whether one of these is in it."""
        return bool(set(metrics) & set(self.names))


def read_constraints(texts: Iterable[str]) -> list[Constraint]:
    """Constraints from text. Raises SpecError for what is none.

    >>> read_constraints(["2 * seconds <= 60"])[0].violation({"seconds": 31.0})
    2.0
    """
    found, problems = [], []
    for text in texts:
        try:
            found.append(_read(text))
        except (SyntaxError, ValueError) as error:
            hint = "for example 'seconds <= 60'"
            problems.append(Problem("search.constraints", f"'{text}' is none: {error}", hint))
    if problems:
        raise SpecError(problems)
    return found


def _read(text: str) -> Constraint:
    parts = _COMPARISON.split(text)
    if len(parts) != 3:
        raise ValueError("it needs one of <=, >=, <, >")
    left, sign, right = parts
    if sign.startswith(">"):
        left, right = right, left
    names = tuple(dict.fromkeys(_NAME.findall(text)))
    tree = ast.parse(f"({left.strip()}) - ({right.strip()})", mode="eval").body
    _check(tree)
    return Constraint(text, names, tree, strict="=" not in sign)


def _check(node: ast.expr) -> None:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        _check(node.left)
        _check(node.right)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        _check(node.operand)
    elif isinstance(node, ast.Attribute):
        _check(node.value)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool) or not isinstance(node.value, int | float):
            raise ValueError("numbers, names, + - * / and one comparison")
    elif not isinstance(node, ast.Name):
        raise ValueError("numbers, names, + - * / and one comparison")


def _value(node: ast.expr, values: Mapping[str, Any]) -> float:
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, values), _value(node.right, values))
    if isinstance(node, ast.UnaryOp):
        return _OPERATIONS[type(node.op)](_value(node.operand, values))
    if isinstance(node, ast.Constant):
        return float(node.value)  # type: ignore[arg-type]
    return float(values[ast.unparse(node)])
