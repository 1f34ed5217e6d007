"""The fast CSV path: pyarrow, and only on bytes that it is known to read as the strict path.

A block of bytes is certified when every quote in it is structural (it opens a cell, closes
one, or is doubled within one), when its line ends are LF or CRLF, and when it holds no NUL.
What is not certified, and what pyarrow refuses, goes to the strict parser.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from luthier.data.csv_rows import QUOTE, Dialect

_BOM = b"\xef\xbb\xbf"


def certified_end(data: bytes, dialect: Dialect, *, final: bool) -> int:
    """Where the last complete row of certified data ends; 0 when it is not certified."""
    if b"\0" in data or data.startswith(_BOM):  # pyarrow drops a byte order mark
        return 0
    if b'"' in data:
        end = 0 if dialect.skip_space else _end_with_quotes(data, dialect, final)
    else:
        end = len(data) if final else data.rfind(b"\n") + 1
    lone = data.count(b"\r", 0, end) != data.count(b"\r\n", 0, end)
    return 0 if lone else end


def _end_with_quotes(data: bytes, dialect: Dialect, final: bool) -> int:
    values = np.frombuffer(data, dtype=np.uint8)
    quotes = np.flatnonzero(values == QUOTE)
    if final:
        end = len(data) if len(quotes) % 2 == 0 else 0
    else:
        ends = np.flatnonzero(values == 0x0A)
        outside = np.searchsorted(quotes, ends) % 2 == 0
        end = int(ends[outside][-1]) + 1 if outside.any() else 0
        quotes = quotes[quotes < end]
    if end == 0:
        return 0
    opening, closing = quotes[0::2], quotes[1::2]
    around = np.frombuffer(b"\n" + data[:end] + b"\n", dtype=np.uint8)  # [i + 1] is data[i]
    allowed = np.zeros(256, dtype=bool)
    allowed[[dialect.delimiter[0], 0x0A, 0x0D, QUOTE]] = True
    structural = allowed[around[opening]].all() and allowed[around[closing + 2]].all()
    return end if structural else 0


def parse_certified(data: memoryview, width: int, dialect: Dialect) -> list[pa.Array] | None:
    """The columns of certified rows, or None when pyarrow refuses them (a wrong number of
    cells, bytes that are not UTF-8), for the strict parser to say which row and why."""
    names = [str(i) for i in range(width)]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            read_options=arrow_csv.ReadOptions(
                use_threads=False, column_names=names, block_size=len(data) + 1
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=dialect.delimiter.decode(), newlines_in_values=True
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid:
        return None
    columns = [column.combine_chunks() for column in table.columns]
    if dialect.skip_space:
        columns = [pc.utf8_ltrim(column, characters=" ") for column in columns]
    return columns
