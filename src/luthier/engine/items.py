"""Rows of a torch data set: raw, as they are remembered, and collated, as they are trained on.

An item is ``(inputs, target)``; inputs are a tensor, or a tuple or mapping of tensors. What is
remembered is the item before any transform, each of its tensors stacked over the items in one
safetensors file that is memory-mapped when it is read again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, default_collate

from luthier.batches.arithmetic import Rows
from luthier.errors import DataError

#: Applied to one item's inputs, or to its target.
Transform = Callable[[Any], Any]


class Items:
    """Remembered items first, then the new ones: one numbering for both.

    Attributes:
        old, new: how many there are of each.
    """

    def __init__(
        self,
        new: Dataset[Any],
        old: Stacked | None = None,
        *,
        name: str = "train_data()",
        transforms: tuple[Transform | None, Transform | None] = (None, None),
        old_transforms: tuple[Transform | None, Transform | None] = (None, None),
    ) -> None:
        self._dataset, self._stacked, self._name = new, old, name
        self.new, self.old = len(new), 0 if old is None else len(old)  # type: ignore[arg-type]
        self._transforms, self._old_transforms = transforms, old_transforms
        self._tensors = None if any(transforms) else tensors_of(new)

    def __len__(self) -> int:
        return self.old + self.new

    def raw(self, rows: Rows) -> list[Any]:
        """Items as they were given; at once where the data set has ``__getitems__``."""
        at_once = getattr(self._dataset, "__getitems__", None)
        if at_once is None or (rows < self.old).any():
            return [self._item(int(row)) for row in rows]
        places = [int(row) - self.old for row in rows]
        return [self._pair(i, item) for i, item in zip(places, at_once(places), strict=True)]

    def batch(self, rows: Rows) -> tuple[Any, Any]:
        """Inputs and targets of rows, transformed and stacked."""
        old = rows < self.old
        if self._tensors is not None and not old.any():
            index = torch.from_numpy(rows - self.old)
            inputs, targets = self._tensors
            return inputs[index], targets[index]
        if self._stacked is not None and old.all() and not any(self._old_transforms):
            inputs, targets = self._stacked.take(rows)
            return inputs, targets
        items = []
        for row, item in zip(rows, self.raw(rows), strict=True):
            transforms = self._old_transforms if row < self.old else self._transforms
            items.append(tuple(_applied(t, x) for t, x in zip(transforms, item, strict=True)))
        try:
            inputs, targets = default_collate(items)
        except (RuntimeError, TypeError) as error:
            raise DataError(
                f"items cannot be stacked ({error})",
                file=self._name,
                hint="items need tensors of one shape; a transform can give them that",
            ) from error
        return inputs, targets

    def targets(self, rows: Rows) -> list[Any]:
        """The targets of rows, transformed; inputs are not transformed for them."""
        if self._tensors is not None and not (rows < self.old).any():
            return self._tensors[1][torch.from_numpy(rows - self.old)].tolist()
        found = []
        for row, item in zip(rows, self.raw(rows), strict=True):
            transforms = self._old_transforms if row < self.old else self._transforms
            target = _applied(transforms[1], item[1])
            found.append(target.tolist() if isinstance(target, Tensor) else target)
        return found

    def _item(self, row: int) -> Any:
        if row < self.old:
            assert self._stacked is not None
            return self._stacked.item(row)
        return self._pair(row - self.old, self._dataset[row - self.old])

    def _pair(self, place: int, item: Any) -> tuple[Any, Any]:
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise DataError(
                f"an item is a pair of inputs and target, not {type(item).__name__}",
                file=self._name,
                row=place,
            )
        return item[0], item[1]


def tensors_of(dataset: Dataset[Any]) -> tuple[Tensor, Tensor] | None:
    """Inputs and targets of a ``TensorDataset``, or of a part of one; None for any other."""
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        inputs, targets = dataset.tensors
        return inputs, targets
    if isinstance(dataset, Subset):
        inner = tensors_of(dataset.dataset)
        if inner is not None:
            index = torch.as_tensor(np.asarray(dataset.indices, dtype=np.int64))
            return inner[0][index], inner[1][index]
    return None


class Stacked:
    """Items whose tensors are stacked: rows of a file, or of memory."""

    def __init__(self, columns: dict[str, Tensor], structure: Any) -> None:
        self.columns, self.structure = columns, structure

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()))) if self.columns else 0

    def take(self, rows: Rows) -> Any:
        """Items of these rows, each tensor stacked over them."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return _built(self.structure, {name: c[index] for name, c in self.columns.items()})

    def item(self, row: int) -> Any:
        """One item."""
        return _built(self.structure, {name: c[row] for name, c in self.columns.items()})

    def save(self, folder: Path, name: str) -> None:
        """Write ``name.safetensors``; nothing is written for none."""
        if not len(self):
            return
        columns = {name: column.contiguous() for name, column in self.columns.items()}
        file = folder / f"{name}.safetensors"
        save_file(columns, file, {"structure": json.dumps(self.structure)})

    @classmethod
    def load(cls, file: Path) -> Stacked:
        """Read them back, mapped into memory."""
        with safe_open(file, "pt") as opened:
            columns = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            structure = json.loads(opened.metadata()["structure"])
        return cls(columns, structure)


def stacked(items: Sequence[Any], name: str = "train_data()") -> Stacked:
    """Items of one structure and shape. Raises DataError that names the first that differs."""
    if not items:
        return Stacked({}, None)
    parts = [_leaves(item, "item") for item in items]
    structure = parts[0][1]
    for row, (leaves, other) in enumerate(parts):
        first = parts[0][0]
        if other != structure or any(
            leaves[n].shape != first[n].shape or leaves[n].dtype != first[n].dtype for n in first
        ):
            raise DataError(
                "this item has other tensors, shapes or types than the first",
                file=name,
                row=row,
                hint="what is remembered must be alike before the transforms",
            )
    columns = {n: torch.stack([leaves[n] for leaves, _ in parts]) for n in parts[0][0]}
    return Stacked(columns, structure)


def joined(parts: Sequence[Stacked]) -> Stacked:
    """Items of several, one after the other. Raises DataError where their structures differ."""
    there = [part for part in parts if len(part)]
    if not there:
        return Stacked({}, None)
    if any(part.structure != there[0].structure for part in there):
        raise DataError(
            "items of this update have another structure than those of former ones",
            file="train_data()",
        )
    names = there[0].columns
    return Stacked({n: torch.cat([p.columns[n] for p in there]) for n in names}, there[0].structure)


def _leaves(value: Any, name: str) -> tuple[dict[str, Tensor], Any]:
    """Its tensors by name, and how they lie in it."""
    if isinstance(value, dict):
        inner = {key: _leaves(v, f"{name}.{key}") for key, v in value.items()}
        tensors = {n: t for found, _ in inner.values() for n, t in found.items()}
        return tensors, {"mapping": {key: structure for key, (_, structure) in inner.items()}}
    if isinstance(value, tuple | list):
        parts = [_leaves(v, f"{name}.{i}") for i, v in enumerate(value)]
        tensors = {n: t for found, _ in parts for n, t in found.items()}
        return tensors, {"tuple": [structure for _, structure in parts]}
    try:
        return {name: torch.as_tensor(value).detach().cpu()}, {"tensor": name}
    except (TypeError, RuntimeError, ValueError) as error:
        raise DataError(
            f"an item holds {type(value).__name__}, which is no tensor and no number",
            file="train_data()",
            hint="what is remembered is the item before the transforms: make it tensors",
        ) from error


def _built(structure: Any, tensors: dict[str, Tensor]) -> Any:
    if "tensor" in structure:
        return tensors[structure["tensor"]]
    if "mapping" in structure:
        return {key: _built(inner, tensors) for key, inner in structure["mapping"].items()}
    return tuple(_built(inner, tensors) for inner in structure["tuple"])


def _applied(transform: Transform | None, value: Any) -> Any:
    return value if transform is None else transform(value)
