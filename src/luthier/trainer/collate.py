"""Rows that are batches already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import default_data_collator


def collator_for(collator: Any, rows: Any, args: Any) -> Any:
    """The collator to use. Where none was given, the batch size is 1 and each row is a batch
    (as data sets are after ``.batch()``), rows are taken as they are; else it is unchanged."""
    if collator is not None or args.per_device_train_batch_size != 1 or not _batched(rows):
        return collator
    return ready


def ready(rows: Sequence[Any]) -> Any:
    """A row that is a batch, as tensors; rows that are not are collated as usual."""
    if len(rows) != 1 or not _is_batch(rows[0]):
        return default_data_collator(list(rows))
    return {
        ("labels" if name in ("label", "label_ids") else name): torch.as_tensor(np.asarray(value))
        for name, value in rows[0].items()
        if not isinstance(value, str) and not _texts(value)
    }


def _batched(rows: Any) -> bool:
    try:
        return len(rows) > 0 and _is_batch(rows[0])
    except (TypeError, KeyError):
        return False  # a stream, which is not looked at before its time


def _is_batch(row: Any) -> bool:
    """Whether a row's inputs have two dimensions, and all its values as many rows."""
    if not isinstance(row, Mapping) or "input_ids" not in row:
        return False
    if np.ndim(row["input_ids"]) < 2:
        return False
    count = len(row["input_ids"])
    return all(np.ndim(v) >= 1 and len(v) == count for v in row.values() if not isinstance(v, str))


def _texts(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(len(value)) and isinstance(value[0], str)
