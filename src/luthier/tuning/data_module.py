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

from torch.utils.data import TensorDataset

from luthier.errors import DataError, Problem, SpecError
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


def share(name: str, value: Any) -> float:
    """A share from 0 to below 1. Raises SpecError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        hint = "0.1 holds out a tenth of the rows"
        raise SpecError([Problem(name, f"{value!r} is not a share from 0 to below 1", hint)])
    return float(value)


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
