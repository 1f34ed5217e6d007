"""A collated batch in smaller pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


def rows_of(batch: Any) -> int:
    """Rows of a collated batch: the first dimension of its first tensor; 1 where it has none."""
    if isinstance(batch, torch.Tensor):
        return int(batch.shape[0]) if batch.ndim else 1
    values = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, Mapping | list | tuple):
        for value in values:
            if isinstance(value, torch.Tensor) and value.ndim:
                return int(value.shape[0])
    return 1


def halves(batch: Any, micro: int) -> Iterator[tuple[Any, float]]:
    """The batch in pieces of at most ``micro`` rows, and each one's share of the rows."""
    rows = rows_of(batch)
    for start in range(0, rows, micro):
        stop = min(start + micro, rows)
        yield _cut(batch, slice(start, stop), rows), (stop - start) / rows


def _cut(value: Any, part: slice, rows: int) -> Any:
    if isinstance(value, torch.Tensor):
        return value[part] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, Mapping):
        return {key: _cut(inner, part, rows) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == rows and not any(isinstance(v, torch.Tensor) for v in value):
            return value[part]
        return type(value)(_cut(inner, part, rows) for inner in value)
    return value
