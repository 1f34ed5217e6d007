"""Rows of a task that were handed over in memory, as an Arrow file: values of any JSON type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from luthier.errors import DataError


def raw_to_arrow(data: Any, destination: Path) -> None:
    """Write rows with their columns as they are.

    data: a list of dicts, a dict of columns, a pandas DataFrame, a pyarrow Table or a
    ``datasets.Dataset``. Raises DataError for anything else, and for columns whose values are
    of several types.
    """
    try:
        table = _table(data)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        hint = "each column has values of one type"
        raise DataError(f"the rows are no table: {error}", hint=hint) from error
    if not table.num_rows:
        raise DataError("the data has no rows")
    with pa.OSFile(str(destination), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _table(data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    module = type(data).__module__.partition(".")[0]
    if module == "datasets" and hasattr(data, "with_format"):
        return data.with_format("arrow")[:]
    if module == "pandas" and hasattr(data, "columns"):
        return pa.Table.from_pandas(data, preserve_index=False)
    if isinstance(data, Mapping):
        return pa.table({str(name): list(values) for name, values in data.items()})
    if isinstance(data, Sequence) and not isinstance(data, str | bytes):
        wrong = next((i for i, row in enumerate(data) if not isinstance(row, Mapping)), None)
        if wrong is not None:
            kind = type(data[wrong]).__name__
            raise DataError(f"a row is a dict of columns, not a {kind}", row=wrong + 1)
        names = list(dict.fromkeys(str(name) for row in data for name in row))
        return pa.table({name: [row.get(name) for row in data] for name in names})
    raise DataError(
        f"cannot read rows from a {type(data).__name__}",
        hint="give a file, a list of dicts, a DataFrame or a datasets.Dataset",
    )
