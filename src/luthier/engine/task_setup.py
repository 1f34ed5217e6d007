"""From a spec for a task and its rows to everything that the loop needs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from luthier.batches.random_plan import RandomPlan
from luthier.engine.beginning import updating
from luthier.engine.compiled import compile_steps
from luthier.engine.control import Cancelled, Control, Interrupted, Listener
from luthier.engine.device import Device
from luthier.engine.features import Features, say_what_is_cut
from luthier.engine.means import Means
from luthier.engine.memory import MOST_ROWS, rows_that_fit
from luthier.engine.optim import build_optimization
from luthier.engine.precision import resolve_precision
from luthier.engine.read import Place
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
from luthier.engine.task_pupil import TaskPupil
from luthier.engine.task_rows import TaskData
from luthier.errors import Problem, SpecError
from luthier.models.adapters import add_lora
from luthier.models.layout import channels_last
from luthier.models.task import TaskModel
from luthier.models.unpadded import Unpadded, unfit
from luthier.spec import JobSpec
from luthier.store.bundle import newest_bundle
from luthier.tasks.growing import grow_head
from luthier.tasks.loading import labels_of

#: Features a step and device where nobody said: more seldom learn faster per second.
_MOST_BY_ITSELF = 32


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
    collate = task.collator(model.processor, model.model)
    learner: TaskLearner
    at_once, smoothing = training.per_device_train_batch_size or 1, training.label_smoothing_factor
    if data.begun.updater is None:
        learner = TaskLearner(
            model, features, collate, device, at_once=at_once, smoothing=smoothing
        )
    else:
        learner = TaskPupil(
            model, features, collate, device, at_once=at_once, smoothing=smoothing,
            examples=data.train, old=data.old, images=task.of_images,
        )  # fmt: skip
    _choose_execution(learner, training.execution, resolved, tell)
    learner.at_once = training.per_device_train_batch_size or _found(learner, resolved, tell)
    effective = learner.at_once * training.gradient_accumulation_steps * means.processes
    update, rows = None, len(features)
    if isinstance(learner, TaskPupil):
        update = updating(spec, learner, data.begun, effective)
        rows = len(update.index)
    plan = RandomPlan(rows, batch_size=effective, min_rows=1, key=(features.id, training.seed))
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
        update or learner,
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
        update=update,
    )
    if update is not None:
        update.steps_per_epoch = plan.steps_per_epoch
    if checkpoint is not None:  # before an engine cuts the model into parts
        restore_trained(model, checkpoint)
    return setup


def start_task(setup: Setup, tell: Listener) -> None:
    """Hand the model and its optimizer to what computes them, and go on from the checkpoint."""
    training, means = setup.spec.training, setup.means
    setup.plain.means = means
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
        if data.begun.updater is not None:
            start = data.begun.weights
        source = start if adapted or checkpoint is None else checkpoint
        where, labels = str(source or spec.model.name), data.train.labels
        learnt = source is not None and data.begun.updater is not None
        known = labels_of(where) if learnt else labels  # what it was may have had fewer
        loaded = data.task.load(where, known or labels, options=spec.model.options)
        if known and known != labels:
            grow_head(loaded[0], labels, where)
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
