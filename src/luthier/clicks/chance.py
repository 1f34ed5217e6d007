"""Chance of a key: uniform numbers that are the same on every machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from luthier.batches.arithmetic import derive, numbers

Floats = NDArray[np.float64]


def uniform(shape: int | tuple[int, ...], *key: object) -> Floats:
    """Uniform numbers in [0, 1) with 53 bits, float64 of that shape, for this key.

    >>> uniform(2, "a", 1).tolist() == uniform(3, "a", 1)[:2].tolist()
    True
    """
    words = numbers(derive(*key), int(np.prod(shape)))
    found: Floats = ((words >> np.uint64(11)).astype(np.float64) / 2.0**53).reshape(shape)
    return found
