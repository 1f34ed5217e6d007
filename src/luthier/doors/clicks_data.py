"""What a training on clicks reads: rankings, and what it is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from luthier.spec import CalculatorSpec, Source

#: ``not_irrelevant_only`` and ``negative_downsampling``.
Variant = tuple[bool, float]


@dataclass(frozen=True)
class Part:
    """Rankings to train on: where they are, and how many searches."""

    train: Source
    rows: int


@dataclass(frozen=True)
class Calculated:
    """Calculators of a training: what they score, the names of what they say, and of each that
    could not go to a worker its class and why."""

    calculators: tuple[CalculatorSpec, ...]
    train: Source | None
    test: Source | None
    names: frozenset[str]
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ClickData:
    """What is trained and measured on.

    parts: of each variant of the data its rankings. eval: rankings that are held out, for
    ``val_loss``. queries, index: searches with what was clicked, and the catalogue, for the
    metrics of retrieval. calculated: for those of calculators.
    """

    parts: Mapping[Variant, Part]
    eval: Source | None = None
    queries: Source | None = None
    index: Source | None = None
    calculated: Calculated | None = None
