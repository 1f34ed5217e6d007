"""The only opener of URLs: whatever a spec names becomes a local file here, or is refused.

Web addresses are fetched by a small client of our own, because the address that was checked
must be the address that is connected to (a name may resolve differently the second time), at
every redirect. Object stores go through fsspec.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from luthier.environment import ALLOW_URL_SCHEMES
from luthier.errors import DataError, UnsafeLocation
from luthier.store.atomic import translated, write_bytes
from luthier.store.object_store import SCHEMES

#: Further fsspec schemes that the owner of this machine allows, separated by commas.

_CHUNK_BYTES = 1 << 20


def local_file(uri: str, cache: Path, blobs: Callable[[str], Path] | None = None) -> Path:
    """The local file that a URI stands for, downloaded into ``cache`` when it is remote.

    A path, ``file://``, ``blob:<sha256>``, ``https://``, ``s3://`` and other object stores.
    A remote file is fetched again only when it changed (its ETag or equivalent says so).

    Raises DataError when there is no such file, UnsafeLocation for what may not be opened,
    MissingExtra when a package is needed, StoreError or DiskFull when it cannot be fetched.
    """
    if "\0" in uri:
        raise UnsafeLocation("a location may not hold a NUL character", where=repr(uri[:80]))
    if uri.startswith("blob:"):
        if blobs is None:
            raise UnsafeLocation("stored data cannot be reached from here", where=uri[:80])
        return blobs(uri.removeprefix("blob:"))
    scheme, separator, _ = uri.partition("://")
    if not separator:
        return _existing(Path(uri).expanduser())
    if scheme == "file":
        return _existing(_file_path(uri))
    if scheme in ("http", "https"):
        return _download(uri, cache, _web)
    more = [s.strip() for s in os.environ.get(ALLOW_URL_SCHEMES, "").split(",")]
    if scheme in SCHEMES or (scheme and scheme in more):
        return _download(uri, cache, _object_store)
    raise UnsafeLocation(
        f"'{scheme}://' is not opened",
        where=uri[:200],
        hint="use a path, file://, https:// or s3://, or download it first "
        f"({ALLOW_URL_SCHEMES} names fsspec schemes that are allowed as well)",
    )


def _file_path(uri: str) -> Path:
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        raise UnsafeLocation(
            "a file on another host cannot be opened", where=uri, hint="write file:///path"
        )
    return Path(unquote(parts.path))


def _existing(path: Path) -> Path:
    if path.is_file():
        return path.absolute()
    if path.is_dir():
        raise DataError("this is a folder, not a file", file=str(path))
    hint = None
    if path.parent.is_dir():
        close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.6)
        hint = f"did you mean '{path.parent / close[0]}'?" if close else None
    elif path.parent != path:
        hint = f"there is no folder '{path.parent}' either"
    raise DataError("there is no such file", file=str(path), hint=hint)


#: Fetches a URI into a path unless its fingerprint is the known one; returns the new one.
Fetch = Callable[[str, Path, str | None], str | None]


def _download(uri: str, cache: Path, fetch: Fetch) -> Path:
    """Fetch into ``cache/downloads/<hash of the URI>/<name>``, beside what tells if it changed."""
    folder = cache / "downloads" / hashlib.sha256(uri.encode()).hexdigest()[:32]
    # What a URL calls it may be no name here, as '..' or one of a thousand letters.
    name = re.sub(r"^\.|[^\w .-]", "_", Path(unquote(urlsplit(uri).path)).name)[-100:] or "data"
    target, note = folder / name, folder / ".fingerprint.json"
    aside = folder / f".{os.getpid()}-{os.urandom(4).hex()}.part"
    known: str | None = None
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if target.is_file() and note.is_file():
        try:
            known = json.loads(note.read_bytes())["fingerprint"]
        except (ValueError, KeyError, TypeError):
            known = None  # half a note is no note: fetch again
    with translated(target):
        try:
            fingerprint = fetch(uri, aside, known)
            if aside.exists():
                # Not fsynced: a cache that is lost is fetched again.
                note.unlink(missing_ok=True)
                os.replace(aside, target)
                if fingerprint:
                    write_bytes(note, json.dumps({"fingerprint": fingerprint, "uri": uri}).encode())
        finally:
            aside.unlink(missing_ok=True)
    return target


def _web(uri: str, target: Path, known: str | None) -> str | None:
    from luthier.store.web import open_web

    with open_web(uri, known) as answer:
        if answer is None:
            return known
        with open(target, "wb") as file:
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
        return answer.fingerprint


def _object_store(uri: str, target: Path, known: str | None) -> str | None:
    from luthier.store.object_store import fetch

    return fetch(uri, target, known)
