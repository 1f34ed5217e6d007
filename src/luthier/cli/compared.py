"""The two sides that ``luthier drift`` compares: rows of a file as texts or as features, with
their labels, predictions and scores where there are some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.cli.texts import read_texts
from luthier.errors import DataError, nearest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luthier.data.rows import Rows

#: A row's number says nothing about what it is like, and always "drifts".
_NO_FEATURE = re.compile(r"(_?id|idx|index|row|unnamed:_0|__index_level_0__|\w+_id)", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """Which columns were named on the command line; None where none was."""

    data: str | None
    labels: str | None
    predictions: str | None
    quality: str | None

    @property
    def values(self) -> list[str]:
        """The columns that are no data to compare."""
        return [name for name in (self.labels, self.predictions, self.quality) if name]


@dataclass(frozen=True)
class Side:
    """One file. texts, features: what can be compared of it, one of the two or both.

    rows: how many the file has. text_name, feature_name: what those are, for people.
    """

    file: str
    rows: int
    texts: Sequence[str] | None = None
    features: NDArray[np.float64] | None = None
    text_name: str = ""
    feature_name: str = ""
    labels: Sequence[str] | None = None
    predictions: Sequence[str] | None = None
    quality: NDArray[np.float64] | None = None


def read_side(
    place: str, columns: Columns, cache: Path, *, need_data: bool, is_new: bool
) -> Side:  # fmt: skip
    """Read one side: a path or a URL. Raises DataError that names the file, row and column.

    cache: where downloads go, and files without names of columns as Arrow. need_data: False
    where only labels are compared, so that no text is looked for. is_new: where there are
    predictions, new rows may lack the column of labels: nobody knows them yet.
    """
    from luthier.store.urls import local_file

    path = local_file(place, cache)
    suffix = path.suffix.lower()
    if suffix in (".npy", ".npz"):
        return _arrays(path, place, columns, need_data, is_new)
    if suffix == ".txt":
        if columns.values:
            raise DataError(f"lines have no column '{columns.values[0]}'", file=place)
        texts = read_texts(str(path), columns.data)
        return Side(place, len(texts), texts, text_name="lines")
    from luthier.data.rows import read_rows
    from luthier.spec import CSVOptions

    rows = read_rows(path, CSVOptions(), name=place)
    if is_new and columns.predictions and columns.labels not in rows.columns:
        columns = replace(columns, labels=None)
    named = [*columns.values, *([columns.data] if columns.data else [])]
    for name in named:
        _check_column(rows, name)
    return _of_rows(rows, path, columns, cache, need_data)


def _check_column(rows: Rows, name: str) -> None:
    if name not in rows.columns:
        listed = ", ".join(rows.columns)
        hint = nearest(name, rows.columns) or f"there are: {listed}"
        raise DataError(f"there is no column '{name}'", file=rows.file, hint=hint)


def _of_rows(rows: Rows, path: Path, columns: Columns, cache: Path, need_data: bool) -> Side:
    from luthier.data.columns import part_of

    parts = {name: part_of(name) for name in rows.columns}
    known = columns.labels
    if known is None and "second" not in parts.values():  # beside pairs a label is a score
        known = next((name for name, part in parts.items() if part == "label"), None)
    values: dict[str, Any] = {
        "labels": None if known is None else _words(rows, known, empty=False),
        "predictions": columns.predictions and _words(rows, columns.predictions, empty=False),
        "quality": None if columns.quality is None else _numbers(rows, columns.quality),
    }
    side = Side(rows.file, len(rows), **values)
    if not need_data:
        return side
    others = [n for n in rows.columns if n not in (known, *columns.values)]
    if columns.data is not None:
        others = [columns.data]
    text = _text_column(rows, others, parts)
    if text is not None:
        side = replace(side, texts=_words(rows, text), text_name=f"column '{text}'")
    vectors = next((name for name in others if _is_vectors(rows, name)), None)
    if vectors is not None:
        side = replace(side, features=_vectors(rows, vectors), feature_name=f"column '{vectors}'")
    if text is not None or vectors is not None:
        return side
    numeric = [n for n in others if _is_number(rows, n) and not _NO_FEATURE.fullmatch(n)]
    if numeric:
        import numpy as np

        features = np.stack([_numbers(rows, name) for name in numeric], axis=1)
        return replace(side, features=features, feature_name=_listed(numeric))
    if columns.data is not None:
        kind = rows.column(columns.data).type
        raise DataError(f"is neither text nor numbers but {kind}", file=rows.file,
                        column=columns.data)  # fmt: skip
    return _as_fit_reads(path, rows, cache, values)


def _as_fit_reads(path: Path, rows: Rows, cache: Path, values: dict[str, Any]) -> Side:
    """A file whose columns are told by their place, as ``fit`` reads it: its first texts."""
    from luthier.data import load_dataset
    from luthier.spec import CSVOptions

    try:
        data = load_dataset(path, CSVOptions(), cache, name=rows.file)
    except DataError as error:
        hint = f"--column with one of: {', '.join(rows.columns)}"
        raise DataError(error.message, file=rows.file, row=error.row, hint=hint) from None
    texts = data.texts(data.roles[0], range(len(data)))
    if data.form == "labelled":
        values["labels"] = [data.class_name(int(code)) for code in data.array("label")]
    column = data.mapping[data.roles[0]]
    return Side(rows.file, len(data), texts, text_name=column, **values)


def _listed(names: list[str]) -> str:
    """The columns of features: by name where they are few."""
    return f"columns {', '.join(names)}" if len(names) <= 5 else f"{len(names)} columns"


def _text_column(rows: Rows, others: list[str], parts: dict[str, str | None]) -> str | None:
    """The texts: the column named or the only one, else a known name, else none."""
    import pyarrow as pa

    strings = [n for n in others if pa.types.is_string(rows.column(n).type)]
    strings = [n for n in strings if not _is_number(rows, n)]
    if len(others) == 1 and strings:
        return strings[0]
    for part in ("text", "first"):
        found = [name for name in strings if parts[name] == part]
        if found:
            return found[0]
    return None


def _is_vectors(rows: Rows, name: str) -> bool:
    import pyarrow as pa

    kind = rows.column(name).type
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists) and _numeric(kind.value_type)


def _is_number(rows: Rows, name: str) -> bool:
    """Numbers, also where the file (CSV) has them as text."""
    import pyarrow as pa

    column = rows.column(name)
    if not pa.types.is_string(column.type):
        return _numeric(column.type)
    try:
        column.cast(pa.float64())
    except pa.ArrowInvalid:  # a cell that is something else
        return False
    return True


def _numeric(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _vectors(rows: Rows, name: str) -> NDArray[np.float64]:
    """[n, d] of a column of lists, all of one length and without gaps."""
    import numpy as np
    import pyarrow.compute as pc

    column = rows.column(name)
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    wrong = np.flatnonzero((lengths != lengths[0]) | (lengths == 0))
    if len(wrong):
        row = int(wrong[0])
        message = f"has {lengths[row]} numbers, the first row has {lengths[0]}"
        raise DataError(message, file=rows.file, row=rows.line(row), column=name)
    flat = np.concatenate(
        [np.asarray(c.flatten().to_numpy(zero_copy_only=False), float) for c in column.chunks]
    )
    found: NDArray[np.float64] = flat.reshape(len(rows), int(lengths[0]))
    _check_finite(found, rows, name)
    return found


def _words(rows: Rows, name: str, *, empty: bool = True) -> list[str]:
    """A column as text, without gaps. empty: whether a text of no characters is none."""
    values = rows.column(name).to_pylist()
    gap = next((i for i, v in enumerate(values) if v is None or (v == "" and not empty)), None)
    if gap is not None:
        raise DataError("is empty", file=rows.file, row=rows.line(gap), column=name)
    return [value if isinstance(value, str) else str(value) for value in values]


def _numbers(rows: Rows, name: str) -> NDArray[np.float64]:
    """A column as finite numbers, also where the file (CSV) has them as text."""
    import numpy as np

    found = np.empty(len(rows))
    for i, value in enumerate(rows.column(name).to_pylist()):
        try:
            found[i] = float(value)
        except (TypeError, ValueError):
            message = "is empty" if value is None else f"is no number: {value!r:.40}"
            raise DataError(message, file=rows.file, row=rows.line(i), column=name) from None
    _check_finite(found[:, None], rows, name)
    return found


def _check_finite(values: NDArray[np.float64], rows: Rows, name: str) -> None:
    import numpy as np

    wrong = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(wrong):
        line = rows.line(int(wrong[0]))
        raise DataError("is no finite number", file=rows.file, row=line, column=name)


# --- arrays ---------------------------------------------------------------------------------


def _arrays(path: Path, place: str, columns: Columns, need_data: bool, is_new: bool) -> Side:
    """A .npy of features, or a .npz whose arrays are features and, by name, labels and kin."""
    import zipfile

    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        hint = "a file that numpy.save wrote, of numbers or texts; pickled objects are not read"
        raise DataError("holds no arrays that can be read", file=place, hint=hint) from None
    named = {"labels": columns.labels, "predictions": columns.predictions,
             "quality": columns.quality}  # fmt: skip
    if columns.labels is None and "labels" in arrays:
        named["labels"] = "labels"
    if is_new and columns.predictions and named["labels"] not in arrays:
        named["labels"] = None
    values = {what: _array(arrays, name, place) for what, name in named.items() if name}
    words = {what: [str(v) for v in a] for what, a in values.items() if what != "quality"}
    more: dict[str, Any] = {**words, **{k: a for k, a in values.items() if k == "quality"}}
    rows = next((len(value) for value in values.values()), 0)
    if not need_data:
        return Side(place, rows, **more)
    features = _features(arrays, columns.data, list(named.values()), place)
    name = f"{features.shape[1]} features"
    return Side(place, len(features), features=features, feature_name=name, **more)


def _array(arrays: dict[str, Any], name: str, place: str) -> Any:
    if name not in arrays:
        known = ", ".join(n for n in arrays if n) or "an array without a name"
        raise DataError(f"there is no array '{name}'", file=place, hint=f"there is: {known}")
    if arrays[name].ndim != 1:
        raise DataError(f"'{name}' is not one value a row", file=place)
    return arrays[name]


def _features(
    arrays: dict[str, Any], asked: str | None, taken: list[str | None], place: str
) -> Any:
    import numpy as np

    others = [name for name in arrays if name not in taken]
    if asked is not None and asked not in arrays:
        raise DataError(f"there is no array '{asked}'", file=place, hint=", ".join(others))
    if asked is None and len(others) != 1:
        hint = f"--column with one of: {', '.join(others)}" if others else None
        raise DataError("which array holds the features?", file=place, hint=hint)
    found = arrays[asked if asked is not None else others[0]]
    if found.dtype.kind not in "fiub" or found.ndim not in (1, 2):
        message = f"features are numbers [rows, width], not {found.dtype} {list(found.shape)}"
        raise DataError(message, file=place)
    matrix: NDArray[np.float64] = found.reshape(len(found), -1).astype(np.float64)
    wrong = np.argwhere(~np.isfinite(matrix))
    if len(wrong):
        row, column = (int(i) + 1 for i in wrong[0])
        raise DataError("is no finite number", file=place, row=row, column=column)
    return matrix
