"""Bundles: a model, and all that is needed to go on learning from it, in one verified folder.

``luthier/manifest.json`` lists every file with its sha256 and carries a seal: the sha256 of
itself without the seal. The manifest has one canonical spelling, so any changed bit, in any
file or in the manifest, is noticed before anything is used. The id of a bundle is the sha256
of its manifest's bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from luthier.errors import CorruptBundle, NotFound
from luthier.store.atomic import new_folder, point

MANIFEST = "luthier/manifest.json"
FORMAT = 1

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A complete, verified bundle. ``id`` is the sha256 of the manifest's bytes, in hex."""

    path: Path
    id: str
    meta: dict[str, Any]


def write_bundle(
    destination: Path, fill: Callable[[Path], None], meta: Mapping[str, Any]
) -> Bundle:
    """Let ``fill`` write files into a folder, seal it, and put it at ``destination``.

    meta: JSON data kept in the manifest. Raises DiskFull or StoreError, and then leaves
    nothing at ``destination`` that was not there before; ValueError when ``fill`` makes
    something that is not a plain file or folder.
    """
    with new_folder(destination) as aside:
        fill(aside)
        point("bundle.filled")
        manifest = _seal(
            {
                "format": FORMAT,
                "meta": dict(meta),
                "files": {
                    name: {
                        "sha256": sha256_of(aside / name),
                        "bytes": (aside / name).stat().st_size,
                    }
                    for name in sorted(_files(aside, ValueError))
                },
            }
        )
        (aside / MANIFEST).parent.mkdir(exist_ok=True)
        (aside / MANIFEST).write_bytes(manifest)
        point("bundle.sealed")
    return Bundle(Path(destination), hashlib.sha256(manifest).hexdigest(), dict(meta))


def open_bundle(path: Path) -> Bundle:
    """The bundle in a folder, after every byte of it was verified.

    Raises NotFound when there is no such folder, CorruptBundle when a file is missing,
    changed, not listed, or not a plain file. Names that begin with a dot are not ours
    and are ignored.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFound("there is no bundle here", where=str(path))
    data, manifest = _manifest(path)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    found = set(_files(path, _corrupt_kind(path))) - {MANIFEST}
    for name in sorted(set(listed) - found):
        raise CorruptBundle("the file is missing", where=str(path / name), hint=_HINT)
    for name in sorted(found - set(listed)):
        raise CorruptBundle("the manifest does not list this file", where=str(path / name))
    for name, expected in listed.items():
        file = path / name
        if file.stat().st_size != expected["bytes"] or sha256_of(file) != expected["sha256"]:
            raise CorruptBundle(
                "the bytes are not those that were written", where=str(file), hint=_HINT
            )
    return Bundle(path, hashlib.sha256(data).hexdigest(), manifest["meta"])


def sealed_bundle(path: Path) -> Bundle:
    """The bundle that a folder says it is: its manifest is verified, its files are not. For who
    hands it to somebody that verifies them, as ``Store.publish`` does.

    Raises NotFound and CorruptBundle as ``open_bundle``.
    """
    path = Path(path)
    if not path.is_dir():
        raise NotFound("there is no bundle here", where=str(path))
    data, manifest = _manifest(path)
    return Bundle(path, hashlib.sha256(data).hexdigest(), manifest["meta"])


def newest_bundle(folder: Path, on_bad: Callable[[Path, CorruptBundle], None]) -> Bundle | None:
    """The good bundle with the highest number in its name (``step-00000120``), or None.

    Numbers decide, never timestamps: clocks jump. One that is corrupt is told to
    ``on_bad`` and the one before it is tried.
    """
    for path in candidates(folder):
        try:
            return open_bundle(path)
        except CorruptBundle as error:
            on_bad(path, error)
        except NotFound:
            continue  # removed in the meantime by whoever prunes old ones
    return None


def candidates(folder: Path) -> list[Path]:
    """The folders in a folder whose names end in a number, the highest first."""
    if not folder.is_dir():
        return []
    numbered = [
        (int(match.group()), path)
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and (match := re.search(r"\d+$", path.name))
        and path.is_dir()
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def sha256_of(path: Path) -> str:
    """sha256 of a file, in hex, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


_HINT = "the disk or a program changed it; an older checkpoint or another copy is needed"


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    text = json.dumps(manifest, sort_keys=True, indent=1, allow_nan=False)
    return f"{text}\n".encode("ascii")


def _seal(manifest: dict[str, Any]) -> bytes:
    return _canonical(manifest | {"seal": hashlib.sha256(_canonical(manifest)).hexdigest()})


def _manifest(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The manifest's bytes and content. Raises CorruptBundle unless its seal holds."""
    where = str(path / MANIFEST)
    try:
        data = (path / MANIFEST).read_bytes()
        manifest = json.loads(data)
        seal = manifest.pop("seal")
    except FileNotFoundError:
        raise CorruptBundle(
            "there is no manifest: it was not written to the end", where=where
        ) from None
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise CorruptBundle(f"the manifest cannot be read ({error})", where=where) from None
    if _seal(manifest) != data or seal != hashlib.sha256(_canonical(manifest)).hexdigest():
        raise CorruptBundle("the manifest is not what was written", where=where, hint=_HINT)
    if manifest.get("format") != FORMAT:
        raise CorruptBundle(
            f"bundle format {manifest.get('format')!r}; this luthier reads format {FORMAT}",
            where=where,
            hint="a newer luthier wrote it",
        )
    for name in manifest["files"]:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise CorruptBundle(
                f"the manifest names a file outside the bundle: {name}", where=where
            )
    return data, manifest


def _corrupt_kind(path: Path) -> Callable[[str], Exception]:
    return lambda message: CorruptBundle(message, where=str(path))


def _files(folder: Path, error: Callable[[str], Exception]) -> Iterator[str]:
    """Names of all plain files below a folder, with slashes, but not of hidden ones."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [*folders, *names]:
            if name.startswith("."):
                continue
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                yield path.relative_to(folder).as_posix()
            elif not stat.S_ISDIR(mode):
                raise error(f"{path.relative_to(folder)} is neither a plain file nor a folder")
