"""The rows of a task, checked: those that are remembered from former updates, then the new ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from luthier.data.parts import split_rows
from luthier.data.rows import Rows, read_rows
from luthier.engine.beginning import Beginning, begin
from luthier.engine.control import Listener
from luthier.engine.read import Place, located
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.registry import find
from luthier.spec import JobSpec, Source
from luthier.tasks.examples import Examples
from luthier.tasks.loading import labels_of
from luthier.tasks.remembered import joined_rows, renumbered
from luthier.tasks.task import Task


@dataclass(frozen=True)
class TaskData:
    """The rows of a run. ``held_out`` is what is measured on. Of both the ones that are remembered
    come first: ``old`` of ``train``. chunks: the update that each held-out row came with. probe:
    what an update is scored on before and after."""

    task: Task
    train: Examples
    held_out: Examples | None
    begun: Beginning = field(default_factory=Beginning)
    old: int = 0
    chunks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    probe: Examples | None = None


def read_examples(spec: JobSpec, place: Place, tell: Listener) -> TaskData:
    """Read, check and split the rows that the spec names. Classes that were learnt before keep
    their numbers. Raises DataError with row and column, NotFound for a state that is not there.
    """
    begun = begin(spec, place, Resolved(place.folder / RESOLVED), tell)
    task: Task = find("task", spec.task).load()(spec.processing)
    rows, held_out, labels = _new_rows(task, spec, place)
    known = () if begun.folder is None else labels_of(str(begun.folder))
    rows, old = _with_remembered(task, begun, "memory", rows)
    if labels is not None:
        labels = (*known, *(name for name in labels if name not in known))
    train = renumbered(task.read(rows, labels), known)
    columns = ", ".join(f"{role} ← {column}" for role, column in train.columns.items())
    message = f"{spec.data.train.uri}: {len(train) - old:,} rows, {spec.task} ({columns})"
    tell("log", {"level": "info", "message": message})
    if begun.updater is not None:
        say = f"update {begun.past.updates + 1}: {old:,} remembered rows come first"
        tell("log", {"level": "info", "message": say})
    probe = _probe(task, spec, place, train.labels)
    if held_out is None:
        return TaskData(task, train, None, begun, old, probe=probe)
    held_out, kept = _with_remembered(task, begun, "validation", held_out)
    measured = task.read(held_out, train.labels or None)
    came = [begun.past.updates] * (len(measured) - kept)
    chunks = np.array([*begun.past.chunks[:kept], *came], dtype=np.int64)
    return TaskData(task, train, measured, begun, old, chunks, probe)


def _probe(task: Task, spec: JobSpec, place: Place, labels: tuple[str, ...]) -> Examples | None:
    if spec.data.probe is None:
        return None
    path = located(spec.data.probe, place)
    return task.read(read_rows(path, spec.data.csv, name=spec.data.probe.uri), labels or None)


def _new_rows(
    task: Task, spec: JobSpec, place: Place
) -> tuple[Rows, Rows | None, tuple[str, ...] | None]:
    """What the spec names: rows to train on, rows to measure on, and, where one was made of the
    other, the labels of both."""

    def rows_of(source: Source) -> Rows:
        return read_rows(located(source, place), spec.data.csv, name=source.uri)

    rows = rows_of(spec.data.train)
    if spec.data.eval is not None:
        return rows, rows_of(spec.data.eval), None
    if not spec.data.val_split:
        return rows, None, None
    whole = task.read(rows)
    stratify = whole.columns.get("label") if whole.codes is not None else None
    shares = {"train": 1 - spec.data.val_split, "held_out": spec.data.val_split}
    parts = split_rows(rows, shares, spec.training.seed, stratify_by=stratify)
    return parts["train"], parts["held_out"], whole.labels or None


def _with_remembered(task: Task, begun: Beginning, name: str, new: Rows) -> tuple[Rows, int]:
    file = begun.file(f"{name}.arrow")
    return (new, 0) if file is None else joined_rows(task, file, new)
