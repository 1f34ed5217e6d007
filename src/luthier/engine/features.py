"""What a task makes of rows, made once and memory-mapped: nothing is tokenized in a step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from luthier.engine.control import Listener
from luthier.store.atomic import cached_file
from luthier.tasks.batching import Feature
from luthier.tasks.examples import Examples
from luthier.tasks.task import Task

#: Rows that are tokenized together.
_TOGETHER = 1024


class Features:
    """The features of examples, by number. A row may have given several.

    Images are prepared as they are fetched: prepared they are many times their files.
    """

    def __init__(
        self, task: Task, examples: Examples, processor: Any, cache: Path, obey: Callable[[], None]
    ) -> None:
        self._task, self._examples, self._processor = task, examples, processor
        self._table: pa.Table | None = None
        if not task.of_images:
            file = cache / "features" / f"{_key(task, examples, processor)}.arrow"
            if not file.exists():
                with cached_file(file) as aside:
                    _write(task, examples, processor, aside, obey)
            self._table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            self.lengths = _lengths(self._table)
        else:
            self.lengths = np.ones(len(examples), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def id(self) -> str:
        """The same for the same features."""
        return _key(self._task, self._examples, self._processor)

    def take(self, places: np.ndarray) -> list[Feature]:
        """Some of them, in the order asked for."""
        if self._table is None:
            return self._task.features(self._examples, places, self._processor)
        found: list[Feature] = self._table.take(pa.array(places)).to_pylist()
        return [{k: v for k, v in feature.items() if v is not None} for feature in found]


def _lengths(table: pa.Table) -> np.ndarray:
    import pyarrow.compute as pc

    column = table.column("input_ids")
    lengths: np.ndarray = pc.list_value_length(column).to_numpy().astype(np.int64)
    return lengths


def _write(
    task: Task, examples: Examples, processor: Any, file: Path, obey: Callable[[], None]
) -> None:
    writer, schema = None, None
    with pa.OSFile(str(file), "wb") as sink:
        for start in range(0, len(examples), _TOGETHER):
            obey()
            rows = np.arange(start, min(start + _TOGETHER, len(examples)), dtype=np.int64)
            table = pa.Table.from_pylist(task.features(examples, rows, processor), schema=schema)
            if writer is None:
                schema = table.schema
                writer = pa.ipc.new_file(sink, schema)
            writer.write_table(table)
        assert writer is not None
        writer.close()


def _key(task: Task, examples: Examples, processor: Any) -> str:
    """All that decides the features: the rows, the task and its options, the tokenizer."""
    backend = getattr(processor, "backend_tokenizer", None)
    words = json.loads(backend.to_str()) if backend is not None else str(processor)
    if isinstance(words, dict):
        words |= {"truncation": None, "padding": None}  # what it remembers of its last batch
    told = [
        examples.rows.id,
        dict(examples.columns),
        list(examples.labels),
        examples.supervised,
        task.name,
        task.processing.model_dump(mode="json"),
        task.limit(processor) if not task.of_images else None,
        words,
        str(getattr(processor, "chat_template", None)),
    ]
    text = json.dumps(told, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def say_what_is_cut(features: Features, limit: int | None, tell: Listener) -> None:
    """A warning where many texts are as long as they may be."""
    if limit is None or not len(features):
        return
    share = float((features.lengths >= limit).mean())
    if share > 0.05:
        message = f"{share:.0%} of the rows fill all {limit} tokens; longer texts are cut there"
        tell("log", {"level": "warning", "message": message})
