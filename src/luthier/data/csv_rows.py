"""The strict CSV parser: RFC 4180, one row at a time, every fault with its place.

It reads UTF-8 bytes. It differs from Python's ``csv`` module in that it guesses nothing: text
after a closing quote, a quote that is never closed and a NUL are faults, not cells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from luthier.data.blocks import MAX_CELL_BYTES, MAX_ROW_BYTES

QUOTE, SPACE, CR, LF = b'" \r\n'


@dataclass(frozen=True)
class Dialect:
    """How the cells of a row are told apart. skip_space: spaces after a delimiter are not
    part of the cell (as in ``item, label``)."""

    delimiter: bytes = b","
    skip_space: bool = False


@dataclass(frozen=True)
class Fault:
    """Why a row is not one. column counts from 1. fatal: what follows cannot be trusted."""

    message: str
    column: int
    hint: str | None = None
    fatal: bool = False


@dataclass(frozen=True)
class Row:
    """One row: its cells, the line it begins at, where it ends, and what is wrong with it.

    spaced: spaces were passed over before every cell but the first."""

    cells: list[bytes]
    line: int
    end: int
    fault: Fault | None = None
    spaced: bool = False


def count_lines(data: bytes, start: int, end: int) -> int:
    r"""Line ends (\n, \r\n or \r) between two places, as an editor counts them."""
    lone = data.count(b"\r", start, end)
    if lone:
        lone -= data.count(b"\r\n", start, end)
    return data.count(b"\n", start, end) + lone


def parse_rows(data: bytes, line: int, dialect: Dialect, *, final: bool) -> Iterator[Row]:
    """The complete rows at the beginning of ``data``; blank lines are passed over.

    line: the number of the first line. final: no more data will come. Where the data ends
    within a row and more may come, that row is left for the next call.
    """
    at = 0
    while at < len(data):
        row = _parse_row(data, at, line, dialect, final)
        if row is None:
            if len(data) - at > MAX_ROW_BYTES:
                message = f"the row is longer than {MAX_ROW_BYTES} bytes"
                fault = Fault(message, 1, "is this a CSV file with line ends?", fatal=True)
                yield Row([], line, len(data), fault)
            return
        if row.cells or row.fault:
            yield row
            if row.fault and row.fault.fatal:
                return
        line += count_lines(data, at, row.end)
        at = row.end


def _parse_row(data: bytes, at: int, line: int, dialect: Dialect, final: bool) -> Row | None:
    """One row from ``at``; None when it is not complete."""
    cells: list[bytes] = []
    start, size, stop, spaced = at, len(data), _stop(dialect.delimiter), True
    while True:
        if dialect.skip_space:
            before = at
            while at < size and data[at] == SPACE:
                at += 1
            spaced = spaced and (at > before or not cells)
        if at == size and not final:
            return None
        if at < size and data[at] == QUOTE:
            quoted = _quoted(data, at, final)
            if quoted is None:
                return None
            cell, at = quoted
            fault = _fault_of_quoted(cell, data, at, len(cells) + 1, dialect)
            if fault:
                resume = len(data) if fault.fatal else _next_line(data, at, final)
                return None if resume is None else Row([], line, resume, fault)
            cells.append(cell)  # type: ignore[arg-type]  # None is a fault, returned above
        else:
            found = stop.search(data, at)
            end = found.start() if found else size
            if end - at > MAX_CELL_BYTES:
                return Row([], line, size, _too_long(len(cells) + 1))
            if found is None and not final:
                return None
            cells.append(data[at:end])
            at = end
        if at < size and data[at : at + 1] == dialect.delimiter:
            at += 1
            continue
        after = _after_line_end(data, at, final)
        if after is None:
            return None
        blank = len(cells) == 1 and not cells[0] and at == start
        return Row([] if blank else cells, line, after, _nul(cells), spaced)


@cache
def _stop(delimiter: bytes) -> re.Pattern[bytes]:
    return re.compile(b"[" + re.escape(delimiter) + rb"\r\n]")


def _quoted(data: bytes, at: int, final: bool) -> tuple[bytes | None, int] | None:
    """The cell whose opening quote is at ``at`` and the place after its closing quote; the
    cell is None when the quote is never closed; None when that cannot be told yet."""
    search, doubled = at + 1, False
    while True:
        close = data.find(b'"', search)
        if close < 0 or close - at > MAX_CELL_BYTES * 2:
            closed_never = final or len(data) - at > MAX_CELL_BYTES * 2
            return (None, at) if closed_never else None
        if close + 1 == len(data) and not final:
            return None  # the next byte may be a second quote
        if data[close + 1 : close + 2] != b'"':
            cell = data[at + 1 : close]
            return (cell.replace(b'""', b'"') if doubled else cell), close + 1
        doubled, search = True, close + 2


def _fault_of_quoted(
    cell: bytes | None, data: bytes, at: int, column: int, dialect: Dialect
) -> Fault | None:
    if cell is None:
        hint = "close it, or double a quote that belongs to the text"
        return Fault("the quote that opens this cell is never closed", column, hint, fatal=True)
    if len(cell) > MAX_CELL_BYTES:
        return _too_long(column)
    if at < len(data) and data[at : at + 1] not in (dialect.delimiter, b"\r", b"\n"):
        shown = re.split(rb"[\r\n]", data[at : at + 20])[0].decode("utf-8", "replace")
        hint = 'a quote within a quoted cell is written twice: "5"" pipe"'
        return Fault(f"text follows the closing quote: {shown!r}", column, hint)
    return None


def _too_long(column: int) -> Fault:
    hint = "is a quote or a line end missing?"
    return Fault(f"the cell is longer than {MAX_CELL_BYTES} bytes", column, hint, fatal=True)


def _nul(cells: list[bytes]) -> Fault | None:
    for column, cell in enumerate(cells, 1):
        if b"\0" in cell:
            hint = "is this really text? UTF-16 needs csv_options encoding='utf-16'"
            return Fault("the cell holds a NUL byte", column, hint)
    return None


def _after_line_end(data: bytes, at: int, final: bool) -> int | None:
    if at >= len(data):
        return at
    if data[at] == LF:
        return at + 1
    if at + 1 == len(data) and not final:
        return None  # a line feed may follow
    return at + 2 if data[at + 1 : at + 2] == b"\n" else at + 1


def _next_line(data: bytes, at: int, final: bool) -> int | None:
    found = re.compile(rb"[\r\n]").search(data, at)
    if found is None:
        return len(data) if final else None
    return _after_line_end(data, found.start(), final)
