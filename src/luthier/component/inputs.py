"""What finetune and evaluate read of the steps before: checked, and as paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.component.folders import MARKER, read_marker
from luthier.component.preprocess import TOKENIZED, described, same_task
from luthier.errors import NotFound, StoreError
from luthier.spec.job import JobSpec


@dataclass(frozen=True)
class Split:
    """A split of preprocess. features: what a model sees in an epoch; windows of a row count."""

    file: Path
    sha256: str
    rows: int
    features: int


@dataclass(frozen=True)
class Prepared:
    """The output of preprocess."""

    folder: Path
    task_name: str
    args: Mapping[str, Any]
    splits: Mapping[str, Split]
    labels: tuple[str, ...]
    model_name: str

    @property
    def tokenized(self) -> Path:
        """The engine's cache of features."""
        return self.folder / TOKENIZED

    def described(self, model: Path) -> JobSpec:
        """The task and its options as a spec, with the training rows as they were given."""
        return described(self.args, model)


@dataclass(frozen=True)
class Selected:
    """The output of import. files: name → sha256."""

    folder: Path
    task_name: str
    name: str
    files: Mapping[str, str]


def read_prepared(folder: Path) -> Prepared:
    """Raises NotFound and StoreError for a folder that preprocess did not write whole."""
    args, document = read_marker(folder, "preprocess", "preprocess_output")
    where = str(folder / MARKER["preprocess"])
    try:
        splits = {
            name: Split(
                folder / f"{name}.parquet", str(about["sha256"]), int(about["rows"]),
                int(about["features"]),
            )
            for name, about in document["splits"].items()
            if name in ("train", "validation", "test")
        }  # fmt: skip
        labels = tuple(map(str, document["labels"]))
        model_name = str(document.get("model_name"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"cannot be read ({error})", where=where) from None
    for name in ("train", "validation"):
        if name not in splits or not splits[name].file.is_file():
            raise NotFound(
                f"preprocess_output: there are no {name} rows",
                where=str(folder / f"{name}.parquet"),
                hint="do the step preprocess again",
            )
    return Prepared(folder, args["task_name"], args, splits, labels, model_name)


def read_selected(folder: Path, prepared: Prepared) -> Selected:
    """Raises NotFound and StoreError likewise, SpecError where it is for another task."""
    args, document = read_marker(folder, "import", "model_selector_output")
    same_task(prepared.task_name, args["task_name"], "model_selector_output")
    files = document.get("files")
    if not isinstance(files, dict):
        raise StoreError("cannot be read ('files')", where=str(folder / MARKER["import"]))
    missing = sorted(name for name in files if not (folder / Path(name).name).is_file())
    if missing:
        message = f"model_selector_output: {missing[0]} is missing"
        raise NotFound(message, where=str(folder), hint="do the step import again")
    return Selected(folder, args["task_name"], str(document.get("model_name")), files)
