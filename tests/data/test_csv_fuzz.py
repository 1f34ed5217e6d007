"""Whatever bytes come: a DataError, or exactly the rows that an independent parser reads.

The oracle is Python's csv module in strict mode. Rows are written by it in every dialect, then
bytes are changed. The full form: ``pytest tests/data/test_csv_fuzz.py -m slow``.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from luthier.data.columns import looks_like_header
from luthier.data.csv_dialect import NAMES
from luthier.data.csv_reader import CSVReader
from luthier.data.reading import Reading, read
from luthier.errors import DataError
from luthier.spec import CSVOptions

QUICK = settings(
    max_examples=500, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
FULL = settings(QUICK, max_examples=10_000, derandomize=False)

DELIMITERS = {"excel": ",", "unix": ",", "excel-tab": "\t"}
#: Small enough that rows, quotes and line ends are cut everywhere.
BLOCKS = st.sampled_from([3, 7, 16, 64, 1 << 20])

telling = st.sampled_from(
    ["a", "b", "red, ripe", 'say "hi"', "two\nlines", "a\r\nb", "ä漢🎻", "0.5", "1", '5" pipe', "'",
     "tab\there", "x|y", "1;2", "\ufeff", "0.9", "q\rq", '"', ",", " lead", "trail ", "\u2028x"]
)  # fmt: skip
anything = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6)
blank = st.sampled_from(["", " ", "\n"])
cells = st.one_of(telling, telling, telling, anything.filter(lambda text: bool(text.strip())))
junk = st.one_of(
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b'""',
                     b"\t", b" ", b'",', b'"\n', b"\x80", b"\n\n", b"\xed\xa0\x80"]),
    st.binary(min_size=1, max_size=3),
)  # fmt: skip


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, str, int, bool]:
    """(bytes, dialect, width, whether bytes were changed)"""
    dialect = draw(st.sampled_from(sorted(DELIMITERS)))
    width = draw(st.integers(2, 4))
    cell = st.one_of(cells, blank) if draw(st.integers(0, 5)) == 0 else cells
    rows = draw(st.lists(st.lists(cell, min_size=width, max_size=width), min_size=1, max_size=5))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    sink = io.StringIO(newline="")
    csv.writer(sink, dialect, quoting=quoting).writerows(rows)
    data = sink.getvalue().encode()
    changes = draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 2), junk), max_size=2))
    for place, removed, added in changes:
        at = place % (len(data) + 1)
        data = data[:at] + added + data[at + removed :]
    return data, dialect, width, bool(changes)


def oracle(data: bytes, delimiter: str, *, skip_space: bool = False) -> list[list[str]] | None:
    """The rows that Python's csv module reads, or None when it reads none."""
    try:
        text = data.decode("utf-8-sig")
        rows = list(
            csv.reader(
                io.StringIO(text, newline=""), delimiter=delimiter, strict=True,
                skipinitialspace=skip_space,
            )
        )  # fmt: skip
    except (UnicodeDecodeError, csv.Error):
        return None
    return [row for row in rows if row]


def collected(reading: Reading) -> dict[str, list[object]]:
    columns: dict[str, list[object]] = {role: [] for role in reading.roles.columns}
    for batch in reading.batches:
        for role, values in batch.to_pydict().items():
            columns[role] += values
    return columns


def attempt(path: Path, options: CSVOptions, **how: object) -> dict[str, list[object]] | DataError:
    try:
        reader = CSVReader(
            path, options, "x.csv",
            is_header=lambda row: looks_like_header(row, options, "x.csv"), **how,  # type: ignore[arg-type]
        )  # fmt: skip
        reading = read(path, "csv", options, "x.csv", reader=reader)
        found = collected(reading)
    except DataError as error:
        return error
    found["notes"] = list(reading.notes)
    found["places"] = [*reading.roles.columns.values()]
    return found


def assert_equal_to(rows: list[list[str]] | None, found: dict[str, list[object]]) -> None:
    assert rows is not None, "accepted what the oracle does not read"
    for (role, values), place in zip(list(found.items())[:-2], found["places"], strict=True):
        expected = [row[int(str(place))] for row in rows]
        if role in ("score", "margin"):
            assert values == [float(cell) for cell in expected]
            assert all(math.isfinite(float(str(value))) for value in values)
        else:
            assert values == expected
            assert all(str(value).strip() and "\0" not in str(value) for value in values)
    assert all(len(row) == len(rows[0]) for row in rows)


def check_named_dialect(path: Path, made: tuple[bytes, str, int, bool], block: int) -> None:
    data, dialect, width, changed = made
    path.write_bytes(data)
    options = CSVOptions(
        dialect=dialect, header=False, is_labeled=width == 2 and len(data) % 2 == 0
    )
    found = attempt(path, options, block_bytes=block)
    strict = attempt(path, options, fast=False, block_bytes=block)
    rows = oracle(data, DELIMITERS[dialect])
    if isinstance(found, DataError):
        event("refused")
        assert isinstance(strict, DataError)
        assert str(strict) == str(found), "the two paths report different problems"
        assert found.file == "x.csv"
        clean = rows and all(len(r) == width and all(c.strip() for c in r) for r in rows)
        if clean and not changed:
            assert width > 2, (
                f"refused a good file: {found}"
            )  # a last column of numbers may not fit
            assert "number" in str(found) or "score" in str(found), found
        if clean and "\0" in str(rows):
            assert found.row is not None
        return
    event("accepted")
    assert strict == found, "the fast and the strict path read different rows"
    assert_equal_to(rows, found)


def check_auto(path: Path, made: tuple[bytes, str, int, bool]) -> None:
    data, dialect, _, changed = made
    path.write_bytes(data)
    found = attempt(path, CSVOptions())
    if isinstance(found, DataError):
        event("refused")
        return
    event("accepted")
    note = str(found["notes"][0])
    delimiter = next(d.decode() for d, name in NAMES.items() if f"by {name}" in note)
    rows = oracle(data, delimiter, skip_space="left out" in note)
    if "first row holds names" in note:
        rows = rows and rows[1:]
    assert_equal_to(rows, found)
    if not changed:
        assert delimiter == DELIMITERS[dialect], "a wrong separator was guessed"


@QUICK
@given(made=files(), block=BLOCKS)
def test_named_dialect(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, str, int, bool], block: int
) -> None:
    check_named_dialect(tmp_path_factory.getbasetemp() / "named.csv", made, block)


@QUICK
@given(made=files())
def test_auto_dialect(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, str, int, bool]
) -> None:
    check_auto(tmp_path_factory.getbasetemp() / "auto.csv", made)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@FULL
@given(made=files(), block=BLOCKS)
def test_named_dialect_full(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, str, int, bool], block: int
) -> None:
    check_named_dialect(tmp_path_factory.getbasetemp() / "named.csv", made, block)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@FULL
@given(made=files())
def test_auto_dialect_full(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[bytes, str, int, bool]
) -> None:
    check_auto(tmp_path_factory.getbasetemp() / "auto.csv", made)
