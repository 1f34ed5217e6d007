"""What a dataset is like, in numbers: told before the first step. Memory: 8 bytes a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from luthier.data.columns import VALUE_ROLES
from luthier.data.dataset import Dataset
from luthier.data.keys import Keys, count_distinct, distinct, text_keys
from luthier.data.rankings import Rankings


def describe(dataset: Dataset) -> dict[str, Any]:
    """The facts, as JSON data.

    rows, form, mapping, notes, id; distinct_texts; duplicate_rows (rows that repeat an earlier
    row in everything); same_text_rows (rows of which two texts are equal, such as an anchor
    that is its own positive); classes (labelled data); values (scores or margins);
    characters: the lengths of each role's texts.
    """
    if isinstance(dataset, Rankings):
        return _searches(dataset)
    keys = {role: text_keys(dataset, role) for role in dataset.roles}
    return {
        "rows": len(dataset),
        "form": dataset.form,
        "mapping": dict(dataset.mapping),
        "notes": list(dataset.notes),
        "id": dataset.id,
        "distinct_texts": _distinct_texts(list(keys.values())),
        "duplicate_rows": len(dataset) - _distinct_rows(dataset, list(keys.values())),
        "same_text_rows": _same_text_rows(list(keys.values())),
        "classes": class_sizes(dataset) if dataset.form == "labelled" else None,
        "values": _values(dataset),
        "characters": {role: _spread(lengths(dataset, role)) for role in dataset.roles},
    }


def overlap(train: Dataset, held_out: Dataset) -> int:
    """How many distinct texts of the evaluation data also occur in the training data."""
    seen, asked = distinct(_all_keys(train)), distinct(_all_keys(held_out))
    if not len(seen):
        return 0
    places = np.searchsorted(seen, asked).clip(max=len(seen) - 1)
    return int((seen[places] == asked).sum())


def _all_keys(dataset: Dataset) -> Keys:
    """Of rankings those of the queries: the items are a catalogue's, on both sides."""
    if isinstance(dataset, Rankings):
        return text_keys(dataset.catalogue, "text")[np.unique(dataset.queries)]
    return np.concatenate([text_keys(dataset, role) for role in dataset.roles])


def _searches(dataset: Rankings) -> dict[str, Any]:
    used, rows = dataset.used(), np.arange(len(dataset))
    characters = lengths(dataset.catalogue, "text")
    shown = dataset.shown(rows)
    relevant = np.bincount(shown.rows[shown.relevance > 0], minlength=len(dataset))
    return {
        "rows": len(dataset),
        "form": dataset.form,
        "mapping": dict(dataset.mapping),
        "notes": list(dataset.notes),
        "id": dataset.id,
        "distinct_texts": len(used),
        "distinct_queries": len(np.unique(shown.queries)),
        "duplicate_rows": 0,
        "same_text_rows": 0,
        "without_relevant": int((relevant == 0).sum()),
        "items": _spread(dataset.sizes),
        "relevant": _spread(relevant),
        "classes": None,
        "values": _spread(shown.relevance),
        "characters": {
            "query": _spread(characters[shown.queries]),
            "items": _spread(characters[shown.items]),
        },
    }


def row_lengths(dataset: Dataset) -> npt.NDArray[Any]:
    """[n] int64: the characters of all texts of each row."""
    if isinstance(dataset, Rankings):
        characters = lengths(dataset.catalogue, "text")
        shown = dataset.shown(np.arange(len(dataset)))
        items = np.bincount(shown.rows, characters[shown.items], len(dataset))
        found: npt.NDArray[Any] = characters[shown.queries] + items.astype(np.int64)
        return found
    total = np.zeros(len(dataset), dtype=np.int64)
    for role in dataset.roles:
        total += lengths(dataset, role)
    return total


def class_sizes(dataset: Dataset) -> dict[str, Any]:
    """Of labelled data: the number of classes that occur, how large they are, and how many
    have one item only (a loss on classes learns little from those)."""
    sizes = np.bincount(dataset.array("label"))
    codes = np.flatnonzero(sizes)
    present = sizes[codes]
    largest = codes[np.argsort(-present, kind="stable")[:5]]
    return {
        "count": len(codes),
        "single_item": int((present == 1).sum()),
        "largest": {dataset.class_name(int(code)): int(sizes[code]) for code in largest},
        "sizes": _spread(present),
    }


def lengths(dataset: Dataset, role: str) -> npt.NDArray[np.int32]:
    """[n] int32: the length of each text of a role, in characters."""
    found = [pc.utf8_length(chunk).to_numpy(zero_copy_only=False) for chunk in dataset.chunks(role)]
    return np.concatenate(found) if found else np.empty(0, dtype=np.int32)


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {}
    low, middle, high, top = np.percentile(values, [0, 50, 95, 100], method="lower")
    return {
        "min": float(low), "median": float(middle), "p95": float(high), "max": float(top),
        "mean": float(values.mean()),
    }  # fmt: skip


def _values(dataset: Dataset) -> dict[str, float] | None:
    role = {"scored": "score", "margin": "margin"}.get(dataset.form)
    return _spread(dataset.array(role)) if role else None


def _distinct_texts(keys: Sequence[Keys]) -> int:
    return count_distinct(np.concatenate(keys))


def _distinct_rows(dataset: Dataset, keys: Sequence[Keys]) -> int:
    combined = np.zeros(len(dataset), dtype=np.uint64)
    extra = [role for role in dataset.mapping if role in VALUE_ROLES]
    values = [np.ascontiguousarray(dataset.array(role)).view(np.uint64) for role in extra]
    for column in [*keys, *values]:
        # the odd factor makes the order of the columns count; the shift spreads high bits down
        combined = (combined ^ (combined >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        combined = combined + column * np.uint64(0x9E3779B97F4A7C15)
    return count_distinct(combined)


def _same_text_rows(keys: Sequence[Keys]) -> int:
    same = np.zeros(len(keys[0]), dtype=bool)
    for later in range(1, len(keys)):
        for earlier in range(later):
            same |= keys[later] == keys[earlier]
    return int(same.sum())
