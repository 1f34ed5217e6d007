"""What a training on clicks reads: rankings, and what it is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.spec import Source

#: ``not_irrelevant_only`` and ``negative_downsampling``.
Variant = tuple[bool, float]


@dataclass(frozen=True)
class Part:
    """Rankings to train on: where they are, and how many searches."""

    train: Source
    rows: int


@dataclass(frozen=True)
class ClickData:
    """What is trained and measured on.

    parts: of each variant of the data its rankings. eval: rankings that are held out, for
    ``val_loss``. queries, index: searches with what was clicked, and the catalogue, for the
    metrics of retrieval.
    """

    parts: Mapping[Variant, Part]
    eval: Source | None = None
    queries: Source | None = None
    index: Source | None = None
