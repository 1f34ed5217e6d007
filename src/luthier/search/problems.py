"""What is wrong with a search, as far as it shows before the first trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from luthier.errors import Problem, SpecError
from luthier.search.constraints import read_constraints
from luthier.search.results import default_metric
from luthier.search.space import Point, Space, applied, read_space
from luthier.spec import JobSpec

#: Points that are looked at: the middle one, and one for each choice.
_LOOKED_AT = 60
#: Points of a grid that somebody may have meant.
_MOST_OF_A_GRID = 10_000


def problems(spec: JobSpec, check: Callable[[JobSpec], list[Problem]]) -> list[Problem]:
    """Problems of a search. check: those of a plain job; it is asked about the middle of the
    space, and about every choice."""
    search = spec.search
    assert search is not None
    found: list[Problem] = []
    try:
        space = read_space(search.space)
        read_constraints(search.constraints)
        if not search.metrics:
            default_metric(spec)
        for values in search.initial:
            space.point_of(values)
    except SpecError as error:
        return list(error.problems)
    if search.algorithm == "cmaes" and not any(
        p.count is None for p in space.parameters().values()
    ):
        hint = "use tpe, which knows choices"
        found.append(Problem("search.algorithm", "cmaes needs ranges of numbers", hint))
    if search.algorithm == "grid" and search.max_trials is None:
        points = sum(1 for _, _ in zip(space.grid(), range(_MOST_OF_A_GRID + 1), strict=False))
        if points > _MOST_OF_A_GRID:
            found.append(Problem("search.algorithm", "the grid has more than 10,000 points",
                                 "give max_trials, or fewer choices"))  # fmt: skip
    if "training.num_train_epochs" in space.paths() and search.pruner is not None:
        hint = "search with max epochs and let the pruner stop, or leave the pruner out"
        message = "trials of unlike length cannot be compared at a rung"
        found.append(Problem("search.space.training.num_train_epochs", message, hint))
    return found + _of_points(spec, space, check)


def _of_points(
    spec: JobSpec, space: Space, check: Callable[[JobSpec], list[Problem]]
) -> list[Problem]:
    found: dict[str, Problem] = {}
    for point, name in _points(space):
        try:
            values = space.values(point)
            wrong = check(applied(spec, values))
        except SpecError as error:
            wrong = list(error.problems)
        for problem in wrong:
            field = problem.field
            if name is not None and field not in values:
                field = f"{name}: {field}"
            found.setdefault(str(problem), Problem(field, problem.message, problem.hint))
    return list(found.values())


def _points(space: Space) -> Iterator[tuple[Point, str | None]]:
    middle = space.draw(lambda p: _chosen(p.name, p.count, {}, space))[0]
    yield middle, None
    count = 0
    for parameter in space.parameters().values():
        for index in range(1, parameter.count or 0):
            count += 1
            if count > _LOOKED_AT:
                return
            choice = {parameter.name: index}
            yield _with(space, choice), parameter.name


def _with(space: Space, choice: Mapping[str, int]) -> Point:
    """The middle point, but for one choice and the branches that lead to it."""
    name = next(iter(choice))
    way: dict[str, int] = dict(choice)
    while "/" in name:
        name = name.rpartition("/")[0]
        branch, _, index = name.rpartition(".")
        way[branch] = int(index)
        name = branch
    return space.draw(lambda p: _chosen(p.name, p.count, way, space))[0]


def _chosen(name: str, count: int | None, choice: Mapping[str, int], space: Space) -> object:
    if name in choice:
        return choice[name]
    if count is not None:
        return 0
    from luthier.search.space import middle

    return middle(space.parameters()[name])
