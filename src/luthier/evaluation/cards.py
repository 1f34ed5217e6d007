"""The calculators that a job can name. Imports no torch."""

from __future__ import annotations

from luthier.registry import Card

CARDS: tuple[Card, ...] = (
    Card(
        "calculator",
        "DistanceShift",
        "luthier.evaluation.calculators:DistanceShift",
        "how far clicked items, and items of searches without a click, moved as they should",
    ),
)
