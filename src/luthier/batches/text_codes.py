"""Numbers for texts, so that equal texts can be told without holding Python strings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from luthier.batches.arithmetic import Keys, mix

#: Rows hashed at a time: bounds memory, and is large enough for numpy to be fast.
_CHUNK = 1 << 18
_WORD = 8
#: 16 MB of flags, of which a million repeated texts set one in sixteen.
_FILTER_BITS = 24


def text_hashes(chunks: Iterable[pa.Array], n: int) -> Keys:
    """A 64-bit hash of each text. Different texts share one with probability 2^-64 a pair;
    that would keep two rows out of one batch, and nothing worse."""
    found = np.empty(n, dtype=np.uint64)
    start = 0
    for chunk in chunks:
        values = chunk
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            values = values.cast(pa.large_string())
        for offset in range(0, len(values), _CHUNK):
            part = values.slice(offset, _CHUNK)
            found[start : start + len(part)] = _hashes(part)
            start += len(part)
    return found


def _hashes(values: pa.Array) -> Keys:
    _, offsets_buffer, data_buffer = values.buffers()
    wide = pa.types.is_large_string(values.type)
    offsets = np.frombuffer(offsets_buffer, np.int64 if wide else np.int32)
    offsets = offsets[values.offset : values.offset + len(values) + 1].astype(np.int64)
    start, length = offsets[:-1] - offsets[0], np.diff(offsets)
    size = int(offsets[-1] - offsets[0])
    padded = np.zeros(size + _WORD, dtype=np.uint8)
    if size:
        padded[:size] = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
    # a word at every byte: unaligned, overlapping, without a copy
    words = np.ndarray((size + 1,), dtype="<u8", buffer=padded.data, strides=(1,))
    found = mix(length.astype(np.uint64))
    active = np.flatnonzero(length > 0)
    for position in range(0, int(length.max(initial=0)), _WORD):
        active = active[length[active] > position]
        word = words[start[active] + position].astype(np.uint64)
        left = length[active] - position
        bits = np.minimum(left, _WORD).astype(np.uint64) * np.uint64(8)
        word &= ~np.uint64(0) >> (np.uint64(64) - bits)
        found[active] = mix(found[active] * np.uint64(31) + word)
    return found


def repeated_codes(columns: Sequence[Iterable[pa.Array]], n: int) -> npt.NDArray[np.int32]:
    """[n, columns] int32: a number for each text that more than one row has, -1 for others.

    A text that a row has twice is counted there once.
    """
    hashes = np.stack([text_hashes(chunks, n) for chunks in columns], axis=1)
    extra = np.zeros(hashes.shape, dtype=bool)  # a role that repeats an earlier one of its row
    for later in range(1, len(columns)):
        for earlier in range(later):
            extra[:, later] |= hashes[:, later] == hashes[:, earlier]
    ordered = np.sort(hashes[~extra])
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    repeated = twice[np.concatenate([[True], twice[1:] != twice[:-1]])] if len(twice) else twice
    codes = np.full(hashes.shape, -1, dtype=np.int32)
    if len(repeated):
        maybe = np.zeros(1 << _FILTER_BITS, dtype=bool)  # most texts are not even looked up
        maybe[repeated >> np.uint64(64 - _FILTER_BITS)] = True
        for role in range(len(columns)):
            hits = maybe[hashes[:, role] >> np.uint64(64 - _FILTER_BITS)] & ~extra[:, role]
            rows = np.flatnonzero(hits)
            sought = hashes[rows, role]
            place = np.searchsorted(repeated, sought).clip(max=len(repeated) - 1)
            known = repeated[place] == sought
            codes[rows[known], role] = place[known]
    return codes
