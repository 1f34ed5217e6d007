"""For code that is written against Lightning's ``Trainer`` and Embedding Studio's single steps:
the same calls, each a run of the queue."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier import admission, api
from luthier.clicks.builder import FineTuningBuilder, RankingData
from luthier.clicks.calculating import of_sources
from luthier.clicks.converters import QueryRetriever
from luthier.clicks.iterations import starting_model
from luthier.clicks.parameters import FineTuningParams
from luthier.clicks.settings import EarlyStopping, FineTuningSettings
from luthier.clicks.tuning import begin, finish
from luthier.doors.clicks import ClickData, Part, clicks_spec
from luthier.errors import IllegalTransition, Problem, SpecError
from luthier.runs import connection
from luthier.runs.client import Run
from luthier.spec import Source


class RankingDataLoader:
    """Rankings in batches: rows with query, items and relevance, or a file of them.

    ``len`` is the number of batches, as of torch's loaders.
    """

    def __init__(
        self, rankings: Iterable[Mapping[str, Any]] | str | Path, batch_size: int = 1
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise SpecError([Problem("batch_size", f"is 1 at least, not {batch_size!r}")])
        self.batch_size = batch_size
        home = connection.current()
        data = rankings if isinstance(rankings, str | Path) else list(rankings)
        self.source: Source = admission.to_source(data, home)
        self.rows = _rows(self.source, home)

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch_size)


def _rows(source: Source, home: connection.Home) -> int:
    from luthier.data import load_dataset
    from luthier.spec import CSVOptions
    from luthier.store.urls import local_file

    path = local_file(source.uri, home.cache, home.store.blob)
    found = load_dataset(path, CSVOptions(), home.cache, name=source.uri)
    if found.form != "rankings":
        hint = "rows with query, items and relevance"
        raise SpecError([Problem("rankings", f"the data is {found.form}", hint)])
    return len(found)


class FineTuner:
    """A model with its settings and parameters: what ``Trainer.fit`` trains. After it ``run``,
    ``artifact_id`` and ``metrics`` say what came of it; ``notes``, which calculators did not go
    with it, and why."""

    def __init__(
        self,
        model: str,
        settings: FineTuningSettings,
        params: FineTuningParams | Mapping[str, Any],
        *,
        artifact: str | None = None,
        seed: int = 42,
    ) -> None:
        self.model, self.artifact, self.settings, self.seed = model, artifact, settings, seed
        self.params = params if isinstance(params, FineTuningParams) else FineTuningParams(**params)
        self.device = "auto"
        self.notes: list[str] = []
        self._run: Run | None = None

    def to(self, device: Any) -> FineTuner:
        """Where it trains: a ``torch.device`` or the name of one."""
        self.device = str(device)
        return self

    @property
    def run(self) -> Run:
        """The run that trained it. Raises IllegalTransition before."""
        if self._run is None:
            raise IllegalTransition("it has not been trained", hint="trainer.fit(fine_tuner, …)")
        return self._run

    @property
    def artifact_id(self) -> str:
        """The tuned model."""
        return self.run.artifact_id

    @property
    def metrics(self) -> dict[str, Any]:
        """What was measured."""
        return self.run.metrics()


class Trainer:
    """Lightning's words for a training.

    max_epochs: over the settings' num_epochs. callbacks: an ``EarlyStopping``. val_check_interval:
    batches between evaluations, or a share of an epoch below 1; None or 0: as the settings say.
    """

    def __init__(
        self,
        max_epochs: int | None = None,
        callbacks: Sequence[EarlyStopping] | None = None,
        val_check_interval: float | None = None,
    ) -> None:
        problems = []
        for callback in callbacks or ():
            if not isinstance(callback, EarlyStopping):
                name = type(callback).__name__
                hint = "luthier.clicks.EarlyStopping; others are callbacks of luthier.fit"
                problems.append(Problem("callbacks", f"no {name} here", hint))
        if len(callbacks or ()) > 1:
            problems.append(Problem("callbacks", "a second EarlyStopping"))
        interval = val_check_interval
        if interval is not None and (isinstance(interval, bool) or interval < 0):
            problems.append(Problem("val_check_interval", f"is not negative, not {interval!r}"))
        if problems:
            raise SpecError(problems)
        self.max_epochs, self.val_check_interval = max_epochs, interval
        self.callbacks = tuple(callbacks or ())

    def fit(
        self,
        model: FineTuner,
        train_dataloaders: RankingDataLoader,
        val_dataloaders: RankingDataLoader | None = None,
    ) -> Run:
        """Train in a worker's process, and stay until it has ended. Raises SpecError,
        TrainingError."""
        home = connection.current()
        settings = self._settings(model.settings, train_dataloaders)
        name, artifact = starting_model(model.model, model.artifact, home)
        variant = model.params.not_irrelevant_only, model.params.negative_downsampling
        parts = {variant: Part(train_dataloaders.source, train_dataloaders.rows)}
        held_out = val_dataloaders.source if val_dataloaders is not None else None
        scored = {"train": train_dataloaders.source}
        if held_out is not None:
            scored["test"] = held_out
        model.notes = []
        data = ClickData(
            parts, eval=held_out, calculated=of_sources(settings, scored, home, model.notes)
        )
        spec = clicks_spec(
            name, model.params, settings, data, artifact=artifact, seed=model.seed,
            device=model.device,
        )  # fmt: skip
        interval = self.val_check_interval or 0
        if interval >= 1:
            whole = interval >= len(train_dataloaders)
            steps = max(1, int(interval) // settings.gradient_accumulation_steps)
            spec = spec.changed(eval_steps=None if whole else steps)
        job = api.submit(spec, experiment_name="clicks")
        finish(job)
        model._run = job
        return job

    def _settings(
        self, settings: FineTuningSettings, train: RankingDataLoader
    ) -> FineTuningSettings:
        changes: dict[str, Any] = {"batch_size": train.batch_size}
        if self.max_epochs is not None:
            changes["num_epochs"] = self.max_epochs
        if self.callbacks:
            changes["early_stopping"] = self.callbacks[0]
        if self.val_check_interval and self.val_check_interval < 1:
            changes["test_each_n_inputs"] = self.val_check_interval
        given = {name: getattr(settings, name) for name in type(settings).model_fields}
        return FineTuningSettings(**{**given, **changes})


def _finetune_embedding_model_one_step(
    initial_model_path: str,
    settings: FineTuningSettings,
    ranking_data: RankingData,
    query_retriever: QueryRetriever | None,
    fine_tuning_params: FineTuningParams | Mapping[str, Any],
    tracker: Any = None,
) -> Run:
    """One training with one set of parameters, to its end.

    query_retriever: the queries of ranking data are texts already; it has no more to say. tracker:
    a function, called with the parameters and the metrics. Raises as ``tuning.run``.
    """
    params = fine_tuning_params
    if not isinstance(params, FineTuningParams):
        params = FineTuningParams(**params)
    builder = FineTuningBuilder(settings, params, ranking_data, model=initial_model_path)
    job = begin(builder).run
    finish(job)
    if tracker is not None:
        if not callable(tracker):
            message = "is a function of parameters and metrics, or None"
            raise SpecError([Problem("tracker", message)])
        tracker(params.model_dump(), job.metrics())
    return job


def _finetune_embedding_model_one_step_hyperopt(
    initial_model_path: str,
    settings: FineTuningSettings,
    ranking_data: RankingData,
    query_retriever: QueryRetriever | None,
    fine_tuning_params: Mapping[str, Any],
    tracker: Any = None,
) -> float:
    """The same as a loss for ``fmin``: 1 - nDCG on the searches that validate."""
    job = _finetune_embedding_model_one_step(
        initial_model_path, settings, ranking_data, query_retriever, fine_tuning_params, tracker
    )
    after = job.metrics().get("after", {})
    if "ndcg_at_k" not in after:
        hint = "a longer log: a tenth of its training sessions validates"
        raise SpecError([Problem("ranking_data", "there is nothing to validate on", hint)])
    return 1.0 - float(after["ndcg_at_k"])
