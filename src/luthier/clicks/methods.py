"""Methods of fine-tuning as plugins: classes that put a training together, found by entry point
or in a folder.

A plugin is a subclass of ``FineTuningMethod``. A package offers its own by an entry point of the
group ``luthier.clicks.methods`` that names the class; a folder (an argument, or
``$LUTHIER_PLUGINS``, several parted by the path separator) holds ``*.py`` files, whose methods
are found. Files of a folder are executed: whoever can write into it is trusted as the user is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from luthier.clicks.builder import FineTuningBuilder
from luthier.clicks.converters import SessionWithEvents
from luthier.clicks.sessions import Sessions
from luthier.environment import PLUGINS
from luthier.errors import Conflict, DataError, NotFound, nearest

GROUP = "luthier.clicks.methods"


@dataclass(frozen=True)
class PluginMeta:
    """What a plugin is called."""

    name: str
    version: str = "0.0.1"
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise DataError("a plugin has a name", hint='PluginMeta(name="Mine", version="0.0.1")')


class FineTuningMethod:
    """A way to fine-tune on clicks. Subclasses have ``meta`` and two methods."""

    meta: ClassVar[PluginMeta]

    def upload_initial_model(self) -> None:
        """Hand the model that training starts from to the experiments manager; without one there
        is nothing to do."""

    def get_fine_tuning_builder(
        self, clickstream: Sessions | list[SessionWithEvents]
    ) -> FineTuningBuilder:
        """Everything that a training on these sessions is made of."""
        raise NotImplementedError


def find_methods(*folders: str | Path) -> dict[str, type[FineTuningMethod]]:
    """All methods by name: those of entry points, of the folders, and of ``$LUTHIER_PLUGINS``.

    Raises DataError for a plugin that cannot be loaded, with its file and line, or that is none;
    Conflict where two have the same name.
    """
    found: dict[str, type[FineTuningMethod]] = {}
    for method, where in [*_of_entry_points(), *_of_folders(folders)]:
        name = _meta(method, where).name
        known = found.setdefault(name, method)
        if known is not method:
            other = inspect.getsourcefile(known)
            raise Conflict(f"two methods are called '{name}'", where=where,
                           hint=f"the other is in {other}")  # fmt: skip
    return found


def find_method(name: str, *folders: str | Path) -> FineTuningMethod:
    """A method by name, made. Raises NotFound with the nearest name, DataError, Conflict."""
    known = find_methods(*folders)
    if name not in known:
        hint = nearest(name, known) or (
            f"known: {', '.join(known)}" if known
            else f"entry points of the group {GROUP}, or a folder in ${PLUGINS}"
        )  # fmt: skip
        raise NotFound(f"no method of fine-tuning is called '{name}'", hint=hint)
    return known[name]()


def _of_entry_points() -> Iterable[tuple[type[FineTuningMethod], str]]:
    from importlib.metadata import entry_points

    for point in entry_points(group=GROUP):
        where = f"entry point {point.name}"
        try:
            loaded = point.load()
        except Exception as error:
            raise DataError(f"cannot be loaded ({error})", file=where) from error
        if not _is_method(loaded):
            raise DataError("is no subclass of FineTuningMethod", file=where)
        yield loaded, where


def _of_folders(folders: Iterable[str | Path]) -> Iterable[tuple[type[FineTuningMethod], str]]:
    named = [part for part in os.environ.get(PLUGINS, "").split(os.pathsep) if part]
    for folder in dict.fromkeys(Path(f).expanduser().absolute() for f in [*folders, *named]):
        if not folder.is_dir():
            raise DataError("there is no such folder of plugins", file=str(folder))
        for file in sorted(folder.glob("*.py")):
            if file.name.startswith("_"):
                continue
            module = _loaded(file)
            for value in vars(module).values():
                if _is_method(value) and value.__module__ == module.__name__:
                    yield value, str(file)


def _loaded(file: Path) -> Any:
    """The module of a file, once for each content."""
    digest = hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()[:16]
    name = f"luthier_plugin_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DataError(f"a plugin cannot be loaded: {type(error).__name__}: {error}",
                        file=str(file), row=_line(error, file)) from error  # fmt: skip
    return module


def _line(error: BaseException, file: Path) -> int | None:
    """The last line of the file that led to the error."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno
    lines = []
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(file):
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1] if lines else None


def _is_method(value: Any) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, FineTuningMethod)
        and value is not FineTuningMethod
        and not inspect.isabstract(value)
    )


def _meta(method: type[FineTuningMethod], where: str) -> PluginMeta:
    found = getattr(method, "meta", None)
    if not isinstance(found, PluginMeta):
        hint = 'meta = PluginMeta(name="Mine", version="0.0.1", description="…")'
        raise DataError(f"{method.__name__} has no meta", file=where, hint=hint)
    return found
