"""What ``tune`` reads: a log in any form, and a catalogue whose fields are known by name."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luthier.clicks.converters import ClickstreamSessionConverter
from luthier.clicks.importing import import_log
from luthier.clicks.items_sets import TextItemSetManager
from luthier.clicks.loaders import ID_FIELDS, ITEM_FIELDS, DataLoader, guess
from luthier.clicks.preprocessing import DatasetFieldsNormalizer
from luthier.clicks.sessions import Sessions
from luthier.errors import DataError

#: Told what happens, a line at a time.
Say = Callable[[str], None]


def quiet(text: str) -> None:
    """Say nothing."""


def read_sessions(
    sessions: Any,
    *,
    format: str | None = None,
    events: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    say: Say = quiet,
) -> Sessions:
    """Sessions of a log, a file of sessions, or in memory. Raises DataError."""
    if isinstance(sessions, str | Path):
        path = Path(sessions)
        if path.suffix == ".arrow" and format is None:
            return Sessions.open(path)
        with tempfile.TemporaryDirectory(prefix="luthier-clicks-") as folder:
            done = import_log(
                path, Path(folder) / "sessions.arrow", format=format, events=events,
                columns=columns,
            )  # fmt: skip
            for reason, count in done.rejected.reasons.items():
                say(f"left out of the log {count:,}: {reason}")
            for problem in done.rejected.listed:
                say(f"  {problem}")
            return done.sessions  # mapped, so it outlives the file
    return ClickstreamSessionConverter().convert(sessions)


def read_catalogue(
    loader: DataLoader,
    manager: TextItemSetManager,
    id_field: str | None = None,
    item_field: str | None = None,
) -> dict[str, str]:
    """id → text of a catalogue whose fields are known by name, or said. Raises DataError."""
    rows = loader.load()
    if not rows:
        raise DataError("there is no item", file=loader.file)
    named = []
    for given, known, what in ((id_field, ID_FIELDS, "id"), (item_field, ITEM_FIELDS, "text")):
        name = given or guess(rows[0], known)
        if name is None:
            there = ", ".join(map(str, rows[0]))
            hint = f"say it ({'--id-field' if what == 'id' else '--item-field'}); there are {there}"
            raise DataError(f"no field is known to hold an item's {what}", file=loader.file,
                            hint=hint)  # fmt: skip
        named.append(name)
    manager.field_normalizer = DatasetFieldsNormalizer(named[1], named[0])
    return manager.catalogue(rows, loader.file)
