"""What a disk may hold after a power cut: a model of it, for whatever goes through store.atomic.

Since only that module renames and fsyncs, it is enough to watch it. After each of its
operations two disks are possible (Pillai et al., OSDI 2014, describe more, between these):

- ``lazy``: of each folder the names of its last fsync, and nothing newer;
- ``eager``: all names as they are now, which a journal may have written ahead of the data;

and on both, of each file the bytes of its last fsync; none, if there was none.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.store import atomic

Kind = Literal["lazy", "eager"]
_WATCHED = ("fsync", "replace", "rename", "mkdir", "unlink")


@dataclass
class Disk:
    """The disk below a folder. ``states`` are its possible contents after each operation."""

    root: Path
    _bytes: dict[int, bytes] = field(default_factory=dict)  # inode → as last fsynced
    _names: dict[int, dict[str, int]] = field(default_factory=dict)  # folder's inode → names
    states: list[dict[Kind, dict[str, bytes]]] = field(default_factory=list)

    def settle(self) -> None:
        """Take all that is there now for durable."""
        for folder, _, names in os.walk(self.root):
            self._synced(Path(folder))
            for name in names:
                self._synced(Path(folder, name))

    def note(self, name: str, path: Path | None) -> None:
        """An operation has happened."""
        if name == "fsync" and path is not None:
            self._synced(path)
        self.states.append({"lazy": dict(self._lazy()), "eager": dict(self._eager())})

    def _synced(self, path: Path) -> None:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = {p.name: p.lstat().st_ino for p in path.iterdir()}
        else:
            self._bytes[found.st_ino] = path.read_bytes()

    def _lazy(self) -> Iterator[tuple[str, bytes]]:
        def walk(inode: int, prefix: str) -> Iterator[tuple[str, bytes]]:
            for name, child in self._names.get(inode, {}).items():
                if child in self._names:
                    yield from walk(child, f"{prefix}{name}/")
                else:
                    yield f"{prefix}{name}", self._bytes.get(child, b"")

        yield from walk(self.root.stat().st_ino, "")

    def _eager(self) -> Iterator[tuple[str, bytes]]:
        for path in self.root.rglob("*"):
            if path.is_file():
                content = self._bytes.get(path.stat().st_ino, b"")
                yield path.relative_to(self.root).as_posix(), content


def lay_out(state: dict[str, bytes], folder: Path) -> None:
    """Make the files of a state, as a machine finds them when it starts again."""
    for name, content in state.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


class _Watcher:
    """Stands for ``os`` in store.atomic."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _WATCHED:
            return real

        def watched(*arguments: Any, **words: Any) -> Any:
            answer = real(*arguments, **words)
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}")) if name == "fsync" else None
            self._disk.note(name, path)
            return answer

        return watched


@contextmanager
def watched(root: Path) -> Iterator[Disk]:
    """Watch what store.atomic does below a folder; what is there already is durable."""
    disk = Disk(root)
    disk.settle()
    vars(atomic)["os"] = _Watcher(disk)
    try:
        yield disk
    finally:
        vars(atomic)["os"] = os
