"""torch data sets of rows (x, y): parts of them, transforms over them, whole columns of them.

Whole columns are read without going through the rows wherever the data set is made of tensors,
under any number of subsets, concatenations and transforms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from luthier.batches.arithmetic import derive, permutation
from luthier.errors import DataError, Problem, SpecError

Rows = Dataset[Any]
Transform = Callable[[Any], Any]

#: How far the sum of proportions may be from 1, for 1/3 + 1/3 + 1/3 and the like.
_SUM_TOLERANCE = 1e-6
#: What may be kept transformed: a fifth of CIFAR-10 as float32. There is one test set a chunk.
_KEPT_BYTES = 128 << 20


class TransformedDataset(Dataset[Any]):
    """Rows (x, y) of another data set, each sent through ``transform`` and ``target_transform``.

    A transform with a method ``many``, for inputs (n, …) at once, is given whole batches where
    the data set below is made of tensors.
    """

    def __init__(
        self,
        dataset: Rows,
        transform: Transform | None = None,
        target_transform: Transform | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return size(self.dataset)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        x, y = row(self.dataset, i)
        return (
            x if self.transform is None else self.transform(x),
            y if self.target_transform is None else self.target_transform(y),
        )

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Any, Any]]:
        """A batch at once: what torch's DataLoader asks for where a data set has it."""
        inputs, targets = column(self, 0, rows), column(self, 1, rows)
        if inputs is None or targets is None:
            return [self[i] for i in rows]
        return list(zip(inputs, targets, strict=True))


def transformed(dataset: Rows, transform: Transform) -> Rows:
    """Rows whose inputs are transformed: at once and kept, where that can be done in bulk and
    takes no more than 128 MiB; else each time one is asked for."""
    inputs, targets = column(dataset, 0), column(dataset, 1)
    many: Transform | None = getattr(transform, "many", None)
    if inputs is None or targets is None or many is None or inputs.nbytes > _KEPT_BYTES:
        return TransformedDataset(dataset, transform)
    return TensorDataset(many(inputs), targets)


def size(dataset: Rows) -> int:
    """How many rows a data set has. Raises DataError where it cannot tell."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError:
        raise DataError(
            f"a {type(dataset).__name__} does not know how many rows it has",
            hint="give a data set with __len__ and __getitem__, not a stream",
        ) from None


def row(dataset: Rows, i: int) -> tuple[Any, Any]:
    """A row as (x, y). Raises DataError where it is something else."""
    found = dataset[i]
    if not isinstance(found, tuple | list) or len(found) != 2:
        what = f"{len(found)} values" if isinstance(found, tuple | list) else type(found).__name__
        raise DataError(
            f"row {i} of the data set is {what}, not (x, y)",
            hint="the data set's __getitem__ must return an input and its target",
        )
    return found[0], found[1]


def column(dataset: Rows, place: int, rows: Sequence[int] | None = None) -> Tensor | None:
    """All inputs (place 0) or all targets (place 1) as one tensor (n, …), or those of some rows,
    read at once; None where the rows must be asked one by one."""
    kind = type(dataset)
    if isinstance(dataset, TensorDataset) and kind.__getitem__ is TensorDataset.__getitem__:
        if len(dataset.tensors) != 2:
            return None
        return _picked(dataset.tensors[place], rows)
    if isinstance(dataset, Subset) and kind.__getitem__ is Subset.__getitem__:
        below = dataset.indices if rows is None else [dataset.indices[i] for i in rows]
        return column(dataset.dataset, place, below)
    if isinstance(dataset, ConcatDataset):
        parts = [column(part, place) for part in dataset.datasets]
        whole = [part for part in parts if part is not None]
        return _picked(torch.cat(whole), rows) if len(whole) == len(parts) else None
    if isinstance(dataset, TransformedDataset):
        return _transformed_column(dataset, place, rows)
    if place == 1 and getattr(dataset, "target_transform", None) is None:
        found = _targets(dataset)
        return None if found is None else _picked(found, rows)
    return None


def _picked(values: Tensor, rows: Sequence[int] | None) -> Tensor:
    return values if rows is None else values[torch.as_tensor(rows, dtype=torch.int64)]


def _transformed_column(
    dataset: TransformedDataset, place: int, rows: Sequence[int] | None
) -> Tensor | None:
    transform = (dataset.transform, dataset.target_transform)[place]
    many: Transform | None = getattr(transform, "many", None)
    if transform is not None and many is None:
        return None
    below = column(dataset.dataset, place, rows)
    return below if below is None or many is None else many(below)


def _targets(dataset: Rows) -> Tensor | None:
    """The attribute ``targets`` that torchvision's data sets and others keep."""
    targets = getattr(dataset, "targets", None)
    if targets is None or callable(targets) or len(targets) != size(dataset):
        return None
    try:
        return torch.as_tensor(targets)
    except (TypeError, ValueError, RuntimeError):
        return None  # names, or a structure: the rows will tell


def labels_of(dataset: Rows) -> Tensor:
    """The classes of all rows, (n,) int64.

    Raises DataError for targets that are no class: fractions, vectors, text.
    """
    found = column(dataset, 1)
    if found is None:
        rows = (row(dataset, i)[1] for i in range(size(dataset)))
        found = _stacked([_number(y, i) for i, y in enumerate(rows)])
    if found.dim() == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dim() != 1:
        raise DataError(
            f"a target has the shape {tuple(found.shape[1:])}; a class is one whole number",
            hint="give class numbers, not one-hot vectors: targets.argmax(1)",
        )
    if found.is_floating_point() or found.is_complex():
        wrong = (found != found.round()).nonzero()
        if found.is_complex() or len(wrong):
            i = int(wrong[0]) if len(wrong) else 0
            raise DataError(
                f"the target of row {i} is {found[i].item()}; a class is a whole number",
                hint="this needs classes: 0, 1, …",
            )
    return found.to(torch.int64)


def _number(y: Any, i: int) -> Tensor:
    try:
        return torch.as_tensor(y)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the target of row {i} is {y!r:.60}; a class is a whole number",
            hint="number the classes: 0, 1, …",
        ) from None


def inputs_of(dataset: Rows) -> Tensor:
    """The inputs of all rows, (n, …). Raises DataError for what is no tensor, or ragged."""
    found = column(dataset, 0)
    if found is not None:
        return found
    inputs = []
    for i in range(size(dataset)):
        x = row(dataset, i)[0]
        if not isinstance(x, Tensor | np.ndarray | float | int):
            raise DataError(
                f"the input of row {i} is a {type(x).__name__}, not a tensor",
                hint="give the data module a transform that makes tensors",
            )
        inputs.append(torch.as_tensor(x))
    return _stacked(inputs)


def _stacked(values: list[Tensor]) -> Tensor:
    shapes = [tuple(value.shape) for value in values]
    other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
    if other is not None:
        raise DataError(f"row 0 has the shape {shapes[0]}, row {other} has {shapes[other]}")
    return torch.stack(values) if values else torch.empty(0)


def randomly_split_data(
    dataset: Rows, proportions: Sequence[float], random_seed: int = 0, *, purpose: str = "split"
) -> list[Subset[Any]]:
    """Random parts of a data set that have no row in common and all rows together.

    proportions: the share of each part, which sum to 1; sizes are rounded, none by more
    than a row. Rows keep their order within a part. The same seed and size give the same
    parts on every machine; ``purpose`` keeps splits that follow one another independent.

    >>> parts = randomly_split_data(TensorDataset(torch.arange(10)), [0.8, 0.2])
    >>> [len(part) for part in parts]
    [8, 2]
    """
    if not proportions or min(proportions) < 0 or abs(sum(proportions) - 1) > _SUM_TOLERANCE:
        shares = ", ".join(f"{share:g}" for share in proportions)
        problem = Problem("proportions", f"these shares do not sum to 1: {shares or 'none'}")
        raise SpecError([problem])
    total = size(dataset)
    order = permutation(derive(purpose, random_seed), total)
    ends = np.rint(np.cumsum(proportions) * total).astype(np.int64)
    parts = np.split(order, ends[:-1])
    return [Subset(dataset, np.sort(part).tolist()) for part in parts]
