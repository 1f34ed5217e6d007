"""The tree of errors. Each has a code, where it happened, a hint, and whether a retry may help.

    LuthierError                   error
    ├── SpecError                  spec_invalid       a job that cannot run; lists every problem
    ├── DataError                  data_invalid       a file, row or column that cannot be read
    ├── ModelError                 model_invalid      a model that cannot be found or loaded
    ├── MissingExtra               missing_extra      an optional package is needed
    ├── NotFound                   not_found          no such run, experiment, artifact or name
    ├── Conflict                   conflict           the name or key is taken by another job
    │   └── StateConflict          state_conflict     another update of the state came first
    ├── IllegalTransition          illegal_transition a run in this state cannot do that
    ├── LeaseLost                  lease_lost         another worker owns the run now
    ├── StoreError                 store_error        the place where runs and artifacts live
    │   ├── CorruptBundle          corrupt_bundle     bytes that are not what was written
    │   └── DiskFull               disk_full          no space left
    ├── UnsafeLocation             unsafe_location    a URL, path or archive that may not be opened
    └── TrainingError              training_failed    the run itself failed
        ├── OutOfMemory            out_of_memory      not even one row at a time fits
        └── StepFailed             step_failed        a step of a pipeline, a process of its own

One object is rendered three ways: as an exception, as an exit code (``exit_code``) and as
an RFC 9457 problem document (``problem()``).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


class LuthierError(Exception):
    """Base of every error a user can meet.

    ``where`` names the file, row, column or field; ``hint`` says what to do about it.
    """

    code = "error"
    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}\n  hint: {self.hint}" if self.hint else text

    def problem(self) -> dict[str, Any]:
        """The error as an RFC 9457 problem document."""
        return {
            "type": f"urn:luthier:{self.code}",
            "title": self.message,
            "code": self.code,
            "where": self.where,
            "hint": self.hint,
            "retryable": self.retryable,
        }


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a spec: the field, what is wrong, and what to do."""

    field: str
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


class SpecError(LuthierError):
    """A job that cannot run. All problems are reported together, before anything is loaded."""

    code = "spec_invalid"
    exit_code = 2

    def __init__(self, problems: Iterable[Problem], partial: Any = None) -> None:
        self.problems = tuple(problems)
        #: The spec without the fields that are wrong, so that the rest can be checked too.
        self.partial = partial
        super().__init__(
            "; ".join(map(str, self.problems)),
            where=self.problems[0].field if len(self.problems) == 1 else None,
        )

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        return f"{len(self.problems)} problems in the job:{lines}"

    def problem(self) -> dict[str, Any]:
        """The error as a problem document, with one entry a field."""
        listed = [{"field": p.field, "message": p.message, "hint": p.hint} for p in self.problems]
        return super().problem() | {"problems": listed}


class DataError(LuthierError):
    """Data that cannot be read. ``row`` counts from 1 and includes the header, as editors do."""

    code = "data_invalid"
    exit_code = 3

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        column: str | int | None = None,
        hint: str | None = None,
    ) -> None:
        self.file, self.row, self.column = file, row, column
        parts = [
            file,
            f"row {row}" if row is not None else None,
            f"column {column}" if column is not None else None,
        ]
        super().__init__(message, where=", ".join(p for p in parts if p) or None, hint=hint)


class ModelError(LuthierError):
    """A model that cannot be found, loaded or used for this task."""

    code = "model_invalid"
    exit_code = 4


class MissingExtra(LuthierError):
    """An optional package is needed."""

    code = "missing_extra"
    exit_code = 5

    def __init__(self, what: str, extra: str) -> None:
        hint = f"pip install 'luthier[{extra}]'"
        super().__init__(f"{what} needs an optional package", hint=hint)


class NotFound(LuthierError):
    """No such run, experiment, artifact or name."""

    code = "not_found"
    exit_code = 6


class Conflict(LuthierError):
    """The name or idempotency key already belongs to another job."""

    code = "conflict"
    exit_code = 7


class StateConflict(Conflict):
    """Another writer committed the next generation of a state first; nothing was overwritten."""

    code = "state_conflict"


class IllegalTransition(LuthierError):
    """A run in this state cannot do that."""

    code = "illegal_transition"
    exit_code = 7


class LeaseLost(LuthierError):
    """Another worker owns the run now; this one may publish nothing."""

    code = "lease_lost"
    exit_code = 8


class StoreError(LuthierError):
    """The place where runs and artifacts live cannot be read or written."""

    code = "store_error"
    exit_code = 9
    retryable = True


class CorruptBundle(StoreError):
    """A checkpoint or artifact whose bytes are not those that were written."""

    code = "corrupt_bundle"
    retryable = False


class DiskFull(StoreError):
    """No space is left where the run writes."""

    code = "disk_full"


class UnsafeLocation(LuthierError):
    """A URL, path or archive that may not be opened."""

    code = "unsafe_location"
    exit_code = 10


class TrainingError(LuthierError):
    """The run itself failed."""

    code = "training_failed"
    exit_code = 11


class OutOfMemory(TrainingError):
    """Not even one row at a time fits in memory."""

    code = "out_of_memory"


class StepFailed(TrainingError):
    """A step of a pipeline ended with another exit code than 0. It is the pipeline's as well."""

    code = "step_failed"

    def __init__(self, message: str, exit_code: int, **more: str | None) -> None:
        super().__init__(message, **more)
        self.exit_code = exit_code


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A hint that names the closest known word, or None when nothing is close.

    >>> nearest("TripletMarginLos", ["TripletMarginLoss", "ArcFaceLoss"])
    "did you mean 'TripletMarginLoss'?"
    """
    known = list(known)
    folded = {k.lower(): k for k in known}
    found = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.6)
    return f"did you mean '{folded[found[0]]}'?" if found else None
