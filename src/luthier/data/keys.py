"""Numbers for texts, so that equal texts are found without holding Python strings.

A key is 64 bits of a hash made for spread, not against attack: words of eight bytes, each
mixed in with the finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA 2014). Among ten
million texts the chance that any two share a key is about 3e-6; where that would change what
is learned, two keys with different seeds are used (a chance of about 1e-25).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from luthier.data.dataset import Dataset

Keys = npt.NDArray[np.uint64]
_WORD = 8


def text_keys(dataset: Dataset, role: str, seed: int = 0) -> Keys:
    """[n] uint64: a key for each text of a role."""
    found = np.empty(len(dataset), dtype=np.uint64)
    start = 0
    for chunk in dataset.chunks(role):
        found[start : start + len(chunk)] = array_keys(chunk, seed)
        start += len(chunk)
    return found


def array_keys(values: pa.Array, seed: int = 0) -> Keys:
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
    found: Keys = _mix(length.astype(np.uint64) + _mix(np.array([seed + 1], dtype=np.uint64)))
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


def numbered(keys: list[tuple[Keys, Keys]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Numbers for the distinct texts behind some pairs of keys, in order of first appearance.

    Returns, over all keys one after the other, the number of each text [n], and for each
    number the place of its first appearance.
    """
    first = np.concatenate([k for k, _ in keys])
    second = np.concatenate([k for _, k in keys])
    order = np.lexsort((second, first))
    new = np.ones(len(order), dtype=bool)
    sorted_first, sorted_second = first[order], second[order]
    new[1:] = (sorted_first[1:] != sorted_first[:-1]) | (sorted_second[1:] != sorted_second[:-1])
    del sorted_first, sorted_second
    # lexsort is stable, so the first of a group of equals is its first appearance
    appearance = order[new]
    group = np.cumsum(new) - 1
    rank = np.empty(len(appearance), dtype=np.int64)
    by_appearance = np.argsort(appearance)
    rank[by_appearance] = np.arange(len(appearance))
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = rank[group]
    return numbers, appearance[by_appearance]
