"""Losses and miners: what is minimized.

``needs`` and ``problems`` read the cards alone; the rest loads torch when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.objectives.needs import Needs, needs
from luthier.objectives.problems import problems

if TYPE_CHECKING:
    from luthier.objectives.build import build_objective
    from luthier.objectives.objective import Embedded, Objective

__all__ = ["Embedded", "Needs", "Objective", "build_objective", "needs", "problems"]

_HOME = {"Embedded": "objective", "Objective": "objective", "build_objective": "build"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"luthier.objectives.{_HOME[name]}"), name)
    raise AttributeError(f"module 'luthier.objectives' has no attribute '{name}'")
