"""What earlier searches found out: their trials as knowledge, or their best as first points.

The second is RUSH's way (Zappella, Salinas, Archambeau 2021, A Resource-efficient Method for
Repeated HPO and NAS Problems): what was best on earlier data is tried first on the new.
"""

from __future__ import annotations

from collections.abc import Sequence

from luthier.errors import SpecError
from luthier.runs.connection import Home
from luthier.search.planner import Known
from luthier.search.space import Point, Space
from luthier.search.summary import Trial, read_trials
from luthier.spec.search import SearchSpec


def initial_points(
    home: Home, search: SearchSpec, space: Space, metrics: Sequence[str]
) -> list[Point]:
    """The points that are tried before any is asked for: those given, then the best of earlier
    searches, each once. What of those this space has not is left out."""
    found = [space.point_of(values) for values in search.initial]
    for search_id in search.warm_start if search.warm_start_top else ():
        for trial in best_of(home, search_id, search.warm_start_top, metrics):
            point = _fitting(space, trial)
            if point is not None:
                found.append(point)
    return [point for i, point in enumerate(found) if point not in found[:i]]


def known_trials(
    home: Home, search: SearchSpec, space: Space, metrics: Sequence[str]
) -> list[Known]:
    """The finished trials of earlier searches that are points of this space."""
    found: list[Known] = []
    for search_id in search.warm_start:
        for trial in read_trials(home, search_id):
            point = _fitting(space, trial)
            if point is None or trial.state != "complete":
                continue
            if trial.scores and all(name in trial.scores for name in metrics):
                scores = tuple(trial.scores[name] for name in metrics)
                found.append(Known(-1 - len(found), point, "complete", scores))
    return found


def best_of(home: Home, search_id: str, count: int, metrics: Sequence[str]) -> list[Trial]:
    """The best trials of a search, by its own first metric."""
    from luthier.search.summary import read_summary

    summary = read_summary(home, search_id)
    return summary.ranked()[:count]


def _fitting(space: Space, trial: Trial) -> Point | None:
    paths = space.paths()
    values = {path: value for path, value in trial.values.items() if path in paths}
    try:
        return space.point_of(values) if values else None
    except SpecError:
        return None
