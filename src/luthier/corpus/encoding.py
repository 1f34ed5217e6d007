"""``encode_corpus``: the vectors of all items by a model, shard by shard, until all are there."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from luthier.corpus.items import Items
from luthier.corpus.place import Begun, Place, Plan
from luthier.errors import DataError, Problem, SpecError

if TYPE_CHECKING:
    from luthier.runs.client import Run
    from luthier.spec import CSVOptions

#: Progress is told so many rows after another at least.
_TOLD_ROWS = 1024
SHARD_ROWS = 8192

Progress = Callable[[int, int], None]


class Encodes(Protocol):
    """``luthier.inference.Encoder``."""

    @property
    def dim(self) -> int: ...

    def encode(
        self, texts: Sequence[str], batch_size: int | None = None, normalize: bool = False
    ) -> np.ndarray: ...


@dataclass(frozen=True)
class Corpus:
    """What ``encode_corpus`` did. rows: of the version; encoded: by this call, the others were
    there. removed: versions that were pruned. where: ``FOLDER/current``, or the table."""

    version: str
    model: str
    where: str
    rows: int
    encoded: int
    seconds: float
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def encode_corpus(
    model: str | os.PathLike[str] | Run,
    items: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    id_column: str | None = None,
    text_columns: Sequence[str] | str = (),
    table: str = "luthier_vectors",
    vector_type: str = "auto",
    batch_size: int = 32,
    normalize: bool = False,
    device: str | None = None,
    is_onnx: bool = False,
    shard_rows: int = SHARD_ROWS,
    prune: bool = False,
    csv_options: CSVOptions | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Encode every item of a file into Parquet or PostgreSQL.

    May be killed at any time and called again: shards that are whole stay. Called again with
    the same model and items it does nothing. With another model, or other items, it makes
    another version, which takes the place of the one before at once when it is whole; the old
    one is kept until ``prune``. Memory does not grow with the file.

    Args:
        model: a folder, a name of ``luthier.list_models()``, ``alias:NAME``, a run, an artifact.
        items: CSV, JSONL, Parquet or Arrow, an item a row, an id and a text each.
        destination: a folder, or ``postgresql://…``, where ``table`` names the view to read.
        id_column, text_columns: see ``luthier.corpus.items.Items``.
        vector_type: of the column in PostgreSQL: "vector" (pgvector), "real" (``real[]``), or
            "auto": the first where it is there.
        normalize: scale each vector to length 1.
        shard_rows: rows that are kept, or lost to a kill, together.
        prune: afterwards remove every version but the new one.
        progress: is told (rows done, rows).

    Raises:
        DataError: a bad row, by row and column, before anything is encoded; or a file that
        changed meanwhile. NotFound, ModelError: the model. Conflict: another encodes there.
        StoreError, DiskFull: the place.
    """
    from luthier.inference import find_model

    if shard_rows < 1:
        raise SpecError([Problem("shard_rows", "is at least 1")])
    place = open_place(destination, table, vector_type)
    columns = [text_columns] if isinstance(text_columns, str) else list(text_columns)
    source = Items(Path(items), id_column=id_column, text_columns=columns, csv=csv_options)
    name = model.artifact_id if hasattr(model, "artifact_id") else os.fspath(model)
    found = find_model(name)
    opened: list[Encodes] = []
    if (identity := found.identity()).endswith("@not fetched"):
        opened.append(found.open(batch_size, device, is_onnx))
        identity = found.identity()

    def encoder() -> Encodes:
        return opened[0] if opened else found.open(batch_size, device, is_onnx)

    def plan() -> Plan:
        survey = source.survey()
        return Plan(
            identity, name, source.file, survey.sha256, survey.rows, normalize, is_onnx, shard_rows
        )

    return write_corpus(plan, source, place, encoder, prune=prune, progress=progress)


def open_place(destination: str | os.PathLike[str], table: str, vector_type: str) -> Place:
    """The place of a destination. Raises SpecError for one that is neither."""
    text = os.fspath(destination)
    if text.startswith(("postgresql://", "postgres://")):
        from luthier.corpus.postgresql import Table

        return Table(text, table, vector_type)
    if "://" in text:
        hint = "a folder, or postgresql://user@host/database"
        raise SpecError([Problem("destination", f"'{text.partition('://')[0]}' cannot hold vectors",
                                 hint)])  # fmt: skip
    from luthier.corpus.folder import Folder

    return Folder(Path(text))


def write_corpus(
    plan: Callable[[], Plan], items: Items, place: Place, encoder: Callable[[], Encodes], *,
    prune: bool = False, progress: Progress | None = None,
) -> Corpus:  # fmt: skip
    """Encode what is not there yet. encoder: is asked for only when there is something."""
    start, encoded = time.monotonic(), 0
    with place.alone():
        begun = place.begin(plan())
        if not begun.finished:
            encoded = _encode(begun, items, place, encoder(), progress)
        place.swap(begun.plan.version)
        removed = place.prune() if prune else []
    return Corpus(
        begun.plan.version, begun.plan.model, place.where, begun.plan.rows, encoded,
        time.monotonic() - start, tuple(removed), tuple(place.notes),
    )  # fmt: skip


def _encode(
    begun: Begun, items: Items, place: Place, encoder: Encodes, progress: Progress | None
) -> int:
    """Encode and keep the shards that lack; how many rows those had."""
    plan, digest = begun.plan, hashlib.sha256()
    tell = progress or (lambda done, rows: None)
    place.prepare(plan, encoder.dim)
    passed = encoded = 0
    for shard, (ids, texts) in enumerate(_shards(items, plan.shard_rows, digest)):
        if shard not in begun.done and len(ids) == plan.rows_of(shard):
            vectors = _vectors(encoder, texts, plan.normalize, passed, plan.rows, tell)
            place.put(plan, shard, ids, vectors)
            encoded += len(ids)
        passed += len(ids)
        tell(passed, plan.rows)
    if digest.hexdigest() != plan.data:
        hint = "call again: it is encoded as it is then"
        raise DataError("the file changed while it was encoded", file=items.file, hint=hint)
    place.finish(plan, encoder.dim)
    return encoded


def _vectors(
    encoder: Encodes, texts: list[str], normalize: bool, passed: int, rows: int, tell: Progress
) -> np.ndarray:
    """Vectors of a shard, float32 [n, dim]. The longest texts go first: what memory they need
    shows at once, and each piece holds texts of nearly the same length."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    found = np.empty((len(texts), encoder.dim), dtype=np.float32)
    for start in range(0, len(texts), _TOLD_ROWS):
        rows_here = order[start : start + _TOLD_ROWS]
        found[rows_here] = encoder.encode([texts[i] for i in rows_here], normalize=normalize)
        tell(passed + start + len(rows_here), rows)
    return found


def _shards(items: Items, shard_rows: int, digest: Any) -> Iterator[tuple[list[str], list[str]]]:
    """The items, so many at a time, whatever blocks the file is read in."""
    ids: list[str] = []
    texts: list[str] = []
    for some_ids, some_texts in items.blocks(digest):
        ids += some_ids
        texts += some_texts
        while len(ids) >= shard_rows:
            yield ids[:shard_rows], texts[:shard_rows]
            ids, texts = ids[shard_rows:], texts[shard_rows:]
    if ids:
        yield ids, texts
