"""One file, read a block at a time into checked batches. Memory does not grow with the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from luthier.data import checks, columns
from luthier.data.arrow_reader import ArrowReader
from luthier.data.blocks import Block, Reader
from luthier.data.csv_reader import CSVReader
from luthier.data.json_reader import JSONReader
from luthier.data.problems import Problems
from luthier.errors import DataError, nearest
from luthier.spec import CSVOptions

Format = Literal["csv", "jsonl", "json", "parquet", "arrow"]

_ENDINGS: dict[str, Format] = {
    ".csv": "csv", ".tsv": "csv", ".tab": "csv", ".txt": "csv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".parquet": "parquet", ".pq": "parquet",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz",
           b"\x28\xb5\x2f\xfd": "zstd"}  # fmt: skip


def kind_of(path: Path, file: str, format: str | None) -> Format:
    """The format of a file: as asked for, by its name, or failing that by its content."""
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
    except (ValueError, RecursionError):
        return True  # the array goes on after the first line; or is none, as its reader says
    lists_a_line = bool(row) and not isinstance(row[0], dict | list)
    return not lists_a_line and not second.lstrip().startswith(b"[")


@dataclass(frozen=True)
class Reading:
    """A file being read. ``batches`` can be passed through once, and raises DataError at its
    end when a row was bad: what it gave before is then to be thrown away."""

    roles: columns.Roles
    notes: tuple[str, ...]
    batches: Iterator[pa.RecordBatch]


def read(
    path: Path, kind: Format, csv: CSVOptions, file: str, *,
    progress: Callable[[int], None] | None = None, reader: Reader | None = None,
) -> Reading:  # fmt: skip
    """Begin to read a file. Raises DataError; see ``load_dataset``."""
    reader = reader or open_reader(path, kind, csv, file)
    found = Problems(file)
    roles = _roles(reader, csv, file, found)
    return Reading(roles, reader.notes, _batches(reader, roles, csv, found, progress))


def _batches(
    reader: Reader, roles: columns.Roles, csv: CSVOptions, found: Problems,
    progress: Callable[[int], None] | None,
) -> Iterator[pa.RecordBatch]:  # fmt: skip
    rows = kept = 0
    for block in first_rows(reader.blocks(found), csv.size, found):
        batch = checks.check(block, roles, found)
        if batch is not None and not found.found:
            if csv.sampling_rate is not None:
                batch = batch.filter(pa.array(sample_mask(rows, len(batch), csv.sampling_rate)))
            kept += len(batch)
            yield batch
        rows += len(block)
        if progress is not None:
            progress(rows)
        if found.full:
            break
    found.check()
    if not kept:
        why = "no rows in the file" if not rows else "sampling_rate left no row"
        raise DataError(why, file=found.file)


def open_reader(path: Path, kind: Format, csv: CSVOptions, file: str) -> Reader:
    """The reader of a format."""
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


def _roles(reader: Reader, csv: CSVOptions, file: str, found: Problems) -> columns.Roles:
    sample = reader.sample()
    if not len(sample):
        for _ in reader.blocks(found):
            if found.found:
                break
        found.check()
        if reader.names is not None:
            raise DataError("there are names but no rows", file=file)
    return columns.resolve(reader.names, sample, csv, file)


def first_rows(blocks: Iterator[Block], size: int | None, found: Problems) -> Iterator[Block]:
    """The blocks of the first ``size`` rows; problems of later rows are forgotten."""
    left = size
    for block in blocks:
        if left is None:
            yield block
            continue
        if len(block) >= left:
            found.forget_after(block.lines()[left - 1])
            yield Block([column[:left] for column in block.columns], block.lines)
            return
        left -= len(block)
        yield block


def sample_mask(start: int, count: int, rate: float) -> np.ndarray:
    """Which of ``count`` rows from row ``start`` on are kept, bool [count].

    A row is kept when a hash of its number is low: no state, and the same in every run.
    """
    mixed = np.arange(start + 1, start + 1 + count, dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)  # splitmix64, Steele et al., OOPSLA 2014
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    kept: np.ndarray = mixed.astype(np.float64) < rate * 2.0**64
    return kept
