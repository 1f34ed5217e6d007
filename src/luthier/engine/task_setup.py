"""From a spec for a task and its rows to everything that the loop needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from luthier.batches.random_plan import RandomPlan
from luthier.engine.compiled import compile_steps
from luthier.engine.control import Cancelled, Control, Interrupted, Listener
from luthier.engine.device import Device
from luthier.engine.features import Features, say_what_is_cut
from luthier.engine.means import Means
from luthier.engine.memory import MOST_ROWS, rows_that_fit
from luthier.engine.optim import build_optimization
from luthier.engine.precision import resolve_precision
from luthier.engine.read import Place, located
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.setup import (
    Setup,
    checkpoints,
    restore_setup,
    restore_trained,
    say_bad,
    total_steps_of,
)
from luthier.engine.state import History, Position, seed_everything
from luthier.engine.task_learner import TaskLearner
from luthier.errors import Problem, SpecError
from luthier.models.adapters import add_lora
from luthier.models.layout import channels_last
from luthier.models.task import TaskModel
from luthier.models.unpadded import Unpadded, unfit
from luthier.registry import find
from luthier.spec import JobSpec
from luthier.store.bundle import newest_bundle
from luthier.tasks.examples import Examples
from luthier.tasks.task import Task

#: Features a step and device where nobody said: more seldom learn faster per second.
_MOST_BY_ITSELF = 32


@dataclass(frozen=True)
class TaskData:
    """The rows of a run, checked. ``held_out`` is what is measured on."""

    task: Task
    train: Examples
    held_out: Examples | None


def read_examples(spec: JobSpec, place: Place, tell: Listener) -> TaskData:
    """Read, check and split the rows that the spec names. Raises DataError with row and column."""
    from luthier.data.parts import split_rows
    from luthier.data.rows import read_rows

    task: Task = find("task", spec.task).load()(spec.processing)
    csv = spec.data.csv

    def rows_of(source: Any) -> Any:
        return read_rows(located(source, place), csv, name=source.uri)

    train_rows = rows_of(spec.data.train)
    train = task.read(train_rows)
    held_out = None
    if spec.data.eval is not None:
        held_out = task.read(rows_of(spec.data.eval), train.labels or None)
    elif spec.data.val_split:
        shares = {"train": 1 - spec.data.val_split, "held_out": spec.data.val_split}
        stratify = train.columns.get("label") if train.codes is not None else None
        parts = split_rows(train_rows, shares, spec.training.seed, stratify_by=stratify)
        held_out = task.read(parts["held_out"], train.labels or None)
        train = task.read(parts["train"], train.labels or None)
    columns = ", ".join(f"{role} ← {column}" for role, column in train.columns.items())
    message = f"{spec.data.train.uri}: {len(train):,} rows, {spec.task} ({columns})"
    tell("log", {"level": "info", "message": message})
    return TaskData(task, train, held_out)


def prepare_task(
    spec: JobSpec,
    place: Place,
    data: TaskData,
    tell: Listener,
    control: Control,
    means: Means | None = None,
) -> Setup:
    """Load the model (or the newest good checkpoint of this run) and build the rest around it.

    ``start_task`` is to follow. No process waits for another here.
    """
    means = means or Means()
    training, task = spec.training, data.task
    resolved = Resolved(place.folder / RESOLVED)
    precision = resolve_precision(training, resolved, place.cache, tell)
    device = Device(training.device, precision)
    checkpoint = newest_bundle(checkpoints(place), say_bad(tell))
    load = _loader(spec, place, data, device)
    seed_everything(training.seed)
    tell("stage", {"name": "loading the model"})
    model = load(checkpoint.path if checkpoint is not None else None)
    tell("stage", {"name": "preparing the rows"})

    def obey() -> None:
        wish = control()
        if wish == "cancel":
            raise Cancelled
        if wish == "interrupt":
            raise Interrupted

    features = Features(task, data.train, model.processor, place.cache, obey)
    if not task.of_images:
        say_what_is_cut(features, task.limit(model.processor), tell)
    learner = TaskLearner(
        model,
        features,
        task.collator(model.processor, model.model),
        device,
        at_once=training.per_device_train_batch_size or 1,
        smoothing=training.label_smoothing_factor,
    )
    _choose_execution(learner, training.execution, resolved, tell)
    learner.at_once = training.per_device_train_batch_size or _found(learner, resolved, tell)
    effective = learner.at_once * training.gradient_accumulation_steps * means.processes
    plan = RandomPlan(
        len(features), batch_size=effective, min_rows=1, key=(features.id, training.seed)
    )
    total_steps = total_steps_of(spec, plan)
    optimization = build_optimization(
        training,
        model.depths(),
        device=device,
        total_steps=total_steps,
        layers=model.layers,
        spared=_spared(model),
    )
    setup = Setup(
        spec,
        place,
        device,
        model,
        learner,
        plan,
        optimization,
        Position(),
        History(),
        total_steps,
        learner.at_once,
        None,
        None,
        load,
        means,
        checkpoint,
    )
    if checkpoint is not None:  # before an engine cuts the model into parts
        restore_trained(model, checkpoint)
    return setup


def start_task(setup: Setup, tell: Listener) -> None:
    """Hand the model and its optimizer to what computes them, and go on from the checkpoint."""
    training, means = setup.spec.training, setup.means
    setup.learner.means = means
    means.attach(setup)
    if means.compiles:
        compile_steps(setup, tell)
    if setup.checkpoint is not None:
        restore_setup(setup, setup.checkpoint, tell)
    else:  # each process draws dropout of its own
        seed_everything((training.seed + means.rank) % 2**32)


def _loader(
    spec: JobSpec, place: Place, data: TaskData, device: Device
) -> Callable[[Path | None], TaskModel]:
    adapted = spec.adapter.lora_r is not None  # a checkpoint has its adapters beside the model

    def load(checkpoint: Path | None) -> TaskModel:
        start = place.artifacts(spec.model.artifact) if spec.model.artifact else None
        source = start if adapted or checkpoint is None else checkpoint
        loaded = data.task.load(
            str(source or spec.model.name), data.train.labels, options=spec.model.options
        )
        model = TaskModel(*loaded, new_head=data.task.new_head)
        model.fix(spec.model.num_fixed_layers, everything=spec.model.freeze, where=spec.model.name)
        if adapted:
            add_lora(model, spec.adapter, spec.model.name)
        if data.task.of_images and spec.training.execution != "padded":
            channels_last(model.model)
        return model.to(device.torch)

    return load


def _choose_execution(
    learner: TaskLearner, wanted: str, resolved: Resolved, tell: Listener
) -> None:
    """Leave out the padding where a batch shows that the loss stays the same."""
    if wanted in ("padded", "chunked"):
        return
    model, unpadded = learner.model, Unpadded(learner.model.model)
    rows = np.argsort(learner.features.lengths, kind="stable")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, 6).astype(np.int64))]

    def decide() -> str:
        if not unpadded.reason:
            (batch,) = learner.collated(rows, len(rows))
            unpadded.check(learner.device.move(batch))
            if not unpadded.reason and not unpadded.checked:
                return ""  # all of one length: nothing to leave out
        reason = unpadded.reason
        if reason and unfit(learner.model.model) != reason:
            tell("log", {"level": "info", "message": f"texts run padded: {reason}"})
        return reason

    reason = resolved.once("unpadded", decide)
    if reason and wanted == "packed":
        hint = "use execution='auto'"
        raise SpecError([Problem("training.execution", f"cannot be packed: {reason}", hint)])
    if reason:
        unpadded.remove()
    else:
        unpadded.trust()
        model.unpadded = unpadded


def _found(learner: TaskLearner, resolved: Resolved, tell: Listener) -> int:
    """The largest batch that fits, or as many as still learn well."""

    def decide() -> int:
        longest = np.argsort(learner.features.lengths, kind="stable")[-2:]
        fit = rows_that_fit(learner, longest)
        size = max(1, min(fit, MOST_ROWS, _MOST_BY_ITSELF, len(learner.features)))
        size = 1 << (size.bit_length() - 1)
        tell("log", {"level": "info", "message": f"batch_size: {size} rows at a time"})
        return size

    return int(resolved.once("batch_size", decide))


def _spared(model: nn.Module) -> frozenset[str]:
    """Parameters that weight decay spares: biases and norms, as transformers' Trainer does."""
    from transformers.trainer_pt_utils import get_parameter_names

    names: Any = get_parameter_names
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    decayed = set(names(model, [nn.LayerNorm], patterns))
    return frozenset(n for n, _ in model.named_parameters() if n not in decayed)
