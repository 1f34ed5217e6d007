"""What is wrong with a file, gathered with row and column, and raised as one error."""

from __future__ import annotations

from dataclasses import dataclass

from luthier.errors import DataError

#: So many problems are listed before reading stops: enough to see a pattern.
LISTED = 10


@dataclass(frozen=True)
class Found:
    """One problem: ``row`` is the line at which an editor shows the row's beginning."""

    row: int | None
    column: str | None
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        parts = [f"row {self.row}" if self.row is not None else "", f"column {self.column}"]
        where = ", ".join(p for p in parts if p and not p.endswith("None"))
        return f"{where}: {self.message}" if where else self.message


class Problems:
    """Gathers what is wrong with one file. ``full`` when no more need be looked for.

    A file with a bad row is refused whole: training on the rest would hide the fault.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Found] = []
        self.fatal = False

    def add(
        self,
        message: str,
        *,
        row: int | None = None,
        column: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Note a problem. Those beyond the first ten are not kept."""
        if len(self.found) < LISTED:
            self.found.append(Found(row, column, message, hint))

    def stop(
        self,
        message: str,
        *,
        row: int | None = None,
        column: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Note a problem after which the rest of the file cannot be understood."""
        self.add(message, row=row, column=column, hint=hint)
        self.fatal = True

    def forget_after(self, row: int) -> None:
        """Drop what was found in later rows: they were not asked for."""
        self.found = [found for found in self.found if found.row is None or found.row <= row]
        self.fatal = self.fatal and bool(self.found)

    @property
    def full(self) -> bool:
        """True when reading on is of no use."""
        return self.fatal or len(self.found) >= LISTED

    def check(self) -> None:
        """Raise DataError when there is a problem; it names the first and lists the others."""
        if not self.found:
            return
        in_order = sorted(self.found, key=lambda f: f.row if f.row is not None else -1)
        first, rest = in_order[0], in_order[1:]
        message = first.message
        if rest:
            more = " (there may be more: reading stopped here)" if self.full else ""
            message += "".join(f"\n  also {found}" for found in rest) + more
        hint = next((found.hint for found in in_order if found.hint), None)
        raise DataError(message, file=self.file, row=first.row, column=first.column, hint=hint)
