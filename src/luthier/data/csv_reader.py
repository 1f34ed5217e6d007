"""Reads CSV: the fast path where it is certified, the strict path elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa

from luthier.data import csv_dialect
from luthier.data.blocks import Block, Column
from luthier.data.csv_fast import certified_end, parse_certified
from luthier.data.csv_rows import Fault, Row, count_lines, parse_rows
from luthier.data.encoding import PIECE_BYTES, utf8_pieces
from luthier.data.problems import Problems
from luthier.errors import DataError
from luthier.spec import CSVOptions


class CSVReader:
    """One CSV file. Dialect and header are settled when it is made.

    is_header: says whether these cells are column names (DataError when in doubt).
    fast: False reads everything with the strict parser. block_bytes: parsed at a time.
    """

    def __init__(
        self, path: Path, options: CSVOptions, file: str, *,
        is_header: Callable[[list[str]], bool], fast: bool = True, block_bytes: int = PIECE_BYTES,
    ) -> None:  # fmt: skip
        self._file, self._fast = file, fast
        self._pieces = utf8_pieces(path, options.encoding, file)
        self._first = next(self._pieces, b"")
        self._second = next(self._pieces, b"")
        self._whole, self._block_bytes = not self._second, block_bytes
        if not self._first.strip():
            raise DataError("the file is empty", file=file)
        self._dialect = csv_dialect.fixed(
            options.dialect, options.delimiter, file
        ) or csv_dialect.detect(
            self._first, final=self._whole, file=file,
            is_header=lambda cells: options.header is not False and is_header(cells),
        )  # fmt: skip
        sample = self._sample_rows()
        self.width = self._settle_width(sample)
        self.names = self._settle_names(sample[0], options, is_header)
        self._sample = sample[1:] if self.names else sample
        self.notes = self._describe()

    def _sample_rows(self) -> list[Row]:
        rows = parse_rows(self._first, 1, self._dialect, final=self._whole)
        sample = list(islice(rows, csv_dialect.SAMPLE_ROWS))
        if not sample:
            raise DataError("the first row does not end", file=self._file, row=1)
        return sample

    def _settle_width(self, sample: list[Row]) -> int:
        counts = Counter(len(row.cells) for row in sample if not row.fault)
        return counts.most_common(1)[0][0] if counts else 2

    def _settle_names(
        self, first: Row, options: CSVOptions, is_header: Callable[[list[str]], bool]
    ) -> tuple[str, ...] | None:
        if first.fault:
            return None
        cells = [cell.decode("utf-8", "replace").strip() for cell in first.cells]
        if options.header is False or (options.header is None and not is_header(cells)):
            return None
        if len(cells) != self.width:
            raise DataError(
                f"the header has {len(cells)} names, the rows have {self.width} cells",
                file=self._file, row=first.line,
            )  # fmt: skip
        return tuple(cells)

    def _describe(self) -> tuple[str, ...]:
        name = csv_dialect.NAMES.get(self._dialect.delimiter, repr(self._dialect.delimiter))
        spaces = ", spaces after it left out" if self._dialect.skip_space else ""
        header = "the first row holds names" if self.names else "no header row"
        return (f"CSV, cells separated by {name}{spaces}; {header}",)

    def sample(self) -> Block:
        """The first rows that are whole."""
        good = [row for row in self._sample if not _fault(row, self.width)]
        columns: list[Column] = [
            [row.cells[i].decode("utf-8", "replace") for row in good] for i in range(self.width)
        ]
        return Block(columns, lambda: [row.line for row in good])

    def blocks(self, problems: Problems) -> Iterator[Block]:
        """All rows in order; bad rows go to ``problems``."""
        feed = self._feed()
        data, line, final, skip_header = next(feed), 1, False, self.names is not None
        while True:
            if skip_header:
                header = next(parse_rows(data, line, self._dialect, final=final), None)
                if header is not None:
                    line += count_lines(data, 0, header.end)
                    data, skip_header = data[header.end :], False
            block, end = (None, 0) if skip_header else self._block(data, line, final, problems)
            if block is not None and len(block):
                yield block
            if problems.full or final:
                return
            line += count_lines(data, 0, end)
            piece = next(feed, b"")
            final = not piece
            data = data[end:] + piece

    def _feed(self) -> Iterator[bytes]:
        for piece in chain([self._first, self._second], self._pieces):
            for start in range(0, len(piece), self._block_bytes):
                yield piece[start : start + self._block_bytes]

    def _block(
        self, data: bytes, line: int, final: bool, problems: Problems
    ) -> tuple[Block | None, int]:
        end = certified_end(data, self._dialect, final=final) if self._fast else 0
        if end:
            columns = parse_certified(memoryview(data)[:end], self.width, self._dialect)
            if columns is not None:
                return Block(list(columns), lambda: self._lines(data[:end], line)), end
        return self._strict_block(data, line, final, problems)

    def _lines(self, data: bytes, line: int) -> Sequence[int]:
        return [row.line for row in parse_rows(data, line, self._dialect, final=True)]

    def _strict_block(
        self, data: bytes, line: int, final: bool, problems: Problems
    ) -> tuple[Block | None, int]:
        texts: list[list[str]] = []
        lines: list[int] = []
        end = 0
        for row in parse_rows(data, line, self._dialect, final=final):
            end = row.end
            fault = _fault(row, self.width)
            cells = None if fault else self._decode(row, problems)
            if fault:
                note = problems.stop if fault.fatal else problems.add
                note(fault.message, row=row.line, column=self._name(fault), hint=fault.hint)
            elif cells is not None:
                texts.append(cells)
                lines.append(row.line)
            if problems.full:
                break
        if final and not problems.full:
            end = len(data)  # blank lines at the end are no rows
        if not texts:
            return None, end
        columns = [pa.array(column, pa.string()) for column in zip(*texts, strict=True)]
        return Block(list(columns), lambda: lines), end

    def _decode(self, row: Row, problems: Problems) -> list[str] | None:
        cells = []
        for number, cell in enumerate(row.cells, 1):
            try:
                cells.append(cell.decode("utf-8"))
            except UnicodeDecodeError as error:
                shown = cell[error.start : error.start + 4].hex(" ")
                problems.add(
                    f"these bytes are not UTF-8: {shown}",
                    row=row.line, column=self._name(Fault("", number)),
                    hint="csv_options: encoding='latin-1' (or 'cp1252', …) names the encoding",
                )  # fmt: skip
                return None
        return cells

    def _name(self, fault: Fault) -> str | None:
        if not fault.column:
            return None
        if self.names and fault.column <= len(self.names):
            return self.names[fault.column - 1]
        return str(fault.column)


def _fault(row: Row, width: int) -> Fault | None:
    if row.fault or len(row.cells) == width:
        return row.fault
    if len(row.cells) > width:
        hint = 'a text that holds the separator is written in quotes: "red, ripe apple",fruit'
    else:
        hint = "is a cell or a separator missing?"
    count = f"{len(row.cells)} cell" + "s" * (len(row.cells) != 1)
    return Fault(f"{count}, where the other rows have {width}", 0, hint)
