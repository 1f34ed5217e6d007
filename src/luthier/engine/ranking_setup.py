"""What training on rankings has of its own: rates of both sides, and phases of pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.data.rankings import Rankings
from luthier.engine.control import Listener
from luthier.engine.device import Device
from luthier.engine.ranking_learner import RankingLearner
from luthier.errors import DataError
from luthier.objectives.lists import Phase
from luthier.registry import find
from luthier.spec import JobSpec, TrainingSpec

if TYPE_CHECKING:
    from luthier.engine.setup import Setup
    from luthier.objectives import Objective

#: The reference's types of examples by number: name, third by difference, of searches without a
#: click.
TYPES: dict[int, tuple[str, int | None, bool | None]] = {
    1: ("medium_all", 1, None),
    2: ("hard_all", 2, None),
    3: ("soft_all", 0, None),
    4: ("medium_positive", 1, False),
    5: ("hard_positive", 2, False),
    6: ("soft_positive", 0, False),
    7: ("medium_negative", 1, True),
    8: ("hard_negative", 2, True),
    9: ("soft_negative", 0, True),
    10: ("negative_only", None, True),
    11: ("all_examples", None, None),
}

#: Searches whose pairs are laid out together.
_TOGETHER = 20_000


def ranking_learner(
    spec: JobSpec, model: Any, objective: Objective, dataset: Rankings, device: Device
) -> RankingLearner:
    """The learner of rankings, as the spec's rates want it."""
    training = spec.training
    scale = 1.0
    if spec.model.towers == "shared" and training.query_learning_rate is not None:
        scale = training.query_learning_rate / training.learning_rate
    return RankingLearner(model, objective, dataset, device, query_scale=scale)


def shared_decay(spec: JobSpec) -> TrainingSpec:
    """The training's words where one model has both sides: what both would decay its weights by
    in a step, each with its own rate, as one decay. As they are where the queries have no words
    of their own."""
    training = spec.training
    rate, decay = training.query_learning_rate, training.query_weight_decay
    if spec.model.towers == "two" or (rate is None and decay is None):
        return training
    defaults = {option.name: option.default for option in find("optimizer", training.optim).options}
    if "weight_decay" not in defaults:
        return training
    items = training.optim_args.get("weight_decay", defaults["weight_decay"])
    rate = training.learning_rate if rate is None else rate
    both = rate * (items if decay is None else decay) + training.learning_rate * items
    options = {**training.optim_args, "weight_decay": both / training.learning_rate}
    return training.model_copy(update={"optim_args": options})


def use_phases(setup: Setup, tell: Listener) -> None:
    """Let the learner count the pairs of the phase that each step is in."""
    order = setup.spec.training.examples_order
    learner = setup.learner
    if not isinstance(learner, RankingLearner) or not order:
        return
    phases = phases_of(learner.dataset, order)
    names = ", ".join(TYPES[number][0] for number in order)
    tell("log", {"level": "info", "message": f"phases of training: {names}"})
    learner.phase = _at(setup, phases)


def _at(setup: Setup, phases: list[Phase | None]) -> Callable[[], Phase | None]:
    def phase() -> Phase | None:
        at = setup.position.done * len(phases) // max(1, setup.total_steps)
        return phases[min(at, len(phases) - 1)]

    return phase


def phases_of(dataset: Rankings, order: tuple[int, ...]) -> list[Phase | None]:
    """The phases of these types, by thirds of all pairs of the data set.

    Raises DataError: the data has no scores, or a phase no pair.
    """
    types = [TYPES[number] for number in order]
    if any(third is not None for _, third, _ in types) and not dataset.has("score"):
        raise DataError(
            "phases by difficulty need the starting model's scores",
            column="score",
            hint="give each row a list 'score', or use types 10 and 11",
        )
    apart, irrelevant = _pairs(dataset)
    ends = np.quantile(apart, [1 / 3, 2 / 3], method="lower") if len(apart) else np.zeros(2)
    borders = [-np.inf, float(ends[0]), float(ends[1]), np.inf]
    found: list[Phase | None] = []
    for name, third, of_irrelevant in types:
        low, high = (borders[third], borders[third + 1]) if third is not None else (-np.inf, np.inf)
        counted = (apart > low) & (apart <= high)
        if of_irrelevant is not None:
            counted &= irrelevant == of_irrelevant
        if not counted.any():
            hint = "pairs with searches without a click need the list 'irrelevant'"
            why = hint if of_irrelevant else "there are too few pairs, or none of this kind"
            raise DataError(f"no pair for the phase '{name}'", hint=why)
        whole = third is None and of_irrelevant is None
        found.append(None if whole else Phase(low, high, of_irrelevant))
    return found


def _pairs(dataset: Rankings) -> tuple[np.ndarray, np.ndarray]:
    """Of all pairs how far their scores are apart, and whether the worse is irrelevant."""
    parts = [(np.zeros(0), np.zeros(0, dtype=bool))]
    for start in range(0, len(dataset), _TOGETHER):
        shown = dataset.shown(np.arange(start, min(start + _TOGETHER, len(dataset))))
        sizes = np.bincount(shown.rows)
        first = np.cumsum(sizes) - sizes
        above = np.flatnonzero(shown.relevance > 0)
        count = sizes[shown.rows[above]]
        left = np.repeat(above, count)
        within = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
        right = np.repeat(first[shown.rows[above]], count) + within
        kept = shown.relevance[left] > shown.relevance[right]
        left, right = left[kept], right[kept]
        score = np.zeros(len(shown)) if shown.score is None else shown.score
        apart = np.zeros(len(shown), bool) if shown.irrelevant is None else shown.irrelevant
        parts.append((np.abs(score[left] - score[right]), apart[right]))
    apart, irrelevant = (np.concatenate(column) for column in zip(*parts, strict=True))
    return apart, irrelevant
