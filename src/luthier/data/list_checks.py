"""The lists of rankings, typed and checked: texts, and finite numbers, as many in each list."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.blocks import MAX_CELL_BYTES

Fault = tuple[int, str, str | None]

#: What a number in a list must be.
EXPECTED = {
    "relevance": "a list of numbers from 0 on, 0 for what was not clicked",
    "weight": "a list of numbers from 0 on",
    "score": "a list of finite numbers",
    "irrelevant": "a list of 0 and 1",
    "items": "a list of texts",
}
_FORMATS = "lists are read from JSONL, JSON, Parquet, Arrow, or from data in memory"


def lists(column: Any, role: str) -> tuple[pa.Array | None, Iterator[Fault]]:
    """A list<string> or list<double> array of a column, and what is wrong with its rows."""
    if isinstance(column, list):
        return _of_objects(column, role)
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return None, iter([(0, f"expected {EXPECTED[role]}, found {kind}", _FORMATS)])
    if column.null_count:
        rows = pc.indices_nonzero(pc.is_null(column)).to_pylist()
        return None, iter([(row, f"missing, expected {EXPECTED[role]}", None) for row in rows])
    wanted = pa.list_(pa.string() if role == "items" else pa.float64())
    inner = kind.value_type
    fits = _texts(inner) if role == "items" else _numbers(inner)
    if not fits and not pa.types.is_null(inner):
        return None, iter([(0, f"expected {EXPECTED[role]}, found {kind}", None)])
    array = column.cast(wanted)
    return array, _faults(array, role)


def same_lengths(arrays: dict[str, pa.Array]) -> Iterator[tuple[str, Fault]]:
    """Rows whose lists are not of one length, with the role of the odd one."""
    sizes = {role: _sizes(array) for role, array in arrays.items()}
    expected = sizes["items"]
    for role, found in sizes.items():
        for row in np.flatnonzero(found != expected):
            yield role, (int(row), f"{found[row]} values for {expected[row]} items", None)


def _sizes(array: pa.Array) -> np.ndarray:
    found: np.ndarray = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    return found


def _texts(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _numbers(kind: pa.DataType) -> bool:
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return bool(number or pa.types.is_boolean(kind))


def _of_objects(column: list[Any], role: str) -> tuple[pa.Array | None, Iterator[Fault]]:
    faults = [(row, why, hint) for row, value in enumerate(column)
              for why, hint in _wrong(value, role)]  # fmt: skip
    if faults:
        return None, iter(faults)
    if role == "items":
        array = pa.array(column, pa.list_(pa.string()))
    else:
        array = pa.array([[float(v) for v in row] for row in column], pa.list_(pa.float64()))
    return array, _faults(array, role)


def _wrong(value: Any, role: str) -> Iterator[tuple[str, str | None]]:
    """What is wrong with a row's list, as Python values."""
    if not isinstance(value, list | tuple):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        yield f"expected {EXPECTED[role]}, found {found}", _FORMATS
        return
    for place, one in enumerate(value, 1):
        if role == "items":
            good = isinstance(one, str) and _encodable(one)
        else:
            number = isinstance(one, int | float)
            good = number and (role == "irrelevant" or not isinstance(one, bool))
        if not good:
            yield f"expected {EXPECTED[role]}, found {one!r:.60} at place {place}", None
            return


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _faults(array: pa.Array, role: str) -> Iterator[Fault]:
    sizes, values = _sizes(array), array.flatten()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    if role == "items":
        for row in np.flatnonzero(sizes == 0):
            yield int(row), "an empty list: nothing was shown", "leave the row out"
        trimmed = pc.binary_length(pc.utf8_trim_whitespace(values))
        for mask, why in (
            (pc.is_null(values), "a text is missing in the list"),
            (pc.equal(trimmed, 0), "a text of the list is empty"),
            (pc.greater(pc.binary_length(values), MAX_CELL_BYTES), "a text of the list is longer "
             f"than {MAX_CELL_BYTES} bytes"),
            (pc.match_substring(values, "\0"), "a text of the list holds a NUL byte"),
        ):  # fmt: skip
            at = pc.indices_nonzero(pc.fill_null(mask, False)).to_numpy()
            for row in np.unique(owner[at]):
                yield int(row), why, None
        return
    numbers = pc.fill_null(values, math.nan).to_numpy(zero_copy_only=False)
    good = np.isfinite(numbers)
    if role in ("relevance", "weight"):
        good &= numbers >= 0
    if role == "irrelevant":
        good &= (numbers == 0) | (numbers == 1)
    for place in np.flatnonzero(~good):
        found = "nothing" if math.isnan(numbers[place]) else f"{numbers[place]:g}"
        yield int(owner[place]), f"expected {EXPECTED[role]}, found {found}", None
