"""What an update begins with, and the learner that it makes of a plain one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

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
from luthier.updaters.merging import Merge
from luthier.updaters.updater import Updater


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
    if update.updater is None:
        return Beginning()
    folder = start_of(spec, place, resolved, tell)
    past = read_past(folder / OURS) if folder is not None else Past()
    updater = build_updater(update.updater, update.updater_options, spec.training.seed)
    return Beginning(folder, past, updater)


def updating(
    spec: JobSpec,
    pupil: RowPupil,
    begun: Beginning,
    batch_size: int,
    validation: Validation | None = None,
    merge: Merge | None = None,
) -> UpdatingLearner:
    """The pupil under its updater, laid out. Raises DataError where no row is left to train on."""
    update, training = spec.update, spec.training
    assert begun.updater is not None
    assert update.updater is not None
    replayed = batch_size if update.memory_batch_size is None else update.memory_batch_size
    learner = UpdatingLearner(
        pupil,
        begun.updater,
        build_memory(update.updater, update.memory, update.memory_size, training.seed),
        begun.past,
        name=update.updater,
        validation=validation,
        seed=training.seed,
        replayed=replayed,
        merge=merge,
    )
    learner.origin = begun.folder
    learner.lay_out()
    if not len(learner.index):
        raise DataError("there is nothing to train on", file=spec.data.train.uri)
    return learner
