"""``ExperimentsManager``: iterations of fine-tuning, kept in MLflow.

A plugin has one initial model and any number of iterations. An iteration is (plugin, starting run,
batch), an experiment of MLflow; a run of it is a set of parameters, the same set is the same run.
Everything may be repeated, also by several processes at once: what came first counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from luthier.clicks.accumulators import MetricsAccumulator
from luthier.clicks.calculators import MetricValue
from luthier.clicks.parameters import FineTuningParams
from luthier.errors import Conflict, IllegalTransition, MissingExtra, NotFound, StoreError
from luthier.store.atomic import new_folder

#: Tags of experiments and runs.
PLUGIN, KIND, BATCH, START, ENDED = (
    f"luthier.{name}" for name in ("plugin", "kind", "batch", "start", "finished")
)
PARAMS, HASH, MODEL = (f"luthier.{name}" for name in ("params", "params_hash", "model"))
INITIAL, ITERATION = "initial", "iteration"

#: Where a run's model is, among its artifacts.
_FOLDER = "model"
_PAGE = 1000


@dataclass(frozen=True)
class FineTuningIteration:
    """What is trained anew at once. run_id: what it starts from, a run or an artifact."""

    batch_id: str
    run_id: str
    plugin_name: str

    def __str__(self) -> str:
        return f"{self.plugin_name} / {self.run_id} / {self.batch_id}"


class MLflowClientWrapper:
    """A connection to MLflow. tracking_uri: of a server, ``http://…``; or of a database,
    ``sqlite:///…``. Raises MissingExtra without MLflow."""

    def __init__(self, tracking_uri: str) -> None:
        try:
            mlflow = import_module("mlflow")
            self.errors = import_module("mlflow.exceptions")
            self.artifacts = import_module("mlflow.store.artifact.artifact_repository_registry")
        except ImportError as error:
            raise MissingExtra("ExperimentsManager", "mlflow") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # stdout is the caller's, who may print JSON
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        self.tracking_uri = tracking_uri
        self.client: Any = mlflow.MlflowClient(tracking_uri=tracking_uri)


class ExperimentsManager:
    """The iterations of one plugin.

    main_metric: what runs are ranked by; is_loss: less of it is better. n_top_runs: how many sets
    of parameters a later iteration takes from earlier ones. accumulators: of metrics that are
    saved. Raises StoreError where MLflow fails.
    """

    def __init__(
        self, tracking_uri: str, main_metric: str, plugin_name: str,
        accumulators: Sequence[MetricsAccumulator] = (), is_loss: bool = False,
        n_top_runs: int = 10, *, wrapper: MLflowClientWrapper | None = None,
    ) -> None:  # fmt: skip
        self._mlflow = wrapper or MLflowClientWrapper(tracking_uri)
        self._client = self._mlflow.client
        self.main_metric, self.is_loss, self.n_top_runs = main_metric, is_loss, n_top_runs
        self.plugin_name = plugin_name
        self._accumulators = {each.name: each for each in accumulators}
        self.iteration: FineTuningIteration | None = None
        self._experiment: str | None = None
        self._run: str | None = None
        self._steps: dict[str, int] = {}

    @classmethod
    def from_wrapper(
        cls, wrapper: MLflowClientWrapper, main_metric: str, plugin_name: str,
        accumulators: Sequence[MetricsAccumulator] = (), is_loss: bool = False,
        n_top_runs: int = 10,
    ) -> ExperimentsManager:  # fmt: skip
        """As the class, over a connection that is there."""
        return cls(
            wrapper.tracking_uri, main_metric, plugin_name, accumulators, is_loss, n_top_runs,
            wrapper=wrapper,
        )  # fmt: skip

    # The initial model

    def has_initial_model(self) -> bool:
        """Whether it was uploaded."""
        return self._initial() is not None

    def upload_initial_model(self, model: Any) -> str:
        """Upload what training starts from, once; the id of its run.

        model: a folder, a model's name, an artifact, ``alias:NAME``, or what can ``save`` itself
        into a folder. Raises Conflict where another model was uploaded before.
        """
        with tempfile.TemporaryDirectory() as aside, self._translated():
            folder = _as_folder(model, Path(aside) / "model")
            digest = _digest(folder)
            experiment = self._experiment_of(f"{self.plugin_name} / {INITIAL}", {KIND: INITIAL})
            found = self._initial()
            if found is None:
                made = self._client.create_run(experiment, run_name=INITIAL)
                self._upload(made.info.run_id, folder, digest)
                self._client.set_terminated(made.info.run_id, "FINISHED")
                found = self._initial()
                assert found is not None
                if found.info.run_id != made.info.run_id:  # another was first
                    self._drop_model(made)
                    self._client.delete_run(made.info.run_id)
        if found.data.tags[MODEL] != digest:
            raise Conflict(
                f"the plugin '{self.plugin_name}' has another initial model already",
                where=f"run {found.info.run_id}",
                hint="give the plugin another name, or remove that run from MLflow",
            )
        return str(found.info.run_id)

    def download_initial_model(self, folder: Path) -> Path:
        """Raises NotFound before it was uploaded."""
        found = self._initial()
        if found is None:
            message = f"the plugin '{self.plugin_name}' has no initial model"
            raise NotFound(message, hint="upload_initial_model")
        return self.download_model(found.info.run_id, folder)

    def _initial(self) -> Any:
        """The run of it: of several that were finished, the first."""
        with self._translated():
            name = f"{self.plugin_name} / {INITIAL}"
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                return None
            runs = [r for r in self._runs(experiment.experiment_id, "FINISHED") if _has_model(r)]
            return min(runs, key=_age, default=None)

    # Iterations

    def set_iteration(self, iteration: FineTuningIteration) -> None:
        """Begin an iteration, or go on with it."""
        tags = {KIND: ITERATION, BATCH: iteration.batch_id, START: iteration.run_id}
        with self._translated():
            self._experiment = self._experiment_of(str(iteration), tags)
        self.iteration, self._run = iteration, None

    def finish_iteration(self) -> None:
        """Raises IllegalTransition without one."""
        with self._translated():
            self._client.set_experiment_tag(self._current_experiment(), ENDED, "true")
        self.iteration = self._experiment = self._run = None

    def get_top_params(self) -> list[FineTuningParams]:
        """The best sets of parameters of the plugin's other iterations, the best first."""
        with self._translated():
            runs = [
                run
                for experiment in self._iterations()
                if experiment.experiment_id != self._experiment
                for run in self._runs(experiment.experiment_id, "FINISHED")
            ]
        best: dict[str, Any] = {}
        for run in self._ranked(runs):
            best.setdefault(run.data.tags[HASH], run)
        texts = [run.data.tags[PARAMS] for run in best.values()][: self.n_top_runs]
        return [FineTuningParams(**json.loads(text)) for text in texts]

    # Runs

    def set_run(self, params: FineTuningParams | Mapping[str, Any]) -> bool:
        """Begin the run of these parameters; True where it was finished before, and need not be
        done again. One that failed, or whose process died, is begun again."""
        if not isinstance(params, FineTuningParams):
            params = FineTuningParams(**params)
        text = json.dumps(params.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        experiment = self._current_experiment()
        self._steps = {}
        for accumulator in self._accumulators.values():
            accumulator.clear()
        with self._translated():
            found = self._of_hash(experiment, digest)
            if found is None:
                tags = {HASH: digest, PARAMS: text}
                made = self._client.create_run(experiment, run_name=digest[:12], tags=tags)
                for name, value in params.model_dump(mode="json").items():
                    self._client.log_param(made.info.run_id, name, value)
                found = self._of_hash(experiment, digest)
                assert found is not None
                if found.info.run_id != made.info.run_id:  # another was first
                    self._client.delete_run(made.info.run_id)
            self._run = str(found.info.run_id)
            if found.info.status == "FINISHED":
                return True
            self._client.update_run(self._run, status="RUNNING")
            return False

    def finish_run(self, as_failed: bool = False) -> None:
        """Raises IllegalTransition without a run."""
        with self._translated():
            status = "FAILED" if as_failed else "FINISHED"
            self._client.set_terminated(self._current_run(), status)
        self._run = None

    def save_metric(self, metric: MetricValue) -> None:
        """A value of a metric of the current run, and what its accumulator makes of it."""
        accumulator = self._accumulators.get(metric.name)
        values = accumulator.accumulate(metric.value) if accumulator is not None else [metric]
        step = self._steps[metric.name] = self._steps.get(metric.name, -1) + 1
        with self._translated():
            for value in values:
                if math.isfinite(value.value):
                    self._client.log_metric(self._current_run(), value.name, value.value, step=step)

    def get_quality(self) -> float | None:
        """The main metric of the current run; None before it was saved."""
        with self._translated():
            return self._quality(self._client.get_run(self._current_run()))

    def save_model(self, model: Any, best_only: bool = True) -> bool:
        """Upload the current run's model; with ``best_only`` unless another run of the iteration
        is better, and then those of poorer runs are deleted. Whether it was uploaded."""
        run_id = self._current_run()
        with tempfile.TemporaryDirectory() as aside, self._translated():
            run = self._client.get_run(run_id)
            others = [r for r in self._runs(self._current_experiment()) if _has_model(r)]
            if best_only:
                if self._quality(run) is None:
                    message = f"the run has no '{self.main_metric}' yet"
                    raise IllegalTransition(message, where=run_id, hint="save_metric before")
                ranked = self._ranked([run, *(r for r in others if r.info.run_id != run_id)])
                if ranked[0].info.run_id != run_id:
                    return False
            folder = _as_folder(model, Path(aside) / "model")
            self._upload(run_id, folder, _digest(folder))
        if best_only:
            self.delete_poor_models()
        return True

    def delete_poor_models(self, keep: int = 1) -> list[str]:
        """Delete the models of all runs of the iteration but the best; the runs stay. Whose."""
        with self._translated():
            runs = [r for r in self._runs(self._current_experiment()) if _has_model(r)]
            kept = {r.info.run_id for r in self._ranked(runs)[:keep]}
            poor = [r for r in runs if r.info.run_id not in kept]
            for run in poor:
                self._drop_model(run)
        return [str(run.info.run_id) for run in poor]

    def get_best_run_id(self) -> str | None:
        """The best finished run of the iteration that has its model; None without."""
        with self._translated():
            runs = self._runs(self._current_experiment(), "FINISHED")
        ranked = self._ranked([run for run in runs if _has_model(run)])
        return str(ranked[0].info.run_id) if ranked else None

    def download_model(self, run_id: str, folder: Path) -> Path:
        """The model of a run, as a folder that is whole or not there. Raises NotFound."""
        with self._translated():
            if not _has_model(self._client.get_run(run_id)):
                raise NotFound("the run has no model", where=run_id)
            with new_folder(folder) as aside:
                self._client.download_artifacts(run_id, _FOLDER, str(aside))
                for path in (aside / _FOLDER).iterdir():
                    path.rename(aside / path.name)
                (aside / _FOLDER).rmdir()
        return folder

    # MLflow

    def _experiment_of(self, name: str, tags: Mapping[str, str]) -> str:
        """The experiment of a name, made if it is new, brought back if it was deleted."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                made = self._client.create_experiment(name, tags={PLUGIN: self.plugin_name, **tags})
                return str(made)
            except self._mlflow.errors.MlflowException:
                found = self._client.get_experiment_by_name(name)  # another was first
                if found is None:
                    raise
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _iterations(self) -> Iterator[Any]:
        token = None
        while True:
            page = self._client.search_experiments(max_results=_PAGE, page_token=token)
            for experiment in page:
                tags = experiment.tags
                if tags.get(PLUGIN) == self.plugin_name and tags.get(KIND) == ITERATION:
                    yield experiment
            token = page.token
            if not token:
                return

    def _runs(self, experiment: str, status: str | None = None) -> list[Any]:
        found: list[Any] = []
        token = None
        while True:
            words = {"max_results": _PAGE, "page_token": token}
            where = f"attributes.status = '{status}'" if status else ""
            page = self._client.search_runs([experiment], where, **words)
            found += page
            token = page.token
            if not token:
                return found

    def _of_hash(self, experiment: str, digest: str) -> Any:
        same = [run for run in self._runs(experiment) if run.data.tags.get(HASH) == digest]
        done = [run for run in same if run.info.status == "FINISHED"]
        return min(done or same, key=_age, default=None)

    def _ranked(self, runs: Sequence[Any]) -> list[Any]:
        """Runs that were measured, the best first; of equal ones the first."""
        sign = 1.0 if self.is_loss else -1.0
        known = [(run, quality) for run in runs if (quality := self._quality(run)) is not None]
        return [run for run, quality in sorted(known, key=lambda p: (sign * p[1], _age(p[0])))]

    def _quality(self, run: Any) -> float | None:
        value = run.data.metrics.get(self.main_metric)
        return None if value is None else float(value)

    def _upload(self, run_id: str, folder: Path, digest: str) -> None:
        self._client.log_artifacts(run_id, str(folder), _FOLDER)
        self._client.set_tag(run_id, MODEL, digest)  # from now on it is there

    def _drop_model(self, run: Any) -> None:
        self._client.set_tag(run.info.run_id, MODEL, "")
        uri, tracking = run.info.artifact_uri, self._mlflow.tracking_uri
        place = self._mlflow.artifacts.get_artifact_repository(uri, tracking_uri=tracking)
        place.delete_artifacts(_FOLDER)

    def _current_experiment(self) -> str:
        if self._experiment is None:
            raise IllegalTransition("no iteration was begun", hint="set_iteration")
        return self._experiment

    def _current_run(self) -> str:
        if self._run is None:
            raise IllegalTransition("no run was begun", hint="set_run")
        return self._run

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except self._mlflow.errors.MlflowException as error:
            where = self._mlflow.tracking_uri.rpartition("@")[2]
            raise StoreError(f"MLflow failed: {error}", where=where) from error


def _has_model(run: Any) -> bool:
    return bool(run.data.tags.get(MODEL))


def _age(run: Any) -> tuple[int, str]:
    return run.info.start_time, run.info.run_id


def _as_folder(model: Any, aside: Path) -> Path:
    """The folder of a model; one that is in memory is saved aside."""
    save = getattr(model, "save", None) or getattr(getattr(model, "model", None), "save", None)
    if save is None:
        from luthier.inference import find_model

        place = find_model(str(getattr(model, "artifact_id", model)))
        folder = place.folder()
        if folder is not None:
            return folder
        save = getattr(place.open().model, "save")  # noqa: B009
    save(str(aside))
    return aside


def _digest(folder: Path) -> str:
    from luthier.inference import folder_id

    return folder_id(folder)
