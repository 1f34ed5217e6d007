"""Where the benchmark finds its clone, its model and its data."""

from __future__ import annotations

from pathlib import Path

from luthier.errors import MissingExtra, ModelError

#: Of the extra ``demo``.
MODEL = "all-minilm-l6-v2"


def clone() -> Path | None:
    """The root of the clone that this code runs from, if it runs from one."""
    root = Path(__file__).resolve().parents[3]
    there = (root / "docs").is_dir() and (root / "benchmarks").is_dir()
    return root if there and (root / "pyproject.toml").is_file() else None


def data_folder() -> Path:
    """Where the texts are kept between calls: in the clone, or in the user's home."""
    return (clone() or Path.home()) / ".luthier" / "benchmarks"


def model_folder(name: str) -> Path:
    """The folder of a model by catalog name or path.

    Raises MissingExtra for the default where its package is not installed, ModelError for
    what is no folder: the benchmark fetches nothing from a hub.
    """
    from luthier.models import catalog

    located = catalog.resolve(name)
    if located.path is not None:
        return located.path
    if name == MODEL:
        raise MissingExtra(f"the benchmark's model, {MODEL},", "demo")
    raise ModelError(
        "the benchmark takes a model that is on this machine",
        where=name,
        hint="give the folder of a sentence-transformers model",
    )
