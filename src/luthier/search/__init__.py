"""Search: which values of a job's fields make the best model.

The ranges (``uniform``, ``loguniform``, …) are what ``fit(search=…)`` takes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name → the module that holds it.
_HOME = {
    name: module
    for module, names in {
        "luthier.tuning.domains": "uniform loguniform randint lograndint choice ordinal",
        "luthier.search.spellings": "hp conditional",
        "luthier.search.spaces": "config_space",
    }.items()
    for name in names.split()
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'luthier.search' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
