"""From a spec and its data to everything that the loop needs, fresh or from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from luthier.batches import Plan, make_plan
from luthier.data import Dataset, facts
from luthier.data.rankings import Rankings
from luthier.engine.beginning import Beginning, begin, updating
from luthier.engine.control import Listener
from luthier.engine.device import Device
from luthier.engine.embedding_pupil import EmbeddingPupil
from luthier.engine.learner import EmbeddingLearner
from luthier.engine.means import Means
from luthier.engine.memory import MOST_ROWS, rows_that_fit
from luthier.engine.optim import Optimization, build_optimization
from luthier.engine.precision import resolve_precision
from luthier.engine.prefix import use_prefix
from luthier.engine.ranking_learner import sides
from luthier.engine.ranking_setup import ranking_learner, shared_decay, use_phases
from luthier.engine.read import Data, Place
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.state import (
    OURS,
    History,
    Position,
    random_states,
    read_state,
    restore_random_states,
    seed_everything,
    write_state,
)
from luthier.engine.tokenized import Tokenized, rows_seen, tokenize_once
from luthier.engine.updating import UpdatingLearner
from luthier.engine.vocabulary import use_active_vocabulary
from luthier.errors import CorruptBundle, Problem, SpecError
from luthier.models.adapters import add_lora, restore, trainable
from luthier.models.dropout import set_fast_dropout
from luthier.models.execution import choose
from luthier.models.loading import load_text_model
from luthier.models.tokens import Tokens
from luthier.models.towers import load_towers
from luthier.models.vocabulary import trained
from luthier.objectives import build_objective, needs
from luthier.spec import JobSpec
from luthier.store import atomic
from luthier.store.bundle import Bundle, candidates, newest_bundle, write_bundle

#: Checkpoints that are kept while a run goes on: if the newest is damaged, the one before serves.
KEPT = 2

#: Rows whose memory is measured to find the largest batch.
_PROBED_ROWS = 4

#: Rows up to which a batch that was asked for is not measured first: what a laptop trains.
_SURELY_FIT = 64


@dataclass
class Setup:
    """All that a run trains with."""

    spec: JobSpec
    place: Place
    device: Device
    model: Any
    learner: Any
    plan: Plan
    optimization: Optimization
    position: Position
    history: History
    total_steps: int
    batch_size: int
    random: dict[str, Any] | None  # from a checkpoint; restored just before the first step
    tokenized: Tokenized | None
    load: Callable[[Path | None], Any]  # the model of a checkpoint, or as it was before this run
    means: Means = field(default_factory=Means)
    checkpoint: Bundle | None = None  # that this attempt goes on from
    measured: dict[str, Any] = field(default_factory=dict)  # of the machine; for the metrics
    update: UpdatingLearner | None = None  # the learner, where it learns on from what it was

    @property
    def plain(self) -> Any:
        """The learner without an updater about it."""
        return self.learner if self.update is None else self.update.inner

    def close(self) -> None:
        """Stop what still works in the background once training has ended."""
        if self.tokenized is not None:
            self.tokenized.close()

    def bundle(self, destination: Path) -> None:
        """Write a checkpoint: the model, and all that is needed to go on bit for bit."""
        parts = {
            "objective": dict(self.learner.objective.state_dict()),
            "optimization": self.optimization.state(),
        }

        def fill(folder: Path) -> None:
            self.model.save(folder)
            ours = folder / OURS
            ours.mkdir(exist_ok=True)
            (ours / "spec.json").write_text(self.spec.canonical())
            write_state(ours, self.position, self.history, parts)
            self.means.remember(self, ours)

        if self.update is not None:
            parts["update"] = self.update.state()
        meta = {"kind": "checkpoint", "spec_id": self.spec.id, "step": self.position.done}
        with self.means.whole(self.model):
            if self.model.adapter is not None:
                parts["trainable"] = trainable(self.model)
            if self.means.writes:
                write_bundle(destination, fill, meta)
            else:
                self.means.remember(self, None)
        self.means.barrier()


def prepare(spec: JobSpec, place: Place, data: Data, tell: Listener) -> Setup:
    """Load the model (or the newest good checkpoint of this run) and build the rest around it."""
    training = spec.training
    resolved = Resolved(place.folder / RESOLVED)
    precision = resolve_precision(training, resolved, place.cache, tell)
    device = Device(training.device, precision)
    checkpoint = newest_bundle(checkpoints(place), say_bad(tell))

    begun = begin(spec, place, resolved, tell)

    def load(checkpoint: Path | None) -> Any:
        return _load_model(spec, place, checkpoint, device, begun)

    seed_everything(training.seed)
    tell("stage", {"name": "loading the model"})
    model = load(checkpoint.path if checkpoint is not None else None)
    wants = needs(spec.objective)
    dataset, old = with_remembered(train_form(data.train, spec), begun, tell)
    objective = build_objective(
        spec.objective,
        dim=model.dim,
        num_classes=dataset.num_classes if dataset.form == "labelled" else 0,
        form=dataset.form,
    ).to(device.torch)
    learner: EmbeddingLearner
    if isinstance(dataset, Rankings):
        learner = ranking_learner(spec, model, objective, dataset, device)
    else:
        learner = EmbeddingPupil(
            model, objective, dataset, device, old=old, per_class=training.num_items_per_class
        )
    _choose_execution(learner, training.execution, resolved, tell)
    batch_size = training.per_device_train_batch_size or _found_batch_size(learner, resolved, tell)
    effective = batch_size * training.gradient_accumulation_steps
    update = None
    if begun.updater is not None and isinstance(learner, EmbeddingPupil):
        update = updating(spec, learner, begun, effective)
    plan = make_plan(
        dataset if update is None else dataset.take(update.index),
        batch_size=effective,
        num_items_per_class=training.num_items_per_class,
        sampler=training.sampler,
        seed=training.seed,
        objective=wants,
    )
    total_steps = total_steps_of(spec, plan)
    # Beside a memory any row may be asked for, and what replays has no part of its own.
    seen = rows_seen(plan, total_steps, len(dataset)) if update is None else None
    seen = learner.read_by(seen)
    tokenized = tokenize_once(model, learner.reads, place.cache, seen)
    learner.texts = tokenized or learner.texts
    use_prefix(learner, plan, total_steps, seen, place.cache, resolved, tell)
    if update is None:
        use_active_vocabulary(
            learner,
            training,
            seen,
            resolved,
            tell,
            fresh=checkpoint is None,
            tokenized=tokenized is not None and tokenized.ready,
        )
    else:
        update.steps_per_epoch = plan.steps_per_epoch
    optimization = build_optimization(
        shared_decay(spec),
        trained(model),
        device=device,
        total_steps=total_steps,
        layers=model.layers,
        loss_parameters=objective.parameters(),
        loss_optimizer=spec.objective.loss_optimizer,
        loss_optimizer_options=spec.objective.loss_optimizer_options,
        embedding=model.token_embedding if training.optim == "SparseAdam" else None,
    )
    micro = batch_size if training.gradient_accumulation_steps > 1 else None
    if update is None:  # an update's step is never cut
        micro = micro or _found_micro(learner, effective, resolved, tell)
    position = Position(micro=micro)
    setup = Setup(
        spec,
        place,
        device,
        model,
        update or learner,
        plan,
        optimization,
        position,
        History(),
        total_steps,
        batch_size,
        None,
        tokenized,
        load,
        update=update,
    )
    use_phases(setup, tell)
    if checkpoint is not None:
        restore_trained(model, checkpoint)
        restore_setup(setup, checkpoint, tell)
    else:
        seed_everything(training.seed)
    return setup


def checkpoints(place: Place) -> Path:
    """Where a run's checkpoints are."""
    return place.folder / "checkpoints"


def train_form(dataset: Dataset, spec: JobSpec) -> Dataset:
    """The data in the form that the loss trains on: pairs become classes for label losses."""
    used = needs(spec.objective).form_used(dataset.form)
    return dataset if used == dataset.form else dataset.as_labelled()


def with_remembered(new: Dataset, begun: Beginning, tell: Listener) -> tuple[Dataset, int]:
    """Remembered rows before the new ones, and how many they are."""
    file = begun.file("memory.arrow")
    if begun.updater is None or file is None:
        return new, 0
    from luthier.data.remembered import joined, kept

    old = kept(file)
    say = f"{len(new):,} new rows, {len(old):,} remembered, update {begun.past.updates + 1}"
    tell("log", {"level": "info", "message": say})
    return joined(old, new, begun.past.updates + 1), len(old)


def _load_model(
    spec: JobSpec, place: Place, checkpoint: Path | None, device: Device, begun: Beginning
) -> Any:
    adapted = spec.adapter.lora_r is not None  # a checkpoint has its adapters beside the model
    if checkpoint is not None and not adapted:
        source: Path | None = checkpoint
    elif begun.updater is not None:
        source = begun.weights
    else:
        source = place.artifacts(spec.model.artifact) if spec.model.artifact else None
    opened = load_towers if spec.model.towers == "two" else load_text_model
    model: Any = opened(spec.model, artifact=source, device=str(device.torch))
    if adapted:
        add_lora(model, spec.adapter, spec.model.name)
        model.to(device.torch)
    return model


def pretrained(setup: Setup) -> Any:
    """The model as it was before this run, loaded once more. Random states stay as they are;
    a head that was new then is initialised as it was then."""
    states = random_states()
    seed_everything(setup.spec.training.seed)
    try:
        return setup.load(None)
    finally:
        restore_random_states(states)


def checkpointed(setup: Setup, checkpoint: Path) -> Any:
    """The model of a checkpoint of this run."""
    if setup.model.adapter is None:
        return setup.load(checkpoint)
    model = pretrained(setup)
    restore(model, read_state(checkpoint / OURS)[2]["trainable"])
    return model


def restore_trained(model: Any, checkpoint: Bundle) -> None:
    """The adapters of a checkpoint, into a model as it was before this run."""
    restore(model, read_state(checkpoint.path / OURS)[2].get("trainable", {}))


def restore_setup(setup: Setup, checkpoint: Bundle, tell: Listener) -> None:
    """Put a run where its checkpoint was. Its model has been loaded already."""
    position, history, parts, random = read_state(checkpoint.path / OURS)
    mine = {"random": random, "optimization": parts["optimization"]}
    mine |= setup.means.recall(checkpoint.path / OURS)
    setup.learner.objective.load_state_dict(parts["objective"])
    setup.optimization.restore(mine["optimization"])
    if setup.update is not None:
        setup.update.restore(parts["update"])
    setup.position, setup.history, setup.random = position, history, mine["random"]
    message = f"resuming after step {position.done} of {setup.total_steps}"
    tell("log", {"level": "info", "message": message})


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints of a folder."""
    for path in candidates(folder)[keep:]:
        atomic.remove(path)


def say_bad(tell: Listener) -> Callable[[Path, CorruptBundle], None]:
    """Tells of checkpoints that are damaged."""

    def say(path: Path, error: CorruptBundle) -> None:
        message = f"checkpoint {path.name} is damaged and is passed over: {error.message}"
        tell("log", {"level": "warning", "message": message})

    return say


def total_steps_of(spec: JobSpec, plan: Plan) -> int:
    """Optimizer steps of a whole run."""
    if spec.training.max_steps >= 0:
        return spec.training.max_steps
    return math.ceil(spec.training.num_train_epochs * plan.steps_per_epoch)


def _choose_execution(
    learner: EmbeddingLearner, wanted: str, resolved: Resolved, tell: Listener
) -> None:
    """Set how texts go through the encoder; what is asked for and not right is refused."""
    model, rows = learner.model, len(learner.dataset)

    def decide() -> list[str]:
        sample = np.union1d(longest_rows(learner.dataset, _PROBED_ROWS), np.arange(min(rows, 32)))
        columns = learner.fetch(sample).columns
        execution, reason = choose(sides(model)[1], Tokens.join(columns))
        if reason:
            tell("log", {"level": "info", "message": f"texts run {execution}: {reason}"})
        if wanted == "packed" != execution:
            hint = "use execution='auto'"
            raise SpecError([Problem("training.execution", f"cannot be packed: {reason}", hint)])
        return [execution if wanted == "auto" else wanted]

    model.execution = wanted if wanted == "padded" else resolved.once("execution", decide)[0]
    # The plain path is the peers', to the last draw of their dropout.
    set_fast_dropout(model, model.execution != "padded")


def _found_batch_size(learner: EmbeddingLearner, resolved: Resolved, tell: Listener) -> int:
    """The largest batch that fits."""

    def decide() -> int:
        found = rows_that_fit(learner, longest_rows(learner.dataset, _PROBED_ROWS))
        size = min(found, MOST_ROWS, len(learner.dataset))
        size = 1 << (max(1, size).bit_length() - 1)
        tell("log", {"level": "info", "message": f"batch_size: {size} rows fit in memory"})
        return size

    return int(resolved.once("batch_size", decide))


def _found_micro(
    learner: EmbeddingLearner, batch_size: int, resolved: Resolved, tell: Listener
) -> int | None:
    """Rows that go through the model at once where a whole batch does not fit in memory; its
    gradient is the same (see ``EmbeddingLearner``). None where it fits."""
    if batch_size <= _SURELY_FIT:
        return None

    def decide() -> int | None:
        found = rows_that_fit(learner, longest_rows(learner.dataset, _PROBED_ROWS))
        if found >= batch_size:
            return None
        micro = max(1, found)
        message = f"a batch of {batch_size} does not fit in memory: {micro} rows at a time"
        tell("log", {"level": "info", "message": f"{message}, same gradient"})
        return micro

    found: int | None = resolved.once("micro", decide)
    return found


def longest_rows(dataset: Dataset, count: int) -> np.ndarray:
    """The rows with the most characters over all their texts."""
    lengths = facts.row_lengths(dataset)
    count = min(count, len(dataset))
    return np.argpartition(lengths, -count)[-count:]
