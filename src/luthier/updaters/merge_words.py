"""The options of merging weights, and what is wrong with them. Imports no torch."""

from __future__ import annotations

from typing import Any

from luthier.errors import Problem, nearest
from luthier.registry import Card
from luthier.spec import UpdateSpec

#: Options of each kind with their defaults; the classes in ``merging`` have the same.
MERGE_OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "wise-ft": {"points": 10},
    "ema": {"decay": 0.99},
    "soup": {"kind": "greedy", "ingredients": 8},
    "ties": {"density": 0.2, "scale": 1.0},
}


def merge_problems(update: UpdateSpec, card: Card) -> list[Problem]:
    """Everything that is wrong with how weights are to be merged."""
    known = MERGE_OPTIONS[update.merge]
    found = []
    for name, value in update.merge_options.items():
        if name not in known:
            hint = nearest(name, known) or f"it takes: {', '.join(known) or 'none'}"
            message = f"'{update.merge}' takes no option '{name}'"
            found.append(Problem(f"merge_options.{name}", message, hint))
            continue
        wrong = _wrong(name, value)
        if wrong:
            found.append(Problem(f"merge_options.{name}", f"{wrong}, not {value!r:.60}"))
    if update.merge in ("wise-ft", "ties") and card.facts.get("fresh"):
        message = f"'{update.merge}' mixes with the weights of before, and {card.name} has none"
        found.append(Problem("merge", message, "use 'ema' or 'soup'"))
    return found


def _wrong(name: str, value: Any) -> str | None:
    if name == "kind":
        return None if value in ("greedy", "uniform") else "is 'greedy' or 'uniform'"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is a number"
    if name in ("points", "ingredients"):
        return None if isinstance(value, int) and value >= 1 else "is a whole number from 1 on"
    if name == "scale":
        return None if value > 0 else "is more than 0"
    return None if 0 < value < 1 else "is between 0 and 1"
