"""Records of a file of JSON: one a line, or one array; ``_source`` of an OpenSearch export is
looked into. Lines that are not JSON are rejected and cost nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.clicks.fragments import BATCH, Fragments
from luthier.clicks.rejected import Rejected
from luthier.clicks.times import seconds
from luthier.errors import DataError


class BadRecord(ValueError):
    """A record that cannot be used: ``reason`` is counted by, ``column`` names the field."""

    def __init__(self, reason: str, column: str | None = None, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.column, self.detail = reason, column, detail


#: Puts what a record says into the fragments. Raises BadRecord.
Take = Callable[[dict[str, Any], int, Fragments, Rejected], None]


def batches(path: Path, rejected: Rejected, take: Take) -> Iterator[pa.RecordBatch]:
    """Fragments of all records of a file, in order."""
    fragments = Fragments()
    for row, record in _records(path, rejected):
        try:
            take(record, row, fragments, rejected)
        except BadRecord as bad:
            rejected.add(bad.reason, row=row, column=bad.column, detail=bad.detail)
        if len(fragments) >= BATCH:
            yield fragments.take()
    yield fragments.take()


def _records(path: Path, rejected: Rejected) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, "rb") as file:
        first = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
        file.seek(0)
        found = _of_array(file.read(), path) if first == b"[" else _of_lines(file, rejected)
        for row, record in found:
            if not isinstance(record, dict):
                rejected.add("not a JSON object", row=row)
                continue
            source = record.get("_source")
            yield row, source if isinstance(source, dict) else record


def _of_lines(file: Any, rejected: Rejected) -> Iterator[tuple[int, Any]]:
    for row, line in enumerate(file, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf") if row == 1 else line
        if text.isspace():
            continue
        try:
            yield row, json.loads(text)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            rejected.add("not JSON", row=row, detail=what)


def _of_array(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """Items of an array, numbered from 1: it has no lines to speak of. Read as a whole."""
    try:
        yield from enumerate(json.loads(data), start=1)
    except (ValueError, RecursionError) as error:
        hint = "a file of one record a line would lose only that line"
        raise DataError(f"not JSON ({error})", file=str(path), hint=hint) from error


# --- fields -----------------------------------------------------------------------------------


def name(record: dict[str, Any], field: str) -> str:
    """A field of text that is needed. Raises BadRecord where it lacks."""
    found = text(record, field)
    if found is None:
        raise BadRecord("a field lacks", field)
    return found


def text(record: dict[str, Any], field: str) -> str | None:
    """A field of text, None where it lacks; whole numbers are names too. Raises BadRecord."""
    value = record.get(field)
    if isinstance(value, str):
        return _whole(value, field) if value.strip() else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is None:
        return None
    raise BadRecord("a field is no text", field, repr(value)[:40])


def _whole(value: str, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord("a text with half a character (a lone surrogate)", name) from None
    return value


def number(record: dict[str, Any], name: str) -> float | None:
    """A field of a finite number, or None. Raises BadRecord."""
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise BadRecord("a field is no finite number", name, repr(value)[:40])


def when(record: dict[str, Any], name: str) -> float:
    """A field of time in seconds, NaN where it lacks. Raises BadRecord."""
    try:
        return seconds(record.get(name))
    except ValueError as error:
        raise BadRecord("a field is no time", name, str(error)) from None


def listed(record: dict[str, Any], name: str) -> list[Any]:
    """A field of a list, empty where it lacks. Raises BadRecord."""
    value = record.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRecord("a field is no list", name, repr(value)[:40])
    return value


def inner(record: dict[str, Any], name: str) -> dict[str, Any]:
    """A field of an object, empty where it lacks. Raises BadRecord."""
    value = record.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRecord("a field is no object", name, repr(value)[:40])
    return value
