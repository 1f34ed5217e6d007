"""Import a log: a file of any known format into a file of sessions, in flat memory.

``import_log`` reads once, in batches, into partitions on disk; each partition becomes sessions
and is written. Rows that cannot be used are counted and listed; ``strict`` refuses them.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.clicks.grouping import Partitions, together
from luthier.clicks.rejected import Rejected
from luthier.clicks.sessions import SCHEMA, Sessions
from luthier.errors import DataError, nearest

#: format → the reader's module. ``read`` yields fragments; ``WHOLE`` says what a record is.
FORMATS = {
    "studio": "luthier.clicks.readers.studio",
    "ubi": "luthier.clicks.readers.ubi",
    "metarank": "luthier.clicks.readers.metarank",
    "csv": "luthier.clicks.readers.table",
}
#: Bytes of the log a partition: put together, such a one takes some ten times that of memory.
_PARTITION_BYTES = 16 << 20
_MOST_PARTITIONS = 200  # open files
#: Two of the same user's same query are two searches from so long a pause on: the half hour of
#: web analytics.
GAP_S = 1800.0


@dataclass(frozen=True)
class Imported:
    """What became of a log: where its sessions are, how many, and what was left out."""

    path: Path
    count: int
    rejected: Rejected

    @property
    def sessions(self) -> Sessions:
        """The sessions, memory-mapped."""
        return Sessions.open(self.path)


def import_log(
    source: Path | str, destination: Path | str, *, format: str | None = None,
    events: Path | str | None = None, columns: Mapping[str, str] | None = None,
    gap_s: float = GAP_S, strict: bool = False,
) -> Imported:  # fmt: skip
    """Read a log into an Arrow file of sessions.

    format: one of ``FORMATS``; by the file's name and content where it is not said. events: the
    file of events, for UBI, whose searches are in another. columns: role → column, for CSV.
    Sessions are in the order of the log where it is small, else in an order of their own, the
    same each time. Raises DataError: unreadable as a whole, or with a bad row if ``strict``.
    """
    source, destination = Path(source), Path(destination)
    if not source.is_file():
        raise DataError("there is no such file", file=str(source))
    name = format or detect(source)
    if name not in FORMATS:
        hint = nearest(name, FORMATS) or f"known: {', '.join(FORMATS)}"
        raise DataError(f"no format is called '{name}'", hint=hint)
    rejected = Rejected(source.name)
    reader = importlib.import_module(FORMATS[name])
    options = _options(name, source, events, columns, gap_s)
    size = source.stat().st_size + (Path(events).stat().st_size if events else 0)
    count = 0
    destination.parent.mkdir(parents=True, exist_ok=True)
    from luthier.store.atomic import cached_file

    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".import-") as folder:
        parts = min(_MOST_PARTITIONS, 1 + size // _PARTITION_BYTES)
        with Partitions(Path(folder), parts) as partitions:
            for batch in reader.read(source, rejected, **options):
                if batch.num_rows:
                    partitions.add(batch)
        with cached_file(destination) as aside:
            for table in _written(aside, partitions.tables()):
                made = together(table.table, rejected, whole=reader.WHOLE, gap_s=gap_s)
                table.write(made)
                count += made.num_rows
            if strict:
                rejected.check()
            if not count:
                _refuse_empty(rejected)
    return Imported(destination, count, rejected)


@dataclass(frozen=True)
class _Part:
    """A partition's fragments, and where its sessions are to go."""

    table: pa.Table
    writer: Any

    def write(self, sessions: pa.Table) -> None:
        self.writer.write_table(sessions)


def _written(path: Path, tables: Iterator[pa.Table]) -> Iterator[_Part]:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for table in tables:
            yield _Part(table, writer)


def _refuse_empty(rejected: Rejected) -> None:
    if rejected.count:
        rejected.check()
    raise DataError("no session in the log", file=rejected.file)


def _options(
    name: str, source: Path, events: Path | str | None, columns: Mapping[str, str] | None,
    gap_s: float,
) -> dict[str, Any]:  # fmt: skip
    if events is not None and name != "ubi":
        raise DataError(f"{name} has no file of events of its own", file=str(events),
                        hint="leave 'events' out")  # fmt: skip
    if columns and name != "csv":
        raise DataError(f"columns of {name} have fixed names", file=str(source),
                        hint="leave 'columns' out")  # fmt: skip
    if name == "csv":
        return {"columns": columns, "gap_s": gap_s}
    if name == "ubi":
        if events is not None and not Path(events).is_file():
            raise DataError("there is no such file", file=str(events))
        return {"events": Path(events) if events is not None else None}
    return {}


def detect(path: Path) -> str:
    """The format of a file. Raises DataError where it cannot be told."""
    with open(path, "rb") as file:
        head = file.read(65536)
    text = head.decode("utf-8-sig", errors="replace").lstrip()
    if text.startswith(("{", "[")):
        for name, signs in _SIGNS:
            if all(sign in text for sign in signs):
                return name
        raise DataError(
            "JSON of no known format", file=str(path), hint=f"say it: {', '.join(FORMATS)}"
        )
    return "csv"


#: What stands in the first records of each format.
_SIGNS = (
    ("studio", ('"session_id"', '"search_results"')),
    ("metarank", ('"event"', '"timestamp"')),
    ("ubi", ('"query_id"',)),
)
