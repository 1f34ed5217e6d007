"""What a configuration file asks for, read without running it.

Renate's files are Python: importing one loads torch and may do anything. Here only the signatures
of its functions are read, from the syntax tree, so that a misspelt argument is told at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.spec.update import PROGRAM_FUNCTIONS

#: Parameters that the job fills in by itself.
FILLED = ("model_state_url", "data_path", "chunk_id", "seed")

#: Types that an argument can have, by the name of the annotation.
_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "list": (list, tuple),
    "List": (list, tuple),
    "tuple": (tuple, list),
    "Tuple": (tuple, list),
    "dict": (dict,),
    "Dict": (dict,),
}


@dataclass(frozen=True)
class Argument:
    """A parameter of a function. kinds: what it may be, empty where nothing is said.
    optional: None is allowed."""

    name: str
    function: str
    kinds: tuple[type, ...]
    optional: bool
    needed: bool


@dataclass(frozen=True)
class ConfigFile:
    """A configuration file: where it is, its content when it was read, and its arguments."""

    path: str
    sha256: str
    arguments: Mapping[str, Argument]

    @property
    def name(self) -> str:
        return PurePath(self.path).name


def arguments_of(text: str, name: str) -> dict[str, Argument]:
    """The arguments that the functions of a file take, by name.

    Raises SpecError where it is no Python, or where ``model_fn`` or ``data_module_fn`` is missing.
    """
    try:
        tree = ast.parse(text, name)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        where = f"{name}, line {line}" if line else name
        raise _wrong(f"{where}: this is no Python ({error})") from error
    there = {
        n.name: n
        for n in tree.body
        if isinstance(n, ast.FunctionDef) and n.name in PROGRAM_FUNCTIONS
    }
    imported = _imported(tree)
    missing = [n for n in PROGRAM_FUNCTIONS[:2] if n not in there and n not in imported]
    if missing:
        names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        hint = nearest(missing[0], names) or f"define {missing[0]}()"
        raise _wrong(f"{name} has no {' and no '.join(missing)}", hint)
    return {a.name: a for function in there.values() for a in _arguments(function)}


def checked(arguments: Mapping[str, Any], file: ConfigFile) -> list[Problem]:
    """What is wrong with arguments for a file: unknown, of another type, or not given."""
    known = file.arguments
    problems = []
    for name, value in arguments.items():
        if name in FILLED:
            continue
        argument = known.get(name)
        if argument is None:
            hint = nearest(name, known) or f"{file.name} takes: {', '.join(known) or 'none'}"
            problems.append(Problem(name, "neither the updater nor the file takes it", hint))
        elif not _fits(value, argument):
            kinds = " or ".join(kind.__name__ for kind in argument.kinds)
            message = f"{argument.function} wants {kinds}, not {value!r:.60}"
            problems.append(Problem(name, message))
    problems += [
        Problem(name, f"{argument.function} of {file.name} needs it", "give it in config_space")
        for name, argument in known.items()
        if argument.needed and name not in arguments and name not in FILLED
    ]
    return problems


def _fits(value: Any, argument: Argument) -> bool:
    if value is None:
        return argument.optional or not argument.kinds
    if not argument.kinds:
        return True
    if isinstance(value, bool) and bool not in argument.kinds:
        return False
    return isinstance(value, argument.kinds)


def _arguments(function: ast.FunctionDef) -> Iterator[Argument]:
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    without = len(plain) - len(given.defaults)
    for i, parameter in enumerate(plain):
        yield _argument(parameter, function.name, needed=i < without)
    for parameter, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        yield _argument(parameter, function.name, needed=default is None)


def _argument(parameter: ast.arg, function: str, *, needed: bool) -> Argument:
    kinds, optional = _kinds(parameter.annotation)
    return Argument(parameter.arg, function, kinds, optional, needed)


def _kinds(annotation: ast.expr | None) -> tuple[tuple[type, ...], bool]:
    """The types that an annotation names, and whether None is one; () where it names others."""
    if annotation is None:
        return (), True
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return (), True
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _kinds(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _either([annotation.left, annotation.right])
    if isinstance(annotation, ast.Subscript):
        name = _name(annotation.value)
        if name == "Optional":
            return _kinds(annotation.slice)[0], True
        if name == "Union" and isinstance(annotation.slice, ast.Tuple):
            return _either(annotation.slice.elts)
        return _KINDS.get(name, ()), False
    kinds = _KINDS.get(_name(annotation), ())
    return kinds, not kinds


def _either(options: list[ast.expr]) -> tuple[tuple[type, ...], bool]:
    found = [_kinds(option) for option in options]
    nothing = [_is_none(option) for option in options]
    kinds = [k for k, none in zip(found, nothing, strict=True) if not none]
    if any(not k for k, _ in kinds):
        return (), True  # one of them is a type of the file's own
    return tuple(t for k, _ in kinds for t in k), any(nothing) or any(o for _, o in kinds)


def _is_none(annotation: ast.expr) -> bool:
    return isinstance(annotation, ast.Constant) and annotation.value is None


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _imported(tree: ast.Module) -> set[str]:
    """Names that imports and assignments at the top of the file bring."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _wrong(message: str, hint: str | None = None) -> SpecError:
    return SpecError([Problem("config_file", message, hint)])
