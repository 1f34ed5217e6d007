"""Numbers for texts, so that equal texts are found without holding Python strings.

A key is 64 bits of a hash made for spread, not against attack: words of eight bytes, each
mixed in with the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). Two different
texts of a million share a key with a chance of 3e-8, of twenty million with 1e-5; they are then
taken for one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from luthier.data.dataset import Dataset

Keys = npt.NDArray[np.uint64]
_WORD = 8


def text_keys(dataset: Dataset, role: str) -> Keys:
    """[n] uint64: a key for each text of a role."""
    found = np.empty(len(dataset), dtype=np.uint64)
    start = 0
    for chunk in dataset.chunks(role):
        found[start : start + len(chunk)] = array_keys(chunk)
        start += len(chunk)
    return found


def array_keys(values: pa.Array) -> Keys:
    """[n] uint64: a key for each text of an Arrow string array."""
    _, offsets_buffer, data = values.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[values.offset :][: len(values) + 1]
    offsets = offsets.astype(np.int64)
    start, length = offsets[:-1] - offsets[0], np.diff(offsets)
    size = int(offsets[-1] - offsets[0])
    padded = np.zeros(size + _WORD, dtype=np.uint8)
    if size:
        padded[:size] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    # the eight bytes that begin at every byte, without a copy
    words = np.ndarray((size + 1,), dtype="<u8", buffer=padded.data, strides=(1,))
    found: Keys = _mix(length.astype(np.uint64) + np.uint64(1))
    active = np.flatnonzero(length > 0)
    position = 0
    while len(active):
        left = np.minimum(length[active] - position, _WORD).astype(np.uint64)
        word = words[start[active] + position].astype(np.uint64)
        word &= ~np.uint64(0) >> (np.uint64(64) - left * np.uint64(8))
        found[active] = _mix((found[active] ^ word) + np.uint64(0x9E3779B97F4A7C15))
        position += _WORD
        active = active[length[active] > position]
    return found


def _mix(value: Any) -> Any:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def distinct(keys: Keys) -> Keys:
    """The distinct keys, sorted. The array given is sorted in place, to spare a copy.

    (``np.unique`` hashes since numpy 2.3, which takes ten times as long on this much data.)
    """
    keys.sort()
    new = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=new[1:])
    return keys[new]


def count_distinct(keys: Keys) -> int:
    """How many distinct keys there are. The array given is sorted in place."""
    keys.sort()
    return int(np.count_nonzero(keys[1:] != keys[:-1])) + bool(len(keys))


def numbered(keys: Keys) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Numbers for the distinct texts behind some keys, in no particular order.

    Returns the number of each text [n], and for each number the place of its first appearance.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    new = np.ones(len(order), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    del ordered
    numbers = np.empty(len(order), dtype=np.int32)
    numbers[order] = np.cumsum(new, dtype=np.int32) - 1
    # the sort is stable, so the first of a group of equals is its first appearance
    return numbers, order[new]
