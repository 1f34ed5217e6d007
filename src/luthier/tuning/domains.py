"""Ranges for a search: what can be drawn, as frozen data with a JSON form. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from luthier.errors import Problem, SpecError, nearest


class Random(Protocol):
    """What draws: ``random.Random`` and numpy's ``Generator`` alike."""

    def random(self) -> float:
        """A number from 0 to below 1."""


def refused(message: str, hint: str | None = None) -> SpecError:
    """A range that cannot be."""
    return SpecError([Problem("config_space", message, hint)])


def _bounds(lower: Any, upper: Any, kind: Any, log: bool, step: float | None) -> None:
    for bound in (lower, upper):
        if isinstance(bound, bool) or not isinstance(bound, kind) or not math.isfinite(bound):
            what = "a whole number" if kind is int else "a number"
            raise refused(f"the bound {bound!r} is not {what}")
    if not lower <= upper:
        raise refused(f"the range from {lower} to {upper} is empty", "the lower bound comes first")
    if log and lower <= 0:
        raise refused(f"a logarithmic range cannot begin at {lower}", "begin above 0")
    if step is not None and (log or not step > 0):
        raise refused(f"a step of {step} cannot be", "a step is above 0, in a range without log")


@dataclass(frozen=True)
class Float:
    """A number from ``lower`` to ``upper``; log: even in its logarithm; step: on a grid."""

    lower: float
    upper: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        _bounds(self.lower, self.upper, (int, float), self.log, self.step)
        object.__setattr__(self, "lower", float(self.lower))
        object.__setattr__(self, "upper", float(self.upper))

    def sample(self, rng: Random) -> float:
        """One value."""
        share = rng.random()
        if self.step is not None:
            places = math.floor((self.upper - self.lower) / self.step + 1e-9)
            return min(self.lower + self.step * int(share * (places + 1)), self.upper)
        if self.log:
            low, high = math.log(self.lower), math.log(self.upper)
            return min(max(math.exp(low + share * (high - low)), self.lower), self.upper)
        return min(self.lower + share * (self.upper - self.lower), self.upper)

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.lower <= value <= self.upper  # type: ignore[operator]


@dataclass(frozen=True)
class Integer:
    """A whole number from ``lower`` to ``upper``, both included."""

    lower: int
    upper: int
    log: bool = False
    step: int = 1

    def __post_init__(self) -> None:
        _bounds(self.lower, self.upper, int, self.log, None if self.step == 1 else self.step)

    def sample(self, rng: Random) -> int:
        """One value."""
        share = rng.random()
        if self.log:
            # each whole number has the room between the halves on its sides
            low, high = math.log(self.lower - 0.5), math.log(self.upper + 0.5)
            found = round(math.exp(low + share * (high - low)))
            return min(max(found, self.lower), self.upper)
        places = (self.upper - self.lower) // self.step
        return self.lower + self.step * int(share * (places + 1))

    def __contains__(self, value: object) -> bool:
        number = isinstance(value, int) and not isinstance(value, bool)
        return number and self.lower <= value <= self.upper  # type: ignore[operator]


@dataclass(frozen=True)
class Categorical:
    """One of several values, in no order."""

    categories: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", tuple(self.categories))
        if not self.categories:
            raise refused("there is nothing to choose from", "choice([32, 64])")

    def sample(self, rng: Random) -> Any:
        """One value."""
        return self.categories[int(rng.random() * len(self.categories))]

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(each) and value == each for each in self.categories)


@dataclass(frozen=True)
class Ordinal(Categorical):
    """One of several values, neighbours of which are alike."""


Domain = Float | Integer | Categorical

_KINDS: dict[str, type[Float | Integer | Categorical]] = {
    "float": Float,
    "integer": Integer,
    "categorical": Categorical,
    "ordinal": Ordinal,
}


def uniform(lower: float, upper: float) -> Float:
    """Any number of a range is as likely as another.

    >>> uniform(0.001, 0.1)
    Float(lower=0.001, upper=0.1, log=False, step=None)
    """
    return Float(lower, upper)


def loguniform(lower: float, upper: float) -> Float:
    """Any power of a range, above 0, is as likely as another."""
    return Float(lower, upper, log=True)


def randint(lower: int, upper: int) -> Integer:
    """Whole numbers; the upper bound is included."""
    return Integer(lower, upper)


def lograndint(lower: int, upper: int) -> Integer:
    """Whole numbers above 0, by their logarithm; the upper bound is included."""
    return Integer(lower, upper, log=True)


def choice(categories: Sequence[Any]) -> Categorical:
    """One of these, in no order."""
    return Categorical(_listed(categories))


def ordinal(categories: Sequence[Any]) -> Ordinal:
    """One of these, neighbours of which are alike."""
    return Ordinal(_listed(categories))


def _listed(categories: Any) -> tuple[Any, ...]:
    if isinstance(categories, str) or not isinstance(categories, Sequence):
        raise refused(f"{categories!r} is no list to choose from", "choice([32, 64, 128])")
    return tuple(categories)


def to_json(domain: Domain) -> dict[str, Any]:
    """A range as JSON data.

    >>> to_json(choice(["SGD", "Adam"]))
    {'type': 'categorical', 'categories': ['SGD', 'Adam']}
    """
    kind = next(name for name, kind in _KINDS.items() if kind is type(domain))
    words = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(domain).items()}
    return {"type": kind, **words}


def from_json(data: dict[str, Any]) -> Domain:
    """The inverse of ``to_json``. Raises SpecError."""
    kind = _KINDS.get(data.get("type", ""))
    if kind is None:
        raise refused(f"there is no range of type {data.get('type')!r}", ", ".join(_KINDS))
    words = {name: value for name, value in data.items() if name != "type"}
    known = [field.name for field in fields(kind)]
    if unknown := [name for name in words if name not in known]:
        raise refused(f"a range has no '{unknown[0]}'", nearest(unknown[0], known))
    try:
        return kind(**words)
    except TypeError as error:
        raise refused(f"this is no range: {error}") from None
