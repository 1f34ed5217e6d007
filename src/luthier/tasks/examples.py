"""Rows of which the columns are known and every value has been checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.data.problems import Problems
from luthier.data.rows import Places, Rows
from luthier.errors import DataError, nearest
from luthier.tasks.roles import Role, plain
from luthier.tasks.values import Unfit

#: From a value as the file has it to the value as the task uses it; raises Unfit.
Parser = Callable[[Any], Any]


@dataclass(frozen=True)
class Examples:
    """What a task made of rows.

    columns: role → the column it was found in. parsers: role → how its values are read.
    labels: the classes' names by code. codes: int64 [n], or float32 [n, classes] of 0 and 1 for
    multi-label; None where rows have no classes of their own. supervised: the targets are there.
    facts: what the task found out about these rows.
    """

    rows: Rows
    columns: Mapping[str, str]
    parsers: Mapping[str, Parser]
    labels: tuple[str, ...] = ()
    codes: npt.NDArray[Any] | None = None
    supervised: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, role: str, rows: Places | None = None) -> list[Any]:
        """The values of a role, in order, as the task uses them. KeyError without such a role."""
        parse, column = self.parsers[role], self.columns[role]
        if rows is None:
            return [parse(value) for value in self.rows.column(column).to_pylist()]
        return [parse(value) for value in self.rows.values(column, rows)]

    def take(self, rows: Sequence[int] | Places) -> Examples:
        """Some of the rows."""
        wanted = np.asarray(rows, dtype=np.int64)
        codes = None if self.codes is None else self.codes[wanted]
        return replace(self, rows=self.rows.take(wanted), codes=codes)


def find_columns(
    roles: Iterable[Role], rows: Rows, chosen: Mapping[str, str], *, supervised: bool
) -> dict[str, str]:
    """Role → column: as chosen, else by the names that a role goes by. Raises DataError."""
    found: dict[str, str] = {}
    for name, column in chosen.items():
        if column not in rows.columns:
            raise DataError(
                f"there is no such column, wanted as '{name}'",
                file=rows.file, column=column,
                hint=nearest(column, rows.columns) or f"columns: {', '.join(rows.columns)}",
            )  # fmt: skip
        found[name] = column
    known = {plain(column): column for column in rows.columns if column not in found.values()}
    for role in roles:
        if role.name in found:
            continue
        match = next((wanted for wanted in role.names if wanted in known), None)
        if match is not None:
            found[role.name] = known.pop(match)
        elif role.required and (supervised or not role.target):
            raise _missing(role, rows)
    return found


def _missing(role: Role, rows: Rows) -> DataError:
    close = next(filter(None, (nearest(name, rows.columns) for name in role.names)), None)
    word = close.removeprefix("did you mean ").rstrip("?") if close else "'…'"
    return DataError(
        f"no column for '{role.name}': none is called {' or '.join(role.names[:4])}, "
        f"there are {', '.join(rows.columns)}",
        file=rows.file,
        hint=f"columns={{'{role.name}': {word}}} names it",
    )


def check_values(
    rows: Rows, columns: Mapping[str, str], parsers: Mapping[str, Parser], found: Problems,
    see: Callable[[int, dict[str, Any]], None],
) -> None:  # fmt: skip
    """Read every value once. ``see`` is given each row's number and its values by role, where
    all are fit; it may raise UnfitRow."""
    roles = list(columns)
    chunks = rows.table.select([columns[role] for role in roles])
    place = 0
    for batch in chunks.to_batches(max_chunksize=1024):
        listed = [batch.column(i).to_pylist() for i in range(len(roles))]
        for raw in zip(*listed, strict=True):
            if found.full:
                return
            _check_row(
                rows, place, columns, parsers, dict(zip(roles, raw, strict=True)), found, see
            )
            place += 1


def _check_row(
    rows: Rows, place: int, columns: Mapping[str, str], parsers: Mapping[str, Parser],
    raw: dict[str, Any], found: Problems, see: Callable[[int, dict[str, Any]], None],
) -> None:  # fmt: skip
    values: dict[str, Any] = {}
    for role, value in raw.items():
        try:
            values[role] = parsers[role](value)
        except Unfit as unfit:
            found.add(unfit.message, row=rows.line(place), column=columns[role], hint=unfit.hint)
    if len(values) < len(raw):
        return
    try:
        see(place, values)
    except UnfitRow as unfit:
        column = columns.get(unfit.role)
        found.add(unfit.message, row=rows.line(place), column=column, hint=unfit.hint)


class UnfitRow(Unfit):
    """Values that are fit one by one, but not together. ``role`` names the one to blame."""

    def __init__(self, role: str, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.role = role


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Label names in order: whole numbers by their value, all else by the alphabet.

    >>> in_order(["10", "9", "-1"]), in_order(["b", "10", "9"])
    (('-1', '9', '10'), ('10', '9', 'b'))
    """
    distinct = set(names)
    whole = all(name.lstrip("-").isascii() and name.lstrip("-").isdigit() for name in distinct)
    return tuple(
        sorted(distinct, key=lambda name: (int(name), name)) if whole else sorted(distinct)
    )


def unknown_label(name: str, labels: Sequence[str]) -> Unfit:
    """What is wrong with a label that the training rows do not have."""
    return Unfit(
        f"the label '{name}' is not among the {len(labels)} of the training rows",
        nearest(name, labels) or f"they are: {', '.join(labels[:12])}",
    )
