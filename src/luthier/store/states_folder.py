"""States in a local folder.

    <folder>/generations/00000001.json      the notes: written once, never replaced or removed
    <folder>/bundles/<bundle id>/…          the bundles that they name

A generation is there when its note is, and the note comes last. Of two writers one gets the
name of the note: a hard link never replaces (``atomic.write_new``).
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import CorruptBundle, NotFound, StoreError, UnsafeLocation
from luthier.store.atomic import make_folder, new_folder, point, remove, translated, write_new
from luthier.store.bundle import MANIFEST, Bundle, open_bundle
from luthier.store.states_note import Note, StoredFile, name_of, number_of

_BUNDLE = re.compile(r"[0-9a-f]{64}")


class FolderPlace:
    """Where a state lives: a folder. It need not be there before the first commit."""

    def __init__(self, path: Path) -> None:
        self.root = path.absolute()
        self.where = str(path)
        self._notes = self.root / "generations"
        self._bundles = self.root / "bundles"

    def generations(self) -> list[int]:
        """The generations, the oldest first. Raises UnsafeLocation when it is no state."""
        with _reading(self.root):
            if self.root.exists() and not self.root.is_dir():
                raise UnsafeLocation(
                    "this is a file, not a state", where=self.where, hint="a state is a folder"
                )
        found = sorted(filter(None, map(number_of, _names(self._notes))))
        if not found:
            self._refuse_other_files()
        return found

    def note(self, generation: int) -> tuple[bytes, str]:
        """The bytes of a note, and where they lie. Raises NotFound or StoreError."""
        path = self._notes / name_of(generation)
        with _reading(path):
            try:
                return path.read_bytes(), str(path)
            except FileNotFoundError:
                raise NotFound("there is no such generation", where=str(path)) from None

    def prepare(self) -> None:
        """Make the folders. Raises DiskFull or StoreError."""
        for folder in (self._notes, self._bundles):
            make_folder(folder)

    def put(self, bundle: Bundle, files: dict[str, StoredFile], known: Collection[str]) -> None:
        """Copy a bundle into the state, unless it is there already and whole.

        Copied, not linked: a state outlives its runs, and what happens to a file of theirs
        may not happen to it. Raises CorruptBundle, DiskFull or StoreError.
        """
        target = self._bundles / bundle.id
        is_damaged = False
        if target.exists():
            try:
                if open_bundle(target).id == bundle.id:
                    with translated(target):
                        os.utime(target)  # used from now: prune goes by it
                    return
            except (CorruptBundle, NotFound):
                is_damaged = True
        with new_folder(target, replaces=is_damaged) as aside:
            for name in files:
                copy = aside / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.path / name, copy)
                point("state.copied")
            if open_bundle(aside).id != bundle.id:
                raise CorruptBundle(
                    "the bundle changed while it was copied", where=str(bundle.path / MANIFEST)
                )

    def add_note(self, generation: int, data: bytes) -> bool:
        """Commit a note; False when there is one already."""
        return write_new(self._notes / name_of(generation), data)

    def get(self, note: Note, cache: Path) -> Bundle:
        """The bundle of a generation, in its place, verified. Raises NotFound, CorruptBundle."""
        with _reading(self._bundles / note.bundle):
            bundle = open_bundle(self._bundles / note.bundle)
        if bundle.id != note.bundle:
            raise CorruptBundle(
                "the bundle is not the one that was committed", where=str(bundle.path / MANIFEST)
            )
        return bundle

    def prune(self, kept: list[Note], grace_s: float) -> int:
        """Remove the bundles that no kept note names, and what killed writers left; how many."""
        needed = {note.bundle for note in kept}
        count = 0
        for path in [*self._left_aside(), *self._unneeded(needed)]:
            if _age_s(path) >= grace_s:
                remove(path)
                count += 1
        return count

    def neighbours(self) -> list[str]:
        """The states beside this one, or beside where it would be."""
        parent = self.root.parent
        return [
            str(Path(self.where).parent / name)
            for name in _names(parent)
            if _is_state(parent / name)
        ]

    def _unneeded(self, needed: set[str]) -> Iterator[Path]:
        for name in _names(self._bundles):
            if _BUNDLE.fullmatch(name) and name not in needed:
                yield self._bundles / name

    def _left_aside(self) -> Iterator[Path]:
        for folder in (self._notes, self._bundles):
            if folder.is_dir():
                yield from folder.glob(".*.aside")

    def _refuse_other_files(self) -> None:
        """A folder that holds something else is somebody's, and no place for a state."""
        if (self.root / MANIFEST).exists():
            raise UnsafeLocation(
                "this is a model or a checkpoint, not a state",
                where=self.where,
                hint="a state has a folder of its own, with all its generations",
            )
        others = [
            name
            for folder, is_ours in (
                (self.root, {"generations", "bundles"}.__contains__),
                (self._notes, lambda name: False),
                (self._bundles, _BUNDLE.fullmatch),
            )
            for name in _names(folder)
            if not is_ours(name)
        ]
        if others:
            inside = [name for name in others if _is_state(self.root / name)]
            raise UnsafeLocation(
                f"the folder holds other files, as '{others[0]}', and no state",
                where=self.where,
                hint=f"did you mean '{Path(self.where) / inside[0]}'?"
                if inside
                else "name a new or an empty folder, for example one inside of it",
            )


def _is_state(folder: Path) -> bool:
    try:
        return any(map(number_of, _names(folder / "generations")))
    except StoreError:
        return False  # asked for a hint only: somebody else's folder, perhaps


def _names(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones; none when there is no such folder."""
    with _reading(folder):
        try:
            return sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say what the disk said: no permission, a name too long, a broken disk."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot be read: {error.strerror}", where=str(path)) from error


def _age_s(path: Path) -> float:
    """Seconds since it was last written or used; none when another process removed it."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return -1.0
