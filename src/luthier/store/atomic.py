"""The only fsync and rename of the house: what is written here is complete or it is not there.

A file or folder is written aside (a hidden neighbour, so on the same file system), brought to
the disk with fsync, renamed into its place, and then the folder that holds the name is fsynced
as well: without that last step a power cut may forget the rename. See Pillai et al., "All File
Systems Are Not Created Equal", OSDI 2014, on what each of these steps guards against.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from luthier.errors import DiskFull, LuthierError, StoreError
from luthier.store.failpoint import point

__all__ = [
    "make_folder",
    "new_folder",
    "point",
    "remove",
    "sweep",
    "sync_tree",
    "translated",
    "write_bytes",
    "write_chunks",
    "write_link",
    "write_new",
]

#: What a write meets when there is no room: no space, over quota, over the process's limit.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_ASIDE = ".aside"
#: Two processes may replace the same folder at the same time: a worker that lost its lease
#: without knowing it, and its successor. Each tries again when the other was faster.
_REPLACE_ATTEMPTS = 20


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new, never a part.

    Raises DiskFull when there is no room, StoreError for any other failure of the disk;
    then the old file is untouched.
    """
    path = Path(path)
    write_chunks(path.parent, [data], lambda: path.name)


def write_chunks(folder: Path, chunks: Iterable[bytes], name: Callable[[], str]) -> Path:
    """Write a file whose name is known only when its last byte was seen, as a hash is."""
    folder = Path(folder)
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        aside = _aside(folder / "file")
        try:
            with open(aside, "xb") as file:
                for chunk in chunks:
                    file.write(chunk)
                point("file.written")
                file.flush()
                os.fsync(file.fileno())
            point("file.synced")
            path = folder / name()
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                aside.unlink()
            raise
        point("file.renamed")
        _sync_folder(folder)
    point("file.durable")
    return path


def write_new(path: Path, data: bytes) -> bool:
    """Write a file unless there is one of that name; whether it was written.

    Of several writers exactly one is told True: a link, unlike a rename, never replaces
    (POSIX link(2): EEXIST). Raises as write_bytes does, and StoreError where the file system
    knows no hard links.
    """
    path = Path(path)
    with translated(path):
        aside = _aside(path)
        try:
            with open(aside, "xb") as file:
                file.write(data)
                point("new.written")
                file.flush()
                os.fsync(file.fileno())
            point("new.synced")
            is_new = _link(aside, path)
            point("new.linked")
        finally:
            with suppress(OSError):
                os.unlink(aside)
        # Also when another was first: who is told so may rely on it after a power cut.
        _sync_folder(path.parent)
    point("new.durable")
    return is_new


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, so that a power cut forgets none."""
    path = Path(path)
    with translated(path):
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:  # from the inside out: no name before what it stands for
            _sync_folder(folder)
            _sync_folder(folder.parent)


def write_link(path: Path, target: str) -> None:
    """Let a symbolic link point somewhere, made or turned: a reader sees the old target or the
    new. Raises StoreError, also where something that is no link has the name."""
    path = Path(path)
    with translated(path):
        if path.exists() and not path.is_symlink():
            raise StoreError("is not a link, so it is not replaced", where=str(path))
        aside = _aside(path)
        try:
            os.symlink(target, aside)
            point("link.made")
            os.replace(aside, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(aside)
            raise
        point("link.renamed")
        _sync_folder(path.parent)
    point("link.durable")


@contextmanager
def new_folder(destination: Path, *, replaces: bool = True) -> Iterator[Path]:
    """Yield a folder aside to be filled; on success it becomes ``destination``, whole.

    A folder that was there before is replaced; without ``replaces`` it stays, also one that
    another process was faster with, and what was filled is dropped. When the block raises,
    nothing is left and nothing changed. Raises DiskFull or StoreError as write_bytes does;
    also when a library in the block reports a full disk in words of its own.
    """
    destination = Path(destination)
    aside = _aside(destination)
    with translated(destination):
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            aside.mkdir()
            point("folder.made")
            yield aside
            point("folder.filled")
            sync_tree(aside)
            point("folder.synced")
            if replaces:
                _replace_folder(aside, destination)
            elif not _rename_to_new(aside, destination):
                shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        point("folder.renamed")
        _sync_folder(destination.parent)
    point("folder.durable")


def sync_tree(folder: Path) -> None:
    """fsync every file below a folder, and every folder, whoever wrote them (weights too)."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                _sync(path)
        _sync_folder(Path(root))


def remove(path: Path) -> None:
    """Remove a file or folder as a whole: it is renamed aside first, so no half is ever seen."""
    path = Path(path)
    aside = _aside(path)
    with translated(path):
        try:
            os.rename(path, aside)
        except FileNotFoundError:
            return
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()


def sweep(folder: Path) -> int:
    """Remove what killed processes left aside directly in a folder; how many there were.

    Only for folders that have a single writer, which is the caller.
    """
    left = list(folder.glob(f".*{_ASIDE}")) if folder.is_dir() else []
    for path in left:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(left)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what a disk raises into DiskFull or StoreError that names the path."""
    try:
        yield
    except LuthierError:
        raise
    except OSError as error:
        raise _store_error(path, error) from error
    except Exception as error:
        # safetensors and others wrap the system's error in a type of their own.
        if "os error 28" in str(error) or "No space left" in str(error):
            raise _store_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise


@contextmanager
def cached_file(path: Path) -> Iterator[Path]:
    """A file to be written aside, which then is ``path``: whole or not there. Not synced, for a
    cache that is lost is made again."""
    with translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}.part")
        try:
            yield aside
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def _store_error(path: Path, error: OSError) -> StoreError:
    if error.errno in FULL:
        return DiskFull(
            f"no space left to write ({error.strerror})",
            where=str(path),
            hint="free some space, then resume the run: it continues from its last checkpoint",
        )
    return StoreError(f"cannot be written: {error.strerror or error}", where=str(path))


def _aside(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_ASIDE}"


def _link(aside: Path, path: Path) -> bool:
    try:
        os.link(aside, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise StoreError(
                "the file system has no hard links, by which one of two writers wins",
                where=str(path),
                hint="use a folder on another file system, or s3://",
            ) from error
        raise
    return True


def _rename_to_new(aside: Path, destination: Path) -> bool:
    """Whether the folder got the name, which a folder with something in it keeps."""
    try:
        os.rename(aside, destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _replace_folder(aside: Path, destination: Path) -> None:
    for last in (False,) * _REPLACE_ATTEMPTS + (True,):
        try:
            os.rename(aside, destination)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or last:
                raise
        else:
            return
        # A folder cannot be renamed over a full one. Between these two renames there is
        # none of that name: a reader falls back to the one before, as after a crash.
        old = _aside(destination)
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(destination, old)
            point("folder.replacing")
        shutil.rmtree(old, ignore_errors=True)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and renames are journalled
        _sync(str(folder))
