"""From a configuration file to everything that the loop needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from luthier.batches.arithmetic import derive
from luthier.batches.random_plan import RandomPlan
from luthier.engine.beginning import begin, updating
from luthier.engine.control import Listener
from luthier.engine.device import Device
from luthier.engine.items import Items, Stacked, stacked
from luthier.engine.optim import Optimization, build_optimization, given_optimization
from luthier.engine.past import FOLDER, Past
from luthier.engine.precision import resolve_precision
from luthier.engine.program import Program
from luthier.engine.program_learner import ProgramLearner, ProgramModel
from luthier.engine.read import Place
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.setup import Setup, checkpoints, restore_setup, say_bad, total_steps_of
from luthier.engine.state import (
    OURS,
    History,
    Position,
    random_states,
    restore_random_states,
    seed_everything,
)
from luthier.errors import DataError, Problem, SpecError
from luthier.evaluation.scored_task import TaskEvaluation
from luthier.registry import find
from luthier.spec import JobSpec
from luthier.store.bundle import newest_bundle, sha256_of
from luthier.updaters.updater import Updater

#: Rows of a batch where nobody said: as Renate has them.
BATCH = 32


@dataclass(frozen=True)
class ProgramData:
    """What a run is measured on: remembered validation items, then the new ones. chunks: the
    number of the update that each came with. tests: of each chunk of a scenario, measured once
    the update has ended, and never remembered. probe: the general probe of the file. new,
    remembered: rows to train on and rows of the memory, transformed as for measuring."""

    program: Program
    validation: Items | None
    chunks: np.ndarray
    tests: tuple[Items, ...] = ()
    probe: Items | None = None
    new: Items | None = None
    remembered: Items | None = None

    def remember(self) -> Stacked:
        """All of its rows, raw."""
        if self.validation is None:
            return Stacked({}, None)
        return stacked(self.validation.raw(np.arange(len(self.validation))), "val_data()")

    def scores(self, found: TaskEvaluation) -> tuple[str, np.ndarray]:
        """Whether each row is right where there are classes, else its loss."""
        score = "correct" if "correct" in found.per_row else "loss"
        return score, found.per_row[score]


def prepare_program(
    spec: JobSpec, place: Place, tell: Listener, program: Program | None = None
) -> tuple[Setup, ProgramData]:
    """Load the model and its past (or the newest good checkpoint of this run), and build the
    rest around them. program: instead of the file that the spec names."""
    training = spec.training
    seed_everything(training.seed)
    program = program or _program(spec)
    module = program.data()
    resolved = Resolved(place.folder / RESOLVED)
    begun = begin(spec, place, resolved, tell)
    start, past, updater = begun.folder, begun.past, begun.updater
    assert updater is not None
    precision = resolve_precision(training, resolved, place.cache, tell)
    device = Device(training.device, precision)
    checkpoint = newest_bundle(checkpoints(place), say_bad(tell))
    tell("stage", {"name": "loading the model"})

    def load(folder: Path | None) -> ProgramModel:
        model = ProgramModel(program.model())
        source = folder or begun.weights
        _dress(model, source, updater, past.updates)
        return model.to(device.torch)

    seed_everything(training.seed)
    model = load(checkpoint.path if checkpoint is not None else None)
    items = _items(program, module.train_data(), start)
    say = f"{items.new:,} new rows, {items.old:,} remembered, update {past.updates + 1}"
    tell("log", {"level": "info", "message": say})
    inner = ProgramLearner(
        model, items, program.loss(model.module), device, features="features" in updater.notes
    )
    _needs_classes(spec.update.updater, inner, program)
    size = training.per_device_train_batch_size or BATCH
    data = _data(program, module, start, past)
    learner = updating(spec, inner, begun, size, data)
    plan = RandomPlan(
        len(learner.index),
        batch_size=size * training.gradient_accumulation_steps,
        min_rows=1,
        key=("program", training.seed, past.updates),
    )
    learner.steps_per_epoch = plan.steps_per_epoch
    phase_steps = total_steps_of(spec, plan) if updater.trains(past.updates) else 0
    total_steps = phase_steps * updater.phases
    setup = Setup(
        spec,
        place,
        device,
        model,
        learner,
        plan,
        _optimization(program, spec, model, device, phase_steps),
        Position(),
        History(),
        total_steps,
        size,
        None,
        None,
        load,
        checkpoint=checkpoint,
        update=learner,
    )
    if updater.phases > 1:
        learner.phase_steps = phase_steps
        learner.turn = _turning(setup, inner, updater, copy.deepcopy(setup.optimization.state()))
    if checkpoint is not None:
        restore_setup(setup, checkpoint, tell)
    return setup, data


def _dress(model: ProgramModel, source: Path | None, updater: Updater, updates: int) -> None:
    """Load a model, and attach what its updater puts into it: before, where what was saved has
    that too, else afterwards."""
    plain = source is None or model.fits(source)
    if source is not None and plain:
        model.restore(source)
    updater.attach(model, updates)
    if source is not None and not plain:
        model.restore(source)


def _turning(
    setup: Setup, learner: ProgramLearner, updater: Updater, optimization: dict[str, Any]
) -> Callable[[int], None]:
    """What begins a phase: new weights, and an optimizer as it was before its first step."""
    seed, updates = setup.spec.training.seed, learner.updates

    def turn(phase: int) -> None:
        updater.turned(learner, phase)
        states = random_states()
        seed_everything(derive(seed, "phase", updates, phase) % 2**32)
        fresh = setup.load(None)
        restore_random_states(states)
        learner.model.load_state_dict(fresh.state_dict())
        setup.optimization.restore(optimization)

    return turn


def _program(spec: JobSpec) -> Program:
    file = Path(spec.program.config_file or spec.model.name)
    if not file.is_file():
        raise SpecError([Problem("config_file", f"there is no file {file}")])
    if spec.program.sha256 is not None and sha256_of(file) != spec.program.sha256:
        raise SpecError(
            [Problem("config_file", f"{file.name} has changed since the job was submitted",
                     "submit the job again to run what it says now")]
        )  # fmt: skip
    return Program(file, spec.program.arguments)


def _items(program: Program, new: Any, start: Path | None) -> Items:
    if new is None or not len(new):
        raise DataError("train_data() gave no rows", file=str(program.file))
    train = program.transform("train_transform"), program.transform("train_target_transform")
    of_memory = program.transform("buffer_transform"), program.transform("buffer_target_transform")
    old = tuple(m or t for m, t in zip(of_memory, train, strict=True))
    remembered = _stacked(start, "memory")
    return Items(new, remembered, transforms=train, old_transforms=(old[0], old[1]))


def _needs_classes(updater: str | None, learner: ProgramLearner, program: Program) -> None:
    if updater is None or not find("updater", updater).facts["labels"]:
        return
    if learner.labels_of(np.array([learner.old], dtype=np.int64)) is None:
        message = f"{updater} is for classes, and the targets of {program.file.name} are none"
        raise SpecError([Problem("updater", message, "targets are whole numbers; or use DER")])


def _data(program: Program, module: Any, start: Path | None, past: Past) -> ProgramData:
    new = module.val_data()
    test = program.transform("test_transform"), program.transform("test_target_transform")
    old = _stacked(start, "validation")
    chunks = np.array(past.chunks, dtype=np.int64)
    items = None
    if old is not None or (new is not None and len(new)):
        there: Any = [] if new is None else new
        items = Items(there, old, name="val_data()", transforms=test, old_transforms=test)
        chunks = np.concatenate([chunks, np.full(items.new, past.updates, dtype=np.int64)])
    memory, nothing = _stacked(start, "memory"), cast(Any, [])
    return ProgramData(
        program,
        items,
        chunks,
        tests=_tests(module, test),
        probe=_probe(program, test),
        new=Items(module.train_data(), transforms=test),
        remembered=None if memory is None else Items(nothing, memory, old_transforms=test),
    )


def _probe(program: Program, transforms: tuple[Any, Any]) -> Items | None:
    found = program.probe()
    if found is None:
        return None
    if not len(found):
        raise DataError("probe_data_fn() gave no rows", file=str(program.file))
    return Items(found, name="probe_data_fn()", transforms=transforms)


def _tests(module: Any, transforms: tuple[Any, Any]) -> tuple[Items, ...]:
    found = module.test_data() if hasattr(module, "test_data") else None
    parts = found if isinstance(found, list | tuple) else [found]
    there = [part for part in parts if part is not None and len(part)]
    return tuple(Items(part, name="test_data()", transforms=transforms) for part in there)


def _stacked(start: Path | None, name: str) -> Stacked | None:
    if start is None:
        return None
    file = start / OURS / FOLDER / f"{name}.safetensors"
    found = Stacked.load(file) if file.exists() else None
    return found if found is not None and len(found) else None


def _optimization(
    program: Program, spec: JobSpec, model: ProgramModel, device: Device, total_steps: int
) -> Optimization:
    make, schedule = program.optimizer(), program.schedule()
    built = build_optimization(
        spec.training, model.depths(), device=device, total_steps=total_steps, layers=model.layers
    )
    if make is None and schedule is None:
        return built
    return given_optimization(built, make, schedule)
