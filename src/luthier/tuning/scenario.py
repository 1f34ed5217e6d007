"""What all scenarios share: a data module's rows in chunks, and the checks of their arguments."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from luthier.errors import DataError, Problem, SpecError
from luthier.tuning.data_module import DataModule
from luthier.tuning.datasets import Rows, randomly_split_data, size

Groupings = Sequence[Sequence[Any]]


class Scenario(abc.ABC):
    """A data module's rows in chunks.

    num_tasks: how many chunks there are. chunk_id: the one that is learned now, from 0.
    seed: of whatever is random. notes: what a person should know once ``setup`` has run.
    """

    def __init__(
        self, data_module: DataModule, num_tasks: int, chunk_id: int, seed: int = 0
    ) -> None:
        self._data_module = data_module
        self._num_tasks = whole("num_tasks", num_tasks, 1)
        self._chunk_id = whole("chunk_id", chunk_id, 0)
        if self._chunk_id >= self._num_tasks:
            raise refused(
                "chunk_id",
                f"there is no chunk {chunk_id}",
                f"{num_tasks} chunks are numbered 0 to {num_tasks - 1}",
            )
        self._seed = seed
        self.notes: tuple[str, ...] = ()
        self._train_data: Any = None
        self._val_data: Any = None
        self._test_data: list[Any] = []

    @property
    def num_tasks(self) -> int:
        """How many chunks there are."""
        return self._num_tasks

    def prepare_data(self) -> None:
        """Bring the files to this machine."""
        self._data_module.prepare_data()

    @abc.abstractmethod
    def setup(self) -> None:
        """Make the chunk's data sets. One that overrides this calls it first: it sets the data
        module up."""
        self._data_module.setup()
        if self._data_module.train_data() is None:
            raise DataError(
                f"{type(self._data_module).__name__} has no rows to learn from after setup()",
                hint="its setup() must set self._train_data",
            )

    def train_data(self) -> Any:
        """The chunk's rows to learn from."""
        return self._train_data

    def val_data(self) -> Any:
        """The chunk's rows for validation, or None."""
        return self._val_data

    def test_data(self) -> list[Any]:
        """A data set for each chunk."""
        return self._test_data

    def train_collate_fn(self) -> Callable[..., Any] | None:
        """What makes a batch of rows; None for torch's way."""
        return self._data_module.train_collate_fn()

    def val_collate_fn(self) -> Callable[..., Any] | None:
        """What makes a batch of rows; None for torch's way."""
        return self._data_module.val_collate_fn()

    def test_collate_fn(self) -> Callable[..., Any] | None:
        """What makes a batch of rows; None for torch's way."""
        return self._data_module.test_collate_fn()

    def _random_chunks(self) -> None:
        """A random part of the rows to learn from, and of those for validation."""
        self._train_data = self._random_chunk(self._data_module.train_data(), "to learn from")
        held_out = self._data_module.val_data()
        if held_out is not None:
            self._val_data = self._random_chunk(held_out, "for validation")

    def _random_chunk(self, rows: Rows, what: str) -> Rows:
        enough(rows, self._num_tasks, what)
        shares = [1 / self._num_tasks] * self._num_tasks
        return randomly_split_data(rows, shares, self._seed, purpose="chunks")[self._chunk_id]


def refused(field: str, message: str, hint: str | None = None) -> SpecError:
    """An argument that cannot be."""
    return SpecError([Problem(field, message, hint)])


def whole(field: str, value: Any, least: int) -> int:
    """A whole number. Raises SpecError for what is none, or less than ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise refused(field, f"{value!r} is not a whole number from {least} on")
    return int(value)


def real(field: str, value: Any, hint: str) -> float:
    """A finite number. Raises SpecError."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise refused(field, f"{value!r} is no number", hint)
    return float(value)


def groups(field: str, groupings: Groupings) -> list[list[Any]]:
    """The members of each chunk. Raises SpecError for another shape, or an empty one."""
    hint = f"{field}=[[0, 1], [2, 3]] are two chunks"
    try:
        found = [[*group] for group in groupings if not isinstance(group, str)]
    except TypeError:
        raise refused(field, "this is no list of lists", hint) from None
    if isinstance(groupings, str) or len(found) != len(groupings):
        raise refused(field, "this is no list of lists", hint)
    if not found or not all(found):
        raise refused(field, "a chunk without members" if found else "no chunks", hint)
    return found


def agree(num_tasks: int | None, found: int, field: str) -> None:
    """Raises SpecError unless the number of chunks is what another argument says."""
    if num_tasks is not None and num_tasks != found:
        raise refused("num_tasks", f"{num_tasks} chunks, but {field} has {found}")


def enough(rows: Rows, chunks: int, what: str) -> None:
    """Raises DataError unless there is a row for each chunk."""
    if size(rows) < chunks:
        raise DataError(
            f"{size(rows)} rows {what} cannot make {chunks} chunks",
            hint="take fewer chunks, or hold out more rows (val_size)",
        )
