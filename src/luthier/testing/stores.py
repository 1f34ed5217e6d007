"""StoreCase: what every store of blobs and artifacts must be, to be subclassed in its test.

    class TestMyStore(StoreCase):
        opens = "my_stores:BucketStore"

``opens`` names what makes the store of a folder, as ``module:callable``, so that other
processes can open the same one. Its methods are those of ``luthier.store.blobs.Store``.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest

from luthier import environment
from luthier.errors import CorruptBundle, NotFound, StoreError
from luthier.store.bundle import MANIFEST, Bundle, open_bundle, write_bundle

ABSENT = "0" * 64
NO_NAMES = ("../../etc/passwd", "", "ABC", "..", ".", "x" * 64, "a\0b", f"{ABSENT}/../x")

#: In a process of its own: put a file or a bundle into the store; 9 when it says that it cannot.
_PUT = """
import sys
from pathlib import Path
from luthier.errors import StoreError
from luthier.store.bundle import open_bundle
from luthier.testing.stores import opened
opens, folder, source = sys.argv[1:]
store = opened(opens, Path(folder))
try:
    if Path(source).is_dir():
        print(store.publish(open_bundle(Path(source)), public=False))
    else:
        print(store.put_blob(Path(source)))
except StoreError:
    sys.exit(9)
"""


def opened(opens: str, folder: Path) -> Any:
    """The store of a folder, by ``module:callable``."""
    module, _, name = opens.partition(":")
    return getattr(import_module(module), name)(folder)


class StoreCase:
    """Subclass with ``opens``."""

    opens: ClassVar[str]

    @pytest.fixture
    def store(self, tmp_path: Path) -> Any:
        """A new store."""
        return opened(self.opens, tmp_path / "store")

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A file to be put into it: longer than any buffer, and not a multiple of one."""
        path = tmp_path / "data.csv"
        path.write_bytes(b"a row of it\n" * 200_001)
        return path

    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Bundle:
        """A bundle to be published."""
        return write_bundle(tmp_path / "made", _fill, {"step": 3})

    def damage(self, path: Path) -> None:
        """Change a byte of what the store holds, in a file that it gave out."""
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        # A new file: the old one may be linked to where it came from.
        path.unlink()
        path.write_bytes(data)

    # Blobs

    @pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 8193], ids=len)
    def test_a_blob_is_named_by_its_content(
        self, store: Any, tmp_path: Path, content: bytes
    ) -> None:
        (tmp_path / "data").write_bytes(content)
        name = store.put_blob(tmp_path / "data")
        assert name == hashlib.sha256(content).hexdigest()
        assert store.put_blob(tmp_path / "data") == name
        (tmp_path / "data").write_bytes(b"something else")  # it is a copy
        assert store.blob(name).read_bytes() == content
        assert opened(self.opens, tmp_path / "store").blob(name).read_bytes() == content

    def test_a_changed_blob_is_refused_until_it_is_put_again(self, store: Any, file: Path) -> None:
        name = store.put_blob(file)
        self.damage(store.blob(name))
        with pytest.raises(StoreError):
            store.blob(name)
        assert store.put_blob(file) == name
        assert store.blob(name).read_bytes() == file.read_bytes()

    @pytest.mark.parametrize("name", [ABSENT, *NO_NAMES])
    def test_what_names_no_blob_is_not_found(self, store: Any, file: Path, name: str) -> None:
        store.put_blob(file)
        with pytest.raises(NotFound):
            store.blob(name)

    # Artifacts

    def test_publishing_twice_is_the_same_as_once(self, store: Any, bundle: Bundle) -> None:
        assert store.artifact_ids() == []
        assert store.publish(bundle, public=False) == bundle.id
        assert store.publish(bundle, public=False) == bundle.id
        assert store.artifact_ids() == [bundle.id]
        found = open_bundle(store.artifact(bundle.id))
        assert (found.id, found.meta) == (bundle.id, {"step": 3})
        assert (found.path / "weights").read_bytes() == (bundle.path / "weights").read_bytes()

    def test_the_first_digits_of_an_id_will_do(self, store: Any, bundle: Bundle) -> None:
        store.publish(bundle, public=False)
        assert store.find(bundle.id[:4]) == store.find(bundle.id) == bundle.id
        assert store.artifact(bundle.id[:6]) == store.artifact(bundle.id)

    @pytest.mark.parametrize("name", [ABSENT, "ab", *NO_NAMES])
    def test_what_names_no_artifact_is_not_found(
        self, store: Any, bundle: Bundle, name: str
    ) -> None:
        store.publish(bundle, public=False)
        for wrong in (name, f"../{bundle.id}", bundle.id.upper(), f"{bundle.id}/"):
            with pytest.raises(NotFound):
                store.artifact(wrong)
            with pytest.raises(NotFound):
                store.find(wrong)
            store.remove_artifact(wrong)
        assert store.artifact_ids() == [bundle.id]

    @pytest.mark.parametrize("inside", ["weights", MANIFEST])
    def test_publishing_again_mends_a_changed_artifact(
        self, store: Any, bundle: Bundle, inside: str
    ) -> None:
        store.publish(bundle, public=False)
        self.damage(store.artifact(bundle.id) / inside)
        with pytest.raises(CorruptBundle):
            store.artifact(bundle.id)
        assert store.publish(bundle, public=False) == bundle.id
        assert open_bundle(store.artifact(bundle.id)).id == bundle.id

    def test_an_exchanged_artifact_is_noticed(self, store: Any, bundle: Bundle) -> None:
        """Another bundle, whole, in its place."""
        store.publish(bundle, public=False)
        write_bundle(store.artifact(bundle.id), _fill, {"step": 4})
        with pytest.raises(CorruptBundle):
            store.artifact(bundle.id)

    def test_a_bundle_that_changed_since_is_not_published(self, store: Any, bundle: Bundle) -> None:
        self.damage(bundle.path / "weights")
        with pytest.raises(CorruptBundle):
            store.publish(bundle, public=False)
        assert store.artifact_ids() == []

    def test_what_is_removed_is_gone(self, store: Any, bundle: Bundle) -> None:
        store.publish(bundle, public=False)
        store.remove_artifact(bundle.id)
        store.remove_artifact(bundle.id)
        assert store.artifact_ids() == []
        with pytest.raises(NotFound):
            store.artifact(bundle.id)
        assert open_bundle(bundle.path).id == bundle.id

    # Several processes, and their ends

    def _put(self, folder: Path, source: Path, **environment: str) -> subprocess.Popen[str]:
        """Put something into the store of that folder, in a process of its own."""
        command = [sys.executable, "-c", _PUT, self.opens, str(folder), str(source)]
        return subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _check(self, folder: Path, source: Path, *, there: bool | None) -> None:
        """What was put is whole, or it is not there. there: which of the two; None: either."""
        store = opened(self.opens, folder)
        is_bundle = source.is_dir()
        name = open_bundle(source).id if is_bundle else _sha256(source)
        try:
            found = store.artifact(name) if is_bundle else store.blob(name)
        except NotFound:
            assert not there
        else:
            assert there is not False
            assert (open_bundle(found).id if is_bundle else _sha256(found)) == name
        if is_bundle:
            assert store.artifact_ids() in ([name], [])

    @pytest.mark.parametrize("what", ["file", "bundle"])
    def test_several_may_put_the_same_at_once(
        self, file: Path, bundle: Bundle, tmp_path: Path, what: str
    ) -> None:
        source = file if what == "file" else bundle.path
        processes = [self._put(tmp_path / "store", source) for _ in range(4)]
        names = {process.communicate(timeout=60)[0].strip() for process in processes}
        assert [process.returncode for process in processes] == [0] * 4
        assert names == {_sha256(file) if what == "file" else bundle.id}
        self._check(tmp_path / "store", source, there=True)

    @pytest.mark.parametrize("what", ["file", "bundle"])
    @pytest.mark.parametrize("end", ["kill", "enospc"])
    def test_what_ends_halfway_leaves_no_half(
        self, file: Path, bundle: Bundle, tmp_path: Path, what: str, end: str
    ) -> None:
        """At every failpoint that the store passes: killed, or the disk full."""
        source = file if what == "file" else bundle.path
        trace = tmp_path / "trace"
        trace.touch()
        first = self._put(tmp_path / "first", source, **{environment.FAILPOINT_TRACE: str(trace)})
        first.communicate(timeout=60)
        assert first.returncode == 0
        for point in dict.fromkeys(trace.read_text().split()):
            folder = tmp_path / f"store-{point}"
            process = self._put(folder, source, **{environment.FAILPOINT: f"{point}={end}"})
            process.communicate(timeout=60)
            told = process.returncode == (-signal.SIGKILL if end == "kill" else 9)
            assert told or end == "enospc", point
            # A point behind the last write stands for no write that could meet a full disk.
            self._check(folder, source, there=None if told else True)
            again = self._put(folder, source)
            again.communicate(timeout=60)
            assert again.returncode == 0, point
            self._check(folder, source, there=True)


def _fill(folder: Path) -> None:
    (folder / "luthier").mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * 300)
    (folder / "luthier" / "state.json").write_text('{"step": 3}')
    (folder / "empty").touch()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
