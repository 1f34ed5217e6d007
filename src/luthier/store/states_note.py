"""The note of a generation: the small JSON by which a state is committed.

It names the bundle and every file of it with its sha256, and carries a seal as a bundle's
manifest does: the sha256 of itself without the seal, in one canonical spelling. So whoever
holds a note knows all bytes of its generation, wherever these lie.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.errors import CorruptBundle
from luthier.store.bundle import MANIFEST, Bundle, sha256_of

FORMAT = 1

_NAME = re.compile(r"(\d{8,})\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """A file of a bundle, by its content."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Note:
    """A generation of a state. ``bundle`` is the bundle's id; ``files`` its files by name."""

    generation: int
    parent: int
    bundle: str
    files: dict[str, StoredFile]
    meta: dict[str, Any]


def name_of(generation: int) -> str:
    """The name of a generation's note: ``00000012.json``."""
    return f"{generation:08d}.json"


def number_of(name: str) -> int | None:
    """The generation whose note has this name, or None: it is no note."""
    match = _NAME.fullmatch(name)
    if not match or name_of(int(match[1])) != name or int(match[1]) < 1:
        return None
    return int(match[1])


def note_of(bundle: Bundle, generation: int, meta: Mapping[str, Any]) -> Note:
    """The note of a bundle that open_bundle has just verified."""
    manifest = (bundle.path / MANIFEST).read_bytes()
    files = {
        name: StoredFile(facts["sha256"], facts["bytes"])
        for name, facts in json.loads(manifest)["files"].items()
    }
    files[MANIFEST] = StoredFile(sha256_of(bundle.path / MANIFEST), len(manifest))
    return Note(generation, generation - 1, bundle.id, files, dict(meta))


def encode(note: Note) -> bytes:
    """The bytes of a note. Raises ValueError or TypeError when ``meta`` is not JSON."""
    content = {"format": FORMAT, **asdict(note)}
    return _canonical(content | {"seal": hashlib.sha256(_canonical(content)).hexdigest()})


def decode(data: bytes, generation: int, where: str) -> Note:
    """The note in these bytes. Raises CorruptBundle that names ``where`` unless all is well."""
    try:
        content = json.loads(data)
        seal, version = content.pop("seal"), content.pop("format")
        if version != FORMAT:
            raise CorruptBundle(
                f"the note has format {version!r}; this luthier reads format {FORMAT}",
                where=where,
                hint="a newer luthier wrote it",
            )
        files = {name: StoredFile(**facts) for name, facts in content.pop("files").items()}
        note = Note(files=files, **content)
        is_whole = encode(note) == data and bool(_SHA256.fullmatch(seal))
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CorruptBundle(f"the note cannot be read ({error})", where=where) from None
    if not is_whole or not _is_sound(note, generation):
        raise CorruptBundle(
            "the note is not what was written",
            where=where,
            hint="the disk or a program changed it; another copy of the state is needed",
        )
    return note


def _is_sound(note: Note, generation: int) -> bool:
    """Whether it can be the note of that generation, and names no file outside of a bundle."""
    manifest = note.files.get(MANIFEST)
    return (
        (note.generation, note.parent) == (generation, generation - 1)
        and manifest is not None
        and manifest.sha256 == note.bundle
        and all(_SHA256.fullmatch(file.sha256) for file in note.files.values())
        and not any(
            "\0" in name or PurePosixPath(name).is_absolute() or ".." in Path(name).parts
            for name in note.files
        )
    )


def _canonical(content: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(content, sort_keys=True, indent=1, allow_nan=False)}\n".encode("ascii")
