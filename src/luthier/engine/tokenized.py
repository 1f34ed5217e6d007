"""Tokenize once: the token ids of a data set's texts in memory-mapped Arrow files.

Keyed by the content of the data and by all that the tokenizer does, so that a second run, a
trial of a search or another epoch only reads. Large data are tokenized by a thread while the
run already trains: until it is ready, batches are tokenized as they are fetched.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.batches import Plan
from luthier.data import Dataset
from luthier.models.tokens import Tokens
from luthier.store.atomic import cached_file

#: Texts that are tokenized together: few enough that memory stays flat, and that a batch that
#: waits for the tokenizer waits some hundredths of a second only.
_TOGETHER = 1024

#: Rows up to which a run waits for its tokens: about a second for short texts.
_AT_ONCE = 20_000

#: Part of the data below which only the rows that the run will see are tokenized.
_MOST = 0.5


class Tokenized:
    """The tokens of a data set's rows: ``Texts`` of a learner.

    rows: sorted, distinct rows that will be asked for; None for all. At most ``at_once`` rows
    are tokenized before this returns, more by a thread, which ``close`` stops.
    """

    def __init__(
        self,
        model: Any,
        dataset: Dataset,
        cache: Path,
        rows: np.ndarray | None = None,
        *,
        at_once: int = _AT_ONCE,
    ) -> None:
        self._model, self._dataset, self._rows = model, dataset, rows
        self._stop = threading.Event()
        self._columns: Future[dict[str, TokenColumn]] = Future()
        part = dataset if rows is None else dataset.take(rows)
        mark = _fingerprint(model)
        files = {role: _file(part, role, mark, cache) for role in dataset.roles}
        missing = {role: file for role, file in files.items() if not file.exists()}
        stopped = self._stop.is_set

        def make() -> None:
            try:
                for role, file in missing.items():
                    with cached_file(file) as aside:
                        _write(model, part, role, aside, stopped)
                self._columns.set_result({r: TokenColumn(f) for r, f in files.items()})
            except BaseException as error:
                self._columns.set_exception(error)

        if len(part) <= at_once or not missing:
            make()
            self._columns.result()
        else:
            self._thread = threading.Thread(target=make, name="tokenizer", daemon=True)
            self._thread.start()

    def __call__(self, role: str, asked: np.ndarray) -> Tokens:
        if not self.ready:
            tokens: Tokens = self._model.tokens(self._dataset.texts(role, asked))
            return tokens
        column = self._columns.result()[role]
        return column.take(asked if self._rows is None else np.searchsorted(self._rows, asked))

    @property
    def ready(self) -> bool:
        """Whether all tokens are there. A thread that failed leaves them to the batches."""
        return self._columns.done() and self._columns.exception() is None

    def close(self) -> None:
        """Stop tokenizing; what is not complete is thrown away."""
        self._stop.set()
        if not self._columns.done():
            self._thread.join()


def tokenize_once(
    model: Any, dataset: Dataset, cache: Path, rows: np.ndarray | None = None
) -> Tokenized | None:
    """The tokens of a data set, from the cache or made now; None where the tokenizer cannot
    be told from another by its content (those written in Python)."""
    return Tokenized(model, dataset, cache, rows) if _can_be_told_apart(model) else None


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


def _file(dataset: Dataset, role: str, mark: str, cache: Path) -> Path:
    told = f"{dataset.id} {role} {mark}"
    return cache / "tokens" / f"{hashlib.sha256(told.encode()).hexdigest()[:40]}.arrow"


class _Stopped(Exception):
    """The run has ended before its tokens were all made."""


def _write(
    model: Any, dataset: Dataset, role: str, file: Path, stopped: Callable[[], bool]
) -> None:
    ids = pa.uint16() if len(model.tokenizer) <= 1 << 16 else pa.int32()
    schema = pa.schema([("tokens", pa.list_(ids))])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(dataset), _TOGETHER):
            if stopped():
                raise _Stopped
            texts: Sequence[str] = dataset.slice_of(role, start, start + _TOGETHER).to_pylist()
            found = model.tokens(texts)
            offsets = pa.array(np.concatenate([[0], found.ends]).astype(np.int32))
            lists = pa.ListArray.from_arrays(offsets, pa.array(found.values, ids))
            writer.write_batch(pa.record_batch([lists], schema=schema))


def _can_be_told_apart(model: Any) -> bool:
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    return backend is not None and not model.has_types


def _fingerprint(model: Any) -> str:
    """All that decides the tokens of a text."""
    words = json.loads(model.tokenizer.backend_tokenizer.to_str())
    words |= {"truncation": None, "padding": None}  # what it remembers of its last batch
    told = [json.dumps(words, sort_keys=True), model.max_length, model.prompt]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()
