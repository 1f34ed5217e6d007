"""Fetching from object stores, and from whatever else fsspec opens.

Never by a chain of URLs (``zip://a::https://b``): each link of one would open what the guard
of ``urls`` refuses. ``::`` in the name of an object is a part of its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from luthier.errors import DataError, LuthierError, MissingExtra, StoreError, UnsafeLocation
from luthier.store.atomic import FULL

#: Schemes that are opened without being allowed first, and the extra of ours that brings the
#: package. None: it is not one of our extras; the message names what fsspec asks for.
SCHEMES: dict[str, str | None] = {
    "s3": "s3",
    "s3a": "s3",
    "gs": None,
    "gcs": None,
    "az": None,
    "abfs": None,
    "abfss": None,
    "hf": None,
}

_S3 = ("s3", "s3a")
_WITH_BUCKETS = (*_S3, "gs", "gcs")
#: What file systems call the facts that change with a file's content.
_VERSION = ("ETag", "etag", "generation", "LastModified", "mtime", "size")


def fetch(uri: str, target: Path, known: str | None) -> str:
    """Fetch a URI into ``target`` unless its fingerprint is ``known``; its fingerprint.

    Raises DataError when there is no such file, MissingExtra or LuthierError when a package
    is needed, UnsafeLocation, and StoreError for all else that a remote store may answer.
    """
    system, path = _open(uri)
    with _errors_of(uri, system, path):
        system.invalidate_cache()  # a listing of before knows no changes
        fingerprint = hashlib.sha256(str(system.ukey(path)).encode()).hexdigest()
        if fingerprint == known:
            return fingerprint
        before = system.info(path)
    if before.get("type") == "directory":
        raise DataError(
            "this is a folder, not a file", file=uri, hint="name one of the files in it"
        )
    with _errors_of(uri, system, path):
        system.get_file(path, str(target))
        after = system.info(path)
    if not target.is_file() or before.get("size") not in (None, target.stat().st_size):
        raise StoreError("the download broke off", where=uri)
    if [before.get(fact) for fact in _VERSION] != [after.get(fact) for fact in _VERSION]:
        raise StoreError("it changed while it was downloaded", where=uri, hint="try again")
    return fingerprint


def put(uri: str, content: bytes) -> None:
    """Write an object whole, in place of one that is there.

    Raises MissingExtra or LuthierError when a package is needed, UnsafeLocation, and StoreError
    for what a remote store may answer, a bucket that is not there among it.
    """
    system, path = _open(uri)
    try:
        with _errors_of(uri, system, path, "written"):
            system.pipe_file(path, content)
    except DataError as error:  # what cannot be found is the bucket
        raise StoreError("cannot be written", where=uri, hint=error.hint) from error


def _open(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    import fsspec

    scheme, _, rest = uri.partition("://")
    if "::" in uri and scheme not in SCHEMES:
        raise UnsafeLocation(
            "URLs chained by '::' are not opened", where=uri[:200], hint="unpack the file first"
        )
    user, at, _ = urlsplit(f"//{rest}").netloc.rpartition("@")
    if at and ":" in user:
        raise UnsafeLocation(
            "an address may not carry a password: it would end up in the run's record",
            where=f"{scheme}://",
            hint="give it in the environment of the worker",
        )
    try:
        kind = fsspec.get_filesystem_class(scheme)
        return kind(**kind._get_kwargs_from_urls(uri)), kind._strip_protocol(uri)
    except ImportError as error:
        extra = SCHEMES.get(scheme)
        if extra:
            raise MissingExtra(f"opening {scheme}://", extra) from error
        raise LuthierError(
            f"opening {scheme}:// needs an optional package", where=uri, hint=str(error)
        ) from error
    except Exception as error:  # each file system has errors of its own
        raise StoreError(f"{scheme}:// cannot be opened ({error})", where=uri) from error


@contextmanager
def _errors_of(uri: str, system: Any, path: str, done: str = "fetched") -> Iterator[None]:
    """Say in our words what went wrong on the other side.

    Clients have exceptions of their own, many outside of OSError (botocore's all are), so
    whatever is raised here is taken for the store's answer; the cause stays attached.
    """
    scheme = uri.partition("://")[0]
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(
            "there is no such file", file=uri, hint=_bucket(scheme, system, path)
        ) from (error)
    except PermissionError as error:
        raise StoreError(
            f"access was denied ({error})", where=uri, hint=_credentials(scheme)
        ) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise  # our own disk
        text = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(
            f"cannot be {done}: {text}", where=uri, hint=_credentials(scheme)
        ) from error


def _bucket(scheme: str, system: Any, path: str) -> str | None:
    bucket = path.partition("/")[0]
    if scheme in _WITH_BUCKETS:
        with suppress(OSError):  # who may not look at the bucket is told no more than that
            if not system.exists(bucket):
                return f"there is no bucket '{bucket}' either"
    return None


def _credentials(scheme: str) -> str:
    if scheme in _S3:
        return (
            "where the worker runs, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) "
            "and, if the store is not Amazon's, AWS_ENDPOINT_URL must be right"
        )
    return "the credentials are those of the environment in which the worker runs"
