"""From a local file to a checked, memory-mapped dataset. Memory does not grow with the file.

The file is read a block at a time; every block is checked, typed, and written to an Arrow file
in the cache, named by the content and the options. A file with any bad row is refused whole,
and nothing of it is left.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from luthier.data import checks, columns, problems
from luthier.data.arrow_reader import ArrowReader
from luthier.data.blocks import Block, Reader
from luthier.data.csv_reader import CSVReader
from luthier.data.dataset import Dataset
from luthier.data.entry import Writer, read_entry
from luthier.data.json_reader import JSONReader
from luthier.errors import DataError, nearest
from luthier.spec import CSVOptions
from luthier.store import atomic

Format = Literal["csv", "jsonl", "json", "parquet", "arrow"]

#: Raised whenever the same file and options may give another result.
READER_VERSION = 1

_ENDINGS: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "csv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
           b"\x28\xb5\x2f\xfd": "zstd"}  # fmt: skip


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
    kind = _kind(path, file, format)
    content = _sha256(path)
    entry = Path(cache) / _key(content, kind, file, csv)
    found = read_entry(entry)
    if found is not None:
        return found
    with atomic.new_folder(entry) as folder:
        _convert(path, kind, csv, file, folder, progress)
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


def _kind(path: Path, file: str, format: str | None) -> Format:
    if format is not None:
        if format not in get_args(Format):
            hint = nearest(format, get_args(Format)) or f"known: {', '.join(get_args(Format))}"
            raise DataError(f"no format is called '{format}'", file=file, hint=hint)
        return format  # type: ignore[return-value]
    with open(path, "rb") as opened:
        head = opened.read(4096)
    for magic, packed in _PACKED.items():
        if head.startswith(magic):
            raise DataError(f"the file is packed ({packed})", file=file, hint="unpack it first")
    kind = next(
        (_ENDINGS[end] for end in (_ending(file), _ending(str(path))) if end in _ENDINGS), None
    )
    return _of_content(head, kind)


def _ending(name: str) -> str:
    return os.path.splitext(name.partition("?")[0])[1].lower()


def _of_content(head: bytes, kind: Format | None) -> Format:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if kind in ("json", "jsonl"):  # either ending is used for either
        return "json" if _is_array(text) else "jsonl"
    if kind is not None:
        return kind
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return "arrow"
    if text.startswith(b'{"') or text.startswith(b"{ "):
        return "jsonl"
    return "json" if _is_array(text) and text[1:].lstrip()[:1] in (b"{", b"[") else "csv"


def _is_array(text: bytes) -> bool:
    """One array of rows, rather than lines of which each is a list of cells."""
    if not text.startswith(b"["):
        return False
    first, _, second = text.partition(b"\n")
    try:
        row = json.loads(first)
    except ValueError:
        return True  # the array goes on after the first line
    lists_a_line = bool(row) and not isinstance(row[0], dict | list)
    return not lists_a_line and not second.lstrip().startswith(b"[")


def _convert(
    path: Path, kind: Format, csv: CSVOptions, file: str, folder: Path,
    progress: Callable[[int], None] | None,
) -> None:  # fmt: skip
    reader = _reader(path, kind, csv, file)
    found = problems.Problems(file)
    roles = _roles(reader, csv, file, found)
    with Writer(folder, roles, reader.notes) as writer:
        rows = 0
        for block in _first_rows(reader.blocks(found), csv.size):
            batch = checks.check(block, roles, found)
            if batch is not None and not found.found:
                writer.write(batch if csv.sampling_rate is None else _sampled(
                    batch, rows, csv.sampling_rate
                ))  # fmt: skip
            rows += len(block)
            if progress is not None:
                progress(rows)
            if found.full:
                break
        found.check()
        if not writer.rows:
            why = "no rows in the file" if not rows else "sampling_rate left no row"
            raise DataError(why, file=file)


def _reader(path: Path, kind: Format, csv: CSVOptions, file: str) -> Reader:
    chosen = (csv.columns or {}).values()
    keep = {c for c in chosen if isinstance(c, str)} if csv.columns else None
    if keep is not None and len(keep) < len(chosen):
        keep = None
    if kind in ("parquet", "arrow"):
        return ArrowReader(path, kind, file)
    if kind in ("json", "jsonl"):
        return JSONReader(path, csv.encoding, file, array=kind == "json", keep=keep)
    return CSVReader(
        path, csv, file, is_header=lambda cells: columns.looks_like_header(cells, csv, file)
    )


def _roles(reader: Reader, csv: CSVOptions, file: str, found: problems.Problems) -> columns.Roles:
    sample = reader.sample()
    if not len(sample):
        for _ in reader.blocks(found):
            if found.found:
                break
        found.check()
        if reader.names is not None:
            raise DataError("there are names but no rows", file=file)
    return columns.resolve(reader.names, sample, csv, file)


def _first_rows(blocks: Iterator[Block], size: int | None) -> Iterator[Block]:
    left = size
    for block in blocks:
        if left is None:
            yield block
            continue
        if len(block) >= left:
            yield Block([column[:left] for column in block.columns], block.lines)
            return
        left -= len(block)
        yield block


def _sampled(batch: pa.RecordBatch, start: int, rate: float) -> pa.RecordBatch:
    """A row is kept when a hash of its number is low: no state, and the same in every run."""
    mixed = np.arange(start + 1, start + 1 + len(batch), dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)  # splitmix64, Steele et al., OOPSLA 2014
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return batch.filter(pa.array(mixed.astype(np.float64) < rate * 2.0**64))
