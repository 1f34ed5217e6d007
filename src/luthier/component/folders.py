"""The folders that steps hand to each other: written whole, read with care.

A step's output may be a mount that is there and empty, onto which nothing can be renamed. So
files are made in a hidden folder within it and moved up when all are there, the one that names
the step's arguments last: without it the output does not count. ``.luthier-step`` says whose
folder it is from the first moment, so that the step can be done again after it was killed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.doors.component import parse
from luthier.doors.component_table import TABLE, Step
from luthier.errors import Conflict, NotFound, Problem, SpecError, StoreError, UnsafeLocation
from luthier.store import atomic

#: Step → the file that its output has when it is complete.
MARKER: Mapping[Step, str] = {
    "import": "model_selector_args.json",
    "preprocess": "preprocess_args.json",
    "finetune": "finetune_args.json",
    "evaluate": "evaluate_args.json",
}

FORMAT = 1
_OWNER = ".luthier-step"
_NEW = ".luthier-new"


def claim(folder: Path, step: Step) -> None:
    """Make an output folder, or make sure that it is empty or this step's own.

    Raises Conflict when it holds something else, StoreError when it cannot be made.
    """
    with atomic.translated(folder):
        if folder.exists() and not folder.is_dir():
            raise Conflict("is a file, where a folder is to be written", where=str(folder))
        folder.mkdir(parents=True, exist_ok=True)
        owner = folder / _OWNER
        if owner.is_file():
            found = owner.read_text(encoding="utf-8").strip()
            if found != step:
                message = f"holds the output of the step {found}"
                raise Conflict(message, where=str(folder), hint="name a folder of its own")
            return
        if any(folder.iterdir()):
            raise Conflict(
                f"is not empty, and the step {step} did not write it",
                where=str(folder),
                hint="name an empty folder, or one that is not there yet",
            )
        atomic.write_bytes(owner, f"{step}\n".encode())


@contextmanager
def output(
    folder: Path, step: Step, *, keep: Callable[[str], bool] = lambda name: False
) -> Iterator[Path]:
    """Yield a folder to fill; on success what is in it takes the place of what was in
    ``folder``, but for entries that are to be kept. When the block raises, ``folder`` is as it
    was.

    The block is to write the step's marker (``write_marker``).
    """
    claim(folder, step)
    new = folder / _NEW
    with atomic.translated(folder):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            atomic.sync_tree(new)
            _move_up(new, folder, MARKER[step], keep)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _move_up(new: Path, folder: Path, marker: str, keep: Callable[[str], bool]) -> None:
    (folder / marker).unlink(missing_ok=True)  # from here until the end it is incomplete
    for old in folder.iterdir():
        if old.name not in (_OWNER, _NEW) and not keep(old.name):
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    for path in sorted(new.iterdir(), key=lambda path: path.name == marker):
        os.replace(path, folder / path.name)
    atomic.sync_tree(folder / marker)


def write_marker(
    folder: Path, step: Step, args: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """The step's arguments and what it found out, as JSON."""
    known = {name: value for name, value in args.items() if value is not None}
    document = {"format": FORMAT, "step": step, "args": known, **facts}
    write_json(folder / MARKER[step], document)


def write_json(file: Path, document: Any) -> None:
    """Readable JSON; what is not finite becomes null."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def read_marker(folder: Path, step: Step, flag: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of the step that wrote a folder, checked again, and the whole document.

    flag: what the user called the folder, for messages. Raises NotFound: there is no such
    folder, or no complete output in it; SpecError: arguments that the step does not take.
    """
    if not folder.is_dir():
        raise NotFound(f"{flag}: there is no such folder", where=str(folder))
    file = folder / MARKER[step]
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        given = {name: _text(value) for name, value in document["args"].items()}
        right = document["format"] == FORMAT and document["step"] == step
    except FileNotFoundError:
        raise NotFound(
            f"{flag}: holds no complete output of the step {step}: there is no {file.name}",
            where=str(folder),
            hint=f"luthier component {step} writes one",
        ) from None
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise StoreError(f"{flag}: cannot be read ({error})", where=str(file)) from None
    if not right:
        raise StoreError(f"{flag}: is of another format or step", where=str(file))
    try:
        return parse(step, given), document
    except SpecError as error:
        problems = [Problem(f"{file}: {p.field}", p.message, p.hint) for p in error.problems]
        raise SpecError(problems) from None


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_apart(step: Step, args: Mapping[str, Any]) -> None:
    """An output must not lie in an input, nor an input in an output. Raises SpecError."""
    paths = {
        row.name: Path(str(args[row.name])).resolve()
        for row in TABLE[step]
        if row.kind in ("uri_folder", "mlflow_model", "uri_file") and args[row.name] is not None
    }
    outputs = [row.name for row in TABLE[step] if row.output and row.name in paths]
    problems = [
        Problem(name, f"lies in {other}, or {other} in it", "name a folder of its own")
        for name in outputs
        for other in paths
        if other != name and (other not in outputs or other > name)
        if _within(paths[name], paths[other]) or _within(paths[other], paths[name])
    ]
    if problems:
        raise SpecError(problems)


def _within(inner: Path, outer: Path) -> bool:
    return inner == outer or outer in inner.parents


def plain_files(folder: Path) -> dict[str, Path]:
    """The files directly in a folder, by name, each resolved.

    A link is followed where it stays in the folder, or in the cache of the Hugging Face hub
    that the folder is a snapshot of. Raises UnsafeLocation for any other.
    """
    root = folder.resolve()
    hub = root.parent.parent if root.parent.name == "snapshots" else None
    allowed = [root] + ([hub / "blobs"] if hub is not None else [])
    found = {}
    for path in sorted(root.iterdir()):
        real = path.resolve()
        if path.is_symlink() and not any(_within(real, place) for place in allowed):
            raise UnsafeLocation(
                f"is a link that leads out of the folder, to {os.readlink(path)}", where=str(path)
            )
        if real.is_file():
            found[path.name] = real
    return found


def link_or_copy(source: Path, destination: Path) -> None:
    """The same bytes under another name; on one disk without a second copy of them."""
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)
