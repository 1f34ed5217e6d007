"""From a local file to a checked, memory-mapped dataset, by way of a cache.

The cache holds each file once for every way of reading it, as Arrow, named by the content and
the options; a folder of it is whole or not there. It is safe to delete at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from luthier.data.dataset import Dataset
from luthier.data.entry import Writer, read_entry
from luthier.data.reading import Format, kind_of, read
from luthier.errors import DataError
from luthier.spec import CSVOptions
from luthier.store import atomic

#: Raised whenever the same file and options may give another result.
READER_VERSION = 1


def load_dataset(
    path: Path, csv: CSVOptions, cache: Path, *, name: str | None = None,
    format: Format | None = None, progress: Callable[[int], None] | None = None,
) -> Dataset:  # fmt: skip
    """Read a file, or find it in the cache.

    csv: ``size``, ``sampling_rate``, ``is_labeled`` and ``columns`` hold for every format;
    ``dialect``, ``delimiter`` and ``header`` for CSV; ``encoding`` for CSV and JSON.
    name: what the user calls the file, for messages and, by its ending, the format.
    format: csv, jsonl, json, parquet or arrow; None tells it from the name or the content.
    progress: told the rows read so far.
    Raises DataError with file, row (as an editor counts lines) and column.
    """
    path = Path(path)
    file = name or str(path)
    _refuse_other_modalities(csv, file)
    before = _stat(path, file)
    kind = kind_of(path, file, format)
    content = _sha256(path)
    entry = Path(cache) / _key(content, kind, file, csv)
    found = read_entry(entry)
    if found is not None:
        return found
    with atomic.new_folder(entry) as folder:
        reading = read(path, kind, csv, file, progress=progress)
        with Writer(folder, reading.roles, reading.notes) as writer:
            for batch in reading.batches:
                writer.write(batch)
        if _stat(path, file) != before:
            raise DataError("the file changed while it was read", file=file)
    written = read_entry(entry)
    if written is None:
        raise DataError("the cache cannot be read back", file=str(entry))
    return written


def _stat(path: Path, file: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise DataError("there is no such file", file=file) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot be read: {reason}", file=file) from None
    if not found.st_size:
        raise DataError("the file is empty", file=file)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _key(content: str, kind: str, file: str, csv: CSVOptions) -> str:
    # the ending of a name can decide the dialect
    ending = os.path.splitext(file)[1].lower() if kind == "csv" else ""
    options = csv.model_dump(mode="json", exclude_defaults=True)
    facts = json.dumps([READER_VERSION, content, kind, ending, options], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest()[:40]


def _refuse_other_modalities(csv: CSVOptions, file: str) -> None:
    defaults = CSVOptions()
    for option in ("convert_to_blob", "create_point_clouds", "point_cloud_size"):
        if getattr(csv, option) != getattr(defaults, option):
            message = f"csv_options.{option} is for images and meshes; this data is text"
            raise DataError(message, file=file, hint=f"leave {option} out")
