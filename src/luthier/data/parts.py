"""Rows shared out into training, validation and test rows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import numpy as np

from luthier.data.rows import Places, Rows
from luthier.errors import DataError

#: What is made of one file, and of training rows that lack only validation rows.
THREE_WAYS = {"train": 0.8, "validation": 0.1, "test": 0.1}
TWO_WAYS = {"train": 0.8, "validation": 0.2}


def split_rows(
    rows: Rows,
    shares: Mapping[str, float] | tuple[float, ...] = THREE_WAYS,
    seed: int = 42,
    stratify_by: str | None = None,
) -> dict[str, Rows]:
    """Disjoint parts that together are all rows, each in the order of the file.

    shares: part → its share; they add up to 1. A tuple is of train, validation, test.
    stratify_by: every value of this column is shared out in the same way, to within a row, and
    the first part has one row at least of every value. Deterministic in (content, shares, seed).
    Raises DataError when a part would be empty.
    """
    if not isinstance(shares, Mapping):
        shares = dict(zip(("train", "validation", "test"), shares, strict=False))
    wanted = np.array(list(shares.values()), dtype=np.float64)
    if (wanted <= 0).any() or abs(wanted.sum() - 1) > 1e-6:
        raise DataError(f"shares are above 0 and add up to 1, unlike {dict(shares)}")
    random = _random(rows, seed)
    if stratify_by is None:
        part = _cut(random.permutation(len(rows)), wanted)
    else:
        part = _stratified(_strata(rows, stratify_by), wanted, random)
    counts = np.bincount(part, minlength=len(wanted))
    if not counts.all():
        raise DataError(
            f"{len(rows)} rows are too few to be split {'/'.join(f'{s:.0%}' for s in wanted)}",
            file=rows.file,
            hint="give files of your own to evaluate on, or more rows",
        )
    return {name: rows.take(np.flatnonzero(part == i)) for i, name in enumerate(shares)}


def _random(rows: Rows, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{rows.id} {seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))


def _cut(order: Places, shares: np.ndarray) -> Places:
    """Part numbers [n]: a permutation cut at the running total of the shares."""
    ends = np.rint(np.cumsum(shares) * len(order)).astype(np.int64)
    part = np.empty(len(order), dtype=np.int64)
    part[order] = np.searchsorted(ends[:-1], np.arange(len(order)), side="right")
    return part


def _strata(rows: Rows, column: str) -> Places:
    """A number for each distinct value, int64 [n]; lists count as a whole."""
    known: dict[str, int] = {}
    codes = [
        known.setdefault(json.dumps(value, default=str), len(known))
        for value in rows.column(column).to_pylist()
    ]
    return np.array(codes, dtype=np.int64)


def _stratified(strata: Places, shares: np.ndarray, random: np.random.Generator) -> Places:
    """Rows are passed stratum by stratum in random order, and each goes to the part that lags
    most behind its share: that keeps the shares of every stratum and of the whole."""
    order = np.lexsort((random.random(len(strata)), strata))
    part = np.empty(len(order), dtype=np.int64)
    lag = np.zeros(len(shares))
    seen: set[int] = set()
    for row in order.tolist():
        lag += shares
        stratum = int(strata[row])
        chosen = 0 if stratum not in seen else int(lag.argmax())
        seen.add(stratum)
        lag[chosen] -= 1
        part[row] = chosen
    return part
