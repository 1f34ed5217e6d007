"""Vectors as Parquet: ``versions/VERSION/part-00000.parquet`` …, and ``current``, a link.

Columns of a part: ``id``, ``vector`` (a fixed-size list of float32) and ``model``. Whoever reads
``current/`` reads one whole version, before and after a swap.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.corpus.place import Begun, Plan
from luthier.errors import Conflict, StoreError
from luthier.store import atomic
from luthier.store.bundle import sha256_of

#: Names that readers of Parquet overlook in a folder.
PLAN, MANIFEST, CURRENT = "_plan.json", "_manifest.json", "current"


class Folder:
    """A folder of versions. Raises StoreError, DiskFull."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).expanduser().absolute()
        if self.root.exists() and not self.root.is_dir():
            raise StoreError("is a file, not a folder for vectors", where=str(root))
        self.where, self.notes = str(self.root), []  # type: str, list[str]

    @contextmanager
    def alone(self) -> Iterator[None]:
        atomic.make_folder(self.root / "versions")
        with atomic.translated(self.root):
            lock = os.open(self.root / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with the process
            except BlockingIOError:
                message = "another process encodes into this folder"
                raise Conflict(message, where=self.where) from None
            yield
        finally:
            os.close(lock)

    def begin(self, plan: Plan) -> Begun:
        folder = self._folder(plan.version)
        atomic.make_folder(folder)
        atomic.sweep(folder)
        begun = _read(folder / PLAN)
        if begun is not None:
            plan = dataclasses.replace(plan, shard_rows=int(begun["shard_rows"]))
        else:
            _write(folder / PLAN, plan.facts())
        manifest = _read(folder / MANIFEST)
        done = frozenset(n for n in range(plan.shards) if self._is_whole(plan, n))
        return Begun(plan, done, manifest is not None and len(done) == plan.shards)

    def prepare(self, plan: Plan, dim: int) -> None:
        return None

    def put(self, plan: Plan, shard: int, ids: Sequence[str], vectors: np.ndarray) -> None:
        values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        columns = {
            "id": pa.array(ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(values, vectors.shape[1]),
            "model": pa.array([plan.model] * len(ids), pa.string()),
        }
        table = pa.table(columns).replace_schema_metadata({"luthier.version": plan.version})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=["model"])
        atomic.write_bytes(self._part(plan.version, shard), sink.getvalue().to_pybytes())
        atomic.point("corpus.shard")

    def finish(self, plan: Plan, dim: int) -> None:
        parts = [self._part(plan.version, shard) for shard in range(plan.shards)]
        files = {
            part.name: {
                "rows": plan.rows_of(shard), "bytes": part.stat().st_size,
                "sha256": sha256_of(part),
            }
            for shard, part in enumerate(parts)
        }  # fmt: skip
        facts = {"format": 1, "version": plan.version, "dim": dim, "created_at": time.time()}
        _write(self._folder(plan.version) / MANIFEST, facts | plan.facts() | {"files": files})
        atomic.point("corpus.finished")

    def swap(self, version: str) -> None:
        if self.current() != version:
            atomic.write_link(self.root / CURRENT, f"versions/{version}")

    def current(self) -> str | None:
        link = self.root / CURRENT
        return Path(os.readlink(link)).name if link.is_symlink() else None

    def prune(self) -> list[str]:
        current = self.current()
        old = [p.name for p in (self.root / "versions").iterdir() if not p.name.startswith(".")]
        for name in (gone := sorted(set(old) - {current})):
            atomic.remove(self._folder(name))
        atomic.sweep(self.root / "versions")
        return gone

    def _folder(self, version: str) -> Path:
        return self.root / "versions" / version

    def _part(self, version: str, shard: int) -> Path:
        return self._folder(version) / f"part-{shard:05}.parquet"

    def _is_whole(self, plan: Plan, shard: int) -> bool:
        """Whether a part is there; one that is damaged is made again."""
        part = self._part(plan.version, shard)
        if not part.is_file():
            return False
        try:
            found = pq.read_metadata(part)
        except (pa.ArrowInvalid, OSError):
            self.notes.append(f"{part.name} is damaged and is made again")
            return False
        return bool(
            found.num_rows == plan.rows_of(shard)
            and (found.metadata or {}).get(b"luthier.version") == plan.version.encode()
        )


def _write(path: Path, facts: dict[str, Any]) -> None:
    atomic.write_bytes(path, json.dumps(facts, indent=2, sort_keys=True).encode() + b"\n")


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"is not JSON ({error})", where=str(path), hint="remove it") from None
    return found
