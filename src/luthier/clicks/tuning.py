"""From a log to a better encoder, proved better: read, clean, split, debias, train, compare.

``tune`` goes the whole way from files; ``run`` trains what a ``FineTuningBuilder`` puts together.
Training is a run of the queue, in a worker's process; vectors are made in a process of their own:
what models take of memory is given back when those end.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import api
from luthier.clicks.builder import FineTuningBuilder, RankingData, ranking_data
from luthier.clicks.cleaning import clean as cleaned
from luthier.clicks.converters import ClickstreamSessionConverter, TextQueryRetriever
from luthier.clicks.defaults import Rows, default_settings, given_params
from luthier.clicks.items_sets import TextItemSetManager
from luthier.clicks.iterations import best_params, starting_model
from luthier.clicks.loaders import as_loader
from luthier.clicks.parameters import FineTuningParams
from luthier.clicks.preparing import Debiasing, estimate, prepare
from luthier.clicks.proof import prove
from luthier.clicks.reading import Say, quiet, read_catalogue, read_sessions
from luthier.clicks.scoring import Model
from luthier.clicks.sessions import Sessions
from luthier.clicks.settings import FineTuningSettings
from luthier.clicks.sides import all_queries, sides
from luthier.clicks.splits import By, split_sessions
from luthier.doors.clicks import clicks_spec, data_variants
from luthier.errors import DataError, Problem, SpecError, TrainingError
from luthier.runs import connection

if TYPE_CHECKING:
    from luthier.runs.client import Run
    from luthier.runs.connection import Home
    from luthier.spec import JobSpec


@dataclass(frozen=True)
class Tuned:
    """What came of a training on clicks.

    metrics: everything that metrics.json holds: verdict, reason, before, after and difference
    with intervals, off_policy, shifts of distances, accumulated, overlap, propensities, notes.
    folder: metrics.json, report.json and report.html. promoted: the alias that stands for the
    model now, where it was better and that was asked for.
    """

    run: Run
    artifact_id: str
    verdict: str
    metrics: dict[str, Any]
    folder: Path
    promoted: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {"run": self.run.name, "artifact_id": self.artifact_id, "promoted": self.promoted,
                "folder": str(self.folder), **self.metrics}  # fmt: skip


def tune(
    model: str,
    sessions: Sessions | str | Path | Sequence[Mapping[str, Any]],
    items: Any,
    *,
    objective: str = "ips",
    loss: str | None = None,
    rows: Rows | None = None,
    params: Mapping[str, Any] | FineTuningParams | None = None,
    settings: FineTuningSettings | None = None,
    trials: int | None = None,
    split: By = "query",
    test_size: float = 0.2,
    validation: float = 0.1,
    clean: bool = True,
    clip: float = 0.1,
    format: str | None = None,
    events: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    id_field: str | None = None,
    item_field: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    limit: int = 10,
    seed: int = 42,
    device: str = "auto",
    promote_to: str | None = None,
    run_name: str | None = None,
    experiment_name: str | None = None,
    after: Sequence[str] = (),
    progress: bool = False,
    say: Say = quiet,
) -> Tuned:
    """Tune an encoder on a log of searches, and compare it with what it was.

    Args:
        model: a name of ``luthier.list_models()``, a hub id, a folder; a run, an artifact or
            ``alias:NAME`` to go on from.
        sessions: a log in any format that ``import_log`` reads, a file of sessions (.arrow),
            ``Sessions``, or a list of sessions with events.
        items: the catalogue: a file or URL (JSONL, CSV, Parquet), rows, id → text, or a loader.
        objective: "ips" weighs clicks by how seldom their position is seen, estimated from the
            log (where it cannot be, that is said, and clicks count the same); "dr" trains on
            doubly robust estimates of the relevance instead of clicks; "naive" does neither.
        loss, epochs, batch_size, rows: those of ``FineTuningSettings``, where ``settings`` are not
            given. rows="queries" is for queries that come again and again.
        params: ``FineTuningParams``, or some of them by name; choices make it a search.
        trials: of the search; 10 where there is one.
        split: hold out by "query" or by "time". test_size: the share that the verdict is of.
        validation: the share of the rest that early stopping and a search go by.
        clean: drop repetitions, bots and bursts. clip: the least propensity that is divided by.
        format, events, columns: of the log, as ``import_log`` takes them.
        id_field, item_field: of the catalogue; by known names where they are not said.
        limit: the k of NDCG@k and recall@k.
        promote_to: an alias that stands for the model from then on, if it is better.
        after: earlier searches, whose best parameters are tried first.
        say: told what happens, a line at a time.

    Raises DataError, SpecError, ModelError, TrainingError. The same call again finds the same run.
    """
    words = {"loss": loss, "epochs": epochs, "batch_size": batch_size, "rows": rows}
    if twice := [name for name, value in words.items() if settings and value is not None]:
        raise SpecError([Problem(twice[0], "is said by the settings", "leave it out")])
    settings = settings or default_settings(loss, epochs, batch_size, rows)
    initial = given_params(params, settings)  # what is wrong with them is told before any reading
    found = read_sessions(sessions, format=format, events=events, columns=columns, say=say)
    if clean:
        done = cleaned(found)
        found = done.sessions
        dropped = {reason: count for reason, count in done.dropped.items() if count}
        for reason, count in dropped.items():
            say(f"cleaned: {count:,} sessions left out ({reason})")
    if not len(found):
        raise DataError("no session is left", hint="clean=False keeps what looks like a bot")
    converter = ClickstreamSessionConverter()
    found = converter.queries(found, TextQueryRetriever())
    loader = as_loader(items)
    manager = TextItemSetManager()
    catalogue = read_catalogue(loader, manager, id_field, item_field)
    data = ranking_data(
        split_sessions(found, test_size_ratio=test_size, by=split, seed=seed), catalogue, manager
    )
    builder = FineTuningBuilder(
        fine_tuning_settings=settings,
        initial_params=initial,
        ranking_data=data,
        initial_max_evals=trials,
    )
    return run(
        builder, model=model, objective=objective, clip=clip, validation=validation, limit=limit,
        seed=seed, device=device, promote_to=promote_to, run_name=run_name,
        experiment_name=experiment_name, after=after, progress=progress, say=say,
    )  # fmt: skip


# --- the training ---------------------------------------------------------------------------------


def run(
    builder: FineTuningBuilder,
    *,
    model: str | None = None,
    artifact: str | None = None,
    objective: str = "ips",
    clip: float = 0.1,
    validation: float = 0.1,
    limit: int = 10,
    seed: int = 42,
    device: str = "auto",
    promote_to: str | None = None,
    run_name: str | None = None,
    experiment_name: str | None = None,
    idempotency_key: str | None = None,
    after: Sequence[str] = (),
    progress: bool = False,
    say: Say = quiet,
) -> Tuned:
    """Train what a builder puts together, and compare it with what it started from.

    model, artifact: what training starts from, over what the builder says. after: earlier searches
    by name or id: their best parameters are tried first. The other words are those of ``tune``.
    Called again with the same, it goes on with the same run, or finds it finished. Raises as
    ``tune``.
    """
    home = connection.current()
    data, settings = builder.ranking_data, builder.fine_tuning_settings
    terms = Terms(
        model=model, artifact=artifact, objective=objective, clip=clip, validation=validation,
        limit=limit, seed=seed, device=device, run_name=run_name, experiment_name=experiment_name,
        idempotency_key=idempotency_key, after=tuple(after),
    )  # fmt: skip
    begun = begin(builder, terms, say)
    job, start = begun.run, begun.start
    say(f"training: run {job.name}")
    finish(job, progress)
    if job.spec.search is not None:
        say(_told_of_search(job))
    words = {"objective": objective, "overlap": data.overlap.to_dict(), "split": data.by,
             "propensities": begun.debiasing.to_dict(), "limit": limit}  # fmt: skip
    digest = hashlib.sha256(json.dumps([words, seed, _measured_on(data)]).encode()).hexdigest()
    folder = home.path / "clicks" / "results" / f"{job.id}-{digest[:12]}"
    if not (folder / "metrics.json").is_file():
        say("comparing both models on the searches that were held out")
        queries = all_queries(data.train, data.test)
        tuned = Model(start.name, job.artifact_id, device=start.device)
        both = sides([start, tuned], data, queries, home)
        told = prove(
            data, settings, begun.debiasing, *both, train=begun.train,
            accumulators=builder.accumulators, history=_history(job, home), name=job.name,
            k=limit, seed=seed,
            facts={"model": start.name, "artifact": start.artifact, "objective": objective,
                   "loss": settings.loss_func.name, "split": f"by {data.by}"},
        )  # fmt: skip
        told.save(folder, {**words, "stopped early": _stopped_early(job, settings)})
    metrics = json.loads((folder / "metrics.json").read_text())
    for line in metrics["notes"]:
        say(line)
    promoted = None
    if promote_to is not None and metrics["verdict"] == "better":
        home.aliases.promote(job.artifact_id, name=promote_to, note=f"run {job.name}")
        promoted = promote_to
    return Tuned(job, job.artifact_id, metrics["verdict"], metrics, folder, promoted)


@dataclass(frozen=True)
class Terms:
    """What a training goes by, beside what the builder has; the words of ``run``."""

    model: str | None = None
    artifact: str | None = None
    objective: str = "ips"
    clip: float = 0.1
    validation: float = 0.1
    limit: int = 10
    seed: int = 42
    device: str = "auto"
    run_name: str | None = None
    experiment_name: str | None = None
    idempotency_key: str | None = None
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Begun:
    """A training that is in the queue. start: what it started from. train: the sessions without
    those that validate."""

    run: Run
    start: Model
    debiasing: Debiasing
    train: Sessions


def begin(builder: FineTuningBuilder, terms: Terms | None = None, say: Say = quiet) -> Begun:
    """The first half of ``run``: make the data, check the job, and queue it."""
    home, terms = connection.current(), terms or Terms()
    name, artifact = starting_model(
        terms.model or builder.model or "", terms.artifact or builder.artifact, home
    )
    data, settings, params = (
        builder.ranking_data, builder.fine_tuning_settings, builder.initial_params
    )  # fmt: skip
    search = _search_words(builder, params)
    say(_told_of_split(data))
    debiasing = estimate(data.train, terms.objective, terms.clip)
    say(_told_of_positions(debiasing))
    start = Model(name, artifact, device=None if terms.device == "auto" else terms.device)
    before = None
    if settings.mined_negatives or _needs_scores(params):
        queries = all_queries(data.train, data.test)
        (before,) = sides([start], data, queries, home)
    found = prepare(
        data, data_variants(params), settings, debiasing, home, validation=terms.validation,
        seed=terms.seed, before=before,
    )  # fmt: skip
    for line in found.notes:
        say(line)
    spec = clicks_spec(
        name, params, settings, found.data, artifact=artifact, seed=terms.seed,
        device=terms.device, limit=terms.limit,
        weighting="positive" if debiasing.propensities and settings.rows == "sessions" else None,
        search=search, initial=[*builder.starting_params, *best_params(terms.after, home)],
    )  # fmt: skip
    return Begun(_submitted(spec, terms), start, debiasing, found.train)


def _needs_scores(params: Mapping[str, Any] | FineTuningParams) -> bool:
    """Whether some phase of training goes by how far apart the starting model puts a pair."""
    if isinstance(params, FineTuningParams):
        return any(int(kind) not in (10, 11) for kind in params.examples_order)
    return params.get("examples_order", [[11]]) not in ([[11]], [[]], [11], None)


def _search_words(
    builder: FineTuningBuilder, params: Mapping[str, Any] | FineTuningParams
) -> dict[str, Any]:
    if isinstance(params, FineTuningParams):
        if builder.initial_max_evals not in (None, 1):
            hint = "give choices: {'query_lr': [1e-5, 1e-4]}"
            raise SpecError([Problem("trials", "there is nothing to search", hint)])
        return {}
    return {"max_trials": builder.initial_max_evals or 10, "metrics": ("ndcg_at_k",)}


def _submitted(spec: JobSpec, terms: Terms) -> Run:
    """The run of this job: the one that is there, gone on with where it had failed, or a new
    one."""
    if spec.search is not None and all(
        c.kind != "evaluation" for c in spec.callbacks
    ):  # fmt: skip
        hint = "a longer log, or validation=0.2"
        raise SpecError([Problem("trials", "there are no searches to validate trials on", hint)])
    digest = hashlib.sha256(f"{spec.id} {terms.run_name}".encode()).hexdigest()
    job = api.submit(
        spec, run_name=terms.run_name, experiment_name=terms.experiment_name or "clicks",
        idempotency_key=terms.idempotency_key or f"clicks-{digest[:32]}",
        description="tuned on clicks",
    )  # fmt: skip
    if job.record().status in ("FAILED", "CANCELLED"):
        job.resume()
    return job


def finish(job: Run, progress: bool = False) -> None:
    """Stay until a run has ended well. Raises TrainingError."""
    job.wait(progress=progress)
    if job.record().status == "CANCELLED":
        raise TrainingError("the run was cancelled", where=f"run {job.name}",
                            hint="the same call again goes on with it")  # fmt: skip


def _history(job: Run, home: Home) -> dict[str, Any]:
    file = home.store.artifact(job.artifact_id) / "luthier" / "history.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def _stopped_early(job: Run, settings: FineTuningSettings) -> bool | None:
    """Whether it stopped early; told where ``verbose`` asks for it."""
    if settings.early_stopping is None or not settings.early_stopping.verbose:
        return None
    return any(
        event.data.get("message", "").startswith("stopping early")
        for event in job.events(limit=100_000)
        if event.kind == "log"
    )


def _measured_on(data: RankingData) -> dict[str, Any]:
    """What a comparison hangs on, as far as it is not the run's: the searches that were held out,
    and the catalogue."""
    digest = hashlib.sha256()
    for session, query in zip(data.test.ids, data.test.query_codes.tolist(), strict=True):
        digest.update(f"{session}\0{query}\0".encode())
    for name, text in data.catalogue.items():
        digest.update(f"{name}\0{len(text)}\0{text}".encode("utf-8", "surrogatepass"))
    return {"test": digest.hexdigest(), "aggregation": data.aggregation}


# --- what is told ---------------------------------------------------------------------------------


def _told_of_split(data: RankingData) -> str:
    shared = ", ".join(
        f"{known:,} of {total:,} {name.replace('_', ' ')}"
        for name, (known, total) in vars(data.overlap).items()
        if total
    )
    return (f"split by {data.by}: {len(data.train):,} sessions to train, {len(data.test):,} held "
            f"out; of what is held out, training knows {shared}")  # fmt: skip


def _told_of_positions(debiasing: Debiasing) -> str:
    found = debiasing.propensities
    if found is None:
        return f"clicks are not weighed by position: {debiasing.why}"
    seen = ", ".join(f"{value:.2f}" for value in found.values[:10].tolist())
    return f"seen at positions 1, 2, …: {seen} ({found.method}, clipped at {debiasing.clip:g})"


def _told_of_search(job: Run) -> str:
    told = job.metrics().get("search", {})
    best = told.get("best") or {}
    counts = told.get("trials", {})
    score = next(iter((best.get("scores") or {}).values()), math.nan)
    return (f"search: {counts.get('complete', 0)} of {counts.get('all', 0)} trials complete; the "
            f"best has {score:.4f} on the searches that validate")  # fmt: skip
