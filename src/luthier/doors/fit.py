"""The door of ``luthier.fit()``: Jina Finetuner's words become a JobSpec.

Pure functions: no torch, no I/O. The data has already become a ``Source``. A test goes
through the signature of ``fit`` and asks that each word acts or is refused with a reason.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from luthier.doors.search import search_data
from luthier.errors import Problem, SpecError, nearest
from luthier.spec import CallbackSpec, CSVOptions, JobSpec, Source, parse_spec

#: Words of fit() that name the run rather than describe the job.
RUN_WORDS = ("run_name", "description", "experiment_name", "wait", "idempotency_key")

#: Older names of the reference, and what they are called here.
RENAMED = {"lr": "learning_rate", "scheduler_name": "scheduler"}

#: A field of the model that is said by its own name, or in ``model_options``.
FIXED = "num_fixed_layers"

#: A field of the model that is said by its own name only.
TOWERS = "towers"

#: Learning rates where none is given: for a whole pretrained encoder, and for a new head alone.
WHOLE_MODEL_RATE, HEAD_RATE = 2e-5, 1e-3

_SCHEDULE_WORDS = ("num_warmup_steps", "num_training_steps", "scheduler_step")


def fit_spec(
    model: str,
    train_data: Source,
    eval_data: Source | None = None,
    val_split: float = 0.0,
    model_artifact: str | None = None,
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
    callbacks: Sequence[CallbackSpec] | None = None,
    scheduler: str | None = None,
    scheduler_options: Mapping[str, Any] | None = None,
    scheduler_step: Literal["batch", "epoch"] | None = None,
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
    search: Mapping[str, Any] | str | None = None,
    update: Mapping[str, Any] | str | bool | None = None,
    probe_data: Source | None = None,
    **training: Any,
) -> JobSpec:
    """The spec that these words describe.

    update: the name of an updater, or fields of ``UpdateSpec``; these are words as well. True, or
    the name "default": what ``default_updater`` says.
    ``training`` takes any field of ``TrainingSpec`` by its own name (``max_steps``, ``seed``,
    ``precision``, …), of ``AdapterSpec`` (``lora_r``, …), ``UpdateSpec`` or ``ProcessingSpec``,
    ``task``, ``num_fixed_layers``, and ``towers``. Raises SpecError with every problem.
    """
    problems: list[Problem] = []
    schedule = dict(scheduler_options or {})
    if scheduler_step is not None:
        asked = schedule.setdefault("scheduler_step", scheduler_step)
        if asked != scheduler_step:
            problems.append(
                Problem(
                    "scheduler_step", f"is '{scheduler_step}' here, '{asked}' in scheduler_options"
                )
            )
    if learning_rate is None:
        learning_rate = HEAD_RATE if freeze else WHOLE_MODEL_RATE
    fields: dict[str, Any] = {
        "optim": optimizer,
        "optim_args": dict(optimizer_options or {}),
        "learning_rate": learning_rate,
        "lr_scheduler_type": scheduler or "constant",
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "sampler": sampler,
        "num_items_per_class": num_items_per_class,
        "device": device,
        "dataloader_num_workers": num_workers,
    }
    fields |= {word: schedule.pop(word) for word in _SCHEDULE_WORDS if word in schedule}
    if scheduler is None and (schedule or fields.get("num_warmup_steps")):
        given = ", ".join([*schedule, *(w for w in _SCHEDULE_WORDS if w in fields)])
        problems.append(
            Problem(
                "scheduler_options", f"{given} given without a scheduler", "e.g. scheduler='linear'"
            )
        )
    fields["lr_scheduler_kwargs"] = schedule
    options = dict(model_options or {})
    fixed = options.pop(FIXED, None)  # a field of its own, not one of the constructor's
    if FIXED in training:
        if fixed is not None:
            problems.append(Problem(FIXED, "given twice: here and in model_options"))
        fixed = training.pop(FIXED)
    task = training.pop("task", "embedding")
    towers = training.pop(TOWERS, "shared")
    more, adapter, processing, learns_on = _other_words(training, fields, problems)
    fields |= more
    data: dict[str, Any] = {
        "model": {
            "name": model,
            "options": options,
            "output_dim": output_dim,
            "freeze": freeze,
            "num_fixed_layers": 0 if fixed is None else fixed,
            "artifact": model_artifact,
            "towers": towers,
        },
        "task": task,
        "adapter": adapter,
        "processing": processing,
        "update": _update(update, learns_on, task, problems),
        "data": {
            "train": train_data,
            "eval": eval_data,
            "probe": probe_data,
            "val_split": val_split,
        },
        "objective": {
            "loss": loss,
            "loss_options": dict(loss_options or {}),
            "miner": miner,
            "miner_options": dict(miner_options or {}),
            "loss_optimizer": loss_optimizer,
            "loss_optimizer_options": dict(loss_optimizer_options or {}),
        },
        "training": fields,
        "callbacks": tuple(callbacks or ()),
        "output": {"to_onnx": to_onnx, "public": public},
    }
    if csv_options is not None:
        data["data"]["csv"] = csv_options
    if search is not None:
        data["search"] = search_data(search, problems, data)
    return _parse(data, problems)


def _other_words(
    given: Mapping[str, Any], fields: Mapping[str, Any], problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The further words of training, those of an adapter, of a task, and of an update."""
    from luthier.spec import AdapterSpec, ProcessingSpec, TrainingSpec, UpdateSpec

    taken: dict[str, Any] = {}
    adapter: dict[str, Any] = {}
    processing: dict[str, Any] = {}
    update: dict[str, Any] = {}
    for word, value in given.items():
        if word in fields:
            problems.append(Problem(word, f"given twice: fit() has a word of its own for '{word}'"))
        elif word in TrainingSpec.model_fields:
            taken[word] = value
        elif word in AdapterSpec.model_fields:
            adapter[word] = value
        elif word in ProcessingSpec.model_fields:
            processing[word] = value
        elif word in UpdateSpec.model_fields:
            update[word] = value
        else:
            hint = nearest(word, (*WORDS, "args"))
            if word in RENAMED:
                hint = f"it is called '{RENAMED[word]}'"
            problems.append(Problem(word, "fit() knows no such word", hint))
    return taken, adapter, processing, update


def default_updater(task: str) -> str:
    """The updater that is recommended for a task: Robust-DER leads on digits and mnist for its
    time (docs/continual-benchmark.md), and ER where rows have no scores of their own to compare."""
    whole = ("embedding", "text-classification", "image-classification", "program")
    return "Robust-DER" if task in whole else "ER"


def _update(
    given: Mapping[str, Any] | str | bool | None,
    words: dict[str, Any],
    task: str,
    problems: list[Problem],
) -> dict[str, Any]:
    """The fields of an update, said at once or one by one."""
    if given is True:
        given = "default"
    at_once = {"updater": given} if isinstance(given, str) else dict(given or {})
    problems += [Problem(name, "given twice: here and in update")
                 for name in at_once.keys() & words.keys()]  # fmt: skip
    found = {**words, **at_once}
    if found.get("updater") == "default":
        found["updater"] = default_updater(task)
    return {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in found.items()}


def _parse(data: dict[str, Any], problems: list[Problem]) -> JobSpec:
    try:
        spec = parse_spec(data)
    except SpecError as error:
        raise SpecError([*problems, *error.problems], error.partial) from None
    if problems:
        raise SpecError(problems, spec)
    return spec


def _words() -> tuple[str, ...]:
    from luthier.spec import AdapterSpec, ProcessingSpec, TrainingSpec, UpdateSpec

    own = [n for n in inspect.signature(fit_spec).parameters if n != "training"]
    others = ("task", *TrainingSpec.model_fields, *AdapterSpec.model_fields,
              *ProcessingSpec.model_fields, *UpdateSpec.model_fields)  # fmt: skip
    more = [n for n in others if n not in own]
    return (*own, *RUN_WORDS, FIXED, TOWERS, *more)


#: Every word that fit() knows.
WORDS = _words()
