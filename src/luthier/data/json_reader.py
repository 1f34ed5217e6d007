"""Reads JSON Lines, and one JSON array of rows. A row is an object, or a list of cells."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.data.blocks import MAX_ROW_BYTES, Block, Column
from luthier.data.csv_rows import count_lines
from luthier.data.encoding import utf8_pieces
from luthier.data.problems import Problems
from luthier.errors import DataError

ROWS_PER_BLOCK = 8192
_SPACE = re.compile(r"[ \t\n\r]*")
_SPACE_COMMA = re.compile(r"[ \t\n\r]*,?[ \t\n\r]*")


class _Bad(ValueError):
    """A row that is not JSON as we accept it."""


class JSONReader:
    """One JSON file. The first row says which columns there are.

    keep: only these columns are read; None reads all, and a row with others is refused.
    array: the file is one array of rows instead of a row a line.
    """

    def __init__(
        self, path: Path, encoding: str, file: str, *, array: bool, keep: set[str] | None = None
    ) -> None:
        self._file, self._keep = file, keep
        pieces = utf8_pieces(path, encoding, file)
        self._rows = _array_rows(pieces, file) if array else _line_rows(pieces)
        self._first = _take(self._rows, 1000)
        if not self._first:
            raise DataError("no rows in the file", file=file)
        line, row = self._first[0]
        if isinstance(row, _Bad):
            raise DataError(str(row), file=file, row=line)
        self.names = tuple(row) if isinstance(row, dict) else None
        self.width = len(row)
        kind = "one JSON array" if array else "JSON, a row a line"
        self.notes: tuple[str, ...] = (
            f"{kind}; {'columns have names' if self.names else 'rows are lists'}",
        )

    def sample(self) -> Block:
        """The first rows that are whole."""
        good = [(line, row) for line, row in self._first if self._fault(row) is None]
        columns = self._columns([row for _, row in good])
        return Block(columns, lambda: [line for line, _ in good])

    def blocks(self, problems: Problems) -> Iterator[Block]:
        """All rows in order; bad rows go to ``problems``."""
        batch = self._first
        while batch and not problems.full:
            good, lines = [], []
            for line, row in batch:
                fault = self._fault(row)
                if fault is None:
                    good.append(row)
                    lines.append(line)
                else:
                    problems.add(fault[1], row=line, column=fault[0])
            if good:
                yield Block(self._columns(good), lambda lines=lines: lines)  # type: ignore[misc]
            batch = _take(self._rows, ROWS_PER_BLOCK)

    def _fault(self, row: Any) -> tuple[str | None, str] | None:
        if isinstance(row, _Bad):
            return None, str(row)
        if self.names is None:
            if not isinstance(row, list):
                return None, "an object, where the first row is a list"
            if len(row) != self.width:
                return None, f"{len(row)} cells, where the first row has {self.width}"
            return None
        if not isinstance(row, dict):
            return None, "a list, where the first row is an object"
        for name in self.names:
            if name not in row and (self._keep is None or name in self._keep):
                return name, "this row lacks the field"
        if self._keep is None and len(row) > len(self.names):
            extra = next(name for name in row if name not in self.names)
            return extra, "a field that the first row does not have"
        return None

    def _columns(self, rows: list[Any]) -> list[Column]:
        if self.names is None:
            return [_typed([row[i] for row in rows]) for i in range(self.width)]
        return [_typed([row.get(name) for row in rows]) for name in self.names]


def _typed(values: list[Any]) -> Column:
    """An Arrow string column when all are text; else the values, for the checks to judge."""
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
        return values


def _take(rows: Iterator[tuple[int, Any]], count: int) -> list[tuple[int, Any]]:
    taken = []
    for row in rows:
        taken.append(row)
        if len(taken) == count:
            break
    return taken


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Bad(f"the field {twice!r} is given twice")
    return found


def _constant(name: str) -> None:
    raise _Bad(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _row(text: str) -> Any:
    """A row, or the _Bad that says why it is none."""
    try:
        row = _DECODER.decode(text)
    except _Bad as bad:
        return bad
    except RecursionError:
        return _Bad("nested too deeply")
    except ValueError as error:
        return _Bad(f"not JSON: {error}")
    return _judged(row)


def _judged(row: Any) -> Any:
    if isinstance(row, dict | list) and row:
        return row
    return _Bad(f"expected an object or a list of cells, found {row!r:.60}")


def _line_rows(pieces: Iterator[bytes]) -> Iterator[tuple[int, Any]]:
    line, rest = 1, b""
    for piece in pieces:
        *complete, rest = (rest + piece).split(b"\n")
        for raw in complete:
            if raw.strip():
                yield line, _line(raw)
            line += 1
        if len(rest) > MAX_ROW_BYTES:
            yield line, _Bad(f"the line is longer than {MAX_ROW_BYTES} bytes")
            return
    if rest.strip():
        yield line, _line(rest)


def _line(raw: bytes) -> Any:
    try:
        return _row(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return _Bad(f"these bytes are not UTF-8: {raw[error.start : error.start + 4].hex(' ')}")


def _array_rows(pieces: Iterator[bytes], file: str) -> Iterator[tuple[int, Any]]:
    """The items of one array, decoded one at a time, so that a large file stays on the disk."""
    source = _Text(pieces, file)
    source.skip(_SPACE)
    if not source.text.startswith("["):
        raise DataError("expected '[', the beginning of an array of rows", file=file, row=1)
    source.advance(1)
    source.skip(_SPACE)
    while source.text[source.at : source.at + 1] != "]":
        yield source.line, _judged(source.item())
        separated = "," in source.skip(_SPACE_COMMA)
        after = source.text[source.at : source.at + 1]
        if after == "":
            raise DataError("the array is never closed", file=file, row=source.line)
        if separated == (after == "]"):
            fault = "a comma before the end" if separated else "a comma is missing"
            raise DataError(f"not JSON: {fault}", file=file, row=source.line)
    source.advance(1)
    source.skip(_SPACE)
    if source.text[source.at :]:
        raise DataError("text follows the end of the array", file=file, row=source.line)


class _Text:
    """A window of the file's text that grows at its end and is cut at its beginning."""

    def __init__(self, pieces: Iterator[bytes], file: str) -> None:
        self._pieces, self._file = pieces, file
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.text, self.at, self.line = "", 0, 1

    def more(self) -> bool:
        """Append the next piece; False at the end of the file."""
        piece = next(self._pieces, None)
        try:
            text = self._decoder.decode(piece or b"", final=piece is None)
        except UnicodeDecodeError as error:
            line = self.line + self.text.count("\n", self.at)
            line += error.object.count(b"\n", 0, error.start)
            shown = error.object[error.start : error.start + 4].hex(" ")
            message = f"these bytes are not UTF-8: {shown}"
            raise DataError(message, file=self._file, row=line) from None
        self.text, self.at = self.text[self.at :] + text, 0
        return piece is not None

    def advance(self, count: int) -> None:
        passed = self.text[self.at : self.at + count].encode("utf-8", "replace")
        self.line += count_lines(passed, 0, len(passed))
        self.at += count

    def skip(self, pattern: re.Pattern[str]) -> str:
        """Pass over what matches (a pattern that also matches nothing); return it."""
        while self._match_end(pattern) == len(self.text) and self.more():
            pass
        passed = self.text[self.at : self._match_end(pattern)]
        self.advance(len(passed))
        return passed

    def _match_end(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self.text, self.at)
        return found.end() if found else self.at

    def item(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except _Bad as bad:
                raise DataError(str(bad), file=self._file, row=self.line) from None
            except RecursionError:
                raise DataError("nested too deeply", file=self._file, row=self.line) from None
            except ValueError as error:
                if len(self.text) - self.at < MAX_ROW_BYTES and self.more():
                    continue
                raise DataError(
                    f"not JSON: {error.args[0]}", file=self._file, row=self.line
                ) from None
            if end < len(self.text) or not self.more():
                self.advance(end - self.at)
                return value
