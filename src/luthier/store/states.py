"""States for continual learning: bundles at a URL, as a series of generations.

A state is a local folder or a place in a bucket (``s3://bucket/prefix``). Each update reads its
newest generation and commits the next one. Nothing is ever overwritten: a generation is added
whole, or not at all, and of two writers that began from the same one, the second is told.
Nothing that is read is ever executed: safetensors, Arrow and JSON, verified by their sha256.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import (
    CorruptBundle,
    LuthierError,
    NotFound,
    Problem,
    SpecError,
    StateConflict,
    UnsafeLocation,
)
from luthier.store.atomic import point
from luthier.store.bundle import Bundle, open_bundle
from luthier.store.states_folder import FolderPlace
from luthier.store.states_note import Note, StoredFile, decode, encode, note_of
from luthier.store.urls import _file_path

#: How long what no generation needs is kept: the longest that an upload may take.
GRACE_S = 86_400.0

_AGAIN = "read the state again and update from it"


@dataclass(frozen=True)
class State:
    """A generation of a state, verified. ``generation`` counts from 1; ``meta`` is its commit's."""

    url: str
    generation: int
    bundle: Bundle
    meta: dict[str, Any]


class Place(Protocol):
    """What holds a state: a folder or a bucket. ``where`` names it in messages."""

    where: str

    def generations(self) -> list[int]: ...
    def note(self, generation: int) -> tuple[bytes, str]: ...
    def prepare(self) -> None: ...
    def put(self, bundle: Bundle, files: dict[str, StoredFile], known: Collection[str]) -> None: ...
    def add_note(self, generation: int, data: bytes) -> bool: ...
    def get(self, note: Note, cache: Path) -> Bundle: ...
    def prune(self, kept: list[Note], grace_s: float) -> int: ...
    def neighbours(self) -> list[str]: ...


def read_state(url: str, cache: Path, *, generation: int | None = None) -> State:
    """The newest generation of a state, or an older one that was not pruned.

    A folder is opened in its place; what is remote is fetched into ``cache`` once. Every byte
    is verified. Raises NotFound when there is none, CorruptBundle when bytes changed,
    UnsafeLocation for what can be no state, StoreError or DiskFull when it cannot be fetched.
    """
    place = _place(url)
    while True:
        newest = _newest(place)
        wanted = newest if generation is None else generation
        if not newest:
            raise _no_state(place)
        if not 1 <= wanted <= newest:
            raise NotFound(
                f"there is no generation {wanted}", where=url, hint=f"the newest is {newest}"
            )
        note = _note(place, wanted)
        try:
            return State(url, wanted, place.get(note, Path(cache)), note.meta)
        except (NotFound, CorruptBundle) as error:
            if generation is None and _newest(place) != newest:
                continue  # others went on meanwhile, and pruned what was being read
            if isinstance(error, CorruptBundle):
                raise
            raise _gone(place, wanted, newest, error) from error


def head(url: str) -> int:
    """The number of the newest generation, 0 when there is none; nothing is downloaded.

    Raises UnsafeLocation for what can be no state, NotFound when there is no bucket,
    StoreError.
    """
    return _newest(_place(url))


def commit_state(bundle: Bundle, url: str, *, parent: int, meta: Mapping[str, Any]) -> int:
    """Commit a bundle as the generation after ``parent`` (0: the first one); its number.

    meta: JSON data kept with the generation. Committing the same bundle again is fine, and
    gives the same number. Raises StateConflict when another bundle is that generation,
    NotFound when there is no generation ``parent``, CorruptBundle when the bundle is not what
    was written, UnsafeLocation, DiskFull or StoreError; then the state is as it was, unless
    the last step itself failed half: nobody knows then, until the same is committed again.
    """
    place = _place(url)
    generation = parent + 1
    newest = _newest(place)
    if not 0 <= parent <= newest:
        raise NotFound(
            f"there is no generation {parent} to be followed",
            where=url,
            hint=f"the newest is {newest}" if newest else "the state is gone, or this is another",
        )
    verified = open_bundle(bundle.path)
    if verified.id != bundle.id:
        raise CorruptBundle("the bundle changed since it was written", where=str(bundle.path))
    note = note_of(verified, generation, meta)
    data = encode(note)
    if newest >= generation:
        return _same_or_conflict(place, note)
    known = {file.sha256 for file in _note(place, parent).files.values()} if parent else set()
    place.prepare()
    place.put(verified, note.files, known)
    point("state.stored")
    if not place.add_note(generation, data):
        return _same_or_conflict(place, note)
    point("state.committed")
    return generation


def prune(url: str, *, keep: int, grace_s: float = GRACE_S) -> int:
    """Remove the bundles of all but the ``keep`` newest generations; how many files or folders.

    Their notes stay, so that no number is ever given twice. What was written less than
    ``grace_s`` seconds ago stays as well, for a writer may be about to commit it: 0 only where
    none is at work. Raises SpecError unless ``keep`` is at least 1, NotFound, StoreError.
    """
    if keep < 1:
        raise SpecError([Problem("keep", f"{keep} is not 1 or more", "the newest always stays")])
    place = _place(url)
    newest = _newest(place)
    if not newest:
        raise _no_state(place)
    kept = [_note(place, number) for number in range(max(1, newest - keep + 1), newest + 1)]
    return place.prune(kept, grace_s)


def _place(url: str) -> Place:
    scheme, separator, _ = url.partition("://")
    if not url or "\0" in url:
        raise UnsafeLocation("a state needs the name of a folder or a URL", where=repr(url[:80]))
    if not separator:
        return FolderPlace(Path(url).expanduser())
    if scheme == "file":
        return FolderPlace(_file_path(url))
    if scheme in ("s3", "s3a"):
        from luthier.store.states_s3 import BucketPlace

        return BucketPlace(url)
    raise UnsafeLocation(
        f"'{scheme}://' cannot hold a state",
        where=f"{scheme}://",
        hint="use a folder, file:// or s3://bucket/prefix",
    )


def _newest(place: Place) -> int:
    return max(place.generations(), default=0)


def _note(place: Place, generation: int) -> Note:
    data, where = place.note(generation)
    return decode(data, generation, where)


def _same_or_conflict(place: Place, note: Note) -> int:
    """The number of a generation that is this bundle already. Raises StateConflict otherwise."""
    if _note(place, note.generation).bundle == note.bundle:
        return note.generation
    raise StateConflict(
        f"generation {note.generation} is another update, which was committed meanwhile",
        where=place.where,
        hint=_AGAIN,
    )


def _no_state(place: Place) -> NotFound:
    close = difflib.get_close_matches(place.where, place.neighbours(), n=1, cutoff=0.6)
    nearest = f"did you mean '{close[0]}'? " if close else ""
    return NotFound(
        "there is no state here",
        where=place.where,
        hint=f"{nearest}leave it out to train from scratch",
    )


def _gone(place: Place, wanted: int, newest: int, missing: NotFound) -> LuthierError:
    if wanted < newest:
        return NotFound(
            f"generation {wanted} was pruned", where=place.where, hint=f"the newest is {newest}"
        )
    return CorruptBundle(
        f"generation {wanted} was committed, but {missing.message}",
        where=missing.where,
        hint="somebody removed it; another copy of the state is needed",
    )
