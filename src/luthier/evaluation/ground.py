"""Do new rows lie where the reference has rows, or on ground that it does not know?

A row is off known ground when it is farther from its k-th nearest reference row than 95% of
reference rows are from theirs (Sun et al., Out-of-Distribution Detection with Deep Nearest
Neighbors, ICML 2022). Half of the reference is the ground; the other half says how far is usual,
so that the 5% hold for any distribution (split conformal: Vovk et al. 2005).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from luthier.evaluation.two_sample import Array, squared_distances

#: As far from the ground as this share of the reference is still usual.
_USUAL = 0.95
#: Nearest neighbour that counts: one stray row should not make ground.
_NEIGHBOUR = 5
_BLOCK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Ground:
    """off: the share of new rows off known ground, less what is so by chance; 0 … 1.
    neighbour: which nearest row was looked at. distance: beyond which a row is off."""

    off: float
    neighbour: int
    distance: float


def known_ground(reference: Array, new: Array, *, seed: int = 0) -> Ground:
    """The share of new rows [m, d] that no reference rows [n, d] are near to.

    Features should be on one scale. Of an ordinary sample of the reference's own distribution
    the expected share is 0, up to what is cut off below.
    """
    rows = reference[np.random.default_rng(seed).permutation(len(reference))]
    half = len(rows) // 2
    neighbour = max(1, min(_NEIGHBOUR, half // 4))
    usual = np.sort(_distances(rows[half:], rows[:half], neighbour))
    rank = min(len(usual), math.ceil(_USUAL * (len(usual) + 1)))
    limit = float(usual[rank - 1])
    chance = 1 - rank / (len(usual) + 1)  # of a row of the reference's own distribution
    # rows that repeat reference rows are apart by rounding only
    beyond = float((_distances(new, rows[:half], neighbour) > limit * (1 + 1e-9) + 1e-7).mean())
    return Ground(max(0.0, (beyond - chance) / (1 - chance)), neighbour, limit)


def _distances(rows: Array, ground: Array, neighbour: int) -> Array:
    """From each row to its ``neighbour``-th nearest of the ground."""
    step = max(1, _BLOCK_BYTES // (8 * len(ground)))
    found = [
        np.partition(squared_distances(rows[i : i + step], ground), neighbour - 1, axis=1)
        for i in range(0, len(rows), step)
    ]
    nearest: Array = np.concatenate([block[:, neighbour - 1] for block in found])
    return np.sqrt(nearest)
