"""Calculators on their way to the worker that trains.

One that luthier or a plugin has a card for goes by its name. A class of one's own goes as the
Python text of its file, as far as the class needs it: imports, functions, classes and constants;
never the lines that do something. What cannot go is said, with the reason.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.errors import LuthierError
from luthier.evaluation.calculators import Layout, MetricCalculator, made
from luthier.registry import cards
from luthier.spec import CalculatorSpec, Source

if TYPE_CHECKING:
    from luthier.runs.connection import Home

#: What a metric of a calculator must not be called: training has them already.
_TAKEN = frozenset({"train_loss", "val_loss", "epoch", "step"})


@dataclass(frozen=True)
class Carried:
    """calculators: those that go. names: of the metrics that they say. left: of each of the others
    its class and why it stays."""

    calculators: tuple[CalculatorSpec, ...]
    names: frozenset[str]
    left: Mapping[str, str]


def carried(
    calculators: Sequence[MetricCalculator],
    layouts: Mapping[str, Layout],
    home: Home,
    *,
    is_similarity: bool,
) -> Carried:
    """Calculators as data, tried here first on these searches with scores drawn at random."""
    found: list[CalculatorSpec] = []
    names: set[str] = set()
    left: dict[str, str] = {}
    for each in calculators:
        kind = type(each).__name__
        try:
            attributes = _attributes(each)
            code = None if _has_card(type(each)) else text_of(type(each))
            said = _rehearsed(made(kind, attributes, code), layouts, is_similarity)
        except (_Stays, LuthierError) as error:
            left[kind] = str(error)
            continue
        names |= said
        source = None if code is None else _stored(code, home)
        found.append(CalculatorSpec(name=kind, attributes=attributes, code=source))
    return Carried(tuple(found), frozenset(names), left)


class _Stays(Exception):
    """Why a calculator cannot go."""


def _has_card(kind: type) -> bool:
    """Whether it is the class of a card, and no other of that name."""
    named = [card for card in cards("calculator") if card.name == kind.__name__]
    return any(card.load() is kind for card in named)


def _attributes(calculator: MetricCalculator) -> dict[str, Any]:
    try:
        found = vars(calculator)
        text = json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _Stays(f"its attributes are no JSON ({error})") from None
    if json.loads(text) != found:
        raise _Stays("its attributes are no JSON (lists, numbers and texts, by texts, are)")
    return dict(found)


def _rehearsed(
    calculator: MetricCalculator, layouts: Mapping[str, Layout], is_similarity: bool
) -> set[str]:
    """The names of what it says of these searches."""
    rng = np.random.default_rng(0)
    found: set[str] = set()
    for stage, layout in layouts.items():
        before, after = rng.random((2, len(layout.items)))
        scored = layout.scored(before, after, is_similarity=is_similarity)
        try:
            found |= {str(v.name) for v in calculator(scored, stage) if np.isfinite(float(v.value))}
        except Exception as error:  # somebody's own code
            raise _Stays(f"tried, it failed: {type(error).__name__}: {error}") from error
    if taken := sorted(found & _TAKEN):
        raise _Stays(f"training has a '{taken[0]}' of its own: its value needs another name")
    return found


def _stored(code: str, home: Home) -> Source:
    with tempfile.NamedTemporaryFile("w", suffix=".py", encoding="utf-8") as file:
        file.write(code)
        file.flush()
        sha256 = home.store.put_blob(Path(file.name))
    return Source(uri=f"blob:{sha256}", sha256=sha256)


# --- the text of a class --------------------------------------------------------------------------


def text_of(kind: type) -> str:
    """Python text that defines a class and all that it needs of its file. Raises ``_Stays``."""
    if kind.__qualname__ != kind.__name__:
        raise _Stays("its class is defined inside a function or a class; define it in a file")
    module = sys.modules.get(kind.__module__)
    try:
        assert module is not None
        tree = ast.parse(inspect.getsource(module))
    except (AssertionError, OSError, TypeError):
        raise _Stays("the text of its class is in no file; define it in one") from None
    defined = _definitions(tree)
    if kind.__name__ not in defined:
        raise _Stays("its class is made in a way that no text shows")
    wanted, order = [kind.__name__], list(tree.body)
    kept: dict[int, ast.stmt] = {}
    while wanted:
        name = wanted.pop()
        statement = defined.get(name)
        if statement is None or order.index(statement) in kept:
            continue
        _check(statement, name)
        kept[order.index(statement)] = statement
        wanted += sorted(_names(statement) - set(dir(builtins)))
    lines = [ast.unparse(kept[place]) for place in sorted(kept)]
    return "from __future__ import annotations\n" + "\n".join(lines) + "\n"


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for statement in tree.body:
        for name in _defines(statement):
            found[name] = statement
    return found


def _defines(statement: ast.stmt) -> Iterable[str]:
    if isinstance(statement, ast.Import | ast.ImportFrom):
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
            return []
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [node.id for t in targets for node in ast.walk(t) if isinstance(node, ast.Name)]


def _check(statement: ast.stmt, name: str) -> None:
    if isinstance(statement, ast.ImportFrom) and statement.level:
        raise _Stays(f"it needs '{name}' of its own package; a package offers a card of the kind "
                     "'calculator' (entry point luthier.plugins)")  # fmt: skip
    if isinstance(statement, ast.Assign | ast.AnnAssign) and any(
        isinstance(node, ast.Call) for node in ast.walk(statement)
    ):
        raise _Stays(f"it needs '{name}', which its file computes; compute it inside the class")


def _names(statement: ast.stmt) -> set[str]:
    """Names that a statement uses."""
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
