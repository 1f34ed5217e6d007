"""Sessions as files that others read: the reference's JSON, or CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from luthier.clicks.sessions import Sessions
from luthier.errors import DataError
from luthier.store.atomic import cached_file


def write_sessions(sessions: Sessions, path: Path) -> None:
    """Write by the file's name: .arrow, .jsonl (a session of Embedding Studio a line) or .csv (an
    impression a row). Raises DataError for another name."""
    if path.suffix == ".arrow":
        sessions.save(path)
    elif path.suffix == ".jsonl":
        _write_lines(sessions, path)
    elif path.suffix == ".csv":
        _write_rows(sessions, path)
    else:
        raise DataError("sessions are written as .arrow, .jsonl or .csv", file=str(path))


def _write_lines(sessions: Sessions, path: Path) -> None:
    with cached_file(path) as aside, open(aside, "w", encoding="utf-8") as file:
        for batch in sessions.table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                file.write(json.dumps(_record(row), ensure_ascii=False) + "\n")


def _record(row: dict[str, Any]) -> dict[str, Any]:
    results = [
        _without_none({"object_id": item, "rank": score})
        for item, score in zip(row["items"], row["scores"], strict=True)
    ]
    names = ("results", "types", "grades", "dwells", "times", "ids")
    events = [
        _without_none({
            "event_id": name, "object_id": row["items"][result], "event_type": kind,
            "created_at": time, "grade": grade, "dwell_time": dwell,
        })
        for result, kind, grade, dwell, time, name in zip(
            *(row[f"event_{part}"] for part in names), strict=True
        )
    ]  # fmt: skip
    return _without_none({
        "session_id": row["session"], "search_query": row["query"], "user_id": row["user"],
        "created_at": row["time"], "is_irrelevant": row["irrelevant"], "search_results": results,
        "events": events,
    })  # fmt: skip


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _write_rows(sessions: Sessions, path: Path) -> None:
    """A click has no type, grade or dwell time of its own here: events that are more than a click
    are refused rather than flattened."""
    _, types = sessions.event_types
    if set(types) - {"click"}:
        raise DataError("a CSV row says clicked or not, and there are other events",
                        file=str(path), hint="write .jsonl or .arrow")  # fmt: skip
    header = ["session", "user", "query", "item", "position", "clicked", "timestamp"]
    with cached_file(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for batch in sessions.table.to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                clicked = set(row["event_results"])
                for place, (item, position) in enumerate(
                    zip(row["items"], row["positions"], strict=True)
                ):
                    writer.writerow([row["session"], row["user"], row["query"], item, position,
                                     int(place in clicked), row["time"]])  # fmt: skip
