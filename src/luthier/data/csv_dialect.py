"""Which character separates the cells: decided by evidence, never by statistics of letters.

A candidate fits when every row of the sample has the same number of cells under it, two or
more, and no fault. One that fits alone is taken; where several fit, a row of known column
names or the file's name decides; where nothing decides, the file is refused: a wrong guess
would train on wrong texts. Spaces are never separators (``apple pie|dessert``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from luthier.data.csv_rows import Dialect, Row, parse_rows
from luthier.errors import DataError

CANDIDATES = (b",", b"\t", b";", b"|")
NAMES = {b",": "comma", b"\t": "tab", b";": "semicolon", b"|": "vertical bar"}
SAMPLE_ROWS = 1000
#: A candidate that nearly fits is taken, so that the rows that do not fit can be named.
NEARLY = 0.5
#: A separator other than the comma that fits so many rows puts another that fits all in doubt.
RIVAL = 0.9


@dataclass(frozen=True)
class _Trial:
    dialect: Dialect
    rows: list[Row]

    @property
    def width(self) -> int:
        """The most frequent number of cells."""
        counts = Counter(len(row.cells) for row in self.rows if not row.fault)
        return counts.most_common(1)[0][0] if counts else 0

    @property
    def share(self) -> float:
        """Share of the rows that have this many cells and no fault."""
        good = sum(not row.fault and len(row.cells) == self.width for row in self.rows)
        return good / len(self.rows) if self.rows else 0.0


def fixed(dialect: str, delimiter: str | None, file: str) -> Dialect | None:
    """The dialect that was asked for; None when it is to be found out."""
    if delimiter is not None:
        code = delimiter.encode()
        if len(code) != 1 or code in b'"\r\n\0 ':
            raise DataError(f"{delimiter!r} cannot separate cells", file=file)
        if dialect != "auto":
            raise DataError("give a dialect or a delimiter, not both", file=file)
        return Dialect(code)
    return {"excel": Dialect(b","), "excel-tab": Dialect(b"\t"), "unix": Dialect(b",")}.get(dialect)


def detect(
    sample: bytes, *, final: bool, file: str, is_header: Callable[[list[str]], bool]
) -> Dialect:
    """The dialect of a file that begins with ``sample``. Raises DataError when in doubt."""
    trials = [_best(sample, final, delimiter) for delimiter in CANDIDATES]
    fitting = [trial for trial in trials if trial.width >= 2 and trial.share == 1]
    fitting += [trial for trial in trials if fitting and _is_rival(trial)]
    if not fitting:  # some row is bad: take what fits most rows, so that the row can be named
        nearly = [trial for trial in trials if trial.width >= 2 and trial.share >= NEARLY]
        most = max((trial.share for trial in nearly), default=0)
        fitting = [trial for trial in nearly if trial.share == most]
    if len(fitting) > 1:
        named = [trial for trial in fitting if is_header(_texts(trial.rows[0]))]
        by_name = [t for t in fitting if t.dialect.delimiter == _by_name(file)]
        fitting = (named if len(named) == 1 else by_name) or fitting
    if len(fitting) > 1:
        raise DataError(
            f"the cells may be separated by {_listed(fitting)}: each fits (nearly) every row",
            file=file, row=fitting[0].rows[0].line,
            hint="csv_options: delimiter=',' (or '\\t', ';', '|') says which",
        )  # fmt: skip
    if not fitting:
        raise _no_separator(trials, file)
    return fitting[0].dialect


def _is_rival(trial: _Trial) -> bool:
    """Fits nearly every row, as the true separator does when a row is bad and each text happens
    to have one comma. Commas are no rivals: prose is full of them."""
    usual = trial.dialect.delimiter != b"," and trial.width >= 2
    return usual and RIVAL <= trial.share < 1


def _best(sample: bytes, final: bool, delimiter: bytes) -> _Trial:
    """``item, label``: where a space follows every delimiter, it belongs to the delimiter."""
    if delimiter != b"\t":
        spaced = _try(sample, final, Dialect(delimiter, skip_space=True))
        if spaced.width >= 2 and spaced.share == 1 and all(row.spaced for row in spaced.rows):
            return spaced
    return _try(sample, final, Dialect(delimiter))


def _try(sample: bytes, final: bool, dialect: Dialect) -> _Trial:
    rows = parse_rows(sample, 1, dialect, final=final)
    return _Trial(dialect, list(islice(rows, SAMPLE_ROWS)))


def _by_name(file: str) -> bytes | None:
    return b"\t" if file.lower().endswith((".tsv", ".tab")) else None


def _texts(row: Row) -> list[str]:
    return [cell.decode("utf-8", "replace") for cell in row.cells]


def _listed(trials: list[_Trial]) -> str:
    return " or ".join(f"{NAMES[t.dialect.delimiter]} ({t.width} cells)" for t in trials)


def _no_separator(trials: list[_Trial], file: str) -> DataError:
    if not trials[0].rows:
        hint = "is this a text file with line ends?"
        return DataError("the first row does not end", file=file, row=1, hint=hint)
    best = max(trials, key=lambda trial: trial.share if trial.width >= 2 else 0)
    for row in best.rows:
        if row.fault:
            return DataError(
                row.fault.message, file=file, row=row.line, column=row.fault.column,
                hint=row.fault.hint,
            )  # fmt: skip
    return DataError(
        "no separator of cells found: no comma, tab, semicolon or vertical bar gives "
        "every row the same number of cells, two or more",
        file=file, row=trials[0].rows[0].line,
        hint='a text that holds a comma is written in quotes: "red, ripe apple",fruit',
    )  # fmt: skip
