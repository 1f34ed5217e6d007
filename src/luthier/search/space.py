"""The space of a search: what each field of a job can be. Imports neither torch nor optuna.

As JSON, a mapping of dotted paths to nodes. A node is a range (``luthier.tuning.domains``), one
fixed value, or branches: a choice between mappings of the same kind, so that what is searched
below one of them exists only there.

    {"training.learning_rate": {"type": "float", "lower": 1e-5, "upper": 1e-3, "log": true},
     "training.seed": {"type": "fixed", "value": 1},
     "optimizer": {"type": "branches", "cases": [
        {"training.optim": {"type": "fixed", "value": "SGD"},
         "training.optim_args.momentum": {"type": "float", "lower": 0.0, "upper": 0.99}},
        {"training.optim": {"type": "fixed", "value": "Adam"}}]}}

What is drawn is a point: a number or the index of a category for each parameter that exists in
it. A parameter has the path as its name, below branches with the way there: ``optimizer.0/…``.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.spec import JobSpec, leaves, parse_spec
from luthier.tuning.domains import Categorical, Domain, from_json, to_json

#: Values of a grid for a range of numbers without a step.
GRID_VALUES = 5

Point = dict[str, Any]  # parameter → a number, or the index of a category or branch
Values = dict[str, Any]  # dotted path → the value of that field
Draw = Callable[["Parameter"], Any]


@dataclass(frozen=True)
class Fixed:
    """A value that does not vary."""

    value: Any


@dataclass(frozen=True)
class Branches:
    """A choice between spaces."""

    cases: tuple[Space, ...]

    def chosen_by(self, values: Mapping[str, Any]) -> int:
        """The case that has the values that are told. Raises SpecError where none has."""

        def fixed(case: Space) -> dict[str, Any]:
            return {p: n.value for p, n in case.nodes if isinstance(n, Fixed)}

        for index, case in enumerate(self.cases):
            if all(values[p] == v for p, v in fixed(case).items() if p in values):
                return index
        told = {p: values[p] for case in self.cases for p in fixed(case) if p in values}
        message = f"none of the choices has {told}"
        raise SpecError([Problem(next(iter(told)), message)])


@dataclass(frozen=True)
class Parameter:
    """What is drawn by name: from a range, or which of several (categories, branches)."""

    name: str
    domain: Domain | None  # None: one of ``count`` branches
    count: int | None  # of categories or branches; None for numbers

    def __contains__(self, value: object) -> bool:
        if self.count is not None:
            return isinstance(value, int) and 0 <= value < self.count
        assert self.domain is not None
        return value in self.domain


@dataclass(frozen=True)
class Space:
    """Paths, and what each can be."""

    nodes: tuple[tuple[str, Domain | Fixed | Branches], ...]

    def draw(self, draw: Draw, way: str = "") -> tuple[Point, Values]:
        """A point, each parameter asked of ``draw`` in a fixed order, and what it means."""
        point: Point = {}
        values: Values = {}
        for path, node in self.nodes:
            name = way + path
            if isinstance(node, Fixed):
                values[path] = node.value
            elif isinstance(node, Branches):
                index = draw(Parameter(name, None, len(node.cases)))
                inner, more = node.cases[index].draw(draw, f"{name}.{index}/")
                point |= {name: index, **inner}
                values |= more
            else:
                many = len(node.categories) if isinstance(node, Categorical) else None
                drawn = draw(Parameter(name, node, many))
                point[name] = drawn
                values[path] = node.categories[drawn] if isinstance(node, Categorical) else drawn
        return point, values

    def values(self, point: Point) -> Values:
        """What a point means. Raises SpecError where it has not all that it needs."""

        def given(parameter: Parameter) -> Any:
            if parameter.name not in point:
                raise SpecError([Problem(parameter.name, "is missing in this point of the search")])
            value = point[parameter.name]
            if value not in parameter:
                raise SpecError([Problem(parameter.name, f"cannot be {value!r} in this search")])
            return value

        return self.draw(given)[1]

    def sample(self, seed: int) -> Point:
        """A point drawn at random."""
        rng = random.Random(seed)
        return self.draw(lambda p: _drawn(p, rng))[0]

    def parameters(self) -> dict[str, Parameter]:
        """All parameters, those of every branch."""
        found: dict[str, Parameter] = {}
        for point in self._corners():
            found |= point
        return found

    def point_of(self, values: Mapping[str, Any]) -> Point:
        """The point with these values; what is not told is the middle of its range, or the
        first of its choices. Raises SpecError for a value that the space has not."""
        taken: set[str] = set()
        point = self._point_of(values, taken, "")
        if unknown := sorted(set(values) - taken):
            known = self.paths()
            raise SpecError([Problem(unknown[0], "is not searched", nearest(unknown[0], known))])
        return point

    def _point_of(self, values: Mapping[str, Any], taken: set[str], way: str) -> Point:
        point: Point = {}
        for path, node in self.nodes:
            if path in values:
                taken.add(path)
            if isinstance(node, Branches):
                index = node.chosen_by(values)
                point[way + path] = index
                point |= node.cases[index]._point_of(values, taken, f"{way}{path}.{index}/")
            elif not isinstance(node, Fixed):
                many = len(node.categories) if isinstance(node, Categorical) else None
                parameter = Parameter(way + path, node, many)
                point[way + path] = (
                    _place(path, node, values[path]) if path in values else middle(parameter)
                )
        return point

    def paths(self) -> set[str]:
        """Every path that some point sets."""
        found: set[str] = set()
        for path, node in self.nodes:
            if isinstance(node, Branches):
                for case in node.cases:
                    found |= case.paths()
            else:
                found.add(path)
        return found

    def grid(self, way: str = "") -> Iterator[Point]:
        """Every point of a grid: all choices, and evenly spaced values of each range."""
        for path, node in self.nodes:
            if isinstance(node, Fixed):
                continue
            name = way + path
            rest = Space(tuple(n for n in self.nodes if n[0] != path and _after(self, n[0], path)))
            if isinstance(node, Branches):
                for index, case in enumerate(node.cases):
                    heads = case.grid(f"{name}.{index}/")
                    for head, tail in itertools.product(list(heads), list(rest.grid(way))):
                        yield {name: index, **head, **tail}
            else:
                values = _grid_values(node)
                for value, tail in itertools.product(values, list(rest.grid(way))):
                    yield {name: value, **tail}
            return
        yield {}

    def _corners(self, way: str = "") -> Iterator[dict[str, Parameter]]:
        for path, node in self.nodes:
            name = way + path
            if isinstance(node, Branches):
                yield {name: Parameter(name, None, len(node.cases))}
                for index, case in enumerate(node.cases):
                    yield from case._corners(f"{name}.{index}/")
            elif not isinstance(node, Fixed):
                many = len(node.categories) if isinstance(node, Categorical) else None
                yield {name: Parameter(name, node, many)}


def _after(space: Space, path: str, than: str) -> bool:
    order = [name for name, _ in space.nodes]
    return order.index(path) > order.index(than)


def _grid_values(node: Domain) -> list[Any]:
    if isinstance(node, Categorical):
        return list(range(len(node.categories)))
    if isinstance(node.lower, int) and node.upper - node.lower < GRID_VALUES * (node.step or 1):
        return list(range(node.lower, int(node.upper) + 1, int(node.step or 1)))
    if node.step is not None and not node.log and not isinstance(node.lower, int):
        count = int((node.upper - node.lower) / node.step + 1e-9) + 1
        return [node.lower + node.step * i for i in range(count)]
    middle = [(i + 0.5) / GRID_VALUES for i in range(GRID_VALUES)]
    return list(dict.fromkeys(node.sample(_Share(share)) for share in middle))


@dataclass
class _Share:
    """A generator that draws one number."""

    share: float

    def random(self) -> float:
        """That number."""
        return self.share


def _drawn(parameter: Parameter, rng: random.Random) -> Any:
    if parameter.count is not None:
        return rng.randrange(parameter.count)
    assert parameter.domain is not None
    return parameter.domain.sample(rng)


def _place(path: str, domain: Domain, value: Any) -> Any:
    """What stands for a value in a point. Raises SpecError where the range has it not."""
    if value not in domain:
        raise SpecError([Problem(path, f"{value!r} is outside of its range or choices")])
    if not isinstance(domain, Categorical):
        return value
    return next(i for i, c in enumerate(domain.categories) if type(c) is type(value) and c == value)


def middle(parameter: Parameter) -> Any:
    """The first of choices, the middle of a range."""
    if parameter.count is not None:
        return 0
    assert parameter.domain is not None
    return parameter.domain.sample(_Share(0.5))


def read_space(data: Mapping[str, Any]) -> Space:
    """The space of its JSON form. Raises SpecError that names the parameter."""
    nodes, problems = [], []
    for path, node in data.items():
        try:
            nodes.append((path, _read_node(node)))
        except SpecError as error:
            problems += [Problem(path, p.message, p.hint) for p in error.problems]
    if problems:
        raise SpecError(problems)
    return Space(tuple(nodes))


def _read_node(node: Any) -> Domain | Fixed | Branches:
    if not isinstance(node, Mapping) or "type" not in node:
        raise SpecError([Problem("search", f"{node!r:.80} is no range", "{type: …}")])
    if node["type"] == "fixed":
        return Fixed(node.get("value"))
    if node["type"] == "branches":
        cases = node.get("cases")
        if not isinstance(cases, list) or not cases:
            raise SpecError([Problem("search", "branches need cases, a list of mappings")])
        return Branches(tuple(read_space(case) for case in cases))
    return from_json(dict(node))


def as_data(space: Space) -> dict[str, Any]:
    """The JSON form; the inverse of ``read_space``."""
    found: dict[str, Any] = {}
    for path, node in space.nodes:
        if isinstance(node, Fixed):
            found[path] = {"type": "fixed", "value": node.value}
        elif isinstance(node, Branches):
            found[path] = {"type": "branches", "cases": [as_data(case) for case in node.cases]}
        else:
            found[path] = to_json(node)
    return found


def applied(spec: JobSpec, values: Mapping[str, Any]) -> JobSpec:
    """The job with these values at these paths, and no search. Raises SpecError.

    A path can lead into options (``objective.loss_options.margin``), and to a callback by its
    kind (``callbacks.early_stopping.patience``).
    """
    data = spec.model_dump(mode="json")
    data["search"] = None
    data["update"]["output_state_url"] = None  # the best trial commits, once the search is over
    problems = []
    for path, value in values.items():
        problem = _put(data, path, value)
        problems += [problem] if problem else []
    if problems:
        raise SpecError(problems)
    return parse_spec(data)


def _put(data: dict[str, Any], path: str, value: Any) -> Problem | None:
    target: Any = data
    *groups, leaf = path.split(".")
    for depth, group in enumerate(groups):
        if isinstance(target, list):
            target = next((each for each in target if each.get("kind") == group), None)
        else:
            target = target.get(group)
        if not isinstance(target, dict | list):
            where = ".".join(groups[: depth + 1])
            return Problem(path, f"the job has no {where}", nearest(path, leaves()))
    free = len(groups) > 1 and groups[0] != "callbacks"  # within options, any name
    if not isinstance(target, dict) or (leaf not in target and not free):
        return Problem(path, "no such field of a job", nearest(path, leaves()))
    target[leaf] = value
    return None
