"""Rows shared out into training, validation and test rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    together_by: Sequence[str] | None = None,
) -> dict[str, Rows]:
    """Disjoint parts that together are all rows, each in the order of the file.

    shares: part → its share; they add up to 1. A tuple is of train, validation, test.
    stratify_by: every value of this column is shared out in the same way, to within a row, and
    the first part has one row at least of every value.
    together_by: rows that are equal in these columns stay in one part, so that nothing is
    evaluated on what was learnt; None compares whole rows, () keeps nothing together.
    Deterministic in (content, shares, seed). Raises DataError when a part would be empty.
    """
    if not isinstance(shares, Mapping):
        shares = dict(zip(("train", "validation", "test"), shares, strict=False))
    wanted = np.array(list(shares.values()), dtype=np.float64)
    if (wanted <= 0).any() or abs(wanted.sum() - 1) > 1e-6:
        raise DataError(f"shares are above 0 and add up to 1, unlike {dict(shares)}")
    units = _units(rows, rows.columns if together_by is None else together_by)
    strata = np.zeros(len(rows), dtype=np.int64)
    if stratify_by is not None:
        strata = _codes(rows.column(stratify_by))
    part = _dealt(units, strata, wanted, _random(rows, seed), every=stratify_by is not None)
    counts = np.bincount(part, minlength=len(wanted))
    if not counts.all():
        different = len(np.unique(units))
        found = "" if different == len(rows) else f" (only {different} of them differ)"
        ways = "/".join(f"{share:.0%}" for share in wanted)
        raise DataError(
            f"{len(rows)} rows{found} are too few to be split {ways}",
            file=rows.file,
            hint="give files of your own to evaluate on, or more rows",
        )
    return {name: rows.take(np.flatnonzero(part == i)) for i, name in enumerate(shares)}


def _random(rows: Rows, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{rows.id} {seed}".encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))


def _units(rows: Rows, columns: Sequence[str]) -> Places:
    """A number for each row, int64 [n], the same for rows that are equal in these columns."""
    if not columns:
        return np.arange(len(rows), dtype=np.int64)
    units = np.zeros(len(rows), dtype=np.int64)
    for column in columns:
        codes = _codes(rows.column(column))
        units = np.unique(units * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
    return units


def _codes(column: pa.ChunkedArray) -> Places:
    """A number for each value, int64 [n], equal for equal values; lists count as a whole."""
    if pa.types.is_nested(column.type):
        known: dict[str, int] = {}
        codes = [known.setdefault(repr(value), len(known)) for value in column.to_pylist()]
        return np.array(codes, dtype=np.int64)
    encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    found: Places = encoded.indices.to_numpy().astype(np.int64)
    return found


def _dealt(
    units: Places, strata: Places, shares: np.ndarray, random: np.random.Generator, *, every: bool
) -> Places:
    """The part of each row, int64 [n].

    Units are passed stratum by stratum (that of their first row) in random order, and each goes
    to the part that lags most behind its share: that keeps the shares of every stratum and of
    the whole. With ``every`` the first unit of a stratum goes to the first part.
    """
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    stratum = strata[first]
    order = np.lexsort((random.random(len(first)), stratum))
    chosen = np.empty(len(first), dtype=np.int64)
    lag = np.zeros(len(shares))
    seen: set[int] = set()
    for unit in order.tolist():
        size, here = int(sizes[unit]), int(stratum[unit])
        lag += shares * size
        part = 0 if every and here not in seen else int(lag.argmax())
        seen.add(here)
        lag[part] -= size
        chosen[unit] = part
    return chosen[units]
