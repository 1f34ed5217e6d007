"""Random numbers as arithmetic: the i-th number of a key, without a generator's state.

A generator of numpy may change its stream between versions; these functions are ours, so
the batches of a run are the same on every machine and after every upgrade.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Rows = npt.NDArray[np.int64]

#: 2^64 / golden ratio, made odd: the increment of SplitMix64 (Steele et al., OOPSLA 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: Keys) -> Keys:
    """SplitMix64's output function: a bijection of 64-bit words in which every input bit
    changes half of the output bits. Works in place."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def derive(*parts: object) -> int:
    """A 64-bit key for these parts, through sha256.

    >>> derive("data", 42, 0) == derive("data", 42, 0) != derive("data", 42, 1)
    True
    """
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def numbers(key: int, indices: Rows | int) -> Keys:
    """Random 64-bit words for these indices (an int: 0 … n - 1), distinct for distinct ones."""
    if not isinstance(indices, np.ndarray):
        indices = np.arange(indices, dtype=np.int64)
    return mix((indices.astype(np.uint64) + np.uint64(1)) * _GOLDEN + np.uint64(key))


def below(key: int, indices: Rows | int, limits: Rows | int) -> Rows:
    """Random whole numbers from 0 to below the limits. The bias is limit / 2^64."""
    return (numbers(key, indices) % np.asarray(limits, dtype=np.uint64)).astype(np.int64)


def permutation(key: int, n: int) -> npt.NDArray[np.int32] | Rows:
    """A random order of 0 … n - 1, in 32 bits where that is enough."""
    order = np.argsort(numbers(key, n))  # the keys are distinct, so any sort gives this order
    return order.astype(np.int32) if n < 2**31 else order
