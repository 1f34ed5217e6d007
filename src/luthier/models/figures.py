"""What is measured of this machine once and kept: a file ``machine.json`` of figures.

It lies beside the data sets of a home, or where ``LUTHIER_FIGURES`` says, which several homes can
share: with other figures they may choose otherwise, and then the last bits of what they compute
differ.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from luthier.environment import FIGURES
from luthier.store import atomic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Figures = TypeVar("Figures", bound=DataclassInstance)

#: Name of the file in a cache, and what its figures mean: raised when they mean another thing.
FILE = "machine.json"
_FORMAT = 2


def measured_once(
    kind: type[Figures], cache: Path | None, measure: Callable[[], Figures]
) -> Figures:
    """What the file has of this CPU, torch and number of threads; measured, and written, where it
    has none. ``kind`` is a dataclass of floats. Of processes that measure at once the first
    decides. Without a cache and a shared file it is measured anew."""
    file, machine, name = _file(cache), _machine(), kind.__name__.lower()
    if file is None:
        return measure()
    entries = _read(file).get(machine, {})
    if _is_of(kind, entries.get(name)):
        return kind(**entries[name])
    measured = dataclasses.asdict(measure())
    known = _read(file)
    entries = known.setdefault(machine, {})
    if not _is_of(kind, entries.get(name)):
        entries[name] = measured
        file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"format": _FORMAT, "machines": known}, indent=1, sort_keys=True)
        atomic.write_bytes(file, content.encode())
    return kind(**entries[name])


def _file(cache: Path | None) -> Path | None:
    shared = os.environ.get(FIGURES)
    if shared:
        return Path(shared).expanduser()
    return cache / FILE if cache is not None else None


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """The file's entries by machine and name; none where it is missing, damaged or foreign."""
    try:
        content = json.loads(file.read_text())
        found: dict[str, dict[str, Any]] = content["machines"]
        sound = content["format"] == _FORMAT and all(isinstance(e, dict) for e in found.values())
        return found if sound else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _is_of(kind: type[Figures], entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {field.name for field in dataclasses.fields(kind)}
        and all(isinstance(value, float) for value in entry.values())
    )


def _machine() -> str:
    import torch

    return f"{_cpu()}, torch {torch.__version__}, {torch.get_num_threads()} threads"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    # Machines of one name differ in what a hypervisor lets through.
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([names[0] if names else platform.machine(), *known])
