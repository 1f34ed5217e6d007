"""What every reader gives: blocks of rows, columns not yet named by role nor checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from luthier.data.problems import Problems

#: A longer cell is refused: a megabyte is a book, which no text encoder reads, and nearly
#: always a quote that was never closed.
MAX_CELL_BYTES = 1 << 20
#: A longer row is refused, so that a file without line ends cannot fill the memory.
MAX_ROW_BYTES = 8 << 20

#: A column: an Arrow array, or a list where JSON mixes types, for the checks to judge.
Column: TypeAlias = pa.Array | list[Any]


@dataclass(frozen=True)
class Block:
    """Some consecutive rows. ``lines()`` gives the line of each row as an editor shows it;
    it may parse the block again, and is only called when a row is bad."""

    columns: list[Column]
    lines: Callable[[], Sequence[int]]

    def __len__(self) -> int:
        return len(self.columns[0])


class Reader(Protocol):
    """Reads one file, once.

    names: the columns' names, None where there are none. notes: what was decided about the
    file, for people to see.
    """

    names: tuple[str, ...] | None
    width: int
    notes: tuple[str, ...]

    def sample(self) -> Block:
        """The first rows that are whole (``blocks`` gives them as well)."""

    def blocks(self, problems: Problems) -> Iterator[Block]:
        """All rows in order. Bad rows go to ``problems`` and are left out."""
