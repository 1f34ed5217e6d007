"""What an update begins with, and the learner that it makes of a plain one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from luthier.engine.control import Listener
from luthier.engine.past import FOLDER, Past, read_past, start_of
from luthier.engine.pupil import RowPupil
from luthier.engine.read import Place
from luthier.engine.resolved import Resolved
from luthier.engine.state import OURS
from luthier.engine.updating import UpdatingLearner, Validation
from luthier.errors import DataError
from luthier.spec import JobSpec
from luthier.updaters.build import build_memory, build_updater
from luthier.updaters.merging import build_merge
from luthier.updaters.updater import Updater

#: What an update does where no updater is named.
PLAIN = "FineTuning"


@dataclass(frozen=True)
class Beginning:
    """folder: of the bundle that an update goes on from; None: it is the first. updater: None
    for a plain training, which has neither past nor folder."""

    folder: Path | None = None
    past: Past = field(default_factory=Past)
    updater: Updater | None = None

    @property
    def weights(self) -> Path | None:
        """The folder of the weights to start with: none where a new model is trained."""
        return None if self.updater is not None and self.updater.fresh else self.folder

    def file(self, name: str) -> Path | None:
        """A file of what was left, if it is there."""
        found = None if self.folder is None else self.folder / OURS / FOLDER / name
        return found if found is not None and found.exists() else None


def begin(spec: JobSpec, place: Place, resolved: Resolved, tell: Listener) -> Beginning:
    """Find the state that an update goes on from. Raises NotFound, CorruptBundle."""
    update = spec.update
    if update.updater is None and spec.task != "program":
        return Beginning()
    folder = start_of(spec, place, resolved, tell)
    past = read_past(folder / OURS) if folder is not None else Past()
    updater = build_updater(update.updater or PLAIN, update.updater_options, spec.training.seed)
    return Beginning(folder, past, updater)


def updating(
    spec: JobSpec,
    pupil: RowPupil,
    begun: Beginning,
    batch_size: int,
    validation: Validation | None = None,
) -> UpdatingLearner:
    """The pupil under its updater, laid out. Raises DataError where no row is left to train on."""
    update, training = spec.update, spec.training
    assert begun.updater is not None
    replayed = update.memory_batch_size
    if replayed is None:
        ratio = 1.0 if update.replay_ratio is None else update.replay_ratio
        replayed = round(ratio * batch_size)
    name, size = update.updater or PLAIN, update.memory_size
    if update.memory_bytes is not None:
        size = min(size, _rows_within(update.memory_bytes, pupil, begun.past))
    learner = UpdatingLearner(
        pupil,
        begun.updater,
        build_memory(name, update.memory, size, training.seed),
        begun.past,
        name=name,
        validation=validation,
        seed=training.seed,
        replayed=replayed,
        merge=build_merge(update.merge, update.merge_options),
        most_bytes=update.memory_bytes,
    )
    learner.origin = begun.folder
    learner.lay_out()
    if not len(learner.index):
        raise DataError("there is nothing to train on", file=spec.data.train.uri)
    return learner


def _rows_within(most_bytes: int, pupil: RowPupil, past: Past) -> int:
    """How many rows of the mean size fit. A memory that has been full does not grow: what it
    forgot would be missing from the rows of before."""
    everything = np.arange(pupil.old + pupil.new, dtype=np.int64)
    fit = int(most_bytes // max(1.0, float(pupil.bytes_of(everything).mean())))
    if past.memory is not None and past.memory["seen"] > past.memory["size"]:
        return min(fit, int(past.memory["size"]))
    return fit
