"""Rows that are remembered from one update to the next: as a file, and before the new ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from luthier.data.columns import VALUE_ROLES
from luthier.data.dataset import Dataset
from luthier.errors import DataError

#: Rows that are copied together: what a memory takes of RAM while it is written.
_TOGETHER = 8192


def keep(dataset: Dataset, rows: npt.NDArray[np.int64], file: Path) -> None:
    """Write rows as an Arrow file, columns by role, labels by their names. Nothing for none."""
    if not len(rows):
        return
    values = {role: dataset.array(role) for role in VALUE_ROLES if role in dataset.mapping}
    told = {"form": dataset.form, "mapping": json.dumps(dataset.mapping)}
    sample = _batch(dataset, rows[:1], values)
    schema = sample.schema.with_metadata(told)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(rows), _TOGETHER):
            part = _batch(dataset, rows[start : start + _TOGETHER], values)
            writer.write_batch(part.replace_schema_metadata(told))


def _batch(dataset: Dataset, rows: npt.NDArray[np.int64], values: dict[str, Any]) -> pa.RecordBatch:
    columns: dict[str, pa.Array] = {
        role: pa.array(dataset.texts(role, rows), pa.string()) for role in dataset.roles
    }
    for role, of_all in values.items():
        found = of_all[rows]
        columns[role] = (
            pa.array([dataset.class_name(code) for code in found.tolist()], pa.string())
            if role == "label"
            else pa.array(found)
        )
    return pa.record_batch(columns)


def bytes_of(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The bytes of each row (n,): its texts, and 8 for a value."""
    found = np.full(len(dataset), 8 * sum(r in dataset.mapping for r in VALUE_ROLES), np.int64)
    for role in dataset.roles:
        lengths = [pc.binary_length(chunk).to_numpy() for chunk in dataset.chunks(role)]
        found += np.concatenate(lengths)
    return found


def kept(file: Path) -> Dataset:
    """Read them back, texts mapped into memory."""
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    classes = None
    if "label" in table.column_names:
        codes = table.column("label").combine_chunks().dictionary_encode()
        classes = codes.dictionary
        place = table.column_names.index("label")
        table = table.set_column(place, "label", codes.indices.cast(pa.int64()))
    with open(file, "rb") as opened:
        content = hashlib.file_digest(opened, "sha256").hexdigest()
    return Dataset(told["form"], table, content, json.loads(told["mapping"]), classes=classes)


def joined(old: Dataset, new: Dataset, update: int) -> Dataset:
    """Remembered rows first, then the new ones, copying neither.

    update: the number of this update, from 1, for the names of classes that have none.
    Raises DataError where the rows are not of one kind.
    """
    if (old.form, old.roles) != (new.form, new.roles):
        raise DataError(
            f"the new rows are {new.form} ({', '.join(new.roles)}), those that are remembered "
            f"{old.form} ({', '.join(old.roles)})",
            hint="an update takes rows of the same kind as the updates before",
        )
    digest = hashlib.sha256(f"{old.id} {new.id} {update}".encode()).hexdigest()
    tables, classes = [old.table, new.table], None
    if new.form == "labelled":
        names, codes = _coded(old, new, update)
        classes = pa.array(names, pa.string())
        place = tables[1].column_names.index("label")
        tables[1] = tables[1].set_column(place, "label", pa.array(codes))
    tables = [_plain(table, tables[0].column_names) for table in tables]
    notes = (*new.notes, f"{len(old):,} remembered rows come first")
    return Dataset(
        new.form, pa.concat_tables(tables), digest, new.mapping, classes=classes, notes=notes
    )


def _coded(old: Dataset, new: Dataset, update: int) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The names of all classes, those of old rows first, and the codes of the new rows."""
    names = [old.class_name(code) for code in range(old.num_classes)]
    place = {name: code for code, name in enumerate(names)}
    codes = new.array("label")
    moved = np.full(new.num_classes, -1, dtype=np.int64)
    for code in np.unique(codes).tolist():
        name = new.class_name(code)
        if name == f"component {code}":  # of these rows alone: not that of other rows
            name = f"{name} of update {update}"
        moved[code] = place.setdefault(name, len(place))
    return list(place), moved[codes]


def _plain(table: pa.Table, names: list[str]) -> pa.Table:
    """Columns in one order and of one type, without what the files said beside."""
    chosen = table.select(names).replace_schema_metadata(None)
    schema = pa.schema([(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type)
                        for f in chosen.schema])  # fmt: skip
    return chosen.cast(schema)
