"""Tokenize once: the token ids of a data set's texts in memory-mapped Arrow files.

Keyed by the content of the data and by all that the tokenizer does, so that a second run, a
trial of a search or another epoch only reads. Tokenizing is never part of a step.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.batches import Plan
from luthier.data import Dataset
from luthier.engine.control import Listener
from luthier.engine.learner import Texts
from luthier.models.tokens import Tokens
from luthier.store.atomic import translated

#: Texts that are tokenized together: enough to keep all cores busy, few enough that memory
#: stays flat and progress is seen.
_TOGETHER = 16_384

#: Part of the data below which only the rows that the run will see are tokenized.
_MOST = 0.5


def tokenize_once(
    model: Any, dataset: Dataset, cache: Path, tell: Listener, rows: np.ndarray | None = None
) -> Texts | None:
    """The tokens of a data set, from the cache or made now; None where the tokenizer cannot
    be told from another by its content (those written in Python).

    rows: sorted, distinct rows that will be asked for; None for all.
    """
    mark = _fingerprint(model)
    if mark is None:
        return None
    part = dataset if rows is None else dataset.take(rows)
    columns = {role: _column(model, part, role, mark, cache, tell) for role in dataset.roles}

    def texts(role: str, asked: np.ndarray) -> Tokens:
        return columns[role].take(asked if rows is None else np.searchsorted(rows, asked))

    return texts


def rows_seen(plan: Plan, steps: int, rows: int) -> np.ndarray | None:
    """The rows that ``steps`` steps visit, sorted; None when that is most of them."""
    if steps * plan.batch_size >= rows * _MOST:
        return None
    per_epoch = plan.steps_per_epoch
    seen = [plan.rows(*divmod(step, per_epoch)) for step in range(steps)]
    return np.unique(np.concatenate(seen)) if seen else np.zeros(0, dtype=np.int64)


class TokenColumn:
    """The tokens of one role's texts, memory-mapped: int32 or uint16 ids, a list a text."""

    def __init__(self, file: Path) -> None:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        chunks = table.column("tokens").chunks
        self._values = [c.values.to_numpy() for c in chunks]
        self._offsets = [c.offsets.to_numpy() for c in chunks]
        self._ends = np.cumsum([len(c) for c in chunks])

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def take(self, rows: np.ndarray) -> Tokens:
        """The texts of some rows, in their order."""
        chunks = np.searchsorted(self._ends, rows, side="right")
        within = rows - np.concatenate([[0], self._ends])[chunks]
        parts: list[np.ndarray] = []
        for chunk, row in zip(chunks.tolist(), within.tolist(), strict=True):
            offsets = self._offsets[chunk]
            parts.append(self._values[chunk][offsets[row] : offsets[row + 1]])
        lengths = np.fromiter((len(part) for part in parts), np.int64, len(parts))
        values = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        return Tokens(values.astype(np.int32, copy=False), lengths)


def _column(
    model: Any, dataset: Dataset, role: str, mark: str, cache: Path, tell: Listener
) -> TokenColumn:
    key = hashlib.sha256(f"{dataset.id} {role} {mark}".encode()).hexdigest()[:40]
    file = cache / "tokens" / f"{key}.arrow"
    if not file.exists():
        with translated(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.part")
            try:
                _write(model, dataset, role, aside, tell)
                os.replace(aside, file)  # not fsynced: a cache that is lost is made again
            finally:
                aside.unlink(missing_ok=True)
    return TokenColumn(file)


def _write(model: Any, dataset: Dataset, role: str, file: Path, tell: Listener) -> None:
    ids = pa.uint16() if len(model.tokenizer) <= 1 << 16 else pa.int32()
    schema = pa.schema([("tokens", pa.list_(ids))])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(dataset), _TOGETHER):
            if start:
                tell("stage", {"name": f"tokenizing {role}: {start:,} of {len(dataset):,}"})
            texts: Sequence[str] = dataset.slice_of(role, start, start + _TOGETHER).to_pylist()
            found = model.tokens(texts)
            offsets = pa.array(np.concatenate([[0], found.ends]).astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(found.values, ids))
            writer.write_batch(pa.record_batch([lists], schema=schema))


def _fingerprint(model: Any) -> str | None:
    """All that decides the tokens of a text."""
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is None or model.has_types:
        return None
    words = json.loads(backend.to_str())
    words |= {"truncation": None, "padding": None}  # what it remembers of its last batch
    told = [json.dumps(words, sort_keys=True), model.max_length, model.prompt]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
