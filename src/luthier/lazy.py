"""Public names of a package that are loaded when they are first used (PEP 562).

A package says which module holds which names, and importing it imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str], *others: str
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``__all__``, ``__getattr__`` and ``__dir__`` of a package. modules: module → the names that
    it holds, apart by spaces. others: public names that the package has itself.

    >>> names, get, _ = lazy_names("example", {"math": "tau pi"})
    >>> names, get("pi")
    (['pi', 'tau'], 3.141592653589793)
    """
    home = {name: module for module, names in modules.items() for name in names.split()}
    names = [*others, *sorted(home)]

    def get(name: str) -> Any:
        if name in home:
            return getattr(import_module(home[name]), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return names, get, lambda: names
