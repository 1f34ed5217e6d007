"""Click models: how what is shown becomes clicks. They make logs, and say what logs mean.

With the attraction a of each result and its place k = 1 … K, all but the last click of::

    position-based   C_k = E_k A_k, P(E_k) = theta_k                        (Craswell et al. 2008)
    cascade          who looks goes down to the first click, and stops      (Craswell et al. 2008)
    dynamic Bayesian after a click satisfied with s, else goes on with gamma  (Chapelle, Zhang 2009)

Craswell, Zoeter, Taylor, Ramsey, *An experimental comparison of click position-bias models*, WSDM
2008. Chapelle, Zhang, *A dynamic Bayesian network click model for web search ranking*, WWW 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from luthier.clicks.chance import uniform
from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError, nearest


class ClickModel(Protocol):
    """What people do with lists. attraction: float64 [n, K] in [0, 1]; 0 where a list ends."""

    def probabilities(self, attraction: Floats) -> Floats:
        """P(click) of each result, [n, K], over all that others above may have led to."""

    def clicks(self, attraction: Floats, *key: object) -> Bools:
        """One draw of clicks, [n, K], for this key."""


@dataclass(frozen=True)
class PositionBased:
    """Results are looked at each by itself, with a chance that hangs on the position.

    examination: P(looked at) of positions 1 … K. ``eta_decay`` makes 1 / k^eta.
    """

    examination: tuple[float, ...]

    def __post_init__(self) -> None:
        _check("examination", *self.examination)

    @classmethod
    def eta_decay(cls, positions: int, eta: float = 1.0) -> PositionBased:
        """P(looked at) = 1 / k^eta, as in Joachims, Swaminathan and Schnabel (WSDM 2017)."""
        return cls(tuple(k**-eta for k in range(1, positions + 1)))

    def probabilities(self, attraction: Floats) -> Floats:
        return attraction * self._examined(attraction)

    def clicks(self, attraction: Floats, *key: object) -> Bools:
        drawn: Bools = uniform(attraction.shape, "position", *key) < self.probabilities(attraction)
        return drawn

    def _examined(self, attraction: Floats) -> Floats:
        if attraction.shape[1] > len(self.examination):
            message = f"{len(self.examination)} positions, and lists of {attraction.shape[1]}"
            raise DataError(message, hint="give each position its chance of being looked at")
        return np.array(self.examination[: attraction.shape[1]])


@dataclass(frozen=True)
class DynamicBayesian:
    """Results are looked at from the top; who is satisfied by a click stops.

    satisfaction: P(satisfied | clicked). perseverance: P(goes on | not satisfied), gamma.
    """

    satisfaction: float = 0.7
    perseverance: float = 0.9

    def __post_init__(self) -> None:
        _check("satisfaction", self.satisfaction)
        _check("perseverance", self.perseverance)

    def probabilities(self, attraction: Floats) -> Floats:
        goes_on = self.perseverance * (1 - attraction * self.satisfaction)
        before = np.cumprod(goes_on, axis=1)[:, :-1]
        examined = np.concatenate([np.ones((len(attraction), 1)), before], axis=1)
        found: Floats = attraction * examined[:, : attraction.shape[1]]
        return found

    def clicks(self, attraction: Floats, *key: object) -> Bools:
        attracted = uniform(attraction.shape, "attracted", *key) < attraction
        satisfied = uniform(attraction.shape, "satisfied", *key) < self.satisfaction
        leaves = uniform(attraction.shape, "leaves", *key) >= self.perseverance
        stops = (attracted & satisfied) | leaves
        stopped: Ints = np.cumsum(stops, axis=1) - stops  # above it
        found: Bools = attracted & (stopped == 0)
        return found


class Cascade(DynamicBayesian):
    """Results are looked at from the top, until the first click."""

    def __init__(self) -> None:
        super().__init__(satisfaction=1.0, perseverance=1.0)


def click_model(
    name: str, positions: int, *, eta: float = 1.0, satisfaction: float = 0.7,
    perseverance: float = 0.9,
) -> ClickModel:  # fmt: skip
    """A model by name: position, cascade or dbn. Raises DataError."""
    if name == "position":
        return PositionBased.eta_decay(positions, eta)
    if name == "cascade":
        return Cascade()
    if name == "dbn":
        return DynamicBayesian(satisfaction, perseverance)
    hint = nearest(name, ("position", "cascade", "dbn")) or "known: position, cascade, dbn"
    raise DataError(f"no click model is called '{name}'", hint=hint)


@dataclass(frozen=True)
class Attraction:
    """What a log says of query and item: codes int64 [c] of both, and estimates float64 [c].

    ``satisfaction`` is NaN where nothing was clicked. ``shown``: looks that the estimate is of.
    """

    queries: Ints
    items: Ints
    attraction: Floats
    satisfaction: Floats
    shown: Floats

    def relevance(self) -> Floats:
        """Attraction times satisfaction: it draws clicks, and holds what it promised."""
        return self.attraction * np.nan_to_num(self.satisfaction)


def simplified_dbn(sessions: Sessions, clicked: Bools, *, prior: float = 1.0) -> Attraction:
    """The dynamic Bayesian model with gamma = 1, in closed form (Chapelle and Zhang 2009, § 5.2).

    Down to the last click everything was looked at (the whole list where none was clicked)::

        attraction   = (clicks + prior)      / (looks + 2 prior)
        satisfaction = (last clicks + prior) / (clicks + 2 prior)

    prior: of a Beta distribution; 0 for the plain shares. The satisfaction is too high where
    lists are short: a click is also the last when nothing below it attracts.
    """
    last = np.zeros(len(sessions), np.int64)
    np.maximum.at(last, sessions.owner[clicked], sessions.positions[clicked])
    none = last == 0
    seen = none[sessions.owner] | (sessions.positions <= last[sessions.owner])
    is_last = clicked & (sessions.positions == last[sessions.owner])
    n_items = max(1, len(sessions.item_names))
    cells = sessions.query_codes[sessions.owner] * n_items + sessions.item_codes
    names, cell = np.unique(cells, return_inverse=True)
    looks, clicks, lasts = (
        np.bincount(cell, mask.astype(np.float64), len(names)).astype(np.float64)
        for mask in (seen, clicked, is_last)
    )
    with np.errstate(invalid="ignore"):
        attraction = (clicks + prior) / (looks + 2 * prior)
        satisfaction = (lasts + prior) / (clicks + 2 * prior)
    return Attraction(names // n_items, names % n_items, attraction, satisfaction, looks)


def _check(name: str, *values: float) -> None:
    if not values or not all(0 <= value <= 1 for value in values):
        raise DataError(f"{name} is a probability", hint="from 0 to 1")
