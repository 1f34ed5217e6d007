"""The items of a catalogue, read block by block: an id and a text each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data.problems import Problems
from luthier.data.reading import Format
from luthier.data.rows import stream
from luthier.errors import DataError, nearest
from luthier.spec import CSVOptions

#: Columns that hold ids where none is named, the first that is there.
_IDS = ("id", "item_id", "object_id", "doc_id", "_id")
_TEXT = "text"
#: Between the columns of an item whose text is in several.
_BETWEEN = "\n"


@dataclass(frozen=True)
class Survey:
    """What a whole pass has found. sha256: of all ids and texts in their order, whatever the
    format of the file."""

    rows: int
    sha256: str


class Items:
    """A file of items: CSV, JSONL, Parquet or Arrow.

    id_column: default ``id``, ``item_id``, ``object_id``, ``doc_id`` or ``_id``. text_columns:
    default ``text``, or the only other column; several are joined by line ends. Raises DataError
    for a file that cannot be read, and columns that it has not.
    """

    def __init__(
        self, path: Path, *, id_column: str | None = None, text_columns: Sequence[str] = (),
        csv: CSVOptions | None = None, format: Format | None = None,
    ) -> None:  # fmt: skip
        self.path, self.file = Path(path), str(path)
        self._csv, self._format = csv or CSVOptions(header=True), format
        names, _ = stream(self.path, self._csv, Problems(self.file), format=format)
        self.id_column = self._chosen(id_column, names, "id", _IDS)
        others = [name for name in names if name != self.id_column]
        self.text_columns = tuple(
            self._chosen(name, names, "text", ()) for name in text_columns
        ) or (self._chosen(None, others, "text", (_TEXT,)),)

    def survey(self) -> Survey:
        """Look at every row. Raises DataError that lists what is wrong by row and column: an id
        or a text that lacks or is none, an id that comes twice."""
        digest, rows = hashlib.sha256(), 0
        marks: list[np.ndarray] = []
        for ids, texts in self.blocks(digest):
            rows += len(texts)
            # 8 bytes an id; what is equal here is looked at again
            marks.append(np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids)))
        if not rows:
            raise DataError("no rows in the file", file=self.file)
        self._refuse_twice(np.concatenate(marks))
        return Survey(rows, digest.hexdigest())

    def blocks(self, digest: Any = None) -> Iterator[tuple[list[str], list[str]]]:
        """Ids and texts, block by block. digest: is fed with all of it. Raises DataError at the
        end where a row was bad: what was given before is then to be thrown away."""
        found = Problems(self.file)
        for ids, texts, _ in self._blocks(found, digest):
            yield ids, texts
        found.check()

    def _blocks(
        self, found: Problems, digest: Any
    ) -> Iterator[tuple[list[str], list[str], Callable[[], Sequence[int]]]]:
        wanted = dict.fromkeys([self.id_column, *self.text_columns])
        names, blocks = stream(self.path, self._csv, found, format=self._format, only=wanted)
        at = [names.index(name) for name in (self.id_column, *self.text_columns)]
        for block in blocks:
            if found.full:
                return
            columns = [c if isinstance(c := block.columns[i], list) else c.to_pylist() for i in at]
            ids = [str(v) if _is_whole(v) else v for v in columns[0]]
            self._check(self.id_column, ids, block, found)
            for name, values in zip(self.text_columns, columns[1:], strict=True):
                self._check(name, values, block, found)
            if found.found:
                continue
            texts = (
                columns[1]
                if len(columns) == 2
                else [_BETWEEN.join(parts) for parts in zip(*columns[1:], strict=True)]
            )
            if digest is not None:
                for item, text in zip(ids, texts, strict=True):
                    a, b = item.encode(), text.encode()
                    digest.update(b"%d %d " % (len(a), len(b)) + a + b)
            yield ids, texts, block.lines

    def _check(self, column: str, values: Sequence[Any], block: Any, found: Problems) -> None:
        for place, value in enumerate(values):
            if isinstance(value, str) and value.strip() and _is_whole_text(value):
                continue
            what = (
                "it lacks" if value is None
                else "it is empty" if isinstance(value, str) and not value.strip()
                else "half of a surrogate pair: this is not text" if isinstance(value, str)
                else f"is no text: {value!r:.40}"
            )  # fmt: skip
            found.add(what, row=block.lines()[place], column=column)
            if found.full:
                return

    def _refuse_twice(self, marks: np.ndarray) -> None:
        marks.sort()
        twice = set(marks[1:][marks[1:] == marks[:-1]].tolist())
        if not twice:
            return
        seen: dict[str, int] = {}
        found = Problems(self.file)
        for ids, _, lines in self._blocks(Problems(self.file), None):
            for item, line in zip(ids, lines(), strict=True):
                if hash(item) in twice and seen.setdefault(item, line) != line:
                    message = f"the id {item!r:.80} is that of row {seen[item]} as well"
                    found.add(message, row=line, column=self.id_column)
            if found.full:
                break
        found.check()

    def _chosen(
        self, asked: str | None, names: Sequence[str], what: str, usual: Sequence[str]
    ) -> str:
        if asked is not None:
            if asked in names:
                return asked
            hint = nearest(asked, names) or f"there are: {', '.join(names)}"
            raise DataError(f"there is no column '{asked}'", file=self.file, hint=hint)
        for name in usual:
            if name in names:
                return name
        if what == "text" and len(names) == 1:
            return names[0]
        listed = ", ".join(names) or "no other"
        raise DataError(f"which column holds the {what}?", file=self.file,
                        hint=f"{what}_column names it; there are: {listed}")  # fmt: skip


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_whole_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
