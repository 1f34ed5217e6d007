"""What the tables hold, as frozen data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from luthier.runs.tables import TERMINAL
from luthier.spec import JobSpec, parse_spec


@dataclass(frozen=True)
class ExperimentRecord:
    """One experiment. created_at: seconds since 1970."""

    id: str
    name: str
    description: str
    status: str
    created_at: float


@dataclass(frozen=True)
class RunRecord:
    """One run, as it was when it was read. Times are seconds since 1970, or None."""

    id: str
    experiment: str
    name: str
    description: str
    spec: JobSpec
    spec_id: str
    key: str | None
    device: str
    public: bool
    parent_id: str | None
    status: str
    reason: str | None
    details: str
    epoch: int
    attempt: int
    crashes: int
    generation: int
    checkpoint_step: int | None
    worker_id: str | None
    holder: str | None
    lease_expires_at: float | None
    cancel_requested_at: float | None
    artifact_id: str | None
    metrics: dict[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    updated_at: float
    kind: str = "training"
    pause_after: int | None = None

    @property
    def ended(self) -> bool:
        """Whether it is FINISHED, FAILED or CANCELLED."""
        return self.status in TERMINAL


@dataclass(frozen=True)
class Claim:
    """The right to work on a run, until its lease ends. ``epoch`` is the fence."""

    run: RunRecord
    epoch: int


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat: is the run still mine, and shall I stop it?"""

    mine: bool
    cancel: bool


@dataclass(frozen=True)
class Event:
    """Something that happened in a run. ``seq`` counts from 1, without gaps, per run."""

    seq: int
    at: float
    epoch: int
    kind: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerRecord:
    """A worker process that is alive. ``process`` is ``host|boot|pid|start``."""

    id: str
    process: str
    kind: str
    devices: tuple[str, ...]
    registered_at: float


def run_record(row: Any) -> RunRecord:
    """A record from a row of runs joined with its experiment's name."""
    values = dict(row._mapping)
    values["spec"] = parse_spec(values["spec"])
    values["metrics"] = json.loads(values["metrics"]) if values["metrics"] else None
    del values["experiment_id"]
    return RunRecord(**values)
