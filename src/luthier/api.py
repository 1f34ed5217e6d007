"""The public functions: fit, and everything around runs and experiments."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

from luthier import admission
from luthier.callback import EvaluationCallback
from luthier.doors.fit import fit_spec
from luthier.doors.trainer import trainer_words
from luthier.errors import LuthierError, Problem, SpecError
from luthier.runs import connection
from luthier.runs.client import Experiment, Run
from luthier.runs.connection import connect
from luthier.spec import CSVOptions, JobSpec, parse_spec

if TYPE_CHECKING:
    from luthier.runs.connection import Home

__all__ = [
    "connect",
    "create_experiment",
    "delete_experiment",
    "delete_experiments",
    "delete_run",
    "delete_runs",
    "fit",
    "get_experiment",
    "get_run",
    "list_experiments",
    "list_runs",
    "preflight",
    "submit",
]


def fit(
    model: str,
    train_data: Any,
    eval_data: Any = None,
    val_split: float = 0.0,
    model_artifact: str | None = None,
    run_name: str | None = None,
    description: str | None = None,
    experiment_name: str | None = None,
    model_options: Mapping[str, Any] | None = None,
    loss: str = "TripletMarginLoss",
    loss_options: Mapping[str, Any] | None = None,
    miner: str | None = None,
    miner_options: Mapping[str, Any] | None = None,
    optimizer: str = "Adam",
    optimizer_options: Mapping[str, Any] | None = None,
    learning_rate: float | None = None,
    epochs: float = 5,
    batch_size: int | None = None,
    callbacks: Sequence[Any] | None = None,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    freeze: bool = False,
    output_dim: int | None = None,
    device: str = "auto",
    num_workers: int = 4,
    to_onnx: bool = False,
    csv_options: CSVOptions | Mapping[str, Any] | None = None,
    public: bool = False,
    num_items_per_class: int = 4,
    sampler: Literal["auto", "class", "random"] = "auto",
    loss_optimizer: str | None = None,
    loss_optimizer_options: Mapping[str, Any] | None = None,
    scheduler_step: Literal["batch", "epoch"] | None = None,
    *,
    search: Mapping[str, Any] | str | None = None,
    update: Mapping[str, Any] | str | bool | None = None,
    probe_data: Any = None,
    args: Any = None,
    wait: bool = False,
    idempotency_key: str | None = None,
    **training: Any,
) -> Run:
    """Tune a model on data. Returns at once, with the run queued.

    Args:
        model: a name of ``luthier.list_models()``, a hub id, a folder, or ``alias:production``.
        train_data: a CSV, JSONL, Parquet or Arrow file or URL, a ``datasets.Dataset``, a list
            of dicts, or a ``DocumentArray``. Pairs, triplets, scored pairs or labelled texts.
        eval_data: the same, to prove the result on; or give ``val_split``.
        model_artifact: start from the artifact of an earlier run, by id or ``alias:production``.
        learning_rate: default 2e-5; 1e-3 with ``freeze=True``.
        batch_size: rows a step; None finds the largest that fits in memory.
        callbacks: from ``luthier.callback``.
        search: ranges by word, and the settings of the search; or "default". See docs/search.md.
        update: learn on without forgetting: an updater by name, or ``{"updater": "DER",
            "memory_size": 500, …}``; True: the recommended one. See docs/continual.md.
        probe_data: rows that an update is scored on before and after, in the form of
            ``eval_data``: what the model must never unlearn (``probe_budget``).
        args: ``luthier.TrainingArguments`` instead of the words for how to train.
        wait: stay, show progress, and return the finished run. Ctrl-C leaves it running.
        idempotency_key: submitting the same key again returns the same run.
        training: any other field of the spec's training part by its name, e.g. ``max_steps``;
            ``task`` and how its rows are read; ``lora_r`` and its kin; fields of an update.

    Raises:
        SpecError: with every problem of the job, before anything is queued.
        DataError: when the data is missing or its first rows are bad.
        Conflict: the run's name or key is taken by another job.
    """
    words = dict(locals())
    if words.pop("args") is not None:
        words |= _said_by(args, words)
        run_name = words["run_name"]
    for name in ("run_name", "description", "experiment_name", "wait", "idempotency_key"):
        words.pop(name)
    words |= words.pop("training")
    home = connection.current()
    task = str(words.get("task", "embedding"))
    words["train_data"] = admission.to_source(train_data, home, task)
    for name, data in (("eval_data", eval_data), ("probe_data", probe_data)):
        if data is not None:
            words[name] = admission.to_source(data, home, task)
    words["callbacks"] = [_callback(c, home) for c in words["callbacks"] or ()]
    if isinstance(model_artifact, str):
        words["model_artifact"] = home.find_artifact(model_artifact)
    with all_problems():
        spec = fit_spec(**words)
    run = submit(
        spec,
        run_name=run_name,
        description=description,
        experiment_name=experiment_name,
        idempotency_key=idempotency_key,
    )
    return run.wait() if wait else run


def _said_by(args: Any, words: Mapping[str, Any]) -> dict[str, Any]:
    """The words of ``fit`` that training arguments are. Raises SpecError."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(args)}
    plain = type(args)(output_dir=args.output_dir)
    defaults = {name: getattr(plain, name) for name in values}
    found = trainer_words(values, defaults, words["callbacks"] or ())
    parameters = inspect.signature(fit).parameters
    own = {name: value for name, value in found.items() if name in parameters}
    more = {name: value for name, value in found.items() if name not in parameters}
    given = {name for name in own if words[name] != parameters[name].default}
    given |= set(words["training"]) & set(more)
    if words["run_name"]:
        own["run_name"] = words["run_name"]
    twice = sorted(given - {"callbacks", "run_name"})
    if twice:
        raise SpecError([Problem(name, "given twice: args says it too") for name in twice])
    return own | {"training": words["training"] | more}


def submit(
    spec: JobSpec | Mapping[str, Any],
    *,
    run_name: str | None = None,
    description: str | None = None,
    experiment_name: str | None = None,
    idempotency_key: str | None = None,
) -> Run:
    """Check a spec, queue it, and see to it that a worker is there. Raises as ``fit``."""
    spec = spec if isinstance(spec, JobSpec) else parse_spec(spec)
    home = connection.current()
    spec = admission.located(admission.unaliased(spec, home))
    admission.refuse(preflight(spec))
    spec = admission.named(spec, home)
    return home.submit(
        spec,
        run_name=run_name,
        description=description,
        experiment_name=experiment_name,
        idempotency_key=idempotency_key,
    )


def preflight(spec: JobSpec) -> list[Problem]:
    """What is wrong with a job, as a list of problems; empty when it can be queued.

    Raises DataError when its data is missing or the first rows are bad.
    """
    home = connection.current()
    spec = admission.unaliased(spec, home)
    form = None
    for source in (spec.data.probe, spec.data.eval, spec.data.train):
        if source is not None:
            form = admission.form_of(source, spec, home)
    devices = home.ledger.devices() or admission.this_machine()
    return admission.check(spec, form, devices)


@contextmanager
def all_problems() -> Iterator[None]:
    """Let a SpecError leave with the problems of the rest of the job as well, so that nobody
    mends one line only to be told of the next."""
    try:
        yield
    except SpecError as error:
        more: list[Problem] = []
        if error.partial is not None:
            with suppress(LuthierError):  # its data may be what is wrong
                more = preflight(error.partial)
        fields = {problem.field for problem in error.problems}
        more = [problem for problem in more if problem.field not in fields]
        raise SpecError([*error.problems, *more], error.partial) from None


def _callback(callback: Any, home: Home) -> Any:
    if isinstance(callback, EvaluationCallback):
        return callback.spec(lambda data: admission.to_source(data, home))
    return callback


def create_experiment(name: str = "default", description: str | None = None) -> Experiment:
    """The experiment of that name, made if it is new."""
    return connection.current().create_experiment(name, description)


def get_experiment(name: str) -> Experiment:
    """Raises NotFound."""
    return connection.current().get_experiment(name)


def list_experiments(page: int = 1, size: int = 50) -> list[Experiment]:
    """Experiments, the newest first."""
    return connection.current().list_experiments(page, size)


def delete_experiment(name: str) -> None:
    """Delete an experiment and its runs. Raises NotFound."""
    connection.current().delete_experiment(name)


def delete_experiments() -> None:
    """Delete all experiments and their runs."""
    connection.current().delete_experiments()


def get_run(run_name: str, experiment_name: str | None = None) -> Run:
    """A run by name or id. Raises NotFound."""
    return connection.current().get_run(run_name, experiment_name)


def list_runs(experiment_name: str | None = None, page: int = 1, size: int = 50) -> list[Run]:
    """Runs, the newest first."""
    return connection.current().list_runs(experiment_name, page, size)


def delete_run(run_name: str, experiment_name: str | None = None) -> None:
    """Delete a run that is not being worked on. Raises NotFound, IllegalTransition."""
    connection.current().delete_run(run_name, experiment_name)


def delete_runs(experiment_name: str | None = None) -> None:
    """Delete all runs of an experiment."""
    connection.current().delete_runs(experiment_name)
