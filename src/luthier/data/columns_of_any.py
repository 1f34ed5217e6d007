"""Columns of any type from blocks of any type: what JSON leaves as lists becomes Arrow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.data.blocks import Column
from luthier.data.problems import Problems
from luthier.errors import DataError

_FAILS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
_NAMES = {str: "a text", bool: "true or false", int: "a number", float: "a number",
          list: "a list", dict: "an object", bytes: "bytes"}  # fmt: skip


def typed(
    column: Column, name: str, lines: Callable[[], Sequence[int]], found: Problems
) -> pa.Array:
    """An Arrow array of a block's column. A value that cannot stand beside the others goes to
    ``found`` with its line, and the array is then all null."""
    if isinstance(column, list):
        try:
            return _array(column)
        except UnicodeEncodeError:
            at = next(i for i, value in enumerate(column) if not _encodable(value))
            message = "half of a surrogate pair: this is not text"
        except _FAILS:
            at, message = _odd_one(column)
        found.add(message, row=lines()[at], column=name)
        return pa.nulls(len(column))
    if pa.types.is_dictionary(column.type):
        return column.cast(column.type.value_type)
    wider = {pa.large_string(): pa.string(), pa.string_view(): pa.string()}
    return column.cast(wider[column.type]) if column.type in wider else column


def joined(
    parts: list[pa.Array], name: str, file: str, lines: Callable[[], Sequence[int]],
    places: np.ndarray,
) -> pa.ChunkedArray:  # fmt: skip
    """The blocks of one column as one; blocks of different types are typed again together."""
    kinds = {part.type for part in parts}
    if len(kinds) == 1:
        return pa.chunked_array(parts)
    values = [value for part in parts for value in part.to_pylist()]
    try:
        return pa.chunked_array([_array(values)])
    except _FAILS:
        at, message = _odd_one(values)
        known = lines()
        place = int(places[at])
        row = known[place] if place < len(known) else place + 1
        raise DataError(message, file=file, row=row, column=name) from None


def _array(values: list[Any]) -> pa.Array:
    """Words and whole numbers together are labels, and become words."""
    try:
        return pa.array(values)
    except _FAILS:
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {str, int}:
            return pa.array([None if v is None else str(v) for v in values], pa.string())
        raise


def _odd_one(values: list[Any]) -> tuple[int, str]:
    """The first value that does not go with those before it, and what is wrong with it."""
    first = next(value for value in values if value is not None)
    for at, value in enumerate(values):
        if value is None:
            continue
        try:
            _array([first, value])
        except _FAILS:
            ours, theirs = (_NAMES.get(type(v), type(v).__name__) for v in (value, first))
            if ours == theirs:
                return at, f"{ours} whose values are of another kind than in rows before it"
            return at, f"{ours}, {value!r:.40}, where rows before it have {theirs}"
    return 0, "values of kinds that do not go together"


def _encodable(value: Any) -> bool:
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
