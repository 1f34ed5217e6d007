"""``examples_order`` as a curriculum: which pairs each phase of training sees, in order.

How soft or hard a pair is follows from the scores of the model that training starts from. Soft
pairs are apart by little, hard ones by much, as in the reference's thresholds; thirds of all
pairs, so that no phase is empty for lack of a good threshold.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

import numpy as np

from luthier.clicks.conversion import Pairs
from luthier.clicks.sessions import Floats, Ints
from luthier.errors import DataError


class ExamplesType(enum.IntEnum):
    """Which pairs: *positive* of sessions with clicks, *negative* with items of sessions without
    (there are some where ``not_irrelevant_only`` is False); a third by difference, or all."""

    medium_all = 1
    hard_all = 2
    soft_all = 3
    medium_positive = 4
    hard_positive = 5
    soft_positive = 6
    medium_negative = 7
    hard_negative = 8
    soft_negative = 9
    negative_only = 10
    all_examples = 11


_THIRD = {"soft": 0, "medium": 1, "hard": 2}


def examples_order(values: Iterable[int | str | ExamplesType]) -> tuple[ExamplesType, ...]:
    """Types by number or name; all examples where there are none. Raises DataError."""
    found = []
    for value in values:
        try:
            found.append(
                ExamplesType[value] if isinstance(value, str) else ExamplesType(value)
            )  # fmt: skip
        except (KeyError, ValueError):
            known = ", ".join(f"{t.value} {t.name}" for t in ExamplesType)
            raise DataError(f"no type of examples is {value!r}", hint=f"known: {known}") from None
    return tuple(found) or (ExamplesType.all_examples,)


def phases(
    pairs: Pairs, differences: Floats, order: Iterable[int | str | ExamplesType]
) -> list[Ints]:
    """The rows of ``pairs`` of each phase, in the order of training.

    differences: score(positive) - score(negative) of the starting model, [p]. Raises DataError:
    a phase without a pair, which would train on nothing.
    """
    if len(differences) != len(pairs):
        raise DataError(f"{len(differences)} differences of {len(pairs)} pairs")
    if np.isnan(differences).any():
        raise DataError("a difference is not a number", hint="score all items with the model")
    types = examples_order(order)
    third = _thirds(np.abs(differences))
    found = [_rows(pairs, third, kind) for kind in types]
    for kind, rows in zip(types, found, strict=True):
        if not len(rows):
            raise DataError(f"no pair for the phase '{kind.name}'", hint=_why_none(kind))
    return found


def _thirds(sizes: Floats) -> Ints:
    """0, 1 or 2: which third each is in by size; equal ones by their order."""
    third = np.empty(len(sizes), np.int64)
    third[np.argsort(sizes, kind="stable")] = np.arange(len(sizes)) * 3 // max(len(sizes), 1)
    return third


def _rows(pairs: Pairs, third: Ints, kind: ExamplesType) -> Ints:
    name = kind.name
    mask = np.ones(len(pairs), bool)
    if "positive" in name:
        mask &= ~pairs.of_irrelevant
    if "negative" in name:
        mask &= pairs.of_irrelevant
    size = _THIRD.get(name.partition("_")[0])
    if size is not None:
        mask &= third == size
    return np.flatnonzero(mask)


def _why_none(kind: ExamplesType) -> str:
    if "negative" in kind.name:
        return "pairs with sessions without a click need not_irrelevant_only=False"
    return "there are too few pairs, or none of this kind in that third"


def describe(order: Sequence[Ints]) -> list[int]:
    """How many pairs each phase has."""
    return [len(rows) for rows in order]
