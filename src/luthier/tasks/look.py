"""A look at the first rows of a task's data, before its job is queued."""

from __future__ import annotations

from pathlib import Path

from luthier.data.rows import read_rows
from luthier.registry import find
from luthier.spec import CSVOptions, JobSpec
from luthier.tasks.examples import find_columns


def look_at(path: Path, head: CSVOptions, spec: JobSpec, *, name: str) -> None:
    """Read the rows that ``head`` leaves, and find the task's columns in them.

    Raises DataError for rows that cannot be read or a column that is not there. The values are
    checked by the run, which reads all of them.
    """
    rows = read_rows(path, head, name=name)
    roles = find("task", spec.task).facts["roles"]
    known = {role.name for role in roles}
    chosen = {role: column for role, column in spec.processing.columns.items() if role in known}
    find_columns(roles, rows, chosen, supervised=True)
