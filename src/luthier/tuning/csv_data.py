"""Tables of numbers in CSV files as rows to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import TensorDataset

from luthier.data.rows import Rows, read_rows
from luthier.errors import DataError, nearest
from luthier.spec import CSVOptions
from luthier.tuning.data_module import DataModule

#: Above this a float64 cannot tell whole numbers apart.
_EXACT = 2**53
#: As much of the first row is looked at for separators.
_HEADER_BYTES = 1 << 16


class CSVDataModule(DataModule):
    """CSV files with a header row: one column is what to predict, all others are numbers.

    train_filename, test_filename: in ``data_path``. target_name: the column to predict: whole
    numbers are classes (int64), fractions are values (float32). classes: the names of the
    classes, where the column holds names; their places here are their numbers, which must not
    change between updates. test.csv may have its columns in another order.

    Raises DataError with file, row and column for what is no number.
    """

    def __init__(
        self,
        data_path: Path | str,
        train_filename: Path | str = "train.csv",
        test_filename: Path | str = "test.csv",
        target_name: str = "y",
        src_bucket: Path | str | None = None,
        src_object_name: Path | str | None = None,
        val_size: float = 0.0,
        seed: int = 0,
        *,
        classes: Sequence[str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(data_path, src_bucket, src_object_name, val_size, seed, **more)
        self.files = (str(train_filename), str(test_filename))
        self._target_name = target_name
        self._classes = None if classes is None else tuple(classes)

    def setup(self) -> None:
        train, test = (_read(Path(self._data_path) / name) for name in self.files)
        features = self._features(train)
        if unequal := set(features) ^ set(self._features(test)):
            column = sorted(unequal)[0]
            here, there = (train, test) if column in features else (test, train)
            raise DataError(f"this column is in {here.file} only", file=there.file, column=column)
        kinds = [self._targets(rows) for rows in (train, test)]
        if kinds[0].dtype != kinds[1].dtype:  # a column of values may hold whole ones in one file
            kinds = [targets.to(torch.float32) for targets in kinds]
        self._assign(
            TensorDataset(_numbers(train, features), kinds[0]),
            TensorDataset(_numbers(test, features), kinds[1]),
        )

    def _features(self, rows: Rows) -> list[str]:
        if self._target_name not in rows.columns:
            raise DataError(
                f"there is no column '{self._target_name}' to predict",
                file=rows.file,
                row=1,
                hint=nearest(self._target_name, rows.columns)
                or f"target_name names one of: {', '.join(rows.columns[:12])}",
            )
        features = [name for name in rows.columns if name != self._target_name]
        if not features:
            raise DataError("there is no column to predict from", file=rows.file)
        return features

    def _targets(self, rows: Rows) -> torch.Tensor:
        if self._classes is not None:
            return self._codes(rows, self._classes)
        values = _column(rows, self._target_name)
        if (values == np.rint(values)).all() and np.abs(values).max() < _EXACT:
            return torch.from_numpy(values.astype(np.int64))
        return torch.from_numpy(values.astype(np.float32))

    def _codes(self, rows: Rows, classes: tuple[str, ...]) -> torch.Tensor:
        column = pc.cast(rows.column(self._target_name), pa.string())
        codes = pc.index_in(column, value_set=pa.array(classes, pa.string()))
        if codes.null_count:
            i = int(np.flatnonzero(codes.is_null().to_numpy())[0])
            name = str(column[i].as_py())
            raise DataError(
                f"'{name}' is none of the classes",
                file=rows.file,
                row=rows.line(i),
                column=self._target_name,
                hint=nearest(name, classes) or f"classes: {', '.join(classes[:12])}",
            )
        return torch.from_numpy(codes.to_numpy().astype(np.int64))


def _read(path: Path) -> Rows:
    """A file whose first row has names. Commas are taken for granted where that row has them
    and nothing else that may separate cells: to try all separators costs as much as to read."""
    first = b""
    if path.is_file():
        with open(path, "rb") as file:
            first = file.readline(_HEADER_BYTES)
    plain = b"," in first and not set(first) & set(b";\t| \"'")
    options = CSVOptions(header=True, delimiter="," if plain else None)
    return read_rows(path, options, format="csv")


def _numbers(rows: Rows, names: Sequence[str]) -> torch.Tensor:
    """Columns as float32 (rows, columns)."""
    found = np.empty((len(rows), len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        found[:, i] = _column(rows, name)
    return torch.from_numpy(found)


def _column(rows: Rows, name: str) -> npt.NDArray[np.float64]:
    column = rows.column(name)
    try:
        numbers = pc.cast(pc.utf8_trim_whitespace(column), pa.float64())
        values: npt.NDArray[np.float64] = numbers.to_numpy()
    except pa.ArrowInvalid:
        values = np.array([_number(cell) for cell in column.to_pylist()])
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        i = int(wrong[0])
        cell = column[i].as_py()
        said = "this cell is empty" if not cell or not cell.strip() else f"'{cell}' is no number"
        raise DataError(
            said, file=rows.file, row=rows.line(i), column=name,
            hint="names of classes are given by classes=[…]; fill or leave out what is missing",
        )  # fmt: skip
    return values


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        return float("nan")
