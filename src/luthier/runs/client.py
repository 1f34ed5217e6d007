"""Run and Experiment: what users hold in their hands."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import Conflict, IllegalTransition, NotFound, OutOfMemory, TrainingError
from luthier.runs import display
from luthier.runs.leases import MAX_CRASHES
from luthier.runs.records import Event, ExperimentRecord, RunRecord
from luthier.spec import JobSpec
from luthier.store.atomic import new_folder
from luthier.store.bundle import open_bundle

if TYPE_CHECKING:
    from luthier.runs.connection import Home

#: How often a run that is waited for is looked at.
_LOOK_S = 0.2
#: How often, meanwhile, it is made sure that somebody works on it.
_WAKE_S = 2.0


class Run:
    """One run. What it knows is read anew each time: it is never out of date."""

    def __init__(self, home: Home, run_id: str) -> None:
        self.home = home
        self.id = run_id

    def __repr__(self) -> str:
        record = self.record()
        return f"<Run {record.name} {record.status}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and (self.id, self.home.url) == (other.id, other.home.url)

    def __hash__(self) -> int:
        return hash((self.id, self.home.url))

    def record(self) -> RunRecord:
        """All that the ledger knows. Raises NotFound when it was deleted."""
        return self.home.ledger.get(self.id)

    # What it is

    @property
    def name(self) -> str:
        """Unique within its experiment."""
        return self.record().name

    @property
    def experiment_name(self) -> str:
        """The experiment that it belongs to."""
        return self.record().experiment

    @property
    def description(self) -> str:
        """Free text, as submitted."""
        return self.record().description

    @property
    def spec(self) -> JobSpec:
        """The frozen job."""
        return self.record().spec

    @property
    def config(self) -> dict[str, Any]:
        """The frozen job as plain data."""
        return self.spec.model_dump(mode="json")

    @property
    def created_at(self) -> datetime:
        """When it was submitted, in UTC."""
        return datetime.fromtimestamp(self.record().created_at, UTC)

    @property
    def artifact_id(self) -> str:
        """The id of the tuned model. Raises IllegalTransition until the run is FINISHED."""
        record = self.record()
        if record.artifact_id is None:
            raise IllegalTransition(
                f"the run is {record.status}; it has no artifact",
                where=record.name,
                hint="wait for it with run.wait()" if not record.ended else None,
            )
        return record.artifact_id

    def status(self) -> dict[str, Any]:
        """``{'status', 'details', 'reason'}``; status is CREATED, STARTED, FINISHED, FAILED or
        CANCELLED, reason a code such as interrupted, quarantined, disk_full, user, or None."""
        record = self.record()
        return {"status": record.status, "details": record.details, "reason": record.reason}

    # What happened

    def events(self, after: int = 0, limit: int = 1000) -> list[Event]:
        """What happened, in order, from the event with number ``after`` on (exclusive)."""
        return self.home.ledger.events(self.id, after, limit)

    def logs(self) -> str:
        """Everything that was said so far, a line each."""
        return "\n".join(self._lines(0)[0])

    def stream_logs(self, interval: float = 5) -> Iterator[str]:
        """Lines as they come, until the run has ended; looks every ``interval`` seconds."""
        after = 0
        while True:
            ended = self.record().ended
            lines, after = self._lines(after)
            yield from lines
            if ended:
                return
            time.sleep(interval)

    def metrics(self) -> dict[str, Any]:
        """Metrics before and after tuning; empty until the run is FINISHED."""
        return self.record().metrics or {}

    def display_metrics(self) -> None:
        """Print the metrics as a table."""
        display.print_metrics(self.metrics())

    def example_results(self) -> dict[str, Any]:
        """Top results of a few queries, before and after; empty where none were gathered
        (``EvaluationCallback(gather_examples=True)``). Raises IllegalTransition until the run
        is FINISHED."""
        report = self.home.store.told(self.artifact_id) / "report.json"
        found = json.loads(report.read_text()).get("examples") if report.is_file() else None
        return found if isinstance(found, dict) else {"examples": found} if found else {}

    def display_examples(self, k: int = 5) -> None:
        """Print the top ``k`` results of a few queries, before and after."""
        display.print_examples(self.example_results(), k)

    def save_artifact(self, directory: str | Path = "artifacts/") -> str:
        """Copy the tuned model into ``directory``, under the run's name; returns its path.

        Raises IllegalTransition until the run is FINISHED, Conflict when something else has
        that path.
        """
        record, artifact_id = self.record(), self.artifact_id
        source = self.home.store.artifact(artifact_id)
        target = Path(directory).expanduser().absolute() / record.name
        if target.exists():
            try:
                same = open_bundle(target).id == artifact_id
            except (NotFound, OSError):
                same = False
            if same:
                return str(target)
            raise Conflict("there is something else already", where=str(target))
        with new_folder(target) as aside:
            shutil.copytree(source, aside, dirs_exist_ok=True)
        return str(target)

    def trials(self) -> list[Run]:
        """The runs that a search has made, in their order; none for any other run."""
        return [Run(self.home, trial.id) for trial in self.home.ledger.trials(self.id)]

    # What can be done to it

    def cancel(self) -> Run:
        """Stop it for good. Once this returns it cannot finish any more."""
        self.home.ledger.cancel(self.id)
        return self

    def resume(self) -> Run:
        """Go on with a FAILED or CANCELLED run from its last checkpoint."""
        self.home.ledger.resume(self.id)
        self.home.ensure_worker()
        return self

    def retry(self) -> Run:
        """Do a FAILED or CANCELLED run again from the start; its checkpoints are dropped."""
        self.home.ledger.retry(self.id)
        self.home.ensure_worker()
        return self

    def clone(
        self, *, run_name: str | None = None, description: str | None = None, **changes: Any
    ) -> Run:
        """Submit the same job again with some fields of its spec changed, by leaf name:
        ``run.clone(learning_rate=1e-4)``. It is checked as any other. Raises SpecError."""
        import luthier
        from luthier.runs.connection import using

        record = self.record()
        spec = record.spec.changed(**changes)
        with using(self.home):
            run: Run = luthier.submit(
                spec,
                run_name=run_name,
                description=record.description if description is None else description,
                experiment_name=record.experiment,
            )
        return run

    def delete(self) -> None:
        """Delete it with its checkpoints. Raises IllegalTransition while it is at work."""
        self.home.delete_run(self.id)

    def wait(self, progress: bool = True) -> Run:
        """Stay until the run has ended, and show its progress. Ctrl-C ends the waiting only.

        Returns the run when it is FINISHED or CANCELLED. Raises TrainingError (OutOfMemory
        where that was it) with the logged cause when it FAILED.
        """
        after, next_wake = 0, time.monotonic() + _WAKE_S
        with display.follower(self.name, progress) as show:
            while True:
                record = self.record()
                for event in self.events(after):
                    show(event)
                    after = event.seq
                if record.ended:
                    break
                if time.monotonic() >= next_wake:
                    # How often a run may crash is for a worker to say, where there is one.
                    somebody = self.home.ledger.workers()
                    self.home.ledger.reap(sys.maxsize if somebody else MAX_CRASHES)
                    self.home.ensure_worker()
                    next_wake = time.monotonic() + _WAKE_S
                time.sleep(_LOOK_S)
        if record.status == "FAILED":
            raise self._failure(record)
        return self

    def _failure(self, record: RunRecord) -> TrainingError:
        kind = OutOfMemory if record.reason == OutOfMemory.code else TrainingError
        errors = [
            event.data
            for event in self.home.ledger.events(self.id, limit=100_000, kinds=["log"])
            if event.data.get("level") == "error"
        ]
        hint = errors[-1].get("hint") if errors else None
        return kind(record.details or str(record.reason), where=f"run {record.name}", hint=hint)

    def _lines(self, after: int) -> tuple[list[str], int]:
        lines: list[str] = []
        while events := self.events(after):
            lines += [line for event in events if (line := display.line(event)) is not None]
            after = events[-1].seq
        return lines, after


class Experiment:
    """A named group of runs."""

    def __init__(self, home: Home, record: ExperimentRecord) -> None:
        self.home = home
        self.id = record.id
        self.name = record.name
        self.status = record.status
        self.description = record.description
        self.created_at = datetime.fromtimestamp(record.created_at, UTC)

    def __repr__(self) -> str:
        return f"<Experiment {self.name}>"

    def get_run(self, name: str) -> Run:
        """The run of that name in this experiment. Raises NotFound."""
        return self.home.get_run(name, self.name)

    def list_runs(self, page: int = 1, size: int = 50) -> list[Run]:
        """One page of its runs, the newest first."""
        return self.home.list_runs(self.name, page, size)

    def delete_run(self, name: str) -> None:
        """Delete a run of this experiment. Raises NotFound, IllegalTransition."""
        self.home.delete_run(name, self.name)

    def delete_runs(self) -> None:
        """Delete all its runs. Raises IllegalTransition while one is at work."""
        self.home.delete_runs(self.name)
