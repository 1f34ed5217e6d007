"""Texts as token ids without padding, one after another: what every fast path starts from.
Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Tokens:
    """Texts in their order.

    values: token ids of all texts, one text after another, int32 [total].
    lengths: tokens of each text, special ones included, int64 [n].
    types: token type ids [total], for the few tokenizers whose types are not all zero.
    stored: the number of each text in a stored prefix (``freezing.py``), int64 [n], if any.
    """

    values: Ints
    lengths: Ints
    types: Ints | None = None
    stored: Ints | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def total(self) -> int:
        """Tokens of all texts together."""
        return len(self.values)

    @cached_property
    def ends(self) -> Ints:
        """Where each text ends in ``values``, int64 [n]."""
        return np.cumsum(self.lengths)

    def take(self, texts: Ints) -> Tokens:
        """Some texts, in the order given."""
        places = ragged_places(self.ends[texts] - self.lengths[texts], self.lengths[texts])
        types = None if self.types is None else self.types[places]
        stored = None if self.stored is None else self.stored[texts]
        return Tokens(self.values[places], self.lengths[texts], types, stored)

    @classmethod
    def join(cls, parts: Sequence[Tokens]) -> Tokens:
        """The texts of all parts, one part after another."""
        if len(parts) == 1:
            return parts[0]
        types = [part.types for part in parts if part.types is not None]
        stored = [part.stored for part in parts if part.stored is not None]
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate(types) if types else None,
            np.concatenate(stored) if len(stored) == len(parts) else None,
        )

    @classmethod
    def of(
        cls, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Tokens:
        """From one list of ids a text."""
        lengths = np.fromiter((len(text) for text in ids), np.int64, len(ids))
        return cls(_flat(ids), lengths, None if types is None else _flat(types))


def ragged_places(starts: Ints, lengths: Ints) -> Ints:
    """The places of runs that start at ``starts``: int64 [lengths.sum()].

    >>> ragged_places(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(starts, lengths) + within


def by_budget(lengths: Ints, most_tokens: int) -> list[Ints]:
    """Texts by length, cut into chunks of at most so many tokens when each is padded to the
    longest of its chunk; one text alone may have more. Those of most tokens come first, so that
    what one needs fits into the memory that the one before has freed (``allocator.py``)."""
    order = np.argsort(lengths, kind="stable")
    chunks: list[Ints] = []
    start = 0
    for end in range(1, len(order) + 1):
        full = end < len(order) and (end + 1 - start) * lengths[order[end]] > most_tokens
        if full or end == len(order):
            chunks.append(order[start:end])
            start = end
    return sorted(chunks, key=lambda chunk: -int(lengths[chunk].sum()))


def _flat(ids: Sequence[Sequence[int]]) -> Ints:
    total = sum(len(text) for text in ids)
    return np.fromiter(chain.from_iterable(ids), np.int32, total)
