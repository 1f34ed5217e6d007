"""Data handed over in memory, written as an Arrow file: it is then read as any file is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.data import documents
from luthier.data.list_columns import are_rankings, list_role
from luthier.errors import DataError

_ROWS = 8192
ACCEPTED = (
    "a list of dicts or of tuples, a dict of columns, a pandas DataFrame, a pyarrow Table, "
    "a datasets.Dataset, a DocumentArray"
)


def to_arrow(data: object, destination: Path) -> None:
    """Write data as an Arrow IPC file, its columns named as given (tuples: by their number).

    data: a list of dicts, a list of tuples, a dict of columns, a pandas DataFrame, a pyarrow
    Table, a ``datasets.Dataset``, a ``DocumentArray`` of ours or of docarray.
    Raises DataError that names the row and column of the first value that is no text and no
    number; then nothing is written.
    """
    batches = _batches(data)
    first = next(batches, None)
    if first is None:
        raise DataError("the data has no rows")
    destination = Path(destination)
    try:
        with (
            pa.OSFile(str(destination), "wb") as sink,
            pa.ipc.new_file(sink, first.schema) as writer,
        ):
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
    except BaseException:
        destination.unlink(missing_ok=True)
        raise


def _batches(data: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(data, pa.RecordBatch):
        data = pa.Table.from_batches([data])
    if isinstance(data, pa.Table):
        return _of_tables([data])
    module = type(data).__module__.partition(".")[0]
    if module == "datasets":
        return _of_tables(_datasets_tables(data))
    if module == "pandas" and hasattr(data, "columns"):
        return _of_tables([_frame_table(data)])
    if documents.is_documents(data):
        return _of_dicts(documents.rows(data))
    if isinstance(data, Mapping):
        return _of_dicts(_columns_to_rows(data))
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        return _of_rows(data)
    raise DataError(f"cannot train on a {type(data).__name__}", hint=f"give a path, or {ACCEPTED}")


def _datasets_tables(data: Any) -> Iterator[pa.Table]:
    if not hasattr(data, "iter"):
        kind = type(data).__name__
        hint = "give one split of it: data['train']"
        raise DataError(f"cannot train on a datasets.{kind}", hint=hint)
    yield from data.with_format("arrow").iter(batch_size=65_536)


def _frame_table(frame: Any) -> pa.Table:
    frame = frame.rename(columns=str)
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # a column of mixed types: row by row
        return pa.Table.from_batches(list(_of_dicts(frame.to_dict("records"))))


def _of_tables(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    start = 1
    for table in tables:
        for batch in table.replace_schema_metadata(None).to_batches(max_chunksize=65_536):
            if not len(batch):
                continue
            # Rankings have two columns of lists at least; what is in them is checked when read.
            lists = sum(map(_is_list, batch.schema.types)) > 1
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                _check_column(name, column, start, lists)
            yield batch
            start += len(batch)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _check_column(name: str, column: pa.Array, start: int, lists: bool) -> None:
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if lists and _is_list(kind):
        kind = kind.value_type
    known = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind)
    if not (known or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"expected texts or numbers, found {kind}", row=start, column=name)
    if column.null_count:
        row = start + column.is_null().to_pylist().index(True)
        raise DataError("missing: the value is None", row=row, column=name)


def _columns_to_rows(data: Mapping[Any, Any]) -> list[dict[str, Any]]:
    if not data:
        return []
    lists = {str(name): list(values) for name, values in data.items() if _listlike(values)}
    if len(lists) < len(data):
        odd = next(name for name, values in data.items() if not _listlike(values))
        raise DataError("expected a list of values", column=str(odd), hint=f"give {ACCEPTED}")
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"columns of different length: {sizes}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def _listlike(values: object) -> bool:
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping)


def _of_rows(data: Sequence[Any]) -> Iterator[pa.RecordBatch]:
    if not data:
        return iter(())
    first = data[0]
    if isinstance(first, Mapping):
        return _of_dicts(data)
    if not isinstance(first, list | tuple):
        raise DataError(
            f"expected a dict or a tuple, found {type(first).__name__} {first!r:.60}",
            row=1, hint=f"give {ACCEPTED}",
        )  # fmt: skip
    rows = []
    for number, row in enumerate(data, 1):
        if not isinstance(row, list | tuple):
            raise DataError(f"expected a tuple, found {type(row).__name__}", row=number)
        if len(row) != len(first):
            message = f"{len(row)} cells, where the first row has {len(first)}"
            raise DataError(message, row=number)
        rows.append({str(i): value for i, value in enumerate(row)})
    return _of_dicts(rows)


def _of_dicts(rows: Sequence[Any]) -> Iterator[pa.RecordBatch]:
    if not rows:
        return
    names = list(rows[0])
    if are_rankings([str(name) for name in names]):
        yield from _of_searches(rows, names)
        return
    for number, row in enumerate(rows, 1):
        _check_row(row, names, number)
    schema = pa.schema([(str(name), _type_of(rows, name)) for name in names])
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        yield pa.record_batch(
            [_array([row[name] for row in part], schema.field(str(name)).type) for name in names],
            schema=schema,
        )


def _of_searches(rows: Sequence[Any], names: list[Any]) -> Iterator[pa.RecordBatch]:
    """Rankings: a text or a list a cell. What the lists hold is checked when they are read."""
    columns: dict[str, list[Any]] = {str(name): [] for name in names}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping) or set(row) != set(names):
            what = "the fields of the first row" if isinstance(row, Mapping) else "a dict"
            raise DataError(f"expected {what}", row=number)
        for name in names:
            columns[str(name)].append(_listed(row[name]))
    kinds = {name: _list_kind(name, values) for name, values in columns.items()}
    for name, values in columns.items():
        _check_lists(name, values, kinds[name])
    for start in range(0, len(rows), _ROWS):
        end = start + _ROWS
        yield pa.record_batch(
            [pa.array(v[start:end], kinds[n]) for n, v in columns.items()],
            schema=pa.schema(kinds.items()),
        )


def _listed(value: Any) -> Any:
    if isinstance(value, str) or not _listlike(value):
        return _plain(value)
    return [_plain(one) for one in value]


def _list_kind(name: str, values: list[Any]) -> pa.DataType:
    role = list_role(name)
    if role is None:
        return pa.string() if isinstance(values[0], str) else pa.float64()
    return pa.list_(pa.string() if role == "items" else pa.float64())


def _check_lists(name: str, values: list[Any], kind: pa.DataType) -> None:
    what = {"list<item: string>": "a list of texts", "list<item: double>": "a list of numbers"}
    for row, value in enumerate(values, 1):
        try:
            if pa.types.is_list(kind) and not isinstance(value, list):
                raise pa.ArrowTypeError("one value")  # Arrow takes a text for a list of characters
            pa.array([value], kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError):
            message = f"expected {what.get(str(kind), 'a text')}, found {value!r:.60}"
            raise DataError(message, row=row, column=name) from None


def _check_row(row: Any, names: list[Any], number: int) -> None:
    if not isinstance(row, Mapping):
        raise DataError(f"expected a dict, found {type(row).__name__}", row=number)
    for name in names:
        if name not in row:
            raise DataError("this row lacks the field", row=number, column=str(name))
        value = _plain(row[name])
        if value is None:
            raise DataError("missing: the value is None", row=number, column=str(name))
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            message = f"expected a text or a number, found {type(value).__name__} {value!r:.60}"
            raise DataError(message, row=number, column=str(name))
        if isinstance(value, str) and not _encodable(value):
            message = "half of a surrogate pair: this is not text"
            raise DataError(message, row=number, column=str(name))
    if len(row) > len(names):
        extra = next(name for name in row if name not in names)
        raise DataError("a field that the first row does not have", row=number, column=str(extra))


def _plain(value: Any) -> Any:
    """A Python value for a numpy scalar."""
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _type_of(rows: Sequence[Any], name: Any) -> pa.DataType:
    """Words as string, whole numbers as int64, numbers as float64. A column of words and whole
    numbers is of labels, and becomes words."""
    kinds = {type(_plain(row[name])) for row in rows}
    if kinds <= {int}:
        small = all(-(2**63) <= int(row[name]) < 2**63 for row in rows)
        return pa.int64() if small else pa.string()
    if kinds <= {int, float}:
        return pa.float64()
    if float in kinds:
        number, found = next(
            (n, row[name]) for n, row in enumerate(rows, 1)
            if isinstance(_plain(row[name]), float)
        )  # fmt: skip
        raise DataError(f"a number, {found!r}, in a column of texts", row=number, column=str(name))
    return pa.string()


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    plain = [_plain(value) for value in values]
    if kind == pa.string():
        plain = [str(value) for value in plain]
    return pa.array(plain, kind)
