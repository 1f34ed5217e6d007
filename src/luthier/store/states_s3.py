"""States in a bucket, of Amazon S3 or whatever speaks its language.

    <prefix>/objects/<sha256>               the files of all bundles, by content
    <prefix>/generations/00000001.json      the notes: written once, never replaced or removed
    <prefix>/luthier-state.json             says that this is a state

A generation is there when its note is, and the note is put last, with ``If-None-Match: *``: of
two writers one is answered 412. A store that does not heed that header (or a client too old to
send it) would let the second overwrite the first in silence; so each commit first tries it on
the third object, which must be refused the second time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.errors import CorruptBundle, LuthierError, NotFound, StoreError, UnsafeLocation
from luthier.store.atomic import FULL, new_folder, point
from luthier.store.bundle import Bundle, open_bundle, sha256_of
from luthier.store.object_store import _credentials, _open
from luthier.store.states_note import Note, StoredFile, name_of, number_of

_MARKER = "luthier-state.json"
_MARK = b'{"format": 1}\n'
_SHA256 = re.compile(r"[0-9a-f]{64}")

#: An object of this age at most is not sent again: a commit that is repeated after a crash.
#: Far below the grace of ``prune``, which goes by the same age.
_FRESH_S = 3600.0
#: 409: the store was busy with another conditional put of the same name, and asks to try again.
_PUT_ATTEMPTS = 8


class BucketPlace:
    """Where a state lives: a bucket, and a prefix in it."""

    def __init__(self, url: str) -> None:
        self._system, _ = _open(url)  # refuses a password in the address
        self.where = url
        self._bucket, self._prefix = _parts(url)

    def generations(self) -> list[int]:
        """The generations, the oldest first. Raises UnsafeLocation when it is no state."""
        folder = f"{self._prefix}generations/"
        names = (entry["Key"].removeprefix(folder) for entry in self._entries(folder))
        found = sorted(filter(None, map(number_of, names)))
        if not found:
            self._refuse_other_objects()
        return found

    def note(self, generation: int) -> tuple[bytes, str]:
        """The bytes of a note, and where they lie. Raises NotFound or StoreError."""
        key = f"{self._prefix}generations/{name_of(generation)}"
        with self._answers(key):
            return bytes(self._system.cat_file(f"{self._bucket}/{key}")), self._url(key)

    def prepare(self) -> None:
        """Mark the place as a state, and make sure that the store can refuse a second writer."""
        if not self._put_new(f"{self._prefix}{_MARKER}", _MARK):
            return
        if self._put_new(f"{self._prefix}{_MARKER}", _MARK):
            raise StoreError(
                "this store lets one writer overwrite another",
                where=self.where,
                hint="it, and s3fs and botocore here, must know conditional writes "
                "(If-None-Match); newer versions do",
            )

    def put(self, bundle: Bundle, files: dict[str, StoredFile], known: Collection[str]) -> None:
        """Upload the files that are not there; ``known`` are those of the newest generation.

        What is there, but neither in that one nor fresh, is sent again: prune may be about to
        remove it, and goes by its age. Raises CorruptBundle or StoreError.
        """
        there = {
            entry["Key"].removeprefix(f"{self._prefix}objects/"): entry
            for entry in self._entries(f"{self._prefix}objects/")
        }
        for name, file in files.items():
            entry = there.get(file.sha256)
            if (
                entry is None
                or entry["Size"] != file.bytes
                or (file.sha256 not in known and _age_s(entry["LastModified"]) > _FRESH_S)
            ):
                self._upload(bundle.path / name, file)

    def add_note(self, generation: int, data: bytes) -> bool:
        """Commit a note; False when there is one already."""
        return self._put_new(f"{self._prefix}generations/{name_of(generation)}", data)

    def get(self, note: Note, cache: Path) -> Bundle:
        """The bundle of a generation, fetched into the cache unless it is there, verified.

        Raises NotFound when an object is missing, CorruptBundle, StoreError or DiskFull.
        """
        target = cache / "states" / note.bundle
        try:
            bundle = open_bundle(target)
            if bundle.id == note.bundle:
                return bundle
        except (NotFound, CorruptBundle):
            pass  # not fetched yet, or damaged since: a cache is made again
        with new_folder(target) as aside:
            for name, file in note.files.items():
                self._download(file, name, aside / name)
            bundle = open_bundle(aside)
        return Bundle(target, bundle.id, bundle.meta)

    def prune(self, kept: list[Note], grace_s: float) -> int:
        """Remove the objects that no kept note names, and uploads that were broken off."""
        needed = {file.sha256 for note in kept for file in note.files.values()}
        count = 0
        folder = f"{self._prefix}objects/"
        for entry in list(self._entries(folder)):
            key = entry["Key"]
            sha256 = key.removeprefix(folder)
            if sha256 in needed or not _SHA256.fullmatch(sha256):
                continue
            if _age_s(entry["LastModified"]) < grace_s or self._is_younger(key, grace_s):
                continue
            with self._answers(key):
                self._system.call_s3("delete_object", Bucket=self._bucket, Key=key)
            count += 1
        return count + self._abort_uploads(folder, grace_s)

    def neighbours(self) -> list[str]:
        """The states beside this one, or beside where it would be."""
        above = self._prefix.rstrip("/").rpartition("/")[0]
        above = f"{above}/" if above else ""
        with self._answers(above):
            answer = self._system.call_s3(
                "list_objects_v2", Bucket=self._bucket, Prefix=above, Delimiter="/"
            )
        names = [found["Prefix"] for found in answer.get("CommonPrefixes", [])]
        return [self._url(name.rstrip("/")) for name in names if self._is_state(name)]

    def _is_state(self, prefix: str) -> bool:
        with self._answers(prefix):
            answer = self._system.call_s3(
                "list_objects_v2", Bucket=self._bucket, Prefix=f"{prefix}generations/", MaxKeys=1
            )
        return bool(answer.get("KeyCount"))

    def _upload(self, path: Path, file: StoredFile) -> None:
        key = f"{self._prefix}objects/{file.sha256}"
        with self._answers(key):
            self._system.put_file(str(path), f"{self._bucket}/{key}")
        point("state.uploaded")
        if path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
            # What was sent is not what the name says, and nobody may find it under that name.
            with self._answers(key):
                self._system.call_s3("delete_object", Bucket=self._bucket, Key=key)
            raise CorruptBundle("the file changed while it was uploaded", where=str(path))

    def _download(self, file: StoredFile, name: str, target: Path) -> None:
        key = f"{self._prefix}objects/{file.sha256}"
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._answers(key):
                self._system.get_file(f"{self._bucket}/{key}", str(target))
        except NotFound as error:
            raise NotFound(f"'{name}' is missing", where=error.where) from error
        point("state.downloaded")
        if target.stat().st_size != file.bytes or sha256_of(target) != file.sha256:
            raise CorruptBundle(
                f"the bytes of '{name}' are not those that were written",
                where=self._url(key),
                hint="somebody replaced the object, or the download was changed on its way",
            )

    def _put_new(self, key: str, data: bytes) -> bool:
        """Put an object unless there is one of that name; whether it was put."""
        with self._answers(key):
            for last in (False,) * (_PUT_ATTEMPTS - 1) + (True,):
                try:
                    self._system.call_s3(
                        "put_object", Bucket=self._bucket, Key=key, Body=data, IfNoneMatch="*"
                    )
                except Exception as error:
                    status = _http_status(error)
                    if status == 412:
                        return False
                    if status != 409 or last:
                        raise
                else:
                    return True
        raise AssertionError("not reached")

    def _entries(self, prefix: str) -> Iterator[dict[str, Any]]:
        """All objects whose keys begin so, page by page, as the store has them now."""
        more: dict[str, str] = {}
        while True:
            with self._answers(None):
                page = self._system.call_s3(
                    "list_objects_v2", Bucket=self._bucket, Prefix=prefix, **more
                )
            yield from page.get("Contents", [])
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _is_younger(self, key: str, grace_s: float) -> bool:
        """Asked just before an object is removed: a writer may have sent it again meanwhile."""
        try:
            with self._answers(key):
                found = self._system.call_s3("head_object", Bucket=self._bucket, Key=key)
        except NotFound:
            return True  # it is gone already
        return _age_s(found["LastModified"]) < grace_s

    def _abort_uploads(self, prefix: str, grace_s: float) -> int:
        """Large files are sent in parts; those of a writer that was killed are kept, unseen."""
        with self._answers(None):
            answer = self._system.call_s3(
                "list_multipart_uploads", Bucket=self._bucket, Prefix=prefix
            )
        old = [u for u in answer.get("Uploads") or [] if _age_s(u["Initiated"]) >= grace_s]
        for upload in old:
            with self._answers(upload["Key"]):
                self._system.call_s3(
                    "abort_multipart_upload",
                    Bucket=self._bucket,
                    Key=upload["Key"],
                    UploadId=upload["UploadId"],
                )
        return len(old)

    def _refuse_other_objects(self) -> None:
        ours = ("generations/", "objects/", _MARKER)
        for entry in self._entries(self._prefix):
            name = entry["Key"].removeprefix(self._prefix)
            if name and not name.startswith(ours):
                raise UnsafeLocation(
                    f"other files lie here, as '{name}', and no state",
                    where=self.where,
                    hint="name a prefix of its own",
                )

    def _url(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    @contextmanager
    def _answers(self, key: str | None) -> Iterator[None]:
        """Say in our words what the store answered. key: of the object in question, if any.

        Clients have exceptions of their own, many outside of OSError (botocore's all are), so
        whatever is raised here is taken for the store's answer; the cause stays attached.
        """
        where = self.where if key is None else self._url(key)
        try:
            yield
        except LuthierError:
            raise
        except FileNotFoundError as error:
            if key is None or "bucket does not exist" in str(error):
                raise NotFound(
                    f"there is no bucket '{self._bucket}'", where=self.where, hint="make it first"
                ) from error
            raise NotFound("there is no such object", where=where) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise  # our own disk
            text = " ".join(str(error).split()) or type(error).__name__
            said = "access was denied" if isinstance(error, PermissionError) else "the store failed"
            raise StoreError(f"{said} ({text})", where=where, hint=_credentials("s3")) from error


def _parts(url: str) -> tuple[str, str]:
    """Bucket and prefix (empty, or with a slash at its end). Raises UnsafeLocation."""
    bucket, _, path = url.partition("://")[2].partition("/")
    parts = path.strip("/").split("/") if path.strip("/") else []
    if not bucket:
        raise UnsafeLocation("there is no bucket in it", where=url, hint="write s3://bucket/prefix")
    if "::" in url or set("?#*\\") & set(path) or not {"", ".", ".."}.isdisjoint(parts):
        raise UnsafeLocation(
            "this cannot be the place of a state",
            where=url[:200],
            hint="write s3://bucket/prefix, without '..', '::', '?', '#', '*' and empty names",
        )
    return bucket, "".join(f"{part}/" for part in parts)


def _http_status(error: BaseException | None) -> int | None:
    """The status of the answer behind an error; s3fs keeps it in the cause."""
    while error is not None:
        answer = getattr(error, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return int(status) if status else None
        error = error.__cause__
    return None


def _age_s(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
