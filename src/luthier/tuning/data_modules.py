"""Data modules: where the rows of an update come from, and which of them are held out.

A data module has two steps. ``prepare_data()`` brings files to this machine, once a machine;
``setup()`` makes torch data sets of rows (x, y). Then ``train_data()``, ``val_data()`` and
``test_data()`` give them. A module of your own overrides ``setup`` and sets ``self._train_data``,
``self._val_data`` and ``self._test_data``:

    class Flowers(DataModule):
        def setup(self):
            rows = MyDataset(self._data_path)
            self._train_data, self._val_data = self._split_train_val_data(rows)
            self._test_data = MyDataset(self._data_path, test=True)
"""

from __future__ import annotations

import abc
import filecmp
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from luthier.errors import DataError, MissingExtra, Problem, SpecError
from luthier.tuning.datasets import Rows, Transform, TransformedDataset, randomly_split_data, size

Collate = Callable[[list[Any]], Any]

_CHUNK_BYTES = 1 << 20


class DataModule(abc.ABC):
    """Where rows come from.

    data_path: the folder of the files. src_bucket, src_object_name: an S3 bucket and the folder
    in it that ``prepare_data`` copies the files from, those that ``files`` names.
    val_size: the share of the training rows that is held out for validation, 0 to below 1.
    seed: of that choice. transform, target_transform: for x and y, applied late.
    """

    #: What ``prepare_data`` fetches from the bucket; a subclass that uses one names its files.
    files: Sequence[str] = ()

    def __init__(
        self,
        data_path: Path | str,
        src_bucket: Path | str | None = None,
        src_object_name: Path | str | None = None,
        val_size: float = 0.0,
        seed: int = 0,
        *,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        self._data_path = data_path
        self._src_bucket = src_bucket
        self._src_object_name = src_object_name
        self._val_size = share("val_size", val_size)
        self._seed = seed
        self._transform = transform
        self._target_transform = target_transform
        self._train_data: Any = None
        self._val_data: Any = None
        self._test_data: Any = None
        self._train_collate_fn: Collate | None = None
        self._val_collate_fn: Collate | None = None
        self._test_collate_fn: Collate | None = None
        if src_object_name is not None and src_bucket is None:
            problem = Problem("src_bucket", "src_object_name is a folder in a bucket; which?")
            raise SpecError([problem])

    def prepare_data(self) -> None:
        """Copy ``files`` from the bucket to ``data_path``, where a bucket is given; what is
        there already and has not changed is not fetched again."""
        if self._src_bucket is None:
            return
        if not self.files:
            raise SpecError(
                [Problem("src_bucket", f"{type(self).__name__} does not say which files to fetch",
                         "name them in its attribute 'files', or override prepare_data()")]
            )  # fmt: skip
        folder = Path(self._data_path)
        for name in self.files:
            fetch(f"{self._address()}/{_inside(name)}", folder, name)

    def _address(self) -> str:
        bucket = str(self._src_bucket).removeprefix("s3://").strip("/")
        prefix = str(self._src_object_name or "").strip("/")
        if not bucket or "/" in bucket:
            raise SpecError([Problem("src_bucket", f"'{self._src_bucket}' is no bucket's name")])
        return f"s3://{bucket}" + (f"/{_inside(prefix)}" if prefix else "")

    @abc.abstractmethod
    def setup(self) -> None:
        """Make the data sets."""

    def train_data(self) -> Any:
        """The rows to learn from."""
        return self._train_data

    def val_data(self) -> Any:
        """The rows held out for validation, or None."""
        return self._val_data

    def test_data(self) -> Any:
        """The rows to be judged by, or None."""
        return self._test_data

    def train_collate_fn(self) -> Collate | None:
        """What makes a batch of rows; None for torch's way."""
        return self._train_collate_fn

    def val_collate_fn(self) -> Collate | None:
        """What makes a batch of rows; None for torch's way."""
        return self._val_collate_fn

    def test_collate_fn(self) -> Collate | None:
        """What makes a batch of rows; None for torch's way."""
        return self._test_collate_fn

    def _split_train_val_data(self, train_data: Rows) -> tuple[Rows, Rows | None]:
        """Rows to learn from and rows held out (None where ``val_size`` is 0), at random."""
        if not self._val_size:
            return train_data, None
        shares = [1 - self._val_size, self._val_size]
        train, held_out = randomly_split_data(train_data, shares, self._seed, purpose="validation")
        for part, what in ((train, "to learn from"), (held_out, "for validation")):
            if not len(part):
                raise DataError(
                    f"val_size={self._val_size:g} of {size(train_data)} rows leaves none {what}"
                )
        return train, held_out

    def _assign(self, train: TensorDataset, test: TensorDataset | None) -> None:
        """Split and transform tensors as all modules of ours do."""
        if not len(train):
            raise DataError("there are no rows to learn from")
        self._train_data, self._val_data = self._split_train_val_data(train)
        self._test_data = test
        if self._transform is None and self._target_transform is None:
            return
        for name in ("_train_data", "_val_data", "_test_data"):
            if (rows := getattr(self, name)) is not None:
                late = TransformedDataset(rows, self._transform, self._target_transform)
                setattr(self, name, late)


RenateDataModule = DataModule


class DataIncrementalDataModule(DataModule):
    """A module with several data sets: ``setup()`` makes the one that ``data_id`` names."""

    def __init__(self, data_path: Path | str, data_id: int | str, **more: Any) -> None:
        super().__init__(data_path, **more)
        self.data_id = data_id


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
        path = Path(self._data_path) / self.files[0]
        names = ("x_train", "y_train", "x_test", "y_test")
        try:
            with np.load(path, allow_pickle=False) as found:
                if missing := [name for name in names if name not in found]:
                    raise DataError(
                        f"there is no array '{missing[0]}'",
                        file=str(path),
                        hint=f"it holds: {', '.join(found) or 'none'}",
                    )
                arrays = {name: found[name] for name in names}
        except FileNotFoundError:
            raise DataError("there is no such file", file=str(path)) from None
        except (ValueError, OSError, EOFError, AttributeError, TypeError) as error:
            raise DataError(f"this is no .npz file of numbers ({error})", file=str(path)) from None
        file = str(path)
        train = tensor_rows(arrays["x_train"], arrays["y_train"], "x_train", "y_train", file)
        test = tensor_rows(arrays["x_test"], arrays["y_test"], "x_test", "y_test", file)
        self._assign(train, test)


def share(name: str, value: Any) -> float:
    """A share from 0 to below 1. Raises SpecError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        hint = "0.1 holds out a tenth of the rows"
        raise SpecError([Problem(name, f"{value!r} is not a share from 0 to below 1", hint)])
    return float(value)


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
    return torch.from_numpy(np.ascontiguousarray(array) if array.flags.writeable else array.copy())


def _inside(name: str) -> str:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise SpecError([Problem("files", f"'{name}' does not lie in the bucket's folder")])
    return str(PurePosixPath(name))


def fetch(uri: str, folder: Path, name: str) -> Path:
    """Copy an object into a folder. The copy of before is kept aside, under ``.downloads``, so
    that what has not changed is not fetched again; a reader never sees half of a file."""
    from luthier.store.atomic import write_chunks
    from luthier.store.urls import local_file

    target = folder / name
    found = local_file(uri, folder / ".downloads")
    if not target.is_file() or not filecmp.cmp(found, target, shallow=False):
        write_chunks(target.parent, _chunks(found), lambda: target.name)
    return target


def _chunks(file: Path) -> Iterator[bytes]:
    with open(file, "rb") as opened:
        while chunk := opened.read(_CHUNK_BYTES):
            yield chunk
