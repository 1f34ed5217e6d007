"""The texts of a run's rows, each once: equal ones are computed and stored once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from luthier.models.tokens import Ints, Tokens

if TYPE_CHECKING:
    from luthier.engine.learner import Texts

#: Texts whose tokens are read at once to tell equal texts from one another.
_READ = 16_384


@dataclass(frozen=True)
class DistinctTexts:
    """The texts of a run's rows, each once, shortest first.

    lengths: tokens of each. digest: sha256 of all their tokens. tokens: those of some of them.
    rows: sorted; numbers: role → for each of those rows, its text.
    """

    lengths: Ints
    digest: str
    tokens: Callable[[Ints], Tokens]
    rows: Ints
    numbers: Mapping[str, Ints]

    @classmethod
    def of(cls, texts: Texts, roles: tuple[str, ...], rows: Ints) -> DistinctTexts:
        """Read all texts of these rows and find the equal ones."""
        marks, sizes = [], []
        for role in roles:
            for start in range(0, len(rows), _READ):
                tokens = texts(role, rows[start : start + _READ])
                marks += _digests(tokens)
                sizes.append(tokens.lengths)
        places = np.frombuffer(b"".join(marks), dtype="S16")
        _, first, number = np.unique(places, return_index=True, return_inverse=True)
        lengths = np.concatenate(sizes)[first] if sizes else np.zeros(0, np.int64)
        order = np.argsort(lengths, kind="stable")
        first, rank = first[order], np.empty_like(order)
        rank[order] = np.arange(len(order))
        digest = hashlib.sha256()
        for place in first.tolist():
            digest.update(marks[place])

        def of(numbers: Ints) -> Tokens:
            role, row = np.divmod(first[numbers], len(rows))
            there = [np.flatnonzero(role == index) for index in range(len(roles))]
            parts = [
                texts(name, rows[row[found]])
                for name, found in zip(roles, there, strict=True)
                if len(found)
            ]
            return Tokens.join(parts).take(np.argsort(np.concatenate(there)))

        columns = rank[number.reshape(-1)].reshape(len(roles), len(rows))
        numbers = dict(zip(roles, columns, strict=True))
        return cls(lengths[order], digest.hexdigest(), of, rows, numbers)

    def numbered(self, texts: Texts) -> Texts:
        """``texts``, whose tokens also bear the numbers of the texts here."""
        whole = len(self.rows) == self.rows[-1] + 1

        def numbered(role: str, rows: np.ndarray) -> Tokens:
            places = rows if whole else np.searchsorted(self.rows, rows)
            return replace(texts(role, rows), stored=self.numbers[role][places])

        return numbered


def _digests(tokens: Tokens) -> list[bytes]:
    values, ends = np.ascontiguousarray(tokens.values, dtype=np.int32), tokens.ends.tolist()
    starts = [0, *ends[:-1]]
    types = tokens.types
    found = []
    for start, end in zip(starts, ends, strict=True):
        mark = hashlib.blake2b(values[start:end].tobytes(), digest_size=16)
        if types is not None:
            mark.update(np.ascontiguousarray(types[start:end], dtype=np.int32).tobytes())
        found.append(mark.digest())
    return found
