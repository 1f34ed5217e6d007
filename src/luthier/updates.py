"""Continual learning as functions: run a job of a configuration file, once or many times.

After Renate: ``run_training_job`` (version 0.5) and ``execute_tuning_job`` (version 0.1) are one
function with two vocabularies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.admission import located_url
from luthier.api import submit
from luthier.doors.config_file import ConfigFile, arguments_of
from luthier.doors.tuning import RENAMED, tuning_spec
from luthier.errors import Problem, SpecError, nearest
from luthier.evaluation.forgetting import forward_transfer
from luthier.evaluation.retention import experiment
from luthier.runs.client import Run
from luthier.store.atomic import write_bytes
from luthier.store.states import head

#: Where data is looked for and put, where nobody says.
WORKING_DIRECTORY = "~/.luthier/tuning"


def run_training_job(
    mode: str | None = None,
    config_space: Mapping[str, Any] | None = None,
    metric: str | None = None,
    backend: str = "local",
    updater: str = "ER",
    max_epochs: int = 50,
    task_id: str = "default_task",
    chunk_id: int | None = None,
    input_state_url: str | Path | None = None,
    output_state_url: str | Path | None = None,
    working_directory: str | Path | None = WORKING_DIRECTORY,
    dependencies: list[str] | None = None,
    config_file: str | Path | None = None,
    requirements_file: str | None = None,
    role: str | None = None,
    instance_type: str = "ml.c5.xlarge",
    instance_count: int = 1,
    instance_max_time: float = 259200,
    max_time: float | None = None,
    max_num_trials_started: int | None = None,
    max_num_trials_completed: int | None = None,
    max_num_trials_finished: int | None = None,
    max_cost: float | None = None,
    n_workers: int = 1,
    scheduler: Any = None,
    scheduler_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "ddp",
    precision: str | int = "32",
    deterministic_trainer: bool = False,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
    job_name: str | None = None,
    *,
    wait: bool = True,
    **more: Any,
) -> Run:
    """Update a model with the data of a chunk, and wait for it.

    Args:
        config_space: hyperparameters: ``optimizer``, ``learning_rate``, ``batch_size``,
            ``memory_size``, the updater's own, and arguments of the configuration file.
        metric, mode: what chooses the best epoch, e.g. "val_accuracy" and "max"; metrics of the
            validation rows have the prefix ``val_``, of the training rows ``train_``.
        updater: see ``luthier.registry.cards("updater")``.
        input_state_url, output_state_url: where the update starts from and where its state is
            committed: folders or s3:// addresses. Without the first a new model is trained.
        config_file: Python with ``model_fn`` and ``data_module_fn``.
        wait: come back when it has ended; else at once.

    Returns the run. Raises SpecError with every problem, before anything runs.
    """
    words = {k: v for k, v in locals().items() if k not in ("more", "wait", "working_directory")}
    for old, new in RENAMED.items():
        if old in more:
            words[new] = more.pop(old) if words[new] is None else words[new]
    if "state_url" in more or "next_state_url" in more:
        raise SpecError([Problem("state_url", "given twice, by its former and its present name")])
    if config_file is None:
        raise SpecError([Problem("config_file", "is needed", "a Python file with model_fn")])
    folder = Path(working_directory or WORKING_DIRECTORY).expanduser().absolute()
    words |= {
        "config_file": read_config_file(config_file),
        "config_space": dict(config_space or {}),
        "input_state_url": located_url(words["input_state_url"]),
        "output_state_url": located_url(words["output_state_url"]),
        "data_path": str(folder / "data"),
    }
    spec = tuning_spec(words.pop("config_space"), **words, **more)
    run = submit(spec, run_name=job_name)
    return run.wait() if wait else run


def execute_tuning_job(*args: Any, **words: Any) -> Run:
    """``run_training_job`` under the name of version 0.1, whose ``batch_size`` counts the new
    rows alone: as many remembered ones go along, or ``memory_batch_size``."""
    space = dict(words.get("config_space") or {})
    if not {"memory_batch_size", "batch_memory_frac"} & set(space):
        space["memory_batch_size"] = space.get("batch_size", 32)
        words["config_space"] = space
    return run_training_job(*args, **words)


def execute_experiment_job(
    backend: str,
    config_file: str | Path,
    config_space: Mapping[str, Any],
    experiment_outputs_url: str | Path,
    mode: str | None = None,
    metric: str | None = None,
    num_updates: int = 1,
    **words: Any,
) -> dict[str, Any]:
    """Update again and again, chunk after chunk, and measure every chunk after each update.

    Args:
        experiment_outputs_url: a new folder, or a place in a bucket (``s3://bucket/prefix``):
            ``state`` in it has the state of the model, and ``experiment.json`` what is returned.
        num_updates: how many chunks, from 0.
        words: further ones of ``run_training_job``.

    Returns ``matrix`` (rows are updates, columns the test rows of chunks, or the validation rows
    of those so far where there are no test rows), ``score`` (accuracy or loss), ``average``,
    ``forgetting``, ``backward_transfer``, ``forward_transfer`` (against a fresh model; of test
    rows), ``seconds`` of each update, and whether each was ``promoted``: the row of one that was
    not is that of the model that stayed. Raises SpecError, and whatever an update raises; those
    before it stay.
    """
    place = _outputs(experiment_outputs_url)
    if num_updates < 1:
        raise SpecError([Problem("num_updates", f"is 1 or more, not {num_updates}")])
    state = f"{place}/state"
    if head(state):
        message = f"{place} has the updates of an experiment already"
        raise SpecError([Problem("experiment_outputs_url", message, "name a new folder")])
    updates: list[dict[str, Any]] = []
    found: dict[str, Any] = {}
    for chunk in range(num_updates):
        run = run_training_job(
            mode,
            config_space,
            metric,
            backend,
            chunk_id=chunk,
            config_file=config_file,
            input_state_url=state if chunk else None,
            output_state_url=state,
            **words,
        )
        updates.append(run.metrics())
        found = _experiment(updates)
        _write(f"{place}/experiment.json", json.dumps(found, indent=1).encode())
    return found


def _outputs(url: str | Path) -> str:
    """Where an experiment goes. Raises SpecError for what can hold no state."""
    place = located_url(url)
    scheme = place.partition("://")[0] if place and "://" in place else ""
    if place is None or scheme not in ("", "s3", "s3a"):
        message = f"results go into a folder or to s3://bucket/prefix, not to {place}"
        raise SpecError([Problem("experiment_outputs_url", message)])
    return place.rstrip("/")


def _write(url: str, content: bytes) -> None:
    if "://" not in url:
        write_bytes(Path(url), content)
        return
    from luthier.store.object_store import put

    put(url, content)


def _experiment(updates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a series of updates did, by their metrics."""
    name, rows = _matrix(updates)
    promoted = [bool(update["update"]["promoted"]) for update in updates]
    for i, stays in enumerate(promoted):
        if not stays and i:  # what is used on is the model of before
            rows[i] = list(rows[i - 1])
    loss = name == "loss"
    fresh = updates[0]["update"].get("fresh") or []
    known = [test[name] for test in fresh if name in test]
    return {
        **experiment(rows, less_is_better=loss),
        "forward_transfer": forward_transfer(rows, known, less_is_better=loss),
        "score": name,
        "seconds": [update["seconds"] for update in updates],
        "promoted": promoted,
    }


def _matrix(updates: Sequence[Mapping[str, Any]]) -> tuple[str, list[list[float]]]:
    """What the scores are, and those of each update: of test rows, or of validation rows."""
    if all(update["test"] for update in updates):
        name = "accuracy" if "accuracy" in updates[0]["test"][0] else "loss"
        return name, [[test[name] for test in update["test"]] for update in updates]
    name = "accuracy" if updates[0]["update"]["score"] == "correct" else "loss"
    return name, [list(update["update"]["by_chunk"]) for update in updates]


def read_config_file(file: str | Path) -> ConfigFile:
    """Read a configuration file without running it. Raises SpecError where it cannot be."""
    path = Path(file).expanduser().absolute()
    try:
        content = path.read_bytes()
        text = content.decode()
    except OSError as error:
        names = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        message = f"{path} cannot be read: {error.strerror or error}"
        raise SpecError([Problem("config_file", message, nearest(path.name, names))]) from error
    except UnicodeDecodeError as error:
        raise SpecError([Problem("config_file", f"{path.name} is not UTF-8: {error}")]) from error
    sha256 = hashlib.sha256(content).hexdigest()
    return ConfigFile(str(path), sha256, arguments_of(text, path.name))
