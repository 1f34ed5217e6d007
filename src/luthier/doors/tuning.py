"""The door of ``run_training_job`` and ``execute_tuning_job``: Renate's words become a JobSpec.

Pure functions: no torch, no I/O. The configuration file has been read already. Version 0.1 and
0.5 of Renate have other names for some words; both are taken (``RENAMED``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from luthier.doors.config_file import ConfigFile, checked
from luthier.doors.tuning_search import WORDS as SEARCH_WORDS
from luthier.doors.tuning_search import ranges_of, searched
from luthier.errors import NotFound, Problem, SpecError, nearest
from luthier.registry import cards, find
from luthier.spec import JobSpec, parse_spec

#: Words of version 0.1 → what they are called since.
RENAMED = {"state_url": "input_state_url", "next_state_url": "output_state_url"}

#: Keys of a configuration that are not an updater's own, with Renate's defaults.
_SETTINGS: dict[str, Any] = {
    "optimizer": "Adam",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "learning_rate": 3e-4,
    "learning_rate_scheduler": "ConstantLR",
    "learning_rate_scheduler_gamma": 1.0,
    "learning_rate_scheduler_step_size": 1,
    "learning_rate_scheduler_interval": "epoch",
    "batch_size": 32,
    "max_epochs": None,
    "memory_size": 32,
    "memory_batch_size": None,
    "batch_memory_frac": None,
    "memory": None,
    "updater": None,
    "early_stopping_enabled": False,
}
#: What is watched while a model learns on, and what stops it from being promoted.
_WATCHED: dict[str, Any] = {
    "forgetting_budget": None,
    "forgetting_budget_each": None,
    "probe_budget": None,
    "on_forgetting": "stop",
    "stability_steps": None,
    "drift": "off",
}
#: What is made of the weights at the end, and what the memory may have.
_MERGED: dict[str, Any] = {"merge": "none", "merge_options": {}, "memory_bytes": None}
_DEVICES = {"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
_PRECISIONS = {"32": "fp32", "32-true": "fp32", "bf16": "bf16", "bf16-mixed": "bf16",
               "16": "fp16", "16-mixed": "fp16"}  # fmt: skip

#: Words that are for SageMaker, with the value that asks for nothing.
_SAGEMAKER: dict[str, Any] = {
    "role": None,
    "requirements_file": None,
    "dependencies": None,
    "source_dir": None,
    "instance_type": "ml.c5.xlarge",
    "instance_count": 1,
    "instance_max_time": 259200,
}


def tuning_spec(
    config_space: Mapping[str, Any],
    *,
    config_file: ConfigFile,
    updater: str = "ER",
    max_epochs: int = 50,
    mode: str | None = None,
    metric: str | None = None,
    backend: str = "local",
    task_id: str = "default_task",
    chunk_id: int | None = None,
    input_state_url: str | None = None,
    output_state_url: str | None = None,
    data_path: str | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    devices: int = 1,
    strategy: str = "ddp",
    precision: str | int = "32",
    deterministic_trainer: bool = False,
    gradient_clip_val: float | None = None,
    gradient_clip_algorithm: str | None = None,
    batch_memory_frac: float = 0.5,
    **rest: Any,
) -> JobSpec:
    """The job that these words describe.

    batch_memory_frac: the share of a batch that is remembered rows, where config_space gives
    neither it nor ``memory_batch_size``. With a range in config_space it is a search. Raises
    SpecError with every problem.
    """
    if ranges_of(config_space):
        words = {n: v for n, v in locals().items() if n not in ("config_space", "rest", "ranges")}
        others = {n: v for n, v in rest.items() if n not in SEARCH_WORDS}
        return searched(
            config_space,
            lambda space: tuning_spec(space, **words, **others),
            metric=metric,
            mode=mode,
            seed=seed,
            words=rest,
        )
    given = dict(config_space)
    problems = [*_elsewhere(backend, rest), *_machine(devices, strategy, task_id)]
    settings = {k: given.pop(k, v) for k, v in _SETTINGS.items()}
    watched = {k: given.pop(k, v) for k, v in (_WATCHED | _MERGED).items()}
    name = settings["updater"] or updater
    options, found = _updater_options(name, given)
    problems += found
    arguments = {k: v for k, v in given.items() if k not in options}
    problems += checked(arguments, config_file)
    arguments |= {"seed": seed, "data_path": data_path}
    if chunk_id is not None:
        arguments["chunk_id"] = chunk_id
    training, found = _training(settings, max_epochs, batch_memory_frac)
    problems += found
    memory = training.pop("memory_batch_size")
    training |= {
        "seed": seed,
        "device": _one_of("accelerator", accelerator, _DEVICES, problems),
        "precision": _one_of("precision", str(precision), _PRECISIONS, problems),
        "max_grad_norm": gradient_clip_val or 0.0,
    }
    if gradient_clip_algorithm not in (None, "norm"):
        message = f"gradients are clipped by their norm, not by '{gradient_clip_algorithm}'"
        problems.append(Problem("gradient_clip_algorithm", message))
    if deterministic_trainer and training["device"] != "cpu":
        hint = "give accelerator='cpu', where every run is"
        problems.append(Problem("deterministic_trainer", "is promised on CPUs only", hint))
    callbacks, found = _callbacks(mode, metric, bool(settings["early_stopping_enabled"]))
    problems += found
    data: dict[str, Any] = {
        "task": "program",
        "model": {"name": config_file.path},
        "data": {"train": {"uri": config_file.path}},
        "program": {
            "config_file": config_file.path,
            "sha256": config_file.sha256,
            "arguments": {k: v for k, v in arguments.items() if v is not None},
        },
        "update": {
            "updater": _spelt(name, [card.name for card in cards("updater")]),
            "updater_options": options,
            "memory": settings["memory"],
            "memory_size": settings["memory_size"],
            "memory_batch_size": memory,
            "input_state_url": input_state_url,
            "output_state_url": output_state_url,
            **watched,
        },
        "training": training,
        "callbacks": callbacks,
    }
    if _memory(data["update"]["updater"]) is None:
        data["update"] |= {"memory_size": 0, "memory_batch_size": None}
    try:
        spec = parse_spec(data)
    except SpecError as error:
        raise SpecError([*problems, *error.problems]) from None
    if problems:
        raise SpecError(problems)
    return spec


def _memory(updater: str) -> str | None:
    """The policy of an updater's memory; None where it has none, or is not known."""
    try:
        policy: str | None = find("updater", updater).facts["memory"]
    except NotFound:
        return "reservoir"
    return policy


def _updater_options(name: str, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    known = [card.name for card in cards("updater")]
    try:
        card = find("updater", _spelt(name, known))
    except NotFound as error:
        return {}, [Problem("updater", error.message, nearest(name, known) or error.hint)]
    return {o.name: given[o.name] for o in card.options if o.name in given}, []


def _spelt(name: str, known: list[str]) -> str:
    """Renate's spellings: without dashes, in capitals."""
    plain = {n.replace("-", "").lower(): n for n in known}
    return plain.get(name.replace("-", "").replace("_", "").lower(), name)


def _training(
    settings: Mapping[str, Any], max_epochs: int, frac: float
) -> tuple[dict[str, Any], list[Problem]]:
    problems = []
    optimizer = settings["optimizer"]
    options: dict[str, Any] = {}
    if settings["weight_decay"]:
        options["weight_decay"] = settings["weight_decay"]
    if settings["momentum"]:
        if optimizer in ("SGD", "RMSprop"):
            options["momentum"] = settings["momentum"]
        else:
            problems.append(Problem("momentum", f"{optimizer} has none", "leave it out"))
    size, remembered = settings["batch_size"], settings["memory_batch_size"]
    share = settings["batch_memory_frac"]
    if remembered is not None and share is not None:
        problems.append(Problem("batch_memory_frac", "given beside memory_batch_size: give one"))
    if remembered is None:
        share = frac if share is None else share
        if not isinstance(share, int | float) or not 0 <= share < 1:
            problems.append(Problem("batch_memory_frac", f"is from 0 to below 1, not {share!r}"))
            share = 0
        remembered = min(settings["memory_size"], int(share * size))
        size -= remembered
    schedule, found = _schedule(settings)
    return {
        "optim": optimizer,
        "optim_args": options,
        "learning_rate": settings["learning_rate"],
        "num_train_epochs": settings["max_epochs"] or max_epochs,
        "per_device_train_batch_size": size,
        "memory_batch_size": remembered,
        **schedule,
    }, [*problems, *found]


def _schedule(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    name = settings["learning_rate_scheduler"]
    if name in ("ConstantLR", None):
        return {}, []
    message = f"'{name}' is not one of a configuration"
    hint = "define lr_scheduler_fn in the file: it may return any schedule of torch"
    return {}, [Problem("learning_rate_scheduler", message, hint)]


def _callbacks(
    mode: str | None, metric: str | None, early: bool
) -> tuple[list[dict[str, Any]], list[Problem]]:
    if metric is None:
        if early:
            hint = "give metric and mode"
            return [], [Problem("early_stopping_enabled", "needs a metric to watch", hint)]
        return [], []
    if mode not in (None, "min", "max"):
        return [], [Problem("mode", f"is 'min' or 'max', not {mode!r}")]
    watch = {"monitor": metric, "mode": mode or "auto"}
    found: list[dict[str, Any]] = [{"kind": "best_model", **watch}]
    return [*found, {"kind": "early_stopping", **watch}] if early else found, []


def _elsewhere(backend: str, rest: Mapping[str, Any]) -> list[Problem]:
    """What is for a search, for SageMaker, or for nothing."""
    problems = []
    if backend != "local":
        message = f"'{backend}' is not there; jobs run on this machine"
        problems.append(Problem("backend", message, "use backend='local'"))
    for word, value in rest.items():
        if word in SEARCH_WORDS:
            if value != SEARCH_WORDS[word]:
                problems.append(Problem(word, "is for a search, and nothing is searched"))
        elif word in _SAGEMAKER:
            if value != _SAGEMAKER[word]:
                problems.append(Problem(word, "is for SageMaker, and jobs run on this machine"))
        elif word != "job_name":
            own = inspect.signature(tuning_spec).parameters
            known = [
                *own,
                *SEARCH_WORDS,
                *_SAGEMAKER,
                *RENAMED,
                "job_name",
                "working_directory",
                "wait",
            ]
            problems.append(Problem(word, "no such word", nearest(word, known)))
    return problems


def _machine(devices: int, strategy: str, task_id: str) -> list[Problem]:
    found = []
    if task_id != "default_task":
        message = f"a model has one head for all its data, and '{task_id}' asks for another"
        found.append(Problem("task_id", message, "leave it out"))
    if devices != 1:
        found.append(Problem("devices", f"an update runs on one device, not on {devices}"))
    if strategy not in ("ddp", "auto", "none"):
        found.append(Problem("strategy", f"one device needs none, and '{strategy}' is one"))
    return found


def _one_of(word: str, value: str, known: Mapping[str, str], problems: list[Problem]) -> str:
    if value not in known:
        problems.append(Problem(word, f"is one of {', '.join(known)}, not {value!r}"))
    return known.get(value, next(iter(known.values())))
