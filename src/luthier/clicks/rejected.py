"""The rows of a log that cannot be used: all of them counted by what is wrong, the first listed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from luthier.data.problems import LISTED, Found
from luthier.errors import DataError


@dataclass
class Rejected:
    """What was left out of one file. Logs are long and machines write them: a bad row costs that
    row, where a training set with a bad row is refused. ``check`` is for who wants it strict."""

    file: str
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    listed: list[Found] = field(default_factory=list)

    def add(
        self, reason: str, *, row: int | None = None, column: str | None = None, times: int = 1,
        detail: str = "",
    ) -> None:  # fmt: skip
        """Count a row that is left out. ``reason`` is counted by, so it names no value;
        ``detail`` may."""
        self.count += times
        self.reasons[reason] += times
        if len(self.listed) < LISTED:
            self.listed.append(Found(row, column, f"{reason}: {detail}" if detail else reason))

    def check(self) -> None:
        """Raise DataError when a row was left out; it names the first and lists the others."""
        if not self.count:
            return
        in_order = sorted(self.listed, key=lambda f: f.row if f.row is not None else -1)
        first, rest = in_order[0], in_order[1:]
        message = first.message + "".join(f"\n  also {found}" for found in rest)
        if self.count > len(in_order):
            message += f"\n  and {self.count - len(in_order):,} more"
        hint = "mend the log, or import without strict: the other rows are then used"
        raise DataError(message, file=self.file, row=first.row, column=first.column, hint=hint)

    def to_dict(self) -> dict[str, Any]:
        """For reports: count, reasons, and the first rows."""
        rows = [{"row": f.row, "column": f.column, "message": f.message} for f in self.listed]
        return {"count": self.count, "reasons": dict(self.reasons), "first": rows}
