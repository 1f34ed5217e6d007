"""Values, typed and checked: what passes is text, class names and finite numbers, nothing else."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.blocks import MAX_CELL_BYTES, Block
from luthier.data.columns import Roles
from luthier.data.list_checks import lists, same_lengths
from luthier.data.problems import Problems

_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)

#: What a cell must be, in the words of the messages.
EXPECTED = {
    "label": "a label (a whole number or a word)",
    "score": "a score from 0 to 1",
    "margin": "a finite number",
}


def check(block: Block, roles: Roles, problems: Problems) -> pa.RecordBatch | None:
    """The block with its columns named by role and typed: texts and labels as string, score
    and margin as float64. None when a value is wrong; ``problems`` tells which."""
    columns: list[pa.Array] = []
    lines: Sequence[int] = ()
    bad = False
    for role, index in roles.columns.items():
        column = block.columns[index]
        array: Any
        if roles.form == "rankings" and role != "query":
            array, faults = lists(column, role)
        elif role in ("score", "margin"):
            array, faults = _numbers(column, role)
        else:
            array, faults = _strings(column, role)
        for row, message, hint in faults:
            bad = True
            if problems.full:
                break
            lines = lines or block.lines()
            problems.add(message, row=lines[row], column=_named(role, roles), hint=hint)
        columns.append(array)
    if not bad and roles.form == "rankings":
        found = dict(zip(roles.columns, columns, strict=True))
        del found["query"]
        for role, (row, message, hint) in same_lengths(found):
            bad = True
            if problems.full:
                break
            lines = lines or block.lines()
            problems.add(message, row=lines[row], column=_named(role, roles), hint=hint)
    if bad:
        return None
    return pa.record_batch(columns, names=list(roles.columns))


def _named(role: str, roles: Roles) -> str:
    shown = roles.shown[role].removeprefix("column ")
    return shown if shown == role else f"{shown} ({role})"


Fault = tuple[int, str, str | None]


def _strings(column: Any, role: str) -> tuple[pa.Array | None, Iterator[Fault]]:
    expected = EXPECTED.get(role, "text")
    if not isinstance(column, list):
        column, fault = _as_strings(column, role)
        if fault:
            return None, iter([(0, fault, None)])
    if isinstance(column, list):
        faults = list(_object_faults(column, role, expected))
        if faults:
            return None, iter(faults)
        column = pa.array([str(value) for value in column], pa.string())
    return column, _string_faults(column, expected)


def _as_strings(column: pa.Array, role: str) -> tuple[Any, str | None]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind):
        return column, None
    stringy = pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if stringy or (role == "label" and pa.types.is_integer(kind)):
        return pc.cast(column, pa.string()), None
    if pa.types.is_null(kind):
        return pc.cast(column, pa.string()), None
    return column, f"expected {EXPECTED.get(role, 'text')}, found {kind}"


def _object_faults(values: list[Any], role: str, expected: str) -> Iterator[Fault]:
    for row, value in enumerate(values):
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError:
                yield row, "half of a surrogate pair: this is not text", None
        elif value is None:
            yield row, f"missing, expected {expected}", None
        elif role != "label" or isinstance(value, bool) or not isinstance(value, int):
            yield row, f"expected {expected}, found {type(value).__name__} {value!r:.60}", None


def _string_faults(column: pa.Array, expected: str) -> Iterator[Fault]:
    empty = pc.equal(pc.binary_length(pc.utf8_trim_whitespace(column)), 0)
    long = pc.greater(pc.binary_length(column), MAX_CELL_BYTES)
    nul = pc.match_substring(column, "\0")
    for mask, message, hint in (
        (pc.is_null(column), f"missing, expected {expected}", None),
        (empty, f"empty, expected {expected}", "leave the row out, or fill the cell"),
        (long, f"longer than {MAX_CELL_BYTES} bytes", "is a quote or a line end missing?"),
        (nul, "the cell holds a NUL byte", None),
    ):
        if pc.any(mask).as_py():
            for row in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
                yield row, message, hint


def _numbers(column: Any, role: str) -> tuple[pa.Array | None, Iterator[Fault]]:
    """float64 values; strings are parsed as decimal numbers, with a point."""
    if not isinstance(column, list):
        kind = column.type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            array = pc.cast(column, pa.float64(), safe=False)
            return array, _range_faults(array, role)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            fast = _parsed(column)
            if fast is not None:
                return fast, _range_faults(fast, role)
        column = column.to_pylist()
    values: list[float] = []
    faults: list[Fault] = []
    for row, value in enumerate(column):
        number = _number(value)
        if number is None:
            faults.append((row, f"expected {EXPECTED[role]}, found {_shown(value)}", _why(value)))
        values.append(math.nan if number is None else number)
    if faults:
        return None, iter(faults)
    array = pa.array(values, pa.float64())
    return array, _range_faults(array, role)


def _parsed(column: pa.Array) -> pa.Array | None:
    """All cells parsed at once; None when one is not a decimal number."""
    trimmed = pc.ascii_trim_whitespace(column)
    decimal = pc.match_substring_regex(trimmed, f"^(?:{_DECIMAL.pattern})$")
    if column.null_count or not pc.all(decimal).as_py():
        return None
    try:
        return pc.cast(trimmed, pa.float64())
    except pa.ArrowInvalid:
        return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str):
        trimmed = value.strip(" \t\n\r\v\f")
        return float(trimmed) if _DECIMAL.fullmatch(trimmed) else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    return "nothing" if value in (None, "") else f"{value!r:.60}"


def _why(value: object) -> str | None:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+,\d+\s*", value):
        return "write decimals with a point: 0.5"
    return None


def _range_faults(array: pa.Array, role: str) -> Iterator[Fault]:
    finite = pc.fill_null(pc.is_finite(array), False)
    good = finite
    if role == "score":
        inside = pc.and_(pc.greater_equal(array, 0.0), pc.less_equal(array, 1.0))
        good = pc.and_(finite, pc.fill_null(inside, False))
    if pc.all(good).as_py() is not False:
        return
    hint = "divide by the largest score" if role == "score" else None
    for row in pc.indices_nonzero(pc.invert(good)).to_pylist():
        value = array[row].as_py()
        found = "nothing" if value is None else repr(value)
        yield row, f"expected {EXPECTED[role]}, found {found}", hint
