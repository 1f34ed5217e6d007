"""Arrays as rows to learn from: those at hand, those of a file, and real ones to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from luthier.errors import DataError, MissingExtra, Problem, SpecError
from luthier.tuning.data_module import DataModule, share
from luthier.tuning.datasets import Transform, randomly_split_data


class TensorDataModule(DataModule):
    """Arrays at hand.

    inputs (n, …), labels (n,) or (n, k): numpy arrays, tensors or lists; float64 becomes
    float32, class numbers int64. test_inputs, test_labels: what to be judged by; without them a
    random share ``test_size`` of the rows is.
    """

    def __init__(
        self,
        inputs: Any,
        labels: Any,
        *,
        test_inputs: Any = None,
        test_labels: Any = None,
        test_size: float = 0.2,
        val_size: float = 0.0,
        seed: int = 0,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        super().__init__(
            "", val_size=val_size, seed=seed, transform=transform, target_transform=target_transform
        )
        self._test_size = share("test_size", test_size)
        if (test_inputs is None) != (test_labels is None):
            raise SpecError([Problem("test_inputs", "test_inputs and test_labels go together")])
        self._rows = tensor_rows(inputs, labels)
        self._tests = None
        if test_inputs is not None:
            self._tests = tensor_rows(test_inputs, test_labels, "test_inputs", "test_labels")

    def setup(self) -> None:
        rows, tests = self._rows, self._tests
        if tests is None and self._test_size:
            shares = [1 - self._test_size, self._test_size]
            parts = randomly_split_data(rows, shares, self._seed, purpose="test")
            rows, tests = (TensorDataset(*(t[p.indices] for t in rows.tensors)) for p in parts)
            if not len(tests):
                raise DataError(
                    f"test_size={self._test_size:g} of {len(rows)} rows leaves none to judge by"
                )
        self._assign(rows, tests)


class DigitsDataModule(TensorDataModule):
    """1,797 handwritten digits, 8 x 8 grey values in 0..1, as scikit-learn ships them (Alpaydin
    and Kaynak 1998, Optical Recognition of Handwritten Digits): (1, 8, 8) float32."""

    def __init__(self, *, test_size: float = 0.2, val_size: float = 0.0, seed: int = 0) -> None:
        try:
            from sklearn.datasets import load_digits  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtra("the digits of scikit-learn", "tasks") from error
        found = load_digits()
        images = (found.images / 16).astype(np.float32)[:, None]  # 16 grey levels
        super().__init__(
            images, found.target, test_size=test_size, val_size=val_size, seed=seed
        )  # fmt: skip


class NPZDataModule(DataModule):
    """A file of numpy arrays named x_train, y_train, x_test and y_test, as mnist.npz is.

    filename: in ``data_path``. Arrays of Python objects are not read: they hold code.
    """

    def __init__(
        self, data_path: Path | str, filename: Path | str = "data.npz", **more: Any
    ) -> None:
        super().__init__(data_path, **more)
        self.files = (str(filename),)

    def setup(self) -> None:
        file = str(Path(self._data_path) / self.files[0])
        arrays = _arrays(file)
        self._assign(
            tensor_rows(arrays["x_train"], arrays["y_train"], "x_train", "y_train", file),
            tensor_rows(arrays["x_test"], arrays["y_test"], "x_test", "y_test", file),
        )


def _arrays(path: str) -> dict[str, Any]:
    names = ("x_train", "y_train", "x_test", "y_test")
    try:
        # opened here, since numpy leaves what it opens open when it is no zip archive
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
            if missing := [name for name in names if name not in found]:
                hint = f"it holds: {', '.join(found) or 'none'}"
                raise DataError(f"there is no array '{missing[0]}'", file=path, hint=hint)
            return {name: found[name] for name in names}
    except FileNotFoundError:
        raise DataError("there is no such file", file=path) from None
    except (ValueError, OSError, EOFError, AttributeError, TypeError, BadZipFile) as error:
        raise DataError(f"this is no .npz file of numbers ({error})", file=path) from None


def tensor_rows(
    inputs: Any, labels: Any, inputs_name: str = "inputs", labels_name: str = "labels",
    file: str | None = None,
) -> TensorDataset:  # fmt: skip
    """Arrays as rows (x, y). Raises DataError, naming the array."""
    x, y = as_tensor(inputs, inputs_name, file), as_tensor(labels, labels_name, file)
    if not x.dim() or not y.dim():
        name = inputs_name if not x.dim() else labels_name
        raise DataError("this is one number, not an array of rows", file=file, column=name)
    if len(x) != len(y):
        raise DataError(
            f"{inputs_name} has {len(x)} rows, {labels_name} has {len(y)}", file=file
        )  # fmt: skip
    if not y.is_floating_point():
        y = y.to(torch.int64)
    return TensorDataset(x, y)


def as_tensor(values: Any, name: str, file: str | None = None) -> Tensor:
    """An array as a tensor, of 32 bits where it holds fractions. Raises DataError."""
    try:
        found = values if isinstance(values, Tensor) else _from_numpy(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise DataError(
            f"this is no array of numbers ({error})", file=file, column=name,
            hint="text and rows of different lengths must be made into numbers first",
        ) from None  # fmt: skip
    if found.dtype == torch.float64:
        found = found.to(torch.float32)
    if found.is_floating_point() and not bool(found.isfinite().all()):
        where = (~found.isfinite()).nonzero()[0].tolist()
        raise DataError(
            f"entry {where} is {found[tuple(where)].item()}", file=file, column=name,
            hint="fill or leave out what is missing",
        )  # fmt: skip
    return found


def _from_numpy(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype.kind not in "buif":
        raise TypeError(f"its type is {array.dtype}")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not array.flags.writeable or min(array.strides, default=0) < 0:
        array = array.copy()  # torch neither protects memory nor walks backwards
    return torch.from_numpy(array)
