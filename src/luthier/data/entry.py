"""One dataset in the cache: a folder of Arrow files, and what is known about them.

data.arrow      the columns by role; labels as the words of the file
codes.arrow     labelled data: the class code of each row, int64; rankings: texts by number
classes.arrow   labelled data: the word of each code
texts.arrow     rankings: the different texts
meta.json       form, id, mapping, notes, and the sha256 of each file
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.columns import Roles
from luthier.data.dataset import Dataset

#: Rows a record batch holds at most, so that reading one row touches little memory.
_BATCH_ROWS = 65_536
#: The same of rows that hold lists of texts.
_LISTS_ROWS = 8192


class Writer:
    """Writes checked batches, hashes their content, and closes the entry with its meta data.

    Use as a context manager; when its block raises, no meta data is written.
    """

    def __init__(self, folder: Path, roles: Roles, notes: tuple[str, ...]) -> None:
        self.rows = 0
        self._folder, self._roles, self._notes = folder, roles, notes
        self._hashes = {role: ColumnHash() for role in roles.columns}
        fields = [(role, _type(role, roles.form)) for role in roles.columns]
        self._together = _LISTS_ROWS if roles.form == "rankings" else _BATCH_ROWS
        self._sink = pa.OSFile(str(folder / "data.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._sink, pa.schema(fields))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._writer.close()
        self._sink.close()
        if kind is None:
            self._finish()

    def write(self, batch: pa.RecordBatch) -> None:
        """Append rows."""
        for start in range(0, len(batch), self._together):
            part = batch.slice(start, self._together)
            self._writer.write_batch(part)
            for role, column in zip(batch.schema.names, part.columns, strict=True):
                self._hashes[role].add(column)
        self.rows += len(batch)

    def _finish(self) -> None:
        if self._roles.form == "labelled":
            _encode_labels(self._folder)
        if self._roles.form == "rankings":
            _encode_texts(self._folder)
        content = {role: hash_.hexdigest() for role, hash_ in self._hashes.items()}
        facts = json.dumps([self._roles.form, self.rows, content])
        meta = {
            "form": self._roles.form,
            "id": hashlib.sha256(facts.encode()).hexdigest(),
            "mapping": self._roles.shown,
            "notes": self._notes,
            "files": {path.name: _sha256(path) for path in sorted(self._folder.iterdir())},
        }
        (self._folder / "meta.json").write_text(json.dumps(meta, ensure_ascii=False), "utf-8")


class ColumnHash:
    """sha256 of a column's content, the same however it is cut into batches."""

    def __init__(self) -> None:
        self._data, self._lengths = hashlib.sha256(), hashlib.sha256()

    def add(self, column: pa.Array) -> None:
        if pa.types.is_list(column.type):
            sizes = pc.list_value_length(column).to_numpy()
            self._lengths.update(sizes.astype("<i4").tobytes())
            column = column.flatten()
        if pa.types.is_floating(column.type):
            self._data.update(column.to_numpy().astype("<f8").tobytes())
            return
        _, offsets_buffer, data = column.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int32)
        offsets = offsets[column.offset : column.offset + len(column) + 1]
        self._lengths.update(np.diff(offsets).astype("<i4").tobytes())
        if data is not None:
            self._data.update(memoryview(data)[offsets[0] : offsets[-1]])

    def hexdigest(self) -> str:
        return hashlib.sha256(self._data.digest() + self._lengths.digest()).hexdigest()


def _encode_labels(folder: Path) -> None:
    """Codes count classes in the order in which they first appear. Only the distinct labels
    are held in memory."""
    labels = _mapped(folder / "data.arrow").column("label")
    classes: pa.Array | None = None
    with pa.OSFile(str(folder / "codes.arrow"), "wb") as sink:
        schema = pa.schema([("label", pa.int64())])
        with pa.ipc.new_file(sink, schema) as writer:
            encoded = pc.dictionary_encode(labels.cast(pa.large_string()))
            for chunk in encoded.chunks:
                codes = chunk.indices.cast(pa.int64())
                writer.write_batch(pa.record_batch([codes], schema=schema))
                classes = chunk.dictionary
    if classes is None:
        classes = pa.array([], pa.large_string())
    with pa.OSFile(str(folder / "classes.arrow"), "wb") as sink:
        batch = pa.record_batch([classes], names=["class"])
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)


def _type(role: str, form: str) -> pa.DataType:
    if form == "rankings" and role != "query":
        return pa.list_(pa.string() if role == "items" else pa.float64())
    return pa.float64() if role in ("score", "margin") else pa.string()


def _encode_texts(folder: Path) -> None:
    from luthier.data.rankings import encode

    for name, table in zip(("texts", "codes"), encode(_mapped(folder / "data.arrow")), strict=True):
        with (
            pa.OSFile(str(folder / f"{name}.arrow"), "wb") as sink,
            pa.ipc.new_file(sink, table.schema) as writer,
        ):
            writer.write_table(table)


def read_entry(entry: Path) -> Dataset | None:
    """The dataset of a cache entry; None when it is not there or not as it was written."""
    try:
        meta: dict[str, Any] = json.loads((entry / "meta.json").read_text("utf-8"))
        for name, sha256 in meta["files"].items():
            if _sha256(entry / name) != sha256:
                return None
    except (OSError, ValueError, KeyError):
        return None
    table = _mapped(entry / "data.arrow")
    classes = None
    if meta["form"] == "rankings":
        from luthier.data.rankings import Rankings

        return Rankings(
            table, meta["id"], {role: meta["mapping"][role] for role in table.column_names},
            texts=_mapped(entry / "texts.arrow"), codes=_mapped(entry / "codes.arrow"),
            notes=tuple(meta["notes"]),
        )  # fmt: skip
    if meta["form"] == "labelled":
        place = table.column_names.index("label")
        codes = _mapped(entry / "codes.arrow").column("label")
        table = table.set_column(place, "label", codes)
        classes = _mapped(entry / "classes.arrow").column("class").combine_chunks()
    mapping = {role: meta["mapping"][role] for role in table.column_names}
    return Dataset(
        meta["form"], table, meta["id"], mapping, classes=classes, notes=tuple(meta["notes"])
    )


def _mapped(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
