"""Impressions in CSV or TSV: ``query, item, position, clicked[, timestamp, session, user, …]``.

A row is one item that was shown. Rows with the same session and query are one search; without a
session, rows with the same user and query are, unless a gap in time lies between them. Rows of a
search need not stand together.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from luthier.clicks.fragments import FRAGMENT
from luthier.clicks.readers.utf8 import MARK, MarkedFile
from luthier.clicks.rejected import Rejected
from luthier.clicks.times import seconds
from luthier.errors import DataError, nearest

#: A row is a part of a search.
WHOLE = False

#: Role → the names by which its column is known.
ROLES: Mapping[str, tuple[str, ...]] = {
    "query": ("query", "search_query", "q", "user_query"),
    "item": ("item", "item_id", "object_id", "document", "doc", "doc_id"),
    "position": ("position", "pos"),
    "clicked": ("clicked", "click", "is_click", "clicks"),
    "timestamp": ("timestamp", "time", "created_at"),
    "session": ("session", "session_id", "query_id"),
    "user": ("user", "user_id", "client_id"),
    "score": ("score",),
    "event_type": ("event_type", "type"),
    "grade": ("grade",),
    "dwell": ("dwell", "dwell_time", "dwell_s"),
}
NEEDED = ("query", "item", "clicked")
_TRUE, _FALSE = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f", "")
_BLOCK_BYTES = 8 << 20

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def read(
    path: Path, rejected: Rejected, columns: Mapping[str, str] | None = None, gap_s: float = 1800.0
) -> Iterator[pa.RecordBatch]:
    """Fragments of a file of impressions.

    columns: role → column, for columns that are called otherwise. Raises DataError for a file
    without the columns that are needed.
    """
    with open(path, "rb") as file:
        header = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n")
    delimiter = "\t" if header.count("\t") > header.count(",") else ","
    lines = _Lines(rejected)
    with io.BufferedReader(MarkedFile(path), _BLOCK_BYTES) as stream:
        reader = _open(path, stream, delimiter, lines)
        roles = find_roles(reader.schema.names, columns, str(path))
        yield from _fragments(reader, roles, lines, rejected, path, gap_s)


def _fragments(
    reader: Any, roles: dict[str, str], lines: _Lines, rejected: Rejected, path: Path, gap_s: float
) -> Iterator[pa.RecordBatch]:
    try:
        for batch in reader:
            rows = lines.rows(batch)
            named = {role: batch.column(name) for role, name in roles.items()}
            good = _Batch(named, rows, _marked(named), rejected)
            if good.count:
                yield good.fragments(gap_s)
        lines.end()
    except pa.ArrowInvalid as error:
        raise DataError(f"not readable as CSV ({error})", file=str(path)) from error


def _open(path: Path, stream: Any, delimiter: str, lines: _Lines) -> Any:
    names = _header(path, delimiter)
    try:
        return pyarrow.csv.open_csv(
            stream,
            read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                invalid_row_handler=lines.invalid,
                ignore_empty_lines=False,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"not readable as CSV ({error})", file=str(path)) from error


def _header(path: Path, delimiter: str) -> list[str]:
    import csv

    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        return next(csv.reader(file, delimiter=delimiter), [])


def find_roles(names: list[str], columns: Mapping[str, str] | None, file: str) -> dict[str, str]:
    """Role → column. Raises DataError that names what lacks or what is unknown."""
    found: dict[str, str] = {}
    for role, name in (columns or {}).items():
        if role not in ROLES:
            hint = nearest(role, ROLES) or f"roles: {', '.join(ROLES)}"
            raise DataError(f"no column plays the role '{role}'", file=file, hint=hint)
        if name not in names:
            hint = nearest(name, names) or f"columns: {', '.join(names)}"
            raise DataError("there is no such column", file=file, column=name, hint=hint)
        found[role] = name
    folded = {name.strip().lower(): name for name in reversed(names)}
    for role, known in ROLES.items():
        if role not in found and (hit := next((k for k in known if k in folded), None)):
            found[role] = folded[hit]
    if lacking := [role for role in NEEDED if role not in found]:
        hint = f"columns here: {', '.join(names)}; columns={{'{lacking[0]}': …}} names another"
        raise DataError(f"no column for {', '.join(lacking)}", file=file, hint=hint)
    return found


class _Lines:
    """The line at which each row begins, of a reader that only counts records."""

    def __init__(self, rejected: Rejected) -> None:
        self._rejected = rejected
        self._invalid: list[tuple[int, str, int]] = []  # record, what is wrong, lines more
        self._next = 2  # the next record; the header is the first
        self._extra = 0  # lines more than records so far: cells of several lines

    def invalid(self, row: Any) -> str:
        """Called for a record with another number of cells, ahead of its batch."""
        detail = f"{row.actual_columns} cells where the header has {row.expected_columns}"
        self._invalid.append((row.number or 0, detail, row.text.count("\n")))
        return "skip"

    def rows(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """Lines of a batch's rows, int64 [n]."""
        tall = np.zeros(batch.num_rows, np.int64)
        for column in batch.columns:
            tall += pc.count_substring(column, "\n").to_numpy()
        records = np.arange(batch.num_rows) + self._next
        extra = self._extra + np.concatenate([[0], np.cumsum(tall)])
        for number, detail, more in self._taken(records):
            at = int(np.searchsorted(records, number))
            self._reject(number + int(extra[at]), detail)
            records[at:] += 1
            extra[at:] += more
        self._next = int(records[-1]) + 1 if len(records) else self._next
        self._extra = int(extra[-1])
        lines: NDArray[np.int64] = records + extra[:-1]
        return lines

    def end(self) -> None:
        """What was wrong after the last good row."""
        for number, detail, more in self._invalid:
            self._reject(number + self._extra, detail)
            self._extra += more

    def _taken(self, records: NDArray[np.int64]) -> Iterator[tuple[int, str, int]]:
        """The invalid records before the last of these, which they push down."""
        while self._invalid and len(records) and self._invalid[0][0] <= records[-1]:
            yield self._invalid.pop(0)

    def _reject(self, line: int, detail: str) -> None:
        self._rejected.add("a row with another number of cells", row=line, detail=detail)


class _Batch:
    """One batch of rows; what is wrong with some of them goes to ``rejected``."""

    def __init__(
        self, named: dict[str, pa.Array], rows: NDArray[np.int64], broken: Bools,
        rejected: Rejected,
    ) -> None:  # fmt: skip
        self._rejected, self._rows = rejected, rows
        good = ~_blank(named) | broken
        good &= ~self._bad(broken, good, None, "not UTF-8")
        for role in ("query", "item"):
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(named[role])), 0)
            good &= ~self._bad(blank.to_numpy(zero_copy_only=False), good, role, "a field lacks")
        clicked, odd = _clicks(named["clicked"])
        good &= ~self._bad(odd, good, "clicked", "a field is neither true nor false", named)
        values: dict[str, Floats] = {}
        for role, convert, reason in _NUMBERS:
            column = named.get(role)
            values[role], odd = _converted(column, len(rows), convert)
            good &= ~self._bad(odd, good, role, reason, named)
        self.count = int(good.sum())
        keep = np.flatnonzero(good)
        self.rows = rows[keep]
        self.clicked = clicked[keep]
        self.values = {role: found[keep] for role, found in values.items()}
        self.texts = {
            role: named[role].take(pa.array(keep))
            for role in ("query", "item", "session", "user", "event_type")
            if role in named
        }

    def _bad(
        self, bad: Bools, good: Bools, role: str | None, reason: str,
        named: Mapping[str, pa.Array] | None = None,
    ) -> Bools:  # fmt: skip
        for place in np.flatnonzero(bad & good):
            detail = repr(named[role][int(place)].as_py())[:40] if named and role else ""
            self._rejected.add(reason, row=int(self._rows[place]), column=role, detail=detail)
        return bad

    def fragments(self, gap_s: float) -> pa.RecordBatch:
        """Rows of one search that stand in this batch are one fragment."""
        query = self.texts["query"]
        owner = self.texts.get("session", self.texts.get("user"))
        keys = query if owner is None else pc.binary_join_element_wise(owner, query, "\x1f")
        codes = keys.dictionary_encode().indices.to_numpy()
        times = self.values["timestamp"]
        has_session = "session" in self.texts
        order = np.lexsort((np.arange(len(codes)), *(() if has_session else (times,)), codes))
        new = np.ones(len(order), bool)
        new[1:] = np.diff(codes[order]) != 0
        if not has_session:
            with np.errstate(invalid="ignore"):
                new[1:] |= np.diff(times[order]) > gap_s
        begin = np.flatnonzero(new)
        first = order[begin]
        taken = pa.array(order)
        clicks = self.clicked[order]
        hit = order[clicks]
        starts = np.append(begin, len(order))
        event_starts = np.concatenate([[0], np.cumsum(clicks)])[starts]
        with np.errstate(invalid="ignore"):
            earliest = np.fmin.reduceat(times[order], begin)
        arrays: dict[str, pa.Array] = {
            "key": keys.take(pa.array(first)),
            "row": pa.array(self.rows[first]),
            "shown": pa.array(np.ones(len(first), bool)),
            "session": (keys if owner is None else owner).take(pa.array(first)),
            "query": query.take(pa.array(first)),
            "user": _or_null(self.texts.get("user"), first),
            "time": pa.array(earliest, from_pandas=True),
            "irrelevant": pa.array(np.zeros(len(first), bool)),
            "items": _list(starts, self.texts["item"].take(taken)),
            "positions": _list(starts, _nullable(self.values["position"][order], pa.int32())),
            "scores": _list(starts, _nullable(self.values["score"][order], pa.float64())),
            "event_items": _list(event_starts, self.texts["item"].take(pa.array(hit))),
            "event_types": _list(event_starts, self._types(hit)),
            "event_grades": _list(event_starts, _nullable(self.values["grade"][hit], pa.float64())),
            "event_dwells": _list(event_starts, _nullable(self.values["dwell"][hit], pa.float64())),
            "event_times": _list(event_starts, _nullable(times[hit], pa.float64())),
            "event_ids": _list(event_starts, pa.nulls(len(hit), pa.string())),
            "event_rows": _list(event_starts, pa.array(self.rows[hit])),
        }
        return pa.RecordBatch.from_arrays([arrays[n] for n in FRAGMENT.names], schema=FRAGMENT)

    def _types(self, hit: NDArray[np.int64]) -> pa.Array:
        given = self.texts.get("event_type")
        if given is None:
            return pa.array(["click"] * len(hit), pa.string())
        found = given.take(pa.array(hit))
        return pc.if_else(pc.equal(found, ""), "click", found)


def _marked(named: Mapping[str, pa.Array]) -> Bools:
    """Rows with bytes that are no text."""
    marks = [pc.match_substring(c, MARK).to_numpy(zero_copy_only=False) for c in named.values()]
    found: Bools = np.logical_or.reduce(marks)
    return found


def _blank(named: Mapping[str, pa.Array]) -> Bools:
    """Lines without anything, which are no rows."""
    blank = [pc.equal(column, "").to_numpy(zero_copy_only=False) for column in named.values()]
    found: Bools = np.logical_and.reduce(blank)
    return found


def _clicks(column: pa.Array) -> tuple[Bools, Bools]:
    words = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    true = pc.is_in(words, pa.array(_TRUE)).to_numpy(zero_copy_only=False)
    false = pc.is_in(words, pa.array(_FALSE)).to_numpy(zero_copy_only=False)
    return true, ~(true | false)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _position(text: str) -> float:
    number = float(text)
    if number != int(number) or not 1 <= number < 2**31:
        raise ValueError(text)
    return number


def _length(text: str) -> float:
    number = _finite(text)
    if number < 0:
        raise ValueError(text)
    return number


_NUMBERS: tuple[tuple[str, Callable[[str], float], str], ...] = (
    ("position", _position, "a position is a whole number from 1 on"),
    ("timestamp", seconds, "a field is no time"),
    ("score", _finite, "a field is no finite number"),
    ("grade", _finite, "a field is no finite number"),
    ("dwell", _length, "a dwell time is a number of seconds, not negative"),
)


def _converted(
    column: pa.Array | None, n: int, convert: Callable[[str], float]
) -> tuple[Floats, Bools]:
    """Numbers of texts, NaN for empty ones, and which are none. Each different text once."""
    if column is None:
        return np.full(n, np.nan), np.zeros(n, bool)
    coded = pc.utf8_trim_whitespace(column).dictionary_encode()
    numbers, odd = np.full(len(coded.dictionary), np.nan), np.zeros(len(coded.dictionary), bool)
    for place, text in enumerate(coded.dictionary.to_pylist()):
        if text:
            try:
                numbers[place] = convert(text)
            except (ValueError, OverflowError):
                odd[place] = True
    codes = coded.indices.to_numpy()
    return numbers[codes], odd[codes]


def _or_null(column: pa.Array | None, rows: NDArray[np.int64]) -> pa.Array:
    if column is None:
        return pa.nulls(len(rows), pa.string())
    found = column.take(pa.array(rows))
    return pc.if_else(pc.equal(found, ""), pa.scalar(None, pa.string()), found)


def _nullable(values: Floats, kind: pa.DataType) -> pa.Array:
    return pa.array(values, from_pandas=True).cast(kind)


def _list(starts: NDArray[np.int64], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(starts.astype(np.int32)), values)
