"""One run, from its spec to a bundle. The engine knows no door, no server and no database."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.engine import preflight
from luthier.engine.control import Control, Listener, ignore, keep_going
from luthier.engine.examine import Examiner, Judge, save_checkpoint
from luthier.engine.judge_retrieval import RetrievalJudge
from luthier.engine.judge_update import UpdateJudge
from luthier.engine.loop import Loop
from luthier.engine.means import Means
from luthier.engine.oversight import Oversight
from luthier.engine.precision import settled
from luthier.engine.publish import finished, publish
from luthier.engine.read import Place, read_data
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.setup import Setup, prepare
from luthier.engine.state import restore_random_states
from luthier.spec import JobSpec
from luthier.store.bundle import Bundle

if TYPE_CHECKING:
    from luthier.engine.program import Program

__all__ = ["Outcome", "Place", "run"]


@dataclass(frozen=True)
class Outcome:
    """What a run made: a written bundle, and its metrics."""

    folder: Path
    metrics: dict[str, Any]


def run(
    spec: JobSpec,
    place: Place,
    tell: Listener = ignore,
    control: Control = keep_going,
    means: Means | None = None,
    program: Program | None = None,
) -> Outcome:
    """Read the data, prepare, measure, train, measure again, and publish.

    Called again for the same place it goes on from the last checkpoint, and the result equals
    that of an uninterrupted run bit for bit. means: with what it computes, for tasks; each of
    several processes calls this for the same place. program: functions that are at hand instead of
    those of a configuration file.

    Raises:
        LuthierError: what the job, its data or its model have wrong; OutOfMemory, DiskFull.
        Cancelled, Interrupted: it was asked to stop.
    """
    means = means or Means()
    bundle = finished(place)
    if bundle is None:
        with ExitStack() as settings:
            with means.first():
                resolved = Resolved(place.folder / RESOLVED)
                settings.enter_context(settled(spec.training, resolved, place.cache, tell))
            bundle = _trained(spec, place, tell, control, means, program)
    if spec.update.output_state_url is not None:  # also where an attempt died just before
        from luthier.engine.past import commit

        if bundle.meta["metrics"]["update"]["promoted"]:
            commit(spec.update.output_state_url, bundle, place, tell)
        else:
            message = f"{spec.update.output_state_url} stays as it is: nothing is committed"
            tell("log", {"level": "warning", "message": message})
    return Outcome(bundle.path, bundle.meta["metrics"])


def _trained(
    spec: JobSpec,
    place: Place,
    tell: Listener,
    control: Control,
    means: Means,
    program: Program | None,
) -> Bundle:
    setup, judge = _prepared(spec, place, tell, control, means, program)
    examiner = Examiner(setup, judge, tell)
    before = examiner.before()
    examiner.begin()
    if setup.update is not None:
        examiner.oversight = Oversight(setup, judge, before, tell)
        if examiner.oversight.skips:
            setup.close()
            return publish(setup, examiner, before, tell)
        setup.update.start()
    tell("stage", {"name": "training"})
    if setup.random is not None:
        restore_random_states(setup.random)
    loop = Loop(
        setup.learner,
        setup.plan,
        setup.optimization,
        setup.total_steps,
        setup.position,
        setup.history,
        examiner,
        lambda: save_checkpoint(setup),
        tell,
        means.agreed(control),
        halve=means.halves,
        save_steps=spec.training.save_steps,
        read_ahead=spec.training.dataloader_num_workers,
    )
    try:
        loop.train()
    finally:
        setup.close()
    return publish(setup, examiner, before, tell)


def _prepared(
    spec: JobSpec,
    place: Place,
    tell: Listener,
    control: Control,
    means: Means,
    program: Program | None = None,
) -> tuple[Setup, Judge]:
    tell("stage", {"name": "reading the data"})
    if spec.task == "embedding":
        data = read_data(spec, place, tell)
        setup = prepare(spec, place, data, tell)
        preflight.say(preflight.preflight(setup, data), setup.plan.notes, tell)
        judged = RetrievalJudge if setup.update is None else UpdateJudge
        return setup, judged(setup, data, tell, control)
    if spec.task == "program":
        from luthier.engine.judge_program import ProgramJudge
        from luthier.engine.program_setup import prepare_program

        setup, program_data = prepare_program(spec, place, tell, program)
        return setup, ProgramJudge(setup, program_data, tell, control)
    from luthier.engine.judge_task import TaskJudge
    from luthier.engine.task_rows import read_examples
    from luthier.engine.task_setup import prepare_task, start_task

    with means.first():
        rows = read_examples(spec, place, tell)
        setup = prepare_task(spec, place, rows, tell, control, means)
        judge = TaskJudge(setup, rows, tell, means.agreed(control), prepare=control)
    start_task(setup, tell)
    return setup, judge
