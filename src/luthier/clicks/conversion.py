"""From sessions to training inputs: who is positive, who negative, and how far to trust it.

A click makes an item a positive of its session; what was shown and not clicked are negatives.
Sessions without a click are *irrelevant*: used (``not_irrelevant_only=False``), their items are
negatives of a session that has clicks, of the same query where there is one.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from luthier.batches.arithmetic import derive, numbers
from luthier.clicks.confidence import ConfidenceCalculator, dummy_confidences
from luthier.clicks.sessions import Bools, Floats, Ints, Sessions
from luthier.errors import DataError

Negatives = Literal["all", "skip_above"]


@dataclass(frozen=True)
class Pairs:
    """Which should rank above which: impressions, by number.

    positive, negative: int64 [p]. confidence: float64 [p], the less of the two. of_irrelevant:
    bool [p], the negative is of a session without a click: another search, perhaps another query.
    """

    positive: Ints
    negative: Ints
    confidence: Floats
    of_irrelevant: Bools

    def __len__(self) -> int:
        return len(self.positive)

    def take(self, rows: Ints | Bools) -> Pairs:
        """These pairs in this order."""
        return Pairs(
            self.positive[rows], self.negative[rows], self.confidence[rows],
            self.of_irrelevant[rows],
        )  # fmt: skip

    def differences(self, scores: Floats) -> Floats:
        """score(positive) - score(negative), [p], of the scores of all impressions, [m]."""
        return scores[self.positive] - scores[self.negative]


@dataclass(frozen=True)
class Inputs:
    """Training inputs of sessions.

    relevance: float64 [m], 0 where not clicked. confidence: float64 [m]. kept: bool [m], the
    impressions that take part. irrelevant: bool [n], sessions without a click.
    """

    sessions: Sessions
    relevance: Floats
    confidence: Floats
    kept: Bools
    irrelevant: Bools
    seed: int

    def rows(self, session: int) -> dict[str, Any]:
        """One session's input: query, items, relevance, confidence, is_irrelevant."""
        starts = self.sessions.starts
        at = np.arange(starts[session], starts[session + 1])
        at = at[self.kept[at]]
        names = self.sessions.item_names
        return {
            "session": self.sessions.ids[session],
            "query": self.sessions.query_texts[self.sessions.query_codes[session]],
            "items": [names[code] for code in self.sessions.item_codes[at]],
            "positions": self.sessions.positions[at].tolist(),
            "relevance": self.relevance[at].tolist(),
            "confidence": self.confidence[at].tolist(),
            "is_irrelevant": bool(self.irrelevant[session]),
        }

    def weighted(self, weights: Floats) -> Inputs:
        """With the confidences times these weights [m], those of propensities for one."""
        return replace(self, confidence=self.confidence * weights)

    def of_catalogue(self, catalogue: Container[str]) -> Inputs:
        """Without items that the catalogue lacks."""
        there = self.sessions.items_of(catalogue)
        return replace(self, kept=self.kept & there[self.sessions.item_codes])

    def pairs(self) -> Pairs:
        """All pairs of a positive and a negative, by session."""
        owner, kept = self.sessions.owner, self.kept
        positive = np.flatnonzero(kept & (self.relevance > 0))
        negative = np.flatnonzero(kept & (self.relevance == 0))
        at = partners(self, owner[positive])
        with_whom = np.where(self.irrelevant, at, np.arange(len(at)))[owner[negative]]
        negative, with_whom = negative[with_whom >= 0], with_whom[with_whom >= 0]
        order = np.argsort(with_whom, kind="stable")
        negative, with_whom = negative[order], with_whom[order]
        first = np.searchsorted(with_whom, owner[positive])
        count = np.searchsorted(with_whom, owner[positive], "right") - first
        left = np.repeat(positive, count)
        within = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
        right = negative[np.repeat(first, count) + within]
        confidence = np.minimum(self.confidence[left], self.confidence[right])
        return Pairs(left, right, confidence, self.irrelevant[owner[right]])


def partners(inputs: Inputs, clicked: Ints) -> Ints:
    """For each irrelevant session one with clicks: of the same query where there is one, else
    any, drawn by the seed; -1 where no session has clicks."""
    sessions = inputs.sessions
    having = np.unique(clicked)
    if not len(having):
        return np.full(len(sessions), -1)
    order = having[np.argsort(sessions.query_codes[having], kind="stable")]
    codes = sessions.query_codes[order]
    first = np.searchsorted(codes, sessions.query_codes)
    count = np.searchsorted(codes, sessions.query_codes, "right") - first
    first, count = np.where(count > 0, first, 0), np.where(count > 0, count, len(order))
    draws = numbers(derive("partners", inputs.seed), len(sessions)) % count.astype(np.uint64)
    found: Ints = order[first + draws.astype(np.int64)]
    return found


def convert(
    sessions: Sessions, *, not_irrelevant_only: bool = True, negative_downsampling: float = 1.0,
    negatives: Negatives = "all", confidence: ConfidenceCalculator = dummy_confidences,
    grades: Mapping[str, float] | None = None, short_dwell_s: float = 0.0, seed: int = 0,
    epoch: int = 0,
) -> Inputs:  # fmt: skip
    """Sessions as training inputs.

    not_irrelevant_only: leave sessions without a click out. negative_downsampling: the share f
    in (0, 1] of N non-clicks that a session keeps, max(1, round(f N)), drawn by seed and epoch.
    negatives: "skip_above" takes only those above the last click, which were surely seen
    (Joachims, KDD 2002). confidence: of ``confidence``, or another of its shape. grades,
    short_dwell_s: see ``Sessions.grades``. Raises DataError.
    """
    if not 0 < negative_downsampling <= 1:
        message = f"negative_downsampling is {negative_downsampling}"
        raise DataError(message, hint="a share above 0 and up to 1")
    if negatives not in ("all", "skip_above"):
        raise DataError(f"negatives is {negatives!r}", hint="all or skip_above")
    relevance = sessions.grades(grades, short_dwell_s=short_dwell_s)
    relevance[np.repeat(sessions.irrelevant, np.diff(sessions.starts))] = 0.0
    clicked = relevance > 0
    irrelevant = np.ones(len(sessions), bool)
    irrelevant[sessions.owner[clicked]] = False
    kept = clicked | _sampled(sessions, ~clicked, negative_downsampling, seed, epoch, negatives)
    if not_irrelevant_only:
        kept &= ~irrelevant[sessions.owner]
    trust = confidence(sessions.scores, clicked.astype(np.float64), sessions.starts)
    if len(trust) != len(relevance):
        raise DataError(f"{len(trust)} confidences of {len(relevance)} results")
    return Inputs(sessions, relevance, np.asarray(trust, np.float64), kept, irrelevant, seed)


def _sampled(
    sessions: Sessions, unclicked: Bools, share: float, seed: int, epoch: int, which: Negatives
) -> Bools:
    """Which of those not clicked are kept."""
    if which == "skip_above":
        unclicked = unclicked & skipped_above(sessions, ~unclicked)
    if share == 1:
        return unclicked
    at = np.flatnonzero(unclicked)
    owner = sessions.owner[at]
    total = np.bincount(owner, minlength=len(sessions))
    wanted = np.where(total > 0, np.maximum(1, np.rint(share * total)), 0).astype(np.int64)
    order = np.lexsort((numbers(derive("negatives", seed, epoch), at), owner))
    owner = owner[order]
    ordinal = np.arange(len(owner)) - np.searchsorted(owner, owner)
    kept = np.zeros(len(unclicked), bool)
    kept[at[order[ordinal < wanted[owner]]]] = True
    return kept


def skipped_above(sessions: Sessions, clicked: Bools) -> Bools:
    """Impressions above the last click of their session, bool [m]; all of a session without a
    click. Joachims, *Optimizing search engines using clickthrough data*, KDD 2002: who clicks
    at a position has looked at what is above it."""
    last = np.zeros(len(sessions), np.int64)
    np.maximum.at(last, sessions.owner[clicked], sessions.positions[clicked])
    last[last == 0] = np.iinfo(np.int64).max
    found: Bools = sessions.positions < last[sessions.owner]
    return found


def within_thresholds(
    positive: Any, negative: Any, min_abs_difference: float = 0.0, max_abs_difference: float = 1.0
) -> Any:
    """Which pairs are neither too soft nor too hard: min < abs(positive - negative) < max, of
    their scores, arrays or tensors [p]. When none is, the loss is a zero."""
    apart = abs(positive - negative)
    return (apart > min_abs_difference) & (apart < max_abs_difference)
