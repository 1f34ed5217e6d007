"""The store: blobs (data handed over in memory) and artifacts (published bundles), by content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from luthier.errors import CorruptBundle, NotFound, StoreError
from luthier.store.atomic import new_folder, point, remove, translated, write_chunks
from luthier.store.bundle import MANIFEST, Bundle, open_bundle, sha256_of

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PREFIX = re.compile(r"[0-9a-f]{4,64}")
_CHUNK_BYTES = 1 << 20
#: What stays of an artifact whose model was given up, and beside it why.
_TOLD = ("report.json", "report.html", "metrics.json", "history.json", "spec.json")
_WHY = "why.json"


class Store:
    """A folder with ``blobs/<sha256>`` and ``artifacts/<sha256>/``; in ``removed/<sha256>/`` are
    the reports of artifacts whose models were given up.

    Names are hashes and never paths: nothing outside ``root`` can be reached through them.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.blobs = self.root / "blobs"
        self.artifacts = self.root / "artifacts"
        self.removed = self.root / "removed"

    def put_blob(self, file: Path) -> str:
        """Copy a file into the store; its sha256. Raises DiskFull or StoreError."""
        digest = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            with open(file, "rb") as source:
                while chunk := source.read(_CHUNK_BYTES):
                    digest.update(chunk)
                    yield chunk

        return write_chunks(self.blobs, chunks(), digest.hexdigest).name

    def blob(self, sha256: str) -> Path:
        """The file with that content, verified. Raises NotFound or StoreError."""
        path = self.blobs / sha256
        if not _SHA256.fullmatch(sha256) or not path.is_file():
            raise NotFound(f"the store holds no data {sha256!r:.80}", where=str(self.blobs))
        if sha256_of(path) != sha256:
            raise StoreError(
                "stored data is not what was written",
                where=str(path),
                hint="the disk changed it; submit the data again",
            )
        return path

    def publish(self, bundle: Bundle, public: bool) -> str:
        """Put a bundle among the artifacts; its id. Publishing twice is the same as once.

        public: other users of this machine may read it; otherwise only its owner. What
        was made public stays public. Raises CorruptBundle, DiskFull or StoreError.
        """
        destination = self.artifacts / bundle.id
        if not self._holds(bundle.id):
            with new_folder(destination) as aside:
                _copy(bundle.path, aside)
                if open_bundle(aside).id != bundle.id:
                    raise CorruptBundle(
                        "the bundle changed while it was published", where=str(bundle.path)
                    )
                aside.chmod(0o700)
            remove(self.removed / bundle.id)
            point("artifact.published")
        if public:
            with translated(destination):
                destination.chmod(0o755)
        return bundle.id

    def artifact(self, id_or_prefix: str) -> Path:
        """The folder of an artifact, verified. A prefix of at least four digits will do.

        Raises NotFound when none or several match, CorruptBundle when its bytes changed.
        """
        name = self.find(id_or_prefix)
        bundle = open_bundle(self.artifacts / name)
        if bundle.id != name:
            raise CorruptBundle(
                "the manifest is not the one that was published",
                where=str(self.artifacts / name / MANIFEST),
            )
        return bundle.path

    def find(self, id_or_prefix: str) -> str:
        """The full id of an artifact, without verifying it. Raises NotFound."""
        if not _PREFIX.fullmatch(id_or_prefix):
            raise NotFound(
                f"{id_or_prefix!r:.80} is not the id of an artifact",
                hint="an id is 64 hexadecimal digits; the first four or more will do",
            )
        found = [name for name in self.artifact_ids() if name.startswith(id_or_prefix)]
        if len(found) > 1:
            raise NotFound(
                f"several artifacts begin with '{id_or_prefix}'",
                where=str(self.artifacts),
                hint=", ".join(name[: len(id_or_prefix) + 4] for name in found[:6]),
            )
        if not found:
            raise self._missing(id_or_prefix)
        return found[0]

    def _missing(self, id_or_prefix: str) -> NotFound:
        """What to say of an artifact that is not there: why, where it was given up."""
        gone = sorted(self.removed.glob(f"{id_or_prefix}*/{_WHY}"))
        if len(gone) != 1:
            return NotFound(f"there is no artifact '{id_or_prefix}'", where=str(self.artifacts))
        why = json.loads(gone[0].read_text(encoding="utf-8"))
        return NotFound(why["message"], where=gone[0].parent.name[:12], hint=why["hint"])

    def artifact_ids(self) -> list[str]:
        """The ids of all artifacts, sorted."""
        if not self.artifacts.is_dir():
            return []
        return sorted(p.name for p in self.artifacts.iterdir() if _SHA256.fullmatch(p.name))

    def remove_artifact(self, artifact_id: str) -> None:
        """Remove an artifact, and what is told of it; no error when it is not there."""
        if _SHA256.fullmatch(artifact_id):
            remove(self.artifacts / artifact_id)
            remove(self.removed / artifact_id)

    # Models that were given up

    def give_up(self, artifact_id: str, trash: Path, message: str, hint: str) -> None:
        """Move an artifact to ``trash``, a folder on the same file system, for the caller to
        remove. Its reports stay, and whoever asks for it is told the message and the hint.

        Nothing happens where it is not there. Raises DiskFull or StoreError; then it is still
        there."""
        folder = self.artifacts / artifact_id
        if not _SHA256.fullmatch(artifact_id) or not folder.is_dir():
            return
        with new_folder(self.removed / artifact_id) as aside:
            for file in (folder / "luthier" / name for name in _TOLD):
                if file.is_file():
                    shutil.copyfile(file, aside / file.name)
            aside.chmod(folder.stat().st_mode & 0o777)  # as private as it was
            why = {"message": message, "hint": hint}
            (aside / _WHY).write_text(json.dumps(why), encoding="utf-8")
        point("artifact.given_up")
        with translated(folder):
            trash.mkdir(parents=True, exist_ok=True)
            folder.rename(trash / f"{artifact_id}{secrets.token_hex(3)}")

    def was_given_up(self, artifact_id: str) -> bool:
        """Whether only the reports of an artifact are there."""
        return not (self.artifacts / artifact_id).is_dir() and self._remains(artifact_id).is_file()

    def told(self, artifact_id: str) -> Path:
        """The folder with the reports of an artifact, verified; or with those that stayed.
        Raises as ``artifact``."""
        if self.was_given_up(artifact_id):
            return self._remains(artifact_id).parent
        return self.artifact(artifact_id) / "luthier"

    def _remains(self, artifact_id: str) -> Path:
        return self.removed / artifact_id / _WHY

    def _holds(self, artifact_id: str) -> bool:
        try:
            return open_bundle(self.artifacts / artifact_id).id == artifact_id
        except (NotFound, CorruptBundle):
            return False  # a damaged copy is replaced by the good one at hand


def _copy(source: Path, target: Path) -> None:
    """Link the files of a bundle, which is instant; copy where the file system cannot."""

    def link(a: str, b: str) -> str:
        try:
            os.link(a, b)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            shutil.copyfile(a, b)
        return b

    shutil.copytree(
        source, target, copy_function=link, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True
    )
