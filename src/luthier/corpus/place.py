"""What a place of vectors is: versions, each of shards, one of them current."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Plan:
    """What is encoded with what. model: what tells its bytes from others; name: as it was asked
    for. data: sha256 of ids and texts. shard_rows: of a version that was begun before, its own.
    """

    model: str
    name: str
    file: str
    data: str
    rows: int
    normalize: bool
    onnx: bool
    shard_rows: int

    @property
    def version(self) -> str:
        """Names the vectors by what they depend on: the same again is the same version."""
        parts = [1, self.model, self.data, self.normalize, self.onnx]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.rows // self.shard_rows)

    def rows_of(self, shard: int) -> int:
        """How many rows a shard has."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    def facts(self) -> dict[str, Any]:
        """For a manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Begun:
    """How a version stands. done: the shards that are whole."""

    plan: Plan
    done: frozenset[int]
    finished: bool


class Place(Protocol):
    """Where vectors go. ``folder.Folder``, ``postgresql.Table``."""

    where: str
    notes: list[str]

    def alone(self) -> AbstractContextManager[None]:
        """Nobody else writes here meanwhile. Raises Conflict."""

    def begin(self, plan: Plan) -> Begun:
        """Begin a version, or find it again."""

    def prepare(self, plan: Plan, dim: int) -> None:
        """Make room for vectors of a width."""

    def put(self, plan: Plan, shard: int, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Keep a shard: float32 [n, dim]. It is whole or it is not there."""

    def finish(self, plan: Plan, dim: int) -> None:
        """All shards are there: the version is whole."""

    def swap(self, version: str) -> None:
        """Make a whole version the current one, at once for all who read."""

    def current(self) -> str | None:
        """The version that is read."""

    def prune(self) -> list[str]:
        """Remove all versions but the current one; which."""
