"""What the drift gate was given, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from luthier.errors import DataError, nearest
from luthier.evaluation.two_sample import Array

FEATURE_TESTS = ("mmd", "ks", "classifier")
TESTS = (*FEATURE_TESTS, "labels")

#: With fewer rows on a side nothing can be told: 5 and 5 rows have 252 splits.
FEWEST_ROWS = 5

#: Of the reference, and of the new rows where they are known.
Pair = tuple[Sequence[str], Sequence[str] | None]
_SIDES = ("reference", "new rows")


@dataclass(frozen=True)
class Given:
    """features: [n, d] and [m, d]. quality: [n] and [m]. Each None where it was not given."""

    features: tuple[Array, Array] | None
    labels: Pair | None
    predictions: Pair | None
    quality: tuple[Array, Array] | None

    @property
    def comparable_labels(self) -> tuple[str, tuple[Sequence[str], Sequence[str]]]:
        """``labels`` of both sides, or failing that ``predictions``. Raises DataError."""
        for name, pair in (("labels", self.labels), ("predictions", self.predictions)):
            if pair is not None and pair[1] is not None:
                return name, (pair[0], pair[1])
        hint = "labels of both sides, or predictions of both"
        raise DataError("the test of labels has no labels to compare", hint=hint)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels, or predictions, of both sides."""
        pairs = (self.labels, self.predictions)
        return any(pair is not None and pair[1] is not None for pair in pairs)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows each side has."""
        for pair in (self.labels, self.predictions, self.quality, self.features):
            if pair is not None and pair[1] is not None:
                return len(pair[0]), len(pair[1])
        return 0, 0


def given(
    reference: ArrayLike | None, new: ArrayLike | None, labels: Pair | None,
    predictions: Pair | None, quality: tuple[ArrayLike, ArrayLike] | None,
) -> Given:  # fmt: skip
    """The data of ``detect``, as arrays. Raises DataError; see there."""
    features = _features(reference, new)
    scores = None
    if quality is not None:
        scores = _vector(quality[0], _SIDES[0]), _vector(quality[1], _SIDES[1])
    elif labels is not None and predictions is not None:
        old = _agreement(labels[0], predictions[0], _SIDES[0])
        if labels[1] is not None and predictions[1] is not None:
            scores = old, _agreement(labels[1], predictions[1], _SIDES[1])
    found = Given(features, labels, predictions, scores)
    for at, side in enumerate(_SIDES):
        _check_lengths(found, at, side)
    return found


def _check_lengths(data: Given, at: int, side: str) -> None:
    """What is given of a side is of enough rows, and labels and their kin are of the same."""
    counts: dict[str, int] = {}
    for name in ("features", "labels", "predictions", "quality"):
        pair = getattr(data, name)
        if pair is None or pair[at] is None:
            continue
        if len(pair[at]) < FEWEST_ROWS:
            message = f"{len(pair[at])} rows are too few to tell anything"
            raise DataError(message, file=side, hint=f"at least {FEWEST_ROWS}")
        if name != "features":  # which may be those of a sample
            counts[name] = len(pair[at])
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise DataError(f"not as many of each: {listed}", file=side)


def check_numbers(
    alpha: float, permutations: int, max_rows: int, most_off: float, most_fall: float
) -> None:
    """Raises DataError for an option of ``detect`` outside of its range."""
    if not 0 < alpha < 1:
        raise DataError(f"alpha is a probability between 0 and 1, not {alpha}", hint="0.05")
    if permutations < 19:
        raise DataError(f"{permutations} permutations are too few", hint="1000; at least 19")
    if max_rows < FEWEST_ROWS:
        raise DataError(f"max_rows={max_rows} is too few", hint=f"at least {FEWEST_ROWS}")
    if not 0 < most_off <= 1:
        raise DataError(f"most_off is a share above 0 and up to 1, not {most_off}", hint="0.5")
    if not most_fall >= 0:
        raise DataError(f"most_fall is 0 or more, not {most_fall}", hint="0.1")


def check_tests(tests: Sequence[str] | None) -> None:
    """Raises DataError for a test that nobody knows."""
    for name in tests or ():
        if name not in TESTS:
            hint = nearest(name, TESTS) or f"known: {', '.join(TESTS)}"
            raise DataError(f"no test is called '{name}'", hint=hint)


def wanted(tests: Sequence[str] | None, data: Given) -> list[str]:
    """The tests to make, each once, in the order asked. Raises DataError for impossible ones."""
    if tests is None:
        tests = ["mmd"] * (data.features is not None) + ["labels"] * data.has_labels
    check_tests(tests)
    for name in tests:
        if name == "labels":
            _ = data.comparable_labels
        elif data.features is None:
            raise DataError(f"the test {name} needs features", hint="of reference and new rows")
    if not tests and data.quality is None:
        hint = "features, labels or predictions of both sides"
        raise DataError("there is nothing to compare", hint=hint)
    return list(dict.fromkeys(tests))


def _features(reference: ArrayLike | None, new: ArrayLike | None) -> tuple[Array, Array] | None:
    if reference is None and new is None:
        return None
    if reference is None or new is None:
        raise DataError("features of one side only cannot be compared", hint="give both or none")
    old, fresh = matrix(reference, _SIDES[0]), matrix(new, _SIDES[1])
    if old.shape[1] != fresh.shape[1]:
        raise DataError(
            f"the reference has {old.shape[1]} features a row, the new rows {fresh.shape[1]}",
            hint="make both by the same model",
        )
    return old, fresh


def matrix(values: ArrayLike, side: str) -> Array:
    """Finite float64 [rows, width]. Raises DataError that names the row and the column."""
    try:
        found = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError("features are numbers, as many in each row", file=side) from None
    if found.ndim == 1:
        found = found[:, None]
    if found.ndim != 2 or found.shape[1] == 0:
        raise DataError(f"features are [rows, width], not {list(found.shape)}", file=side)
    wrong = np.argwhere(~np.isfinite(found))
    if len(wrong):
        row, column = (int(i) + 1 for i in wrong[0])
        value = found[row - 1, column - 1]
        raise DataError(f"{value} is no finite number", file=side, row=row, column=column)
    return found


def _vector(values: ArrayLike, side: str) -> Array:
    found = matrix(values, side)
    if found.shape[1] != 1:
        raise DataError("quality is one number a row", file=side)
    return found[:, 0]


def _agreement(labels: Sequence[str], predictions: Sequence[str], side: str) -> Array:
    """1 where prediction and label are the same, else 0."""
    if len(labels) != len(predictions):
        raise DataError(f"{len(labels)} labels, but {len(predictions)} predictions", file=side)
    pairs = zip(labels, predictions, strict=True)
    return np.array([str(a) == str(b) for a, b in pairs], dtype=np.float64)
