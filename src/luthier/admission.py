"""Admission: what is looked at before a run is promised, and where its data will be found."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.engine import cards as engine_cards
from luthier.engine import decisions
from luthier.engine.ranking_problems import problems as ranking_problems
from luthier.errors import DataError, Problem, SpecError, nearest
from luthier.models import catalog
from luthier.objectives.problems import problems as objective_problems
from luthier.spec import EvaluationCallback, Form, JobSpec, Source
from luthier.tasks.problems import problems as task_problems
from luthier.updaters.problems import problems as update_problems
from luthier.updaters.problems import program_problems

if TYPE_CHECKING:
    from luthier.runs.connection import Home

#: In ``warm_start``: the searches that led to the state that an update starts from.
OF_STATE = "of the state"

#: Rows that are read at submit to learn the form of the data; the worker reads them all.
_HEAD_ROWS = 1000


def to_source(data: Any, home: Home, task: str = "embedding") -> Source:
    """Where a run will find this data.

    A path or URL is named (a local file with the hash of its content); anything in memory is
    put into the store as Arrow. Raises DataError when a file is not there or data in memory
    has no form that we know.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        text = os.fspath(data)
        if "://" in text or text.startswith("blob:"):
            return Source(uri=text)
        return to_file_source(Path(text))
    from luthier.data import to_arrow
    from luthier.data.raw import raw_to_arrow

    write = to_arrow if task == "embedding" else raw_to_arrow
    with tempfile.TemporaryDirectory(dir=home.scratch()) as folder:
        file = Path(folder) / "data.arrow"
        write(data, file)
        sha256 = home.store.put_blob(file)
    return Source(uri=f"blob:{sha256}", sha256=sha256)


def unaliased(spec: JobSpec, home: Home) -> JobSpec:
    """The spec with what ``alias:NAME`` stands for now: a name may move on before the run begins.

    As the model it is the model that this artifact was tuned from, and the artifact. Raises
    NotFound.
    """
    from luthier.runs.aliases import PREFIX

    named, started = spec.model.name, spec.model.artifact
    changes: dict[str, Any] = {}
    if started is not None and started.startswith(PREFIX):
        changes["model.artifact"] = home.find_artifact(started)
    if named.startswith(PREFIX):
        artifact_id = home.find_artifact(named)
        if started is not None and changes.get("model.artifact", started) != artifact_id:
            message = f"{named} and model_artifact are two artifacts"
            raise SpecError([Problem("model", message, "leave model_artifact out")])
        changes["model.artifact"] = artifact_id
        changes["model.name"] = tuned_from(home.store.artifact(artifact_id))
    return spec.changed(**changes) if changes else spec


def tuned_from(folder: Path) -> str:
    """The name of the model that an artifact was made of; its own folder where that says none."""
    file = folder / "luthier" / "spec.json"
    if not file.is_file():
        return str(folder)
    name = json.loads(file.read_text(encoding="utf-8"))["model"]["name"]
    return str(name)


def located(spec: JobSpec) -> JobSpec:
    """The spec with paths that mean the same to a worker, which runs in another folder."""
    folder = Path(spec.model.name).expanduser()
    changes: dict[str, Any] = {}
    if folder.is_dir() and not folder.is_absolute() and catalog.is_path(spec.model.name):
        changes["model.name"] = str(folder.absolute())
    for name in ("train", "eval", "probe"):
        source: Source | None = getattr(spec.data, name)
        if source is not None and "://" not in source.uri:
            path = Path(source.uri)
            if path.is_file() and not path.is_absolute():
                changes[f"data.{name}"] = to_file_source(path)
    for name in ("input_state_url", "output_state_url"):
        url = getattr(spec.update, name)
        if located_url(url) != url:
            changes[name] = located_url(url)
    return spec.changed(**changes) if changes else spec


def located_url(url: str | Path | None) -> str | None:
    """A URL or a folder, which then is a whole path."""
    if url is None or "://" in str(url):
        return None if url is None else str(url)
    return str(Path(url).expanduser().absolute())


def named(spec: JobSpec, home: Home) -> JobSpec:
    """The spec with what its search leaves open: the metric, the ids of the searches that it
    names. Raises NotFound, SpecError."""
    if spec.search is None:
        return spec
    from luthier.search.results import default_metric
    from luthier.search.summary import read_summary

    changes: dict[str, Any] = {}
    if not spec.search.metrics:
        metric = default_metric(spec)
        asked = [c.query_data for c in spec.callbacks if isinstance(c, EvaluationCallback)]
        source = next(iter(asked), spec.data.eval or spec.data.train)
        if spec.task == "embedding" and form_of(source, spec, home) in ("scored", "margin"):
            metric = "spearman"
        changes["metrics"] = (metric,)
    if spec.search.warm_start:
        names = [n for n in spec.search.warm_start if n != OF_STATE]
        found = [home.ledger.find(name).id for name in names]
        if len(names) < len(spec.search.warm_start):
            found += _searches_of(spec.update.input_state_url, home)
        for search_id in found:
            read_summary(home, search_id)  # it has finished
        changes["warm_start"] = tuple(dict.fromkeys(found))
        changes["warm_start_top"] = spec.search.warm_start_top if found else 0
    search = spec.search.model_copy(update=changes)
    return spec.model_copy(update={"search": search})


def _searches_of(url: str | None, home: Home) -> list[str]:
    """The finished searches that led to a state, the newest first; none for a new model."""
    found: list[str] = []
    page = 1
    while url is not None and (runs := home.ledger.runs(status="FINISHED", page=page, size=100)):
        found += [
            run.id
            for run in runs
            if run.spec.search is not None and run.spec.update.output_state_url == url
        ]
        page += 1
    return found


def to_file_source(path: Path) -> Source:
    from luthier.store.bundle import sha256_of

    path = path.expanduser().absolute()
    if path.is_dir():
        raise DataError("is a folder, not a data file", file=str(path))
    if not path.exists():
        folder = path.parent
        names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        hint = nearest(path.name, names) or "give a path, a URL, or the data itself"
        raise DataError("there is no such file", file=str(path), hint=hint)
    try:
        return Source(uri=str(path), sha256=sha256_of(path))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(path)) from error


def form_of(source: Source, spec: JobSpec, home: Home) -> Form | None:
    """The form of the data, from its first rows; None for data that is not on this machine, for
    the rows of a task, which have columns instead, and for what a program makes.

    Raises DataError when already those are bad.
    """
    if "://" in source.uri or spec.task == "program":
        return None
    path = home.store.blob(source.uri[5:]) if source.uri.startswith("blob:") else Path(source.uri)
    csv = spec.data.csv
    head = csv.model_copy(update={"size": min(csv.size or _HEAD_ROWS, _HEAD_ROWS)})
    head = head.model_copy(update={"sampling_rate": None})
    if spec.task == "embedding":
        from luthier.data import load_dataset

        return load_dataset(path, head, home.cache, name=source.uri).form
    from luthier.tasks.look import look_at

    look_at(path, head, spec, name=source.uri)
    return None


def check(spec: JobSpec, form: Form | None, devices: Iterable[str]) -> list[Problem]:
    """Everything that is wrong with a job, as far as it shows without torch.

    devices: kinds of device that workers of this home have (``cpu``, ``cuda``, ``mps``).
    """
    if spec.search is not None:
        from luthier.search.problems import problems as search_problems

        return search_problems(spec, lambda trial: check(trial, form, devices))
    of_kind = (
        [*catalog.problems(spec.model), *objective_problems(spec.objective, form)]
        if spec.task == "embedding"
        else program_problems(spec)
        if spec.task == "program"
        else task_problems(spec)
    )
    found = [
        *of_kind,
        *engine_cards.problems(spec.training),
        *(update_problems(spec) if spec.task != "program" else ()),
        *decisions.problems(spec),
        *ranking_problems(spec, form),
        *_device_problems(spec.training.device, set(devices)),
        *_missing_extras(spec),
    ]
    if spec.objective.loss_optimizer is not None:
        found += engine_cards.optimizer_problems(
            spec.objective.loss_optimizer,
            spec.objective.loss_optimizer_options,
            "loss_optimizer",
            "loss_optimizer_options",
        )
    return found


def _device_problems(device: str, there: set[str]) -> list[Problem]:
    kind = device.partition(":")[0]
    if kind == "auto":
        return []
    if kind not in ("cpu", "cuda", "mps"):
        return [Problem("device", f"'{device}' is not auto, cpu, cuda, cuda:N or mps")]
    if kind not in there:
        has = ", ".join(sorted(there)) or "none"
        message = f"'{device}' was asked for and no worker has it (there is: {has})"
        return [Problem("device", message, "device='auto' takes the best there is")]
    return []


#: What an option needs beside the core: field, packages, extra.
_EXTRAS = {
    "to_onnx": (("onnx", "onnxscript", "onnxruntime"), "onnx"),
    "MLFlowLogger": (("mlflow",), "mlflow"),
    "WandBLogger": (("wandb",), "wandb"),
}


def _missing_extras(spec: JobSpec) -> list[Problem]:
    wanted = [type(callback).__name__ for callback in spec.callbacks]
    wanted += ["to_onnx"] if spec.output.to_onnx else []
    found = []
    for name in wanted:
        packages, extra = _EXTRAS.get(name, ((), ""))
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            message = f"needs {', '.join(missing)}, which is not installed"
            found.append(Problem(name, message, f"pip install 'luthier[{extra}]'"))
    return found


def refuse(problems: list[Problem]) -> None:
    """Raise SpecError if there is any problem."""
    if problems:
        raise SpecError(problems)


def this_machine() -> set[str]:
    """Kinds of device of this machine, told without loading torch."""
    kinds = {"cpu"}
    if any(Path("/dev").glob("nvidia[0-9]*")):
        kinds.add("cuda")
    if os.uname().sysname == "Darwin" and os.uname().machine == "arm64":
        kinds.add("mps")
    return kinds
