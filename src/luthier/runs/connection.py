"""The home: where the ledger, the store and the runs' folders are, and which one is current."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.environment import HOME, STORE, WORKER
from luthier.errors import IllegalTransition, NotFound, StoreError
from luthier.runs.aliases import PREFIX, Aliases
from luthier.runs.client import Experiment, Run
from luthier.runs.ledger import Ledger
from luthier.runs.records import RunRecord
from luthier.spec import JobSpec
from luthier.store.blobs import Store


class Home:
    """A folder with a SQLite ledger, or a PostgreSQL ledger and a folder beside it.

    place: a folder, or a URL ``postgresql://…`` (``sqlite:///file`` will do as well). store:
    the folder for artifacts and runs, which all machines must share when the ledger is a URL;
    default ``$LUTHIER_STORE``, else ``~/.luthier``.

    Raises StoreError when the place cannot be used.
    """

    def __init__(self, place: str | os.PathLike[str] | None = None, store: str | None = None):
        where = os.fspath(place) if place is not None else os.environ.get(HOME) or "~/.luthier"
        is_url = "://" in where
        folder = (store or os.environ.get(STORE) or "~/.luthier") if is_url else where
        self.path = Path(folder).expanduser().absolute()
        self.url = where if is_url else f"sqlite:///{self.path / 'luthier.db'}"
        #: What another process connects to, to be at this very home.
        self.place = where if is_url else str(self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"the home cannot be made ({error.strerror})",
                where=str(self.path),
                hint=f"set {HOME} to a folder that can be written",
            ) from error
        self.store = Store(self.path)
        self.cache = self.path / "cache"
        self.log = self.path / "worker.log"
        self.ledger = Ledger(self.url)
        self.aliases = Aliases(self.ledger.database, self.store)

    # Folders

    def scratch(self) -> Path:
        """A folder for temporary files, on the store's own file system."""
        folder = self.cache / "scratch"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run_folder(self, run: RunRecord) -> Path:
        """Where a run keeps its checkpoints. A retry from the start has a folder of its own,
        so that whoever still writes in the old one disturbs nobody."""
        folder = self.path / "runs" / run.id
        return folder / f"retry-{run.generation}" if run.generation else folder

    def find_artifact(self, name: str) -> str:
        """The whole id of an artifact: of its first four or more digits, or of ``alias:NAME``.
        Raises NotFound."""
        if name.startswith(PREFIX):
            return self.aliases.find(name).artifact_id
        return self.store.find(name)

    def artifact_of(self, name: str) -> str:
        """As ``find_artifact``; and that of a run, by its name. Raises NotFound, and
        IllegalTransition where the run has none."""
        if not name.startswith(PREFIX):
            try:
                return self.get_run(name).artifact_id
            except NotFound as error:
                hint = error.hint
            try:
                return self.store.find(name)
            except NotFound as error:
                hint = hint or f"a run, an artifact, or {PREFIX}NAME"
                raise NotFound(
                    f"'{name:.80}' is neither a run nor an artifact", hint=hint
                ) from error
        return self.find_artifact(name)

    # Experiments

    def create_experiment(
        self, name: str = "default", description: str | None = None
    ) -> Experiment:
        """The experiment of that name, made if it is new."""
        return Experiment(self, self.ledger.create_experiment(name, description))

    def get_experiment(self, name: str) -> Experiment:
        """Raises NotFound."""
        return Experiment(self, self.ledger.experiment(name))

    def list_experiments(self, page: int = 1, size: int = 50) -> list[Experiment]:
        """One page of the experiments, the newest first."""
        return [Experiment(self, record) for record in self.ledger.experiments(page, size)]

    def delete_experiment(self, name: str) -> None:
        """Delete an experiment, its runs, and their artifacts that no other run has.

        Raises NotFound; IllegalTransition while one of its runs is at work.
        """
        for run in self.ledger.delete_experiment(name):
            self._drop_files(run.id, run.artifact_id)

    def delete_experiments(self) -> None:
        """Delete all experiments. Raises IllegalTransition while a run is at work; then
        nothing is deleted."""
        self._refuse_while_at_work(None)
        while page := self.ledger.experiments(1, 100):
            for experiment in page:
                self.delete_experiment(experiment.name)

    # Runs

    def submit(
        self,
        spec: JobSpec,
        *,
        run_name: str | None = None,
        description: str | None = None,
        experiment_name: str | None = None,
        idempotency_key: str | None = None,
        parent_id: str | None = None,
    ) -> Run:
        """Queue a spec that was checked before, and see to it that a worker is there."""
        record = self.ledger.submit(
            spec,
            experiment=experiment_name or "default",
            name=run_name,
            description=description,
            idempotency_key=idempotency_key,
            parent_id=parent_id,
        )
        self.ensure_worker()
        return Run(self, record.id)

    def get_run(self, name_or_id: str, experiment_name: str | None = None) -> Run:
        """A run by name or id; without an experiment the newest of that name. Raises NotFound."""
        return Run(self, self.ledger.find(name_or_id, experiment_name).id)

    def list_runs(
        self,
        experiment_name: str | None = None,
        page: int = 1,
        size: int = 50,
        *,
        status: str | None = None,
    ) -> list[Run]:
        """One page of the runs, the newest first. Raises NotFound."""
        found = self.ledger.runs(experiment_name, page=page, size=size, status=status)
        return [Run(self, record.id) for record in found]

    def delete_run(self, name_or_id: str, experiment_name: str | None = None) -> None:
        """Delete a run, its checkpoints, and its artifact if no other run has the same.

        Raises NotFound; IllegalTransition while it is at work.
        """
        run_id = self.ledger.find(name_or_id, experiment_name).id
        trials = self.ledger.trials(run_id)  # they go with their search
        run = self.ledger.delete(run_id)
        self._drop_files(run.id, run.artifact_id)
        for trial in trials:
            self._drop_files(trial.id, trial.artifact_id)

    def delete_runs(self, experiment_name: str | None = None) -> None:
        """Delete all runs, or those of an experiment. Raises IllegalTransition while one is at
        work; then nothing is deleted."""
        self._refuse_while_at_work(experiment_name)
        while page := self.ledger.runs(experiment_name, size=1):
            self.delete_run(page[0].id)

    # Workers

    def ensure_worker(self) -> bool:
        """Start a worker process if none is alive; whether one was started. Does not wait."""
        if os.environ.get(WORKER) == "none":
            return False
        from luthier.backends.local import ensure_worker

        return ensure_worker(self)

    def close(self) -> None:
        """Close the ledger's connections; the next use opens new ones."""
        self.ledger.close()

    def _refuse_while_at_work(self, experiment_name: str | None) -> None:
        busy = self.ledger.runs(experiment_name, status="STARTED", size=1)
        if busy:
            raise IllegalTransition(f"the run '{busy[0].name}' is at work", hint="cancel it first")

    def _drop_files(self, run_id: str, artifact_id: str | None) -> None:
        shutil.rmtree(self.path / "runs" / run_id, ignore_errors=True)
        if artifact_id is not None and not self.ledger.artifact_users(artifact_id):
            self.store.remove_artifact(artifact_id)


_current: Home | None = None


def connect(place: str | os.PathLike[str] | None = None, store: str | None = None) -> Home:
    """Open a home and make it the current one. See Home for what ``place`` can be."""
    global _current  # noqa: PLW0603
    _current = Home(place, store)
    return _current


def current() -> Home:
    """The current home; the default one when none was connected to."""
    return _current if _current is not None else connect()


@contextmanager
def using(home: Home) -> Iterator[None]:
    """Make a home the current one for a while."""
    global _current  # noqa: PLW0603
    before, _current = _current, home
    try:
        yield
    finally:
        _current = before
